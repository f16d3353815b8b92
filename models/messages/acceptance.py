"""What is refused of a well-formed message: headers that this installation does not send on, and blank texts."""

from collections.abc import Collection, Mapping

from models.errors import Reason, Refused
from models.messages.base import TaskMessage
from models.messages.headers import ALLOWED_HEADERS

INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
"""Characters that show nothing and are no spaces to Python: soft hyphens, joiners, byte order marks."""


def check_acceptable(message: TaskMessage, email_headers: Collection[str]) -> None:
    """Refuse a message that must not be sent; `email_headers` are those that the operator has named, in small letters.

    Raises
    ------
    Refused
        `invalid_job`.

    """
    refuse_other_headers(getattr(message, "headers", None), email_headers)
    for name in ("subject", "text", "html"):
        text = getattr(message, name, None)
        if isinstance(text, str) and is_blank(text):
            raise Refused(Reason.INVALID_JOB, f"`{name}`: must not be blank.")


def refuse_other_headers(headers: Mapping[str, str] | None, allowed: Collection[str]) -> None:
    """Refuse headers that begin with X- and that the operator has not named; `allowed` is in small letters.

    Raises
    ------
    Refused
        `invalid_job`.

    """
    for name in headers or ():
        if name.lower() not in ALLOWED_HEADERS and name.lower() not in allowed:
            sentence = f"`headers`: {name} is not allowed here: the operator can name it in POSTAGE_EMAIL_HEADERS."
            raise Refused(Reason.INVALID_JOB, sentence)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: somebody would pay for it, and it is nearly always a mistake of a program."""
    return all(character.isspace() or character in INVISIBLE for character in text)
