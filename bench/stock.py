"""What Postage is measured against: stock Celery with a task that does nothing, and one that charges as most do.

Started as `celery -A bench.stock worker`; addresses come in the environment.
"""

import os
from typing import Any

from celery import Celery
from sqlalchemy import BigInteger, ForeignKey, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

app = Celery("stock", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_send_task_events=os.environ.get("BENCH_EVENTS") == "1",
    worker_hijack_root_logger=False,
)


@app.task(name="stock.noop")
def noop(_job: dict[str, Any]) -> None:
    """Do nothing."""


class Base(DeclarativeBase):
    """The tables of the task below."""


class Account(Base):
    """A balance."""

    __tablename__ = "bench_accounts"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    available: Mapped[int] = mapped_column(BigInteger)


class User(Base):
    """Who spends whose credits."""

    __tablename__ = "bench_users"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(ForeignKey("bench_accounts.owner"))


class Entry(Base):
    """One charge, once for each job."""

    __tablename__ = "bench_entries"
    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    amount: Mapped[int] = mapped_column(BigInteger)


if "BENCH_DATABASE" in os.environ:
    engine = create_engine(os.environ["BENCH_DATABASE"])


@app.task(name="stock.charge")
def charge(job: dict[str, Any]) -> None:
    """Charge one credit as the textbook has it: look the owner up, lock the row, write, commit. Sends nothing."""
    with Session(engine) as session, session.begin():
        if session.get(Entry, job["job_id"]) is not None:
            return
        user = session.get_one(User, job["sender"])
        account = session.scalars(select(Account).where(Account.owner == user.owner).with_for_update()).one()
        if account.available < 1:
            return
        account.available -= 1
        session.add(Entry(job_id=job["job_id"], owner=user.owner, amount=-1))
