"""`python -m bench`: how fast, beside others, all in one run.

Every round measures each side once, in random order, so that whatever else the machine does falls on all of them.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil
import structlog
from rich.console import Console
from rich.table import Table

from bench import figures
from bench.peers import CreditLedger, Nostro, PgBench
from bench.rig import ROOT, SMALL, Bench
from bench.sides import PROCESSES, Bulk, ByHttp, BySmtp, Latency, LedgerAlone, Sends, Side, Slow, StartUp, Stock
from bench.workers import SideError, cpu_s, machine_cpu_s
from worker.settings import Settings

DOCUMENT: Final = ROOT / "docs" / "performance.md"
FULL: Final = ROOT / "bench" / "results.json"
PARTIAL: Final = ROOT / "var" / "bench.json"
ROUNDS: Final = 5
GROWN: Final = 10_000_000
LEAST_JOBS: Final = 100
PEERS: Final = ("celery", "kombu", "redis", "SQLAlchemy", "psycopg", "credit-ledger", "hf-nostro")


@dataclass(frozen=True)
class Entry:
    """A side in the list: what it is called, and how many jobs it gets in a round."""

    title: str
    side: Side
    jobs: int


SIDES: Final[dict[str, Entry]] = {
    "noop": Entry("stock Celery, task that does nothing, no events", Stock("stock.noop", events=False), 8_000),
    "noop-events": Entry("stock Celery, task that does nothing, events", Stock("stock.noop", events=True), 6_000),
    "orm": Entry("stock Celery, task that charges with the ORM, events", Stock("stock.charge", events=True), 800),
    "hot": Entry("email.send, one owner", Sends(), 12_000),
    "hot-no-events": Entry("email.send, one owner, no events", Sends(events=False), 12_000),
    "owners": Entry("email.send, 1,000 owners", Sends(owners=1_000), 12_000),
    "grown": Entry("email.send, one owner, after a long history", Sends(grown=True), 12_000),
    "grown-ordered": Entry("the same, with ids that begin with the time", Sends(grown=True, in_order=True), 12_000),
    "smtp": Entry("email.send to smtp-sink", BySmtp(), 6_000),
    "sms": Entry("sms.send to nginx", ByHttp(), 6_000),
    "slow": Entry("sms.send, a gateway that takes 500 ms, 200 connections, one process", Slow(200), 8_000),
    "slow-500": Entry("the same, 500 connections", Slow(500), 10_000),
    "bulk": Entry("email.send_many of 500, messages charged", Bulk(delivered=False), 40_000),
    "bulk-sent": Entry("email.send_many of 500, messages charged and delivered", Bulk(delivered=True), 10_000),
    "bulk-smtp": Entry(
        "email.send_many of 500, messages charged and delivered to smtp-sink", BySmtp(bulk=True), 10_000
    ),
    "ledger": Entry("the ledger alone, batches of 100, one connection", LedgerAlone(100), 20_000),
    "ledger-1": Entry("the ledger alone, one by one, one connection", LedgerAlone(1), 1_000),
    "credit-ledger": Entry("credit-ledger, one account", CreditLedger(), 1_500),
    "nostro": Entry("hf-nostro, one account", Nostro(), 1_000),
    "pgbench": Entry("pgbench, one row, 1 client", PgBench(1), 6_000),
    "pgbench-8": Entry("pgbench, one row, 8 clients", PgBench(8), 6_000),
    "idle": Entry("email.send to accepted by SMTP, idle worker", Latency(), 200),
    "loaded": Entry("email.send to accepted by SMTP, 1,000 jobs of others before it", Latency(waiting=1_000), 100),
    "start": Entry("Postage: from start to first job taken", StartUp(postage=True), 1),
    "start-stock": Entry("stock Celery: from start to first job taken", StartUp(postage=False), 1),
}
TARGETS: Final = (
    figures.Target("hot", "noop-events", "rate", 5.0),
    figures.Target("hot-no-events", "noop", "rate", 4.0),
    figures.Target("hot", "owners", "rate", 0.95),
    figures.Target("hot", "orm", "rate", 20.0),
    figures.Target("bulk", "noop-events", "rate", 30.0),
    figures.Target("ledger", "credit-ledger", "rate", 25.0),
    figures.Target("smtp", "noop-events", "rate", 3.5),
    figures.Target("sms", "noop-events", "rate", 3.5),
    figures.Target("bulk-smtp", "noop-events", "rate", 6.0),
    figures.Target("slow", None, "rate", 350.0),
    figures.Target("slow-500", None, "loaded_mb", 150.0, at_most=True),
    figures.Target("grown", "hot", "rate", 0.9),
    figures.Target("grown-ordered", "hot", "rate", 0.9),
    figures.Target("idle", None, "p99_ms", 50.0, at_most=True),
)
"""What is to be how many times as fast as what. Both sides send events, or neither does."""

HELP: Final = f"""\
Sides are named on the left of --list. A ratio is shown when both its sides were measured:
  make bench                                   everything, {ROUNDS} rounds (writes {FULL.relative_to(ROOT)})
  make bench BENCH='--docs'                    and puts the tables into docs/performance.md
  make bench BENCH='--list'                    what is measured, and against what
  make bench BENCH='--only hot,noop-events --rounds 1 --scale 0.2'
                                               a first look at one ratio, in a minute
  make bench BENCH='--only hot --set batch=200 --set concurrency=4'
                                               with other settings of Postage (docs/operating.md)
  make bench BENCH='--only hot,grown --history 1000000'
                                               growth, with a smaller history
A run of less than everything goes to {PARTIAL.relative_to(ROOT)}. Nothing needs to be installed or running but what
make setup brings, smtp-sink and nginx (apt-get install postfix nginx-light). Whatever else the machine does meanwhile
blurs the figures; how much it did is told at the end. The exit code is 0 if every side was measured, 1 if not.
"""


def main() -> int:
    """Measure, show, and write it down."""
    asked = _arguments()
    console = Console(width=150 if not sys.stdout.isatty() else None, highlight=False)
    if asked.list:
        _list(console)
        return 0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    results = json.loads(asked.read.read_text()) if asked.read else _measured(asked, console)
    _show(results, console)
    if not asked.read and any(side["rounds"] for side in results["sides"].values()):
        out = asked.out or (FULL if _is_full(results) else PARTIAL)
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        console.print(f"Written to {os.path.relpath(out)}.")
    if asked.docs:
        DOCUMENT.write_text(figures.put_between(DOCUMENT.read_text(), figures.markdown(results)))
        console.print(f"Tables put into {os.path.relpath(DOCUMENT)}.")
    return 1 if any(side["failed"] for side in results["sides"].values()) or results["how"]["interrupted"] else 0


def _needs_history(side: str) -> bool:
    return side.startswith("grown")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, epilog=HELP, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="say what is measured, and end")
    parser.add_argument("--only", action="append", metavar="SIDE", help="only this side, or several: hot,noop-events")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each side is measured ({ROUNDS})")
    parser.add_argument("--scale", type=float, default=1.0, help="more, or fewer, jobs in each round (1)")
    parser.add_argument("--history", type=int, default=GROWN, metavar="N",
                        help=f"charges in the tables for the side grown ({GROWN:,}); 0 leaves it out")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="a setting of Postage's workers, without POSTAGE_; again for more")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where databases are made (a temporary folder)")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/performance.md too")
    parser.add_argument("--read", type=Path, metavar="JSON", help="measure nothing: show an earlier run")
    asked = parser.parse_args()
    asked.only = [name for names in asked.only or () for name in names.split(",")]
    wrong = sorted(set(asked.only) - SIDES.keys())
    if wrong:
        parser.error(f"there is no side {', '.join(wrong)}. There are: {', '.join(SIDES)}")
    asked.settings = dict(one.lower().removeprefix("postage_").partition("=")[::2] for one in asked.set)
    wrong = sorted(asked.settings.keys() - Settings.model_fields.keys())
    if wrong:
        parser.error(f"Postage has no setting {', '.join(wrong)}: docs/operating.md lists them")
    if asked.rounds < 1 or asked.scale <= 0 or (0 < asked.history <= SMALL):
        parser.error(f"--rounds is at least 1, --scale more than 0, --history 0 or more than {SMALL:,}")
    return asked


def _list(console: Console) -> None:
    sides = Table("side", "what it is", "jobs a round", title="Sides")
    for name, entry in SIDES.items():
        sides.add_row(name, entry.title, f"{entry.jobs:,}")
    wanted = Table("what", "figure", "wanted", title="Wanted")
    for target in TARGETS:
        wanted.add_row(target.name, target.figure, f"{'≤' if target.at_most else '≥'} {target.wanted:g}")
    console.print(sides, wanted)


def _measured(asked: argparse.Namespace, console: Console) -> figures.Results:
    chosen = [name for name in SIDES if not asked.only or name in asked.only]
    if not asked.history:
        chosen = [name for name in chosen if not _needs_history(name)]
    sides = {name: {"title": SIDES[name].title, "rounds": [], "failed": None} for name in chosen}
    history = asked.history if any(map(_needs_history, chosen)) else 0
    how = {"rounds": asked.rounds, "scale": asked.scale, "history": history,
           "processes": PROCESSES, "settings": " ".join(asked.set), "interrupted": False}  # fmt: skip
    versions = {}
    began = time.monotonic()

    def say(words: str) -> None:
        console.print(f"[dim]{_clock(time.monotonic() - began)}  {words}[/dim]")

    try:
        with (
            tempfile.TemporaryDirectory(prefix="postage-bench-", dir=asked.folder) as folder,
            Bench(Path(folder), asked.settings, asked.history, say) as bench,
        ):
            versions = bench.versions()
            if history:
                bench.grow()
            _all_rounds(bench, asked, sides, say)
    except KeyboardInterrupt:
        how["interrupted"] = True
        console.print("[yellow]Ended by hand: what follows is of the rounds so far.[/yellow]")
    how["took_s"] = round(time.monotonic() - began)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit(), "how": how, "machine": _machine(),
        "versions": {"Python": platform.python_version(), **versions, **_versions()},
        "targets": figures.judged(TARGETS, sides), "sides": sides,
    }  # fmt: skip


def _all_rounds(bench: Bench, asked: argparse.Namespace, sides: dict[str, Any], say: Callable[[str], None]) -> None:
    began, done, total = time.monotonic(), 0, asked.rounds * len(sides)
    for number in range(1, asked.rounds + 1):
        for name in random.sample(list(sides), len(sides)):
            done += 1
            if sides[name]["failed"]:
                continue
            before = time.monotonic()
            try:
                found = _observed(bench, SIDES[name], asked.scale)
            except Exception as error:  # noqa: BLE001  whatever it was, the other sides are measured all the same
                what = "" if isinstance(error, SideError) else f"{type(error).__name__}: "
                sides[name]["failed"] = f"round {number}: {what}{error}"
                say(f"[red]{name} failed, and is left out from here: {sides[name]['failed']}[/red]")
                continue
            sides[name]["rounds"].append({"round": number, **found})
            left = (time.monotonic() - began) / done * (total - done)
            say(f"round {number} of {asked.rounds}, {done} of {total}: [bold]{name}[/bold] {_in_short(found)} "
                f"({time.monotonic() - before:.0f} s; about {left / 60:.0f} min left)")  # fmt: skip


def _observed(bench: Bench, entry: Entry, scale: float) -> figures.Figures:
    """Measure a side, and how much of the machine went to others meanwhile."""
    ours, all_, began = cpu_s([os.getpid()]), machine_cpu_s(), time.monotonic()
    found = entry.side.measure(bench, max(LEAST_JOBS, int(entry.jobs * scale)))
    took = time.monotonic() - began
    foreign = (machine_cpu_s() - all_ - (cpu_s([os.getpid()]) - ours)) / took
    return {name: round(value, 4) for name, value in {**found, "foreign_cores": max(0.0, foreign)}.items()}


def _in_short(found: figures.Figures) -> str:
    if "rate" in found:
        return f"{figures.brief(found['rate'])}/s"
    if "p99_ms" in found:
        return f"p50 {figures.brief(found['p50_ms'])} ms, p99 {figures.brief(found['p99_ms'])} ms"
    return f"{figures.brief(found['start_s'])} s"


def _is_full(results: figures.Results) -> bool:
    how = results["how"]
    enough = how["rounds"] >= ROUNDS and how["scale"] >= 1 and not how["settings"] and not how["interrupted"]
    return bool(enough and how["history"] >= GROWN and results["sides"].keys() == SIDES.keys())


def _show(results: figures.Results, console: Console) -> None:
    for title, (columns, *rows) in reversed(list(figures.tables(results))):
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(columns):
            table.add_column(column, justify="left" if place == 0 or title == "Not measured" else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(figures.disturbance(results["sides"]))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:2}:{int(seconds) % 60:02}"


def _machine() -> dict[str, Any]:
    return {"cpus": psutil.cpu_count(), "cpu": _cpu_name(), "memory_gb": round(psutil.virtual_memory().total / 2**30),
            "system": f"{platform.system()} {platform.release()}"}  # fmt: skip


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    found = {}
    for package in PEERS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return f"{git('rev-parse', '--short=10', 'HEAD')}{' and changes' if git('status', '--porcelain', '-uno') else ''}"


if __name__ == "__main__":
    sys.exit(main())
