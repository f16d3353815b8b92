"""Batching: which jobs are answered in a batch, and how requests are divided into batches."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.batching import BATCH_BYTES_MAX, BatchingConsumer, batches, is_batchable


def request(*, redelivered: bool = False, embed: dict[str, Any] | None = None, **headers: Any) -> SimpleNamespace:
    """Give the request of a job as producers send it."""
    usual = {"retries": 0, "group": None, "timelimit": [None, None]}
    return SimpleNamespace(
        request_dict=usual | headers, delivery_info={"redelivered": redelivered}, _payload=([{}], {}, embed)
    )


@pytest.mark.parametrize("plain", [request(), request(embed={"callbacks": None}), request(timelimit=None)])
def test_a_plain_job_is_answered_in_a_batch(plain: SimpleNamespace) -> None:
    assert is_batchable(plain)


@pytest.mark.parametrize(
    "special",
    [
        request(retries=1),
        request(redelivered=True),
        request(group="g"),
        request(timelimit=[10, None]),
        *(request(embed={name: [{"task": "views.overview"}]}) for name in ("callbacks", "errbacks", "chain", "chord")),
    ],
)
def test_any_other_job_is_left_to_celery(special: SimpleNamespace) -> None:
    """Retries, redeliveries, and jobs with a group, a time limit or callbacks are answered alone."""
    assert not is_batchable(special)


@given(st.lists(st.integers(0, BATCH_BYTES_MAX + 10)), st.integers(1, 7))
def test_no_batch_has_too_many_jobs_or_bytes(sizes: list[int], most: int) -> None:
    requests = [SimpleNamespace(body=range(size)) for size in sizes]  # a range has a length, and needs no memory

    made = list(batches(requests, most))

    assert [request for batch in made for request in batch] == requests
    for batch in made:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(len(request.body) for request in batch) <= BATCH_BYTES_MAX


@pytest.mark.parametrize("pool", [SoloPool, ThreadPool])
def test_jobs_that_a_batch_leaves_unanswered_go_back_to_celery(pool: Any) -> None:
    unanswered: list[Any] = []
    jobs = [request() for _ in range(3)]
    for number, job in enumerate(jobs):
        vars(job).update(
            id=str(number),
            args=[{}],
            kwargs={},
            body=b"{}",
            ending=lambda: None,
            postponement=None,
            on_accepted=lambda *_: None,
        )
    task = SimpleNamespace(name="email.send", answer=lambda _arrivals: iter(()))
    running_pool = pool(limit=1)
    scheduled: list[Any] = []
    hub = SimpleNamespace(call_soon=scheduled.append)
    consumer = SimpleNamespace(pool=running_pool, hub=hub, on_task_request=unanswered.append)
    batching_consumer = BatchingConsumer(consumer, task, 2)
    for job in jobs:
        batching_consumer.on_task_request(job)
    for call in scheduled:
        call()
    running_pool.stop()

    assert sorted(job.id for job in unanswered) == ["0", "1", "2"]
