"""What several threads ask for at the same time is done at once: one transaction instead of many."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class GroupCommit(Generic[T, R]):
    """Groups items that several threads submit at the same time.

    The thread that submits the first item of a group runs it, once the group before it is done.
    """

    def __init__(self) -> None:
        self._running = threading.Lock()
        self._changed = threading.Lock()
        self._submitted: list[tuple[T, Future[R]]] = []

    def submit(self, item: T, do: Callable[[Sequence[T]], Sequence[R | BaseException]]) -> R:
        """Submit `item` to the next group. Blocks until `do(group)` has run; returns or raises what it gave for it."""
        future: Future[R] = Future()
        with self._changed:
            self._submitted.append((item, future))
            is_first = len(self._submitted) == 1
        if is_first:
            with self._running:
                self._run(do)
        return future.result()

    def _run(self, do: Callable[[Sequence[T]], Sequence[R | BaseException]]) -> None:
        with self._changed:
            group, self._submitted = self._submitted, []
        try:
            results = do([item for item, _ in group])
        except BaseException as error:  # noqa: BLE001  every thread of the group gets it
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
