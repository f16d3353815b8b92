"""What is outside of Postage: a mail server and an SMS gateway that a test tells what to answer, and a producer.

The producer is a plain Celery app that knows the names of tasks and queues, and nothing of Postage's code.
"""

import email
import email.policy
import hashlib
import hmac
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from urllib.parse import unquote
from uuid import uuid4

from aiosmtpd.smtp import SMTP, Envelope
from celery import Celery
from kombu import Exchange, Queue
from kombu import Producer as Publisher

from worker.local.sinks import LoopbackController

Json = dict[str, Any]

DROP: Final = "drop"
"""The answer of a mail server that takes a message and hangs up without a word."""
HELD_S: Final = 60.0
"""How long a message is held at most, so that no test hangs."""
ANSWERED_S: Final = 60.0
"""How long a producer waits for an answer."""

QUEUES: Final = {
    "email.send": "email",
    "sms.send": "sms",
    "email.send_many": "bulk",
    "sms.send_many": "bulk",
    "credits.purchase": "billing",
    "credits.set_owner": "billing",
    "users.save": "billing",
    "roles.save": "billing",
    "plans.save": "billing",
    "users.erase": "billing",
    "messages.cancel": "billing",
    "views.overview": "views",
    "views.usage": "views",
    "views.orders": "views",
    "views.billing": "views",
    "views.users": "views",
    "views.message": "views",
    "views.explain": "views",
}
"""The queue of each task as producers were told; on purpose not read from Postage's code."""


@dataclass(frozen=True)
class ReceivedMail:
    """One mail as the server got it: the envelope, and the content as the program of its reader parses it."""

    sender: str
    recipients: list[str]
    content: EmailMessage

    @property
    def job_id(self) -> str:
        """The job id in the Message-ID."""
        return unquote(self.content["Message-ID"].removeprefix("<").rpartition("@")[0])

    def text(self, subtype: str = "plain") -> str:
        """The body of one kind, with the line ends of this machine."""
        body = self.content.get_body((subtype,))
        assert isinstance(body, EmailMessage)
        return str(body.get_content()).replace("\r\n", "\n")


class MailServer:
    """A real mail server that accepts everything, except where it was told to answer otherwise."""

    def __init__(self) -> None:
        self.mails: list[ReceivedMail] = []
        self.offers: Counter[str] = Counter()
        """How often each job's message came as far as the final dot."""
        self._answers: dict[str, list[str]] = {}
        self._recipients: dict[str, str] = {}
        self._released = threading.Event()
        self._released.set()
        self._held_jobs: set[str] = set()
        self._controller = LoopbackController(self, enable_SMTPUTF8=True)
        self._controller.start()
        self.url = f"smtp://127.0.0.1:{self._controller.port}?starttls=never"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._controller.stop()

    def will_answer(self, job_id: str, *answers: str) -> None:
        """Answer the next messages of a job so, or `DROP` the connection; after these, accept."""
        self._answers[job_id] = list(answers)

    def will_answer_recipient(self, address: str, answer: str) -> None:
        """Answer so whenever this recipient is named."""
        self._recipients[address] = answer

    def hold(self) -> None:
        """Leave every message unanswered until `release`."""
        self._released.clear()

    def hold_one(self, job_id: str) -> None:
        """Leave the message of one job unanswered until `release`."""
        self._held_jobs.add(job_id)
        self.hold()

    def release(self) -> None:
        """Answer what is held, and hold nothing more."""
        self._held_jobs.clear()
        self._released.set()

    def mails_of(self, job_id: str) -> list[ReceivedMail]:
        """The mails of one job that were accepted."""
        return [mail for mail in self.mails if mail.job_id == job_id]

    async def handle_RCPT(  # noqa: N802  aiosmtpd's
        self, server: SMTP, session: object, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self._recipients:
            return self._recipients[address]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: SMTP, session: object, envelope: Envelope) -> str:  # noqa: N802
        mail = ReceivedMail(
            sender=envelope.mail_from or "",
            recipients=[str(address) for address in envelope.rcpt_tos],
            content=email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default),
        )
        self.offers[mail.job_id] += 1
        if not self._held_jobs or mail.job_id in self._held_jobs:
            await server.loop.run_in_executor(None, self._released.wait, HELD_S)
        answers = self._answers.get(mail.job_id)
        answer = answers.pop(0) if answers else f"250 2.0.0 Ok: queued as 4XyZ{len(self.mails):06}"
        if answer == DROP:
            assert server.transport is not None
            server.transport.abort()
        elif answer.startswith("250"):
            self.mails.append(mail)
        return answer


@dataclass(frozen=True)
class Post:
    """One request to the SMS gateway, and how it was answered."""

    key: str
    text: Json
    status: int


class SmsGateway(ThreadingHTTPServer):
    """A real HTTP server that accepts every text message, except where it was told to answer otherwise."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.posts: list[Post] = []
        self._answers: dict[str, list[int]] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}/messages"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def will_answer(self, job_id: str, *statuses: int) -> None:
        """Answer the next requests of a job so; after these, accept."""
        self._answers[job_id] = list(statuses)

    def answer_to(self, key: str, text: Json) -> int:
        """Keep a request, and give the status with which it is answered."""
        statuses = self._answers.get(text["id"])
        status = statuses.pop(0) if statuses else 200
        self.posts.append(Post(key, text, status))
        return status

    def posts_of(self, job_id: str) -> list[Post]:
        """The requests of one job."""
        return [post for post in self.posts if post.text["id"] == job_id]

    def handle_error(self, *_: object) -> None:
        """Print nothing when a worker ends and so drops its connection."""


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SmsGateway

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.answer_to(self.headers["Idempotency-Key"], text)
        body = json.dumps({"id": f"ref-{text['id']}"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


NOTHING_AFTERWARDS: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
"""What Celery writes as the last part of a body, if a producer asks for nothing after the task."""


def signed(key: tuple[str, str], task: str, task_id: str, body: object, at: int | None = None) -> Json:
    """Give the headers that sign a message, as producers are told to make them, for a body that Celery is to write."""
    name, secret = key
    at = int(time.time()) if at is None else at
    lines = "\n".join(["postage-1", name, task, task_id, str(at), json.dumps(body)])
    mac = hmac.new(secret.encode(), lines.encode(), hashlib.sha256).hexdigest()
    return {"postage": {"key": name, "at": at, "mac": mac}}


class Producer:
    """Another system: it enqueues jobs by the names that it was told, and reads answers where Celery keeps them."""

    def __init__(self, broker_url: str, key: tuple[str, str] | None = None, **options: Any) -> None:
        """Make a producer, which signs with a key if it has one: its name and secret.

        `options` are what it is told to set for the transport and the result backend.
        """
        self.key = key
        self.app = Celery("outside", broker=broker_url, backend="disabled://", set_as_current=False)
        self._asking = Celery("asking", broker=broker_url, backend=broker_url, set_as_current=False)
        for app in (self.app, self._asking):
            app.conf.update(broker_transport_options=options, result_backend_transport_options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        backend: Any = self._asking.backend
        backend.result_consumer.stop()
        backend.client.close()
        self._asking.close()
        self.app.close()

    def send(self, task: str, job: object, task_id: str | None = None, **options: Any) -> str:
        """Enqueue a job, with any options of Celery's. Returns its task id."""
        return self.send_raw(task, [job], task_id=task_id, **options)

    def send_raw(
        self,
        task: str,
        args: list[Any],
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> str:
        """Enqueue a task with any arguments. Returns its task id."""
        task_id = task_id or str(uuid4())
        self.app.send_task(
            task,
            args=args,
            kwargs=dict(kwargs or {}),
            task_id=task_id,
            queue=QUEUES[task],
            headers=self._signed(task, task_id, args, kwargs),
            **options,
        )
        return task_id

    def _signed(self, task: str, task_id: str, args: list[Any], kwargs: Mapping[str, Any] | None = None) -> Json:
        """The headers that sign a task."""
        return (
            {} if self.key is None else signed(self.key, task, task_id, [args, dict(kwargs or {}), NOTHING_AFTERWARDS])
        )

    def publish(
        self, queue: str, body: str, headers: Mapping[str, Any], content_type: str = "application/json"
    ) -> None:
        """Put any message on a queue."""
        with closing(self.app.connection_for_write()) as connection, closing(connection.channel()) as channel:
            Publisher(channel).publish(
                body,
                exchange=queue,
                routing_key=queue,
                headers=dict(headers),
                content_type=content_type,
                content_encoding="utf-8",
                declare=[Queue(queue, Exchange(queue), routing_key=queue)],
            )

    def ask(self, task: str, job: object, task_id: str | None = None) -> Json:
        """Enqueue a job, and return its answer."""
        with self.asked(task, job, task_id=task_id) as result:
            answer: Json = result.get(timeout=ANSWERED_S)
        return answer

    @contextmanager
    def asked(self, task: str, job: object, **options: Any) -> Iterator[Any]:
        """Enqueue a job; gives its result, which can be asked for within the block."""
        task_id = options.pop("task_id", None) or str(uuid4())
        headers = self._signed(task, task_id, [job])
        result: Any = self._asking.send_task(
            task, args=[job], queue=QUEUES[task], task_id=task_id, headers=headers, **options
        )
        try:
            yield result
        finally:
            # Otherwise it would use the broker when its memory is freed, which may be after the broker has ended.
            result.backend.remove_pending_result(result)
            result.backend = None

    def do(self, task: str, job: Json) -> Json:
        """Enqueue a job that must be done, and return its answer."""
        answer = self.ask(task, job)
        assert answer["status"] == "done", answer
        return answer

    def control(self, command: str, *, timeout: float = 5.0, **arguments: Any) -> Any:
        """Send a command of remote control, and return the first worker's reply; None if none comes in time."""
        with closing(self.app.connection_for_write()) as connection:
            replies = self.app.control.broadcast(
                command, arguments=arguments, reply=True, timeout=timeout, limit=1, connection=connection
            )
        return next(iter(replies[0].values())) if replies else None


@contextmanager
def collected_events(app: Celery) -> Iterator[list[Json]]:
    """Collect every event that workers send during the block, as Flower does."""
    events: list[Json] = []
    ready, over = threading.Event(), threading.Event()

    def collect() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": events.append})
            with receiver.consumer_context() as (its_connection, _, _):
                ready.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        its_connection.drain_events(timeout=0.2)

    thread = threading.Thread(target=collect)
    thread.start()
    assert ready.wait(30)
    try:
        yield events
    finally:
        over.set()
        thread.join()
