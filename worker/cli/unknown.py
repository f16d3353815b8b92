"""Commands that settle messages whose outcome is unknown."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from models.sends import unknown as unknown_jobs
from models.sends.unknown import Decision
from tasks.operating import decide
from worker.cli import tables
from worker.cli.output import json_option, list_answer, next_option, print_answer, table_options
from worker.cli.session import Need, current_session, needs
from worker.cli.watching import watchable

F = TypeVar("F", bound=Callable[..., Any])

OPERATOR_MAX = 64
NOTE_MAX = 500
"""Characters that are stored with a decision."""


@click.group()
def unknown() -> None:
    """Settle messages that the carrier perhaps took.

    They stay charged, and nothing is done with them, until a person decides. Search the carrier's log for the
    Message-ID: its part before the @ is the job id. If the message was not taken, `refund` gives the credits back, and
    `resend` sends it again. Who decided is stored.
    """


@unknown.command("list")
@next_option
@table_options
@needs(Need.DATABASE)
@watchable
def list_unknown(*, cursor: str | None, as_json: bool) -> None:
    """List messages whose outcome is unknown, oldest first."""
    answer = list_answer(lambda connection: unknown_jobs.list_unknown(connection, cursor))
    print_answer(answer, as_json=as_json, table=tables.unknown)


def _decision_options(command: F) -> F:
    for option in (
        click.option("--note", help="Why; stored with the decision."),
        click.option("--as", "operator", envvar="USER", required=True, help="Who decides. Default: $USER."),
        click.option("--organization", help="Whose jobs, if several organizations use the same ids."),
        click.option("--all", "everything", is_flag=True, help="All that are unknown now."),
        click.argument("jobs", nargs=-1, metavar="[JOB]..."),
    ):
        command = option(command)
    return json_option(command)


@unknown.command()
@_decision_options
@needs(Need.DATABASE)
def refund(**given: Any) -> None:  # noqa: ANN401
    """Give the credits of JOBs back to who paid: they end as failed.

    Recipients whom earlier attempts certainly reached stay charged.
    """
    _decide("refund", **given)


@unknown.command()
@_decision_options
@needs(Need.DATABASE)
def resend(**given: Any) -> None:  # noqa: ANN401
    """Send JOBs again, with the same Message-ID. Nothing more is charged; if they did arrive, they arrive twice."""
    _decide("resend", **given)


def _decide(
    decision: Decision,
    *,
    jobs: Sequence[str],
    everything: bool,
    organization: str | None,
    operator: str,
    note: str | None,
    as_json: bool,
) -> None:
    if bool(jobs) == everything:
        raise click.UsageError("Name the jobs, or say --all.")
    answer = decide(
        current_session().context,
        decision,
        None if everything else jobs,
        operator=operator[:OPERATOR_MAX],
        note=note[:NOTE_MAX] if note else None,
        organization=organization,
    )
    print_answer(answer, as_json=as_json, table=tables.decided)
