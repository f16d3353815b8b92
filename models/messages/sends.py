"""The messages of `email.send` and `sms.send`, and what the bulk messages share with them."""

from collections.abc import Collection
from typing import ClassVar, NamedTuple, Self

from pydantic import ConfigDict, Field, model_validator

from models.messages.addresses import bare_address, normalize_address, normalize_addresses
from models.messages.base import Json, TaskMessage, is_given
from models.messages.fields import (
    RECIPIENTS_MAX,
    SEGMENTS_MAX,
    EmailHtml,
    EmailText,
    Headers,
    Id,
    Kind,
    Mailboxes,
    PhoneNumber,
    ReplyTo,
    SmsFrom,
    SmsText,
    Subject,
)
from models.messages.pricing import sms_segments


class Send(TaskMessage):
    """What every send job has. `job_id` is always set once a worker has parsed the message."""

    key: ClassVar[str | None] = "job_id"
    job_id: Id | None = None
    sender: Id


class Content(NamedTuple):
    """What is stored of a message while it is not final: all that an attempt needs, and all that was asked for."""

    fields: Json
    cost: int
    """In credits."""


class EmailContent(Send):
    """The parts of an email that `email.send` and `email.send_many` share."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [is_given("text"), is_given("html")]})

    cc: Mailboxes | None = None
    bcc: Mailboxes | None = None
    subject: Subject
    text: EmailText | None = None
    html: EmailHtml | None = None
    reply_to: ReplyTo | None = None
    headers: Headers | None = None

    def given(self) -> Json:
        """Return what was given; a single address for replies as it was always written, so that digests stay."""
        return with_single_reply_to(super().given())

    @model_validator(mode="after")
    def _has_a_body(self) -> Self:
        if self.text is None and self.html is None:
            msg = "must have a text, an html, or both"
            raise ValueError(msg)
        return self


class SendEmail(EmailContent):
    """`email.send`: one email to one or several recipients, which is one message and one charge.

    `to`, `cc` and `bcc` together name at most 100 recipients. At least one of `text` and `html` is needed.
    """

    task: ClassVar[str] = "email.send"
    kind: ClassVar[Kind] = "email"
    to: Mailboxes

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        named = [*self.to, *(self.cc or ()), *(self.bcc or ())]
        if len(named) > RECIPIENTS_MAX:
            limit_recipients({normalize_address(bare_address(mailbox)) for mailbox in named})
        return self

    def content(self, given: Json) -> Content:
        """Return what is stored of the message, of which `given` was given.

        An email costs one email credit a recipient; one who is named twice counts once.
        """
        fields = normalize_addresses(given)
        del fields["sender"]
        named = [*fields["to"], *fields.get("cc", ()), *fields.get("bcc", ())]
        recipients = list(dict.fromkeys(map(bare_address, named)))
        return Content({**fields, "recipients": recipients}, len(recipients))


class SmsContent(Send):
    """The parts of a text message that `sms.send` and `sms.send_many` share."""

    model_config = ConfigDict(serialize_by_alias=True)

    text: SmsText
    from_: SmsFrom | None = Field(default=None, alias="from")


class SendSms(SmsContent):
    """`sms.send`: one text message."""

    task: ClassVar[str] = "sms.send"
    kind: ClassVar[Kind] = "sms"
    to: PhoneNumber

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        count_segments(self.text)
        return self

    def content(self, given: Json) -> Content:
        """Return what is stored of the message, of which `given` was given.

        A text message costs one SMS credit a segment.
        """
        segments = count_segments(self.text)
        fields = {name: value for name, value in given.items() if name != "sender"}
        return Content({**fields, "segments": segments}, segments)


SendOne = SendEmail | SendSms
"""A message of a task that sends one email or text message."""


def with_single_reply_to(fields: Json) -> Json:
    """Return the fields of an email in which a list of one address for replies is that address."""
    reply_to = fields.get("reply_to")
    return {**fields, "reply_to": reply_to[0]} if reply_to and len(reply_to) == 1 else fields


def limit_recipients(recipients: Collection[str]) -> None:
    """Make sure that one email does not have too many recipients.

    Raises
    ------
    ValueError
        If there are more than `RECIPIENTS_MAX`.

    """
    if len(recipients) > RECIPIENTS_MAX:
        msg = f"must not have more than {RECIPIENTS_MAX} recipients in to, cc and bcc together"
        raise ValueError(msg)


def count_segments(text: str) -> int:
    """Return the number of segments of a text message.

    Raises
    ------
    ValueError
        If there are more than `SEGMENTS_MAX`.

    """
    segments = sms_segments(text)
    if segments > SEGMENTS_MAX:
        msg = f"must not be longer than {SEGMENTS_MAX} segments (this takes {segments})"
        raise ValueError(msg)
    return segments
