"""Whatever was charged, refunded and rolled up in whatever order, usage is what all charges add up to."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from models.database.engine import Database
from models.errors import Refused
from models.messages.views import ViewUsage
from models.reports.rollup import roll_up_usage
from models.sends.charges import Charge, State
from models.sends.charging import charge_jobs
from models.sends.outcomes import Settlement
from models.sends.settling import settle
from tests.audits import audit_everything
from tests.factories import buy, email_job, ledger_job, save_people, share, sms_job
from tests.fakes import NOON, Clock
from tests.properties.machines import fresh_postgres, fresh_sqlite, run
from tests.servers import PostgresServer
from tests.spending import usage_of_all_charges, usage_shown

PEOPLE = ["john", "peter", "mary"]
LEASE = timedelta(days=300)
people = st.sampled_from(PEOPLE)
moments = st.none() | st.integers(0, 24 * 12).map(lambda hours: NOON.replace(hour=0) + timedelta(hours=hours / 2))


class Spending(RuleBasedStateMachine):
    """Everything that can happen to usage: jobs are charged, settled and rolled up, and people look at it."""

    def __init__(self, open_database: Callable[[], Any]) -> None:
        super().__init__()
        self._opened = open_database()
        self.database: Database = self._opened.__enter__()
        self.clock = Clock()
        self.unsettled: list[Charge] = []
        self.count = 0
        self.views = itertools.count()

    def teardown(self) -> None:
        self._opened.__exit__(None, None, None)

    @initialize()
    def set_up(self) -> None:
        """Make three people of one organization, each with credits."""
        save_people(self.database)
        for person in PEOPLE:
            buy(self.database, person, email=40, sms=20)

    @rule(senders=st.lists(people, min_size=1, max_size=4), size=st.integers(1, 3), is_email=st.booleans())
    def charge(self, senders: list[str], size: int, *, is_email: bool) -> None:
        """Charge jobs in one batch to whoever pays for them now; some can no longer be paid."""
        jobs = []
        for sender in senders:
            self.count += 1
            email = email_job(f"job-{self.count}", sender, to=[f"u{place}@x.test" for place in range(size)])
            jobs.append(email if is_email else sms_job(f"job-{self.count}", sender, text="a" * 150 * size))
        charged = self.database.write(
            lambda connection: charge_jobs(
                connection,
                [ledger_job(job) for job in jobs],
                lease_id=f"h{self.count}",
                now=self.clock.now,
                lease_until=self.clock.now + LEASE,
            )
        )
        self.unsettled += [charge for charge in charged if charge.is_new]

    @precondition(lambda self: self.unsettled)
    @rule(place=st.integers(0, 9), refunded_share=st.sampled_from([0, 0.5, 1]))
    def settle(self, place: int, refunded_share: float) -> None:
        """A message is sent to all recipients, to some, or to none. A text message has one."""
        charge = self.unsettled.pop(place % len(self.unsettled))
        refund = int(charge.credits * (refunded_share if charge.kind == "email" else int(refunded_share)))
        state = State.FAILED if refund == charge.credits else State.SENT
        refused = (
            {f"refused-{number}@example.org": "550" for number in range(refund)} if charge.kind == "email" else None
        )
        settlement = Settlement(charge=charge, state=state, refund=refund, recipients_refused=refused or None)
        self.database.write(lambda connection: settle(connection, [settlement], self.clock.now, keep_dead=False))

    @rule(user=people, owner=people)
    def set_owner(self, user: str, owner: str) -> None:
        """A user spends the credits of another owner from now on."""
        try:
            share(self.database, user, owner, now=self.clock.now)
        except Refused:
            assume(False)

    @rule(account_batch=st.integers(1, 6), entry_batch=st.integers(1, 12))
    def roll_up(self, account_batch: int, entry_batch: int) -> None:
        """A part of the entries is rolled up, or all of them."""
        roll_up = partial(roll_up_usage, account_batch=account_batch, entry_batch=entry_batch)
        assert self.database.write(roll_up) <= entry_batch

    @rule(entry_batch=st.integers(1, 12))
    def crash_while_rolling_up(self, entry_batch: int) -> None:
        """A part of the entries is rolled up, and the transaction is lost."""
        with self.database.engine.connect() as connection:
            roll_up_usage(connection, entry_batch=entry_batch)
            connection.rollback()

    @rule(hours=st.sampled_from([1, 5, 24, 50]))
    def let_time_pass(self, hours: int) -> None:
        """Hours or days pass."""
        self.clock.forward(timedelta(hours=hours))

    @rule(
        viewer=people,
        of=st.sampled_from(["owner", "self"]),
        by=st.sampled_from(["day", "message"]),
        since=moments,
        until=moments,
    )
    def view(self, **fields: Any) -> None:
        """Somebody looks at the usage of some span of time."""
        self._compare(ViewUsage.model_construct(page=1, **fields))

    @invariant()
    def everybody_sees_what_all_charges_add_up_to(self) -> None:
        """Another person looks each time: at their pool, or at their own messages."""
        number = next(self.views)
        if self.count:
            of = "self" if number // len(PEOPLE) % 2 else "owner"
            self._compare(ViewUsage(viewer=PEOPLE[number % len(PEOPLE)], of=of))  # type: ignore[arg-type]

    def _compare(self, view: ViewUsage) -> None:
        with self.database.snapshot() as connection:
            assert usage_shown(connection, view) == usage_of_all_charges(connection, view)

    @rule()
    def audit(self) -> None:
        """An audit of the whole history finds nothing."""
        with self.database.snapshot() as connection:
            assert audit_everything(connection, self.clock.now) == []


@pytest.mark.timeout(600)
def test_any_history_leaves_usage_exact_on_sqlite(migrated_sqlite: Path, tmp_path: Path) -> None:
    run(
        Spending,
        lambda: fresh_sqlite(migrated_sqlite, tmp_path / "usage.db", pool_size=2),
        8,
        HealthCheck.filter_too_much,
    )


@pytest.mark.timeout(600)
def test_any_history_leaves_usage_exact_on_postgresql(migrated_postgres: PostgresServer) -> None:
    run(Spending, lambda: fresh_postgres(migrated_postgres, pool_size=2), 3, HealthCheck.filter_too_much)
