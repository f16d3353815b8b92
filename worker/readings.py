"""What is read when Prometheus asks: how the database and the broker stand.

Both are asked over connections of their own, so the work of the process is not in the way, nor does it wait. Each is
read in a thread: a scrape waits `WAIT_S` for it at most, and is answered without what could not be read by then.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTimeError
from typing import Final, Generic, TypeVar

from kombu.exceptions import OperationalError
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import RedisError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from models.database.engine import Database, transaction_time
from models.messages.fields import KINDS
from models.reports.figures import Figures, read_figures
from worker.broker.waiting import BrokerFigures, read_broker
from worker.settings import Settings

FRESH_S: Final = 2.0
"""How long what was read counts as fresh, in seconds: several who ask at the same moment cost one reading."""
WAIT_S: Final = 3.0
"""How long a scrape waits for a reading, in seconds. Prometheus itself gives up after ten."""
FAULTS: Final = (OperationalError, RedisError, OSError, SQLAlchemyError)

T = TypeVar("T")


class Reading(Generic[T]):
    """What `read` returns, read by one thread at a time, and not again while it is fresh."""

    def __init__(self, read: Callable[[], T], fresh_s: float, wait_s: float = WAIT_S) -> None:
        self._read = read
        self._fresh_s = fresh_s
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._last: Future[T] | None = None
        self._read_at = 0.0

    def latest(self) -> T | None:
        """Return what was read; None if it could not be, or not in time. Then the next call may find it."""
        with self._lock:
            if self._last is None or (self._last.done() and time.monotonic() >= self._read_at + self._fresh_s):
                self._last = Future()
                # A process that ends does not wait for a daemon: what it reads from may never answer.
                threading.Thread(target=self._fill, args=(self._last,), name="metrics", daemon=True).start()
            last = self._last
        try:
            return last.result(self._wait_s)
        except (NotInTimeError, *FAULTS):
            return None

    def _fill(self, reading: "Future[T]") -> None:
        try:
            result = self._read()
        except BaseException as fault:  # noqa: BLE001  whoever waits for it decides
            self._read_at = time.monotonic()
            reading.set_exception(fault)
        else:
            self._read_at = time.monotonic()
            reading.set_result(result)


class BrokerStanding(Collector):
    """What waits on the queues, for how long, and whether beat is alive. While the broker is away there is no figure.

    A message does not say when it was sent. So its age is counted from when this process first saw it as the next one
    of its queue. That is less than its age, and grows without end when nothing is taken any more.
    """

    def __init__(self, settings: Settings, fresh_s: float = FRESH_S) -> None:
        self._reading = Reading(lambda: read_broker(settings.broker, settings.broker_options), fresh_s)
        self._ages = Ages()

    def describe(self) -> list[GaugeMetricFamily]:
        """Return the metrics without figures, so that registering them asks no broker."""
        return [
            _gauge("postage_queue_waiting", "Jobs that no worker has taken yet.", "queue"),
            _gauge("postage_queue_oldest_seconds", "For how long the next job of a queue has waited there.", "queue"),
            _gauge("postage_queue_taken", "Jobs that workers have taken from all queues and not acknowledged."),
            _gauge("postage_beat_age_seconds", "How long ago beat was last seen alive; +Inf if it never was."),
        ]

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the metrics as they stand."""
        waiting, oldest, taken, beat = metrics = self.describe()
        found: BrokerFigures | None = self._reading.latest()
        if found is not None:
            for queue, count in found.waiting.items():
                waiting.add_metric([queue], count)
            for queue, age_s in self._ages.of(found.next_marks, time.monotonic()).items():
                oldest.add_metric([queue], age_s)
            taken.add_metric([], found.taken)
            beat.add_metric([], found.beat_age_s)
        return metrics


class Ages:
    """For how long the messages have been next that are next on each queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[tuple[str, str], float] = {}

    def of(self, next_marks: Mapping[str, Collection[str]], now: float) -> dict[str, float]:
        """Return the age of the oldest of each queue, in seconds, 0 where nothing waits. `now` is by any clock."""
        with self._lock:
            marks = [(queue, mark) for queue, of_queue in next_marks.items() for mark in of_queue]
            self._since = {key: self._since.get(key, now) for key in marks}
            ages = dict.fromkeys(next_marks, 0.0)
            for (queue, _), since in self._since.items():
                ages[queue] = max(ages[queue], now - since)
            return ages


class DatabaseStanding(Collector):
    """What waits too long, is unknown, found, owed, or out of order. While the database is away there is no figure.

    Carriers are those of the settings, so that the labels are a closed set.
    """

    def __init__(self, settings: Settings, fresh_s: float = FRESH_S) -> None:
        self._database = Database(_noticing_silence(settings.database), pool_size=1, wait_s=0.0)
        self._reading = Reading(self._read, fresh_s)
        self._carriers = [(kind, url.name) for kind, urls in settings.carriers.items() for url in urls]

    def _read(self) -> Figures:
        with self._database.snapshot() as connection:
            return read_figures(connection, transaction_time(connection))

    def describe(self) -> list[GaugeMetricFamily]:
        """Return the metrics without figures, so that registering them asks no database."""
        return [
            _gauge("postage_due_lag_seconds", "For how long what is due has waited for a sweep."),
            _gauge("postage_lease_lag_seconds", "For how long an expired lease has waited for a sweep."),
            _gauge("postage_unknown_messages", "Messages whose outcome is unknown.", "kind"),
            _gauge("postage_unknown_oldest_seconds", "For how long a message has been unknown."),
            _gauge("postage_findings", "Findings of audits that alarm."),
            _gauge("postage_debt_credits", "Credits that accounts owe.", "kind"),
            _gauge("postage_carrier_down_seconds", "For how long a carrier has not worked.", "kind", "carrier"),
        ]

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the metrics as they stand."""
        due, lease, unknown, oldest, findings, debt, down = metrics = self.describe()
        found = self._reading.latest()
        if found is not None:
            due.add_metric([], found.due_lag_s)
            lease.add_metric([], found.lease_lag_s)
            oldest.add_metric([], found.unknown_s)
            findings.add_metric([], found.findings)
            for kind in KINDS:
                unknown.add_metric([kind], found.unknown[kind])
                debt.add_metric([kind], found.debt[kind])
            down_s = {(each.kind, each.carrier): each.down_s for each in found.down}
            for carrier in self._carriers:
                down.add_metric(carrier, down_s.get(carrier, 0.0))
        return metrics

    def close(self) -> None:
        """Close the connection."""
        self._database.close()


def _noticing_silence(database_url: str) -> str:
    """Return the URL of a database whose connections end when its machine is silent for `WAIT_S` (tcp(7)).

    Without that a reading would wait for a machine that is gone as long as the kernel does, about a quarter of an hour.
    """
    url = make_url(database_url)
    if url.get_backend_name() != "postgresql":
        return database_url
    patient = {"tcp_user_timeout": str(round(1000 * WAIT_S)), **url.query}
    return url.set(query=patient).render_as_string(hide_password=False)


def _gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, labels=labels)
