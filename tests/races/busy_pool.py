"""One pool that several connections charge without a pause, while owners change and users are saved.

`python -m tests.races.busy_pool` measures at full size what the tests try small.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from models.database.migrations import migrate
from models.ids import new_id
from models.messages.billing import SaveUser, SetOwner
from models.sends.charges import SendJob
from models.sends.charging import charge_jobs
from tasks import billing
from tasks.context import Context
from tests.races.racing import Start, balance, buy, findings, make_signal, race, save_users, share, utc_now, worker
from tests.servers import PostgresServer

OWNER, OTHER_OWNER = "olga", "otto"
CREDIT_USERS = [f"user-{number}" for number in range(20)]
BATCH = 100
RICH = 10_000_000


@dataclass(frozen=True)
class Load:
    """What one connection has charged: when each of its batches was committed, and how many credits they cost."""

    committed: list[float]
    credits: int


@dataclass(frozen=True)
class Calls:
    """When each of the calls of one connection began, and how long it took, in seconds."""

    began: list[float]
    took: list[float]

    def percentile(self, percent: int) -> float:
        """So many percent of the calls took no longer than this, in seconds."""
        return statistics.quantiles(self.took, n=100, method="inclusive")[percent - 1]

    def __str__(self) -> str:
        p50, p99 = (self.percentile(percent) * 1_000 for percent in (50, 99))
        return f"{len(self.took)} calls: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(self.took) * 1_000:.1f} ms"


@dataclass(frozen=True)
class Measured:
    """What happened in one race."""

    loads: list[Load]
    changes: Calls
    saves: Calls
    multixacts: int
    spent: int
    """What the balances say was spent."""

    def __str__(self) -> str:
        return f"owner changes: {self.changes}\nuser saves: {self.saves}"

    @property
    def charged(self) -> int:
        """How many credits were charged."""
        return sum(load.credits for load in self.loads)


def measure(url: str, *, connections: int, calls: int, charges: int = 0) -> Measured:
    """Let so many connections charge one pool until all calls are done, and so many charges are made.

    Half of the credit users change their owner back and forth meanwhile, and all are saved again and again.
    """
    calls_done = make_signal(), make_signal()
    with worker(url) as context:
        save_users(context, OWNER, OTHER_OWNER, *CREDIT_USERS)
        share(context, OWNER, *CREDIT_USERS)
        for owner in (OWNER, OTHER_OWNER):
            buy(context, owner, email=RICH)
        before = next_multixact(context)
        share_of_charges = -(-charges // connections)
        *loads, changes, saves = race(
            *((charge_without_a_pause, url, calls_done, share_of_charges) for _ in range(connections)),
            (change_owners, url, calls_done[0], calls),
            (save_again, url, calls_done[1], calls),
        )
        spent = 2 * RICH - balance(context, OWNER) - balance(context, OTHER_OWNER)
        return Measured(loads, changes, saves, next_multixact(context) - before, spent)


def charge_without_a_pause(start: Start, url: str, calls_done: tuple[Event, Event], charges: int) -> Load:
    """Charge batch after batch of all credit users, until the calls are done and so many charges are made."""
    committed: list[float] = []
    with worker(url) as context:
        start()
        while len(committed) * BATCH < charges or not all(done.is_set() for done in calls_done):
            _charge_batch(context)
            committed.append(time.monotonic())
    return Load(committed, len(committed) * BATCH)


def _charge_batch(context: Context) -> None:
    lease_id, now = new_id(), utc_now()
    jobs = [
        SendJob(
            job_id=f"{lease_id}-{place}",
            task="email.send",
            kind="email",
            sender=CREDIT_USERS[place % len(CREDIT_USERS)],
            credits=1,
            digest=lease_id,
            content={"text": "There is none."},
        )
        for place in range(BATCH)
    ]
    lease_until = now + context.retry_policy.lease
    charged = context.database.write(
        lambda connection: charge_jobs(connection, jobs, lease_id=lease_id, now=now, lease_until=lease_until)
    )
    assert all(charge.is_new for charge in charged)


def change_owners(start: Start, url: str, done: Event, calls: int) -> Calls:
    """Let credit users spend the other owner's credits, and the first one's again, one after the other."""
    movers = CREDIT_USERS[::2]

    def change(context: Context, number: int) -> None:
        user, round_number = movers[number % len(movers)], number // len(movers)
        owner = OWNER if round_number % 2 else OTHER_OWNER
        billing.set_owner(context, SetOwner(change_id=f"change-{number}", actor=OWNER, user=user, owner=owner))

    return _timed(start, url, done, calls, change)


def save_again(start: Start, url: str, done: Event, calls: int) -> Calls:
    """Save credit users under new names, one after the other."""

    def save(context: Context, number: int) -> None:
        user = CREDIT_USERS[number % len(CREDIT_USERS)]
        name, email = f"Name {number}", f"{user}@example.org"
        billing.save_user(context, SaveUser(user_id=user, organization="north", name=name, email=email, role="admin"))

    return _timed(start, url, done, calls, save)


def _timed(start: Start, url: str, done: Event, calls: int, call: Callable[[Context, int], None]) -> Calls:
    """Make so many calls, a moment apart, and tell when they are `done`."""
    began, took = [], []
    with worker(url) as context:
        try:
            start()
            for number in range(calls):
                time.sleep(0.01)
                began.append(time.monotonic())
                call(context, number)
                took.append(time.monotonic() - began[-1])
        finally:
            done.set()
    return Calls(began, took)


def next_multixact(context: Context) -> int:
    """Give the number of the next MultiXact: PostgreSQL has made those before it, for rows that several have locked."""
    with context.database.engine.connect() as connection:
        connection.exec_driver_sql("CHECKPOINT")
        query = "SELECT next_multixact_id::text::bigint FROM pg_control_checkpoint()"
        return int(connection.exec_driver_sql(query).scalar_one())


def main() -> None:
    """Measure on a server of its own, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.races.busy_pool", description=__doc__)
    parser.add_argument("--connections", type=int, default=6)
    parser.add_argument("--calls", type=int, default=100, help="owner changes, and as many user saves")
    parser.add_argument("--charges", type=int, default=0, help="at least so many, also after the last call")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, PostgresServer(Path(folder), durable=True) as server:
        server.create_database("busy")
        migrate(server.url("busy"))
        began = time.monotonic()
        seen = measure(server.url("busy"), connections=asked.connections, calls=asked.calls, charges=asked.charges)
        took = time.monotonic() - began
        sys.stdout.write(
            f"{seen}\n{seen.charged:,} charges in {took:.0f} s; balances say {seen.spent:,}\n"
            f"MultiXacts: {seen.multixacts}\n"
        )
        with worker(server.url("busy")) as context:
            sys.stdout.write(f"findings: {findings(context)}\n")


if __name__ == "__main__":
    main()
