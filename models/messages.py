"""The wire contract: every object a task takes, as a frozen pydantic model. Unknown fields are refused."""

import hashlib
import html as html_escape
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from models.errors import Reason, Refused
from models.fields import (
    BULK_MAX,
    RECIPIENTS_MAX,
    SEGMENTS_MAX,
    Address,
    Addresses,
    Amount,
    Billing,
    CreditCount,
    Currency,
    EmailHtml,
    EmailText,
    Headers,
    Id,
    Instant,
    Kind,
    Line,
    MessageId,
    PhoneNumber,
    Placeholder,
    SmsFrom,
    SmsText,
    Subject,
    Value,
)
from models.pricing import sms_segments


class Message(BaseModel):
    """The base of all wire objects: frozen, strict about types, closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    key: ClassVar[str | None] = None
    """The field that is the idempotency key."""

    def digest(self, task: str) -> str:
        """A SHA-256 (hex) of what the message asks for: the task and every field that was given but the key."""
        return digest_of(task, self.given())

    def given(self) -> dict[str, Any]:
        """Every field that was given but the key, as JSON."""
        return self.model_dump(mode="json", exclude_none=True, exclude={self.key} if self.key else None)


def digest_of(task: str, given: dict[str, Any]) -> str:
    """The digest of a message of which everything but the key is `given`."""
    return hashlib.sha256(to_json([task, _in_order(given)])).hexdigest()


def _in_order(value: Any) -> Any:  # noqa: ANN401  JSON
    """The same JSON with the names of each object in order: which comes first means nothing."""
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value)}
    return [_in_order(each) for each in value] if isinstance(value, list) else value


class Credits(Message):
    """Whole credits of each kind."""

    email: CreditCount = 0
    sms: CreditCount = 0

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.email + self.sms == 0:
            msg = "must hold at least one credit"
            raise ValueError(msg)
        return self

    def of(self, kind: Kind) -> int:
        """The credits of one kind."""
        return self.email if kind == "email" else self.sms


class Send(Message):
    """What every send job has. `job_id` is always set once a message has come through the door."""

    key: ClassVar[str | None] = "job_id"
    job_id: Id | None = None
    sender: Id


class Content(NamedTuple):
    """What is kept of a message while it is not final: all that an attempt needs, and all that was asked for."""

    fields: dict[str, Any]
    cost: int
    """In credits."""


class EmailContent(Send):
    """The parts of an email that one and many recipients share."""

    cc: Addresses | None = None
    bcc: Addresses | None = None
    subject: Subject
    text: EmailText | None = None
    html: EmailHtml | None = None
    reply_to: Address | None = None
    headers: Headers | None = None

    @model_validator(mode="after")
    def _has_a_body(self) -> Self:
        if self.text is None and self.html is None:
            msg = "must have a text, an html, or both"
            raise ValueError(msg)
        return self


class SendEmail(EmailContent):
    """`email.send`: one email to one or several recipients, which is one message and one charge."""

    kind: ClassVar[Kind] = "email"
    to: Addresses

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        _not_too_many(self.recipients())
        return self

    def recipients(self) -> tuple[str, ...]:
        """Everybody who gets it, each once."""
        return tuple(dict.fromkeys([*self.to, *(self.cc or ()), *(self.bcc or ())]))

    def cost(self) -> int:
        """One email credit a recipient."""
        return len(self.recipients())

    def content(self, given: dict[str, Any]) -> Content:
        """What is kept of it, of which `given` is all but the key."""
        recipients = list(self.recipients())
        fields = {name: value for name, value in given.items() if name != "sender"}
        return Content({**fields, "recipients": recipients}, len(recipients))


def _not_too_many(recipients: Collection[str]) -> None:
    if len(recipients) > RECIPIENTS_MAX:
        msg = f"must not have more than {RECIPIENTS_MAX} recipients in to, cc and bcc together"
        raise ValueError(msg)


class SmsContent(Send):
    """The parts of a text message that one and many recipients share."""

    model_config = ConfigDict(serialize_by_alias=True)

    text: SmsText
    from_: SmsFrom | None = Field(default=None, alias="from")


class SendSms(SmsContent):
    """`sms.send`: one text message."""

    kind: ClassVar[Kind] = "sms"
    to: PhoneNumber

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        _segments(self.text)
        return self

    def cost(self) -> int:
        """One SMS credit a segment."""
        return _segments(self.text)

    def content(self, given: dict[str, Any]) -> Content:
        """What is kept of it, of which `given` is all but the key."""
        segments = self.cost()
        fields = {name: value for name, value in given.items() if name != "sender"}
        return Content({**fields, "segments": segments}, segments)


def _segments(text: str) -> int:
    segments = sms_segments(text)
    if segments > SEGMENTS_MAX:
        msg = f"must not be longer than {SEGMENTS_MAX} segments (this takes {segments})"
        raise ValueError(msg)
    return segments


SendOne = SendEmail | SendSms


class EmailRecipient(Message):
    """One recipient of a bulk email, with what fills the placeholders."""

    to: Address
    values: dict[Placeholder, Value] = Field(default_factory=dict, max_length=100)


class SmsRecipient(Message):
    """One recipient of a bulk text message, with what fills the placeholders."""

    to: PhoneNumber
    values: dict[Placeholder, Value] = Field(default_factory=dict, max_length=100)


PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z0-9_]{1,64})\s*\}\}")


def fill(template: str, values: Mapping[str, str], form: Callable[[str], str] = str) -> str:
    """Put `values`, each in its `form`, where `template` says `{{name}}`.

    Raises
    ------
    KeyError
        With the name of a placeholder that has no value.

    """
    return PLACEHOLDER.sub(lambda match: form(values[match[1]]), template)


class _EmailParts(Message):
    """The parts of an email that a recipient's values may change."""

    subject: Subject | None = None
    text: EmailText | None = None
    html: EmailHtml | None = None


class _SmsParts(Message):
    text: SmsText


class SendManyEmails(EmailContent):
    """`email.send_many`: the same email to each recipient apart, filled with their values."""

    kind: ClassVar[Kind] = "email"
    recipients: list[EmailRecipient] = Field(min_length=1, max_length=BULK_MAX)

    def each(self) -> Iterator[Content]:
        """What is kept of each single message: as of an `email.send` of it. Only what was filled in is checked again.

        Raises
        ------
        Refused
            `invalid_job`, naming the recipient whose values leave a placeholder open or make the message invalid.

        """
        shared = self.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender", "recipients"})
        copied = [*(self.cc or ()), *(self.bcc or ())]
        open_parts = [name for name in ("subject", "text", "html") if PLACEHOLDER.search(shared.get(name, ""))]
        forms = {"html": html_escape.escape}
        for index, one in enumerate(self.recipients):
            with _naming(index):
                filled = {name: fill(shared[name], one.values, forms.get(name, str)) for name in open_parts}
                _EmailParts.model_validate(filled)
                recipients = list(dict.fromkeys([one.to, *copied]))
                _not_too_many(recipients)
            yield Content({**shared, **filled, "to": [one.to], "recipients": recipients}, len(recipients))


class SendManySms(SmsContent):
    """`sms.send_many`: the same text to each recipient apart, filled with their values."""

    kind: ClassVar[Kind] = "sms"
    recipients: list[SmsRecipient] = Field(min_length=1, max_length=BULK_MAX)

    def each(self) -> Iterator[Content]:
        """What is kept of each single message, as `SendManyEmails.each` gives it.

        Raises
        ------
        Refused
            `invalid_job`, naming the recipient.

        """
        shared = self.model_dump(mode="json", exclude_none=True, exclude={"job_id", "sender", "recipients"})
        for index, one in enumerate(self.recipients):
            with _naming(index):
                text = _SmsParts(text=fill(self.text, one.values)).text
                segments = _segments(text)
            yield Content({**shared, "text": text, "to": one.to, "segments": segments}, segments)


SendMany = SendManyEmails | SendManySms


class _naming:  # noqa: N801  reads as a statement: with _naming(index)
    """Turn what goes wrong for one recipient of a bulk job into a refusal that names them by their place."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            sentence = f"`recipients.{self.index}.values` lacks {error.args[0]!r}, which the message asks for."
            raise Refused(Reason.INVALID_JOB, sentence) from None
        if isinstance(error, ValueError):
            what = explain(error) if isinstance(error, ValidationError) else f"The message {error}."
            sentence = f"Filled for `recipients.{self.index}`, the message is not valid: {what}"
            raise Refused(Reason.INVALID_JOB, sentence) from None


class Purchase(Message):
    """`credits.purchase`: credits bought by `buyer`, by plan or by count."""

    key: ClassVar[str | None] = "order_id"
    order_id: Id
    buyer: Id
    plan: Id | None = None
    credits: Credits | None = None
    amount: Amount | None = None
    currency: Currency | None = None
    credit_to: Literal["owner", "self"] = "owner"
    billing: Billing | None = None

    @model_validator(mode="after")
    def _one_way_to_say_what(self) -> Self:
        free = (self.credits, self.amount, self.currency)
        if (self.plan is None) == (None in free) or (self.plan is not None and free != (None, None, None)):
            msg = "must have either a plan, or credits with amount and currency"
            raise ValueError(msg)
        return self


class SetOwner(Message):
    """`credits.set_owner`: from now on `user` spends the credits of `owner`. Themselves ends the sharing."""

    key: ClassVar[str | None] = "change_id"
    change_id: Id
    actor: Id
    user: Id
    owner: Id


class SaveUser(Message):
    """`users.save`: make a user, or change their name, address, role or billing information."""

    user_id: Id
    organization: Id
    name: Line
    email: Address
    role: Id
    billing: Billing | None = None


Right = Literal["view_user_list", "edit_user"]


class SaveRole(Message):
    """`roles.save`: a role of an organization and the rights it holds."""

    organization: Id
    role: Id
    rights: list[Right] = Field(max_length=10)


class SavePlan(Message):
    """`plans.save`: what can be bought under a name. Orders keep the terms they were made under."""

    plan: Id
    name: Line
    credits: Credits
    price: Amount
    currency: Currency


class View(Message):
    """`views.overview`, `views.orders`, `views.billing`, `views.users`: what a viewer asks to see."""

    viewer: Id
    of: Literal["owner", "self"] = "owner"
    since: Instant | None = None
    until: Instant | None = None
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class ViewUsage(View):
    """`views.usage`: by user, day and kind, or one row a message."""

    by: Literal["day", "message"] = "day"


class ViewMessage(View):
    """`views.message`: the answer to one send job, read back."""

    job_id: MessageId


MESSAGES: dict[str, type[Message]] = {
    "email.send": SendEmail,
    "sms.send": SendSms,
    "email.send_many": SendManyEmails,
    "sms.send_many": SendManySms,
    "credits.purchase": Purchase,
    "credits.set_owner": SetOwner,
    "users.save": SaveUser,
    "roles.save": SaveRole,
    "plans.save": SavePlan,
    "views.overview": View,
    "views.usage": ViewUsage,
    "views.orders": View,
    "views.billing": View,
    "views.users": View,
    "views.message": ViewMessage,
}
"""Every task of the wire and the object it takes."""
SEND_TASKS = tuple(task for task, message in MESSAGES.items() if issubclass(message, Send))
"""The tasks that send."""
SEND_ONE_TASKS = tuple(task for task, message in MESSAGES.items() if issubclass(message, SendOne))
"""Those of them that send one message."""


def printable(text: object, most: int = 64) -> str:
    """`text` made safe to store and print: ASCII, no control characters, at most `most` characters."""
    plain = str(text)[: 2 * most].encode("ascii", "backslashreplace").decode()
    plain = "".join(character if character.isprintable() else "?" for character in plain)
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def explain(error: ValidationError, most: int = 3) -> str:
    """What is wrong with a message, as sentences that name the fields and never repeat their values."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    sentences = []
    for problem in problems[:most]:
        where = ".".join(printable(part) for part in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        sentences.append(f"`{where}`: {printable(what, 200)}." if where else f"The message {printable(what, 200)}.")
    if len(problems) > most:
        sentences.append(f"And {len(problems) - most} more.")
    return " ".join(sentences)


def read(task: str, given: object, *, job_id: str | None = None) -> Message:
    """The message of `task` in the JSON object `given`; `job_id` is used by a send job that brings none.

    Raises
    ------
    Refused
        `invalid_job`, with what is wrong field by field.

    """
    model = MESSAGES[task]
    if not isinstance(given, dict):
        sentence = f"{task} takes one JSON object as its only argument."
        raise Refused(Reason.INVALID_JOB, sentence)
    if issubclass(model, Send) and given.get("job_id") is None:
        given = {**given, "job_id": job_id}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise Refused(Reason.INVALID_JOB, explain(error)) from None
    except RecursionError:
        raise Refused(Reason.INVALID_JOB, "The message is nested too deeply.") from None
