"""Beat's table in memory, and two signs that beat is alive: the time of a file, and a key in the broker.

Celery keeps the table in a file, which must be writable and whole, or beat ends. What it knows is when each task was
asked for last; without it everything is asked for once after a start, which is harmless.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.beat import Scheduler as CeleryScheduler
from kombu.exceptions import OperationalError
from redis import RedisError

from worker.broker.beat_age import note_beat
from worker.broker.transport import redis_client


class Scheduler(CeleryScheduler):
    """Celery's scheduler, which gives both signs each time it has looked at the table; if it cannot, it goes on."""

    def __init__(self, *args: Any, schedule_filename: str, **options: Any) -> None:  # noqa: ANN401  Celery's
        self._sign = Path(schedule_filename)
        super().__init__(*args, **options)

    def tick(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  Celery's
        """Send what is due, and return how many seconds to sleep."""
        wait = super().tick(*args, **options)
        with suppress(OSError):
            self._sign.touch()
        with suppress(OperationalError, RedisError, OSError):
            note_beat(redis_client(self.producer.channel))
        return wait
