"""`python -m tests.bench`: how fast, beside others, all in one run.

Every round measures each side once, in random order, so that whatever else the machine does falls on all of them.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench.sides import ROOT, Bench, Bulk, BySmtp, CreditLedger, Latency, LedgerAlone, Sends, Stock
from tests.bench.workers import Measured

NOOP: Final = "stock Celery, no-op"
NOOP_EVENTS: Final = "stock Celery, no-op, events"
HOT: Final = "email.send, one owner"
MANY: Final = "email.send, 1,000 owners"
ORM: Final = "plain Celery task with the ORM"
BULK: Final = "email.send_many"
LEDGER: Final = "ledger alone, batches of 100"
CREDIT_LEDGER: Final = "credit-ledger"
SMTP: Final = "email.send to smtp-sink"
LATENCY: Final = "idle worker, 1 ÷ p99"

SIDES: Final[dict[str, tuple[Any, int]]] = {
    NOOP: (Stock("stock.noop", events=False), 6_000),
    NOOP_EVENTS: (Stock("stock.noop", events=True), 4_000),
    HOT: (Sends(), 8_000),
    MANY: (Sends(owners=1_000), 8_000),
    ORM: (Stock("stock.charge", events=True), 600),
    BULK: (Bulk(), 30_000),
    LEDGER: (LedgerAlone(), 20_000),
    CREDIT_LEDGER: (CreditLedger(), 1_000),
    SMTP: (BySmtp(), 4_000),
    LATENCY: (Latency(), 200),
}
"""Each side and how many jobs it gets in a round."""
RATIOS: Final = (
    (HOT, NOOP_EVENTS, 3.0),
    (HOT, MANY, 0.95),
    (HOT, ORM, 20.0),
    (BULK, NOOP_EVENTS, 20.0),
    (LEDGER, CREDIT_LEDGER, 25.0),
    (SMTP, NOOP_EVENTS, 1.0),
)
"""What is to be how many times as fast as what."""


def main() -> int:
    """Measure, show, and write it down."""
    asked = _arguments()
    console = Console(width=140)
    chosen = {name: side for name, side in SIDES.items() if not asked.only or any(part in name for part in asked.only)}
    found: dict[str, list[Measured]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="postage-bench-") as folder, Bench(Path(folder)) as bench:
        for number in range(1, asked.rounds + 1):
            for name, (side, jobs) in random.sample(list(chosen.items()), len(chosen)):
                measured = side.measure(bench, max(100, int(jobs * asked.scale)))
                found[name].append(measured)
                console.print(f"round {number}: {name}: {measured.rate:,.0f}/s {measured.note}")
    console.print(_table(found))
    console.print(_ratios(found))
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(json.dumps(_as_json(found), indent=2) + "\n")
    console.print(f"Written to {asked.out}.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--only", action="append", help="only sides whose names have this in them; again for more")
    parser.add_argument("--scale", type=float, default=1.0, help="more, or fewer, jobs in each round")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results.json", help="where the JSON goes")
    return parser.parse_args()


def _table(found: Mapping[str, Sequence[Measured]]) -> Table:
    table = Table("side", "a second (median)", "least", "most", "worker CPU ms a job", "MB a worker")
    for name, measured in found.items():
        rates = [one.rate for one in measured]
        cpu, memory = (
            statistics.median(values) for values in zip(*((m.cpu_ms, m.memory_mb) for m in measured), strict=True)
        )
        table.add_row(name, *(f"{rate:,.0f}" for rate in (statistics.median(rates), min(rates), max(rates))),
                      f"{cpu:.3f}" if cpu else "", f"{memory:.0f}" if memory else "")  # fmt: skip
    return table


def _ratios(found: Mapping[str, Sequence[Measured]]) -> Table:
    table = Table("ratio of medians", "measured", "wanted")
    for over, under, wanted in RATIOS:
        if found.get(over) and found.get(under):
            table.add_row(f"{over} ÷ {under}", f"{ratio(found[over], found[under]):.2f}", f"{wanted:g}")
    return table


def ratio(over: Sequence[Measured], under: Sequence[Measured]) -> float:
    """The median rate of one side over that of another."""
    return statistics.median(one.rate for one in over) / statistics.median(one.rate for one in under)


def _as_json(found: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": psutil.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 2**30),
                    "platform": platform.platform(), "python": platform.python_version()},
        "sides": {name: [vars(one) for one in measured] for name, measured in found.items()},
        "ratios": {f"{over} / {under}": {"measured": round(ratio(found[over], found[under]), 3), "wanted": wanted}
                   for over, under, wanted in RATIOS if found.get(over) and found.get(under)},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
