"""Figures of the whole installation for monitoring: what waits too long, what is unknown, found, owed, out of order.

Each is read from the end of an index, or counted up to `COUNTED_MAX`, however long the history is. Nothing is locked.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Select, func, select

from models.database.schema import accounts, charges, findings, leases, postponed_jobs
from models.messages.fields import KINDS, Kind
from models.reports.findings import is_alarming
from models.sends.resting import find_rests

COUNTED_MAX: Final = 10_000
"""Rows that are counted at most."""
READ_MAX_S: Final = 2
"""How long the database may take for one figure, in seconds."""


class CarrierDown(NamedTuple):
    """A carrier that does not work, and for how long it has not, in seconds."""

    kind: Kind
    carrier: str
    down_s: float


class Figures(NamedTuple):
    """How an installation stands.

    `due_lag_s` is for how long what is due has waited for a sweep, at most, and `lease_lag_s` the same of leases that
    have expired. `unknown` messages and the credits of a `debt` are counted by kind; `unknown_s` is for how long a
    message has been unknown, at most. `findings` are those that alarm. `down` are the carriers that do not work.
    """

    due_lag_s: float
    lease_lag_s: float
    unknown: Mapping[Kind, int]
    unknown_s: float
    findings: int
    debt: Mapping[Kind, int]
    down: Sequence[CarrierDown]


def read_figures(connection: Connection, now: datetime) -> Figures:
    """Read all figures as they stand at a time."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{READ_MAX_S}s'")
    dues = (charges.c.due_at, postponed_jobs.c.due_at)
    return Figures(
        due_lag_s=max(_passed_s(connection, due_at, now) for due_at in dues),
        lease_lag_s=_passed_s(connection, leases.c.until, now),
        unknown=_count_unknown(connection),
        unknown_s=_passed_s(connection, charges.c.unknown_since, now),
        findings=_count_findings(connection),
        debt=_sum_debt(connection),
        down=[CarrierDown(rest.kind, rest.carrier, _seconds(rest.since, now)) for rest in find_rests(connection)],
    )


def _passed_s(connection: Connection, column: Column[datetime], now: datetime) -> float:
    """Return how long ago the earliest time of a column was, in seconds; 0 if there is none, or it is to come."""
    earliest: datetime | None = connection.execute(select(func.min(column)).where(column.is_not(None))).scalar()
    return 0.0 if earliest is None else _seconds(earliest, now)


def _seconds(since: datetime, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds())


def _count_unknown(connection: Connection) -> dict[Kind, int]:
    some = select(charges.c.kind).where(charges.c.unknown_since.is_not(None)).limit(COUNTED_MAX).subquery()
    return _by_kind(connection, select(some.c.kind, func.count()).group_by(some.c.kind))


def _sum_debt(connection: Connection) -> dict[Kind, int]:
    some = select(accounts.c.kind, accounts.c.debt).where(accounts.c.debt > 0).limit(COUNTED_MAX).subquery()
    return _by_kind(connection, select(some.c.kind, func.sum(some.c.debt)).group_by(some.c.kind))


def _by_kind(connection: Connection, query: Select[Any]) -> dict[Kind, int]:
    found = {kind: int(number) for kind, number in connection.execute(query)}
    return {kind: found.get(kind, 0) for kind in KINDS}


def _count_findings(connection: Connection) -> int:
    some = select(findings.c.id).where(is_alarming).limit(COUNTED_MAX).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()
