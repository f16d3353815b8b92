"""Failed sign-ins slow down the next ones: by user, and by the address that they come from.

Every attempt counts as a failure until it has succeeded, so a thousand attempts at the same time are not a thousand
guesses. The waits are short, because whoever fails on purpose under somebody's name makes that person wait.
"""

import hashlib
import ipaddress
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, select, update

from models.database.schema import sign_in_failures
from models.database.statements import insert, lock_overdue

SLOTS = 65536
"""Slots into which users, and addresses, are hashed."""
FORGOTTEN_AFTER = timedelta(minutes=15)
"""How long a failure counts after the last one."""
IPV6_PREFIX = 64
"""The bits of an IPv6 address that count: the rest anybody can choose freely."""

Scope = Literal["user", "address"]


class _Limit(NamedTuple):
    """How many failures are free, and the longest wait after more of them, which begins at a second and doubles."""

    free: int
    wait_max_s: float


LIMITS: dict[Scope, _Limit] = {"user": _Limit(5, 60.0), "address": _Limit(20, 300.0)}


def count_attempt(connection: Connection, user_id: str, address: str, now: datetime) -> float:
    """Count an attempt to sign in as a failure. Returns 0, or the seconds to wait, in which case it does not count."""
    subjects = _subjects(user_id, address)
    failures = {subject: _failures(connection, *subject, now) for subject in subjects}
    wait_s = max(_wait_s(scope, *failures[scope, slot], now) for scope, slot in subjects)
    if wait_s > 0:
        return wait_s
    for (scope, slot), (count, _) in failures.items():
        connection.execute(update(sign_in_failures).where(_is(scope, slot)).values(failures=count + 1, last_at=now))
    return 0.0


def forgive_attempt(connection: Connection, user_id: str, address: str) -> None:
    """Take back an attempt that has succeeded. The user starts afresh; the address keeps its other failures.

    Otherwise somebody with a password of their own could guess those of others at any speed.
    """
    of_user, of_address = (_is(*subject) for subject in _subjects(user_id, address))
    connection.execute(update(sign_in_failures).where(of_user).values(failures=0))
    connection.execute(
        update(sign_in_failures)
        .where(of_address, sign_in_failures.c.failures > 0)
        .values(failures=sign_in_failures.c.failures - 1)
    )


def delete_old_failures(connection: Connection, now: datetime, limit: int) -> int:
    """Delete failures that count no more. Returns how many rows."""
    key = [sign_in_failures.c.scope, sign_in_failures.c.slot]
    found = lock_overdue(connection, key, sign_in_failures.c.last_at, now - FORGOTTEN_AFTER, limit)
    for scope, slot in found:
        connection.execute(delete(sign_in_failures).where(_is(scope, slot)))
    return len(found)


def _is(scope: str, slot: int) -> ColumnElement[bool]:
    return (sign_in_failures.c.scope == scope) & (sign_in_failures.c.slot == slot)


def _failures(connection: Connection, scope: Scope, slot: int, now: datetime) -> tuple[int, datetime]:
    """Lock a slot. Returns how many failures count, and when the last one was."""
    connection.execute(
        insert(connection, sign_in_failures)
        .values(scope=scope, slot=slot, failures=0, last_at=now)
        .on_conflict_do_nothing()
    )
    count, last_at = connection.execute(
        select(sign_in_failures.c.failures, sign_in_failures.c.last_at).where(_is(scope, slot)).with_for_update()
    ).one()
    return (0, now) if now - last_at > FORGOTTEN_AFTER else (count, last_at)


def _wait_s(scope: Scope, failures: int, last_at: datetime, now: datetime) -> float:
    limit = LIMITS[scope]
    if failures < limit.free:
        return 0.0
    wait_s = min(2.0 ** (failures - limit.free), limit.wait_max_s)
    return max(0.0, wait_s - (now - last_at).total_seconds())


def _subjects(user_id: str, address: str) -> tuple[tuple[Scope, int], tuple[Scope, int]]:
    return ("user", _slot(user_id)), ("address", _slot(_network(address)))


def _slot(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=2).digest()
    return int.from_bytes(digest, "big")


def _network(address: str) -> str:
    """Return the part of an address that belongs to one customer of a network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
