"""One job that many processes send at once becomes one message and one charge, in each organization that has its id."""

import random
from collections import Counter

import pytest

from models.sends.charges import Charge
from tests.fakes import send
from tests.races.racing import (
    RecordingCarrier,
    Sent,
    Start,
    balance,
    buy,
    deadlocks,
    email_from,
    findings,
    race,
    save_users,
    states,
    worker,
)

ROUNDS = 5
CREDITS = 100
BATCHES, BATCH = 10, 50
OWNERS = {"olga": "north", "omar": "south"}
"""Owners who have jobs of the same ids, and their organizations."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("database", "processes", "times"), [("postgres_url", 8, 50), ("sqlite_url", 4, 20)])
def test_a_job_sent_many_times_at_once_is_charged_and_delivered_once(
    request: pytest.FixtureRequest, database: str, processes: int, times: int
) -> None:
    """Every round has a job of its own."""
    url = request.getfixturevalue(database)
    with worker(url) as context:
        save_users(context, "olga")
        buy(context, "olga", email=CREDITS)

        sent = race(*((_send_again, url, times // processes + (n < times % processes)) for n in range(processes)))

        assert states(context) == {("sent", None): ROUNDS}
        assert balance(context, "olga") == CREDITS - ROUNDS
        assert findings(context) == []
    jobs = [f"job-{number}" for number in range(ROUNDS)]
    assert Counter(job_id for result in sent for job_id in result.delivered) == dict.fromkeys(jobs, 1)
    charged = [charge for result in sent for charge in result.charges]
    assert Counter(charge.job_id for charge in charged) == dict.fromkeys(jobs, times)
    assert {charge.payer for charge in charged} == {"olga"}
    assert {charge.state for charge in charged} <= {"sent", "sending"}
    assert {charge.reason for charge in charged} == {None}


@pytest.mark.timeout(600)
def test_the_same_batch_sent_by_three_workers_at_once_is_charged_once_in_each_organization(database_url: str) -> None:
    """Its jobs come in another order to each worker, and every id is used by two organizations."""
    with worker(database_url) as context:
        for owner, organization in OWNERS.items():
            save_users(context, owner, organization=organization)
            buy(context, owner, email=BATCHES * BATCH)

        sent = race(*((_send_batches, database_url, number) for number in range(3)))

        assert states(context) == {("sent", None): len(OWNERS) * BATCHES * BATCH}
        assert {owner: balance(context, owner) for owner in OWNERS} == dict.fromkeys(OWNERS, 0)
        assert deadlocks(context) == 0
        assert findings(context) == []
    job_ids = [f"job-{batch}-{place}" for batch in range(BATCHES) for place in range(BATCH)]
    assert Counter(job_id for result in sent for job_id in result.delivered) == dict.fromkeys(job_ids, len(OWNERS))
    charged = Counter((charge.job_id, charge.sender, charge.payer) for result in sent for charge in result.charges)
    assert charged == {(job_id, owner, owner): len(sent) for job_id in job_ids for owner in OWNERS}


def _send_batches(start: Start, url: str, number: int) -> Sent:
    carrier, draw = RecordingCarrier(), random.Random(number)
    charged: list[Charge] = []
    with worker(url, carrier) as context:
        for batch in range(BATCHES):
            emails = [email_from(f"job-{batch}-{place}", owner) for place in range(BATCH) for owner in OWNERS]
            draw.shuffle(emails)
            start()
            charged += send(context, emails)
    return Sent(charged, carrier.job_ids)


def _send_again(start: Start, url: str, times: int) -> Sent:
    carrier = RecordingCarrier()
    charged: list[Charge] = []
    with worker(url, carrier) as context:
        for number in range(ROUNDS):
            start()
            for _ in range(times):
                charged += send(context, [email_from(f"job-{number}", "olga")])
    return Sent(charged, carrier.job_ids)
