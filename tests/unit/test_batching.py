"""Batches: every request is in exactly one, in its order, and none is too large."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.batching import BATCH_BYTES_MAX, BatchingConsumer, batches, is_batchable


def request(*, redelivered: bool = False, embed: dict[str, Any] | None = None, **headers: Any) -> SimpleNamespace:
    """A request of a job as producers send it."""
    usual = {"retries": 0, "group": None, "timelimit": [None, None]}
    return SimpleNamespace(
        request_dict=usual | headers, delivery_info={"redelivered": redelivered}, _payload=([{}], {}, embed)
    )


@pytest.mark.parametrize("plain", [request(), request(embed={"callbacks": None}), request(timelimit=None)])
def test_a_job_of_which_nothing_is_asked_is_answered_in_a_batch(plain: SimpleNamespace) -> None:
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
def test_a_job_of_which_more_is_asked_is_celery_s_affair(special: SimpleNamespace) -> None:
    assert not is_batchable(special)


@given(st.lists(st.integers(0, BATCH_BYTES_MAX + 10)), st.integers(1, 7))
def test_batches_are_neither_too_many_jobs_nor_too_many_bytes(sizes: list[int], most: int) -> None:
    requests = [SimpleNamespace(body=range(size)) for size in sizes]  # a range is as long as it says, and costs nothing

    made = list(batches(requests, most))

    assert [request for batch in made for request in batch] == requests
    for batch in made:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(len(request.body) for request in batch) <= BATCH_BYTES_MAX


@pytest.mark.parametrize("pool", [SoloPool, ThreadPool])
def test_a_batch_goes_through_each_pool_and_what_it_leaves_goes_celery_s_way(pool: Any) -> None:
    left: list[Any] = []
    jobs = [request() for _ in range(3)]
    for number, job in enumerate(jobs):
        vars(job).update(id=str(number), args=[{}], kwargs={}, body=b"{}", revoked=bool, on_accepted=lambda *_: None)
    task = SimpleNamespace(name="email.send", answer=lambda _arrivals: iter(()))
    running = pool(limit=1)
    soon: list[Any] = []
    hub = SimpleNamespace(call_soon=soon.append)
    consumer = SimpleNamespace(pool=running, hub=hub, on_task_request=left.append)
    gathering = BatchingConsumer(consumer, task, 2)
    for job in jobs:
        gathering.on_task_request(job)
    for do in soon:
        do()
    running.stop()

    assert sorted(job.id for job in left) == ["0", "1", "2"]
