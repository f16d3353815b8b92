"""The command that seeds: it does a file in order."""

from collections.abc import Callable
from pathlib import Path

import click

from models.errors import OperatorError, Refused
from models.messages.base import Json
from tasks.applying import AppliedEntry, apply_entry, check_entry, rehearsed
from worker.cli import tables
from worker.cli.job_file import JobLine, each_job
from worker.cli.output import ask, json_option, print_answer
from worker.cli.session import Need, current_session, needs

SHOWN_MAX = 20
"""Invalid entries that are named."""
NAMES = {
    "roles.save": "role",
    "plans.save": "plan",
    "users.save": "user_id",
    "credits.set_owner": "user",
    "credits.purchase": "order_id",
}
"""The field that names what an entry is about."""


class InvalidFileError(OperatorError):
    """Some entries of a file cannot be applied."""


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only show what would change: everything is tried, and undone.")
@json_option
@needs(Need.DATABASE)
def apply(*, file: Path, dry_run: bool, as_json: bool) -> None:
    """Make the roles, plans, users, credit owners and orders in FILE, in order.

    Each line of FILE is {"task": …, "job": …}, as for `postage up`. All lines are checked before the first is done. One
    that is refused ends it with exit code 1, as those behind it may need it; what was done before it stays. The same
    FILE can be applied again: what stands already is unchanged, and an order is never credited twice.
    """
    lines = _checked(file)
    context = current_session().context
    if dry_run:
        with rehearsed(context) as (rehearsing, rehearse):
            rows = _apply(lines, lambda line: apply_entry(rehearsing, rehearse, line.task, line.job))
    else:
        rows = _apply(lines, lambda line: apply_entry(context, ask, line.task, line.job))
    print_answer(_answer(rows, len(lines), dry_run=dry_run), as_json=as_json, table=tables.applied)
    if rows and rows[-1]["change"] == "refused":
        raise click.exceptions.Exit(1)


def _checked(file: Path) -> list[JobLine]:
    """Return the lines of a file.

    Raises
    ------
    InvalidFileError
        Naming the lines that cannot be applied.

    """
    lines, faults = list(each_job(file)), []
    for line in lines:
        try:
            check_entry(line.task, line.job)
        except Refused as why:
            faults.append(f"Line {line.number} ({line.task}): {why.detail}")
    if faults:
        more = [f"And {len(faults) - SHOWN_MAX} more lines."] if len(faults) > SHOWN_MAX else []
        raise InvalidFileError("\n".join([*faults[:SHOWN_MAX], *more, "Nothing was done."]))
    return lines


def _apply(lines: list[JobLine], do: Callable[[JobLine], AppliedEntry]) -> list[Json]:
    """Do the lines up to the first that is refused; returns what each has changed."""
    rows: list[Json] = []
    for line in lines:
        change = do(line)
        rows.append(
            {
                "line": line.number,
                "task": line.task,
                "name": line.job[NAMES[line.task]],
                "change": change.change,
                "fields": change.fields,
                "reason": change.answer["reason"],
                "detail": change.answer["detail"],
            }
        )
        if change.is_refused:
            break
    return rows


def _answer(rows: list[Json], lines: int, *, dry_run: bool) -> Json:
    counts = {change: sum(row["change"] == change for row in rows) for change in ("new", "changed", "unchanged")}
    return {"status": "done", "dry_run": dry_run, **counts, "not_reached": lines - len(rows), "rows": rows}
