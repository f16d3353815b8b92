"""The connections to one mail server: opening them, which of them is used next, and who waits for one."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from worker.carriers.smtp_connection import GOODBYE_S, STEPS, SmtpConnection
from worker.carriers.smtp_limits import LearntLimit
from worker.carriers.smtp_opening import NotOpenedError, SmtpOpener
from worker.carriers.smtp_server import SmtpServer
from worker.carriers.smtp_transaction import SmtpTransaction

IDLE_MAX_S: Final = 60.0
"""Servers may close a connection after five minutes without a command (RFC 5321 4.5.3.2.7), and many are faster."""
CONNECTIONS_GROW_S: Final = 30.0
"""After how many seconds one connection more is tried, once a server has refused some."""
OTHERS_GROW_S: Final = 60.0
"""The same for recipients of a transaction, and messages on a connection."""
NO_ROOM: Final = "The mail server is so slow that no connection to it became free in time."

log = structlog.get_logger(__name__)


class Rider(Protocol):
    """A delivery that waits for a connection."""

    def ride(self, connection: SmtpConnection) -> SmtpTransaction | None:
        """Return a transaction on `connection` behind the one that goes on there; None if it cannot be one there."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A delivery that waits, and what it is given: a transaction that has begun, a connection, or leave to open one."""

    rider: Rider
    given: "asyncio.Future[SmtpTransaction | SmtpConnection | None]"
    since: float


class SmtpPool:
    """The connections to one server. What is taken from it is released, replaced or dropped in the end."""

    def __init__(
        self, server: SmtpServer, opener: SmtpOpener, *, connections: int, timeout_s: float, dot_timeout_s: float
    ) -> None:
        """Prepare; nothing is connected yet. At most `connections` are open at a time."""
        self.connections = LearntLimit(connections, CONNECTIONS_GROW_S)
        self.messages = LearntLimit(server.messages, OTHERS_GROW_S)
        self.recipients = LearntLimit(server.recipients, OTHERS_GROW_S)
        self._server = server
        self._opener = opener
        self._timeout_s = timeout_s
        self._patience_s = dot_timeout_s + STEPS * timeout_s
        self._idle: dict[SmtpConnection, None] = {}
        self._open: set[SmtpConnection] = set()
        self._leaving: set[SmtpConnection] = set()
        self._opening = 0
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._suspected = 0

    async def take(self, rider: Rider) -> SmtpTransaction | SmtpConnection:
        """Return a connection of which nobody else knows, or a transaction that has begun behind another one.

        Raises
        ------
        NotOpenedError
            If none could be opened, or none became free in time.

        """
        since = asyncio.get_running_loop().time()
        if self._idle:
            return self._idle.popitem()[0]
        if not self._has_room():
            given = await self._wait(rider, since)
            if given is not None:
                return given
        else:
            self._opening += 1
        return await self._open_one(rider, since)

    async def replace(self, connection: SmtpConnection, rider: Rider) -> SmtpTransaction | SmtpConnection:
        """Return a new connection in the place of one that is of no use, without a wait for others.

        Raises
        ------
        NotOpenedError
            If it could not be opened.

        """
        connection.abort()
        self._open.discard(connection)
        self._opening += 1
        return await self._open_one(rider, asyncio.get_running_loop().time())

    def next_rider(self, connection: SmtpConnection) -> bytes:
        """Begin the transaction of whoever waits behind that which goes on, if the server allows it.

        Returns what is to be written for it.
        """
        if not self._waiting or not connection.pipelining or connection.is_spent:
            return b""
        if not self.may_take_more(connection):
            return b""
        waiting = self._next_waiting()
        if waiting is None:
            return b""
        try:
            transaction = waiting.rider.ride(connection)
        except Exception as error:  # noqa: BLE001  a bug in one message must not be one in another
            waiting.given.set_exception(error)
            return b""
        if transaction is None:
            self._waiting.appendleft(waiting)
            return b""
        waiting.given.set_result(transaction)
        return transaction.begin()

    def release(self, connection: SmtpConnection) -> None:
        """Give a connection back after a transaction, for whoever waits, or to be kept."""
        is_surplus = len(self._open) + self._opening > self.connections.now
        if connection.fault is not None or connection.is_spent or is_surplus or not self.may_take_more(connection):
            self.drop(connection)
            return
        waiting = self._next_waiting()
        if waiting is not None:
            waiting.given.set_result(connection)
        elif self._closed:
            self.drop(connection)
        else:
            self._idle[connection] = None
            connection.rest(IDLE_MAX_S)

    def drop(self, connection: SmtpConnection) -> None:
        """Close a connection, and let another one be opened if anybody waits."""
        if connection.is_waiting:
            connection.abort()
        else:
            connection.quit()
            self._leaving.add(connection)
        self._open.discard(connection)
        self._offer_room()

    def learn_recipients(self, limit: int) -> None:
        """Note that the server takes no more than `limit` recipients in a transaction."""
        self.recipients.learn(limit)
        log.info("mail server takes no more recipients at a time", host=self._server.host, recipients=limit)

    def may_take_more(self, connection: SmtpConnection) -> bool:
        """Whether the server takes another message on this connection."""
        return connection.messages < self.messages.now

    def suspect_limit(self, messages: int) -> None:
        """Note that a server took no more than `messages` messages on a connection: twice the same is a limit."""
        if 0 < messages == self._suspected:
            self.messages.learn(messages)
            log.info("mail server takes no more messages on a connection", host=self._server.host, messages=messages)
        self._suspected = messages

    async def close(self) -> None:
        """Close all connections that are kept, with QUIT. Those in use are closed when they are released."""
        self._closed = True
        idle, self._idle = list(self._idle), {}
        for connection in idle:
            self._open.discard(connection)
            connection.quit()
        leaving = [*idle, *self._leaving]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * GOODBYE_S):
                for connection in leaving:
                    await connection.wait_closed()
        for connection in leaving:
            connection.abort()
        await asyncio.sleep(0)  # so that the loop has closed them, if it is closed next

    # -- opening ------------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return len(self._open) + self._opening < self.connections.now

    async def _open_one(self, rider: Rider, since: float) -> SmtpTransaction | SmtpConnection:
        """Open a connection in a place that is kept for it; if the server has no room for it, wait for another one."""
        while True:
            try:
                connection = await self._opener.open(self._make)
            except NotOpenedError as error:
                self._opening -= 1
                if not error.is_full or not (self._open or self._opening):
                    self._offer_room()
                    raise
                self._learn_connections()
            except BaseException:
                self._opening -= 1
                self._offer_room()
                raise
            else:
                self._opening -= 1
                self._open.add(connection)
                return connection
            if asyncio.get_running_loop().time() > since + self._patience_s:
                raise NotOpenedError(NO_ROOM)
            given = await self._wait(rider, since, first=True)
            if given is not None:
                return given

    def _learn_connections(self) -> None:
        """Learn that the server takes no more than there are: those that it greets just now may be among them."""
        if self._open:
            limit = len(self._open) + self._opening
            self.connections.learn(limit)
            log.info("mail server takes no more connections", host=self._server.host, connections=limit)

    def _make(self) -> SmtpConnection:
        return SmtpConnection(
            asyncio.get_running_loop(),
            self._timeout_s,
            secrets=self._server.secrets,
            on_stuck=self._find_better_place,
            on_lost=self._forget_idle,
        )

    def _forget_idle(self, connection: SmtpConnection) -> None:
        """Note that a connection is closed, if it was idle: otherwise whoever uses it finds out."""
        self._leaving.discard(connection)
        if self._idle.pop(connection, connection) is None:
            self._open.discard(connection)
            self._offer_room()

    def _find_better_place(self, connection: SmtpConnection) -> None:
        """Let a message that waits behind another one go elsewhere, if there is a place."""
        transaction = connection.owner
        has_place = bool(self._idle) or self._has_room()
        if has_place and isinstance(transaction, SmtpTransaction) and transaction.waits_behind_another:
            transaction.leave()

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _wait(
        self, rider: Rider, since: float, *, first: bool = False
    ) -> SmtpTransaction | SmtpConnection | None:
        """Wait for a connection, or None: leave to open one, whose place is kept."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(rider, loop.create_future(), since)
        if first:
            self._waiting.appendleft(waiting)
        else:
            self._waiting.append(waiting)
        if self._timer is None:
            self._timer = loop.call_at(since + self._patience_s, self._end_waits)
        try:
            return await waiting.given
        except asyncio.CancelledError:
            self._give_back(waiting)
            raise

    def _give_back(self, waiting: _Waiting) -> None:
        """Take back what somebody was given who does not want it any more."""
        if not waiting.given.done() or waiting.given.cancelled() or waiting.given.exception() is not None:
            return
        match waiting.given.result():
            case None:
                self._opening -= 1
                self._offer_room()
            case SmtpTransaction() as transaction:
                if transaction.waits_behind_another:
                    transaction.leave()
                else:
                    transaction.connection.abort()
                    self.drop(transaction.connection)
            case SmtpConnection() as connection:
                self.release(connection)

    def _next_waiting(self) -> _Waiting | None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.given.done():
                return waiting
        return None

    def _offer_room(self) -> None:
        """Let those who wait open connections, as many as there is room for."""
        while self._waiting and self._has_room():
            waiting = self._next_waiting()
            if waiting is not None:
                self._opening += 1
                waiting.given.set_result(None)

    def _end_waits(self) -> None:
        """End the waits that last too long."""
        self._timer = None
        loop = asyncio.get_running_loop()
        end = loop.time() - self._patience_s
        while self._waiting and (self._waiting[0].given.done() or self._waiting[0].since <= end):
            waiting = self._waiting.popleft()
            if not waiting.given.done():
                waiting.given.set_exception(NotOpenedError(NO_ROOM))
        if self._waiting:
            self._timer = loop.call_at(self._waiting[0].since + self._patience_s, self._end_waits)
