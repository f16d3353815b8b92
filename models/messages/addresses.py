"""Email addresses: what an address must look like, and its normal form, in which it is stored and sent to."""

import functools
import re
from typing import Any

from email_validator import EmailNotValidError, validate_email

ADDRESS_MAX = 254
"""RFC 5321 section 4.5.3.1.3, as corrected by erratum 1690 of RFC 3696."""
ADDRESS_FIELDS = frozenset({"to", "cc", "bcc", "reply_to"})
"""The fields of an email that hold an address or a list of them."""
_PLAIN_LOCAL = re.compile(r"(?=.{1,64}\Z)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
"""The dot-string of RFC 5321 section 4.1.2, of 64 characters at most (section 4.5.3.1.1)."""


def check_address(text: str) -> str:
    """Return `text`, if it is an email address (RFC 5321, RFC 6531). `.test` may be used (RFC 6761).

    The network is not asked. The library spends most of its time on the domain, and millions of addresses share few
    domains. So where the local part is plain, the result for the domain is cached.

    Raises
    ------
    ValueError
        If it is no address.

    """
    local, _, domain = text.rpartition("@")
    if _PLAIN_LOCAL.fullmatch(local) and len(text) <= ADDRESS_MAX and _domain(domain):
        return text
    try:
        validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        msg = "must be one email address like name@example.org"
        raise ValueError(msg) from None
    return text


def normalize_address(address: str) -> str:
    """Return the normal form of an address that was checked: in Unicode NFC, its domain in small letters."""
    local, _, domain = address.rpartition("@")
    if address.isascii() and (normalized := _domain(domain)):
        return f"{local}@{normalized}"
    return validate_email(address, check_deliverability=False, test_environment=True).normalized


@functools.lru_cache(maxsize=10_000)
def _domain(domain: str) -> str | None:
    """Return a domain as a normalized address has it, or None if no address can have it."""
    try:
        checked = validate_email(f"a@{domain}", check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return None
    return checked.domain


def normalize_addresses(email: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an email with each address in its normal form."""
    return {name: _normalized(value) if name in ADDRESS_FIELDS else value for name, value in email.items()}


def _normalized(value: str | list[str]) -> str | list[str]:
    return normalize_address(value) if isinstance(value, str) else [normalize_address(address) for address in value]
