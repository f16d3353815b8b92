"""The health of carriers: one that does not work is rested for all workers, and tried with one job after a while.

Each process watches what its own messages meet. What is wrong with us rests a carrier at once; a carrier that fails is
rested when at least `BAD_MIN` of its last `WATCHED` deliveries were bad, and as many as were good. Which carriers rest
is in the database, where each process looks once a second.
"""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeVar

import structlog
from prometheus_client import Histogram
from sqlalchemy import Connection

from models.database.engine import Database
from models.messages.fields import Kind
from models.sends.carrier import NEVER_SENDS, Outcome, Receipt
from models.sends.resting import Rest, begin_rest, claim_probe, end_rest, find_rests
from models.sends.routes import Route
from tasks.metrics import SECONDS

T = TypeVar("T")
log = structlog.get_logger(__name__)

WATCHED: Final = 20
BAD_MIN: Final = 5
LOOK_AGAIN_S: Final = 1.0
"""How long a process goes by what it has read of carriers that rest, in seconds."""
TRY_AGAIN: Final = timedelta(seconds=2)
"""How long jobs wait while one of them tries a carrier."""
OTHERS_FIRST_S: Final = 60.0
"""How long a carrier that has rested waits to be tried by a job that is not in doubt, in seconds."""
SLOW: Final = "It takes messages, but too slowly."


class Resting(NamedTuple):
    """How a carrier that rests is seen by a process: how long it still rests, in the process's own clock."""

    rest: Rest
    until_s: float


class CarrierHealth:
    """What this process knows of its carriers. Called by threads and by the event loop."""

    def __init__(
        self,
        database: Database,
        writers: Executor,
        routes: Mapping[Kind, Sequence[Route]],
        now: Callable[[Connection], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._writers = writers
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._resting: dict[tuple[Kind, str], Resting] = {}
        self._probing: set[tuple[Kind, str]] = set()
        self._lately: dict[tuple[Kind, str], deque[int]] = {}
        self._never_fails = all(
            route.carrier.key_window == NEVER_SENDS for of_kind in routes.values() for route in of_kind
        )
        self.outcomes: Counter[tuple[Kind, str, str]] = Counter()
        """How many deliveries ended how, by kind, carrier and outcome, since the process began."""
        words = "How long carriers took, from the first byte to the answer."
        self.took = Histogram("postage_delivery_seconds", words, ["kind", "carrier"], buckets=SECONDS, registry=None)
        """How long deliveries took, in seconds, by kind and carrier; not those to a carrier that sends nothing."""
        keys = [(kind, route.name) for kind, of_kind in routes.items() for route in of_kind]
        self._took_of = {key: self.took.labels(*key) for key in keys}

    def look(self) -> None:
        """Read which carriers rest, unless that was done lately."""
        moment = self._monotonic()
        if self._never_fails or (self._looked_at is not None and moment < self._looked_at + LOOK_AGAIN_S):
            return
        self._looked_at = moment
        found, now = self._database.read(lambda connection: (find_rests(connection), self._now(connection)))
        resting = {
            (rest.kind, rest.carrier): Resting(rest, moment + (rest.until - now).total_seconds()) for rest in found
        }
        with self._lock:
            self._resting = resting

    @property
    def knows_rests(self) -> bool:
        """Whether any carrier rests, or is to be tried, as far as this process knows."""
        return bool(self._resting)

    def waits(self, kind: Kind) -> dict[str, timedelta]:
        """Return the carriers of a kind that are not to be asked now, and for how long."""
        with self._lock:
            its_own = [(name, each) for (of_kind, name), each in self._resting.items() if of_kind == kind]
            probing = {name for of_kind, name in self._probing if of_kind == kind}
        moment = self._monotonic()
        waits = {}
        for name, each in its_own:
            left = timedelta(seconds=each.until_s - moment)
            if left > timedelta():
                waits[name] = left
            elif name in probing:
                waits[name] = TRY_AGAIN
        return waits

    def resting(self) -> set[tuple[Kind, str]]:
        """Return the carriers that do not work, as this process knows.

        One of which it has heard nothing for a while after the rest counts as working: it looks only when it has
        something to send.
        """
        moment = self._monotonic()
        with self._lock:
            return {key for key, each in self._resting.items() if moment < each.until_s + OTHERS_FIRST_S}

    def is_to_be_tried(self, kind: Kind, name: str) -> bool:
        """Whether a carrier has rested, so that only one job may ask it now."""
        with self._lock:
            return (kind, name) in self._resting

    async def claim(self, kind: Kind, name: str, *, in_doubt: bool) -> bool:
        """Whether the caller's job is the one that tries a carrier which has rested.

        One that is in doubt does so only if no other job has come for a while.
        """
        key = (kind, name)
        with self._lock:
            resting = self._resting.get(key)
            if resting is None or key in self._probing:
                return resting is None
            if in_doubt and self._monotonic() < resting.until_s + OTHERS_FIRST_S:
                return False
            self._probing.add(key)
        claimed = await self._write(lambda connection: claim_probe(connection, kind, name, self._now(connection)))
        if not claimed:  # a job of another worker does, or it works again
            with self._lock:
                self._probing.discard(key)
                self._looked_at = None
        return claimed

    async def note(self, kind: Kind, route: Route, receipt: Receipt, took_s: float, *, was_tried: bool) -> None:
        """Note how a delivery ended; `was_tried` says that its job was the one that tried the carrier."""
        key = (kind, route.name)
        self.count(kind, route.name, receipt.outcome)
        self._took_of[key].observe(took_s)
        badness, detail = _badness(route, receipt, took_s)
        lately = self._lately.setdefault(key, deque(maxlen=WATCHED))
        lately.append(badness)
        is_our_fault = receipt.outcome is Outcome.OUR_FAULT
        is_burst = sum(lately) >= BAD_MIN and 2 * sum(map(bool, lately)) >= len(lately)
        if is_our_fault or is_burst or (was_tried and badness):
            lately.clear()
            await self._rest(key, detail, is_our_fault=is_our_fault)
        elif was_tried:
            await self._end_rest(key)

    def count(self, kind: Kind, name: str, outcome: Outcome, number: int = 1) -> None:
        """Count deliveries that ended so."""
        with self._lock:
            self.outcomes[kind, name, outcome] += number

    def give_up_claim(self, kind: Kind, name: str) -> None:
        """Note that the job which was to try a carrier did not come to it."""
        with self._lock:
            self._probing.discard((kind, name))

    async def _rest(self, key: tuple[Kind, str], detail: str, *, is_our_fault: bool) -> None:
        def begin(connection: Connection) -> tuple[Rest | None, float]:
            now = self._now(connection)
            rest = begin_rest(connection, *key, detail, now, is_our_fault=is_our_fault)
            return rest, 0.0 if rest is None else (rest.until - now).total_seconds()

        begun, rests_s = await self._write(begin)
        with self._lock:
            self._probing.discard(key)
            self._looked_at = None
            if begun is not None:
                self._resting[key] = Resting(begun, self._monotonic() + rests_s)
        if begun is not None:
            log_rest = log.error if begun.rests == 1 or is_our_fault else log.warning
            log_rest(
                "carrier rests",
                kind=key[0],
                carrier=key[1],
                why=begun.detail,
                seconds=round(rests_s),
                times=begun.rests,
            )

    async def _end_rest(self, key: tuple[Kind, str]) -> None:
        ended = await self._write(lambda connection: end_rest(connection, *key))
        with self._lock:
            self._probing.discard(key)
            self._resting.pop(key, None)
        if ended:
            log.warning("carrier works again", kind=key[0], carrier=key[1])

    async def _write(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writers, self._database.write, work)


def _badness(route: Route, receipt: Receipt, took_s: float) -> tuple[int, str]:
    """Return how bad a delivery was for its carrier, and why: what leaves a message in doubt counts twice."""
    if receipt.outcome is Outcome.OUR_FAULT:
        return 1, receipt.detail
    if receipt.is_failing:
        return 1 + (receipt.outcome is Outcome.UNSURE), receipt.detail
    if route.slow_after is not None and took_s > route.slow_after.total_seconds():
        return 1, SLOW
    return 0, ""
