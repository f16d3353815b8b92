"""Threads that call carriers, and one thread that does at once what several of them ask for."""

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
"""How long a group waits for more items, in seconds: short beside a commit, long beside a fast carrier."""


class GroupCommit(Generic[T, R]):
    """Groups items that several threads submit at the same time: one transaction instead of many.

    The thread that submits the first item of a group runs it. A group begins once the group before it is done, and all
    members have submitted an item or `gather_s` is over.
    """

    def __init__(self, gather_s: float = GATHER_S) -> None:
        self._gather_s = gather_s
        self._running = threading.Lock()
        self._changed = threading.Condition()
        self._submitted: list[tuple[T, Future[R]]] = []
        self._members = 0

    @contextmanager
    def member(self) -> Iterator[None]:
        """Make this thread a member: it submits again and again, and groups wait for it for a moment."""
        with self._changed:
            self._members += 1
        try:
            yield
        finally:
            with self._changed:
                self._members -= 1
                self._changed.notify()

    def submit(self, item: T, do: Callable[[Sequence[T]], R]) -> R:
        """Submit `item` to the next group. Blocks until `do(group)` has run; returns its result or raises its error."""
        future: Future[R] = Future()
        with self._changed:
            self._submitted.append((item, future))
            is_first = len(self._submitted) == 1
            if self._is_complete():
                self._changed.notify()
        if is_first:
            self._run(do)
        return future.result()

    def _run(self, do: Callable[[Sequence[T]], R]) -> None:
        group: list[tuple[T, Future[R]]] = []
        try:
            with self._running:
                try:
                    with self._changed:
                        self._changed.wait_for(self._is_complete, self._gather_s)
                finally:
                    group = self._take_group()
                result = do([item for item, _ in group])
        except BaseException as error:  # noqa: BLE001  every thread of the group gets it
            for _, future in group:
                future.set_exception(error)
        else:
            for _, future in group:
                future.set_result(result)

    def _is_complete(self) -> bool:
        return len(self._submitted) >= self._members

    def _take_group(self) -> list[tuple[T, Future[R]]]:
        with self._changed:
            group, self._submitted = self._submitted, []
        return group


class DeliveryPool:
    """Threads that do a piece of work for many items, several at a time."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "delivery")

    def run(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        concurrency: int,
        membership: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Generator[list[tuple[T, R | BaseException]], None, None]:
        """Run `work` for each item, `concurrency` at a time; yields results or exceptions in groups as they come.

        With a concurrency of one it runs in the calling thread. What the work binds to its context, such as fields of
        log lines, stays with its item. Each of several threads is in a `membership` while it works. Threads pause while
        as many results wait to be taken as there are threads, and start nothing more once the caller has left.
        """
        if min(concurrency, len(items)) <= 1:
            yield [(item, _result_of(work, item)) for item in items]
            return
        threads = min(concurrency, len(items))
        left, results = deque(items), queue.Queue[tuple[T, R | BaseException]](threads)

        def work_through() -> None:
            with membership():
                while left:
                    try:
                        item = left.popleft()
                    except IndexError:  # another thread was faster
                        return
                    results.put((item, _result_of(work, item)))

        for _ in range(threads):
            self._executor.submit(contextvars.copy_context().run, work_through)
        missing = len(items)
        try:
            while missing:
                group = _gather(results, missing)
                missing -= len(group)
                yield group
        finally:
            left.clear()
            with contextlib.suppress(queue.Empty):  # make room for the last result of each thread
                while True:
                    results.get_nowait()

    def close(self) -> None:
        """Let each thread end after its present item."""
        self._executor.shutdown(wait=False)


def _result_of(work: Callable[[T], R], item: T) -> R | BaseException:
    try:
        return contextvars.copy_context().run(work, item)
    except BaseException as error:  # noqa: BLE001  the caller decides
        return error


def _gather(results: "queue.Queue[T]", most: int) -> list[T]:
    """Return the next result, and what else comes within a moment."""
    group = [results.get()]
    until = time.monotonic() + GATHER_S
    while len(group) < most:
        try:
            group.append(results.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            break
    return group
