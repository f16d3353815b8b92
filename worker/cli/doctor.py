"""`postage doctor`: what is wrong with this installation, and what to do."""

from dataclasses import asdict

import click
from rich.console import Console
from rich.text import Text

from models.messages.base import Json
from worker import doctor as examination
from worker.cli.output import print_answer, table_options
from worker.cli.session import Need, current_session, needs
from worker.cli.tables import table
from worker.places import require_embedded

STYLES = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command()
@table_options
@needs(Need(0))
def doctor(*, as_json: bool) -> None:
    """Examine database, broker, carriers, workers, beat, queues and files; says what is wrong, and what to do.

    Carriers are greeted with their login, and nothing is sent. Every check ends within 20 seconds, whatever hangs.
    Exits with 0 if there is no fault; warnings are none.
    """
    session = current_session()
    require_embedded(session.settings, database=True, broker=True)
    findings = examination.examine(session.app)
    is_well = all(finding.state != "fault" for finding in findings)
    answer = {"status": "done" if is_well else "failed", "findings": [asdict(finding) for finding in findings]}
    print_answer(answer, as_json=as_json, table=print_findings)


def print_findings(console: Console, answer: Json) -> None:
    """Print what was found."""
    rows = table("Examined", "check", "state", "what")
    for finding in answer["findings"]:
        state = Text(finding["state"], style=STYLES[finding["state"]])
        rows.add_row(finding["check"], state, Text(finding["detail"]))
    console.print(rows)
