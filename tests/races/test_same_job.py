"""One job that many processes send at once becomes one message and one charge."""

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
    email_from,
    findings,
    race,
    save_users,
    states,
    worker,
)

ROUNDS = 5
CREDITS = 100


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


def _send_again(start: Start, url: str, times: int) -> Sent:
    carrier = RecordingCarrier()
    charged: list[Charge] = []
    with worker(url, carrier) as context:
        for number in range(ROUNDS):
            start()
            for _ in range(times):
                charged += send(context, [email_from(f"job-{number}", "olga")])
    return Sent(charged, carrier.job_ids)
