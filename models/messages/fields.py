"""The types of the fields of messages, with their limits. They are checked here, so that no later code has to.

What a type checks by code is in its JSON schema too, as far as a schema can say it, and in words otherwise. The regular
expressions mean the same to JavaScript (ECMA 262, as JSON Schema wants it), Python, Go and Rust.
"""

import re
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from models.messages.addresses import MAILBOX_MAX, NAME_MAX, check_address, check_mailbox, normalize_address
from models.messages.currencies import CURRENCIES, check_currency
from models.messages.headers import HEADER_MAX, WORD_MAX, check_headers
from models.messages.numbers import check_number

RECIPIENTS_MAX = 100
"""Recipients of one email: every SMTP server must accept so many at once (RFC 5321, section 4.5.3.1.8)."""
REPLY_TO_MAX = 10
"""Addresses to which replies go."""
BULK_MAX = 500
"""Messages of one bulk job."""
SEGMENTS_MAX = 10
"""Segments of one text message; many carriers cut longer ones."""
CREDITS_MAX = 1_000_000_000
"""Credits of one plan or purchase: far below the 64 bits of a balance."""
AMOUNT_MAX = 10**15
"""Money of one plan or purchase, in minor units."""
SUBJECT_MAX = 900
"""Characters of a subject."""
TEXT_MAX = 1_000_000
HTML_MAX = 2_000_000
"""Characters of an email's bodies; most servers end at 10 to 25 MB for the whole mail."""

Kind = Literal["email", "sms"]
KINDS: tuple[Kind, ...] = ("email", "sms")


_CC = r"\x00-\x1f\x7f-\x9f"
"""Unicode's general category Cc."""
_CC_BUT_BREAKS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_CONTROLS = re.compile(f"[{_CC}]")
_CONTROLS_BUT_BREAKS = re.compile(f"[{_CC_BUT_BREAKS}]")
LINE_PATTERN = f"^[^{_CC}]*$"
TEXT_PATTERN = f"^[^{_CC_BUT_BREAKS}]*$"


def _no_controls(text: str) -> str:
    """Refuse control characters: they can add headers to an email, and databases do not store NUL."""
    if _CONTROLS.search(text):
        msg = "must not contain control characters or line breaks"
        raise ValueError(msg)
    return text


def _no_controls_but_breaks(text: str) -> str:
    if _CONTROLS_BUT_BREAKS.search(text):
        msg = "must not contain control characters other than tab and line breaks"
        raise ValueError(msg)
    return text


PLACEHOLDER_NAME = r"[\w.-]{1,64}"
_PLACEHOLDER_PATTERN = r"^[^\x00-,/:-@\[-^`{-\x7f]{1,64}$"
"""The same of ASCII; which characters beyond it are letters or digits is for `_placeholder`."""


def _placeholder(name: str) -> str:
    if not re.fullmatch(PLACEHOLDER_NAME, name):
        msg = "must be made of letters, digits, and _ - ."
        raise ValueError(msg)
    return name


_SMS_NUMBER = r"\+?[0-9]{3,15}"
_SMS_NAME = r"[A-Za-z0-9&._+-][A-Za-z0-9&._+ -]{1,9}[A-Za-z0-9&._+-]"
_LETTER = "[A-Za-z]"


def _sms_sender(text: str) -> str:
    """Refuse what carriers do not take: a name has at most 11 characters (3GPP TS 23.040, section 9.1.2.5).

    Twilio, Vonage and Sinch want a letter in it, and take letters, digits, spaces and a few signs.
    """
    is_name = re.fullmatch(_SMS_NAME, text) and re.search(_LETTER, text)
    if not is_name and not re.fullmatch(_SMS_NUMBER, text):
        msg = (
            "must be a number, or a name of 3 to 11 characters with a letter, of letters, digits, spaces and & . _ + -"
        )
        raise ValueError(msg)
    return text


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_INSTANT_PATTERN = r"^[0-9]{4}-?(W[0-9]{2}|[0-9]{4}|[0-9]{2}-[0-9]{2})"
"""How each date of ISO 8601 begins that Python reads."""


def _instant(value: object) -> object:
    """Parse an ISO 8601 date (meaning its midnight) or date and time. Without an offset it is UTC."""
    if not isinstance(value, str):
        msg = "must be an ISO 8601 date or time such as 2026-11-23 or 2026-11-23T10:00:00Z"
        raise ValueError(msg)  # noqa: TRY004  pydantic turns ValueError into a refusal
    try:
        instant = datetime.combine(date.fromisoformat(value), time()) if len(value) == len("2026-11-23") else None
        instant = instant or datetime.fromisoformat(value)
        return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        msg = "must be an ISO 8601 date or time such as 2026-11-23 or 2026-11-23T10:00:00Z"
        raise ValueError(msg) from None


ID_CHARACTERS = "A-Za-z0-9._:-"
ID_MAX = 64
ID = re.compile(f"[{ID_CHARACTERS}]{{1,{ID_MAX}}}")
"""The pattern of an id, to be matched in full."""


def is_id(value: object) -> bool:
    """Whether a value off the wire, which may be anything, is an id."""
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _in_schema(description: str, **keywords: Any) -> Any:  # noqa: ANN401  pydantic's
    """Return what the JSON schema of a type says besides its limits: a sentence, and what is checked by code."""
    return Field(description=description, json_schema_extra=keywords or None)


Id = Annotated[
    str, StringConstraints(pattern=f"^{ID.pattern}$"), _in_schema(f"An id: 1 to {ID_MAX} letters, digits, and `._:-`.")
]
"""An id that a producer made."""
MessageId = Annotated[
    str,
    StringConstraints(pattern=f"^{ID.pattern}(/[0-9]{{1,3}})?$"),
    _in_schema("The id of a send job, or of one message of a bulk job, such as `news-7/0`."),
]
TextLine = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500),
    AfterValidator(_no_controls),
    _in_schema("A line, without control characters.", pattern=LINE_PATTERN),
]
Subject = Annotated[
    str,
    StringConstraints(min_length=1, max_length=SUBJECT_MAX),
    AfterValidator(_no_controls),
    _in_schema("A line, without control characters. It must not be blank.", pattern=LINE_PATTERN),
]
Address = Annotated[
    str,
    StringConstraints(min_length=3, max_length=320),
    AfterValidator(check_address),
    _in_schema("An email address (RFC 5321, RFC 6531).", pattern=f"^[^{_CC} <>]+@[^{_CC} <>]+$"),
]
"""An email address as it was written."""
NormalAddress = Annotated[Address, AfterValidator(normalize_address)]
"""An email address in its normal form, for messages that have no digest."""
Mailbox = Annotated[
    str,
    StringConstraints(min_length=3, max_length=MAILBOX_MAX),
    AfterValidator(check_mailbox),
    _in_schema(
        f"An email address (RFC 5321, RFC 6531), perhaps with a name of at most {NAME_MAX} characters: "
        "`Ann <ann@example.org>`.",
        pattern=f"^[^{_CC}]*@[^{_CC}]*$",
    ),
]
"""An email address as it was written, perhaps with a name."""
_Mailboxes = Annotated[list[Mailbox], Field(min_length=1, max_length=RECIPIENTS_MAX)]
Mailboxes = Annotated[_Mailboxes, BeforeValidator(_as_list, json_schema_input_type=Mailbox | _Mailboxes)]
_ReplyTo = Annotated[list[Mailbox], Field(min_length=1, max_length=REPLY_TO_MAX)]
ReplyTo = Annotated[_ReplyTo, BeforeValidator(_as_list, json_schema_input_type=Mailbox | _ReplyTo)]
PhoneNumber = Annotated[
    str,
    StringConstraints(pattern=r"^\+[1-9][0-9]{6,14}$"),
    AfterValidator(check_number),
    _in_schema("A number in E.164, of a country that exists, and as long as its numbers are."),
]
SmsFrom = Annotated[
    str,
    StringConstraints(max_length=16),
    AfterValidator(_sms_sender),
    _in_schema(
        "A number, a short code, or a name of 3 to 11 characters with a letter: letters, digits, blanks and `&._+-`.",
        anyOf=[{"pattern": f"^{_SMS_NUMBER}$"}, {"allOf": [{"pattern": f"^{_SMS_NAME}$"}, {"pattern": _LETTER}]}],
    ),
]
_BODY = "Without control characters other than tab and line breaks. It must not be blank."
EmailText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=TEXT_MAX),
    AfterValidator(_no_controls_but_breaks),
    _in_schema(_BODY, pattern=TEXT_PATTERN),
]
EmailHtml = Annotated[
    str,
    StringConstraints(min_length=1, max_length=HTML_MAX),
    AfterValidator(_no_controls_but_breaks),
    _in_schema(_BODY, pattern=TEXT_PATTERN),
]
SmsText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=SEGMENTS_MAX * 160),
    AfterValidator(_no_controls_but_breaks),
    _in_schema(f"At most {SEGMENTS_MAX} segments. {_BODY}", pattern=TEXT_PATTERN),
]
Currency = Annotated[
    str,
    StringConstraints(max_length=3),
    AfterValidator(check_currency),
    _in_schema("The code of a currency that exists (ISO 4217).", enum=sorted(CURRENCIES)),
]
Amount = Annotated[
    int,
    Field(ge=0, le=AMOUNT_MAX),
    _in_schema("Money as a whole number of the currency's minor unit: 1999 with EUR is 19.99 €."),
]
Version = Annotated[int, Field(ge=0, lt=2**63), _in_schema("A whole number that grows with each save.")]
CreditCount = Annotated[int, Field(ge=0, le=CREDITS_MAX)]
SignedCreditCount = Annotated[int, Field(ge=-CREDITS_MAX, le=CREDITS_MAX)]
"""Credits given (positive) or taken (negative)."""
_InstantText = Annotated[
    str, _in_schema("A day or time in ISO 8601, in UTC unless it has an offset.", pattern=_INSTANT_PATTERN)
]
Instant = Annotated[datetime, BeforeValidator(_instant, json_schema_input_type=_InstantText)]
Billing = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], TextLine],
    Field(min_length=1, max_length=30),
    _in_schema("Billing information: lines by name, such as name, address, country, tax_id."),
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$")]
Placeholder = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64),
    AfterValidator(_placeholder),
    _in_schema("Letters and digits of any script, and `_.-`.", pattern=_PLACEHOLDER_PATTERN),
]
"""The name of a placeholder."""
Value = Annotated[
    str,
    StringConstraints(max_length=2000),
    AfterValidator(_no_controls_but_breaks),
    _in_schema("Without control characters other than tab and line breaks.", pattern=TEXT_PATTERN),
]

PATTERN_WORDS = {
    f"^{ID.pattern}$": f"must be 1 to {ID_MAX} letters, digits, and . _ : -",
    f"^{ID.pattern}(/[0-9]{{1,3}})?$": "must be the id of a send job or of a bulk job's message, such as news-7/0",
    r"^\+[1-9][0-9]{6,14}$": "must be a number with a plus and its country code, such as +4915112345678",
    r"^[A-Za-z0-9_.-]{1,64}$": "must have a name of 1 to 64 letters, digits, and _ . -",
    r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$": "must have a name of 1 to 64 letters, digits and -",
    r"^email:[0-9]{1,18},sms:[0-9]{1,18}$": "must be the value of `next` of the page before",
    r"^(email|sms)/[0-9]{1,18}$": "must be the name of an entry, such as email/57",
}
"""What a text must be that does not match a pattern, for people who read no regular expressions."""

HeaderValue = Annotated[
    str,
    StringConstraints(min_length=1, max_length=HEADER_MAX),
    AfterValidator(_no_controls),
    _in_schema(
        f"A line, with a blank after {WORD_MAX} characters at the latest. In ASCII, except in headers that begin with "
        "`X-`, and in the description in `List-Id`.",
        pattern=LINE_PATTERN,
    ),
]
Headers = Annotated[
    dict[HeaderName, HeaderValue],
    Field(max_length=30),
    AfterValidator(check_headers),
    _in_schema(
        "Headers of the email, each once: `List-…`, `Auto-Submitted`, `Precedence`, `In-Reply-To`, `References`, "
        "`Importance`, `Priority`, `X-Priority`, `Feedback-ID`, and what begins with `X-` and the operator has named."
    ),
]
