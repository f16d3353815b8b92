"""What is outside of Postage: mail servers and an SMS gateway that count everything, and a stubborn producer.

All servers run on one event loop in a thread, and are too fast to slow a measurement down. The producer is a plain
Celery app that knows the names of tasks and queues, and nothing of Postage's code.
"""

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from celery import Celery

from tests.chaos.mail import Mail, MailServer

Json = dict[str, Any]

QUEUES: Final = {"email.send": "email", "sms.send": "sms", "email.send_many": "bulk", "sms.send_many": "bulk"}
ALL_QUEUES: Final = ("email", "sms", "bulk", "billing", "views", "upkeep")
"""The queues as producers were told; on purpose not read from Postage's code."""


class Outside:
    """Two mail servers and an SMS gateway, on ports of this machine. All end with the block."""

    def __init__(self) -> None:
        self.mail = Mail()
        self.servers = [MailServer(name, self.mail) for name in ("a", "b")]
        self.gateway = Gateway()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="outside", daemon=True)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.smtp_url = self.mail_url()
        self.sms_url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/messages?name=good"

    def mail_url(self, server: int = 0, **options: object) -> str:
        """Give the URL of a mail server, with these options."""
        its = self.servers[server]
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"smtp://127.0.0.1:{its.port}?starttls=never&name={its.name}{more}"

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start(self._loop)
        self._loop.run_until_complete(self._loop.create_server(self._sms, sock=self._listening))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listening.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _sms(self) -> asyncio.Protocol:
        return _Http(self.gateway)

    @property
    def taken(self) -> int:
        """How many messages were taken so far."""
        return self.mail.taken + len(self.gateway.kept)


class Gateway:
    """What an SMS gateway saw. It recognizes the Idempotency-Key, as the gateway that Postage needs does."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        """The job id of each text message that went out, by its key."""
        self.taken_at: dict[str, float] = {}
        """When each job's text message first went out."""
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
        self._gateway.taken_at.setdefault(text["id"], time.monotonic())
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
        self.published_at: dict[str, float] = {}
        """When each job was given to the broker."""
        self.failures = 0
        self._lock = threading.Lock()
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
        self.published_at[job["job_id"]] = time.monotonic()
        for _ in range(copies):
            while not self._ended.is_set():
                try:
                    self.app.send_task(task, args=[job], queue=QUEUES[task])
                except Exception:  # noqa: BLE001  whatever it was, the job is not confirmed
                    self.failures += 1
                    time.sleep(0.1)
                else:
                    break
        with self._lock:
            self.published += 1

    def publish_meanwhile(
        self, jobs: Sequence[tuple[str, Json]], may: Callable[[], bool], copies: int = 1, *, threads: int = 1
    ) -> None:
        """Publish these jobs in threads, each as soon as it `may` be."""

        def work(number: int) -> None:
            for task, job in jobs[number::threads]:
                while not may() and not self._ended.is_set():
                    time.sleep(0.01)
                self.publish(task, job, copies)

        for number in range(threads):
            thread = threading.Thread(target=work, args=(number,), name="producer", daemon=True)
            self._threads.append(thread)
            thread.start()
