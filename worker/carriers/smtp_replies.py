"""Replies of a mail server (RFC 5321 section 4.2): how they are read from what arrives, and what they say."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from models.text import sanitize

CLOSING: Final = 421
"""The server closes the connection, whatever the command was (RFC 5321 section 3.8)."""
START_MAIL_INPUT: Final = 354
LINE_MAX: Final = 4_096
"""Bytes of a line. RFC 5321 section 4.5.3.1.5 allows 512; some servers write more."""
LINES_MAX: Final = 256
"""Lines of a reply. The longest replies are those to EHLO, with some thirty."""
REPLY_MAX: Final = 65_536
"""Bytes of a reply."""

_ENHANCED_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")
_ADDRESS = re.compile(r"\S*@\S*")


class NotSmtpError(Exception):
    """What arrived is no reply, or has no end."""


class Reply(NamedTuple):
    """A server's reply to one command. The first digit decides (RFC 5321 section 4.2.1)."""

    code: int
    text: bytes = b""
    """What follows the codes, line by line."""

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
    def enhanced_code(self) -> str:
        """Its enhanced code (RFC 3463), or nothing."""
        found = _ENHANCED_CODE.match(self.text.decode("ascii", "replace"))
        return found[0] if found else ""

    @property
    def codes(self) -> str:
        """Only its codes."""
        return f"{self.code} {self.enhanced_code}".rstrip()

    @property
    def words(self) -> str:
        """The whole reply, sanitized."""
        return sanitize(f"{self.code} {self.text.decode('utf-8', 'replace')}")

    def quoted(self, secrets: Sequence[str] = ()) -> str:
        """Its codes, and its words without addresses and `secrets`: for sentences that are kept with the charge."""
        lines = [_without_codes(line) for line in self.text.decode("utf-8", "replace").split("\n")]
        words = sanitize(" ".join(lines))
        for secret in secrets:
            words = words.replace(secret, "…")
        words = _ADDRESS.sub("…", words)
        return f"({self.codes}): {words}" if words else f"({self.codes})"


def _without_codes(line: str) -> str:
    return _ENHANCED_CODE.sub("", line, count=1) if _ENHANCED_CODE.match(line) else line


class ReplyReader:
    """Cuts what arrives into replies, however it was divided on the way."""

    __slots__ = ("_lines", "_rest", "_size", "is_broken")

    def __init__(self) -> None:
        self.is_broken = False
        """Whether something came that is no reply, or too long for one. Nothing that follows counts."""
        self._rest = b""
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def is_inside(self) -> bool:
        """Whether a reply has begun and not ended."""
        return bool(self._rest or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that end with `data`, up to the first thing that is none."""
        lines = (self._rest + data if self._rest else data).split(b"\n")
        self._rest = lines.pop()
        replies: list[Reply] = []
        self.is_broken = self.is_broken or len(self._rest) > LINE_MAX
        try:
            for line in lines:
                if line[3:4] == b" " and not self._lines and len(line) <= LINE_MAX and line[:3].isdigit():
                    replies.append(Reply(int(line[:3]), line[4:].rstrip(b"\r")))  # as nearly always
                elif reply := self._end(line.removesuffix(b"\r")):
                    replies.append(reply)
        except NotSmtpError:
            self.is_broken = True
        return replies

    def _end(self, line: bytes) -> Reply | None:
        """Return the reply that `line` ends; None if more lines follow. All have the same code (section 4.2.1)."""
        code, separator, text = line[:3], line[3:4], line[4:]
        if not code.isdigit() or len(line) > LINE_MAX:
            raise NotSmtpError
        if separator == b"-":
            self._add(line)
            return None
        if separator not in b" ":
            raise NotSmtpError
        if not self._lines:
            return Reply(int(code), text)
        self._add(line)
        lines, self._lines, self._size = self._lines, [], 0
        if any(each[:3] != code for each in lines):
            raise NotSmtpError
        return Reply(int(code), b"\n".join(each[4:] for each in lines))

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        if len(self._lines) > LINES_MAX or self._size > REPLY_MAX:
            raise NotSmtpError
