"""One mail conversation over a line that stands: MAIL, RCPT, DATA (RFC 5321), and what each answer means for us.

No connecting and no keeping of lines here; that is the carrier's part.
"""

import contextlib
import dataclasses
import re
import smtplib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from models.carriers import Email, Outcome, Receipt
from worker.carriers.mime import compose, needs_smtputf8, wire_address

WORDS_MAX = 300
"""Characters of a server's answer that are kept."""
CLOSING = 421
"""The server closes the connection, whatever was asked (RFC 5321 section 3.8)."""
TOO_MANY_RECIPIENTS = 552
"""Old servers say so for 452; for a recipient it must be read as "not now" (RFC 5321 section 4.5.3.1.10)."""
START_MAIL_INPUT = 354
PIPELINED_MAX = 64
"""Commands that are said at once; so few that they and their answers fit the buffers between two hosts (RFC 2920)."""

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")
_QUEUE_ID = re.compile(r"(?:queued as |\bid=|\bok (?=\S*\d))<?([A-Za-z0-9._@-]{6,255})", re.IGNORECASE)
_DOT_FIRST = re.compile(rb"^\.", re.MULTILINE)


class Line(smtplib.SMTP):
    """A connection to a mail server on which no command may begin, or last, beyond a deadline."""

    deadline = float("inf")
    """By the monotonic clock, in seconds."""
    step_s = 20.0
    """The longest time for one command, in seconds."""
    used_at = 0.0
    """When the last conversation ended, by the monotonic clock."""

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Send a command, with no more time for it and its answer than there is.

        Raises
        ------
        TimeoutError
            If there is none left.

        """
        self.allow(self.step_s)
        super().putcmd(cmd, args)

    def say(self, commands: Sequence[str]) -> None:
        """Send several commands in one go.

        Raises
        ------
        OSError
            If the connection is broken, or there is no time left.

        """
        said = "\r\n".join(commands)
        if said.count("\r") != len(commands) - 1 or said.count("\n") != len(commands) - 1:
            msg = "A command to a mail server is one line."
            raise ValueError(msg)
        self.allow(self.step_s)
        self.send(f"{said}\r\n")

    def hear(self) -> "Reply":
        """Read the answer to one command.

        Raises
        ------
        OSError
            If the connection is broken, or there is no time left.

        """
        self.allow(self.step_s)
        return Reply(*self.getreply())

    def allow(self, most_s: float) -> None:
        """Give the next step at most `most_s` seconds, and none beyond the deadline."""
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        step_s = min(most_s, left_s)
        if self.sock is not None and self.sock.gettimeout() != step_s:  # a call to the system, saved where it is so
            self.sock.settimeout(step_s)

    def grant_one_step(self) -> None:
        """Put the deadline off, so that a whole step is left."""
        self.deadline = time.monotonic() + self.step_s
        self.allow(self.step_s)


class TlsLine(Line, smtplib.SMTP_SSL):
    """The same, encrypted from the first byte (RFC 8314 section 3)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer to one command. `code` is -1 if it was no answer of this protocol."""

    code: int
    text: bytes = b""

    @property
    def good(self) -> bool:
        """Whether it says yes."""
        return 200 <= self.code < 300  # noqa: PLR2004  the first digit is the meaning (RFC 5321 section 4.2.1)

    @property
    def final(self) -> bool:
        """Whether it says never."""
        return 500 <= self.code < 600  # noqa: PLR2004

    @property
    def transient(self) -> bool:
        """Whether it says not now."""
        return 400 <= self.code < 500  # noqa: PLR2004

    @property
    def words(self) -> str:
        """All of it for people, made safe: no control characters, at most `WORDS_MAX` characters."""
        plain = "".join(c if c.isprintable() else " " for c in self.text.decode("utf-8", "replace"))
        return f"{self.code} {plain}".strip()[:WORDS_MAX]

    @property
    def codes(self) -> str:
        """Only its codes (RFC 5321, RFC 3463): the words after them often repeat an address."""
        enhanced = _ENHANCED.match(self.text.decode("ascii", "replace"))
        return f"{self.code} {enhanced[0]}" if enhanced else str(self.code)


@dataclass(frozen=True, slots=True)
class Letter:
    """An email as this very server can take it: the envelope as it goes over the line, and the message."""

    sender: str
    recipients: Mapping[str, str]
    """The recipients to be named: as the job has them, and as the line needs them."""
    refused: Mapping[str, str]
    """Those that cannot be named to this server."""
    message: bytes
    utf8: bool
    """Whether it takes SMTPUTF8."""


class UnwritableError(Exception):
    """The email as a whole cannot be written for this server; the message says why."""


def write(email: Email, *, utf8: bool) -> Letter:
    """Write `email` for a server which knows SMTPUTF8 (RFC 6531) or does not (`utf8`).

    Without it, recipients whose local part is not ASCII are refused for good, and stand in no header either.

    Raises
    ------
    UnwritableError
        If the sender or the address for replies cannot be written.

    """
    recipients, refused = {}, {}
    for address in dict.fromkeys(email.recipients):
        try:
            recipients[address] = _nameable(address, utf8=utf8)
        except ValueError as error:
            refused[address] = str(error)
    try:
        sender = _nameable(email.from_address, utf8=utf8)
        _nameable(email.reply_to or email.from_address, utf8=utf8)
    except ValueError:
        msg = "The sender's address or the one for replies is not one that the mail server can take."
        raise UnwritableError(msg) from None
    to = tuple(address for address in email.to if address in recipients or _is_nameable(address, utf8=utf8))
    cc = tuple(address for address in email.cc if address in recipients or _is_nameable(address, utf8=utf8))
    seen = email if (to, cc) == (email.to, email.cc) else dataclasses.replace(email, to=to, cc=cc)
    shown = (sender, email.reply_to or "", *recipients, *seen.to, *seen.cc)
    return Letter(sender, recipients, refused, compose(seen), utf8=any(needs_smtputf8(a) for a in shown))


def _is_nameable(address: str, *, utf8: bool) -> bool:
    with contextlib.suppress(ValueError):
        return bool(_nameable(address, utf8=utf8))
    return False


def _nameable(address: str, *, utf8: bool) -> str:
    if not utf8 and needs_smtputf8(address):
        msg = "The mail server takes only addresses with an ASCII local part (it lacks SMTPUTF8)."
        raise ValueError(msg)
    return wire_address(address)


class _StoppedError(Exception):
    """The conversation ended before the message was accepted."""

    def __init__(self, outcome: Outcome, detail: str, *, everyone: bool = False) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
        self.everyone = everyone


class Conversation:
    """Hands one letter over a line. Afterwards the line is closed, or ready for the next MAIL.

    A server with PIPELINING (RFC 2920) hears everything up to DATA in one go, another one command after the other. All
    that differs is that it may be waiting for a message that it shall not get; then the line is closed, which leaves
    it with no message, where ending an empty one with a dot might make it deliver that.
    """

    def __init__(self, line: Line, letter: Letter, about_to_hand_over: Callable[[], None]) -> None:
        """Make ready to hand `letter` over `line`; nothing is said yet.

        `about_to_hand_over` is called when the server waits for the message: until its final dot nobody has accepted
        it, after it somebody may have.
        """
        self._line = line
        self._letter = letter
        self._about_to_hand_over = about_to_hand_over
        self._refused = dict(letter.refused)
        self._deferred: dict[str, str] = {}
        self._unheard = 0

    def hold(self) -> Receipt | None:
        """Hold the conversation. None means the line was dead, and nothing at all has been said over it."""
        replies = self._talk()
        try:
            if not self._begin(replies):
                self._line.close()
                return None
            self._name_recipients(replies)
            self._ask_for_data(replies)
            self._about_to_hand_over()
            reply = self._send_message()
        except _StoppedError as stop:
            self._clear(stop.outcome)
            return self._receipt(stop.outcome, stop.detail, everyone=stop.everyone)
        except BaseException:  # a bug, or the process is told to stop: nobody may go on in the middle of this
            self._line.close()
            raise
        return self._receipt(Outcome.ACCEPTED, reference=_reference(reply))

    def _talk(self) -> Iterator[Reply]:
        """Say everything up to DATA, as much at once as the server takes; gives one answer after the other.

        Of what is said one by one, nothing is said before somebody wants its answer.
        """
        self._line.command_encoding = "utf-8" if self._letter.utf8 else "ascii"
        commands = [self._mail(), *(f"RCPT TO:<{written}>" for written in self._letter.recipients.values()), "DATA"]
        at_once = PIPELINED_MAX if self._line.has_extn("pipelining") else 1
        for first in range(0, len(commands), at_once):
            group = commands[first : first + at_once]
            self._line.say(group)
            for unheard in range(len(group) - 1, -1, -1):
                reply = self._line.hear()
                self._unheard = unheard
                yield reply

    def _mail(self) -> str:
        options = [f"SIZE={len(self._letter.message)}"] if self._line.has_extn("size") else []  # RFC 1870 section 6
        options += ["BODY=8BITMIME", "SMTPUTF8"] if self._letter.utf8 else []  # RFC 6531 section 3.6
        return " ".join([f"MAIL FROM:<{self._letter.sender}>", *options])

    def _begin(self, replies: Iterator[Reply]) -> bool:
        """Hear what the server says to the sender. False if the line is dead or closing."""
        try:
            reply = next(replies)
        except OSError:
            return False
        if reply.code == CLOSING:
            return False
        if not reply.good:
            raise _refusal(reply, "the sender")
        return True

    def _name_recipients(self, replies: Iterator[Reply]) -> None:
        """Hear who is to get it, and sort those out who shall not."""
        for address in self._letter.recipients:
            reply = self._hear(replies)
            if reply.code == CLOSING or not (reply.good or reply.final or reply.transient):
                raise _refusal(reply, "a recipient")
            if reply.transient or reply.code == TOO_MANY_RECIPIENTS:
                self._deferred[address] = reply.words
            elif reply.final:
                self._refused[address] = reply.words
        if len(self._refused) == len(self._letter.refused) + len(self._letter.recipients):
            detail = "The mail server refused every recipient."
            raise _StoppedError(Outcome.NEVER, detail, everyone=True)
        if not self._letter.recipients.keys() - self._refused.keys() - self._deferred.keys():
            raise _StoppedError(Outcome.NOT_NOW, "The mail server accepts no recipient now.")

    def _ask_for_data(self, replies: Iterator[Reply]) -> None:
        reply = self._hear(replies)
        if reply.code != START_MAIL_INPUT:
            raise _refusal(reply, "the message before it was sent")

    def _send_message(self) -> Reply:
        """Send the message with its final dot, and wait for the one answer that counts.

        As long as the dot has not gone out the server cannot have accepted the message. Once it has, only an answer
        tells, so its absence leaves us unsure (RFC 5321 section 4.5.3.2.6).
        """
        content = _DOT_FIRST.sub(b"..", self._letter.message) + b".\r\n"
        try:
            self._line.allow(float("inf"))
        except OSError:
            self._line.close()
            raise _StoppedError(Outcome.NOT_NOW, "There was no time left to send the message.") from None
        try:
            self._line.send(content)
        except OSError:
            self._line.close()
            raise _StoppedError(Outcome.NOT_NOW, "The connection broke while the message was being sent.") from None
        try:
            self._line.grant_one_step()
            reply = Reply(*self._line.getreply())
        except OSError:
            self._line.close()
            detail = "The mail server was sent the whole message but its answer never came."
            raise _StoppedError(Outcome.UNSURE, detail) from None
        if reply.good:
            return reply
        if reply.final or reply.transient:
            raise _refusal(reply, "the message")
        self._line.close()
        detail = "The mail server was sent the whole message and answered something that is not SMTP."
        raise _StoppedError(Outcome.UNSURE, detail)

    def _hear(self, replies: Iterator[Reply]) -> Reply:
        try:
            return next(replies)
        except OSError:
            self._line.close()
            raise _StoppedError(Outcome.NOT_NOW, "The connection to the mail server broke, or it was slow.") from None

    def _clear(self, outcome: Outcome) -> None:
        """Make the line ready for the next conversation, or close it.

        After "not now" it is closed: the reason may be this very connection (too many messages over it, say).
        """
        if self._line.sock is None:
            return
        try:
            usable = outcome is Outcome.NEVER and self._hear_out() and Reply(*self._line.rset()).good
        except OSError:
            usable = False
        if not usable:
            self._line.close()

    def _hear_out(self) -> bool:
        """Hear the answers to all that was said at once. False if commands cannot follow."""
        rest = [self._line.hear() for _ in range(self._unheard)]
        return all(reply.code != CLOSING and (reply.good or reply.final or reply.transient) for reply in rest)

    def _receipt(
        self, outcome: Outcome, detail: str = "", reference: str | None = None, *, everyone: bool = False
    ) -> Receipt:
        return Receipt(outcome, detail, reference, self._refused, self._deferred, recipients_refused=everyone)


def _refusal(reply: Reply, what: str) -> _StoppedError:
    """Say what it means that the server did not say yes to `what`."""
    if reply.final:
        return _StoppedError(Outcome.NEVER, f"The mail server refused {what} ({reply.codes}).")
    if reply.code == CLOSING:
        return _StoppedError(Outcome.NOT_NOW, f"The mail server closed the connection ({reply.codes}).")
    if reply.transient:
        return _StoppedError(Outcome.NOT_NOW, f"The mail server does not take {what} now ({reply.codes}).")
    return _StoppedError(Outcome.NOT_NOW, "The mail server answered something that is not SMTP.")


def _reference(reply: Reply) -> str | None:
    """Find the server's own id for the message, where it gives one; no rule says how."""
    found = _QUEUE_ID.search(reply.words)
    return found[1] if found else None
