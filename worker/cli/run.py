"""Commands that run the processes of an installation: worker, beat, Flower, migrations, and Celery's remote control."""

import os

import click
from celery.bin.beat import beat as celery_beat
from celery.bin.control import control as celery_control
from celery.bin.control import inspect as celery_inspect
from celery.bin.worker import worker as celery_worker

from models.database.migrations import migrate as migrate_database
from worker.cli.session import Need, adopted, current_session, needs
from worker.local.folder import make_private
from worker.places import require_embedded

worker = adopted(
    celery_worker,
    Need.SERVICE | Need.BROKER | Need.PREFLIGHT | Need.CARRIERS | Need.METRICS,
    "Run a worker for all queues, or some (-Q).",
)
beat = adopted(
    celery_beat, Need.SERVICE | Need.BROKER | Need.PREFLIGHT, "Run beat, which triggers upkeep. One is enough."
)
inspect = adopted(celery_inspect, Need.BROKER, "Ask running workers what they do.")
control = adopted(celery_control, Need.BROKER, "Tell running workers what to do.")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@needs(Need.SERVICE | Need.BROKER)
def flower(options: tuple[str, ...]) -> None:
    """Start Flower, which shows every task.

    It uses POSTAGE_FLOWER_ADDRESS, POSTAGE_FLOWER_PORT and POSTAGE_FLOWER_AUTH. OPTIONS are Flower's own.
    """
    from flower.command import flower as celery_flower  # noqa: PLC0415  a large import for one command

    from worker.broker.flower_queues import count_as_postage_does  # noqa: PLC0415  imports Flower too

    count_as_postage_does(current_session().app)
    settings = current_session().settings
    os.environ.setdefault("FLOWER_ADDRESS", settings.flower_address)
    os.environ.setdefault("FLOWER_PORT", str(settings.flower_port))
    if settings.flower_auth is not None:
        os.environ.setdefault("FLOWER_BASIC_AUTH", settings.flower_auth)
    # Without a password, anybody who reaches Flower could stop workers or apply tasks there.
    os.environ.setdefault("FLOWER_READ_ONLY", str(settings.flower_read_only or settings.flower_auth is None))
    click.get_current_context().invoke(celery_flower, tornado_argv=options)


@click.command()
def migrate() -> None:
    """Migrate the database to the newest schema. Safe at any time, also for several at once."""
    settings = current_session().settings
    require_embedded(settings, database=True, broker=False)
    if settings.database_url is None:
        make_private(settings.var)
    migrate_database(settings.database)
    click.echo("The database is up to date.")
