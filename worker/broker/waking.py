"""Being woken by the broker: an idle worker sleeps until somebody puts a message on one of its queues.

Redis (from 6.0) and Valkey remember which keys a connection has read, and tell another connection as soon as one of
them changes (redis.io, "Client-side caching in Redis"). The script that takes messages has read the lists, so no push
after it is missed, and nothing is taken by waiting. Where that is not to be had (an older broker, a user without the
right), the worker goes on asking every few milliseconds.
"""

from collections.abc import Callable
from contextlib import suppress
from ssl import SSLWantReadError
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

log = structlog.get_logger(__name__)

CHANNEL = "__redis__:invalidate"
"""The channel on which the broker tells of keys that have changed, by its protocol 2."""
PUSHING_PROTOCOL = 3
"""The protocol by which the broker tells a connection without being asked; by earlier ones it has to subscribe."""
DRAINED = 65_536
"""Bytes that are read at a time of what the broker tells; they are not looked at."""


class Waker:
    """Wakes one channel when a key that its connection has read changes."""

    def __init__(self, loop: Any, wake: Callable[[], None]) -> None:  # noqa: ANN401  kombu's hub
        self._loop = loop
        self._wake = wake
        self._told: Any = None
        self._socket: Any = None
        self._tracked: Any = None
        self._is_refused = False

    def arm(self, connection: Any, pool: Any) -> bool:  # noqa: ANN401  of redis-py
        """Make sure that a change of what `connection` has read wakes the channel; says whether it does.

        Nothing else may be under way on the connection. What was pushed before wakes the channel, too.
        """
        if self._is_refused:
            return False
        if self._socket is not None and self._tracked is connection._sock:  # noqa: SLF001  it may have connected anew
            return True
        self.close()
        try:
            client_id = self._listen(pool)
        except (RedisError, OSError) as error:
            return self._refuse(error)
        connection.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", client_id, "NOLOOP")
        try:
            connection.read_response()
        except ResponseError as error:
            return self._refuse(error)
        self._tracked = connection._sock  # noqa: SLF001
        self._loop.call_soon(self._wake)
        return True

    def _listen(self, pool: Any) -> int:  # noqa: ANN401
        """Open the connection that is told, and return its id.

        It is read as bytes, because redis-py waits for whole answers. That there are any is all there is to know.
        """
        self._told = pool.make_connection()
        self._told.connect()
        self._told.send_command("CLIENT", "ID")
        client_id = int(self._told.read_response())
        if int(self._told.get_protocol()) < PUSHING_PROTOCOL:
            self._told.send_command("SUBSCRIBE", CHANNEL)
            self._told.read_response()
        self._socket = self._told._sock  # noqa: SLF001
        self._socket.settimeout(0)
        self._loop.add_reader(self._socket, self._on_told)
        return client_id

    def _refuse(self, error: Exception) -> bool:
        self._is_refused = True
        self.close()
        log.info("broker wakes nobody; asking it again and again", error=type(error).__name__)
        return False

    def _on_told(self) -> None:
        try:
            while self._socket.recv(DRAINED):
                pass
            self.close()  # the end of the connection
        except (BlockingIOError, SSLWantReadError):
            pass
        except OSError:
            self.close()
        self._wake()

    def close(self) -> None:
        """Be woken no more."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
        if self._told is not None:
            with suppress(RedisError, OSError):
                self._told.disconnect()
        self._told = self._socket = self._tracked = None
