"""Rates: how many messages a second may go to a carrier, from an organization, or from a sender, over all workers.

A message asks for slots under all of its limits at once. It waits until its slot begins, and then goes, or asks for
the slots that are left:

    while True:
        slot = reserve([ask])
        if not slot.is_reserved: come back after slot.wait_s
        wait for slot.wait_s
        if slot.left is None: go
        ask = slot.left
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from models.sends.charges import Charge
from models.sends.routes import Route

BURST_S = 0.2
"""How long a limit that was not used may be used afterwards, in seconds: as long as a busy worker is late."""


class RateLimit(NamedTuple):
    """So many messages (texts: segments) a second. All who name the same `key` share them.

    In any time t, at most as many go as it allows in t + `burst_s`, and one more.
    """

    key: str
    per_second: float
    burst_s: float = BURST_S


class RateAsk(NamedTuple):
    """What one message asks for: slots under these limits, the narrowest first, each for so many `units`.

    A message that waits for one limit takes no slot of those that follow: somebody else can use it meanwhile.
    """

    limits: tuple[RateLimit, ...]
    units: int = 1


class Reserved(NamedTuple):
    """A slot under one limit. Times are microseconds by the broker's clock."""

    key: str
    start: int
    length: int


class Slot(NamedTuple):
    """What a message got: how long it waits, in seconds, its slots, and what it asks for after the wait."""

    wait_s: float
    reserved: tuple[Reserved, ...] = ()
    left: RateAsk | None = None
    is_reserved: bool = True
    """Whether it has its slots. Otherwise it would have waited too long, and may ask again after the wait."""


class RatesAwayError(Exception):
    """The broker does not answer, so nobody knows when a message may go."""


class Rates(Protocol):
    """What all workers know together of the messages that have gone."""

    def reserve(self, asks: Sequence[RateAsk], within_s: float) -> list[Slot]:
        """Reserve slots for each message, in this order. One that would wait for longer than `within_s` gets none.

        Raises
        ------
        RatesAwayError
            If that is not known now.

        """

    def give_back(self, unused: Sequence[Reserved]) -> None:
        """Give slots back that no message will use. What is given back too late is lost."""


class NoRates:
    """For a broker that counts nothing: every message goes at once."""

    def reserve(self, asks: Sequence[RateAsk], within_s: float) -> list[Slot]:  # noqa: ARG002
        """Let every message go."""
        return [Slot(0.0) for _ in asks]

    def give_back(self, unused: Sequence[Reserved]) -> None:
        """Take nothing back."""


class Limits(NamedTuple):
    """How many messages (texts: segments) a second all workers may send for an organization, and for a sender.

    What a carrier may get is said by its route. `rates` is what all workers know together.
    """

    rates: Rates = NoRates()
    organization: float | None = None
    sender: float | None = None

    def hold_for(self, route: Route) -> bool:
        """Whether anything that takes a route is limited."""
        return not (self.sender is None and self.organization is None and route.rate is None)

    def ask(self, route: Route, charge: Charge) -> RateAsk | None:
        """Return what a message asks for before it goes to a carrier, or None if there is no limit."""
        if not self.hold_for(route):
            return None
        named = (
            (f"{charge.kind}:sender:{charge.org_id}:{charge.sender}", self.sender),
            (f"{charge.kind}:organization:{charge.org_id}", self.organization),
            (f"{charge.kind}:carrier:{route.name}", route.rate),
        )
        limits = tuple(RateLimit(key, rate) for key, rate in named if rate is not None)
        return RateAsk(limits, charge.credits if charge.kind == "sms" else 1)


NO_LIMITS: Final = Limits()
