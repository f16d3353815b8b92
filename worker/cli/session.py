"""What one run of the command line works with, and what each command needs before it can run."""

import copy
import enum
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeVar, cast

import click
import structlog
from celery.bin.base import CLIContext

from models.database.migrations import check_migrated, migrate
from tasks.client import CONNECTING
from tasks.context import Context
from worker.app import PostageApp, create_app
from worker.local.folder import make_private
from worker.local.valkey import embedded_broker
from worker.logs import set_up_logging
from worker.metrics import served_metrics
from worker.places import carriers_that_send_nowhere, named_parts, require_embedded
from worker.preflight import require_ready
from worker.settings import Settings

log = structlog.get_logger(__name__)
F = TypeVar("F", bound=Callable[..., Any])

PERSON_WAIT_S = 5.0
"""How long a command that a person waits for, waits for a database that does not answer, in seconds."""


class Need(enum.Flag):
    """What a command needs. It is declared on the command, by `needs`."""

    BROKER = enum.auto()
    """A broker. The embedded one is started, unless it runs already or POSTAGE_BROKER_URL names another.

    Embedded ones are only used where `postage up` has made them.
    """
    DATABASE = enum.auto()
    """A database with every migration. The embedded one is migrated."""
    PREFLIGHT = enum.auto()
    """Everything that worker/preflight.py checks: the command does not start while something is wrong."""
    CARRIERS = enum.auto()
    """Carriers: the log warns of those that accept everything and send nothing."""
    METRICS = enum.auto()
    """Metrics, served while the command runs."""
    SERVICE = enum.auto()
    """The settings of a service: it logs at the configured level, and waits for the database as long as configured."""


class Session(CLIContext):
    """The settings and the app of one run of the command line, made when they are first used.

    Celery's own commands find the app here too. `--help` of a command uses neither.
    """

    def __init__(self) -> None:
        self.no_color = False
        self.quiet = False
        self.workdir = None

    @cached_property
    def configured(self) -> Settings:
        """The settings from the environment."""
        return Settings.from_environment()

    @cached_property
    def settings(self) -> Settings:
        """The settings that this command works with: unless it is a service, it is quiet and does not wait for long."""
        wait_s = min(self.configured.database_wait_s, PERSON_WAIT_S)
        return self.configured.model_copy(update={"log_level": "WARNING", "database_wait_s": wait_s})

    @cached_property
    def app(self) -> PostageApp:  # type: ignore[override]  # Celery's class sets an attribute
        """The Celery app for these settings. A service waits for a broker that is away, a person does not."""
        app = create_app(self.settings)
        if self.settings is not self.configured:
            app.conf.broker_transport_options = {**app.conf.broker_transport_options, **CONNECTING}
        return app

    @property
    def context(self) -> Context:
        """What use cases may reach."""
        return self.app.context

    @contextmanager
    def prepared(self, need: Need) -> Iterator[None]:
        """Give the block everything that it needs.

        Raises
        ------
        OperatorError
            If something cannot be had, saying what to do.

        """
        if Need.SERVICE in need:
            self.settings = self.configured
        settings = self.settings
        logs_json = set_up_logging(settings)
        self.quiet = logs_json and Need.SERVICE in need
        if self.quiet:  # no banner, which is not JSON
            sys.__stdout__ = None  # type: ignore[misc]  # Celery says there that a worker shuts down
        uses_database = bool(need & (Need.DATABASE | Need.PREFLIGHT))
        require_embedded(settings, database=uses_database, broker=Need.BROKER in need)
        if uses_database and settings.database_url is None:
            make_private(settings.var)
            migrate(settings.database)
        with ExitStack() as stack:
            if Need.BROKER in need:
                stack.enter_context(embedded_broker(settings))
            stack.callback(self._close)
            if Need.PREFLIGHT in need:
                log.info("starting", **named_parts(settings, sends=Need.CARRIERS in need))
                require_ready(settings)
            if Need.CARRIERS in need:
                for warning in carriers_that_send_nowhere(settings):
                    log.warning(warning)
            if Need.METRICS in need:
                stack.enter_context(served_metrics(settings, lambda: self.app.opened_context, self.app.metrics))
            if Need.DATABASE in need:
                check_migrated(self.context.database)
            yield

    def _close(self) -> None:
        if "app" in self.__dict__:
            self.app.close_context()


def current_session() -> Session:
    """Return the session of the command that runs."""
    return cast("Session", click.get_current_context().find_object(Session))


def needs(need: Need) -> Callable[[F], F]:
    """Declare what a command needs. It is prepared once the command line was parsed, so `--help` needs nothing."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def prepare_and_run(*args: Any, **options: Any) -> Any:  # noqa: ANN401  the command's
            with current_session().prepared(need):
                return command(*args, **options)

        return cast("F", prepare_and_run)

    return decorate


def adopted(command: click.Command, need: Need, summary: str) -> click.Command:
    """Return a command of Celery's as one of ours, with what it needs and its line in the list of commands."""
    ours = copy.copy(command)
    ours.short_help = summary
    ours.callback = needs(need)(cast("Callable[..., Any]", command.callback))
    return ours
