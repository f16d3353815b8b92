"""Jobs that a real worker takes in one batch: each has its own outcome, and its own events."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import func, select

from models.database.schema import charges
from models.sends.charges import State
from tests.flows.deployment import Deploy, Deployment, wait_until
from tests.flows.jobs import email_job
from tests.flows.outside import collected_events

pytestmark = pytest.mark.timeout(240)


@contextmanager
def stopped_worker(deployment: Deployment) -> Iterator[None]:
    """Stop the worker within the block, so that jobs gather on their queue."""
    os.kill(deployment.worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(deployment.worker.pid, signal.SIGCONT)


def largest_batch(deployment: Deployment) -> int:
    """Give the most jobs that were charged in one transaction: those have the same time."""
    with deployment.database.snapshot() as connection:
        counts = connection.execute(select(func.count(charges.c.job_id)).group_by(charges.c.created_at)).scalars()
        return max(counts)


def test_one_bad_job_fails_alone_and_the_rest_of_its_batch_is_sent(deploy: Deploy) -> None:
    """Refused, conflicting, duplicate, unaffordable and unreadable jobs come among a hundred good ones."""
    with deploy() as deployment:
        owner, member = deployment.people(email=104)
        poor, _ = deployment.people(email=1)
        good = [f"good-{number}" for number in range(100)]
        deployment.send("email.send", email_job("taken", member))
        deployment.wait_until_final("taken")
        deployment.mail_server.will_answer("refused", "550 5.7.1 Not this one")

        with stopped_worker(deployment):
            for number, job_id in enumerate(good):
                deployment.send("email.send", email_job(job_id, member))
                if number == 30:
                    deployment.send("email.send", email_job("refused", member))
                    deployment.send("email.send", email_job("taken", member, text="Something else"), "conflicts")
                    deployment.send("email.send", email_job("invalid", member, colour="red"), "invalid")
                    deployment.send("email.send", email_job("stranger", "nobody-at-all"))
                    deployment.send(
                        "email.send", email_job("dear", poor, to=["a@customer.example", "b@customer.example"])
                    )
                    deployment.send("email.send", email_job("good-7", member))
                    deployment.producer.send_raw("email.send", [1, 2, 3])
        ended = deployment.wait_until_final(*good, "refused", "stranger", "dear")
        deployment.wait_until_idle()

        assert {ended[job_id].state for job_id in good} == {State.SENT}
        assert {job_id: (ended[job_id].state, ended[job_id].reason) for job_id in ("refused", "stranger", "dear")} == {
            "refused": (State.FAILED, "carrier_refused"),
            "stranger": (State.REFUSED, "unknown_user"),
            "dear": (State.REFUSED, "insufficient_credits"),
        }
        reasons = {row.task_id: row.reason for row in deployment.refusals(["conflicts", "invalid"])}
        assert reasons == {"conflicts": "conflicting_job", "invalid": "invalid_job"}
        assert Counter(mail.job_id for mail in deployment.mail_server.mails) == Counter([*good, "taken"])
        assert deployment.remaining(owner)["email"] == 3
        assert largest_batch(deployment) >= 50
        assert deployment.findings() == []
        assert deployment.worker.is_running()


def test_each_job_of_a_batch_has_its_own_events(deploy: Deploy) -> None:
    """Flower shows each with its name, its state and its time."""
    with deploy() as deployment, collected_events(deployment.producer.app) as events:
        _, member = deployment.people(email=60)

        with stopped_worker(deployment):
            ids = [deployment.send("email.send", email_job(f"job-{number}", member)) for number in range(60)]
        deployment.wait_until_final(*(f"job-{number}" for number in range(60)))

        def has_all_events() -> bool:
            kinds = Counter((event["type"], event["uuid"]) for event in list(events) if event.get("uuid") in set(ids))
            wanted = ("task-received", "task-started", "task-succeeded")
            return kinds == Counter((kind, task_id) for task_id in ids for kind in wanted)

        wait_until(has_all_events, "each job was received, started and succeeded once")
        succeeded = [event for event in events if event["type"] == "task-succeeded" and event["uuid"] in set(ids)]
        assert all(event["runtime"] > 0 and "status=sent" in event["result"] for event in succeeded)
        assert largest_batch(deployment) >= 30


def test_a_mail_transaction_that_hangs_holds_up_no_other_job(deploy: Deploy) -> None:
    with deploy() as deployment:
        _, member = deployment.people(email=60)
        deployment.mail_server.hold_one("slow")

        with stopped_worker(deployment):
            deployment.send("email.send", email_job("slow", member))
            for number in range(40):
                deployment.send("email.send", email_job(f"job-{number}", member))
        deployment.wait_until_final(*(f"job-{number}" for number in range(40)))
        slow = deployment.charges(["slow"])["slow"]
        deployment.mail_server.release()
        deployment.wait_until_final("slow")

        assert slow.state is State.SENDING


def test_a_campaign_does_not_hold_up_an_email_of_another_sender(deploy: Deploy) -> None:
    with deploy() as deployment:
        _, big = deployment.people(email=400)
        _, small = deployment.people(email=1)

        with stopped_worker(deployment):
            for number in range(400):
                deployment.send("email.send", email_job(f"campaign-{number}", big))
            deployment.send("email.send", email_job("single", small))
        deployment.wait_until_final("single")
        before_it = [mail.job_id for mail in deployment.mail_server.mails].index("single")
        deployment.wait_until_final(*(f"campaign-{number}" for number in range(400)))

        assert before_it <= 200  # the worker may have taken so many before, in other batches


def test_revoked_jobs_and_callbacks_work_as_celery_says(deploy: Deploy) -> None:
    """A revoked job is refused. A callback is enqueued once its job is sent."""
    with deploy() as deployment:
        owner, member = deployment.people(email=10)
        deployment.producer.control("revoke", task_id="unwanted")
        link = deployment.producer.app.signature(
            "views.overview", args=[{"viewer": owner}], immutable=True, queue="views"
        )

        with stopped_worker(deployment):
            deployment.send("email.send", email_job("unwanted", member), "unwanted")
            deployment.send("email.send", email_job("wanted", member))
            deployment.producer.app.send_task(
                "email.send", args=[email_job("linked", member)], queue="email", link=link.set(task_id="the-callback")
            )
        ended = deployment.wait_until_final("wanted", "linked", "unwanted")
        wait_until(lambda: deployment.result_keys("the-callback"), "the callback was answered")

        assert (ended["unwanted"].state, ended["unwanted"].reason) == (State.REFUSED, "cancelled")
        assert sorted(mail.job_id for mail in deployment.mail_server.mails) == ["linked", "wanted"]


def test_a_worker_that_ends_hands_back_what_it_has_not_begun(deploy: Deploy) -> None:
    """Mail transactions are finished; the rest of the batch waits, and is leased to nobody."""
    with deploy(connections=2) as deployment:
        _, member = deployment.people(email=40)
        deployment.mail_server.hold()

        with stopped_worker(deployment):
            ids = [f"job-{number}" for number in range(40)]
            for job_id in ids:
                deployment.send("email.send", email_job(job_id, member))
        wait_until(lambda: sum(deployment.mail_server.offers.values()) >= 2, "both mail transactions are held")
        deployment.worker.ask_to_end()
        wait_until(lambda: "Warm shutdown" in deployment.worker.output, "the worker begins to end")
        deployment.mail_server.release()
        assert deployment.worker.wait() == 0

        states = Counter(charge.state for charge in deployment.charges(ids).values())
        assert set(states) == {State.SENT, State.WAITING}
        assert states[State.WAITING] > 0
        assert deployment.redis.hlen("unacked") == 0
        assert deployment.findings() == []
