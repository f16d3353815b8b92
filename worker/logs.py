"""Logging: one line an event, for people or as JSON, with the job's id, sender and payer on every line about a job.

Fields bound in a task (`structlog.contextvars`) are also on the lines that Celery and libraries log in that thread.
"""

import json
import logging
import os
import sys
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.fault_words import format_fault, hide_texts, write_fault
from worker.settings import Settings

QUIET = (
    "celery.worker.strategy",  # "received", from a thread that does not know the job; tasks/base.py says more
    "celery.pool",  # at DEBUG it prints the arguments
    "celery.app.trace",  # "succeeded": tasks/base.py says what was answered; failures are still logged
    "aiohttp",
    "mail.log",
    "alembic",
)


def set_up_logging(settings: Settings, stream: TextIO | None = None) -> bool:
    """Send every log line of this process to `stream` (standard error if None), and Python's warnings as well.

    Returns whether each line is JSON. Then nothing else may be printed, or whoever reads the lines stumbles over it.
    """
    stream = stream or sys.stderr
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_empty,
    ]
    faults_as_text = structlog.processors.ExceptionRenderer(lambda exc_info: format_fault(exc_info[1]))
    for_people = structlog.dev.ConsoleRenderer(exception_formatter=write_fault)
    renderer: Processor = structlog.processors.JSONRenderer() if as_json else for_people
    handler = logging.StreamHandler(stream)
    handler.addFilter(hide_texts)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([faults_as_text] if as_json else []),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # A call below the level does nothing.
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(as_json)
    # With the text of the exception, which may repeat what was given. `celery.app.trace` logs the same as an error.
    warnings.filterwarnings("ignore", "Exception raised outside body", RuntimeWarning)
    return as_json


def write_log_now(event: str) -> None:
    """Write a line as JSON at once, past every lock and buffer, for handlers of signals."""
    line = {"event": event, "level": "info", "logger": "celery.worker", "timestamp": datetime.now(UTC).isoformat()}
    with suppress(OSError):  # nobody reads the log any more
        os.write(sys.stderr.fileno(), f"{json.dumps(line)}\n".encode())


def _drop_empty(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leave out fields without a value."""
    return {name: value for name, value in event.items() if value is not None}
