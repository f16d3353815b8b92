"""Things done together: nothing is done twice or left out, and everybody hears what became of theirs."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.concurrency import DeliveryPool, GroupCommit


def test_what_is_asked_for_meanwhile_is_done_in_one_go() -> None:
    """The first does its own; the others wait for it, and then one of them does it for all."""
    together: GroupCommit[int, list[int]] = GroupCommit()
    begun, go_on = threading.Event(), threading.Event()
    done: list[list[int]] = []

    def do(items: Sequence[int]) -> list[int]:
        done.append(sorted(items))
        begun.set()
        assert go_on.wait(10)
        return sorted(items)

    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(together.submit, 0, do)
        assert begun.wait(10)
        others = [threads.submit(together.submit, number, do) for number in range(1, 8)]
        while len(together._submitted) < len(others):
            time.sleep(0.001)
        go_on.set()
        heard = [other.result(10) for other in others]

    assert first.result() == [0]
    assert done == [[0], list(range(1, 8))]
    assert heard == [list(range(1, 8))] * 7


def test_everybody_hears_of_an_error_and_the_next_begin_anew() -> None:
    together: GroupCommit[int, int] = GroupCommit()

    def fail(_items: Sequence[int]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together.submit(1, fail)
    assert together.submit(2, sum) == 2


def test_all_who_have_joined_are_waited_for() -> None:
    """Eight who ask again and again are eight in each group."""
    together: GroupCommit[int, int] = GroupCommit(gather_s=10)
    everybody = threading.Barrier(8)
    groups: list[int] = []

    def do(items: Sequence[int]) -> int:
        groups.append(len(items))
        return sum(items)

    def ask_often() -> None:
        with together.member():
            everybody.wait(10)
            for _ in range(5):
                assert together.submit(1, do) == 8
            everybody.wait(10)

    with ThreadPoolExecutor(8) as threads:
        for one in [threads.submit(ask_often) for _ in range(8)]:
            one.result(20)

    assert groups == [8] * 5


def test_nobody_waits_long_for_one_who_does_not_ask() -> None:
    together: GroupCommit[int, int] = GroupCommit(gather_s=0.01)
    began = time.monotonic()
    with together.member(), together.member():
        assert together.submit(1, sum) == 1

    assert 0.01 <= time.monotonic() - began < 5


def test_nobody_waits_for_one_who_has_left() -> None:
    together: GroupCommit[int, int] = GroupCommit(gather_s=30)
    leaving = threading.Event()

    def join() -> None:
        with together.member():
            assert leaving.wait(10)

    with ThreadPoolExecutor(2) as threads, together.member():
        other = threads.submit(join)
        while together._members < 2:
            time.sleep(0.001)
        asked = threads.submit(together.submit, 1, sum)
        leaving.set()
        assert asked.result(10) == 1
        other.result(10)


def test_who_never_joined_waits_for_nobody() -> None:
    """A single job, say."""
    together: GroupCommit[int, int] = GroupCommit(gather_s=30)
    began = time.monotonic()

    assert together.submit(1, sum) == 1
    assert time.monotonic() - began < 5


@settings(deadline=None)
@given(st.lists(st.integers(), max_size=40), st.integers(1, 6))
def test_each_item_is_worked_on_once_and_its_result_or_error_comes_back(items: list[int], concurrency: int) -> None:
    numbered = list(enumerate(items))

    def work(item: tuple[int, int]) -> int:
        if item[1] % 3 == 0:
            raise ValueError(item[1])
        return item[1] * 2

    hands = DeliveryPool(4)
    groups = list(hands.run(work, numbered, concurrency))
    hands.close()

    ended = [pair for group in groups for pair in group]
    assert sorted(item for item, _ in ended) == numbered
    for (_, number), end in ended:
        assert (end == number * 2) if number % 3 else (isinstance(end, ValueError) and end.args == (number,))


def test_what_is_done_comes_back_before_what_takes_long() -> None:
    """So that the one conversation that hangs holds up no other's answer."""
    go_on = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert go_on.wait(10)
        return item

    hands = DeliveryPool(2)
    groups = hands.run(work, list(range(10)), 2)
    early: list[int] = []
    while len(early) < 9:
        early += [item for item, _ in next(groups)]
    go_on.set()

    assert sorted(early) == list(range(1, 10))
    assert [item for item, _ in next(groups)] == [0]
    hands.close()


def test_no_more_are_worked_on_at_a_time_than_are_welcome() -> None:
    busy = threading.Semaphore(3)

    def work(item: int) -> int:
        assert busy.acquire(blocking=False), "more than three at a time"
        time.sleep(0.001)
        busy.release()
        return item

    hands = DeliveryPool(16)
    ended = [end for group in hands.run(work, list(range(60)), 3) for _, end in group]
    hands.close()

    assert sorted(end for end in ended if isinstance(end, int)) == list(range(60))


def test_hands_pause_while_nobody_takes_what_is_done() -> None:
    """So that after a crash few have been handed over of which nothing is written: here two rounds, of a hundred."""
    worked: list[int] = []
    hands = DeliveryPool(4)
    groups = hands.run(worked.append, list(range(100)), 4)
    taken = len(next(groups))
    time.sleep(0.1)

    assert len(worked) <= taken + 2 * 4
    assert taken + sum(map(len, groups)) == 100
    assert sorted(worked) == list(range(100))
    hands.close()


def test_nothing_more_is_begun_when_nobody_will_take_it() -> None:
    """And no hand waits for ever: all are free for the next."""
    worked: list[int] = []
    hands = DeliveryPool(4)
    groups = hands.run(worked.append, list(range(100)), 4)
    taken = len(next(groups))
    time.sleep(0.05)
    groups.close()
    again = [item for group in hands.run(lambda item: item, list(range(50)), 4) for item, _ in group]

    assert len(worked) <= taken + 2 * 4
    assert sorted(again) == list(range(50))
    hands.close()


def test_each_hand_is_busy_while_it_works() -> None:
    """Once, however much it does."""
    begun, ended = [], []

    @contextmanager
    def busy() -> Iterator[None]:
        begun.append(threading.get_ident())
        yield
        ended.append(threading.get_ident())

    hands = DeliveryPool(4)
    list(hands.run(lambda _: time.sleep(0.001), list(range(40)), 4, busy))
    hands.close()
    hands._executor.shutdown(wait=True)

    assert len(begun) == 4
    assert sorted(begun) == sorted(ended)
