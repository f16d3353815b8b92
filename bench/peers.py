"""Others that charge one account: two packages from PyPI, and PostgreSQL by itself.

Each runs in the form in which it was fastest here: `credit-ledger` in two threads, `hf-nostro` in one.
"""

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import create_engine, text

from bench import figures
from bench.rig import RICH, Bench, pgbench
from bench.workers import SideError, cpu_s

WARM_UP: Final = 100
CREDIT_LEDGER_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS credit_balance (
        tenant_id text PRIMARY KEY, credits numeric(18,4) NOT NULL, updated_at timestamptz NOT NULL DEFAULT now())""",
    """CREATE TABLE IF NOT EXISTS credit_ledger (
        id uuid PRIMARY KEY, tenant_id text NOT NULL, delta numeric(18,4) NOT NULL, reason text, idempotency_key text,
        balance_after numeric(18,4), at timestamptz DEFAULT now(), UNIQUE (tenant_id, idempotency_key))""",
)
"""As its functions expect it: its wheel has no schema. Without the row-level security of its source archive."""


def _timed(charge: Callable[[], None], jobs: int, threads: int) -> figures.Figures:
    """Charge `jobs` times from so many threads."""
    for _ in range(WARM_UP):
        charge()
    faults: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(jobs // threads):
                charge()
        except BaseException as error:  # noqa: BLE001  told by the side, below
            faults.append(error)

    at_work = [threading.Thread(target=work) for _ in range(threads)]
    before = cpu_s([os.getpid()])  # with the database, which is a child
    began = time.monotonic()
    for thread in at_work:
        thread.start()
    for thread in at_work:
        thread.join()
    took = time.monotonic() - began
    if faults:
        msg = f"a charge failed: {faults[0]}"
        raise SideError(msg) from faults[0]
    done = jobs // threads * threads
    return {"rate": done / took, "all_cpu_ms": (cpu_s([os.getpid()]) - before) / done * 1000, "timed_s": took}


@dataclass(frozen=True)
class CreditLedger:
    """The package `credit-ledger`, charging one account."""

    threads: int = 2

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Charge one by one, as it knows no batches."""
        try:
            from credit_ledger import metering  # noqa: PLC0415  a peer, for this side alone
        except ImportError as error:
            raise SideError(_missing("credit-ledger", error)) from error
        engine = create_engine(bench.postgres.url("peers").replace("postgresql://", "postgresql+psycopg://"))
        try:
            with engine.begin() as connection:
                for statement in CREDIT_LEDGER_SCHEMA:
                    connection.execute(text(statement))
            metering.grant("hot", RICH, engine=engine)

            def charge() -> None:
                if not metering.decrement("hot", 1, idempotency_key=str(uuid.uuid4()), engine=engine).ok:
                    msg = "it was refused"
                    raise SideError(msg)

            return _timed(charge, jobs, self.threads)
        finally:
            engine.dispose()


@dataclass(frozen=True)
class Nostro:
    """The package `hf-nostro`, charging one account."""

    threads: int = 1

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Charge one by one, as it knows no batches."""
        try:
            from nostro import Ledger  # noqa: PLC0415  a peer, for this side alone
        except ImportError as error:
            raise SideError(_missing("hf-nostro[postgres]", error)) from error
        url = bench.postgres.url("peers")
        made = subprocess.run([sys.executable, "-m", "nostro", "migrate", "--dsn", url, "--scale", "0"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        if made.returncode != 0:
            msg = f"its migration failed: {made.stderr.strip()[-300:]}"
            raise SideError(msg)
        peer: Any = Ledger(dsn=url, scale=0)
        try:
            account = peer.accounts.get_or_create("bench", "hot")
            peer.credit(account, peer.amount(RICH), category="topup", idempotency_key=str(uuid.uuid4()))
            one = peer.amount(1)

            def charge() -> None:
                peer.debit(account, one, category="email", idempotency_key=str(uuid.uuid4()))

            return _timed(charge, jobs, self.threads)
        finally:
            peer.close()


def _missing(package: str, error: ImportError) -> str:
    return f"{package} is not installed ({error}): make setup installs it, or pip install '{package}'"


@dataclass(frozen=True)
class PgBench:
    """PostgreSQL's own `pgbench`: one row, one UPDATE a transaction, prepared. No ledger, no ids, no Python."""

    clients: int

    def measure(self, bench: Bench, jobs: int) -> figures.Figures:
        """Update."""
        program = pgbench()
        url = bench.postgres.url("peers")
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS bench_row"))
            connection.execute(text("CREATE TABLE bench_row (id int PRIMARY KEY, n bigint) WITH (fillfactor = 50)"))
            connection.execute(text("INSERT INTO bench_row VALUES (1, 0)"))
        engine.dispose()
        script = bench.folder / "update.sql"
        script.write_text("UPDATE bench_row SET n = n - 1 WHERE id = 1;\n")
        done = subprocess.run(
            [program, "-n", "-M", "prepared", "-f", script, "-c", str(self.clients), "-j", str(min(2, self.clients)),
             "-t", str(jobs // self.clients), url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
        if done.returncode != 0 or rate is None:
            msg = f"pgbench ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}"
            raise SideError(msg)
        return {"rate": float(rate[1])}
