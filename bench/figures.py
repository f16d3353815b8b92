"""The arithmetic of the bench, and the text it makes of what was measured. Nothing here measures anything.

Everything is made from the results as they are kept in JSON, so that a table can be made again from a file.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Figures = dict[str, float]
"""What one round of one side gave: figures by name."""
Results = dict[str, Any]
"""A whole run, as JSON keeps it."""
Rows = list[tuple[str, ...]]

BEGIN: Final = "<!-- bench: begin -->"
END: Final = "<!-- bench: end -->"
QUIET_CORES: Final = 0.25
"""Of a core: what the rest of the machine may take during a measurement before it counts as disturbed."""


@dataclass(frozen=True)
class Target:
    """What was wanted: of one side over another, or of one side alone where there is no other."""

    side: str
    over: str | None
    figure: str
    wanted: float
    at_most: bool = False

    @property
    def name(self) -> str:
        """Its name in tables and in JSON."""
        return f"{self.side} ÷ {self.over}" if self.over else f"{self.side}, {self.figure.replace('_', ' ')}"

    def met(self, measured: float) -> bool:
        """Whether it was reached."""
        return measured <= self.wanted if self.at_most else measured >= self.wanted


def percentile(values: Sequence[float], part: float) -> float:
    """The least value that `part` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-part * len(ordered) // 1)
    return ordered[max(0, int(rank) - 1)]


def median_of(rounds: Sequence[Figures], figure: str) -> float | None:
    """The median of a figure over the rounds that have it."""
    values = [one[figure] for one in rounds if figure in one]
    return statistics.median(values) if values else None


def compared(target: Target, sides: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """What a target came to, the median and the least and most of the rounds; None if it was not measured.

    The median of a ratio is that of the medians; least and most are of ratios within one round.
    """
    mine = _rounds(sides, target.side, target.figure)
    if target.over is None:
        values = list(mine.values())
        return (statistics.median(values), min(values), max(values)) if values else None
    theirs = _rounds(sides, target.over, target.figure)
    each = [mine[number] / theirs[number] for number in mine.keys() & theirs.keys()]
    if not each:
        return None
    return statistics.median(mine.values()) / statistics.median(theirs.values()), min(each), max(each)


def _rounds(sides: Mapping[str, Any], side: str, figure: str) -> dict[int, float]:
    rounds = sides[side]["rounds"] if side in sides else []
    return {int(one["round"]): one[figure] for one in rounds if figure in one}


def judged(targets: Sequence[Target], sides: Mapping[str, Any]) -> dict[str, Any]:
    """Every target that was measured, as JSON keeps it."""
    found = {target: compared(target, sides) for target in targets}
    return {
        target.name: {"measured": round(values[0], 3), "least": round(values[1], 3), "most": round(values[2], 3),
                      "wanted": target.wanted, "at_most": target.at_most, "met": target.met(values[0])}
        for target, values in found.items() if values
    }  # fmt: skip


def tables(results: Results) -> Iterator[tuple[str, Rows]]:
    """The tables of a run, each with its title; the first row of each names the columns."""
    sides: dict[str, Any] = results["sides"]
    targets = [_target_row(name, one) for name, one in results["targets"].items()]
    if targets:
        yield "Wanted and measured", [("what", "measured", "by round", "wanted", "reached"), *targets]
    rates = [_rate_row(side) for side in sides.values() if _has(side, "rate")]
    if rates:
        columns = ("side", "a second", "by round", "CPU ms a job", "workers", "PostgreSQL", "Valkey")
        yield "How many", [columns, *rates]
    waits = [_wait_row(side) for side in sides.values() if _has(side, "p99_ms")]
    if waits:
        yield "How long", [("side", "p50 ms", "p99 ms", "p99 by round"), *waits]
    starts = [_start_row(side) for side in sides.values() if _has(side, "start_s") or _has(side, "idle_mb")]
    if starts:
        yield "A worker process", [("side", "start-up s", "MB before the load", "MB after it"), *starts]
    faults = [(side["title"], side["failed"]) for side in sides.values() if side["failed"]]
    if faults:
        yield "Not measured", [("side", "why"), *faults]


def _has(side: Mapping[str, Any], figure: str) -> bool:
    return median_of(side["rounds"], figure) is not None


def _target_row(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    wanted = f"{'≤' if one['at_most'] else '≥'} {one['wanted']:g}"
    span = between(one["least"], one["most"])
    return name, brief(one["measured"]), span, wanted, "yes" if one["met"] else "no"


def _rate_row(side: Mapping[str, Any]) -> tuple[str, ...]:
    rounds = side["rounds"]
    cpu = (brief(median_of(rounds, f"{whose}_cpu_ms")) for whose in ("all", "worker", "postgres", "valkey"))
    return side["title"], brief(median_of(rounds, "rate")), _span(rounds, "rate"), *cpu


def _wait_row(side: Mapping[str, Any]) -> tuple[str, ...]:
    rounds = side["rounds"]
    return (side["title"], brief(median_of(rounds, "p50_ms")), brief(median_of(rounds, "p99_ms")),
            _span(rounds, "p99_ms"))  # fmt: skip


def _start_row(side: Mapping[str, Any]) -> tuple[str, ...]:
    figures = (median_of(side["rounds"], figure) for figure in ("start_s", "idle_mb", "loaded_mb"))
    return side["title"], *(brief(figure) for figure in figures)


def _span(rounds: Sequence[Figures], figure: str) -> str:
    values = [one[figure] for one in rounds if figure in one]
    return between(min(values), max(values))


def between(least: float, most: float) -> str:
    """The least and the most."""
    return f"{brief(least)} to {brief(most)}"


def brief(value: float | None) -> str:
    """A number with no more digits than its noise allows."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(results: Results) -> str:
    """The tables of a run as they stand in docs/performance.md."""
    machine, how = results["machine"], results["how"]
    where = f"{machine['cpus']} cores ({machine['cpu']}), {machine['memory_gb']} GB, {machine['system']}"
    parts = [
        f"{how['rounds']} rounds on {results['at'][:10]}, commit `{results['commit']}`, {where}.",
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
    ]
    if how["scale"] != 1 or how["settings"]:
        parts.append(f"Scale {how['scale']:g}; settings {how['settings'] or 'as they come'}.")
    parts.append(disturbance(results["sides"]))
    for title, (columns, *rows) in tables(results):
        lines = [_line(columns), _line("---" for _ in columns), *(_line(row) for row in rows)]
        parts += [f"### {title}", "\n".join(lines)]
    return "\n\n".join(parts)


def _line(cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', '·') for cell in cells)} |"


def disturbance(sides: Mapping[str, Any]) -> str:
    """How much of the machine went to what is none of ours."""
    foreign = [one["foreign_cores"] for side in sides.values() for one in side["rounds"] if "foreign_cores" in one]
    disturbed = sum(value > QUIET_CORES for value in foreign)
    return (
        f"Other programs of the machine took more than {QUIET_CORES:g} of a core during {disturbed} of "
        f"{len(foreign)} measurements."
    )


def put_between(text: str, inner: str) -> str:
    """A document with what stands between its two markers replaced.

    Raises
    ------
    ValueError
        If it has not each marker once, in order.

    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        msg = f"The document needs a line {BEGIN} and after it a line {END}, each once."
        raise ValueError(msg)
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n\n{inner}\n\n{END}{text.partition(END)[2]}"
