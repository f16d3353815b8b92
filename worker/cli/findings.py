"""Commands that show what audits have found, and acknowledge it."""

from collections.abc import Sequence

import click

from tasks.operating import acknowledge as acknowledge_findings
from tasks.operating import show_findings
from worker.cli import tables
from worker.cli.output import json_option, print_answer, table_options
from worker.cli.session import Need, current_session, needs
from worker.cli.unknown import NOTE_MAX, OPERATOR_MAX
from worker.cli.watching import watchable


@click.group()
def findings() -> None:
    """Show and acknowledge what audits have found.

    A finding alarms until the fault is mended, so that an audit finds it no more, or until somebody acknowledges it. An
    acknowledged finding alarms again if its difference changes.
    """


@findings.command("list")
@click.option("--all", "everything", is_flag=True, help="Also what was resolved.")
@table_options
@needs(Need.DATABASE)
@watchable
def list_findings(*, everything: bool, as_json: bool) -> None:
    """List the findings that stand, newest first."""
    answer = show_findings(current_session().context, everything=everything)
    print_answer(answer, as_json=as_json, table=tables.findings)


@findings.command()
@click.argument("ids", nargs=-1, type=int, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that alarm now.")
@click.option("--by", "operator", envvar="USER", required=True, help="Who acknowledges. Default: $USER.")
@click.option("--note", required=True, help="Why they may stand; stored with them.")
@json_option
@needs(Need.DATABASE)
def acknowledge(*, ids: Sequence[int], everything: bool, operator: str, note: str, as_json: bool) -> None:
    """Acknowledge the findings with these IDs: they alarm no more, and audits go on past them."""
    if bool(ids) == everything:
        raise click.UsageError("Name the findings, or say --all.")
    answer = acknowledge_findings(
        current_session().context,
        None if everything else ids,
        operator=operator[:OPERATOR_MAX],
        note=note[:NOTE_MAX],
    )
    print_answer(answer, as_json=as_json, table=tables.findings)
