"""Charts as SVG, made on the server. A table of the same numbers stands beside each, for those who see no chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT, MARGIN = 720.0, 200.0, 44.0
"""Of the drawing, in its own units: bars stand right of the margin, in which the numbers of the axis are."""
BAR_SHARE, BAR_MAX = 0.7, 48.0
"""How much of its place a bar takes, and how wide it is at most."""
LABELS_MAX = 8


class Part(NamedTuple):
    """A part of a bar."""

    kind: str
    x: float
    y: float
    width: float
    height: float


class Mark(NamedTuple):
    """A place on an axis, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Stacked bars, with the marks of both axes."""

    parts: Sequence[Part]
    across: Sequence[Mark]
    up: Sequence[Mark]
    width: float = WIDTH
    height: float = HEIGHT
    margin: float = MARGIN


def stacked_bars(bars: Sequence[tuple[str, Mapping[str, int]]]) -> Chart:
    """Return the chart of bars with these labels, each a stack of its parts by kind."""
    top = _round_up(max((sum(parts.values()) for _, parts in bars), default=0))
    place = (WIDTH - MARGIN) / max(len(bars), 1)
    bar_width = min(place * BAR_SHARE, BAR_MAX)
    drawn: list[Part] = []
    for number, (_, parts) in enumerate(bars):
        x, y = MARGIN + place * number + (place - bar_width) / 2, HEIGHT
        for kind, count in parts.items():
            if count:
                height = HEIGHT * count / top
                y -= height
                drawn.append(Part(kind, round(x, 2), round(y, 2), round(bar_width, 2), round(height, 2)))
    step = -(-len(bars) // LABELS_MAX)
    across = [
        Mark(round(MARGIN + place * (number + 0.5), 2), label)
        for number, (label, _) in enumerate(bars)
        if number % step == 0
    ]
    up = [Mark(round(HEIGHT - HEIGHT * share / 2, 2), f"{top * share // 2:,}") for share in range(3)]
    return Chart(drawn, across, up)


def _round_up(count: int) -> int:
    """Return the next even number with one digit that is not zero, so that its half is a whole number too."""
    size = 1
    while size * 10 < count:
        size *= 10
    return max(2, -(-count // (2 * size)) * 2 * size)
