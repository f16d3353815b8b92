"""Which job an object off the wire is, and whose: all that logs and events may show of it."""

from typing import Any, cast

from models.messages.fields import is_id

ID_FIELDS = ("cancel_id", "job_id", "reversal_id", "adjustment_id", "order_id", "change_id", "erasure_id", "user_id")
"""In the order in which they are looked for: a reversal names its order too, and a cancellation its job."""
USER_FIELDS = ("sender", "buyer", "actor", "viewer")


def first_id(given: object, fields: tuple[str, ...]) -> str | None:
    """Return the first of `fields` that holds a valid id in an object off the wire, which may be anything."""
    if not isinstance(given, dict):
        return None
    for field in fields:
        value = given.get(field)
        if is_id(value):
            return cast("str", value)
    return None


def people_in(job: dict[str, Any]) -> list[Any]:
    """Return those in whose name an object off the wire asks; they may be anything, unless it was parsed."""
    return [job[field] for field in USER_FIELDS if job.get(field) is not None]


def first_argument(args: object) -> object:
    """Return the object of a task, given its arguments off the wire, or None if there is none."""
    return args[0] if isinstance(args, (list, tuple)) and args else None


def names_user(given: object, user: str) -> bool:
    """Whether an object off the wire is a job of this user, or saves them."""
    return isinstance(given, dict) and any(given.get(field) == user for field in (*USER_FIELDS, "user_id"))


def redacted_args(args: object) -> str:
    """Return the arguments of a task as logs and events may show them: the job's id and its sender, nothing else."""
    given = first_argument(args)
    return f"(job={first_id(given, ID_FIELDS) or '-'}, sender={first_id(given, USER_FIELDS) or '-'})"
