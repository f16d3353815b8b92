"""The headers that a job may give an email: a list, because what is not known may do anything.

Relays obey headers: `X-SMTPAPI`, `X-MC-…`, `X-Mailgun-…` and their kind add recipients whom nobody has paid for, or
change the route, and `Disposition-Notification-To` asks readers for an answer.
"""

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
    if len({name.lower() for name in headers}) != len(headers):
        msg = "must name each header once"
        raise ValueError(msg)
    return headers
