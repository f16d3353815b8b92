"""The messages of `email.send_many` and `sms.send_many`: a template, and the recipients it is filled in for."""

import html as html_escape
import re
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from models.errors import Reason, Refused
from models.messages.addresses import bare_address, normalize_addresses, normalize_mailbox
from models.messages.base import TaskMessage, explain
from models.messages.fields import (
    BULK_MAX,
    HTML_MAX,
    PLACEHOLDER_NAME,
    SUBJECT_MAX,
    TEXT_MAX,
    EmailHtml,
    EmailText,
    Kind,
    Mailbox,
    PhoneNumber,
    Placeholder,
    SmsText,
    Subject,
    Value,
)
from models.messages.pricing import GSM7_SINGLE
from models.messages.sends import (
    Content,
    EmailContent,
    SmsContent,
    count_segments,
    limit_recipients,
    with_single_reply_to,
)


class EmailRecipient(TaskMessage):
    """One recipient of a bulk email, and the values for the placeholders."""

    to: Mailbox
    values: dict[Placeholder, Value] = Field(default_factory=dict, max_length=100)


class SmsRecipient(TaskMessage):
    """One recipient of a bulk text message, and the values for the placeholders."""

    to: PhoneNumber
    values: dict[Placeholder, Value] = Field(default_factory=dict, max_length=100)


PLACEHOLDER = re.compile(r"\{\{\s*(" + PLACEHOLDER_NAME + r")\s*\}\}")
_LEFT_OPEN = re.compile(r"\{\{|\{\0|\0\}")
"""Braces that would go out: two of them, or one beside a placeholder, as in {{{name}}}. NUL is a placeholder."""


def check_placeholders(text: str) -> None:
    """Make sure that no `{{…}}` goes out: each is a placeholder that is filled.

    Raises
    ------
    ValueError
        If there is another one, or braces around one.

    """
    if _LEFT_OPEN.search(PLACEHOLDER.sub("\0", text)):
        msg = "must not have {{ other than in {{name}}, a name of letters, digits, and _ - ."
        raise ValueError(msg)


EXPANDED_MAX = 25_000_000
"""Characters of all messages of one bulk job, which are stored before the first is sent: 500 with 50,000 each."""


ESCAPED_MAX = 6
"""Characters of the longest escape of one character in HTML: &quot;"""


class Template:
    """A text with placeholders, taken apart once for all recipients. `escape` is done to each value."""

    def __init__(self, text: str, escape: Callable[[str], str] = str) -> None:
        self._parts = PLACEHOLDER.split(text)  # text, name, text, name, …, text
        self._escape = escape

    @property
    def is_open(self) -> bool:
        """Whether there is any placeholder."""
        return len(self._parts) > 1

    def fill(self, values: Mapping[str, str], limit: int = HTML_MAX) -> str:
        """Return the text with each `{{name}}` replaced by the escaped value of that name.

        Raises
        ------
        KeyError
            With the name of a placeholder that has no value.
        ValueError
            If the text would have more than `limit` characters: it is counted before it is made.

        """
        parts = self._parts.copy()
        escaped = {name: self._escape(values[name]) for name in parts[1::2]}
        parts[1::2] = [escaped[name] for name in parts[1::2]]
        if sum(map(len, parts)) > limit:
            msg = f"must not have more than {limit:,} characters in one text"
            raise ValueError(msg)
        return "".join(parts)


class _FilledEmail(TaskMessage):
    """The parts of an email that a recipient's values may change."""

    subject: Subject | None = None
    text: EmailText | None = None
    html: EmailHtml | None = None


class _FilledSms(TaskMessage):
    text: SmsText


def _is_surely_valid(filled: Mapping[str, str]) -> bool:
    """Whether filled parts are valid at first sight, as nearly always; otherwise they are checked like any message.

    Control characters have been refused in the template and in the values, but only a subject must be one line.
    """
    subject = filled.get("subject", "-")
    return all(0 < len(text) <= TEXT_MAX for text in filled.values()) and (
        len(subject) <= SUBJECT_MAX and subject.isprintable()
    )


def _open_templates(shared: Mapping[str, str]) -> dict[str, Template]:
    """Return those parts of an email that have placeholders."""
    escapes: dict[str, Callable[[str], str]] = {"subject": str, "text": str, "html": html_escape.escape}
    templates = {name: Template(shared[name], escape) for name, escape in escapes.items() if name in shared}
    return {name: template for name, template in templates.items() if template.is_open}


class SendManyEmails(EmailContent):
    """`email.send_many`: one email for each recipient, filled in with the recipient's values.

    `{{name}}` in `subject`, `text` and `html` is replaced by the recipient's value of that name, which must be there.
    Other `{{` are refused, in `headers` too. Filled in, each email must be valid as an `email.send`, and all of them
    together have at most 25 million characters.
    """

    task: ClassVar[str] = "email.send_many"
    kind: ClassVar[Kind] = "email"
    recipients: list[EmailRecipient] = Field(min_length=1, max_length=BULK_MAX)

    @model_validator(mode="after")
    def _leaves_nothing_open(self) -> Self:
        for text in (self.subject, self.text, self.html):
            check_placeholders(text or "")
        if any("{{" in text for text in (self.headers or {}).values()):
            msg = "must not have {{ in headers: placeholders are filled in subject, text and html only"
            raise ValueError(msg)
        return self

    def each(self) -> Iterator[Content]:
        """Yield what is stored of each message, as of an `email.send` of it. Only what was filled in is checked again.

        Raises
        ------
        Refused
            `invalid_job`, naming the recipient whose values leave a placeholder open or make the message invalid;
            `too_large`.

        """
        return _within_total(self._each())

    def _each(self) -> Iterator[Content]:
        shared = self.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender", "recipients"})
        shared = with_single_reply_to(normalize_addresses(shared))
        copied = [bare_address(mailbox) for mailbox in (*shared.get("cc", ()), *shared.get("bcc", ()))]
        templates = _open_templates(shared)
        for index, recipient in enumerate(self.recipients):
            try:
                filled = {name: template.fill(recipient.values) for name, template in templates.items()}
                if not _is_surely_valid(filled):
                    _FilledEmail.model_validate(filled)
                to = normalize_mailbox(recipient.to)
                recipients = list(dict.fromkeys([bare_address(to), *copied]))
                limit_recipients(recipients)
            except (KeyError, ValueError) as error:
                raise _refused_recipient(index, error) from None
            yield Content({**shared, **filled, "to": [to], "recipients": recipients}, len(recipients))


class SendManySms(SmsContent):
    """`sms.send_many`: one text message for each recipient, filled in with the recipient's values.

    `{{name}}` in `text` is replaced by the recipient's value of that name, which must be there. Other `{{` are refused.
    Filled in, each text must be valid as that of an `sms.send`.
    """

    task: ClassVar[str] = "sms.send_many"
    kind: ClassVar[Kind] = "sms"
    recipients: list[SmsRecipient] = Field(min_length=1, max_length=BULK_MAX)

    @model_validator(mode="after")
    def _leaves_nothing_open(self) -> Self:
        check_placeholders(self.text)
        return self

    def each(self) -> Iterator[Content]:
        """Yield what is stored of each message, like `SendManyEmails.each`.

        Raises
        ------
        Refused
            `invalid_job`, naming the recipient.

        """
        return _within_total(self._each())

    def _each(self) -> Iterator[Content]:
        shared = self.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender", "recipients"})
        template = Template(self.text)
        for index, recipient in enumerate(self.recipients):
            try:
                text = template.fill(recipient.values)
                if not 0 < len(text) <= GSM7_SINGLE:  # longer ones are rarer than they are costly to check
                    _FilledSms(text=text)
                segments = count_segments(text)
            except (KeyError, ValueError) as error:
                raise _refused_recipient(index, error) from None
            yield Content({**shared, "text": text, "to": recipient.to, "segments": segments}, segments)


def characters_at_most(bulk: "SendMany") -> int:
    """Return what all messages of a bulk job can have together, in characters, without making them."""
    longest = max((len(value) for each in bulk.recipients for value in each.values.values()), default=0)
    texts = [text for name in ("subject", "text", "html") if (text := getattr(bulk, name, None))]
    each: int = sum(min(HTML_MAX, len(text) + text.count("{{") * longest * ESCAPED_MAX) for text in texts)
    return each * len(bulk.recipients)


SendMany = SendManyEmails | SendManySms
"""A message of a task that sends many."""


def _within_total(contents: Iterator[Content]) -> Iterator[Content]:
    """Yield the messages of a bulk job as long as all of them together are not too large.

    Raises
    ------
    Refused
        `too_large`.

    """
    total = 0
    for content in contents:
        total += sum(len(content.fields.get(name) or "") for name in ("subject", "text", "html"))
        if total > EXPANDED_MAX:
            sentence = (
                f"The messages of one job must not have more than {EXPANDED_MAX:,} characters together: send fewer "
                "recipients at a time."
            )
            raise Refused(Reason.TOO_LARGE, sentence)
        yield content


def _refused_recipient(index: int, error: KeyError | ValueError) -> Refused:
    """Return the refusal of a bulk job that names the recipient at `index` and what is wrong there."""
    if isinstance(error, KeyError):
        sentence = f"`recipients.{index}.values` lacks {error.args[0]!r}, which the message asks for."
    else:
        what = explain(error) if isinstance(error, ValidationError) else f"The message {error}."
        sentence = f"Filled for `recipients.{index}`, the message is not valid: {what}"
    return Refused(Reason.INVALID_JOB, sentence)
