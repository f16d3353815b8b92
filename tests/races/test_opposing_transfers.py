"""Several processes move credits into and out of three balances, in batches that name all users in any order."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from models.errors import Reason
from models.sends.charges import Charge, SendJob, State
from models.sends.charging import charge_jobs
from models.sends.outcomes import Settlement
from models.sends.settling import settle
from tasks import sending
from tasks.context import Context
from tests.races.racing import (
    Start,
    balance,
    buy,
    deadlocks,
    email_from,
    findings,
    race,
    save_users,
    share,
    states,
    utc_now,
    worker,
)

OWNERS = {"olga": ["anna", "mary", "paul"], "otto": ["bert", "lena", "zoe"], "omar": ["cleo", "nina", "tom"]}
"""Three owners and their credit users. Their names alternate in the alphabet, and so do the locks that are taken."""
ORGANIZATIONS = {"olga": "north", "otto": "north", "omar": "south"}
SENDERS = [person for owner, credit_users in OWNERS.items() for person in (owner, *credit_users)]
BATCH = 20
JOBS = 300
"""How many jobs each process has. A third of their ids are common to all processes."""
BOUGHT_BEFORE, PURCHASES = 40, 30
"""Credits that each owner has before the race, and credits that each of two processes buys one by one during it.

The 300 jobs of an owner keep about 150 credits. So some jobs are charged and some refused, whichever process is faster.
"""


@dataclass
class Flow:
    """What one process moved, by payer."""

    charged: Counter[str] = field(default_factory=Counter)
    refunded: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)


@pytest.mark.timeout(600)
def test_opposing_batches_move_every_credit_once(database_url: str) -> None:
    """Four processes charge, settle and refund in batches, and two buy. What they report is what the accounts show."""
    with worker(database_url) as context:
        for owner, credit_users in OWNERS.items():
            save_users(context, owner, *credit_users, organization=ORGANIZATIONS[owner])
            share(context, owner, *credit_users)
            buy(context, owner, email=BOUGHT_BEFORE)

        flows = race(
            *((_charge_and_settle, database_url, number) for number in range(4)),
            *((_buy_for_all, database_url, number) for number in range(2)),
        )[:4]

        assert deadlocks(context) == 0
        assert findings(context) == []
        refused = set().union(*(flow.refused for flow in flows))
        assert {owner: balance(context, owner) for owner in OWNERS} == {
            owner: BOUGHT_BEFORE + 2 * PURCHASES - sum(flow.charged[owner] - flow.refunded[owner] for flow in flows)
            for owner in OWNERS
        }
        assert states(context) == {
            ("sent", None): sum((flow.charged - flow.refunded).total() for flow in flows),
            ("failed", "carrier_refused"): sum(flow.refunded.total() for flow in flows),
            ("refused", "insufficient_credits"): len(refused),
        }
    assert all(sum(flow.charged[owner] for flow in flows) for owner in OWNERS)
    assert refused


def _charge_and_settle(start: Start, url: str, number: int) -> Flow:
    """Charge batch after batch, and refund half of the new charges."""
    draw = random.Random(number)
    jobs = _jobs(number)
    draw.shuffle(jobs)
    flow = Flow()
    with worker(url) as context:
        start()
        for first in range(0, len(jobs), BATCH):
            batch = jobs[first : first + BATCH]
            now, charges = _charge(context, batch, f"{number}-{first}")
            assert [charge.job_id for charge in charges] == [job.job_id for job in batch]
            settlements = [_settlement(charge, refunded=draw.random() < 0.5) for charge in charges if charge.is_new]
            draw.shuffle(settlements)
            counted = context.database.write(lambda connection: settle(connection, settlements, now, keep_dead=False))  # noqa: B023  run at once
            assert len(counted) == len(settlements)
            _note(flow, charges, settlements)
    return flow


def _charge(context: Context, batch: list[SendJob], lease_id: str) -> tuple[datetime, list[Charge]]:
    now = utc_now()
    lease_until = now + context.retry_policy.lease
    return now, context.database.write(
        lambda connection: charge_jobs(connection, batch, lease_id=lease_id, now=now, lease_until=lease_until)
    )


def _jobs(number: int) -> list[SendJob]:
    """Give jobs of all senders; every third has an id that all processes use."""
    return [
        sending.as_send_job(
            email_from(f"job-{place}" if place % 3 == 0 else f"job-{place}-of-{number}", SENDERS[place % len(SENDERS)]),
        )
        for place in range(JOBS)
    ]


def _settlement(charge: Charge, *, refunded: bool) -> Settlement:
    if refunded:
        return Settlement(
            charge=charge, state=State.FAILED, reason=Reason.CARRIER_REFUSED, detail="No.", refund=charge.credits
        )
    return Settlement(charge=charge, state=State.SENT)


def _note(flow: Flow, charges: Sequence[Charge], settlements: Sequence[Settlement]) -> None:
    for settlement in settlements:
        flow.charged[settlement.charge.payer or "nobody"] += settlement.charge.credits
        flow.refunded[settlement.charge.payer or "nobody"] += settlement.refund
    flow.refused |= {charge.job_id for charge in charges if charge.state == State.REFUSED}


def _buy_for_all(start: Start, url: str, number: int) -> None:
    """Buy for the owners in turn, through any of their credit users."""
    draw = random.Random(10 + number)
    with worker(url) as context:
        start()
        for place in range(PURCHASES):
            for owner, credit_users in OWNERS.items():
                buyer = draw.choice([owner, *credit_users])
                buy(context, buyer, email=1, order_id=f"order-{number}-{place}-{owner}")
