"""Attempts that are made together: how they end, and what they wait for.

A thread begins a batch on the event loop, and takes its results as they come.
"""

import asyncio
import queue
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

from models.sends.charges import Charge
from models.sends.leases import LeaseKey
from models.sends.outcomes import Attempt

GATHER_S: Final = 0.025
"""How long ended attempts wait for others, to be settled together, in seconds."""


class LeaseLostError(Exception):
    """Another worker has the job now, so nothing more may be done for this attempt."""


class TooLateError(Exception):
    """There is no time left to start this attempt."""


@dataclass(frozen=True, slots=True)
class Waits:
    """No carrier could be asked: the job waits for one, or for its turn under a rate."""

    charge: Charge
    detail: str
    wait: timedelta


@dataclass(frozen=True, slots=True)
class Lasting:
    """A carrier may have the message, and nothing can end the doubt but a person."""

    charge: Charge
    detail: str


Ended = Attempt | Waits | Lasting
"""How an attempt ended."""


class EndedGroup(NamedTuple):
    """Attempts of one batch that have ended, and how many jobs of each lease were settled before them."""

    ended: Sequence[Ended]
    settled_before: Mapping[LeaseKey, int]


class Batch:
    """Attempts that were begun together. Its results are taken by the thread that has begun them."""

    def __init__(self, size: int, time_left: Callable[[], float], moments: "Moments") -> None:
        self.left = size
        """How many have not been taken."""
        self.time_left = time_left
        """How long attempts may still begin, in seconds."""
        self._moments = moments
        self._running = size
        self._ready: queue.SimpleQueue[list[tuple[Charge, Ended | BaseException]]] = queue.SimpleQueue()
        self._ended: list[tuple[Charge, Ended | BaseException]] = []
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_stopped = False

    # -- in the thread

    def take(self, timeout_s: float) -> list[tuple[Charge, Ended | BaseException]]:
        """Return what has ended meanwhile; nothing if that takes longer than `timeout_s`."""
        try:
            group = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return []
        self.left -= len(group)
        return group

    # -- on the loop

    def stop_waiting(self) -> None:
        """Begin nothing more: attempts that wait for a place or a rate end as too late."""
        self._is_stopped = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(TooLateError())

    async def wait(self, event: "asyncio.Future[None]") -> None:
        """Wait for something without which an attempt cannot begin.

        Raises
        ------
        TooLateError
            If it does not come in time.

        """
        if self._is_stopped or self.time_left() < 0:
            raise TooLateError
        self._waiting.add(event)
        try:
            await event
        finally:
            self._waiting.discard(event)
        if self.time_left() < 0:
            raise TooLateError

    async def sleep(self, seconds: float) -> None:
        """Wait for so long.

        Raises
        ------
        TooLateError
            If there is no time for that.

        """
        loop = asyncio.get_running_loop()
        event: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, event)
        try:
            await self.wait(event)
        finally:
            timer.cancel()

    def end(self, charge: Charge, result: Ended | BaseException) -> None:
        """Note how an attempt has ended. The thread gets all that end within a moment together."""
        self._ended.append((charge, result))
        self._running -= 1
        self._moments.note(self, is_last=not self._running)

    def answer(self, results: Sequence[tuple[Charge, Ended | BaseException]]) -> None:
        """Give the thread what has ended, at once."""
        self._ready.put(list(results))

    def flush(self) -> None:
        """Give the thread what has ended since the last time."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._ready.put(ended)


class Moments:
    """When batches give their threads what has ended: all of them at the same moments, so that it is settled together.

    A moment is when a batch has ended, and otherwise `GATHER_S` after the first attempt that ended since the last one.
    """

    def __init__(self) -> None:
        self._batches: set[Batch] = set()
        self._timer: asyncio.Handle | None = None

    def note(self, batch: Batch, *, is_last: bool) -> None:
        """Note that a batch has something to give; `is_last` says that it is over with that."""
        self._batches.add(batch)
        if is_last:
            self._come()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._come)

    def _come(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batches, self._batches = self._batches, set()
        for batch in batches:
            batch.flush()


class Places:
    """The places at a carrier: so many deliveries are at work at a time, and others wait in line.

    How many there are is asked each time, since a carrier may find out that it has fewer; one there is always.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._taken = 0
        self._line: deque[asyncio.Future[None]] = deque()

    async def take(self, batch: Batch) -> None:
        """Take a place, when there is a free one.

        Raises
        ------
        TooLateError
            If it was not free in time.

        """
        if self._has_free and not self._line:
            self._taken += 1
            return
        event = asyncio.get_running_loop().create_future()
        self._line.append(event)
        try:
            await batch.wait(event)
        except BaseException:
            if event.done() and not event.cancelled() and event.exception() is None:
                self.leave()  # it had got the place
            else:
                event.cancel()
                with suppress(ValueError):
                    self._line.remove(event)
            raise

    def leave(self) -> None:
        """Give a place to the next in line."""
        self._taken -= 1
        while self._line and self._has_free:
            event = self._line.popleft()
            if not event.done():
                self._taken += 1
                event.set_result(None)

    @property
    def _has_free(self) -> bool:
        return self._taken < max(1, self._count())


def _wake(event: "asyncio.Future[None]") -> None:
    if not event.done():
        event.set_result(None)
