"""The messages of `email.send_many` and `sms.send_many`: a template, and the recipients it is filled in for."""

import html as html_escape
import re
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from pydantic import Field, ValidationError

from models.errors import Reason, Refused
from models.messages.addresses import normalize_address, normalize_addresses
from models.messages.base import TaskMessage, explain
from models.messages.fields import (
    BULK_MAX,
    Address,
    EmailHtml,
    EmailText,
    Kind,
    PhoneNumber,
    Placeholder,
    SmsText,
    Subject,
    Value,
)
from models.messages.sends import Content, EmailContent, SmsContent, count_segments, limit_recipients


class EmailRecipient(TaskMessage):
    """One recipient of a bulk email, and the values for the placeholders."""

    to: Address
    values: dict[Placeholder, Value] = Field(default_factory=dict, max_length=100)


class SmsRecipient(TaskMessage):
    """One recipient of a bulk text message, and the values for the placeholders."""

    to: PhoneNumber
    values: dict[Placeholder, Value] = Field(default_factory=dict, max_length=100)


PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z0-9_]{1,64})\s*\}\}")


def fill_template(template: str, values: Mapping[str, str], escape: Callable[[str], str] = str) -> str:
    """Return `template` with each `{{name}}` replaced by the escaped value of that name.

    Raises
    ------
    KeyError
        With the name of a placeholder that has no value.

    """
    return PLACEHOLDER.sub(lambda match: escape(values[match[1]]), template)


class _FilledEmail(TaskMessage):
    """The parts of an email that a recipient's values may change."""

    subject: Subject | None = None
    text: EmailText | None = None
    html: EmailHtml | None = None


class _FilledSms(TaskMessage):
    text: SmsText


class SendManyEmails(EmailContent):
    """`email.send_many`: one email for each recipient, filled in with the recipient's values."""

    task: ClassVar[str] = "email.send_many"
    kind: ClassVar[Kind] = "email"
    recipients: list[EmailRecipient] = Field(min_length=1, max_length=BULK_MAX)

    def each(self) -> Iterator[Content]:
        """Yield what is stored of each message, as of an `email.send` of it. Only what was filled in is checked again.

        Raises
        ------
        Refused
            `invalid_job`, naming the recipient whose values leave a placeholder open or make the message invalid.

        """
        shared = self.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender", "recipients"})
        shared = normalize_addresses(shared)
        copied = [*shared.get("cc", ()), *shared.get("bcc", ())]
        templates = [name for name in ("subject", "text", "html") if PLACEHOLDER.search(shared.get(name, ""))]
        escapes = {"html": html_escape.escape}
        for index, recipient in enumerate(self.recipients):
            try:
                filled = {
                    name: fill_template(shared[name], recipient.values, escapes.get(name, str)) for name in templates
                }
                _FilledEmail.model_validate(filled)
                to = normalize_address(recipient.to)
                recipients = list(dict.fromkeys([to, *copied]))
                limit_recipients(recipients)
            except (KeyError, ValueError) as error:
                raise _refused_recipient(index, error) from None
            yield Content({**shared, **filled, "to": [to], "recipients": recipients}, len(recipients))


class SendManySms(SmsContent):
    """`sms.send_many`: one text message for each recipient, filled in with the recipient's values."""

    task: ClassVar[str] = "sms.send_many"
    kind: ClassVar[Kind] = "sms"
    recipients: list[SmsRecipient] = Field(min_length=1, max_length=BULK_MAX)

    def each(self) -> Iterator[Content]:
        """Yield what is stored of each message, like `SendManyEmails.each`.

        Raises
        ------
        Refused
            `invalid_job`, naming the recipient.

        """
        shared = self.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender", "recipients"})
        for index, recipient in enumerate(self.recipients):
            try:
                text = _FilledSms(text=fill_template(self.text, recipient.values)).text
                segments = count_segments(text)
            except (KeyError, ValueError) as error:
                raise _refused_recipient(index, error) from None
            yield Content({**shared, "text": text, "to": recipient.to, "segments": segments}, segments)


SendMany = SendManyEmails | SendManySms
"""A message of a task that sends many."""


def _refused_recipient(index: int, error: KeyError | ValueError) -> Refused:
    """Return the refusal of a bulk job that names the recipient at `index` and what is wrong there."""
    if isinstance(error, KeyError):
        sentence = f"`recipients.{index}.values` lacks {error.args[0]!r}, which the message asks for."
    else:
        what = explain(error) if isinstance(error, ValidationError) else f"The message {error}."
        sentence = f"Filled for `recipients.{index}`, the message is not valid: {what}"
    return Refused(Reason.INVALID_JOB, sentence)
