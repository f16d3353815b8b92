"""Which job an object off the wire is, and whose: all that logs and events may show of it."""

from models.fields import ID

KEYS = ("job_id", "order_id", "change_id", "user_id")
PEOPLE = ("sender", "buyer", "actor", "viewer")


def named(given: object, fields: tuple[str, ...]) -> str | None:
    """The first of `fields` in an object off the wire that holds a proper id; the object may be anything."""
    if not isinstance(given, dict):
        return None
    for field in fields:
        value = given.get(field)
        if isinstance(value, str) and ID.fullmatch(value):
            return value
    return None


def summary(args: object) -> str:
    """The arguments of a task as logs and events may show them: the job's id and who sent it, nothing else."""
    given = args[0] if isinstance(args, (list, tuple)) and args else None
    return f"(job={named(given, KEYS) or '-'}, sender={named(given, PEOPLE) or '-'})"
