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
from prometheus_client import Counter, Gauge, start_http_server

from models.errors import OperatorError
from models.messages.answer import Answer
from worker.settings import Settings

AUDIT = "upkeep.audit"

jobs = Counter("postage_jobs_total", "Tasks that this process has answered.", ["task", "status"])
audit_findings = Gauge("postage_audit_findings", "What the last audit of this process found; NaN before the first.")
audit_last_run = Gauge("postage_audit_last_run_timestamp_seconds", "When this process last finished an audit.")
audit_findings.set(math.nan)


class MetricsError(OperatorError):
    """Metrics cannot be served."""


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
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@signals.task_postrun.connect
def _count(sender: Any = None, retval: object = None, **_kwargs: object) -> None:  # noqa: ANN401  a task
    """Count one answer. A task that will be tried again has none yet."""
    if not isinstance(retval, Answer):
        return
    jobs.labels(sender.name, str(retval.fields.get("status"))).inc()
    if sender.name == AUDIT:
        audit_findings.set(len(retval["findings"]))
        audit_last_run.set(time.time())
