# mypy: disable-error-code="attr-defined,assignment,method-assign,misc,no-untyped-call"
# Celery is only partly typed.
"""Remote control that goes on after a command that fails.

Celery closes its mailbox after such a command and opens another. Commands that come meanwhile are lost, and under load
the worker was deaf afterwards: replies to what was read before are read on a channel that is closed. Here the mailbox
stays as it is, unless it is the broker's connection that failed.
"""

from typing import Any

import structlog
from celery.worker import pidbox
from celery.worker.consumer import control

log = structlog.get_logger(__name__)


class Pidbox(pidbox.Pidbox):
    """Celery's mailbox for commands."""

    def start(self, c: Any) -> None:  # noqa: ANN401  Celery's
        """Open the mailbox."""
        super().start(c)
        self.consumer.on_decode_error = self.on_decode_error

    def on_message(self, body: Any, message: Any) -> None:  # noqa: ANN401  Celery's
        """Obey a command, or drop one that cannot be obeyed."""
        self.c.app.clock.forward()
        try:
            self.node.handle_message(body, message)
        except self.c.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001  whatever somebody has published
            self._drop(error)

    def on_decode_error(self, _message: Any, error: Exception) -> None:  # noqa: ANN401  kombu's
        """Drop what cannot be read."""
        self._drop(error)

    def _drop(self, error: Exception) -> None:
        """Log that something was dropped; its text and traceback may show what was published."""
        log.warning("control message dropped: it cannot be obeyed", error=type(error).__name__)


class Control(control.Control):
    """Celery's step that opens the mailbox, with this one."""

    def __init__(self, c: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__(c, **options)
        if not self.is_green:
            self.box = Pidbox(c)
            self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown
