"""A task message with malformed parts is answered, and leaves nothing behind in the worker that took it."""

import itertools
import json
from typing import Any

import pytest

from models.errors import Reason
from models.sends.charges import State
from tests.flows.deployment import Deploy, Deployment, wait_until
from tests.flows.jobs import email_job
from tests.flows.outside import Json

pytestmark = pytest.mark.timeout(240)

ODD: list[Any] = [
    *("abc", "", "\x00", 5, -1, 1.5, 10**6, True),
    *([], ["abc"], [[1]], [{"task": 5}], [None], [5, 5], {}, {"a": 1}),
]
HEADERS = (
    *("retries", "timelimit", "group", "group_index", "root_id", "parent_id", "shadow", "origin", "argsrepr"),
    *("kwargsrepr", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", "eta", "expires"),
    *("lang", "meth", "delivery_info", "reply_to", "correlation_id", "headers", "properties", "args", "kwargs"),
)
EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
PREFETCH = 105
"""With so many messages that were neither acknowledged nor given back, a worker took no more from that queue."""

_numbers = itertools.count()


def publish(deployment: Deployment, sender: str, task: str = "email.send", *, embed: Any = None, **headers: Any) -> str:
    """Publish a job with these headers and this third part of its body. Returns its id."""
    job_id = f"malformed-{next(_numbers)}"
    body = json.dumps([[email_job(job_id, sender)], {}, embed])
    queue = "upkeep" if task.startswith("upkeep.") else "email"
    deployment.producer.publish(queue, body, {"task": task, "id": job_id, **headers})
    return job_id


def publish_all(deployment: Deployment, sender: str) -> list[str]:
    """Publish a job with each malformed part."""
    with_headers = [publish(deployment, sender, **{name: value}) for name in HEADERS for value in ODD]
    embedded = [publish(deployment, sender, embed={name: value}) for name in EMBEDDED for value in ODD]
    upkeep = [publish(deployment, sender, "upkeep.sweep", embed={name: value}) for name in EMBEDDED for value in ODD]
    celerys = [publish(deployment, sender, f"celery.{name}") for name in ("map", "starmap", "chord", "group", "chunks")]
    assert len(embedded) + len(with_headers) > 3 * PREFETCH
    assert upkeep
    assert celerys
    return [*with_headers, *embedded]


def test_every_job_with_a_malformed_part_ends_on_the_record(deploy: Deploy) -> None:
    with deploy(log_level="INFO") as deployment:
        _, member = deployment.people(email=1_000)
        published = publish_all(deployment, member)
        wait_until(lambda: deployment.is_idle() and not deployment.redis.hlen("unacked"), "all is acknowledged")

        charges = deployment.charges(published)
        refused = {row.task_id: row for row in deployment.refusals(published)}
        assert set(published) == charges.keys() | refused.keys()
        assert {row.reason for row in refused.values()} <= {Reason.INVALID_JOB, Reason.EXPIRED}
        assert len(refused) > PREFETCH
        assert len(charges) > PREFETCH  # what Celery does not rely on may be anything
        deployment.send("email.send", email_job("after", member))
        assert deployment.wait_until_final("after")["after"].state is State.SENT
        assert deployment.findings() == []


@pytest.fixture
def signature() -> Json:
    """Give a task to be sent afterwards, as Celery's clients write it."""
    return {"task": "shop.paid", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True}


def test_what_is_to_be_done_after_a_job_is_sent_to_any_queue(deploy: Deploy, signature: Json) -> None:
    """The queue that it names, or Celery's own default, as if the producer had sent it."""
    with deploy() as deployment:
        _, member = deployment.people(email=10)
        elsewhere = {**signature, "options": {"queue": "shop"}}
        jobs = [
            publish(deployment, member, embed={"callbacks": [elsewhere]}),
            publish(deployment, member, embed={"chain": [elsewhere]}),
            publish(deployment, member, embed={"callbacks": [signature]}),
        ]
        deployment.wait_until_final(*jobs)
        wait_until(deployment.is_idle, "all is acknowledged")

        assert deployment.redis.llen("shop") == 2
        assert deployment.redis.llen("celery") == 1
        assert deployment.redis.hlen("unacked") == 0


def test_a_message_that_celery_fails_with_goes_to_the_quarantine(deploy: Deploy, signature: Json) -> None:
    """Its callback cannot be sent: the job was answered, and the worker has its place for the next one."""
    with deploy() as deployment:
        _, member = deployment.people(email=10)
        odd: list[Json] = [{"link": 5}, {"exchange": "", "routing_key": "shop", "delivery_mode": []}, {"eta": "soon"}]
        jobs = [publish(deployment, member, embed={"callbacks": [{**signature, "options": each}]}) for each in odd]
        jobs += [publish(deployment, member, embed={"chain": [{**signature, "options": each}]}) for each in odd]
        deployment.wait_until_final(*jobs[: len(odd) // 2])
        wait_until(lambda: deployment.is_idle() and not deployment.redis.hlen("unacked"), "all is acknowledged")

        assert deployment.worker.is_running()
