"""Local receivers for `postage up`: each message that is sent arrives here, and is kept as a file."""

import email.parser
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

LOOPBACK = "127.0.0.1"
MAIL_MAX = 32 * 1024 * 1024
"""Bytes of one mail."""
SMS_MAX = 1024 * 1024
"""Bytes of one request."""
POLL_S = 0.1
"""How often the SMS receiver checks whether it is to end, in seconds."""
_NAME_MAX = 120


class _Sink:
    """What both receivers share: a port of this machine, and an end."""

    port: int

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LoopbackController(Controller):
    """aiosmtpd on a given or a free port of 127.0.0.1; its own class cannot choose a free one."""

    def __init__(self, handler: object, port: int = 0, **options: Any) -> None:  # noqa: ANN401  they are aiosmtpd's
        """Take the port, so that a taken one raises OSError here; `options` are those of aiosmtpd's `SMTP`."""
        self._socket = socket.create_server((LOOPBACK, port), backlog=128)
        super().__init__(handler, hostname=LOOPBACK, port=self._socket.getsockname()[1], **options)

    def _create_server(self) -> Any:  # noqa: ANN401  as aiosmtpd has it
        return self.loop.create_server(self._factory_invoker, sock=self._socket, ssl=self.ssl_context)


class MailSink(_Sink):
    """A mail server that keeps each mail it gets as `folder/mail/….eml`, with its envelope in two `X-` headers."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Listen on `port` of 127.0.0.1, or on a free one.

        Raises
        ------
        OSError
            If the port is taken or the folder cannot be made.

        """
        self._folder = folder / "mail"
        self._folder.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd would log the addresses
        self._controller = LoopbackController(self, port, data_size_limit=MAIL_MAX, ident="Postage outbox")
        self._controller.start()
        self.port = self._controller.port

    @property
    def url(self) -> str:
        """The address for POSTAGE_SMTP_URL."""
        return f"smtp://{LOOPBACK}:{self.port}?starttls=never"

    def close(self) -> None:
        """Stop listening."""
        self._controller.stop()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802
        """Keep a mail. aiosmtpd calls this."""
        content = envelope.original_content or b""
        head = f"X-Envelope-From: {envelope.mail_from}\r\nX-Envelope-To: {', '.join(map(str, envelope.rcpt_tos))}\r\n"
        path = _keep(self._folder, _job_id(content), ".eml", head.encode("utf-8", "surrogateescape") + content)
        return f"250 2.0.0 Ok: queued as {path.stem.rpartition('-')[2]}"


class SmsSink(_Sink):
    """An SMS gateway that keeps each text it gets as `folder/sms/….json`, once for each `Idempotency-Key`."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Listen on `port` of 127.0.0.1, or on a free one. Keys are remembered by the files of earlier runs.

        Raises
        ------
        OSError
            If the port is taken or the folder cannot be made.

        """
        self._folder = folder / "sms"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._answers = _known_answers(self._folder)
        self._server = _SmsServer(self, port)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="sms", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address for POSTAGE_SMS_URL."""
        return f"http://{LOOPBACK}:{self.port}/"

    def close(self) -> None:
        """Stop listening and end the kept connections."""
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()
        self._thread.join()

    def take(self, message: Mapping[str, Any], key: str | None) -> str:
        """Keep a text message and return its id; the same `key` gets the first id and is not kept again."""
        with self._lock:
            if key is not None and key in self._answers:
                return self._answers[key]
            reference = secrets.token_hex(8)
            kept = {
                **message,
                "reference": reference,
                "idempotency_key": key,
                "received_at": datetime.now(UTC).isoformat(),
            }
            content = json.dumps(kept, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace")
            _keep(self._folder, key or "no-key", ".json", content)
            if key is not None:
                self._answers[key] = reference
            return reference


class _SmsServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, sink: SmsSink, port: int) -> None:
        self.sink = sink
        self._open: set[Any] = set()
        super().__init__((LOOPBACK, port), _SmsHandler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  as socketserver has them
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep open, after the request that runs on each."""
        for request in tuple(self._open):
            try:
                request.shutdown(socket.SHUT_RD)
            except OSError:
                continue  # it has just ended by itself


class _SmsHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _SmsServer

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > SMS_MAX:
            self.close_connection = True  # what follows cannot be told from the next request
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "A Content-Length of at most 1 MiB is needed."})
            return
        try:
            message = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "The body must be one JSON object."})
            return
        reference = self.server.sink.take(message, self.headers.get("Idempotency-Key"))
        self._answer(HTTPStatus.OK, {"id": reference})

    def _answer(self, status: HTTPStatus, content: Mapping[str, str]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the worker logs what it sends."""


def _keep(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write one message to a new file, whose name is unique, begins with the time and contains `name`.

    It gets its name when it is complete, so nobody who lists the folder reads half a message.
    """
    stamp = datetime.fromtimestamp(time.time(), UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / f"{stamp}-{quote(name, safe='@')[:_NAME_MAX]}-{secrets.token_hex(4)}{suffix}"
    draft = folder / f".{path.name}.tmp"
    draft.write_bytes(content)
    draft.replace(path)
    return path


def _job_id(content: bytes) -> str:
    """Return the job id that the Message-ID was made from."""
    headers = email.parser.BytesHeaderParser().parsebytes(content)
    local = str(headers.get("Message-ID", "")).strip().removeprefix("<").rpartition("@")[0]
    return unquote(local) or "no-message-id"


def _known_answers(folder: Path) -> dict[str, str]:
    answers: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            kept = json.loads(path.read_bytes())
            key, reference = kept["idempotency_key"], kept["reference"]
        except (ValueError, KeyError, TypeError):
            continue  # not one of ours
        if key is not None:
            answers.setdefault(key, reference)
    return answers
