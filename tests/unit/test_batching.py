"""Batches: every request is in exactly one, in its order, and none is too large."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from worker.batching import BYTES_MAX, batches


@given(st.lists(st.integers(0, BYTES_MAX + 10)), st.integers(1, 7))
def test_batches_are_neither_too_many_jobs_nor_too_many_bytes(sizes: list[int], most: int) -> None:
    requests = [SimpleNamespace(body=range(size)) for size in sizes]  # a range is as long as it says, and costs nothing

    made = list(batches(requests, most))

    assert [request for batch in made for request in batch] == requests
    for batch in made:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(len(request.body) for request in batch) <= BYTES_MAX
