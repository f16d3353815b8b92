# mypy: disable-error-code="attr-defined, override"
# Celery is only partly typed.
"""What a worker says of its broker to whoever asks for its statistics, such as Flower: never a password.

Celery leaves the password out where the connection has it as a field. For a unix socket kombu keeps the whole URL as
the name of the host, with the password in it.
"""

from typing import Any

from celery import bootsteps
from kombu.utils.url import maybe_sanitize_url


class StatsStep(bootsteps.StartStopStep):
    """The part of a worker's consumer that describes the broker, after Celery's own. It starts nothing."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def info(self, consumer: Any) -> dict[str, Any]:  # noqa: ANN401  Celery's
        """Return what Celery's own step does, without the password."""
        if not consumer.connection:
            return {}
        broker = {name: value for name, value in consumer.connection.info().items() if name != "password"}
        return {"broker": {**broker, "hostname": maybe_sanitize_url(broker["hostname"])}}
