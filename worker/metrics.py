"""Metrics for Prometheus, served under /metrics on POSTAGE_METRICS_PORT if that is set.

A task is counted in the process that runs it. With the threads pool, which Postage uses, that is the worker itself.
Children of a prefork pool would count for themselves, and would not be scraped.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals
from kombu.exceptions import OperationalError
from prometheus_client import REGISTRY, Counter, Gauge, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import RedisError

from models.errors import OperatorError
from models.messages.answer import Answer
from worker.broker.waiting import count_waiting
from worker.settings import Settings

AUDIT = "upkeep.audit"

jobs = Counter("postage_jobs_total", "Tasks that this process has answered.", ["task", "status"])
audit_findings = Gauge("postage_audit_findings", "What the last audit of this process found; NaN before the first.")
audit_last_run = Gauge("postage_audit_last_run_timestamp_seconds", "When this process last finished an audit.")
audit_findings.set(math.nan)


class MetricsError(OperatorError):
    """Metrics cannot be served."""


class WaitingJobs(Collector):
    """What waits on each queue, counted when somebody asks. While the broker is away there is no figure."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def describe(self) -> list[GaugeMetricFamily]:
        """Return the metric without figures, so that registering it asks no broker."""
        return [GaugeMetricFamily("postage_queue_waiting", "Jobs that no worker has taken yet.", labels=["queue"])]

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the metric as it stands."""
        [metric] = self.describe()
        try:
            counts = count_waiting(self._settings.broker, self._settings.broker_options)
        except (OperationalError, RedisError, OSError):
            counts = {}
        for queue, count in counts.items():
            metric.add_metric([queue], count)
        return [metric]


@contextmanager
def served_metrics(settings: Settings) -> Iterator[None]:
    """Serve the metrics of this process while the block runs, if a port is set.

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
    waiting = WaitingJobs(settings)
    REGISTRY.register(waiting)
    try:
        yield
    finally:
        REGISTRY.unregister(waiting)
        server.shutdown()
        server.server_close()
        thread.join()


@signals.task_postrun.connect
def _count(sender: Any = None, retval: object = None, **_kwargs: object) -> None:  # noqa: ANN401  a task
    """Count one answer. A task that will be tried again has none yet."""
    if not isinstance(retval, Answer):
        return
    jobs.labels(sender.name, str(retval.fields.get("status"))).inc()
    if sender.name == AUDIT and "findings" in retval.fields:  # not one that was refused
        audit_findings.set(len(retval["findings"]))
        audit_last_run.set(time.time())
