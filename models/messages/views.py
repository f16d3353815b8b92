"""The messages of `views.*`."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from models.messages.base import TaskMessage
from models.messages.fields import Id, Instant, MessageId


class View(TaskMessage):
    """`views.overview`, `views.orders`, `views.billing`, `views.users`: who looks, at what, and at which page.

    `next` is what `next` was in the answer before. `page` counts pages from 1, as far as there is no `next`.
    """

    viewer: Id
    of: Literal["owner", "self"] = "owner"
    since: Instant | None = None
    until: Instant | None = None
    page: Annotated[int, Field(ge=1, le=1_000)] = 1
    next: Annotated[str, Field(min_length=1, max_length=1_000)] | None = None


class ViewUsage(View):
    """`views.usage`: by user, day and kind, or one row a message."""

    by: Literal["day", "message"] = "day"


StatementCursor = Annotated[str, StringConstraints(pattern=r"^email:[0-9]{1,18},sms:[0-9]{1,18}$")]
"""Where the next page of a statement begins: below which entry of each account."""
EntryName = Annotated[str, StringConstraints(pattern=r"^(email|sms)/[0-9]{1,18}$")]
"""An entry of an owner's accounts, by kind and number."""


class ViewStatement(View):
    """`views.statement`: the entries of the owner's accounts, newest first, or what is behind one of them.

    It has no numbered pages.
    """

    page: Annotated[int, Field(ge=1, le=1)] = 1
    next: StatementCursor | None = None
    entry: EntryName | None = None


class ViewChanges(View):
    """`views.changes`: who changed what; of one user, role or plan if `subject` is given."""

    subject: Id | None = None


class ViewMessage(View):
    """`views.message`: the answer to one send job, read back."""

    job_id: MessageId


class ViewStory(ViewMessage):
    """`views.explain`: the same, with what led to it."""
