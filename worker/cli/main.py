"""The command line: Celery's own commands for workers, and Postage's for people.

Sends go through the broker, as any producer's do. Purchases, changes and views are answered at once, by the same use
cases that the tasks run.
"""

from typing import Any

import click
from kombu.exceptions import OperationalError as BrokerError
from redis import RedisError

from models.errors import PostageError
from worker.cli.apply import apply
from worker.cli.cancel import cancel, purge
from worker.cli.carriers import carriers
from worker.cli.console import console, create_admin
from worker.cli.contract import contract
from worker.cli.credits import adjust, buy, reverse, share
from worker.cli.dead import dead
from worker.cli.doctor import doctor
from worker.cli.enqueue import enqueue
from worker.cli.erase import erase
from worker.cli.explain import explain
from worker.cli.findings import findings
from worker.cli.keys import keys
from worker.cli.run import beat, control, flower, inspect, migrate, worker
from worker.cli.saving import plan, role, user
from worker.cli.send import send_email, send_sms
from worker.cli.session import Session
from worker.cli.settings import settings
from worker.cli.status import audit, status
from worker.cli.unknown import unknown
from worker.cli.up import up
from worker.cli.verify import verify
from worker.cli.views import billing, changes, entry, orders, overview, statement, usage, users
from worker.preflight import DATABASE_ERRORS, explain_failure

COMMANDS = (
    *(up, worker, beat, flower, console, migrate),
    *(send_email, send_sms, enqueue, contract),
    *(apply, user, role, plan, create_admin, keys),
    *(buy, reverse, adjust, share, erase, cancel, purge),
    *(overview, usage, orders, statement, entry, billing, users, changes),
    *(status, explain, carriers, settings, doctor, audit, findings, verify, unknown, dead, inspect, control),
)


class PostageGroup(click.Group):
    """The group of all commands, with errors as sentences."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's
        """Run a command. An error that a person can mend is told in a sentence, without a traceback."""
        session = ctx.obj = ctx.obj or Session()
        try:
            return super().invoke(ctx)
        except PostageError as error:
            raise click.ClickException(str(error)) from error
        except (*DATABASE_ERRORS, BrokerError, RedisError) as error:
            raise click.ClickException(explain_failure(error, session.configured)) from error


@click.group(
    cls=PostageGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="postage")
def postage() -> None:
    """Send email and SMS, and charge each message to prepaid credits that users can share.

    Without any settings, everything is embedded under ./var: database, broker, and local receivers for what is sent.
    Settings are POSTAGE_… environment variables; docs/operating.md lists them.

    \b
    Try it:           postage up examples/john-peter-mary.jsonl
    Run a worker:     postage worker            (all queues; -Q email,sms for some)
    Look at credits:  postage overview peter
    """  # noqa: D301  \b is click's, not ours
