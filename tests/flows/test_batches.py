"""Jobs that wait at the same time, taken by a real worker together: each has its own end, and its own events."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import func, select

from models.database.schema import charges
from models.sends.charges import State
from tests.flows.conftest import OpenHouse
from tests.flows.house import Deployment, until
from tests.flows.outside import Json
from tests.flows.test_privacy import watching

pytestmark = pytest.mark.timeout(240)


@contextmanager
def standing_still(house: Deployment) -> Iterator[None]:
    """Let jobs pile up: the worker takes none within the block."""
    os.kill(house.worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(house.worker.pid, signal.SIGCONT)


def email(sender: str, job_id: str, **fields: object) -> Json:
    to = f"{job_id}@customer.example"
    return {"job_id": job_id, "sender": sender, "to": to, "subject": "Hello", "text": "Hello", **fields}


def largest_batch(house: Deployment) -> int:
    """How many jobs were charged in one transaction, at most: those have one time."""
    with house.database.snapshot() as connection:
        counts = connection.execute(select(func.count(charges.c.job_id)).group_by(charges.c.created_at)).scalars()
        return max(counts)


def test_one_bad_job_fails_alone_and_the_batch_around_it_is_sent(open_house: OpenHouse) -> None:
    """Refused, conflicting, duplicate, unaffordable and unreadable jobs among a hundred good ones."""
    with open_house() as house:
        owner, member = house.people(email=104)
        poor, _ = house.people(email=1)
        good = [f"good-{number}" for number in range(100)]
        house.send("email.send", email(member, "taken"))
        house.wait_until_final("taken")
        house.mail.will_say("refused", "550 5.7.1 Not this one")

        with standing_still(house):
            for number, job_id in enumerate(good):
                house.send("email.send", email(member, job_id))
                if number == 30:
                    house.send("email.send", email(member, "refused"))
                    house.send("email.send", email(member, "taken", text="Something else"), "conflicts")
                    house.send("email.send", email(member, "invalid", colour="red"), "invalid")
                    house.send("email.send", email("nobody-at-all", "stranger"))
                    house.send("email.send", email(poor, "dear", to=["a@customer.example", "b@customer.example"]))
                    house.send("email.send", email(member, "good-7"))
                    house.producer.send_raw("email.send", [1, 2, 3])
        ended = house.wait_until_final(*good, "refused", "stranger", "dear")
        house.wait_until_idle()

        assert {ended[job_id].state for job_id in good} == {State.SENT}
        assert {job_id: (ended[job_id].state, ended[job_id].reason) for job_id in ("refused", "stranger", "dear")} == {
            "refused": (State.FAILED, "carrier_refused"),
            "stranger": (State.REFUSED, "unknown_user"),
            "dear": (State.REFUSED, "insufficient_credits"),
        }
        reasons = {row.task_id: row.reason for row in house.refusals(["conflicts", "invalid"])}
        assert reasons == {"conflicts": "conflicting_job", "invalid": "invalid_job"}
        assert Counter(letter.job_id for letter in house.mail.letters) == Counter([*good, "taken"])
        assert house.remaining(owner)["email"] == 3
        assert largest_batch(house) >= 50
        assert house.findings() == []
        assert house.worker.runs()


def test_each_job_of_a_batch_has_its_own_events(open_house: OpenHouse) -> None:
    """Flower shows each with its name, its state and its time."""
    with open_house() as house, watching(house.producer.app) as events:
        _, member = house.people(email=60)

        with standing_still(house):
            ids = [house.send("email.send", email(member, f"job-{number}")) for number in range(60)]
        house.wait_until_final(*(f"job-{number}" for number in range(60)))

        def seen() -> bool:
            kinds = Counter((event["type"], event["uuid"]) for event in list(events) if event.get("uuid") in set(ids))
            wanted = ("task-received", "task-started", "task-succeeded")
            return kinds == Counter((kind, task_id) for task_id in ids for kind in wanted)

        until(seen, "each job was received, started and succeeded once")
        succeeded = [event for event in events if event["type"] == "task-succeeded" and event["uuid"] in set(ids)]
        assert all(event["runtime"] > 0 and "status=sent" in event["result"] for event in succeeded)
        assert largest_batch(house) >= 30


def test_a_conversation_that_hangs_holds_up_no_other_job(open_house: OpenHouse) -> None:
    with open_house() as house:
        _, member = house.people(email=60)
        house.mail.hold_one("slow")

        with standing_still(house):
            house.send("email.send", email(member, "slow"))
            for number in range(40):
                house.send("email.send", email(member, f"job-{number}"))
        house.wait_until_final(*(f"job-{number}" for number in range(40)))
        slow = house.charges(["slow"])["slow"]
        house.mail.let_go()
        house.wait_until_final("slow")

        assert slow.state is State.SENDING


def test_a_campaign_does_not_hold_up_a_single_mail_of_somebody_else(open_house: OpenHouse) -> None:
    with open_house() as house:
        _, big = house.people(email=400)
        _, small = house.people(email=1)

        with standing_still(house):
            for number in range(400):
                house.send("email.send", email(big, f"campaign-{number}"))
            house.send("email.send", email(small, "single"))
        house.wait_until_final("single")
        before_it = [letter.job_id for letter in house.mail.letters].index("single")
        house.wait_until_final(*(f"campaign-{number}" for number in range(400)))

        assert before_it <= 200  # what the worker may have had in hand, beside its own batch


def test_a_revoked_job_and_one_with_a_callback_are_celery_s_affair(open_house: OpenHouse) -> None:
    """The first is not sent; the second has its callback enqueued once it is sent."""
    with open_house() as house:
        owner, member = house.people(email=10)
        house.producer.control("revoke", task_id="unwanted")
        link = house.producer.app.signature("views.overview", args=[{"viewer": owner}], immutable=True, queue="views")

        with standing_still(house):
            house.send("email.send", email(member, "unwanted"), "unwanted")
            house.send("email.send", email(member, "wanted"))
            house.producer.app.send_task(
                "email.send", args=[email(member, "linked")], queue="email", link=link.set(task_id="the-callback")
            )
        house.wait_until_final("wanted", "linked")
        until(lambda: house.result_keys("the-callback"), "the callback was answered")

        assert house.charges(["unwanted"]) == {}
        assert sorted(letter.job_id for letter in house.mail.letters) == ["linked", "wanted"]


def test_a_worker_that_is_told_to_end_hands_back_what_it_has_not_begun(open_house: OpenHouse) -> None:
    """What is being said is said to its end; the rest of the batch waits, and is nobody's."""
    with open_house(connections=2) as house:
        _, member = house.people(email=40)
        house.mail.hold()

        with standing_still(house):
            ids = [f"job-{number}" for number in range(40)]
            for job_id in ids:
                house.send("email.send", email(member, job_id))
        until(lambda: sum(house.mail.offers.values()) >= 2, "both conversations are held")
        house.worker.tell()
        until(lambda: "Warm shutdown" in house.worker.said, "the worker has heard it")
        house.mail.let_go()
        assert house.worker.wait() == 0

        states = Counter(charge.state for charge in house.charges(ids).values())
        assert set(states) == {State.SENT, State.WAITING}
        assert states[State.WAITING] > 0
        assert house.redis.hlen("unacked") == 0
        assert house.findings() == []
