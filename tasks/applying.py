"""Seeding: roles, plans, users, credit owners and orders, one after another, and what each of them changes.

A rehearsal runs the same use cases in one transaction that is rolled back, so it knows what every rule would say.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from models.errors import Reason, Refused
from models.messages.answers import refusal
from models.messages.base import Json, TaskMessage
from models.messages.wire import parse
from models.reports.standing import find_standing
from tasks.billing import purchase, save_plan, save_role, save_user, set_owner
from tasks.context import Context

APPLIED: Mapping[str, Callable[[Context, Any], Json]] = {
    "roles.save": save_role,
    "plans.save": save_plan,
    "users.save": save_user,
    "credits.set_owner": set_owner,
    "credits.purchase": purchase,
}
"""The tasks that can be applied: each does nothing if it is given a second time."""

Ask = Callable[[str, Json], Json]


@dataclass(frozen=True, slots=True)
class AppliedEntry:
    """What one entry has changed. `fields` has [old, new] of each field that is different now."""

    change: str
    fields: Json
    answer: Json

    @property
    def is_refused(self) -> bool:
        """Whether nothing was done, because a rule is against it."""
        return bool(self.answer["status"] == "refused")


def check_entry(task: str, given: Json) -> TaskMessage:
    """Parse an entry.

    Raises
    ------
    Refused
        `invalid_job`, also for a task that cannot be applied.

    """
    if task not in APPLIED:
        raise Refused(Reason.INVALID_JOB, f"Only these can be applied: {', '.join(APPLIED)}.")
    return parse(task, given)


def apply_entry(context: Context, ask: Ask, task: str, given: Json) -> AppliedEntry:
    """Do one entry by `ask`, which returns the answer of its task, and return what it has changed."""
    message = check_entry(task, given)
    before = context.database.read(lambda connection: find_standing(connection, message))
    answer = ask(task, given)
    after = context.database.read(lambda connection: find_standing(connection, message))
    if answer["status"] == "refused":
        return AppliedEntry("refused", {}, answer)
    fields = _differences(before or {}, after or {})
    return AppliedEntry("new" if before is None else "changed" if fields else "unchanged", fields, answer)


@contextmanager
def rehearsed(context: Context) -> Iterator[tuple[Context, Ask]]:
    """Give what `apply_entry` needs to do entries that are all undone, and not recorded, at the end of the block."""
    with context.database.rehearsal() as database:
        rehearsing = replace(context, database=database)

        def ask(task: str, given: Json) -> Json:
            try:
                return APPLIED[task](rehearsing, check_entry(task, given))
            except Refused as why:
                return refusal(task, given, why.reason, why.detail)

        yield rehearsing, ask


def _differences(before: Json, after: Json) -> Json:
    return {name: [before.get(name), value] for name, value in after.items() if value != before.get(name)}
