"""Email addresses: what an address must look like, and its normal form, in which it is stored and sent to.

A mailbox is an address, or a name and an address: `Ann <ann@example.org>` (RFC 5322 section 3.4).
"""

import functools
import re
import unicodedata
from typing import Any

from email_validator import EmailNotValidError, validate_email

ADDRESS_MAX = 254
"""RFC 5321 section 4.5.3.1.3, as corrected by erratum 1690 of RFC 3696."""
NAME_MAX = 128
"""Characters of a name before an address; mail programs show some forty."""
MAILBOX_MAX = 600
"""Characters of a name and an address as they are written: each character of the name may be quoted."""
DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode's bidirectional controls (UAX 9), with which a name can show another address than the true one."""
_NOT_IN_NAMES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_NAMED = re.compile(r'(?:"((?:[^"\\]|\\.)*)"|([^"<>()\[\]:;@\\,]*)) *<([^<>]*)>', re.DOTALL)
"""A name in quotes or one without special characters (RFC 5322 section 3.2.3; dots as in section 4.1), and an address.
"""
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


def check_mailbox(text: str) -> str:
    """Return `text`, if it is an email address, or a name and an address.

    Raises
    ------
    ValueError
        If it is neither.

    """
    if not text.endswith(">"):
        return check_address(text)
    name, address = split_mailbox(text)
    check_address(address)
    if len(name) > NAME_MAX:
        msg = f"must not have a name of more than {NAME_MAX} characters"
        raise ValueError(msg)
    if not all(map(_may_be_in_name, text)):
        msg = "must not have control characters, line breaks, or marks that change the direction of text in the name"
        raise ValueError(msg)
    return text


def _may_be_in_name(character: str) -> bool:
    return unicodedata.category(character) not in _NOT_IN_NAMES and character not in DIRECTION_MARKS


def split_mailbox(text: str) -> tuple[str, str]:
    """Return the name and the address of a mailbox; the name of a bare address is empty.

    Raises
    ------
    ValueError
        If `text` ends like a name and an address, and is none: a name with other signs than letters, digits, blanks
        and a few more has to be in quotes, in which a backslash quotes what follows.

    """
    if not text.endswith(">"):
        return "", text
    parts = _NAMED.fullmatch(text)
    if parts is None:
        msg = 'must be one address, or a name and an address like Ann <ann@example.org>; quote other names: "Ann, B."'
        raise ValueError(msg)
    quoted, plain, address = parts.groups()
    return (plain or re.sub(r"\\(.)", r"\1", quoted or "")).strip(), address


def join_mailbox(name: str, address: str) -> str:
    """Return a name and an address as one text, which `split_mailbox` takes apart again."""
    if not name:
        return address
    return f"{quote_name(name)} <{address}>"


def quote_name(name: str) -> str:
    """Return a name as a quoted string (RFC 5322 section 3.2.4)."""
    escaped = name.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


def bare_address(text: str) -> str:
    """Return the address of a mailbox that was checked."""
    return split_mailbox(text)[1]


def normalize_mailbox(text: str) -> str:
    """Return the normal form of a mailbox that was checked: its name in quotes, its address in its normal form."""
    name, address = split_mailbox(text)
    return join_mailbox(name, normalize_address(address))


@functools.lru_cache(maxsize=10_000)
def _domain(domain: str) -> str | None:
    """Return a domain as a normalized address has it, or None if no address can have it."""
    try:
        checked = validate_email(f"a@{domain}", check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return None
    return checked.domain


def normalize_addresses(email: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an email with each mailbox in its normal form."""
    return {name: _normalized(value) if name in ADDRESS_FIELDS else value for name, value in email.items()}


def _normalized(value: str | list[str]) -> str | list[str]:
    return normalize_mailbox(value) if isinstance(value, str) else [normalize_mailbox(mailbox) for mailbox in value]
