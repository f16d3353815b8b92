"""The delivery engine: one event loop a process, on which attempts are made, hundreds at a time.

An attempt chooses a carrier, waits for its turn there, notes the handover, and hands the message over. It ends as what
the carrier answered, as a wait, or as a doubt that cannot be ended. It writes nothing but handovers: the thread that
holds the jobs settles them.
"""

import asyncio
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from models.database.engine import Database, transaction_time
from models.messages.fields import Kind
from models.sends.carrier import NEVER_SENDS, Outcome, Receipt
from models.sends.charges import Charge
from models.sends.leases import HandoverNote, LeaseKey, note_handovers
from models.sends.outcomes import Attempt, Try, is_askable
from models.sends.routes import Route, choose, routes_of
from tasks.batch import Batch, Ended, Lasting, LeaseLostError, Moments, Places, TooLateError, Waits
from tasks.event_loop import EventLoop, LoopGroups, spawn
from tasks.health import TRY_AGAIN, CarrierHealth
from tasks.outbound import outbound_message
from tasks.rates import NO_LIMITS, Limits, RateAsk, RatesAwayError, Reserved, Slot

log = structlog.get_logger(__name__)

SLOT_AHEAD_S: Final = 20.0
"""How long a message waits at its carrier's door for its slot under a rate, in seconds; otherwise it comes back."""
RATES_AWAY_WAIT: Final = timedelta(seconds=5)
"""How long a message waits while nobody knows the rates."""
WAIT_MIN: Final = timedelta(seconds=1)
"""How long a job waits at least for a carrier that rests."""
NO_CARRIER_WAIT: Final = timedelta(minutes=5)
"""How long a message waits for which no carrier is set up, before that is looked at again."""

Routes = Mapping[Kind, Sequence[Route]]
"""The routes of each kind."""


class _Turn(NamedTuple):
    """A route that a message takes now; `is_trial` says that it is the one message which tries the carrier."""

    route: Route
    is_trial: bool


class DeliveryEngine:
    """Makes attempts on the event loop of this process."""

    def __init__(
        self,
        routes: Routes,
        database: Database,
        *,
        now: Callable[[Connection], datetime] = transaction_time,
        monotonic: Callable[[], float] = time.monotonic,
        loop: EventLoop | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.routes = routes
        self._database = database
        self._now = now
        self._monotonic = monotonic
        self._loop = loop or EventLoop()
        self.health = CarrierHealth(database, self._loop.writers, routes, now, monotonic)
        self._places = {
            (kind, route.name): Places(functools.partial(getattr, route.carrier, "capacity"))
            for kind, of_kind in routes.items()
            for route in of_kind
        }
        self._limits = limits
        self._moments = Moments()
        self._handovers = LoopGroups(self._loop.writers, self._note_handovers)
        self._slots: LoopGroups[RateAsk, Slot] = LoopGroups(
            self._loop.writers, lambda asks: limits.rates.reserve(asks, SLOT_AHEAD_S)
        )

    def start(self, held: Sequence[Charge], now: datetime, start_until: float) -> Batch:
        """Begin one attempt for each charge that the caller holds. `now` is the time of the claim.

        What has to wait for a place is not begun after `start_until`, by the monotonic clock.
        """
        self.health.look()
        batch = Batch(len(held), lambda: start_until - self._monotonic(), self._moments)
        kind = held[0].kind
        route, *others = self.routes[kind]
        if not others and route.carrier.key_window == NEVER_SENDS and not self._limits.hold_for(route):
            # It waits for nothing, so it needs no loop.
            batch.answer([(charge, _answer(route, charge)) for charge in held])
            self.health.count(kind, route.name, Outcome.ACCEPTED, len(held))
        else:
            self._loop.call(self._start, batch, held, now)
        return batch

    def stop_waiting(self, batch: Batch) -> None:
        """Begin no more attempts of a batch."""
        self._loop.call(batch.stop_waiting)

    def key_window(self, kind: Kind, carrier: str | None) -> timedelta:
        """Return how long a carrier knows a message again; zero for one that is not set up here (any more)."""
        routes = self.routes[kind]
        if carrier is None and len(routes) == 1:  # noted by an earlier release
            return routes[0].carrier.key_window
        return next((route.carrier.key_window for route in routes if route.name == carrier), timedelta())

    def close(self) -> None:
        """Close the connections that carriers keep, and end the loop."""
        self._loop.close(*(route.carrier.close() for of_kind in self.routes.values() for route in of_kind))

    def _start(self, batch: Batch, held: Sequence[Charge], now: datetime) -> None:
        for charge in held:
            spawn(self._run(batch, charge, now))

    async def _run(self, batch: Batch, charge: Charge, now: datetime) -> None:
        try:
            result: Ended | BaseException = await self._attempt(batch, charge, now)
        except BaseException as error:  # noqa: BLE001  the thread that holds the job decides
            result = error
        batch.end(charge, result)

    async def _attempt(self, batch: Batch, charge: Charge, now: datetime) -> Ended:
        """Make one attempt. A carrier that certainly did not take the message, and does not work, is not the last."""
        structlog.contextvars.bind_contextvars(job=charge.job_id, sender=charge.sender, payer=charge.payer)
        routes = routes_of(charge, self.routes[charge.kind])
        why = _why_lasting(charge, routes, now)
        if why is not None:
            return Lasting(charge, why)
        attempt: Attempt | None = None
        tried: dict[str, Try] = {}
        while True:
            turn = self._free_turn(routes, tried) or await self._turn(charge, routes, tried)
            if isinstance(turn, Waits):
                return attempt or turn
            ask = self._limits.ask(turn.route, charge)
            waits = None if ask is None else await self._wait_for_slot(batch, turn, charge, ask)
            if waits is not None:
                return attempt or waits
            attempt = await self._ask(batch, turn, charge, tuple(tried.values()))
            if not _may_go_elsewhere(attempt):
                return attempt
            name, receipt = turn.route.name, attempt.receipt
            tried[name] = Try(name, receipt.outcome, receipt.detail)

    def _free_turn(self, routes: Sequence[Route], tried: Collection[str]) -> _Turn | None:
        """Return the route that a message takes if no carrier rests, as is usual."""
        if self.health.knows_rests:
            return None
        route = choose(routes, without=tried)
        return None if route is None else _Turn(route, is_trial=False)

    async def _turn(self, charge: Charge, routes: Sequence[Route], tried: Collection[str]) -> _Turn | Waits:
        """Return the route that a message takes, or for how long it waits because all carriers rest."""
        waits = self.health.waits(charge.kind)
        while route := choose(routes, without={*waits, *tried}):
            if not self.health.is_to_be_tried(charge.kind, route.name):
                return _Turn(route, is_trial=False)
            in_doubt = charge.handover_started_at is not None
            if await self.health.claim(charge.kind, route.name, in_doubt=in_doubt):
                return _Turn(route, is_trial=True)
            waits[route.name] = TRY_AGAIN
        its_own = [waits[route.name] for route in routes if route.name in waits]
        if not its_own:
            return Waits(charge, "No carrier is set up for this recipient.", NO_CARRIER_WAIT)
        return Waits(charge, "The carrier does not work now; it is tried again.", max(WAIT_MIN, min(its_own)))

    async def _wait_for_slot(self, batch: Batch, turn: _Turn, charge: Charge, ask: RateAsk) -> Waits | None:
        """Wait until a message may go under all rates; returns for how long it is to come back if that is too long."""
        left: RateAsk | None = ask
        slot = None
        try:
            while left is not None:
                slot = await self._slots.submit(left)
                if slot.is_reserved and slot.wait_s > batch.time_left():  # somebody else can use it, if told in time
                    self._give_back_soon(slot)
                    slot = slot._replace(is_reserved=False)
                if not slot.is_reserved:
                    return Waits(charge, "It waits for its turn: more is to be sent than the rate allows.",
                                 timedelta(seconds=slot.wait_s))  # fmt: skip
                if slot.wait_s > 0:
                    await batch.sleep(slot.wait_s)
                left = slot.left
        except RatesAwayError as error:
            return Waits(charge, str(error), RATES_AWAY_WAIT)
        except TooLateError:
            if slot is not None:
                self._give_back_soon(slot)
            raise
        finally:
            if left is not None and turn.is_trial:
                self.health.give_up_claim(charge.kind, turn.route.name)
        return None

    def _give_back_soon(self, slot: Slot) -> None:
        asyncio.get_running_loop().run_in_executor(self._loop.writers, self._give_back, slot.reserved)

    def _give_back(self, unused: Sequence[Reserved]) -> None:
        with suppress(RatesAwayError):  # then these slots are lost
            self._limits.rates.give_back(unused)

    async def _ask(self, batch: Batch, turn: _Turn, charge: Charge, tried_before: Sequence[Try]) -> Attempt:
        """Hand a message over to a carrier, as soon as there is a free place at it."""
        route, kind = turn.route, charge.kind
        try:
            places = self._places[kind, route.name]
            await places.take(batch)
            try:
                began = time.monotonic()
                receipt = await self._hand_over(route, charge)
            finally:
                places.leave()
        except BaseException:
            if turn.is_trial:
                self.health.give_up_claim(kind, route.name)
            raise
        await self.health.note(kind, route, receipt, time.monotonic() - began, was_tried=turn.is_trial)
        return Attempt(
            charge=charge,
            carrier=route.name,
            key_window=route.carrier.key_window,
            receipt=receipt,
            tried_before=tried_before,
        )

    async def _hand_over(self, route: Route, charge: Charge) -> Receipt:
        """Call a carrier. That it may have the message is noted before; one that sends nothing needs no note."""
        carrier = route.carrier
        if carrier.key_window == NEVER_SENDS:
            return await carrier.deliver(outbound_message(charge), _nothing)
        handover = _Handover(self._handovers, charge, route.name)
        try:
            if carrier.key_window:
                await handover()
            receipt = await carrier.deliver(outbound_message(charge), _nothing if carrier.key_window else handover)
            return receipt.sanitized()
        except LeaseLostError:
            log.warning("lease expired before the handover; attempt abandoned")
            raise
        finally:
            handover.end()

    def _note_handovers(self, group: Sequence[tuple[Charge, str]]) -> list[BaseException | None]:
        """Commit that carriers may have these messages: a successor must know after a crash. Runs in a thread."""
        together: defaultdict[tuple[LeaseKey, str], list[str]] = defaultdict(list)
        for charge, carrier in group:
            together[_lease_of(charge), carrier].append(charge.job_id)
        notes = [HandoverNote(lease, carrier, tuple(job_ids)) for (lease, carrier), job_ids in together.items()]
        held = self._database.write(lambda connection: note_handovers(connection, notes, self._now(connection)))
        return [None if _lease_of(charge) in held else LeaseLostError() for charge, _ in group]


class _Handover:
    """The handover of one message, which is expected until it is noted or the attempt has ended."""

    def __init__(self, groups: LoopGroups[tuple[Charge, str], None], charge: Charge, carrier: str) -> None:
        self._groups = groups
        self._item = (charge, carrier)
        self._is_expected = True
        groups.expected += 1

    async def __call__(self) -> None:
        try:
            await self._groups.submit(self._item)
        finally:
            self.end()

    def end(self) -> None:
        """Expect it no longer."""
        if self._is_expected:
            self._is_expected = False
            self._groups.expected -= 1


def _answer(route: Route, charge: Charge) -> Attempt | BaseException:
    """Return the answer of a carrier that waits for nothing."""
    asked = route.carrier.deliver(outbound_message(charge), _nothing)
    try:
        asked.send(None)
    except StopIteration as answered:
        return Attempt(
            charge=charge, carrier=route.name, key_window=route.carrier.key_window, receipt=answered.value.sanitized()
        )
    except BaseException as error:  # noqa: BLE001  the thread that holds the job decides
        return error
    asked.close()
    return TypeError(f"{route.name} sends nothing, and yet it waits for something.")


async def _nothing() -> None:
    """Note nothing: it was noted before, or nothing is handed over."""


def _lease_of(charge: Charge) -> LeaseKey:
    return LeaseKey(charge.org_id, charge.lease_id or "")


def _why_lasting(charge: Charge, routes: Sequence[Route], now: datetime) -> str | None:
    """Return why the carrier that may have a message cannot be asked about it, or None if it can, or none has it."""
    since = charge.handover_started_at
    if since is None:
        return None
    if not routes:
        return f"{charge.carrier or 'A carrier'} may have taken it, and is not set up any more, so it cannot be asked."
    if not is_askable(since, routes[0].carrier.key_window, now):
        return f"{routes[0].name} may have taken it, and does not know it again any more, so it cannot be asked."
    return None


def _may_go_elsewhere(attempt: Attempt) -> bool:
    """Whether another carrier may get the message at once: nobody can have it, and this carrier does not work."""
    receipt = attempt.receipt
    if attempt.charge.handover_started_at is not None:
        return False
    return receipt.outcome is Outcome.OUR_FAULT or (receipt.outcome is Outcome.NOT_NOW and receipt.is_failing)
