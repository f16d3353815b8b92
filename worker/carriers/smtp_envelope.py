"""An email as one particular mail server can take it."""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from models.messages.addresses import bare_address
from models.sends.carrier import Email
from worker.carriers.mime import compose, needs_smtputf8, wire_address


# Not frozen, because making a frozen one takes three times as long. Nothing changes it.
@dataclass(slots=True)
class SmtpEnvelope:
    """The envelope (RFC 5321 section 2.3.1) and the message, as they are sent to one server."""

    sender: str
    recipients: Mapping[str, str]
    """Each recipient's address as the job has it, and as it is sent."""
    refused: Mapping[str, str]
    """Recipients whose addresses this server cannot take, each with the reason."""
    message: bytes
    utf8: bool
    """Whether it needs SMTPUTF8."""


class UnwritableError(Exception):
    """The email as a whole cannot be written for this server; the message says why."""


def write_envelope(email: Email, *, utf8: bool) -> SmtpEnvelope:
    """Write `email` for a server that knows SMTPUTF8 (RFC 6531) or does not (`utf8`).

    Without it, recipients whose local part is not ASCII are refused for good, and appear in no header either.

    Raises
    ------
    UnwritableError
        If the address of the sender or the one for replies cannot be written.

    """
    if _is_ascii(email):
        try:
            return _write_ascii(email)
        except ValueError:  # of an address that is none: below it is told which
            pass
    recipients, refused = {}, {}
    for address in dict.fromkeys(email.recipients):
        try:
            recipients[address] = _written(address, utf8=utf8)
        except ValueError as error:
            refused[address] = str(error)
    try:
        sender = _written(email.from_address, utf8=utf8)
        reply_to = [_written(bare_address(mailbox), utf8=utf8) for mailbox in email.reply_to]
    except ValueError:
        msg = "The sender's address or the one for replies is not one that the mail server can take."
        raise UnwritableError(msg) from None
    to, cc = (
        tuple(each for each in named if bare_address(each) in recipients or _is_writable(bare_address(each), utf8=utf8))
        for named in (email.to, email.cc)
    )
    shown = email if (to, cc) == (email.to, email.cc) else dataclasses.replace(email, to=to, cc=cc)
    addresses = (sender, *reply_to, *recipients, *map(bare_address, (*shown.to, *shown.cc)))
    needs_utf8 = any(needs_smtputf8(address) for address in addresses)
    return SmtpEnvelope(sender, recipients, refused, compose(shown), utf8=needs_utf8)


def _is_ascii(email: Email) -> bool:
    """Whether all addresses are ASCII, as nearly always."""
    return "".join((email.from_address, *email.recipients, *email.to, *email.cc, *email.reply_to)).isascii()


def _write_ascii(email: Email) -> SmtpEnvelope:
    """Write an email whose addresses every server can take. It is the same as the long way, and takes half the time."""
    recipients = {address: wire_address(address) for address in email.recipients}
    return SmtpEnvelope(wire_address(email.from_address), recipients, {}, compose(email), utf8=False)


def _is_writable(address: str, *, utf8: bool) -> bool:
    with contextlib.suppress(ValueError):
        return bool(_written(address, utf8=utf8))
    return False


def _written(address: str, *, utf8: bool) -> str:
    if not utf8 and needs_smtputf8(address):
        msg = "The mail server takes only addresses with an ASCII local part (it lacks SMTPUTF8)."
        raise ValueError(msg)
    return wire_address(address)
