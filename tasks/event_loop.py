"""The event loop of a process: a thread of its own in which all carriers are called, many at a time."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

GATHER_S = 0.005
"""How long a group waits for more items, in seconds: short beside a commit, long beside a fast carrier."""
CLOSE_S = 5.0
"""How long the end of a process waits for connections to be closed, in seconds."""
WRITERS = 4
"""Threads that write to the database, or ask the broker, for the loop."""


class EventLoop:
    """An asyncio loop, of uvloop where there is one, in a thread that begins with the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.writers: Executor = ThreadPoolExecutor(WRITERS, "loop-writer")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._started())

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the loop, soon."""
        self._started().call_soon_threadsafe(function, *arguments)

    def close(self, *closing: Coroutine[Any, Any, None]) -> None:
        """Run these coroutines, end what still runs, and end the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            for coroutine in closing:
                coroutine.close()
            return
        ending = asyncio.run_coroutine_threadsafe(_end_all(closing), loop)
        with contextlib.suppress(TimeoutError):
            ending.result(CLOSE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S)
        self.writers.shutdown(wait=False)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = _new_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="carriers", daemon=True)
                self._thread.start()
            return self._loop


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415  there is none for some platforms
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _end_all(closing: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Close what is kept open, then cancel what still runs: a conversation that is cut off closes its connection."""
    await asyncio.gather(*closing, return_exceptions=True)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


_RUNNING: set[asyncio.Task[Any]] = set()
"""What `spawn` has begun: a loop keeps no strong reference to its tasks."""


def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on the loop that runs, beside the caller."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _RUNNING.add(task)
    task.add_done_callback(_RUNNING.discard)


class LoopGroups(Generic[T, R]):
    """Groups items that coroutines of one loop submit at the same time, for something that is done in a thread.

    A group begins once the group before it is done, and everybody who was expected has submitted an item, or
    `gather_s` is over. `do` gives a result or an exception for each item, in their order.
    """

    def __init__(
        self, writers: Executor, do: Callable[[Sequence[T]], Sequence[R | BaseException]], gather_s: float = GATHER_S
    ) -> None:
        self._writers = writers
        self._do = do
        self._gather_s = gather_s
        self._submitted: list[tuple[T, asyncio.Future[R]]] = []
        self._is_running = False
        self._timer: asyncio.Handle | None = None
        self._waits = False
        self.expected = 0
        """How many have submitted an item, or are about to."""

    async def submit(self, item: T) -> R:
        """Submit an item to the next group. Returns its result, or raises its exception."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._submitted.append((item, future))
        self._plan(loop)
        return await future

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin a group once everything has run that can run now, or after a moment, if more is expected."""
        if self._is_running or not self._submitted:
            return
        if self._timer is None:
            self._timer = loop.call_soon(self._begin_or_wait, loop)
        elif self._waits and self.expected <= len(self._submitted):
            self._timer.cancel()
            self._begin(loop)

    def _begin_or_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waits = self.expected > len(self._submitted)
        if self._waits:
            self._timer = loop.call_later(self._gather_s, self._begin, loop)
        else:
            self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._waits = None, False
        self._is_running = True
        group, self._submitted = self._submitted, []
        spawn(self._run(loop, group))

    async def _run(self, loop: asyncio.AbstractEventLoop, group: Sequence[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            results = await loop.run_in_executor(self._writers, self._do, [item for item, _ in group])
        except BaseException as error:  # noqa: BLE001  everyone of the group gets it
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():  # nobody waits any more
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._is_running = False
        self._plan(loop)
