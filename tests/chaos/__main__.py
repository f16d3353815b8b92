"""`python -m tests.chaos`: the long form of the scenarios. It prints a table, and writes all figures as JSON."""

import argparse
import json
import random
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from tests.chaos.scenarios import LONG, SCENARIOS, run
from tests.chaos.verdict import Verdict

COLUMNS = ("jobs", "faults", "lost", "sent_twice", "charged_twice", "drift", "unmatched_refunds", "unknown",
           "unknown_most", "seconds")  # fmt: skip


def main() -> int:
    """Run the scenarios that were asked for. Returns 1 if anything was wrong."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    console = Console(width=140)
    console.print(f"Seed {asked.seed}. Valkey with appendfsync always; PostgreSQL with fsync.")
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="postage-chaos-") as folder:
        for name in asked.scenario or SCENARIOS:
            size = LONG[name]
            size = replace(size, jobs=asked.jobs or size.jobs, faults=asked.kills or size.faults)
            console.print(f"{name}: {size.jobs} jobs, {size.faults} faults …")
            verdict = run(
                name,
                Path(folder) / name,
                asked.seed,
                size,
                workers=asked.workers,
                threads=asked.threads,
                options=asked.worker_options.split(),
            )
            verdicts.append(verdict)
            for line in (*verdict.wrong, *verdict.notes, *verdict.details):
                console.print(f"    {line}", markup=False, highlight=False)
    console.print(_table(verdicts))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps([verdict.as_json() for verdict in verdicts], indent=2))
    console.print(f"Written to {asked.out}.")
    return 1 if any(verdict.wrong for verdict in verdicts) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="again for more; all if left out")
    parser.add_argument("--jobs", type=int, help="how many, instead of each scenario's own number")
    parser.add_argument("--kills", type=int, help="how many faults, instead of each scenario's own number")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--threads", type=int, default=8, help="threads of each")
    parser.add_argument("--worker-options", default="", help="more options for `postage worker`, in one word")
    parser.add_argument("--out", type=Path, default=Path("var/chaos.json"), help="where the JSON goes")
    return parser.parse_args()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _table(verdicts: list[Verdict]) -> Table:
    table = Table("scenario", *(name.replace("_", " ") for name in COLUMNS), "verdict")
    for verdict in verdicts:
        numbers = [str(getattr(verdict, name)) for name in COLUMNS]
        table.add_row(verdict.scenario, *numbers, "WRONG" if verdict.wrong else "holds")
    return table


if __name__ == "__main__":
    sys.exit(main())
