"""Routes: the carriers of a kind, and which of them gets a message. Pure."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

from models.sends.carrier import Carrier
from models.sends.charges import Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A carrier under its name, and when it is used.

    Those of the lowest `priority` are used first; among equal ones messages are shared by `weight`. `prefixes` are the
    beginnings of the numbers it is for, without `+`: none means all. `rate` is messages (texts: segments) a second over
    all workers. What took longer than `slow_after` counts as a failure of the carrier, though not of the message.
    """

    name: str
    carrier: Carrier
    priority: int = 1
    weight: int = 1
    prefixes: tuple[str, ...] = ()
    rate: float | None = None
    slow_after: timedelta | None = None

    def serves(self, charge: Charge) -> bool:
        """Whether it is for the recipient of a message."""
        if not self.prefixes or charge.kind == "email":
            return True
        number = str((charge.content or {}).get("to", "")).removeprefix("+")
        return number.startswith(self.prefixes)


def routes_of(charge: Charge, routes: Sequence[Route]) -> list[Route]:
    """Return the routes that may have a message: after doubt only the one that may have it already."""
    if charge.handover_started_at is not None:
        its_name = charge.carrier or (routes[0].name if len(routes) == 1 else None)  # None: of an earlier release
        return [route for route in routes if route.name == its_name]
    return [route for route in routes if route.serves(charge)]


def choose(routes: Sequence[Route], *, without: Collection[str] = ()) -> Route | None:
    """Return the route that a message takes, drawn by weight among those of the lowest priority; None if none is left.

    `without` are the names of those that rest, or have said no to this message.
    """
    left = [route for route in routes if route.name not in without]
    if len(left) <= 1:
        return left[0] if left else None
    first = min(route.priority for route in left)
    equal = [route for route in left if route.priority == first]
    return random.choices(equal, [route.weight for route in equal])[0]  # noqa: S311  a share is no secret
