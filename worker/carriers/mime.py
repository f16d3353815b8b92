"""How an email is written: headers, text and html become the bytes of one message. No network here."""

import base64
import binascii
import functools
import re
import secrets
import textwrap
import time
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.header import Header
from email.utils import format_datetime
from urllib.parse import quote

import idna

from models.messages.addresses import quote_name, split_mailbox
from models.messages.headers import ALLOWED_HEADERS, WORD_MAX, split_list_id
from models.sends.carrier import Email

CRLF = "\r\n"
LINE_MAX = 998
"""Bytes in a line, without its CRLF (RFC 5322 section 2.1.1)."""
FOLD_AT = 76
"""Characters after which a header is folded (RFC 5322 section 2.1.1 recommends lines of at most 78)."""

_WORDS = re.compile(rf"[!-~]{{1,{WORD_MAX}}}( [!-~]{{1,{WORD_MAX}}})*")
_PRINTABLE = re.compile(rf"[!-~]([ -~]{{0,{WORD_MAX}}}[!-~])?")
_READABLE = re.compile(r"[ -~]+")
_FOR_ENVELOPES = re.compile(r"[^\x00-\x20\x7f<>]+@[^\x00-\x20\x7f<>@]+")
"""What may stand in angle brackets; nothing in it ends the address early."""
_ATOM = re.compile(r"[A-Za-z0-9_-]+")
"""Job ids that need no encoding in a Message-ID."""
_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_OURS = {"from", "to", "cc", "bcc", "subject", "date", "message-id", "reply-to", "mime-version"}
_ASCII = bytes(range(128))
_PLAIN = b"\t\r\n" + bytes(range(32, 127))
"""Characters of content that may be sent as it is (RFC 2045 section 2.7)."""


def compose(email: Email) -> bytes:
    """Write `email` as one message (RFC 5322) with CRLF line ends and no line over `LINE_MAX` bytes.

    Bcc is never written. Extra headers that would double one written here (or MIME's own) are left out. Addresses
    whose local part is not ASCII stand in the headers as UTF-8 (RFC 6532), everything else is ASCII. Dots at the
    beginning of lines are not doubled: that belongs to the transfer (RFC 5321 section 4.5.2).

    Raises
    ------
    ValueError
        If an address cannot be written; see `wire_address`.

    """
    head = "".join([f"{name}: {value}{CRLF}" for name, value in _headers(email)])
    return b"%bMIME-Version: 1.0\r\n%b" % (head.encode(), _body(email))


def message_id(email: Email) -> str:
    """Return the Message-ID of `email`, which is the same for the same job, and different for any other.

    Its left side is the job id, and its right side the number of the organization before the domain of the sender.
    Everything in the job id that is not dot-atom text is percent-encoded, and so are the percent sign and each dot
    without text on both sides (RFC 5322 sections 3.2.3 and 3.6.4).
    """
    local = email.job_id
    if not _ATOM.fullmatch(local):
        atoms = quote(local, safe="!#$&'*+-/=?^_`{|}~.")
        local = re.sub(r"(?<![^.])\.|\.(?![^.])", "%2E", atoms)
    domain = wire_address(email.from_address).rpartition("@")[2]
    return f"<{local}@{domain}>" if email.org_id is None else f"<{local}@{email.org_id}.{domain}>"


def wire_address(address: str) -> str:
    """Return `address` for an envelope or a header: its domain in ASCII (IDNA, RFC 5890), its local part as it is.

    Raises
    ------
    ValueError
        If it has no domain, the domain is not a valid name, or a character in it would end the address early.

    """
    if not _FOR_ENVELOPES.fullmatch(address):
        msg = "This is not an email address."
        raise ValueError(msg)
    if address.isascii():
        return address  # as nearly always
    local, _, domain = address.rpartition("@")
    return address if domain.isascii() else f"{local}@{idna.encode(domain, uts46=True).decode()}"


def needs_smtputf8(address: str) -> bool:
    """Whether only a server with SMTPUTF8 (RFC 6531) can take `address`: its local part is not ASCII."""
    return not address.isascii() and not address.rpartition("@")[0].isascii()


def _headers(email: Email) -> Iterator[tuple[str, str]]:
    yield "From", _sender(email.from_name, email.from_address)
    yield "To", _listed("To", email.to) or "undisclosed-recipients:;"
    if email.cc:
        yield "Cc", _listed("Cc", email.cc)
    yield "Subject", _text("Subject", email.subject)
    yield "Date", _date(int(time.time()))
    yield "Message-ID", message_id(email)
    if email.reply_to:
        yield "Reply-To", _listed("Reply-To", email.reply_to)
    for name, value in email.headers.items():
        if _is_free(name):
            yield name, _extra(name, value.strip())


@functools.lru_cache(maxsize=1_000)
def _sender(name: str, address: str) -> str:
    """Return the value of From, written once for many emails of the same sender."""
    return _named("From", name, wire_address(address))


@functools.lru_cache(maxsize=2)
def _date(second: int) -> str:
    """Return a date, written once for all emails of the same second."""
    return format_datetime(datetime.fromtimestamp(second, UTC))


def _is_free(name: str) -> bool:
    """Whether an extra header of this name can be written without doubling one of ours."""
    lowered = name.lower()
    return bool(_HEADER_NAME.fullmatch(name)) and lowered not in _OURS and not lowered.startswith("content-")


def _listed(header: str, mailboxes: Iterable[str]) -> str:
    return f",{CRLF} ".join([_mailbox(header, mailbox) for mailbox in mailboxes])


def _mailbox(header: str, mailbox: str) -> str:
    name, address = split_mailbox(mailbox)
    return _named(header, name, wire_address(address)) if name else wire_address(address)


def _named(header: str, name: str, address: str) -> str:
    """Return `"Name" <address>`. A name that is long or not ASCII becomes encoded words, which need no quotes."""
    clean = _one_line(name).strip()
    if not clean:
        return address
    return f"{_phrase(header, clean)}{CRLF} <{address}>"


def _phrase(header: str, text: str) -> str:
    """Return words before something in angle brackets: in quotes, or as encoded words, which need none."""
    if len(text) <= FOLD_AT - len(header) - 2 and _PRINTABLE.fullmatch(text) and "=?" not in text:
        return quote_name(text)
    return _encoded(header, text)


def _extra(name: str, value: str) -> str:
    """Return the value of a header that a job gives. What programs read is never written as encoded words.

    A job of an earlier release may have such a value outside ASCII; then there is no right way to write it.
    """
    if name.lower() not in ALLOWED_HEADERS:
        return _text(name, value)
    if _READABLE.fullmatch(value):
        return _folded(name, value)
    words, read = split_list_id(value)
    if name.lower() == "list-id" and _READABLE.fullmatch(read):
        described = _one_line(words).strip(' "')
        return f"{_encoded(name, described)}{CRLF} {read}"
    return _text(name, value)


def _folded(name: str, value: str) -> str:
    """Return a value in lines, each of which begins with the blanks that are there anyway."""
    lines, length = [""], len(name) + 2
    for word in re.findall(r" *[^ ]+", value):
        if lines[-1] and length + len(word) > FOLD_AT:
            lines.append("")
            length = 0
        lines[-1] += word
        length += len(word)
    return CRLF.join(lines)


def _text(name: str, value: str) -> str:
    """Return free text as the value of header `name`: plain if that is read back the same, else encoded words.

    EmailMessage of the standard library is not used: several of its versions lose blanks or quotes when they fold
    lines, it takes text for encoded words that merely looks like them, and it needs five times as long.
    """
    clean = _one_line(value)
    if not clean:
        return ""
    if "=?" not in clean and _WORDS.fullmatch(clean):
        if len(name) + 2 + len(clean) <= FOLD_AT:
            return clean
        indent = " " * (len(name) + 2)
        lines = textwrap.wrap(clean, FOLD_AT, initial_indent=indent, break_long_words=False, break_on_hyphens=False)
        return f"{CRLF} ".join(lines).removeprefix(indent)
    if "=?" not in clean and _PRINTABLE.fullmatch(clean):
        return clean
    return _encoded(name, clean)


def _encoded(name: str, value: str) -> str:
    """Return encoded words (RFC 2047) of at most 75 characters, each on a line of its own."""
    return Header(value, "utf-8", maxlinelen=FOLD_AT, header_name=name).encode(linesep=CRLF)


def _one_line(value: str) -> str:
    """Replace each control character and line break by a blank: a header may contain none of them."""
    if value.isprintable():
        return value  # as nearly always
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in _without_surrogates(value))


def _without_surrogates(value: str) -> str:
    """Replace each lone surrogate by a question mark: no encoding can write one."""
    return value.encode("utf-8", "replace").decode()


def _body(email: Email) -> bytes:
    """Return text, html, or both as alternatives, the plainer one first (RFC 2046 section 5.1.4)."""
    forms = ((email.text, "plain"), (email.html, "html"))
    parts = [_part(content, subtype) for content, subtype in forms if content is not None] or [_part("", "plain")]
    if len(parts) == 1:
        return parts[0]
    boundary = b"=_" + secrets.token_hex(16).encode()
    head = b'Content-Type: multipart/alternative; boundary="%b"\r\n\r\n' % boundary
    return head + b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts) + b"--%b--\r\n" % boundary


def _part(content: str, subtype: str) -> bytes:
    """Return one part, always in ASCII, so that no server needs 8BITMIME for it (RFC 2045 section 6)."""
    divided = content.encode("utf-8", "replace").splitlines()
    lines = b"%b\r\n" % b"\r\n".join(divided)
    if not lines.translate(None, _PLAIN) and max(map(len, divided), default=0) <= LINE_MAX:
        encoding, written = b"7bit", lines
    elif 6 * len(lines.translate(None, _ASCII)) > len(lines):
        # Quoted-printable takes 3 bytes for one that is not ASCII, base64 4 for any 3.
        encoding, written = b"base64", base64.encodebytes(lines).replace(b"\n", b"\r\n")
    else:
        encoding, written = b"quoted-printable", binascii.b2a_qp(lines)
    head = b"Content-Type: text/%b; charset=utf-8\r\nContent-Transfer-Encoding: %b\r\n\r\n"
    return head % (subtype.encode(), encoding) + written
