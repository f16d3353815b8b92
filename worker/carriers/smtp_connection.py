"""A connection to a mail server: what is written and read on it, and the time that everything may take."""

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Generator
from typing import Final, cast

from worker.carriers.smtp_replies import Reply, ReplyReader

STEPS: Final = 3
"""Timeouts that the replies to one group of commands may take together, and so a transaction up to the final dot."""
GOODBYE_S: Final = 1.0
"""How long a server may take to answer QUIT, in seconds."""
PATIENCE_S: Final = 1.0
"""How long a message may wait behind another one on the same connection while there are other connections."""
PIECE: Final = 65_536
"""Bytes that are written at once. More are written only when these have left."""


class Fault(enum.StrEnum):
    """Why a connection can no longer be used."""

    CLOSED = "it closed the connection"
    SLOW = "it did not answer in time"
    UNASKED = "it said something without being asked"
    NOT_SMTP = "it answered something that is not SMTP"
    ENDED = "Postage ended the conversation"


class BrokenError(Exception):
    """The connection broke before a reply was there."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Replies:
    """The replies to commands that were sent together: as many as commands, or fewer if the connection breaks.

    Each may take `limit_s` seconds, and all of them `STEPS` times as long, or until a given time of the loop's clock.
    """

    __slots__ = ("_waiter", "got", "is_over", "limit_s", "until", "wanted")

    def __init__(self, wanted: int, limit_s: float, until: float | None = None) -> None:
        self.wanted = wanted
        self.limit_s = limit_s
        self.until = until
        self.got: list[Reply] = []
        self.is_over = False
        self._waiter: asyncio.Future[None] | None = None

    def __await__(self) -> Generator[None, None, list[Reply]]:
        """Wait for them."""
        if not self.is_over:
            self._waiter = asyncio.get_running_loop().create_future()
            yield from self._waiter
        return self.got

    def end(self) -> None:
        """Let whoever waits go on."""
        self.is_over = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SmtpConnection(asyncio.Protocol):
    """One connection. Replies are matched to commands by their order, so that much can be on the way at a time.

    Once anything is wrong it has a `fault`, and can only be thrown away.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        *,
        secrets: tuple[str, ...] = (),
        on_stuck: Callable[["SmtpConnection"], None] | None = None,
        on_lost: Callable[["SmtpConnection"], None] | None = None,
    ) -> None:
        """Prepare a connection whose replies may take `timeout_s` each.

        `secrets` are never repeated. `on_stuck` is called now and then while a message waits behind another one, and
        `on_lost` when the connection has got its fault.
        """
        self.fault: Fault | None = None
        self.timeout_s = timeout_s
        self.secrets = secrets
        self.extensions: dict[str, str] = {}
        self.pipelining = False
        self.smtputf8 = False
        self.size = False
        self.messages = 0
        """Messages that were begun on it."""
        self.greeting = Replies(1, timeout_s)
        self.owner: object = None
        """The transaction that is the last one on it."""
        self.owner_before: object = None
        self.is_spent = False
        """Whether it is to be closed after the transaction that is going on."""
        self._loop = loop
        self._on_stuck = on_stuck
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._reader = ReplyReader()
        self._asked: deque[Replies] = deque()
        self._stuck_at = float("inf")
        self._deadline = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._is_late = False
        self._is_leaving = False
        self._is_full = False
        self._room: asyncio.Future[None] | None = None
        self._end: asyncio.Future[None] | None = None

    # -- what others do with it ---------------------------------------------------------------------------------------

    @property
    def transport(self) -> asyncio.Transport:
        """What it is made over.

        Raises
        ------
        BrokenError
            If there is none any more, or not yet.

        """
        if self._transport is None:
            raise BrokenError(self.fault or Fault.CLOSED)
        return self._transport

    def is_open(self) -> bool:
        """Whether something can still be written. If not, there is a fault, or there will be one very soon."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, wanted: int, limit_s: float | None = None, until: float | None = None) -> Replies:
        """Expect the replies to commands that are about to be written."""
        replies = Replies(wanted, self.timeout_s if limit_s is None else limit_s, until)
        if self.fault is not None:
            replies.end()
            return replies
        self._asked.append(replies)
        if len(self._asked) == 1:
            self._watch(replies)
        else:
            self._stuck_at = self._loop.time() + PATIENCE_S
            self._arm(self._stuck_at)
        return replies

    def write(self, data: bytes) -> None:
        """Write something. What it is the beginning of has been asked for already."""
        if self._transport is not None:
            self._transport.write(data)

    async def say(self, command: str, limit_s: float | None = None) -> Reply:
        """Send one command and return the reply to it.

        Raises
        ------
        BrokenError
            If there is none.

        """
        replies = self.ask(1, limit_s)
        self.write(f"{command}\r\n".encode())
        return await self.one(replies)

    async def one(self, replies: Replies) -> Reply:
        """Return the only one of these replies.

        Raises
        ------
        BrokenError
            If it never came.

        """
        for reply in await replies:
            return reply
        raise BrokenError(self.fault or Fault.CLOSED)

    async def write_pieces(self, content: bytes, until: float, early: Replies) -> bool:
        """Write much, and wait until all of it has left. Returns False if it did not, in time or ever.

        A server that replies to it before it is whole, which are the `early` replies, gets no more of it.
        """
        try:
            # Not zero: a transport that encrypts would be full when nothing waits any more, and never say otherwise.
            self.transport.set_write_buffer_limits(high=1)
            async with asyncio.timeout_at(until):
                for first in range(0, len(content), PIECE):
                    self.transport.write(content[first : first + PIECE])
                    await self._wait_for_room()
                    if early.is_over:
                        return False
            self.transport.set_write_buffer_limits()
        except (TimeoutError, BrokenError):
            return False
        return True

    def upgrade(self, transport: asyncio.Transport) -> None:
        """Go on over another transport: the one that encrypts. What the server said before does not count any more."""
        self._transport = transport
        self.extensions = {}

    def leave(self, replies: Replies) -> None:
        """Wait for these replies no longer, though they will come: no other message may follow on this connection."""
        self.is_spent = True
        self._asked[self._asked.index(replies)] = Replies(replies.wanted, replies.limit_s)
        replies.end()

    def extend(self, replies: Replies, limit_s: float) -> None:
        """Begin the time for the first of these replies only now."""
        replies.limit_s, replies.until = limit_s, None
        if self.is_first(replies):
            self._watch(replies)

    def is_first(self, replies: Replies) -> bool:
        """Whether these replies are the next that will come."""
        return bool(self._asked) and self._asked[0] is replies

    @property
    def is_waiting(self) -> bool:
        """Whether replies are still to come."""
        return bool(self._asked)

    def rest(self, limit_s: float) -> None:
        """Close it in `limit_s` seconds, unless something is asked before."""
        self._deadline = self._loop.time() + limit_s
        self._arm(self._deadline)

    def quit(self) -> None:
        """Take leave of the server, and close the connection when it has answered, or soon."""
        if self.fault is None and not self._is_leaving:
            self._is_leaving = True
            self.ask(1, GOODBYE_S)
            self.write(b"QUIT\r\n")

    def abort(self, fault: Fault = Fault.ENDED) -> None:
        """Close it at once, whatever is going on."""
        if self.fault is None:
            self.fault = fault
        if self._transport is not None:
            self._transport.abort()
        self._give_up()

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        if self._transport is not None:
            self._end = self._loop.create_future()
            await self._end

    # -- what the loop calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. The server speaks first."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.greeting = self.ask(1)

    def data_received(self, data: bytes) -> None:
        """Match what has arrived to what was asked."""
        replies = self._reader.feed(data)
        for reply in replies:
            if not self._asked:
                self.abort(Fault.UNASKED)
                return
            first = self._asked[0]
            first.got.append(reply)
            if len(first.got) == first.wanted:
                self._asked.popleft()
                first.end()
                self._let_go_on()
        if self._reader.is_broken:
            self.abort(Fault.NOT_SMTP)
        elif self._asked:
            if replies:
                self._watch(self._asked[0])
        elif self._reader.is_inside:
            self.abort(Fault.UNASKED)
        elif self._is_leaving:
            self.transport.close()
        else:
            self._deadline = float("inf")

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  as asyncio calls it
        """End: the server has closed the connection, or Postage has."""
        if self.fault is None:
            self.fault = Fault.CLOSED
        self._transport = None
        self._give_up()
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def pause_writing(self) -> None:
        """Note that much waits to leave."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Note that it has left."""
        self._is_full = False
        self._let_go_on()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _watch(self, replies: Replies) -> None:
        """Limit the time for the next of these replies, and for all of them."""
        now = self._loop.time()
        if replies.until is None:
            replies.until = now + STEPS * replies.limit_s
        self._is_late = False
        self._deadline = min(now + replies.limit_s, replies.until)
        self._arm(min(self._deadline, now + PATIENCE_S))

    def _arm(self, at: float) -> None:
        """See to it that the timer runs at `at`, or earlier.

        It mostly runs too early, which costs less than a timer for each reply.
        """
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        now = self._loop.time()
        if now >= self._deadline:
            if self._is_late:
                self._run_out_of_time()
            else:  # perhaps this process stood still, and what is to be read was not looked at yet
                self._is_late = True
                self._arm(now)
            return
        if len(self._asked) > 1:
            if now >= self._stuck_at and self._on_stuck is not None:
                self._on_stuck(self)
            self._arm(min(self._deadline, now + PATIENCE_S))
        elif self._deadline != float("inf"):
            self._arm(self._deadline)

    def _run_out_of_time(self) -> None:
        if self._asked or self._is_leaving:  # the end of an encrypted connection may take as long as the server likes
            self.abort(Fault.SLOW)
        else:
            self.quit()
            if self._on_lost is not None:
                self._on_lost(self)

    # -- its end ------------------------------------------------------------------------------------------------------

    def _give_up(self) -> None:
        """Let everybody go on who waits for something of this connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._asked:
            self._asked.popleft().end()
        self._let_go_on()
        if self._on_lost is not None:
            self._on_lost(self)

    def _let_go_on(self) -> None:
        """Let whoever waits for room see what has become of it."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _wait_for_room(self) -> None:
        if self._is_full and self.fault is None:
            self._room = self._loop.create_future()
            await self._room
        if not self.is_open():
            raise BrokenError(self.fault or Fault.CLOSED)
