"""The event loop of a process, and the groups of what its coroutines submit at the same time."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.event_loop import EventLoop, LoopGroups


@pytest.fixture(scope="module")
def loop() -> Iterator[EventLoop]:
    """Give a loop that runs."""
    loop = EventLoop()
    yield loop
    loop.close()


def run_all(loop: EventLoop, groups: LoopGroups[int, int], items: Sequence[int]) -> list[int | BaseException]:
    """Submit items at the same time; gives their results or errors."""

    async def submit_all() -> list[int | BaseException]:
        return await asyncio.gather(*map(groups.submit, items), return_exceptions=True)

    return loop.run(submit_all()).result(10)


def recorder(
    groups: list[list[int]], do: Callable[[int], int | BaseException] = lambda item: 2 * item
) -> Callable[[Sequence[int]], list[int | BaseException]]:
    """Give something to do for groups, which notes them."""

    def work(items: Sequence[int]) -> list[int | BaseException]:
        groups.append(list(items))
        return [do(item) for item in items]

    return work


def test_the_loop_runs_in_one_thread_of_its_own(loop: EventLoop) -> None:
    async def name() -> str:
        return threading.current_thread().name

    assert {loop.run(name()).result(10) for _ in range(3)} == {"carriers"}


def test_a_loop_that_is_closed_ends_what_still_runs() -> None:
    loop, ended = EventLoop(), threading.Event()

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loop.run(wait_for_ever())
    loop.run(asyncio.sleep(0)).result(10)
    loop.close()

    assert ended.is_set()


def test_a_loop_that_nobody_used_is_closed_without_a_word() -> None:
    EventLoop().close(asyncio.sleep(0))


@given(st.lists(st.integers(), min_size=1, max_size=50))
def test_each_item_gets_its_own_result_or_error(loop: EventLoop, items: list[int]) -> None:
    done: list[list[int]] = []
    groups = LoopGroups(loop.writers, recorder(done, lambda item: 2 * item if item % 3 else ValueError(item)))

    results = run_all(loop, groups, items)

    assert [item for group in done for item in group] == items
    for item, result in zip(items, results, strict=True):
        assert (result == 2 * item) if item % 3 else (isinstance(result, ValueError) and result.args == (item,))


def test_what_is_submitted_at_the_same_time_is_one_group(loop: EventLoop) -> None:
    done: list[list[int]] = []

    run_all(loop, LoopGroups(loop.writers, recorder(done)), range(100))

    assert done == [list(range(100))]


def test_a_group_waits_for_what_is_expected(loop: EventLoop) -> None:
    done: list[list[int]] = []
    groups = LoopGroups(loop.writers, recorder(done), gather_s=60)

    async def submit_later() -> None:
        groups.expected = 2
        first = asyncio.create_task(groups.submit(1))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, groups.submit(2))

    loop.run(submit_later()).result(10)

    assert done == [[1, 2]]


def test_a_group_does_not_wait_long_for_what_does_not_come(loop: EventLoop) -> None:
    done: list[list[int]] = []
    groups = LoopGroups(loop.writers, recorder(done), gather_s=0.01)
    groups.expected = 5

    assert run_all(loop, groups, [1]) == [2]


def test_an_error_of_a_whole_group_is_everybody_s_and_the_next_group_runs(loop: EventLoop) -> None:
    calls = []

    def fail_once(items: Sequence[int]) -> list[int | BaseException]:
        calls.append(items)
        if len(calls) == 1:
            raise ZeroDivisionError
        return list(items)

    groups = LoopGroups(loop.writers, fail_once)

    assert [type(error) for error in run_all(loop, groups, [1, 2])] == [ZeroDivisionError] * 2
    assert run_all(loop, groups, [3]) == [3]
