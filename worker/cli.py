"""The command line: Celery's own commands for the workers, and Postage's for people.

Sends go through the broker, like any producer's; purchases, changes and views are answered on the spot by the same
use cases that the tasks run.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from celery.bin.base import CLIContext
from celery.bin.beat import beat as celery_beat
from celery.bin.control import control, inspect
from celery.bin.worker import worker as celery_worker
from kombu.exceptions import OperationalError as BrokerError
from redis import RedisError

from models import audit as auditing
from models.answers import Answer
from models.errors import DatabaseBehindError
from models.migrations import migrate
from tasks.context import Json, utc_now
from worker import screens
from worker import status as reporting
from worker.app import create_app
from worker.checks import DATABASE_ERRORS, NotReadyError, database_clock_differs, failure, require_ready
from worker.deciding import dead, unknown
from worker.embedded import EmbeddedError, embedded_broker
from worker.enqueuing import enqueue
from worker.house import UpError
from worker.jobfile import JobFileError
from worker.logs import set_up_logging
from worker.metrics import MetricsError, served
from worker.settings import Settings, SettingsError
from worker.showing import as_json, migrated_app, show, the_app
from worker.up import up as run_up

F = TypeVar("F", bound=Callable[..., Any])

OPERATORS = {"worker", "beat", "flower", "inspect", "control", "send-email", "send-sms", "enqueue", "status", "dead"}
"""Commands that need a broker; an embedded one is started for them unless it runs already."""
CHECKED = {"worker", "beat"}
"""Commands that refuse to start while something they depend on is not as it must be (worker/checks.py)."""
SAYS = {"worker", "beat", "flower", "up"}
"""Commands that run on and log; the others only speak to who asked."""
SAID = (SettingsError, EmbeddedError, DatabaseBehindError, UpError, JobFileError, NotReadyError, MetricsError)
"""What is raised with a sentence for the person at the command line."""
ASKING_WAIT_S = 5.0
"""How long the others wait for a database that does not answer: somebody sits before them."""


class Postage(click.Group):
    """The group of all commands, with errors as sentences."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's
        """Run a command; what a person can mend is said in a sentence, without a traceback."""
        try:
            return super().invoke(ctx)
        except SAID as error:
            raise click.ClickException(str(error)) from error
        except (*DATABASE_ERRORS, BrokerError, RedisError) as error:
            raise click.ClickException(failure(error, Settings.read())) from error


@click.group(cls=Postage, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="postage")
@click.pass_context
def postage(ctx: click.Context) -> None:
    """Send email and SMS, each message charged to prepaid credits that users share.

    Without any settings, everything is embedded under ./var: database, broker, and local mail and SMS receivers.
    Settings are POSTAGE_… environment variables; docs/operating.md lists them.

    \b
    Try it:           postage up examples/john-peter-mary.jsonl
    Run a worker:     postage worker            (all queues; -Q email,sms for some)
    Look at credits:  postage overview peter
    """  # noqa: D301  \b is click's, not ours
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        ctx.obj = CLIContext(app=create_app(Settings()), no_color=False, workdir=None, quiet=False)
        return
    settings = Settings.read()
    command = ctx.invoked_subcommand or ""
    if command not in SAYS:
        wait_s = min(settings.database_wait_s, ASKING_WAIT_S)
        settings = settings.model_copy(update={"log_level": "WARNING", "database_wait_s": wait_s})
    set_up_logging(settings)
    if settings.database_url is None and command != "up":
        settings.var.mkdir(parents=True, exist_ok=True)
        migrate(settings.database)
    app = create_app(settings)
    ctx.obj = CLIContext(app=app, no_color=False, workdir=None, quiet=False)
    stack = ctx.with_resource(ExitStack())
    if command in OPERATORS:
        stack.enter_context(embedded_broker(settings))
    stack.callback(app.close_context)
    if command in CHECKED:
        require_ready(settings)
    if command == "worker":
        stack.enter_context(served(settings))


def ask(ctx: click.Context, task: str, given: Json) -> Json:
    """The answer of a task's use case, run here and now; refusals are recorded as they are by a worker."""
    app = migrated_app(ctx)
    return cast("Callable[[Json], Answer]", app.tasks[task])(given).fields


def new_id(prefix: str) -> str:
    """An id for a job, an order or a change that was given none."""
    return f"{prefix}-{uuid.uuid4().hex[:16]}"


# -- running ----------------------------------------------------------------------------------------------------------

postage.add_command(celery_worker)
postage.add_command(celery_beat)
postage.add_command(inspect)
postage.add_command(control)


@postage.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def flower(ctx: click.Context, options: tuple[str, ...]) -> None:
    """Start Flower, which shows every task. POSTAGE_FLOWER_ADDRESS, _PORT and _AUTH are used; OPTIONS are Flower's."""
    from flower.command import flower as celery_flower  # noqa: PLC0415  a large import for one command

    settings = the_app(ctx).settings
    os.environ.setdefault("FLOWER_ADDRESS", settings.flower_address)
    os.environ.setdefault("FLOWER_PORT", str(settings.flower_port))
    if settings.flower_auth is not None:
        os.environ.setdefault("FLOWER_BASIC_AUTH", settings.flower_auth)
    # In Flower nobody may stop workers or apply tasks unless they are asked for a password first.
    os.environ.setdefault("FLOWER_READ_ONLY", str(settings.flower_auth is None))
    ctx.invoke(celery_flower, tornado_argv=options)


@postage.command("migrate")
@click.pass_context
def migrate_command(ctx: click.Context) -> None:
    """Bring the database up to the newest schema. Safe at any time, also for several at once."""
    settings = the_app(ctx).settings
    migrate(settings.database)
    click.echo("The database is up to date.")


@postage.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--exit", "exit_when_done", is_flag=True, help="End when every job has its final state.")
@click.pass_context
def up(ctx: click.Context, file: Path | None, exit_when_done: bool) -> None:  # noqa: FBT001
    """Run everything on this machine, and the jobs in FILE.

    Starts the broker and the database (under ./var, unless POSTAGE_BROKER_URL and POSTAGE_DATABASE_URL name others), a
    worker, beat, Flower, and local receivers that keep what is sent under ./var/outbox (unless POSTAGE_SMTP_URL and
    POSTAGE_SMS_URL name real carriers). Then enqueues the jobs in FILE like any outside producer, shows progress, and
    what became of everything. Each line of FILE is {"task": …, "job": …}; sends run side by side, any other task waits
    for the lines before it. Goes on serving until Ctrl-C, or ends when the jobs are done (--exit).
    """
    run_up(the_app(ctx).settings, file, exit_when_done=exit_when_done)


# -- sending ----------------------------------------------------------------------------------------------------------


def sending_options(command: F) -> F:
    """Give a command the options that all sends have."""
    for option in (
        click.option(
            "--wait", default=15.0, show_default=True, help="Seconds to wait for the outcome; 0: do not wait."
        ),
        click.option("--job-id", help="The job's id: the same id is never charged or sent twice. Default: a new one."),
        click.option("--sender", required=True, help="The user who sends."),
    ):
        command = option(command)
    return as_json(command)


@postage.command("send-email")
@sending_options
@click.option("--to", multiple=True, required=True, help="A recipient; repeat for more.")
@click.option("--cc", multiple=True, help="A recipient of a copy.")
@click.option("--bcc", multiple=True, help="A recipient whom the others do not see.")
@click.option("--subject", required=True)
@click.option("--text", help="The body as text; - reads standard input.")
@click.option("--html", help="The body as HTML; - reads standard input.")
@click.option("--reply-to")
@click.pass_context
def send_email(ctx: click.Context, /, wait: float, as_json: bool, **given: Any) -> None:  # noqa: ANN401, FBT001
    """Enqueue one email, and wait for what becomes of it."""
    _send(ctx, "email.send", given, wait=wait, as_json=as_json)


@postage.command("send-sms")
@sending_options
@click.option("--to", required=True, help="The number in E.164, such as +4915112345678.")
@click.option("--text", required=True, help="The text; - reads standard input.")
@click.option("--from", "from", help="What the recipient sees as sender, where the carrier allows it.")
@click.pass_context
def send_sms(ctx: click.Context, /, wait: float, as_json: bool, **given: Any) -> None:  # noqa: ANN401, FBT001
    """Enqueue one text message, and wait for what becomes of it."""
    _send(ctx, "sms.send", given, wait=wait, as_json=as_json)


def _send(ctx: click.Context, task: str, given: Json, *, wait: float, as_json: bool) -> None:
    app = migrated_app(ctx)
    job: Json = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}
    for body in ("text", "html"):
        if job.get(body) == "-":
            job[body] = sys.stdin.read()
    job.setdefault("job_id", new_id("cli"))
    sent = app.send_task(task, args=[job], argsrepr="(…)", ignore_result=True)
    answer = reporting.wait_for(app.context, sent.id, job["job_id"], until=time.monotonic() + wait)
    show(answer, as_json=as_json, screen=screens.message)


postage.add_command(enqueue)

# -- billing ----------------------------------------------------------------------------------------------------------


@postage.command()
@click.argument("buyer")
@click.option("--plan", help="Buy a plan …")
@click.option("--email", type=int, help="… or email credits …")
@click.option("--sms", type=int, help="… or SMS credits,")
@click.option("--amount", type=int, help="for this much, in the currency's minor unit (1990 is 19.90 EUR),")
@click.option("--currency", help="in this currency (EUR).")
@click.option("--for-self", is_flag=True, help="Only for the buyer: refused while they use another's credits.")
@click.option("--billing", multiple=True, metavar="NAME=TEXT", help="Billing information for this order.")
@click.option("--order-id", help="The order's id: the same id is never credited twice. Default: a new one.")
@as_json
@click.pass_context
def buy(ctx: click.Context, /, buyer: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401, FBT001
    """Record a purchase of BUYER; the credits go to their credit owner."""
    order: Json = {"order_id": given["order_id"] or new_id("order"), "buyer": buyer}
    order |= {name: given[name] for name in ("plan", "amount", "currency") if given[name] is not None}
    bought = {kind: given[kind] for kind in ("email", "sms") if given[kind] is not None}
    if bought:
        order["credits"] = bought
    if given["for_self"]:
        order["credit_to"] = "self"
    if given["billing"]:
        order["billing"] = dict(_pair(one) for one in given["billing"])
    show(ask(ctx, "credits.purchase", order), as_json=as_json, screen=screens.purchase)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=TEXT.", param_hint="--billing")
    return name, value


@postage.command()
@click.argument("user")
@click.argument("owner")
@click.option("--as", "actor", required=True, help="Who makes the change: needs the rights view_user_list, edit_user.")
@click.option("--change-id", help="The change's id: the same id is never made twice. Default: a new one.")
@as_json
@click.pass_context
def share(ctx: click.Context, /, user: str, owner: str, actor: str, change_id: str | None, as_json: bool) -> None:  # noqa: FBT001, PLR0917
    """Let USER spend the credits of OWNER; OWNER = USER ends the sharing."""
    change = {"change_id": change_id or new_id("change"), "actor": actor, "user": user, "owner": owner}
    show(ask(ctx, "credits.set_owner", change), as_json=as_json, screen=screens.change)


# -- looking ----------------------------------------------------------------------------------------------------------


def view_options(command: F) -> F:
    """Give a command the options that all views have."""
    for option in (
        click.option("--page", type=int, default=1, show_default=True),
        click.option("--until", help="Before this day or time (ISO 8601, UTC)."),
        click.option("--since", help="From this day or time on (ISO 8601, UTC)."),
        click.option("--self", "of_self", is_flag=True, help="Only what is the viewer's own, not the whole pool."),
        click.argument("viewer"),
    ):
        command = option(command)
    return as_json(command)


def _view(viewer: str, *, of_self: bool, since: str | None, until: str | None, page: int) -> Json:
    given: Json = {"viewer": viewer, "of": "self" if of_self else "owner", "page": page}
    return given | {name: value for name, value in (("since", since), ("until", until)) if value}


@postage.command()
@view_options
@click.pass_context
def overview(ctx: click.Context, /, as_json: bool, **given: Any) -> None:  # noqa: ANN401, FBT001
    """Remaining credits and plans, as VIEWER sees them."""
    show(ask(ctx, "views.overview", _view(**given)), as_json=as_json, screen=screens.overview)


@postage.command()
@view_options
@click.option("--by", type=click.Choice(["day", "message"]), default="day", show_default=True)
@click.pass_context
def usage(ctx: click.Context, /, as_json: bool, by: str, **given: Any) -> None:  # noqa: ANN401, FBT001
    """Credits spent, as VIEWER sees them."""
    show(ask(ctx, "views.usage", {**_view(**given), "by": by}), as_json=as_json, screen=screens.usage)


@postage.command()
@view_options
@click.pass_context
def orders(ctx: click.Context, /, as_json: bool, **given: Any) -> None:  # noqa: ANN401, FBT001
    """Orders, as VIEWER sees them."""
    show(ask(ctx, "views.orders", _view(**given)), as_json=as_json, screen=screens.orders)


@postage.command()
@click.argument("viewer")
@as_json
@click.pass_context
def billing(ctx: click.Context, viewer: str, as_json: bool) -> None:  # noqa: FBT001
    """VIEWER's own billing information."""
    show(ask(ctx, "views.billing", {"viewer": viewer}), as_json=as_json, screen=screens.billing)


@postage.command()
@view_options
@click.pass_context
def users(ctx: click.Context, /, as_json: bool, **given: Any) -> None:  # noqa: ANN401, FBT001
    """The users of VIEWER's organization; VIEWER needs the right view_user_list."""
    show(ask(ctx, "views.users", _view(**given)), as_json=as_json, screen=screens.users)


@postage.command()
@click.argument("job_id", required=False)
@as_json
@click.pass_context
def status(ctx: click.Context, job_id: str | None, as_json: bool) -> None:  # noqa: FBT001
    """What became of JOB_ID; without it, how workers, queues and jobs stand. For operators: no rights are asked."""
    app = migrated_app(ctx)
    if job_id is None:
        show(reporting.everything(app), as_json=as_json, screen=screens.status)
    else:
        show(reporting.job(app.context, job_id), as_json=as_json, screen=screens.message)


@postage.command()
@click.option("--full", is_flag=True, help="Check the whole history again, not only what is new since the last audit.")
@as_json
@click.pass_context
def audit(ctx: click.Context, full: bool, as_json: bool) -> None:  # noqa: FBT001
    """Check every invariant of the money. Exit code 0 only if all hold; names what differs."""
    database = migrated_app(ctx).context.database
    wrong_clock = database_clock_differs(database, utc_now)  # the time of this audit is where the next one goes on
    if wrong_clock is not None:
        raise click.ClickException(wrong_clock)
    patience = timedelta(seconds=Settings.read().database_wait_s)  # of the workers, not of this command
    found = auditing.check(database, utc_now(), patience=patience, whole=full)
    show(found.as_json(), as_json=as_json, screen=screens.audit)


# -- deciding ---------------------------------------------------------------------------------------------------------

postage.add_command(unknown)
postage.add_command(dead)
