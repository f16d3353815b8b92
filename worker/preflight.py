"""What is checked before a worker or beat starts. Each check returns a sentence that says what is wrong, or None.

Two more things are checked elsewhere: settings that contradict each other (a visibility timeout too short for the
lease) when settings are read, and a second `postage up` on one folder when it takes that folder's lock.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from kombu import Connection as BrokerConnection
from kombu.exceptions import OperationalError as BrokerError
from redis import Redis, RedisError
from redis.exceptions import ResponseError
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models.database.engine import Database, utc_now
from models.database.migrations import check_migrated
from models.errors import DatabaseAheadError, DatabaseBehindError, OperatorError
from models.text import sanitize
from tasks import broker_urls
from worker.broker.transport import redis_client
from worker.places import database_name
from worker.private_files import OTHERS
from worker.producer_keys import OURS, KeysFileError, read_keys
from worker.settings import Settings

log = structlog.get_logger(__name__)

CLOCKS_APART_MAX = timedelta(seconds=5)
"""Redis' index of deliveries is written by one machine's clock and read by another's; leases and all that is stored run
by the database's (decision 0027). A clock that follows a time server is right to well below a second, so this much is a
fault, and still small beside a visibility timeout."""
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
    return check_database(settings, migrated=migrated, now=now) + check_broker(settings, now) + check_keys(settings)


def check_database(settings: Settings, *, migrated: bool = True, now: Callable[[], datetime] = utc_now) -> Verdict:
    """Run every check of the database."""
    database = Database(settings.database, pool_size=1, wait_s=0)
    try:
        unreachable = database_unreachable(database)
        if unreachable is not None:
            return Verdict([unreachable])
        return Verdict(
            _sentences(
                database_is_standby(database),
                encoding_differs(database),
                schema_differs(database) if migrated else None,
                database_clock_differs(database, now),
            ),
            _sentences(
                crash_may_destroy_database(database),
                crash_may_tear_pages(database),
                commits_may_be_lost(database),
                standbys_may_lack_commits(database),
                no_standby_confirms_commits(database),
            ),
        )
    finally:
        database.close()


def check_keys(settings: Settings) -> Verdict:
    """Check that what must be signed can be: that the keys of producers can be read, and that Postage has its own."""
    path = settings.producer_keys_file
    try:
        keys = read_keys(path)
    except KeysFileError as error:
        return Verdict([str(error)])
    if settings.must_be_signed and OURS not in keys:
        sentence = f"POSTAGE_SIGNED_QUEUES needs keys, and there are none in {path}: `postage keys new NAME` makes one."
        return Verdict([sentence])
    if keys and path.stat().st_mode & OTHERS:
        return Verdict(warnings=[f"Other users of this machine can read the keys of producers: chmod 600 {path}."])
    return Verdict()


def check_broker(settings: Settings, now: Callable[[], datetime] = utc_now) -> Verdict:
    """Run every check of the broker, and whether the result backend can be reached."""
    verdict = _check_broker(settings, now)
    if settings.results != settings.broker:
        verdict += Verdict(_sentences(broker_unreachable(settings.results, settings)))
    return verdict


def _check_broker(settings: Settings, now: Callable[[], datetime]) -> Verdict:
    unreachable = broker_unreachable(settings.broker, settings)
    if unreachable is not None:
        return Verdict([unreachable])
    with _open_broker(settings.broker, settings) as redis:
        return Verdict(
            _sentences(broker_is_cluster(redis), jobs_may_be_evicted(redis), broker_clock_differs(redis, now)),
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


def encoding_differs(database: Database) -> str | None:
    """Check that PostgreSQL stores text as UTF-8. In SQL_ASCII it would take any bytes, and cut characters apart."""
    encoding = _postgres_setting(database, "server_encoding")
    if encoding in (None, "UTF8"):
        return None
    return (
        f"The database's encoding is {encoding}, and names and texts need UTF8: make another database "
        "(CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0), and let POSTAGE_DATABASE_URL name it."
    )


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


def database_is_standby(database: Database) -> str | None:
    """Check that the database takes writes."""
    if database.is_sqlite or not _asked(database, "SELECT pg_is_in_recovery()"):
        return None
    return (
        "The database is a standby, which takes no writes: let POSTAGE_DATABASE_URL name the primary (if it names "
        "several hosts, with target_session_attrs=read-write), or wait until this one is promoted."
    )


def crash_may_destroy_database(database: Database) -> str | None:
    """Check that PostgreSQL waits for the disk. SQLite does, because we tell it to."""
    if _postgres_setting(database, "fsync") != "off":
        return None
    return (
        "PostgreSQL's fsync is off: a crash of its machine can destroy the database, with every balance in it. "
        "Set fsync to on."
    )


def crash_may_tear_pages(database: Database) -> str | None:
    """Check that PostgreSQL can mend pages that were half written."""
    if _postgres_setting(database, "full_page_writes") != "off":
        return None
    return (
        "PostgreSQL's full_page_writes is off: a crash of its machine can leave pages of the database half written. "
        "Set full_page_writes to on, unless the file system never writes half a page (as ZFS)."
    )


def commits_may_be_lost(database: Database) -> str | None:
    """Check that a commit of ours is on disk when PostgreSQL confirms it, and on a standby if there is to be one."""
    commit = _postgres_setting(database, "synchronous_commit")
    if commit == "off":
        return (
            "PostgreSQL's synchronous_commit is off for this user: a crash of its server loses the last charges, "
            "though their messages were sent and their jobs acknowledged. Set synchronous_commit to on."
        )
    if commit == "local" and _postgres_setting(database, "synchronous_standby_names"):
        return (
            "PostgreSQL's synchronous_commit is local for this user, so no commit waits for the standbys in "
            "synchronous_standby_names: a fail-over loses the last charges. Set synchronous_commit to on."
        )
    return None


def standbys_may_lack_commits(database: Database) -> str | None:
    """Check that standbys, if there are any, have every commit that was confirmed."""
    if _postgres_setting(database, "synchronous_standby_names") != "" or not _count_standbys(database):
        return None
    return (
        "PostgreSQL has standbys and an empty synchronous_standby_names: a fail-over loses the last charges and "
        "purchases. Set synchronous_standby_names (docs/operating.md, Fail-over), unless no standby ever takes over."
    )


def no_standby_confirms_commits(database: Database) -> str | None:
    """Check that commits which wait for a standby will not wait for ever."""
    names = _postgres_setting(database, "synchronous_standby_names")
    if not names or _postgres_setting(database, "synchronous_commit") in ("off", "local") or _count_standbys(database):
        return None
    return (
        f"PostgreSQL's synchronous_standby_names is {names}, and no standby is connected: every commit waits, and so "
        "does every job, until one is."
    )


def database_failed(url: str, error: Exception) -> str:
    """Return the sentence for a database that cannot be reached or used."""
    return f"The database {database_name(url)} cannot be used: {_words(error)}."


def _postgres_setting(database: Database, name: str) -> str | None:
    """Return a setting of PostgreSQL as it is for our own sessions, or None if this is not PostgreSQL."""
    return None if database.is_sqlite else _asked(database, "SELECT current_setting(:name)", name=name)


def _count_standbys(database: Database) -> int:
    """Return how many standbys receive the write-ahead log. PostgreSQL's own tools for backups receive it too."""
    count: int = _asked(database, r"SELECT count(*) FROM pg_stat_replication WHERE application_name NOT LIKE 'pg\_%'")
    return count


def _asked(database: Database, question: str, **parameters: str) -> Any:  # noqa: ANN401  whatever was asked for
    with database.snapshot() as connection:
        return connection.execute(text(question), parameters).scalar_one()


# -- the broker -------------------------------------------------------------------------------------------------------


def broker_unreachable(url: str, settings: Settings) -> str | None:
    """Check that a connection can be made to the broker or the result backend."""
    try:
        with _open_broker(url, settings) as redis:
            redis.ping()
    except BROKER_ERRORS as error:
        return broker_failed(url, settings, error)
    return None


def broker_is_cluster(redis: Redis) -> str | None:
    """Check that the broker is no cluster: the keys of a queue must be on one server (celery#2852, kombu#2204)."""
    try:
        is_cluster = bool(redis.info("cluster").get("cluster_enabled"))
    except ResponseError:  # not permitted
        return None
    if not is_cluster:
        return None
    return (
        "The broker is a Redis Cluster, which Celery cannot use: its keys would be on several servers. Use one Redis "
        "or Valkey, with replicas and Sentinel for fail-over."
    )


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


def broker_failed(url: str, settings: Settings, error: Exception) -> str:
    """Return the sentence for a broker that cannot be reached or used."""
    name = broker_urls.name(url, settings.sentinel_master)
    return f"The broker {name} cannot be used: {_words(error)}.{_tls_advice(url, error)}"


def _tls_advice(url: str, error: Exception) -> str:
    """Return a sentence on what to do about a failure of TLS, or nothing if it is none."""
    said = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            " If that is the right broker, let ?ssl_ca_certs=FILE in its URL name the certificate of the authority "
            "that has signed its own, for exactly this host name."
        )
    if url.startswith("redis://") and "closed by server" in said:
        return " Perhaps it speaks TLS on this port: write rediss://."
    if url.startswith("rediss://") and any(words in said for words in ("[SSL", "Timeout", "timed out")):
        return " Perhaps it does not speak TLS on this port: redis:// is without."
    return ""


@contextmanager
def _open_broker(url: str, settings: Settings) -> Iterator[Redis]:
    """Give a client of the broker, made from the URL by kombu, like the worker's."""
    options = {**settings.broker_options, "socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
    with BrokerConnection(url, transport_options=options) as connection:
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
        f"The clock of {whose} is {apart} this machine's; redelivery can bear "
        f"{CLOCKS_APART_MAX.total_seconds():g} s. Let both follow the same time server (NTP)."
    )


def explain_failure(error: Exception, settings: Settings) -> str:
    """Return the sentence for a database or a broker that a command could not reach or use."""
    if isinstance(error, DATABASE_ERRORS):
        return database_failed(settings.database, error)
    return broker_failed(settings.broker, settings, error)


def _words(error: Exception) -> str:
    """Return what a server or a driver said, on one line. Neither libpq nor redis repeats a password."""
    said: object = error.orig if isinstance(error, DBAPIError) else error
    return sanitize(str(said)).rstrip(".?!")
