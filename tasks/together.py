"""Doing things together: one thread for what several ask for at the same time, several threads for what takes long."""

import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

GATHER_S = 0.005
"""How long what is done waits for more that is nearly done. Short beside a commit, long beside a fast carrier."""


class Together(Generic[T, R]):
    """Lets one thread do at once what several threads ask for: one transaction instead of many."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._asked: list[tuple[T, Future[R]]] = []

    def ask(self, item: T, do: Callable[[Sequence[T]], R]) -> R:
        """Have `do` called with `item` and whatever others asked for meanwhile; gives what it gave, or raises so."""
        mine: Future[R] = Future()
        with self._lock:
            self._asked.append((item, mine))
        with self._turn:  # who gets the turn does it for everybody who has asked by then
            if not mine.done():
                self._do(do)
        return mine.result()

    def _do(self, do: Callable[[Sequence[T]], R]) -> None:
        with self._lock:
            asked, self._asked = self._asked, []
        try:
            result = do([item for item, _ in asked])
        except BaseException as error:  # noqa: BLE001  it is everybody's
            for _, future in asked:
                future.set_exception(error)
        else:
            for _, future in asked:
                future.set_result(result)


class Hands:
    """Threads that do a piece of work for many items, several at a time, and say what is done as it is done."""

    def __init__(self, most: int) -> None:
        self._executor = ThreadPoolExecutor(most, "hand")

    def each(
        self, work: Callable[[T], R], items: Sequence[T], at_once: int
    ) -> Iterator[list[tuple[T, R | BaseException]]]:
        """Do `work` for each item, `at_once` at a time; gives results, or what was raised, in groups as they come.

        One at a time, it is done in the thread that asks.
        """
        if min(at_once, len(items)) <= 1:
            yield [(item, _tried(work, item)) for item in items]
            return
        left, done = deque(items), queue.SimpleQueue[tuple[T, R | BaseException]]()

        def help_out() -> None:
            while left:
                try:
                    item = left.popleft()
                except IndexError:  # another hand was faster
                    return
                done.put((item, _tried(work, item)))

        for _ in range(min(at_once, len(items))):
            self._executor.submit(contextvars.copy_context().run, help_out)
        missing = len(items)
        while missing:
            group = _group(done, missing)
            missing -= len(group)
            yield group

    def close(self) -> None:
        """Let the threads end once they have done what they are at."""
        self._executor.shutdown(wait=False)


def _tried(work: Callable[[T], R], item: T) -> R | BaseException:
    try:
        return work(item)
    except BaseException as error:  # noqa: BLE001  who asked decides
        return error


def _group(done: "queue.SimpleQueue[T]", most: int) -> list[T]:
    """The next that is done, and what else is done a moment later."""
    group = [done.get()]
    until = time.monotonic() + GATHER_S
    while len(group) < most:
        try:
            group.append(done.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            break
    return group
