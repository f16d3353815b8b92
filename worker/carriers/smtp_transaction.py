"""One mail transaction on an open connection: MAIL, RCPT, DATA (RFC 5321 section 3.3), and what each reply means.

Opening connections, and choosing one, is the part of others (smtp_opening.py, smtp_pool.py).
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from models.sends.carrier import Handover, Outcome
from worker.carriers.smtp_connection import PIECE, STEPS, BrokenError, Fault, Replies, SmtpConnection
from worker.carriers.smtp_envelope import SmtpEnvelope
from worker.carriers.smtp_replies import CLOSING, START_MAIL_INPUT, Reply

PIPELINED_MAX: Final = 64
"""Commands sent at once: so few that they and their replies fit the buffers between two hosts (RFC 2920)."""
BAD_SEQUENCE: Final = 503
"""A kept connection on which the server expects something else than a new transaction."""
TOO_MANY_RECIPIENTS: Final = (452, 552)
"""Old servers say 552 for 452. As a reply to a recipient it must be read as that (RFC 5321 section 4.5.3.1.10)."""
OUR_FAULT: Final = (530, 534, 535, 538)
"""Postage had to log in, or to do so in another way, or encrypted (RFC 4954 section 6)."""
OUR_FAULT_ENHANCED: Final = ("5.7.8", "5.7.9", "5.7.11", "5.7.14")
"""The same as an enhanced code (RFC 5248), of a server with no other code than 550 or 554."""

_QUEUE_ID = re.compile(rb"(?:queued as |\bid=|\bok (?=\S*\d))<?([A-Za-z0-9._@-]{6,255})", re.IGNORECASE)


@dataclass(slots=True)
class Ending:
    """How a transaction ended."""

    outcome: Outcome
    detail: str = ""
    reference: str | None = None
    is_failing: bool = False
    is_of_recipients: bool = False
    """Whether it is for the sake of its recipients, so that others may fare better."""
    is_stale: bool = False
    """Whether it is for the sake of the connection, which had been used before, so that a new one may do better."""
    is_limit: bool = False
    """Whether, with this, the server has said that it takes no further message on this connection."""


def _no_rider() -> bytes:
    return b""


def _command(text: str) -> bytes:
    """Return a command as it is sent. No address can add another one."""
    if "\r" in text or "\n" in text:
        msg = "A command to a mail server is one line."
        raise ValueError(msg)
    return f"{text}\r\n".encode()


class SmtpTransaction:
    """Hands one message over. Afterwards the connection has its fault, or is ready for the next MAIL.

    A server with PIPELINING (RFC 2920) gets everything up to DATA in one go, even while its reply to the message before
    is still missing; any other gets one command after the other. The only difference: the former may be waiting for a
    message that it is not to get. Then the connection is closed, which leaves it without a message; an empty one, ended
    with a dot, might be delivered.
    """

    __slots__ = (
        "_begun",
        "_commands",
        "_envelope",
        "_is_used",
        "_read",
        "_replies",
        "_why",
        "accepted",
        "connection",
        "deferred",
        "limit",
        "recipients",
        "refused",
        "too_many",
    )

    def __init__(self, connection: SmtpConnection, envelope: SmtpEnvelope, recipients: Sequence[str]) -> None:
        """Prepare to hand `envelope` over to some of its recipients on `connection`; nothing is sent yet."""
        self.connection = connection
        self.recipients = recipients
        self.accepted: list[str] = []
        self.refused: dict[str, str] = {}
        self.deferred: dict[str, str] = {}
        self.too_many: dict[str, str] = {}
        """Recipients whom the server takes only in another transaction, because this one has so many."""
        self.limit = 0
        """How many recipients the server had accepted when it said for the first time that they are too many."""
        self._envelope = envelope
        self._is_used = connection.messages > 0
        self._commands = self._list_commands()
        self._begun = 0
        self._read = 0
        self._why = ""
        self._replies: Replies
        connection.messages += 1
        connection.owner_before, connection.owner = connection.owner, self

    def begin(self) -> bytes:
        """Return what begins the transaction, and expect the replies to it. It is written by the caller."""
        first, last = self._begun, len(self._commands)
        self._begun = min(last, first + (PIPELINED_MAX if self.connection.pipelining else 1))
        until = self._replies.until if first else None
        self._replies = self.connection.ask(self._begun - first, until=until)
        return b"".join(self._commands[first : self._begun])

    @property
    def waits_behind_another(self) -> bool:
        """Whether the message before, on the same connection, is still without its reply."""
        return not (self._replies.is_over or self.connection.is_first(self._replies))

    def leave(self) -> None:
        """Give up the place on this connection behind another message, so that there may be a better one."""
        self.connection.owner = self.connection.owner_before
        self.connection.leave(self._replies)

    async def run(
        self, handover: Handover, dot_timeout_s: float, take_rider: Callable[[], bytes] = _no_rider
    ) -> Ending:
        """Run the transaction that has begun.

        `handover` is awaited when the server waits for the message: before the final dot nobody has accepted it,
        afterwards somebody may have. `take_rider` returns what begins the next transaction, to be sent with the dot.
        """
        try:
            ending = None
            while ending is None and self._read < len(self._commands):
                ending = self._read_replies(await self._replies)
            if ending is not None:
                return await self._clear(ending)
            # Replies that have come all at once, with the one to the message before, have no limit yet.
            until = self._replies.until or asyncio.get_running_loop().time() + STEPS * self.connection.timeout_s
            await handover()
            return await self._send_message(until, dot_timeout_s, take_rider)
        except BaseException:  # a bug, or the process is told to stop: nobody may continue in the middle of this
            self._break_off()
            raise

    # -- the envelope -------------------------------------------------------------------------------------------------

    def _list_commands(self) -> list[bytes]:
        """Return all commands up to DATA."""
        envelope = self._envelope
        sender = f"MAIL FROM:<{envelope.sender}>"
        if self.connection.size:  # RFC 1870 section 6
            sender = f"{sender} SIZE={len(envelope.message)}"
        if envelope.utf8:  # RFC 6531 section 3.6
            sender = f"{sender} BODY=8BITMIME SMTPUTF8"
        recipients = [_command(f"RCPT TO:<{envelope.recipients[address]}>") for address in self.recipients]
        return [_command(sender), *recipients, b"DATA\r\n"]

    def _read_replies(self, replies: Sequence[Reply]) -> Ending | None:
        """Read the replies to commands that were sent together, and send the next ones.

        Returns the ending if they end the transaction.
        """
        for reply in replies:
            ending = self._read_reply(reply)
            if ending is not None:
                return ending
        if self._read < self._begun:
            return self._broken()
        if self._begun < len(self._commands):
            self.connection.write(self.begin())
        return None

    def _read_reply(self, reply: Reply) -> Ending | None:
        """Read the reply to the next command; returns the ending if it ends the transaction."""
        at, last = self._read, len(self._commands) - 1
        self._read += 1
        if reply.code == CLOSING:
            return self._closing(reply, is_limit=at == 0)
        if at == 0:
            return None if reply.is_positive else self._refused_sender(reply)
        if at < last:
            ending = self._read_recipient(self.recipients[at - 1], reply)
            return self._none_accepted() if ending is None and at == last - 1 else ending
        if reply.code == START_MAIL_INPUT:
            return None
        if not (reply.is_permanent or reply.is_transient):  # then who knows what the replies before it belonged to
            self.refused, self.deferred, self.too_many = {}, {}, {}
        return self._refusal(reply, "the message before it was sent")

    def _read_recipient(self, address: str, reply: Reply) -> Ending | None:
        if reply.is_positive:
            self.accepted.append(address)
            return None
        self._why = self._why or reply.quoted(self.connection.secrets)
        if reply.code in OUR_FAULT or not reply.is_smtp:
            return self._refusal(reply, "a recipient")
        if self._is_one_too_many(reply):
            self.limit = self.limit or len(self.accepted)
            self.too_many[address] = reply.words
        elif reply.is_transient or reply.code in TOO_MANY_RECIPIENTS:
            self.deferred[address] = reply.words
        else:
            self.refused[address] = reply.words
        return None

    @staticmethod
    def _is_one_too_many(reply: Reply) -> bool:
        """Whether it is for the number of recipients (x.5.3 of RFC 3463), and not for a full mailbox, say."""
        if reply.enhanced_code[2:] == "5.3":  # OpenSMTPD says 451
            return reply.is_transient or reply.code in TOO_MANY_RECIPIENTS
        return reply.code in TOO_MANY_RECIPIENTS and not reply.enhanced_code

    def _none_accepted(self) -> Ending | None:
        """Return the ending if the server has accepted no recipient."""
        if self.accepted:
            return None
        if self.deferred or self.too_many:
            detail = f"The mail server accepts no recipient now {self._why}"
            return Ending(Outcome.NOT_NOW, detail, is_of_recipients=not self.too_many)
        return Ending(Outcome.NEVER, f"The mail server refused every recipient {self._why}", is_of_recipients=True)

    def _refused_sender(self, reply: Reply) -> Ending:
        ending = self._refusal(reply, "the sender")
        # OpenSMTPD says 4.5.3 of the messages on a connection, and keeps it open.
        ending.is_limit = self._is_used and reply.is_transient and reply.enhanced_code == "4.5.3"
        ending.is_stale = ending.is_limit or (self._is_used and reply.code == BAD_SEQUENCE)
        return ending

    # -- the message --------------------------------------------------------------------------------------------------

    async def _send_message(self, until: float, dot_timeout_s: float, take_rider: Callable[[], bytes]) -> Ending:
        """Send the message with its final dot, and wait for the one reply that counts.

        Before the dot is sent the server cannot have accepted the message. Afterwards only its reply tells, so without
        one the outcome is unsure (RFC 5321 section 4.5.3.2.6).
        """
        connection, content = self.connection, self._envelope.message
        if b"\n." in content:  # RFC 5321 section 4.5.2
            content = content.replace(b"\n.", b"\n..")
        if asyncio.get_running_loop().time() > until:
            connection.abort()
            return Ending(Outcome.NOT_NOW, "There was no time left to send the message.")
        if len(content) > PIECE:
            dot = connection.ask(1, connection.timeout_s * STEPS, until)
            if not await connection.write_pieces(content, until, dot):
                return self._interrupted(dot)
            content = b""
            connection.extend(dot, dot_timeout_s)
        elif connection.is_open():
            dot = connection.ask(1, dot_timeout_s)
        else:
            return self._interrupted(None)
        connection.write(b"%b.\r\n%b" % (content, take_rider()))
        replies = await dot
        return self._read_outcome(replies[0] if replies else None)

    def _interrupted(self, early: Replies | None) -> Ending:
        """Return the ending if the dot was never sent. The server may have said why: the message is too large, say."""
        connection = self.connection
        if early is not None and early.got and (early.got[0].is_permanent or early.got[0].is_transient):
            ending = self._refusal(early.got[0], "the message")
            ending.is_stale = False
            connection.abort()
            return ending
        connection.abort(Fault.CLOSED if early is None or not connection.is_open() else Fault.SLOW)
        detail = f"The connection broke while the message was being sent: {connection.fault}."
        return Ending(Outcome.NOT_NOW, detail, is_failing=True)

    def _read_outcome(self, reply: Reply | None) -> Ending:
        """Return what the reply to the whole message means."""
        if reply is None:
            return self._unsure()
        if reply.is_positive:
            found = _QUEUE_ID.search(reply.text)
            return Ending(Outcome.ACCEPTED, reference=found[1].decode("ascii") if found else None)
        if reply.is_permanent or reply.is_transient:
            ending = self._refusal(reply, "the message")
            ending.is_stale = False
            if not reply.is_permanent and self.connection.owner is self:
                self.connection.is_spent = True  # as in _clear
            return ending
        self.connection.abort(Fault.NOT_SMTP)
        return self._unsure()

    def _unsure(self) -> Ending:
        detail = f"The mail server was sent the whole message, and then {self.connection.fault}."
        return Ending(Outcome.UNSURE, detail, is_failing=True)

    # -- refusals -----------------------------------------------------------------------------------------------------

    def _refusal(self, reply: Reply, what: str) -> Ending:
        """Return how the transaction ends when the server did not accept `what`."""
        words = reply.quoted(self.connection.secrets)
        if reply.code in OUR_FAULT or (what != "a recipient" and reply.enhanced_code in OUR_FAULT_ENHANCED):
            return Ending(Outcome.OUR_FAULT, f"The mail server refuses to work for Postage {words}")
        if reply.code == CLOSING:
            return self._closing(reply)
        if reply.is_permanent:
            return Ending(Outcome.NEVER, f"The mail server refused {what} {words}")
        if reply.is_transient:
            return Ending(Outcome.NOT_NOW, f"The mail server does not take {what} now {words}")
        self.connection.abort(Fault.NOT_SMTP)
        return Ending(Outcome.NOT_NOW, "The mail server answered something that is not SMTP.", is_failing=True)

    def _closing(self, reply: Reply, *, is_limit: bool = False) -> Ending:
        self.connection.abort(Fault.CLOSED)
        detail = f"The mail server closed the connection {reply.quoted(self.connection.secrets)}"
        return Ending(Outcome.NOT_NOW, detail, is_failing=True, is_stale=self._is_used, is_limit=is_limit)

    def _broken(self) -> Ending:
        """Return the ending if the replies to the envelope are not all there."""
        fault = self.connection.fault
        if fault is None:  # it waited behind another message, and has a better place now
            return Ending(Outcome.NOT_NOW, "The mail server was busy with another message.", is_stale=True)
        detail = f"The mail server was of no use: {fault}."
        is_stale = self._is_used and (fault is not Fault.SLOW or self._read == 0)
        return Ending(Outcome.NOT_NOW, detail, is_failing=True, is_stale=is_stale)

    # -- what is left of the connection -------------------------------------------------------------------------------

    async def _clear(self, ending: Ending) -> Ending:
        """Make the connection ready for the next transaction, or close it.

        Only after "never" it is used again. Otherwise the reason may be this very connection: too many messages on it,
        say. A server that says so and then closes it needs no second attempt to be believed.
        """
        connection, got = self.connection, self._replies.got
        if connection.owner is not self:  # it left its place behind another message, whose connection this is
            return ending
        waits_for_message = self._begun == len(self._commands) and bool(got) and got[-1].code == START_MAIL_INPUT
        if waits_for_message or any(reply.code == CLOSING or not reply.is_smtp for reply in got):
            connection.abort()
        elif not ending.is_stale and self._is_used and self._read == 1 and got and got[0].is_transient:
            ending.is_stale = ending.is_limit = connection.fault is not None or not await self._reset()
            connection.is_spent = True
        elif connection.fault is None and (ending.outcome is not Outcome.NEVER or not await self._reset()):
            connection.is_spent = True
        return ending

    async def _reset(self) -> bool:
        """Send RSET (RFC 5321 section 4.1.1.5). Returns False if the server does not obey."""
        try:
            reply = await self.connection.say("RSET")
        except BrokenError:
            return False
        return reply.is_positive

    def _break_off(self) -> None:
        if self.waits_behind_another:
            self.leave()
        else:
            self.connection.abort()
