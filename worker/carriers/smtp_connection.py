"""A connection to a mail server, with a deadline for everything that is sent and read on it."""

import re
import smtplib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from models.text import sanitize

CLOSING = 421
"""The server closes the connection, whatever the command was (RFC 5321 section 3.8)."""

_ENHANCED_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")


class SmtpConnection(smtplib.SMTP):
    """A connection on which no step may start, or last, beyond a deadline."""

    deadline = float("inf")
    """By the monotonic clock, in seconds."""
    step_s = 20.0
    """The longest time for one step (one command and its answer), in seconds."""
    used_at = 0.0
    """When the last transaction ended, by the monotonic clock."""

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Send a command, with no more time for it and its answer than is left.

        Raises
        ------
        TimeoutError
            If no time is left.

        """
        self.limit_step(self.step_s)
        super().putcmd(cmd, args)

    def send_commands(self, commands: Sequence[str]) -> None:
        """Send several commands in one go.

        Raises
        ------
        OSError
            If the connection is broken, or no time is left.

        """
        lines = "\r\n".join(commands)
        if lines.count("\r") != len(commands) - 1 or lines.count("\n") != len(commands) - 1:
            msg = "A command to a mail server is one line."
            raise ValueError(msg)
        self.limit_step(self.step_s)
        self.send(f"{lines}\r\n")

    def read_reply(self) -> "Reply":
        """Read the reply to one command.

        Raises
        ------
        OSError
            If the connection is broken, or no time is left.

        """
        self.limit_step(self.step_s)
        return Reply(*self.getreply())

    def limit_step(self, most_s: float) -> None:
        """Give the next step at most `most_s` seconds, and none beyond the deadline."""
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        step_s = min(most_s, left_s)
        if self.sock is not None and self.sock.gettimeout() != step_s:  # mostly it is, which saves a system call
            self.sock.settimeout(step_s)

    def extend_by_step(self) -> None:
        """Move the deadline, so that a whole step is left."""
        self.deadline = time.monotonic() + self.step_s
        self.limit_step(self.step_s)


class SmtpTlsConnection(SmtpConnection, smtplib.SMTP_SSL):
    """The same, encrypted from the first byte (RFC 8314 section 3)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply to one command. `code` is -1 if it was not SMTP. The first digit decides (RFC 5321 4.2.1)."""

    code: int
    text: bytes = b""

    @property
    def is_positive(self) -> bool:
        """Whether the command was accepted."""
        return 200 <= self.code < 300  # noqa: PLR2004

    @property
    def is_permanent(self) -> bool:
        """Whether the command was refused for good."""
        return 500 <= self.code < 600  # noqa: PLR2004

    @property
    def is_transient(self) -> bool:
        """Whether the command was refused for now."""
        return 400 <= self.code < 500  # noqa: PLR2004

    @property
    def is_smtp(self) -> bool:
        """Whether it is a reply that this protocol knows."""
        return self.is_positive or self.is_permanent or self.is_transient

    @property
    def words(self) -> str:
        """The whole reply, sanitized."""
        return sanitize(f"{self.code} {self.text.decode('utf-8', 'replace')}")

    @property
    def codes(self) -> str:
        """Only its codes (RFC 5321, RFC 3463): the words after them often repeat an address."""
        enhanced = _ENHANCED_CODE.match(self.text.decode("ascii", "replace"))
        return f"{self.code} {enhanced[0]}" if enhanced else str(self.code)
