"""Doing things together: one thread for what several ask for at the same time, several threads for what takes long."""

import contextlib
import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

GATHER_S = 0.005
"""How long what is done waits for more that is nearly done. Short beside a commit, long beside a fast carrier."""


class Together(Generic[T, R]):
    """Lets one thread do at once what several threads ask for: one transaction instead of many.

    The first who asks does it for all who ask until it begins: when those before are done, and all who have joined
    have asked or `gather_s` is over.
    """

    def __init__(self, gather_s: float = GATHER_S) -> None:
        self._gather_s = gather_s
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._asked: list[tuple[T, Future[R]]] = []
        self._joined = 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be somebody who asks again and again, and is waited for a moment."""
        with self._changed:
            self._joined += 1
        try:
            yield
        finally:
            with self._changed:
                self._joined -= 1
                self._changed.notify()

    def ask(self, item: T, do: Callable[[Sequence[T]], R]) -> R:
        """Have `do` called with `item` and whatever others ask for meanwhile; gives what it gave, or raises so."""
        mine: Future[R] = Future()
        with self._changed:
            self._asked.append((item, mine))
            first = len(self._asked) == 1
            if self._is_everybody_here():
                self._changed.notify()
        if first:
            self._do(do)
        return mine.result()

    def _do(self, do: Callable[[Sequence[T]], R]) -> None:
        asked: list[tuple[T, Future[R]]] = []
        try:
            with self._turn:
                try:
                    with self._changed:
                        self._changed.wait_for(self._is_everybody_here, self._gather_s)
                finally:
                    asked = self._take()
                result = do([item for item, _ in asked])
        except BaseException as error:  # noqa: BLE001  it is everybody's
            for _, future in asked:
                future.set_exception(error)
        else:
            for _, future in asked:
                future.set_result(result)

    def _is_everybody_here(self) -> bool:
        return len(self._asked) >= self._joined

    def _take(self) -> list[tuple[T, Future[R]]]:
        with self._changed:
            asked, self._asked = self._asked, []
        return asked


class Hands:
    """Threads that do a piece of work for many items, several at a time, and say what is done as it is done."""

    def __init__(self, most: int) -> None:
        self._executor = ThreadPoolExecutor(most, "hand")

    def each(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        at_once: int,
        busy: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Generator[list[tuple[T, R | BaseException]], None, None]:
        """Do `work` for each item, `at_once` at a time; gives results, or what was raised, in groups as they come.

        One at a time, it is done in the thread that asks. What the work binds to its context, such as for its lines in
        the log, is of its item alone. Each of several hands is in a `busy` of its own while it works. Hands pause when
        as many results as there are hands wait to be taken, and begin nothing more once nobody is there to take them.
        """
        if min(at_once, len(items)) <= 1:
            yield [(item, _tried(work, item)) for item in items]
            return
        hands = min(at_once, len(items))
        left, done = deque(items), queue.Queue[tuple[T, R | BaseException]](hands)

        def help_out() -> None:
            with busy():
                while left:
                    try:
                        item = left.popleft()
                    except IndexError:  # another hand was faster
                        return
                    done.put((item, _tried(work, item)))

        for _ in range(hands):
            self._executor.submit(contextvars.copy_context().run, help_out)
        missing = len(items)
        try:
            while missing:
                group = _group(done, missing)
                missing -= len(group)
                yield group
        finally:
            left.clear()
            with contextlib.suppress(queue.Empty):  # room for the last one of each hand
                while True:
                    done.get_nowait()

    def close(self) -> None:
        """Let the threads end once they have done what they are at."""
        self._executor.shutdown(wait=False)


def _tried(work: Callable[[T], R], item: T) -> R | BaseException:
    try:
        return contextvars.copy_context().run(work, item)
    except BaseException as error:  # noqa: BLE001  who asked decides
        return error


def _group(done: "queue.Queue[T]", most: int) -> list[T]:
    """The next that is done, and what else is done a moment later."""
    group = [done.get()]
    until = time.monotonic() + GATHER_S
    while len(group) < most:
        try:
            group.append(done.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            break
    return group
