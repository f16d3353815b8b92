"""Metrics for Prometheus, served under /metrics on POSTAGE_METRICS_PORT if that is set.

A task is counted in the process that runs it. With the threads pool, which Postage uses, that is the worker itself.
Children of a prefork pool would count for themselves, and would not be scraped. What the database and the broker know
is read when somebody asks (readings.py).
"""

import collections
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals
from prometheus_client import REGISTRY, Counter, Gauge, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.errors import OperatorError
from models.messages.answer import Answer
from models.sends.carrier import Outcome
from tasks.context import Context
from worker.readings import FRESH_S, BrokerStanding, DatabaseStanding
from worker.settings import Settings

AUDIT, SWEEP, ROLL_UP = "upkeep.audit", "upkeep.sweep", "upkeep.roll_up"

jobs = Counter("postage_jobs_total", "Tasks that this process has answered.", ["task", "status"])
audit_findings = Gauge("postage_audit_findings", "What the last audit of this process found; NaN before the first.")
audit_last_run = Gauge("postage_audit_last_run_timestamp_seconds", "When this process last finished an audit.")
sweep_last_run = Gauge("postage_sweep_last_run_timestamp_seconds", "When this process last finished a sweep.")
roll_up_last_run = Gauge("postage_roll_up_last_run_timestamp_seconds", "When this process last rolled usage up.")
last_runs = {AUDIT: audit_last_run, SWEEP: sweep_last_run, ROLL_UP: roll_up_last_run}
audit_findings.set(math.nan)


OpenedContext = Callable[[], Context | None]
"""Gives what tasks may reach in this process; None before the first has asked for it."""


class MetricsError(OperatorError):
    """Metrics cannot be served."""


class Carriers(Collector):
    """How deliveries of this process have ended, how long they took, and which carriers do not work as it knows.

    Carriers are those of the settings, so that the labels are a closed set.
    """

    def __init__(self, settings: Settings, opened_context: OpenedContext) -> None:
        self._opened_context = opened_context
        self._names = [(kind, url.name) for kind, urls in settings.carriers.items() for url in urls]

    def describe(self) -> list[Metric]:
        """Return the metrics without figures."""
        return [_deliveries(), _resting()]

    def collect(self) -> list[Metric]:
        """Return the metrics as they stand."""
        deliveries, resting = _deliveries(), _resting()
        context = self._opened_context()
        outcomes = collections.Counter() if context is None else context.engine.health.outcomes
        rests = set() if context is None else context.engine.health.resting()
        for kind, name in self._names:
            for outcome in Outcome:
                deliveries.add_metric([kind, name, outcome], outcomes[kind, name, str(outcome)])
            resting.add_metric([kind, name], (kind, name) in rests)
        return [deliveries, resting, *([] if context is None else context.engine.health.took.collect())]


def _deliveries() -> CounterMetricFamily:
    words = "Deliveries of this process, by what the carrier answered."
    return CounterMetricFamily("postage_deliveries", words, labels=["kind", "carrier", "outcome"])


def _resting() -> GaugeMetricFamily:
    words = "1 for a carrier that does not work, as this process knows, else 0."
    return GaugeMetricFamily("postage_carrier_resting", words, labels=["kind", "carrier"])


@contextmanager
def served_metrics(
    settings: Settings,
    opened_context: OpenedContext = lambda: None,
    counted: Collector | None = None,
    *,
    fresh_s: float = FRESH_S,
) -> Iterator[None]:
    """Serve the metrics of this process while the block runs, if a port is set.

    `opened_context` gives what tasks have used so far, and `counted` is what they count. What is read from database and
    broker is not read again for `fresh_s` seconds.

    Raises
    ------
    MetricsError
        If the port cannot be had.

    """
    if settings.metrics_port is None:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_address)
    except OSError as error:
        sentence = (
            f"Metrics cannot be served on {settings.metrics_address}:{settings.metrics_port}: {error.strerror}. Each "
            "worker process of a machine needs a POSTAGE_METRICS_PORT of its own; without one it serves none."
        )
        raise MetricsError(sentence) from error
    database = DatabaseStanding(settings, fresh_s)
    broker = BrokerStanding(settings, fresh_s)
    collectors: list[Collector] = [broker, database, Carriers(settings, opened_context)]
    if counted is not None:
        collectors.append(counted)
    for collector in collectors:
        REGISTRY.register(collector)
    try:
        yield
    finally:
        for collector in collectors:
            REGISTRY.unregister(collector)
        server.shutdown()
        server.server_close()
        thread.join()
        database.close()


@signals.task_postrun.connect
def _count(sender: Any = None, retval: object = None, **_kwargs: object) -> None:  # noqa: ANN401  a task
    """Count one answer. A task that will be tried again has none yet."""
    if not isinstance(retval, Answer):
        return
    jobs.labels(sender.name, str(retval.fields.get("status"))).inc()
    if sender.name in last_runs and retval.fields.get("status") != "refused":
        last_runs[sender.name].set(time.time())
    if sender.name == AUDIT and "findings" in retval.fields:
        audit_findings.set(len(retval["findings"]))
