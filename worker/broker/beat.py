"""Beat's table in memory, and a file by whose time others see that beat is alive.

Celery keeps the table in a file, which must be writable and whole, or beat ends. What it knows is when each task was
asked for last; without it everything is asked for once after a start, which is harmless.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.beat import Scheduler as CeleryScheduler


class Scheduler(CeleryScheduler):
    """Celery's scheduler, which touches its file each time it has looked at the table; where it may not, it goes on."""

    def __init__(self, *args: Any, schedule_filename: str, **options: Any) -> None:  # noqa: ANN401  Celery's
        self._sign = Path(schedule_filename)
        super().__init__(*args, **options)

    def tick(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  Celery's
        """Send what is due, and return how many seconds to sleep."""
        wait = super().tick(*args, **options)
        with suppress(OSError):
            self._sign.touch()
        return wait
