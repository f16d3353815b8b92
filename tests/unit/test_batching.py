"""Batches: every request is in exactly one, in its order, and none is too large."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batching import BYTES_MAX, batches, is_plain


def request(*, redelivered: bool = False, embed: dict[str, Any] | None = None, **headers: Any) -> SimpleNamespace:
    """A request of a job as producers send it."""
    usual = {"retries": 0, "group": None, "timelimit": [None, None]}
    return SimpleNamespace(
        request_dict=usual | headers, delivery_info={"redelivered": redelivered}, _payload=([{}], {}, embed)
    )


@pytest.mark.parametrize("plain", [request(), request(embed={"callbacks": None}), request(timelimit=None)])
def test_a_job_of_which_nothing_is_asked_is_answered_in_a_batch(plain: SimpleNamespace) -> None:
    assert is_plain(plain)


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
    assert not is_plain(special)


@given(st.lists(st.integers(0, BYTES_MAX + 10)), st.integers(1, 7))
def test_batches_are_neither_too_many_jobs_nor_too_many_bytes(sizes: list[int], most: int) -> None:
    requests = [SimpleNamespace(body=range(size)) for size in sizes]  # a range is as long as it says, and costs nothing

    made = list(batches(requests, most))

    assert [request for batch in made for request in batch] == requests
    for batch in made:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(len(request.body) for request in batch) <= BYTES_MAX
