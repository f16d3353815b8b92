"""Group commit: what threads submit at the same time is done at once, and each gets its own result."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.concurrency import GroupCommit


def test_items_submitted_meanwhile_are_one_group() -> None:
    """The first thread runs its item alone; the others wait for it, and then one of them runs theirs in one group."""
    commits: GroupCommit[int, int] = GroupCommit()
    begun, go_on = threading.Event(), threading.Event()
    groups: list[list[int]] = []

    def do(items: Sequence[int]) -> list[int]:
        groups.append(sorted(items))
        begun.set()
        assert go_on.wait(10)
        return [2 * item for item in items]

    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(commits.submit, 0, do)
        assert begun.wait(10)
        others = [threads.submit(commits.submit, number, do) for number in range(1, 8)]
        while len(commits._submitted) < len(others):
            time.sleep(0.001)
        go_on.set()
        results = [other.result(10) for other in others]

    assert first.result() == 0
    assert groups == [[0], list(range(1, 8))]
    assert results == [2 * number for number in range(1, 8)]


def test_a_failed_group_raises_its_error_and_the_next_one_runs() -> None:
    commits: GroupCommit[int, int] = GroupCommit()

    def fail(_items: Sequence[int]) -> list[int]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        commits.submit(1, fail)
    assert commits.submit(2, list) == 2


def test_one_item_of_a_group_fails_alone() -> None:
    commits: GroupCommit[int, int] = GroupCommit()

    with pytest.raises(ValueError, match="seven"):
        commits.submit(7, lambda items: [ValueError("seven") for _ in items])
