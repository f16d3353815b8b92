"""Mail servers that count everything: what was taken of each job, and where an answer was cut off."""

import asyncio
import re
import socket
import struct
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from tests.servers import free_port

OK: Final = "250 2.0.0 Ok"
HANG: Final = "hang"
"""The mail server takes the whole message, and then says nothing more."""
HANG_EARLY: Final = "hang early"
"""The mail server says nothing more once a recipient is named."""
DROP_BEFORE_DOT: Final = "drop before the dot"
DROP_AFTER_DOT: Final = "drop after the dot"
NOT_NOW: Final = "451 4.3.0 Not now"
KILL_ASKED: Final = "kill when it has asked for the message"
KILL_AMID: Final = "kill when a part of the message has come"
KILL_WHOLE: Final = "kill when it has the whole message"
KILL_ANSWERED: Final = "kill when it has answered"
KILLS: Final = (KILL_ASKED, KILL_AMID, KILL_WHOLE, KILL_ANSWERED)
"""The mail server tells the rig that it is at this point, where the worker is to be killed."""

_MESSAGE_ID = re.compile(rb"^Message-ID:\s*<([^@>]+)@", re.IGNORECASE | re.MULTILINE)


class Moment(NamedTuple):
    """A mail server is at the point with a message where its worker is to be killed."""

    worker: str
    job_id: str
    kill: str


class Mail:
    """What all mail servers saw of each job."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        """Messages that were answered with 250."""
        self.silent: Counter[str] = Counter()
        """Messages that were taken whole, without an answer."""
        self.begun: set[str] = set()
        """Messages of which a part came before their worker was killed: so it had noted that they are handed over."""
        self.cut: set[str] = set()
        """Messages that were asked for, and did not come whole."""
        self.put_off: Counter[str] = Counter()
        """Mail transactions that ended before the message was taken."""
        self.asked: defaultdict[str, set[str]] = defaultdict(set)
        """Messages that were asked for, by the name with which their worker had greeted."""
        self.taken_at: list[tuple[float, str, str]] = []
        """When each message was accepted, by which server, and its job."""
        self.taken = 0
        self.at_moment: Callable[[Moment], object] = print
        """What is to be done at each moment, on the loop of the mail servers."""
        self._plans: dict[str, deque[str]] = {}

    def will(self, job_id: str, *actions: str) -> None:
        """Do so in the next mail transactions of a job; after these, accept."""
        self._plans[job_id] = deque(actions)

    def planned(self, job_id: str, *which: str) -> str | None:
        """Take the next planned action of a job if it is one of `which`."""
        plan = self._plans.get(job_id)
        return plan.popleft() if plan and plan[0] in which else None

    def accept(self, job_id: str, server: str) -> None:
        """Note that a message was answered with 250."""
        self.accepted[job_id] += 1
        self.taken += 1
        self.taken_at.append((time.monotonic(), server, job_id))

    def leave_unanswered(self, job_id: str) -> None:
        """Note that a whole message gets no answer."""
        self.silent[job_id] += 1
        self.taken += 1


class MailServer:
    """A mail server on a port of its own, which can die, hang, and come back. Its methods are for other threads."""

    def __init__(self, name: str, mail: Mail) -> None:
        self.name = name
        self.mail = mail
        self.port = free_port()
        self.answer_s = 0.0
        """How long it takes to answer a whole message, in seconds."""
        self.hangs = False
        """Whether it accepts connections and says nothing."""
        self.connections: set[_Smtp] = set()
        self.served = 0
        self._server: asyncio.Server | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen on a loop that runs elsewhere, or not yet."""
        self._loop = loop
        if loop.is_running():
            self._run(self._listen)
        else:
            loop.run_until_complete(self._listen())

    def die(self) -> None:
        """Stop listening, and reset every connection."""

        async def die() -> None:
            if self._server is not None:
                self._server.close()
            for connection in list(self.connections):
                connection.reset()

        self._run(die)

    def hang(self) -> None:
        """Say nothing more, on any connection."""
        self.hangs = True

    def come_back(self) -> None:
        """Work again, after it has died or hung. Its connections are new ones."""
        if self.hangs:
            self.die()
            self.hangs = False
        self._run(self._listen)

    async def _listen(self) -> None:
        listening = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._server = await self._loop.create_server(lambda: _Smtp(self), sock=listening)

    def _run(self, do: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(do(), self._loop).result()


class _Smtp(asyncio.Protocol):
    """As much SMTP as a client needs. Every second connection offers PIPELINING."""

    def __init__(self, server: MailServer) -> None:
        self._server = server
        self._mail = server.mail
        self._buffer = b""
        self._in_data = False
        self._mute = False
        self._job = ""
        self._worker = ""
        self._unanswered: str | None = None
        """The job whose whole message waits for its answer, and everything that follows with it."""
        server.served += 1
        self._extensions = ["250-PIPELINING"] * (server.served % 2)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.connections.add(self)
        self._say("220 chaos.example ESMTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._unanswered is not None:
            self._mail.leave_unanswered(self._unanswered)
        if self._in_data:
            self._mail.cut.add(self._job)

    def reset(self) -> None:
        """Close the connection so that the other side gets an error (RST)."""
        its_socket = self._transport.get_extra_info("socket")
        its_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._go_on()

    def _go_on(self) -> None:
        while self._unanswered is None and self._step():
            pass

    def _step(self) -> bool:
        if self._in_data:
            return self._message()
        if self._mute or self._server.hangs:
            self._buffer = b""
            return False
        line, found, rest = self._buffer.partition(b"\r\n")
        if found:
            self._buffer = rest
            self._command(line.decode("utf-8", "replace"))
        return bool(found)

    def _command(self, line: str) -> None:
        verb = line[:4].upper()
        match verb:
            case "EHLO":
                self._worker = line[5:].strip()
                self._say("250-chaos.example", *self._extensions, "250-8BITMIME", "250 SMTPUTF8")
            case "RCPT":
                self._job = job_of(line.partition("<")[2].partition("@")[0])
                if self._mail.planned(self._job, HANG_EARLY):
                    self._mail.put_off[self._job] += 1
                    self._mute = True
                    return
                self._say("250 2.1.5 Ok")
            case "DATA":
                self._in_data = True
                self._mail.asked[self._worker].add(self._job)
                self._say("354 Go on")
                self._tell_of(self._mail.planned(self._job, KILL_ASKED))
            case "QUIT":
                self._say("221 2.0.0 Bye")
                self._transport.close()
            case "MAIL" | "RSET" | "NOOP" | "HELO":
                self._say("250 2.0.0 Ok")
            case _:
                self._say("502 5.5.2 Unknown")

    def _message(self) -> bool:
        if self._mute:
            return False
        if self._mail.planned(self._job, DROP_BEFORE_DOT):
            self._mail.put_off[self._job] += 1
            self._transport.abort()
            return False
        content, found, rest = self._buffer.partition(b"\r\n.\r\n")
        if not found:
            if content and (kill := self._mail.planned(self._job, KILL_AMID)):
                self._mail.begun.add(self._job)
                self._be_mute(kill)
            return False
        self._buffer, self._in_data = rest, False
        self._take(named_in(content))
        return True

    def _take(self, job: str) -> None:
        """Take a whole message."""
        action = self._mail.planned(job, HANG, DROP_AFTER_DOT, NOT_NOW, KILL_WHOLE)
        if action == NOT_NOW:
            self._mail.put_off[job] += 1
            self._mail.asked[self._worker].discard(job)
            self._say(NOT_NOW)
        elif action is not None:
            self._mail.leave_unanswered(job)
            self._mute = True
            if action == DROP_AFTER_DOT:
                self._transport.abort()
            self._tell_of(action if action == KILL_WHOLE else None)
        elif self._server.answer_s:
            self._unanswered = job
            asyncio.get_running_loop().call_later(self._server.answer_s, self._answer)
        else:
            self._accept(job)

    def _answer(self) -> None:
        """Answer the message that waits for it, unless the connection is lost."""
        job = self._unanswered
        if job is None or self._transport.is_closing():
            return
        self._unanswered = None
        self._accept(job)
        self._go_on()

    def _accept(self, job: str) -> None:
        if self._server.hangs:
            self._mail.leave_unanswered(job)
            self._mute = True
            return
        self._mail.accept(job, self._server.name)
        self._say(OK)
        self._tell_of(self._mail.planned(job, KILL_ANSWERED))

    def _be_mute(self, kill: str) -> None:
        """Read nothing more, until the worker is killed."""
        self._mute = True
        self._transport.pause_reading()
        asyncio.get_running_loop().call_later(3.0, self._transport.abort)
        self._tell_of(kill)

    def _tell_of(self, kill: str | None) -> None:
        if kill is not None:
            self._mail.at_moment(Moment(self._worker, self._job, kill))

    def _say(self, *lines: str) -> None:
        if not self._server.hangs:
            self._transport.write("".join(f"{line}\r\n" for line in lines).encode())


def job_of(local_part: str) -> str:
    """Give the message id that is in the address of a recipient."""
    return local_part.rpartition("+")[2].replace("=", "/")


def named_in(content: bytes) -> str:
    """Give the message id that is in the Message-ID of an email."""
    named = _MESSAGE_ID.search(content)
    return unquote(named[1].decode()) if named else "?"


def percentile(values: Iterable[float], share: float) -> float:
    """Give the value which this share of the values does not exceed; zero if there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
