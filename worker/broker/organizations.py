"""The organizations of people, noted where the broker sees them, so that organizations take turns before their people.

Only turns depend on it: what is missing or old there delays somebody, and charges nobody.
"""

from collections.abc import Mapping
from contextlib import suppress

from celery import Celery
from kombu.exceptions import OperationalError
from redis import RedisError

from worker.broker.fair_queue import ORGANIZATIONS
from worker.broker.transport import redis_client

KNOWN_MAX = 100_000
"""People of whom a process remembers that it has noted them: about 20 MB."""


class RedisOrganizations:
    """The hash of people and their organizations. Each process writes what it has not written yet."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._known: dict[str, int] = {}

    def note(self, org_ids: Mapping[str, int]) -> None:
        """Note the organization of people whose jobs were just charged; not at all if the broker is away."""
        new = {person: org_id for person, org_id in org_ids.items() if self._known.get(person) != org_id}
        if not new:
            return
        with suppress(OperationalError, RedisError, OSError), self._app.connection_or_acquire() as connection:
            redis_client(connection.default_channel).hset(ORGANIZATIONS, mapping=new)  # type: ignore[arg-type]
            if len(self._known) > KNOWN_MAX:
                self._known.clear()
            self._known.update(new)

    def forget(self, person: str) -> None:
        """Remove a person who was erased."""
        self._known.pop(person, None)
        with self._app.connection_or_acquire() as connection:
            redis_client(connection.default_channel).hdel(ORGANIZATIONS, person)
