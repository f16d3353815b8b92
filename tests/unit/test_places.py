"""Places at a carrier: no more are taken than there are, everybody gets one in turn, and none is lost."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tasks.batch import Batch, Moments, Places, TooLateError


def test_a_batch_that_is_stopped_leaves_the_line() -> None:
    """Who comes afterwards finds a free place."""

    async def run() -> None:
        places, stopped, other = (
            Places(lambda: 1),
            Batch(1, lambda: 1.0, Moments()),
            Batch(1, lambda: 1.0, Moments()),
        )
        await places.take(other)
        waiting = [asyncio.create_task(places.take(stopped)) for _ in range(3)]
        await asyncio.sleep(0)
        stopped.stop_waiting()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [TooLateError] * 3
        places.leave()
        await asyncio.wait_for(places.take(other), 10)

    asyncio.run(run())


def test_a_carrier_that_has_fewer_places_than_it_said_is_believed() -> None:
    async def run() -> None:
        count, batch = [3], Batch(1, lambda: 1.0, Moments())
        places = Places(lambda: count[0])
        for _ in range(3):
            await places.take(batch)
        count[0] = 0  # one there is always
        waiting = asyncio.create_task(places.take(batch))
        for _ in range(2):
            places.leave()
            await asyncio.sleep(0)
            assert not waiting.done()
        places.leave()
        await asyncio.wait_for(waiting, 10)

    asyncio.run(run())


class Play:
    """Deliveries that take places and leave them, in any order."""

    def __init__(self) -> None:
        self.count, self.most = 2, 0
        self.places = Places(lambda: self.count)
        self.batches = [Batch(1, lambda: 1.0, Moments()) for _ in range(3)]
        self.tasks: list[asyncio.Task[None]] = []
        self.holding = 0

    async def _hold(self, batch: Batch) -> None:
        await self.places.take(batch)
        self.holding += 1
        self.most = max(self.most, self.holding)

    def take(self, value: int) -> None:
        """Begin a delivery of a batch."""
        self.tasks.append(asyncio.create_task(self._hold(self.batches[value % 3])))

    def leave(self, _: int = 0) -> None:
        """End a delivery."""
        if self.holding:
            self.holding -= 1
            self.places.leave()

    def stop(self, value: int) -> None:
        """Let a batch wait no longer."""
        self.batches[value % 3].stop_waiting()
        self.batches[value % 3] = Batch(1, lambda: 1.0, Moments())

    def cancel(self, value: int) -> None:
        """End a delivery from outside, whatever it does."""
        if self.tasks:
            self.tasks[value % len(self.tasks)].cancel()

    def change(self, value: int) -> None:
        """Let the carrier have more places, or fewer."""
        self.count = value

    async def end(self) -> None:
        """End all deliveries; then a place is free."""
        self.count = 1
        while self.holding or not all(task.done() for task in self.tasks):
            self.leave()
            await asyncio.sleep(0)
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.wait_for(self.places.take(self.batches[0]), 10)


ACTIONS = st.sampled_from(["take", "take", "leave", "stop", "cancel", "change"])


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 5)), max_size=60))
def test_no_place_is_lost_and_no_more_are_taken_than_there_are(steps: list[tuple[str, int]]) -> None:
    """Whoever waits, is stopped or is cancelled, and whatever the carrier says meanwhile."""

    async def run() -> None:
        play = Play()
        for action, value in steps:
            getattr(play, action)(value)
            if value % 2:
                await asyncio.sleep(0)
        assert play.most <= 5
        await play.end()

    asyncio.run(run())
