"""Commands that enqueue one message and wait for its outcome."""

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from models.messages.base import Json
from worker.broker.signing import BY_US
from worker.cli import tables
from worker.cli.monitor import wait_for_answer
from worker.cli.output import json_option, new_id, print_answer
from worker.cli.session import Need, current_session, needs

F = TypeVar("F", bound=Callable[..., Any])


def _send_options(command: F) -> F:
    """Give a command the options that all sends share."""
    for option in (
        click.option(
            "--wait", default=15.0, show_default=True, help="Seconds to wait for the outcome; 0: do not wait."
        ),
        click.option("--job-id", help="The job's id: the same id is never charged or sent twice. Default: a new one."),
        click.option("--sender", required=True, help="The user who sends."),
    ):
        command = option(command)
    return json_option(command)


@click.command("send-email")
@_send_options
@click.option("--to", multiple=True, required=True, help="A recipient; repeat for more.")
@click.option("--cc", multiple=True, help="A recipient of a copy.")
@click.option("--bcc", multiple=True, help="A recipient whom the others do not see.")
@click.option("--subject", required=True, help="The subject.")
@click.option("--text", help="The body as text; - reads standard input.")
@click.option("--html", help="The body as HTML; - reads standard input.")
@click.option("--reply-to", help="The address for replies.")
@needs(Need.BROKER | Need.DATABASE)
def send_email(*, wait: float, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Enqueue one email, and wait for its outcome."""
    _send("email.send", given, wait=wait, as_json=as_json)


@click.command("send-sms")
@_send_options
@click.option("--to", required=True, help="The number in E.164, such as +4915112345678.")
@click.option("--text", required=True, help="The text; - reads standard input.")
@click.option("--from", "from", help="What the recipient sees as sender, where the carrier allows it.")
@needs(Need.BROKER | Need.DATABASE)
def send_sms(*, wait: float, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Enqueue one text message, and wait for its outcome."""
    _send("sms.send", given, wait=wait, as_json=as_json)


def _send(task: str, given: Json, *, wait: float, as_json: bool) -> None:
    session = current_session()
    job: Json = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}
    for body in ("text", "html"):
        if job.get(body) == "-":
            job[body] = sys.stdin.read()
    job.setdefault("job_id", new_id("cli"))
    sent = session.app.send_task(task, args=[job], argsrepr="(…)", headers=BY_US, ignore_result=True)
    answer = wait_for_answer(session.context, sent.id, task, job, until=time.monotonic() + wait)
    print_answer(answer, as_json=as_json, table=tables.message)
