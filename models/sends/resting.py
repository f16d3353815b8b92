"""Carriers that rest: what does not work is left alone for a while by all workers, and then tried with one job.

works ──> rests ──> is tried with one job ──> works
            ^               │
            └───────────────┘ (each time it rests twice as long)
"""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, or_, select, update

from models.database.schema import resting_carriers
from models.database.statements import insert
from models.messages.fields import Kind
from models.text import without_people

FAILING_S: Final = (2.0, 60.0)
"""How long a carrier rests that does not answer, at first and at most, in seconds."""
OUR_FAULT_S: Final = (15.0, 600.0)
"""How long a carrier rests that we are set up wrongly for: a person has to mend it."""
PROBE: Final = timedelta(seconds=60)
"""After which another job tries a carrier: the worker of the one that tried it may have crashed."""
RESTS_MAX: Final = 30


class Rest(NamedTuple):
    """A carrier that rests, or is to be tried: `rests` times in a row, until then, and why."""

    kind: Kind
    carrier: str
    rests: int
    since: datetime
    until: datetime
    probed_until: datetime | None
    is_our_fault: bool
    detail: str


def find_rests(connection: Connection) -> list[Rest]:
    """Return the carriers that do not work, in order."""
    columns = (resting_carriers.c[name] for name in Rest._fields)
    found = connection.execute(select(*columns).order_by(resting_carriers.c.kind, resting_carriers.c.carrier))
    return [Rest(*row) for row in found]


def begin_rest(
    connection: Connection, kind: Kind, carrier: str, detail: str, now: datetime, *, is_our_fault: bool
) -> Rest | None:
    """Let a carrier rest, longer than the last time. Returns None if it rests already.

    `detail` is what it said to some message; whom that was for is left out.
    """
    detail = without_people(detail)
    its_own = _is(kind, carrier)
    before = connection.execute(select(resting_carriers).where(its_own).with_for_update()).one_or_none()
    if before is not None and before.until > now:
        return None
    rests = 1 if before is None else min(before.rests + 1, RESTS_MAX)
    first_s, longest_s = OUR_FAULT_S if is_our_fault else FAILING_S
    until = now + timedelta(seconds=min(longest_s, first_s * 2.0 ** (rests - 1)))
    values = {"rests": rests, "until": until, "probed_until": None, "is_our_fault": is_our_fault, "detail": detail}
    if before is not None:
        connection.execute(update(resting_carriers).where(its_own).values(values))
        return Rest(kind, carrier, rests, before.since, until, None, is_our_fault, detail)
    inserted = connection.execute(
        insert(connection, resting_carriers)
        .values(kind=kind, carrier=carrier, since=now, **values)
        .on_conflict_do_nothing()
        .returning(resting_carriers.c.rests)
    ).one_or_none()
    if inserted is None:  # another worker was faster
        return None
    return Rest(kind, carrier, rests, now, until, None, is_our_fault, detail)


def claim_probe(connection: Connection, kind: Kind, carrier: str, now: datetime) -> bool:
    """Whether the caller's job is the one that tries a carrier which has rested."""
    nobody_tries = or_(resting_carriers.c.probed_until.is_(None), resting_carriers.c.probed_until <= now)
    claimed = connection.execute(
        update(resting_carriers)
        .where(_is(kind, carrier), resting_carriers.c.until <= now, nobody_tries)
        .values(probed_until=now + PROBE)
        .returning(resting_carriers.c.carrier)
    )
    return claimed.one_or_none() is not None


def end_rest(connection: Connection, kind: Kind, carrier: str) -> bool:
    """Note that a carrier works. Returns whether it was noted that it did not."""
    ended = connection.execute(delete(resting_carriers).where(_is(kind, carrier)).returning(resting_carriers.c.carrier))
    return ended.one_or_none() is not None


def wake_carrier(connection: Connection, carrier: str, now: datetime) -> list[str]:
    """Let the next job try a carrier that rests. Returns the kinds of messages for which it rested."""
    woken = connection.execute(
        update(resting_carriers)
        .where(resting_carriers.c.carrier == carrier, resting_carriers.c.until > now)
        .values(until=now, probed_until=None)
        .returning(resting_carriers.c.kind)
    )
    return sorted(woken.scalars())


def forget_rests(connection: Connection, carrier: str) -> list[str]:
    """Forget that a carrier rests which is not set up any more. Returns the kinds of messages for which it did."""
    forgotten = connection.execute(
        delete(resting_carriers).where(resting_carriers.c.carrier == carrier).returning(resting_carriers.c.kind)
    )
    return sorted(forgotten.scalars())


def _is(kind: Kind, carrier: str) -> ColumnElement[bool]:
    return (resting_carriers.c.kind == kind) & (resting_carriers.c.carrier == carrier)
