"""Tokens for XOAUTH2: read from a file, or from what a command writes, anew when one has expired or was refused."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from worker.carriers.smtp_server import SmtpServer

COMMAND_S: Final = 10.0
"""How long a command may take, in seconds."""
FILE_S: Final = 5.0
"""How long the reading of a file may take, in seconds: it may be on a network drive."""
TOKEN_MAX: Final = 16_384
"""Bytes of a token, and of what a command writes."""
EARLY_S: Final = 60.0
"""How long before its end a token is replaced, in seconds."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750 section 2.1."""


class NoTokenError(Exception):
    """There is no token; the sentence says why, and never repeats anything that was read."""


class SmtpTokens:
    """The tokens of one server.

    A file has the token alone. A command writes the token alone, or the JSON object that token endpoints answer with
    (RFC 6749 section 5.1): `access_token`, and perhaps `expires_in`, in seconds.
    """

    def __init__(self, server: SmtpServer) -> None:
        self._server = server
        self._known = ""
        self._known_until = 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """Return the token that is to be used now.

        Raises
        ------
        NoTokenError
            If there is none.

        """
        async with self._lock:  # so that a command runs once for all connections that open together
            if self._server.token_file is not None:
                return await _read(self._server.token_file)
            now = asyncio.get_running_loop().time()
            if not self._known or now >= self._known_until:
                self._known, valid_s = await _ask(self._server.token_command)
                self._known_until = now + valid_s - EARLY_S
            return self._known

    def refuse(self, token: str) -> None:
        """Forget a token that was refused."""
        if self._known == token:
            self._known = ""


async def _read(file: Path) -> str:
    try:
        async with asyncio.timeout(FILE_S):
            content = await asyncio.to_thread(_head, file)
    except OSError:
        msg = "The file with the token of the mail server (token_file) could not be read."
        raise NoTokenError(msg) from None
    return _checked(content)


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(TOKEN_MAX + 1)


async def _ask(command: Sequence[str]) -> tuple[str, float]:
    """Return what a command writes, and how long it is valid, in seconds."""
    try:
        written = await asyncio.to_thread(_run, command)
    except OSError:
        msg = "The command for the token of the mail server (token_command) could not be run, or it failed."
        raise NoTokenError(msg) from None
    with contextlib.suppress(ValueError):
        answer = json.loads(written)
        if isinstance(answer, dict):
            return _checked(str(answer.get("access_token") or "").encode()), _seconds(answer.get("expires_in"))
    return _checked(written), float("inf")


def _seconds(given: object) -> float:
    try:
        return float(given) if isinstance(given, (int, float, str)) else float("inf")
    except ValueError:
        return float("inf")


def _run(command: Sequence[str]) -> bytes:
    """Run a command without a shell, and end it and what it has started when its time is over."""
    with subprocess.Popen(  # noqa: S603  the operator's own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        timer = threading.Timer(COMMAND_S, _end, (process.pid,))
        timer.start()
        try:
            written = process.stdout.read(TOKEN_MAX + 1) if process.stdout else b""
            if len(written) > TOKEN_MAX:
                _end(process.pid)
            status = process.wait()  # the process cannot be another one's before this
        finally:
            timer.cancel()
    if status:
        raise OSError(status, "the command failed")
    return written


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _checked(content: bytes) -> str:
    token = content.decode("ascii", "replace").strip()
    if len(content) > TOKEN_MAX or not _TOKEN.fullmatch(token):
        msg = "What was found for the token of the mail server is none: it is one word of letters, digits and -._~+/=."
        raise NoTokenError(msg)
    return token
