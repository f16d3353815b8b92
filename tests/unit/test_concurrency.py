"""Group commit and the delivery pool: each item is worked on once, and whoever submitted it gets its result."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.concurrency import DeliveryPool, GroupCommit


def test_items_submitted_meanwhile_are_one_group() -> None:
    """The first thread runs its item alone; the others wait for it, and then one of them runs theirs in one group."""
    commits: GroupCommit[int, list[int]] = GroupCommit()
    begun, go_on = threading.Event(), threading.Event()
    groups: list[list[int]] = []

    def do(items: Sequence[int]) -> list[int]:
        groups.append(sorted(items))
        begun.set()
        assert go_on.wait(10)
        return sorted(items)

    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(commits.submit, 0, do)
        assert begun.wait(10)
        others = [threads.submit(commits.submit, number, do) for number in range(1, 8)]
        while len(commits._submitted) < len(others):
            time.sleep(0.001)
        go_on.set()
        results = [other.result(10) for other in others]

    assert first.result() == [0]
    assert groups == [[0], list(range(1, 8))]
    assert results == [list(range(1, 8))] * 7


def test_a_failed_group_raises_its_error_and_the_next_one_runs() -> None:
    commits: GroupCommit[int, int] = GroupCommit()

    def fail(_items: Sequence[int]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        commits.submit(1, fail)
    assert commits.submit(2, sum) == 2


def test_a_group_waits_for_all_members() -> None:
    """Eight members that submit again and again are eight in each group."""
    commits: GroupCommit[int, int] = GroupCommit(gather_s=10)
    all_members = threading.Barrier(8)
    groups: list[int] = []

    def do(items: Sequence[int]) -> int:
        groups.append(len(items))
        return sum(items)

    def submit_often() -> None:
        with commits.member():
            all_members.wait(10)
            for _ in range(5):
                assert commits.submit(1, do) == 8
            all_members.wait(10)

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(submit_often) for _ in range(8)]:
            future.result(20)

    assert groups == [8] * 5


def test_a_group_does_not_wait_long_for_an_idle_member() -> None:
    commits: GroupCommit[int, int] = GroupCommit(gather_s=0.01)
    began = time.monotonic()
    with commits.member(), commits.member():
        assert commits.submit(1, sum) == 1

    assert 0.01 <= time.monotonic() - began < 5


def test_a_group_does_not_wait_for_a_member_that_left() -> None:
    commits: GroupCommit[int, int] = GroupCommit(gather_s=30)
    leaving = threading.Event()

    def join() -> None:
        with commits.member():
            assert leaving.wait(10)

    with ThreadPoolExecutor(2) as threads, commits.member():
        other = threads.submit(join)
        while commits._members < 2:
            time.sleep(0.001)
        submitted = threads.submit(commits.submit, 1, sum)
        leaving.set()
        assert submitted.result(10) == 1
        other.result(10)


def test_without_members_a_group_waits_for_nobody() -> None:
    """A thread that handles a single job is no member."""
    commits: GroupCommit[int, int] = GroupCommit(gather_s=30)
    began = time.monotonic()

    assert commits.submit(1, sum) == 1
    assert time.monotonic() - began < 5


@settings(deadline=None)
@given(st.lists(st.integers(), max_size=40), st.integers(1, 6))
def test_each_item_is_worked_on_once_and_gives_its_result_or_error(items: list[int], concurrency: int) -> None:
    numbered = list(enumerate(items))

    def work(item: tuple[int, int]) -> int:
        if item[1] % 3 == 0:
            raise ValueError(item[1])
        return item[1] * 2

    pool = DeliveryPool(4)
    groups = list(pool.run(work, numbered, concurrency))
    pool.close()

    ended = [pair for group in groups for pair in group]
    assert sorted(item for item, _ in ended) == numbered
    for (_, number), result in ended:
        assert (result == number * 2) if number % 3 else (isinstance(result, ValueError) and result.args == (number,))


def test_finished_results_come_before_slow_ones() -> None:
    """One mail transaction that hangs holds up no other job's answer."""
    go_on = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert go_on.wait(10)
        return item

    pool = DeliveryPool(2)
    groups = pool.run(work, list(range(10)), 2)
    early: list[int] = []
    while len(early) < 9:
        early += [item for item, _ in next(groups)]
    go_on.set()

    assert sorted(early) == list(range(1, 10))
    assert [item for item, _ in next(groups)] == [0]
    pool.close()


def test_the_pool_works_on_no_more_items_at_a_time_than_allowed() -> None:
    busy = threading.Semaphore(3)

    def work(item: int) -> int:
        assert busy.acquire(blocking=False), "more than three at a time"
        time.sleep(0.001)
        busy.release()
        return item

    pool = DeliveryPool(16)
    ended = [result for group in pool.run(work, list(range(60)), 3) for _, result in group]
    pool.close()

    assert sorted(result for result in ended if isinstance(result, int)) == list(range(60))


def test_threads_pause_while_nobody_takes_their_results() -> None:
    """A crash then leaves few messages that were handed over but not settled: at most two for each thread."""
    worked: list[int] = []
    pool = DeliveryPool(4)
    groups = pool.run(worked.append, list(range(100)), 4)
    taken = len(next(groups))
    time.sleep(0.1)

    assert len(worked) <= taken + 2 * 4
    assert taken + sum(map(len, groups)) == 100
    assert sorted(worked) == list(range(100))
    pool.close()


def test_no_item_is_begun_once_the_caller_has_left() -> None:
    """No thread waits for ever: all are free for the next batch."""
    worked: list[int] = []
    pool = DeliveryPool(4)
    groups = pool.run(worked.append, list(range(100)), 4)
    taken = len(next(groups))
    time.sleep(0.05)
    groups.close()
    again = [item for group in pool.run(lambda item: item, list(range(50)), 4) for item, _ in group]

    assert len(worked) <= taken + 2 * 4
    assert sorted(again) == list(range(50))
    pool.close()


def test_each_thread_is_a_member_while_it_works() -> None:
    """It enters and leaves once, however many items it works on."""
    begun, ended = [], []

    @contextmanager
    def membership() -> Iterator[None]:
        begun.append(threading.get_ident())
        yield
        ended.append(threading.get_ident())

    pool = DeliveryPool(4)
    list(pool.run(lambda _: time.sleep(0.001), list(range(40)), 4, membership))
    pool.close()
    pool._executor.shutdown(wait=True)

    assert len(begun) == 4
    assert sorted(begun) == sorted(ended)
