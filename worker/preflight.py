"""What is checked before a worker or beat starts. Each check returns a sentence that says what is wrong, or None.

Two more things are checked elsewhere: settings that contradict each other (a visibility timeout too short for the
lease) when settings are read, and a second `postage up` on one folder when it takes that folder's lock.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from kombu import Connection as BrokerConnection
from kombu.exceptions import OperationalError as BrokerError
from redis import Redis, RedisError
from redis.exceptions import ResponseError
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models.database.engine import Database
from models.database.migrations import check_migrated
from models.errors import DatabaseAheadError, DatabaseBehindError, OperatorError
from models.text import sanitize
from tasks.context import utc_now
from worker.broker.transport import redis_client
from worker.settings import Settings

log = structlog.get_logger(__name__)

CLOCKS_APART_MAX = timedelta(seconds=5)
"""Leases, due times and Redis' index of deliveries are written by one machine's clock and read by another's. A clock
that follows a time server is right to well below a second, so this much is a fault, and still small beside a lease."""
ANSWER_S = 5
"""How long a broker may take to answer, in seconds."""
ASK_AGAIN_S = 1
"""A broker that cannot be reached is tried once more after so many seconds: it may just be restarting."""
DATABASE_ERRORS = (OperationalError, InterfaceError, PoolTimeoutError)
"""What SQLAlchemy raises where a database cannot be reached or used."""
BROKER_ERRORS = (BrokerError, RedisError, OSError)
"""What kombu and redis raise where a broker cannot be reached or used."""


class NotReadyError(OperatorError):
    """Something that this process depends on is not as it must be. The message has a sentence for each fault."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong: refusals prevent a process from starting, warnings do not."""

    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.refusals + other.refusals, self.warnings + other.warnings)


def require_ready(settings: Settings, *, migrated: bool = True, now: Callable[[], datetime] = utc_now) -> None:
    """Make sure that this process may start; warnings go to the log.

    Raises
    ------
    NotReadyError
        With a sentence for everything that is wrong.

    """
    verdict = examine(settings, migrated=migrated, now=now)
    for warning in verdict.warnings:
        log.warning(warning)
    if verdict.refusals:
        raise NotReadyError("\n".join(verdict.refusals))


def examine(settings: Settings, *, migrated: bool = True, now: Callable[[], datetime] = utc_now) -> Verdict:
    """Run every check. `migrated` says whether the schema must be there already."""
    verdict = _check_database(settings, migrated, now) + _check_broker(settings, now)
    if settings.results != settings.broker:
        verdict += Verdict(_sentences(broker_unreachable(settings.results)))
    return verdict


def _check_database(settings: Settings, migrated: bool, now: Callable[[], datetime]) -> Verdict:  # noqa: FBT001
    database = Database(settings.database, pool_size=1, wait_s=0)
    try:
        unreachable = database_unreachable(database)
        if unreachable is not None:
            return Verdict([unreachable])
        return Verdict(
            _sentences(schema_differs(database) if migrated else None, database_clock_differs(database, now))
        )
    finally:
        database.close()


def _check_broker(settings: Settings, now: Callable[[], datetime]) -> Verdict:
    unreachable = broker_unreachable(settings.broker)
    if unreachable is not None:
        return Verdict([unreachable])
    with _open_broker(settings.broker) as redis:
        return Verdict(
            _sentences(jobs_may_be_evicted(redis), broker_clock_differs(redis, now)),
            _sentences(eviction_is_not_known(redis), jobs_are_not_on_disk(redis)),
        )


def _sentences(*sentences: str | None) -> list[str]:
    return [sentence for sentence in sentences if sentence is not None]


# -- the database -----------------------------------------------------------------------------------------------------


def database_unreachable(database: Database) -> str | None:
    """Check that a connection can be made."""
    try:
        with database.snapshot() as connection:
            connection.execute(select(1))
    except DATABASE_ERRORS as error:
        return database_failed(database.engine.url.render_as_string(hide_password=False), error)
    return None


def schema_differs(database: Database) -> str | None:
    """Check that the database has every migration of this code, and no other."""
    try:
        check_migrated(database)
    except (DatabaseBehindError, DatabaseAheadError) as differs:
        return str(differs)
    return None


def database_clock_differs(database: Database, now: Callable[[], datetime]) -> str | None:
    """Check that the clocks of the database and of this machine agree. SQLite has no clock of its own."""
    if database.is_sqlite:
        return None
    with database.snapshot() as connection:
        connection.execute(select(1))  # connect before the clock is read
        before = now()
        theirs = connection.execute(select(func.clock_timestamp())).scalar_one()
        return _clocks_differ("the database", before, theirs, now())


def database_failed(url: str, error: Exception) -> str:
    """Return the sentence for a database that cannot be reached or used."""
    return f"The database {database_name(url)} cannot be used: {_words(error)}."


def database_name(url: str) -> str:
    """Return which database a URL means, without user and password."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return str(parsed.database)
    host = parsed.host or parsed.query.get("host") or "the local socket"
    return f"{parsed.database or parsed.username} at {host}:{parsed.port or 5432}"


# -- the broker -------------------------------------------------------------------------------------------------------


def broker_unreachable(url: str) -> str | None:
    """Check that a connection can be made."""
    try:
        with _open_broker(url) as redis:
            redis.ping()
    except BROKER_ERRORS as error:
        return broker_failed(url, error)
    return None


def jobs_may_be_evicted(redis: Redis) -> str | None:
    """Check that the broker does not evict jobs to make room for others."""
    policy = _configured(redis, "maxmemory-policy")
    if policy in (None, "noeviction"):
        return None
    return (
        f"The broker's maxmemory-policy is {policy}, so it may throw out jobs when its memory is full: "
        "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in its configuration file)."
    )


def eviction_is_not_known(redis: Redis) -> str | None:
    """Check that the broker lets us read its configuration."""
    if _configured(redis, "maxmemory-policy") is not None:
        return None
    return (
        "The broker does not let this user read its configuration (CONFIG GET): make sure that its maxmemory-policy "
        "is noeviction and that it has an append-only file, or jobs can be lost."
    )


def jobs_are_not_on_disk(redis: Redis) -> str | None:
    """Check that the broker keeps its data on disk."""
    if _configured(redis, "appendonly") != "no" or _configured(redis, "save") != "":
        return None
    return (
        "The broker keeps nothing on disk (appendonly no, save empty): jobs that wait are lost when it ends. "
        "Set appendonly to yes."
    )


def broker_clock_differs(redis: Redis, now: Callable[[], datetime]) -> str | None:
    """Check that the clocks of the broker and of this machine agree."""
    before = now()
    seconds, microseconds = redis.time()
    theirs = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)
    return _clocks_differ("the broker", before, theirs, now())


def broker_failed(url: str, error: Exception) -> str:
    """Return the sentence for a broker that cannot be reached or used."""
    return f"The broker {broker_name(url)} cannot be used: {_words(error)}."


def broker_name(url: str) -> str:
    """Return which broker a URL means, without user and password."""
    parsed = urlsplit(url)
    if parsed.scheme == "redis+socket":
        return unquote(parsed.path)
    return f"at {parsed.hostname or 'localhost'}:{parsed.port or 6379}{parsed.path.rstrip('/')}"


@contextmanager
def _open_broker(url: str) -> Iterator[Redis]:
    """Give a client of the broker, made from the URL by kombu, like the worker's."""
    timeouts = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
    with BrokerConnection(url, transport_options=timeouts) as connection:
        connection.ensure_connection(max_retries=1, interval_start=ASK_AGAIN_S)
        yield redis_client(connection.channel())


def _configured(redis: Redis, name: str) -> str | None:
    """Return a value of the broker's configuration, or None if we may not read it."""
    try:
        found = redis.config_get(name)
    except ResponseError:  # not permitted, or renamed away, as hosted ones do
        return None
    return {_text(key): _text(value) for key, value in found.items()}.get(name)


def _text(word: Any) -> str:  # noqa: ANN401  bytes or str, depending on the client
    return word.decode() if isinstance(word, bytes) else str(word)


# -- both -------------------------------------------------------------------------------------------------------------


def _clocks_differ(whose: str, before: datetime, theirs: datetime, after: datetime) -> str | None:
    """Return the sentence for a clock that, read between two readings of ours, is certainly too far off."""
    ahead, behind = theirs - after, before - theirs
    if max(ahead, behind) <= CLOCKS_APART_MAX:
        return None
    apart = f"{ahead.total_seconds():.0f} s ahead of" if ahead > behind else f"{behind.total_seconds():.0f} s behind"
    return (
        f"The clock of {whose} is {apart} this machine's; leases and retries can bear "
        f"{CLOCKS_APART_MAX.total_seconds():g} s. Let both follow the same time server (NTP)."
    )


def explain_failure(error: Exception, settings: Settings) -> str:
    """Return the sentence for a database or a broker that a command could not reach or use."""
    if isinstance(error, DATABASE_ERRORS):
        return database_failed(settings.database, error)
    return broker_failed(settings.broker, error)


def _words(error: Exception) -> str:
    """Return what a server or a driver said, on one line. Neither libpq nor redis repeats a password."""
    said: object = error.orig if isinstance(error, DBAPIError) else error
    return sanitize(str(said)).rstrip(".?!")
