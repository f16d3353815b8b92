"""The headers that a job may give an email: a list, because what is not known may do anything.

Relays obey headers: `X-SMTPAPI`, `X-MC-…`, `X-Mailgun-…` and their kind add recipients whom nobody has paid for, or
change the route, and `Disposition-Notification-To` asks readers for an answer.
"""

import re

ALLOWED_HEADERS = frozenset(
    {
        # RFC 2369, RFC 2919 and RFC 8058: what a mail program shows of a list, and how one leaves it.
        *("list-help", "list-unsubscribe", "list-subscribe", "list-post", "list-owner", "list-archive"),
        *("list-id", "list-unsubscribe-post"),
        "auto-submitted",  # RFC 3834
        "precedence",  # RFC 2076
        *("in-reply-to", "references"),  # RFC 5322, section 3.6.4
        *("importance", "priority", "x-priority"),  # RFC 2156
        "feedback-id",  # Gmail's feedback loop
    }
)
"""In small letters. What begins with X- beside these is allowed where the operator names it (POSTAGE_EMAIL_HEADERS)."""


HEADER_MAX = 998
"""Characters of a header's value, which is folded into lines (RFC 5322 section 2.1.1)."""
WORD_MAX = 900
"""Characters of a value between two blanks, where lines cannot be folded."""
_WORDS = re.compile(rf" *[!-~]{{1,{WORD_MAX}}}(?: +[!-~]{{1,{WORD_MAX}}})* *")


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers of a job, if each may be allowed somewhere, and is there once.

    Raises
    ------
    ValueError
        Naming the header.

    """
    for name in headers:
        if name.lower() not in ALLOWED_HEADERS and not name.lower().startswith("x-"):
            msg = (
                f"must not set {name}: allowed are List-…, Auto-Submitted, Precedence, In-Reply-To, References and X-…"
            )
            raise ValueError(msg)
    for name, value in headers.items():
        if name.lower() in ALLOWED_HEADERS:
            check_structured(name, value)
    if len({name.lower() for name in headers}) != len(headers):
        msg = "must name each header once"
        raise ValueError(msg)
    return headers


def split_list_id(value: str) -> tuple[str, str]:
    """Return the description of a list and its id in angle brackets (RFC 2919 section 3); one of them may be empty."""
    at = value.rfind("<")
    return (value[:at].strip(" "), value[at:]) if at >= 0 else ("", value)


def check_structured(name: str, value: str) -> None:
    """Make sure that a header which programs read needs no encoded words, and can be folded (RFC 2047 section 5).

    Raises
    ------
    ValueError
        Naming the header.

    """
    read = split_list_id(value)[1] if name.lower() == "list-id" else value
    if not _WORDS.fullmatch(read):
        msg = (
            f"must have {name} in ASCII, with a blank after {WORD_MAX} characters at the latest: write an address of "
            "the web percent-encoded"
        )
        raise ValueError(msg)
