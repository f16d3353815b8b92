"""What is outside of Postage: a mail server and an SMS gateway that count everything, and a stubborn producer.

Both servers run on one event loop in a thread, and are too fast to slow a measurement down. The producer is a plain
Celery app that knows the names of tasks and queues, and nothing of Postage's code.
"""

import asyncio
import json
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Self
from urllib.parse import unquote

from celery import Celery

Json = dict[str, Any]

QUEUES: Final = {"email.send": "email", "sms.send": "sms", "email.send_many": "bulk", "sms.send_many": "bulk"}
ALL_QUEUES: Final = ("email", "sms", "bulk", "billing", "views", "upkeep")
"""The queues as producers were told; on purpose not read from Postage's code."""

OK: Final = "250 2.0.0 Ok"
HANG: Final = "hang"
"""The mail server takes the whole message, and then says nothing more."""
HANG_EARLY: Final = "hang early"
"""The mail server says nothing more once a recipient is named."""
DROP_BEFORE_DOT: Final = "drop before the dot"
DROP_AFTER_DOT: Final = "drop after the dot"
NOT_NOW: Final = "451 4.3.0 Not now"

_MESSAGE_ID = re.compile(rb"^Message-ID:\s*<([^@>]+)@", re.IGNORECASE | re.MULTILINE)


class Outside:
    """The mail server and the SMS gateway, on ports of this machine. Both end with the block."""

    def __init__(self) -> None:
        self.mail = Mail()
        self.gateway = Gateway()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="outside", daemon=True)
        self._sockets = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(2)]
        smtp, http = (listening.getsockname()[1] for listening in self._sockets)
        self.smtp_url = f"smtp://127.0.0.1:{smtp}?starttls=never"
        self.sms_url = f"http://127.0.0.1:{http}/messages"

    def __enter__(self) -> Self:
        for protocol, listening in zip((self._mail, self._sms), self._sockets, strict=True):
            self._loop.run_until_complete(self._loop.create_server(protocol, sock=listening))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for listening in self._sockets:
            listening.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _mail(self) -> asyncio.Protocol:
        return _Smtp(self.mail)

    def _sms(self) -> asyncio.Protocol:
        return _Http(self.gateway)

    @property
    def taken(self) -> int:
        """How many messages were taken so far."""
        return self.mail.taken + len(self.gateway.kept)


class Mail:
    """What a mail server saw of each job, by the job id in the Message-ID."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        """Messages that were answered with 250."""
        self.silent: Counter[str] = Counter()
        """Messages that were taken whole, without an answer."""
        self.put_off: Counter[str] = Counter()
        """Mail transactions that ended before the message was taken."""
        self.taken = 0
        self._plans: dict[str, deque[str]] = {}

    def will(self, job_id: str, *actions: str) -> None:
        """Do so in the next mail transactions of a job; after these, accept."""
        self._plans[job_id] = deque(actions)

    def planned(self, job_id: str, *which: str) -> str | None:
        """Take the next planned action of a job if it is one of `which`."""
        plan = self._plans.get(job_id)
        return plan.popleft() if plan and plan[0] in which else None


class _Smtp(asyncio.Protocol):
    """As much SMTP as a client needs that sends one command at a time."""

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._buffer = b""
        self._in_data = False
        self._mute = False
        self._job = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._say("220 chaos.example ESMTP")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._step():
            pass

    def _step(self) -> bool:
        if self._mute:
            self._buffer = b""
            return False
        if self._in_data:
            return self._message()
        line, found, rest = self._buffer.partition(b"\r\n")
        if found:
            self._buffer = rest
            self._command(line.decode("utf-8", "replace"))
        return bool(found)

    def _command(self, line: str) -> None:
        verb = line[:4].upper()
        match verb:
            case "EHLO":
                self._say("250-chaos.example", "250-8BITMIME", "250 SMTPUTF8")
            case "RCPT":
                self._job = line.partition("<")[2].partition("@")[0].rpartition("+")[2]
                if self._mail.planned(self._job, HANG_EARLY):
                    self._mail.put_off[self._job] += 1
                    self._mute = True
                    return
                self._say("250 2.1.5 Ok")
            case "DATA":
                self._in_data = True
                self._say("354 Go on")
            case "QUIT":
                self._say("221 2.0.0 Bye")
                self._transport.close()
            case "MAIL" | "RSET" | "NOOP" | "HELO":
                self._say("250 2.0.0 Ok")
            case _:
                self._say("502 5.5.2 Unknown")

    def _message(self) -> bool:
        if self._mail.planned(self._job, DROP_BEFORE_DOT):
            self._mail.put_off[self._job] += 1
            self._transport.abort()
            return False
        content, found, rest = self._buffer.partition(b"\r\n.\r\n")
        if not found:
            return False
        self._buffer, self._in_data = rest, False
        named = _MESSAGE_ID.search(content)
        job = unquote(named[1].decode()) if named else "?"
        action = self._mail.planned(job, HANG, DROP_AFTER_DOT, NOT_NOW)
        if action == NOT_NOW:
            self._mail.put_off[job] += 1
            self._say(NOT_NOW)
        elif action is not None:
            self._mail.silent[job] += 1
            self._mail.taken += 1
            self._mute = True
            if action == DROP_AFTER_DOT:
                self._transport.abort()
        else:
            self._mail.accepted[job] += 1
            self._mail.taken += 1
            self._say(OK)
        return True

    def _say(self, *lines: str) -> None:
        self._transport.write("".join(f"{line}\r\n" for line in lines).encode())


class Gateway:
    """What an SMS gateway saw. It recognizes the Idempotency-Key, as the gateway that Postage needs does."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        """The job id of each text message that went out, by its key."""
        self.requests: Counter[str] = Counter()


class _Http(asyncio.Protocol):
    """As much HTTP as a client needs that posts JSON on a connection that stays open."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._request():
            pass

    def _request(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        }
        length = int(headers["content-length"])
        if len(rest) < length:
            return False
        text, self._buffer = json.loads(rest[:length]), rest[length:]
        self._gateway.requests[text["id"]] += 1
        self._gateway.kept.setdefault(headers["idempotency-key"], text["id"])
        body = json.dumps({"id": f"ref-{text['id']}"}).encode()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return True


class Producer:
    """Another system: it enqueues jobs, and tries each again until the broker has confirmed it."""

    def __init__(self, broker_url: str) -> None:
        self.app = Celery("outside", broker=broker_url, backend="disabled://", set_as_current=False)
        self.app.conf.broker_transport_options = {"socket_timeout": 5, "socket_connect_timeout": 5}
        self.app.conf.task_publish_retry = False
        self.published = 0
        self.failures = 0
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self.app.close()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be published."""
        return not any(thread.is_alive() for thread in self._threads)

    def publish(self, task: str, job: Json, copies: int = 1) -> None:
        """Put a job on its queue, until the broker confirms it. After a failure the job may be there twice."""
        for _ in range(copies):
            while not self._ended.is_set():
                try:
                    self.app.send_task(task, args=[job], queue=QUEUES[task])
                except Exception:  # noqa: BLE001  whatever it was, the job is not confirmed
                    self.failures += 1
                    time.sleep(0.1)
                else:
                    break
        self.published += 1

    def publish_meanwhile(self, jobs: Iterable[tuple[str, Json]], may: Callable[[], bool], copies: int = 1) -> None:
        """Publish these jobs in a thread, each as soon as it `may` be."""

        def work() -> None:
            for task, job in jobs:
                while not may() and not self._ended.is_set():
                    time.sleep(0.01)
                self.publish(task, job, copies)

        thread = threading.Thread(target=work, name="producer", daemon=True)
        self._threads.append(thread)
        thread.start()
