"""The lane: what it is given runs one by one and in order, and nothing that goes wrong stops it."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.concurrency.thread import TaskPool as ThreadPool
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.lane import Lane

ENDS_S = 10


class FaultError(Exception):
    """What a target or a callback raises here."""


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """Give the pool of a worker."""
    pool = ThreadPool(limit=4)
    pool.start()
    yield pool
    pool.stop()


class Ended:
    """Notes what has ended, in order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._changed = threading.Condition()

    def note(self, number: int) -> None:
        """Note that a number has ended."""
        with self._changed:
            self.numbers.append(number)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[int]:
        """Wait until so many have ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.numbers) >= count, ENDS_S)
            return list(self.numbers)


def run(lane: Lane, target: Callable[..., Any], *args: Any, callback: Callable[[Any], None] = lambda _: None) -> None:
    """Give the lane something to run, with all that Celery's requests give to a pool."""
    lane.apply_async(
        target,
        args=args,
        callback=callback,
        error_callback=None,
        accept_callback=lambda _pid, _accepted: None,
        timeout_callback=None,
        soft_timeout=None,
        timeout=None,
        correlation_id="task-1",
    )


@given(durations=st.lists(st.sampled_from([0, 0, 0.002]), min_size=2, max_size=12))
def test_whatever_is_given_runs_one_by_one_and_in_order(durations: list[float]) -> None:
    ended, running, most_running = Ended(), 0, 0

    def target(number: int) -> None:
        nonlocal running, most_running
        running += 1
        most_running = max(most_running, running)
        time.sleep(durations[number])
        running -= 1
        ended.note(number)

    lane = Lane(pool=None)
    for number in range(len(durations)):
        run(lane, target, number)

    assert ended.wait_for(len(durations)) == list(range(len(durations)))
    assert most_running == 1
    lane.stop()


@pytest.mark.parametrize("fault", [FaultError(), SystemExit(), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["target", "callback"])
def test_a_fault_stops_nothing_that_comes_behind_it(pool: ThreadPool, fault: BaseException, where: str) -> None:
    lane, ended = Lane(pool), Ended()

    def fail(*_: object) -> None:
        raise fault

    run(lane, fail if where == "target" else int, callback=fail)
    run(lane, ended.note, 1)

    assert ended.wait_for(1) == [1]
    lane.stop()


def test_what_has_waited_too_long_goes_to_the_pool(pool: ThreadPool) -> None:
    """Both at the same time, or this would wait for ever."""
    lane, ended, both = Lane(pool, wait_max_s=0.05), Ended(), threading.Barrier(2)

    def meet(number: int) -> None:
        both.wait(ENDS_S)
        ended.note(number)

    run(lane, time.sleep, 0.2)
    run(lane, meet, 1)
    run(lane, meet, 2)

    assert sorted(ended.wait_for(2)) == [1, 2]
    lane.stop()


def test_a_lane_that_is_stopped_finishes_what_runs_and_begins_nothing_more(pool: ThreadPool) -> None:
    lane, ended = Lane(pool), Ended()
    begun, released = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        released.wait(ENDS_S)
        ended.note(1)

    run(lane, hold)
    run(lane, ended.note, 2)
    begun.wait(ENDS_S)
    threading.Timer(0.05, released.set).start()
    lane.stop()

    assert ended.numbers == [1]
