"""Commands that stop what waits: jobs by their id or their sender, or everything on a queue."""

from typing import cast

import click

from models.errors import Reason, Refused
from models.messages.answer import refused_answer
from models.messages.base import Json
from models.messages.billing import CancelMessages
from models.messages.wire import parse
from models.sends.cancelling import Cancellation
from models.users.organizations import organization_names
from tasks.cancelling import cancel_as_operator, organizations_of
from tasks.context import Context
from tasks.queues import Queue
from worker.broker.purging import purge_queue
from worker.cli import tables
from worker.cli.output import broker_errors, json_option, new_id, print_answer
from worker.cli.session import Need, current_session, needs


@click.command()
@click.argument("job", required=False)
@click.option("--sender", help="Everything of this user that waits, instead of one JOB.")
@click.option("--by", "operator", envvar="USER", required=True, help="Who cancels. Default: $USER.")
@click.option("--organization", help="Whose job, if several organizations use the same id.")
@click.option("--cancel-id", help="The cancellation's id: the same id goes on where it was interrupted.")
@json_option
@needs(Need.BROKER | Need.DATABASE)
def cancel(
    *, job: str | None, sender: str | None, operator: str, organization: str | None, cancel_id: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Stop what waits of JOB (also a bulk job), or of all that a sender has sent.

    Waiting jobs are refused as `cancelled`, and what they cost goes back. Jobs that are being sent, or may have reached
    a carrier, are left alone. Interrupted, it goes on under the same --cancel-id.
    """
    if (job is None) == (sender is None):
        msg = "Name one JOB, or say --sender."
        raise click.UsageError(msg)
    given = {"cancel_id": cancel_id or new_id("cancel"), "actor": operator, "job_id": job, "sender": sender}
    if not as_json:
        click.echo(f"Cancelling, as {given['cancel_id']}.", err=True)
    with broker_errors():
        answer = _cancel(current_session().context, given, organization)
    print_answer(answer, as_json=as_json, table=tables.cancelled)


def _cancel(context: Context, given: Json, organization: str | None) -> Json:
    try:
        message = cast("CancelMessages", parse("messages.cancel", given))
        org_id = _organization(context, message, organization)
        return cancel_as_operator(context, message, org_id, _Progress())
    except Refused as why:
        return {"cancel_id": given["cancel_id"], **refused_answer(why.reason, why.detail)}


def _organization(context: Context, message: CancelMessages, organization: str | None) -> int:
    """Return the organization whose jobs are meant.

    Raises
    ------
    Refused
        `not_found` if none or several could be.

    """
    names = context.database.read(organization_names)
    meant = {names[org_id]: org_id for org_id in organizations_of(context, message)}
    if organization is not None:
        meant = {name: org_id for name, org_id in meant.items() if name == organization}
    if len(meant) == 1:
        return next(iter(meant.values()))
    what = f"user {message.sender}" if message.job_id is None else f"job {message.job_id} that waits"
    sentence = f"There is no {what}{f' in {organization}' if organization else ''}."
    if meant:
        sentence = f"{' and '.join(sorted(meant))} use the id {message.job_id}: say --organization."
    raise Refused(Reason.NOT_FOUND, sentence)


class _Progress:
    """Says on a terminal how far a long cancellation has come."""

    def __init__(self) -> None:
        self._steps = 0

    def __call__(self, _: Cancellation) -> None:
        self._steps += 1
        if self._steps % 100 == 0:
            click.echo(f"Looked at {self._steps} groups of jobs.", err=True)


@click.command()
@click.argument("queue", type=click.Choice([str(queue) for queue in Queue if queue is not Queue.UPKEEP]))
@click.option("--by", "operator", envvar="USER", required=True, help="Who purges. Default: $USER.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@json_option
@needs(Need.BROKER | Need.DATABASE)
def purge(*, queue: str, operator: str, yes: bool, as_json: bool) -> None:
    """Refuse every job that waits on QUEUE as `cancelled`, and take it off.

    Each is on the record, and whoever waits for its answer gets it. Jobs that were charged before, and wait in the
    database, are not on a queue: see `postage cancel`.
    """
    session = current_session()
    with broker_errors():
        answer = purge_queue(
            session.app, Queue(queue), operator=operator, confirm=lambda count: yes or _ask(queue, count)
        )
    print_answer(answer, as_json=as_json, table=tables.purged)


def _ask(queue: str, count: int) -> bool:
    question = f"{count} messages wait on {queue}. Refuse all of them as cancelled?"
    return click.confirm(question, err=True)
