"""Commands that show operators how jobs, queues and workers stand, and whether the money is right."""

import click

from models.database.engine import transaction_time
from models.reports.audit import run_audit
from models.reports.status import RUNNING
from tasks.upkeep import audit_rules
from worker.cli import tables
from worker.cli.monitor import job_answer, overall
from worker.cli.output import print_answer, table_options
from worker.cli.session import Need, current_session, needs
from worker.cli.watching import watchable


@click.command()
@click.argument("job_id", required=False)
@table_options
@needs(Need.BROKER | Need.DATABASE)
@watchable
def status(*, job_id: str | None, as_json: bool) -> bool:
    """Show how a job stands, or everything.

    Without JOB_ID: how workers, queues and jobs stand. For operators: no rights are checked. With --watch, a job is
    watched until it has ended.
    """
    session = current_session()
    if job_id is None:
        print_answer(overall(session.app), as_json=as_json, table=tables.status)
        return False
    answer = job_answer(session.context, job_id)
    print_answer(answer, as_json=as_json, table=tables.message)
    return answer["status"] not in RUNNING


@click.command()
@click.option("--full", is_flag=True, help="Check the whole history, not only what is new and a part of the rest.")
@table_options
@needs(Need.DATABASE)
def audit(*, full: bool, as_json: bool) -> None:
    """Check every invariant of the money; names what differs.

    Exits with 0 only if nothing was found that still stands and that nobody has acknowledged (`postage findings`).
    """
    session = current_session()
    database = session.context.database
    rules = audit_rules(session.context)
    report = run_audit(database, database.read(transaction_time), rules, whole=full)
    print_answer(report.as_json(), as_json=as_json, table=tables.audit)
