"""Purchases, messages, refunds, reversals and adjustments of one pool, in any order: what it holds and owes is right.

The rules do things to a real database by the tasks, and to a few lines of arithmetic. After each step the two are
compared, and an audit finds nothing.
"""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from models.messages.fields import KINDS, Kind
from tasks.context import Json
from tests.audits import audit_everything
from tests.factories import email_job, purchase_order, sms_job
from tests.fakes import ACCEPTED, NEVER, NOON, FakeCarrier, answer, make_context
from tests.properties.inputs import text_of
from tests.properties.machines import Opening, fresh_postgres, fresh_sqlite, run
from tests.servers import PostgresServer

Counts = dict[Kind, int]

ORDERS = [f"order-{number}" for number in range(4)]
counts = st.fixed_dictionaries({}, optional=dict.fromkeys(KINDS, st.integers(1, 6)))
some_counts = counts.filter(bool)
signed_counts = st.fixed_dictionaries({}, optional=dict.fromkeys(KINDS, st.integers(-4, 4).filter(bool))).filter(bool)


class Corrections(RuleBasedStateMachine):
    """Everything that moves the credits of ann, which ben uses, except a change of owner."""

    def __init__(self, opening: Opening) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.database = self.stack.enter_context(opening())
        self.carriers: dict[Kind, FakeCarrier] = {kind: FakeCarrier() for kind in KINDS}
        self.context = make_context(self.database, **self.carriers)
        self.numbers, self.audits = itertools.count(1), itertools.count()
        self.holds: Counts = dict.fromkeys(KINDS, 0)
        self.owes: Counts = dict.fromkeys(KINDS, 0)
        self.left: dict[str, Counts] = {}
        """What is left to reverse of each order."""
        self.answers: dict[tuple[str, str], tuple[Json, Json]] = {}
        """What was done under each id of each task: the job and its answer."""

    def teardown(self) -> None:
        """Close the database."""
        self.stack.close()

    @initialize()
    def set_up(self) -> None:
        """Let ben use the credits of ann, who may adjust them."""
        rights = ["view_user_list", "edit_user", "adjust_credits"]
        self._do("roles.save", {"organization": "north", "role": "admin", "rights": rights})
        for user in ("ann", "ben"):
            saved = {"user_id": user, "organization": "north", "name": user, "email": f"{user}@b.test", "role": "admin"}
            self._do("users.save", saved)
        self._do("credits.set_owner", {"change_id": "change-1", "actor": "ann", "user": "ben", "owner": "ann"})
        self.purchase("order-0", "ann", {"email": 5, "sms": 3})

    @rule(order_id=st.sampled_from(ORDERS), buyer=st.sampled_from(["ann", "ben"]), bought=some_counts)
    def purchase(self, order_id: str, buyer: str, bought: Counts) -> None:
        """Buy credits. What is owed is paid first."""
        job = purchase_order(order_id, buyer, **bought)
        if not self._is_new("credits.purchase", order_id, job):
            return
        self._done("credits.purchase", order_id, job, credits=self._both(bought))
        self.left[order_id] = self._both(bought)
        for kind, count in bought.items():
            paid = min(self.owes[kind], count)
            self.owes[kind] -= paid
            self.holds[kind] += count - paid

    @rule(kind=st.sampled_from(KINDS), sender=st.sampled_from(["ann", "ben"]), size=st.integers(1, 3),
          accepted=st.booleans())  # fmt: skip
    def send(self, kind: Kind, sender: str, size: int, *, accepted: bool) -> None:
        """Send a message that costs so many credits. What the carrier refuses is given back, whatever is owed."""
        self.carriers[kind].script = [ACCEPTED if accepted else NEVER]
        job_id = f"job-{next(self.numbers)}"
        job = (
            email_job(job_id, sender, to=[f"{number}@b.test" for number in range(size)])
            if kind == "email"
            else sms_job(job_id, sender, text=text_of(size))
        )
        affordable = self.holds[kind] >= size
        self.holds[kind] -= size if affordable and accepted else 0
        expected = ("sent" if accepted else "failed") if affordable else "refused"
        assert self._do(f"{kind}.send", job)["status"] == expected

    @rule(
        number=st.integers(1, 8),
        order_id=st.sampled_from([*ORDERS, "none"]),
        how=st.sampled_from(["refund", "chargeback"]),
        asked=st.one_of(st.none(), some_counts),
        buyer=st.sampled_from([None, None, "ann", "ben"]),
    )
    def reverse(self, number: int, order_id: str, how: str, asked: Counts | None, buyer: str | None) -> None:
        """Reverse an order, or a part of it, under an id that may have been used before."""
        reversal_id = f"reversal-{number}"
        job: Json = {"reversal_id": reversal_id, "order_id": order_id, "kind": how, "reason": "So."}
        job |= {name: value for name, value in (("credits", asked), ("buyer", buyer)) if value}
        if self._was_done("credits.reverse", reversal_id, job):
            return
        placed = self.answers.get(("credits.purchase", order_id))
        if placed is None or buyer not in (None, placed[1]["buyer"]):
            assert self._do("credits.reverse", job)["reason"] == "not_found"
            return
        if not self._is_new("credits.reverse", reversal_id, job):
            return
        left = self.left[order_id]
        taken = {kind: min(left[kind], left[kind] if asked is None else asked.get(kind, 0)) for kind in KINDS}
        if not any(taken.values()):
            assert self._do("credits.reverse", job)["reason"] == "nothing_remaining"
            return
        spent = {kind: max(0, taken[kind] - self.holds[kind]) for kind in KINDS}
        self._done("credits.reverse", reversal_id, job, credits=taken, debt=spent, owner="ann")
        for kind in KINDS:
            left[kind] -= taken[kind]
            self.holds[kind] -= taken[kind] - spent[kind]
            self.owes[kind] += spent[kind]

    @rule(number=st.integers(1, 6), given=signed_counts)
    def adjust(self, number: int, given: Counts) -> None:
        """Give credits or take some by hand, under an id that may have been used before."""
        adjustment_id = f"adjustment-{number}"
        job = {"adjustment_id": adjustment_id, "actor": "ben", "owner": "ann", "credits": given, "reason": "So."}
        if not self._is_new("credits.adjust", adjustment_id, job):
            return
        if any(self.holds[kind] + count < 0 for kind, count in given.items()):
            assert self._do("credits.adjust", job)["reason"] == "insufficient_credits"
            return
        self._done("credits.adjust", adjustment_id, job, credits=self._both(given))
        for kind, count in given.items():
            self.holds[kind] += count

    @invariant()
    def the_pool_holds_and_owes_what_it_must(self) -> None:
        """As everybody sees it, and the statement ends there too."""
        if not self.answers:
            return
        seen = self._do("views.overview", {"viewer": "ben"})
        assert (seen["remaining"], seen["debt"]) == (self.holds, self.owes)
        accounts = self._do("views.statement", {"viewer": "ben"})["accounts"]
        newest = {each["kind"]: each["entries"][0] for each in accounts}
        assert {kind: (entry["balance_after"], entry["debt_after"]) for kind, entry in newest.items()} == {
            kind: (self.holds[kind], self.owes[kind]) for kind in KINDS
        }

    @invariant()
    def no_order_gives_back_more_than_it_brought(self) -> None:
        """What is reversed and what is left are together what was bought."""
        if not self.answers:
            return
        rows = self._do("views.orders", {"viewer": "ann"})["rows"]
        assert {
            row["order_id"]: {kind: row["credits"][kind] - row["reversed"][kind] for kind in KINDS} for row in rows
        } == self.left

    @invariant()
    def an_audit_finds_nothing(self) -> None:
        """It runs every fourth time, for it is slow."""
        if next(self.audits) % 4:
            return
        with self.database.snapshot() as connection:
            assert audit_everything(connection, NOON) == []

    def _do(self, task: str, job: Json) -> Json:
        return answer(self.context, task, job)

    def _was_done(self, task: str, key: str, job: Json) -> bool:
        """Whether the very same job was done; then it gets the first answer."""
        made, first = self.answers.get((task, key), (None, None))
        if made != job:
            return False
        assert self._do(task, job) == first
        return True

    def _is_new(self, task: str, key: str, job: Json) -> bool:
        """Whether the id is new; other content under an id that was used is refused."""
        if self._was_done(task, key, job):
            return False
        if (task, key) in self.answers:
            assert self._do(task, job)["reason"] == "conflicting_job"
            return False
        return True

    def _done(self, task: str, key: str, job: Json, **expected: Any) -> None:
        answered = self._do(task, job)
        assert answered["status"] == "done"
        assert {name: answered[name] for name in expected} == expected
        self.answers[task, key] = job, answered

    @staticmethod
    def _both(counted: Counts) -> Counts:
        return {kind: counted.get(kind, 0) for kind in KINDS}


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield
    structlog.contextvars.clear_contextvars()


@pytest.mark.timeout(600)
def test_any_history_leaves_the_right_debt_on_sqlite(migrated_sqlite: Path, tmp_path: Path) -> None:
    run(Corrections, partial(fresh_sqlite, migrated_sqlite, tmp_path / "history.db", 1), 6)


@pytest.mark.timeout(600)
def test_any_history_leaves_the_right_debt_on_postgresql(migrated_postgres: PostgresServer) -> None:
    run(Corrections, partial(fresh_postgres, migrated_postgres, 1), 3)
