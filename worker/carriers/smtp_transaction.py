"""One mail transaction on an open connection: MAIL, RCPT, DATA (RFC 5321 section 3.3), and what each reply means.

Connecting, and keeping connections, is the carrier's part (smtp.py).
"""

import re
from collections.abc import Callable, Iterator

from models.sends.carrier import Outcome, Receipt
from worker.carriers.smtp_connection import CLOSING, Reply, SmtpConnection
from worker.carriers.smtp_envelope import SmtpEnvelope

TOO_MANY_RECIPIENTS = 552
"""Old servers say so for 452. As a reply to a recipient it must be read as "not now" (RFC 5321 section 4.5.3.1.10)."""
START_MAIL_INPUT = 354
PIPELINED_MAX = 64
"""Commands sent at once: so few that they and their replies fit the buffers between two hosts (RFC 2920)."""

_QUEUE_ID = re.compile(r"(?:queued as |\bid=|\bok (?=\S*\d))<?([A-Za-z0-9._@-]{6,255})", re.IGNORECASE)
_DOT_FIRST = re.compile(rb"^\.", re.MULTILINE)


class _StoppedError(Exception):
    """The transaction ended before the message was accepted."""

    def __init__(self, outcome: Outcome, detail: str, *, recipients_refused: bool = False) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
        self.recipients_refused = recipients_refused


class SmtpTransaction:
    """Hands one message over. Afterwards the connection is closed, or ready for the next MAIL.

    A server with PIPELINING (RFC 2920) gets everything up to DATA in one go, any other one command after the other. The
    only difference: the former may be waiting for a message that it is not to get. Then the connection is closed, which
    leaves it without a message; an empty one, ended with a dot, might be delivered.
    """

    def __init__(self, connection: SmtpConnection, envelope: SmtpEnvelope, before_handover: Callable[[], None]) -> None:
        """Prepare to hand `envelope` over on `connection`; nothing is sent yet.

        `before_handover` is called when the server waits for the message. Before the final dot nobody has accepted it,
        afterwards somebody may have.
        """
        self._connection = connection
        self._envelope = envelope
        self._before_handover = before_handover
        self._refused = dict(envelope.refused)
        self._deferred: dict[str, str] = {}
        self._unread_replies = 0

    def run(self) -> Receipt | None:
        """Run the transaction. None means that the connection was dead, and nothing at all was sent on it."""
        replies = self._command()
        try:
            if not self._begin(replies):
                self._connection.close()
                return None
            self._name_recipients(replies)
            self._ask_for_data(replies)
            self._before_handover()
            reply = self._send_message()
        except _StoppedError as stop:
            self._clear(stop.outcome)
            return self._receipt(stop.outcome, stop.detail, recipients_refused=stop.recipients_refused)
        except BaseException:  # a bug, or the process is told to stop: nobody may continue in the middle of this
            self._connection.close()
            raise
        return self._receipt(Outcome.ACCEPTED, reference=_queue_id(reply))

    def _command(self) -> Iterator[Reply]:
        """Send everything up to DATA, as much at once as the server takes; yields one reply after the other.

        Commands that are sent one by one are sent only when their reply is asked for.
        """
        self._connection.command_encoding = "utf-8" if self._envelope.utf8 else "ascii"
        recipients = (f"RCPT TO:<{address}>" for address in self._envelope.recipients.values())
        commands = [self._mail(), *recipients, "DATA"]
        at_once = PIPELINED_MAX if self._connection.has_extn("pipelining") else 1
        for first in range(0, len(commands), at_once):
            group = commands[first : first + at_once]
            self._connection.send_commands(group)
            for unread in range(len(group) - 1, -1, -1):
                reply = self._connection.read_reply()
                self._unread_replies = unread
                yield reply

    def _mail(self) -> str:
        has_size = self._connection.has_extn("size")
        options = [f"SIZE={len(self._envelope.message)}"] if has_size else []  # RFC 1870 section 6
        options += ["BODY=8BITMIME", "SMTPUTF8"] if self._envelope.utf8 else []  # RFC 6531 section 3.6
        return " ".join([f"MAIL FROM:<{self._envelope.sender}>", *options])

    def _begin(self, replies: Iterator[Reply]) -> bool:
        """Read the reply to the sender. Returns False if the connection is dead or closing."""
        try:
            reply = next(replies)
        except OSError:
            return False
        if reply.code == CLOSING:
            return False
        if not reply.is_positive:
            raise _refusal(reply, "the sender")
        return True

    def _name_recipients(self, replies: Iterator[Reply]) -> None:
        """Read the replies to the recipients, and note who was refused or deferred."""
        for address in self._envelope.recipients:
            reply = self._read(replies)
            if reply.code == CLOSING or not reply.is_smtp:
                raise _refusal(reply, "a recipient")
            if reply.is_transient or reply.code == TOO_MANY_RECIPIENTS:
                self._deferred[address] = reply.words
            elif reply.is_permanent:
                self._refused[address] = reply.words
        if len(self._refused) == len(self._envelope.refused) + len(self._envelope.recipients):
            detail = "The mail server refused every recipient."
            raise _StoppedError(Outcome.NEVER, detail, recipients_refused=True)
        if not self._envelope.recipients.keys() - self._refused.keys() - self._deferred.keys():
            raise _StoppedError(Outcome.NOT_NOW, "The mail server accepts no recipient now.")

    def _ask_for_data(self, replies: Iterator[Reply]) -> None:
        reply = self._read(replies)
        if reply.code != START_MAIL_INPUT:
            raise _refusal(reply, "the message before it was sent")

    def _send_message(self) -> Reply:
        """Send the message with its final dot, and wait for the one reply that counts.

        Before the dot is sent the server cannot have accepted the message. Afterwards only its reply tells, so without
        one the outcome is unsure (RFC 5321 section 4.5.3.2.6).
        """
        content = _DOT_FIRST.sub(b"..", self._envelope.message) + b".\r\n"
        try:
            self._connection.limit_step(float("inf"))
        except OSError:
            self._connection.close()
            raise _StoppedError(Outcome.NOT_NOW, "There was no time left to send the message.") from None
        try:
            self._connection.send(content)
        except OSError:
            self._connection.close()
            raise _StoppedError(Outcome.NOT_NOW, "The connection broke while the message was being sent.") from None
        try:
            self._connection.extend_by_step()
            reply = Reply(*self._connection.getreply())
        except OSError:
            self._connection.close()
            detail = "The mail server was sent the whole message but its answer never came."
            raise _StoppedError(Outcome.UNSURE, detail) from None
        if reply.is_positive:
            return reply
        if reply.is_permanent or reply.is_transient:
            raise _refusal(reply, "the message")
        self._connection.close()
        detail = "The mail server was sent the whole message and answered something that is not SMTP."
        raise _StoppedError(Outcome.UNSURE, detail)

    def _read(self, replies: Iterator[Reply]) -> Reply:
        try:
            return next(replies)
        except OSError:
            self._connection.close()
            raise _StoppedError(Outcome.NOT_NOW, "The connection to the mail server broke, or it was slow.") from None

    def _clear(self, outcome: Outcome) -> None:
        """Make the connection ready for the next transaction, or close it.

        After "not now" it is closed: the reason may be this very connection (too many messages on it, say).
        """
        if self._connection.sock is None:
            return
        try:
            usable = outcome is Outcome.NEVER and self._read_rest() and Reply(*self._connection.rset()).is_positive
        except OSError:
            usable = False
        if not usable:
            self._connection.close()

    def _read_rest(self) -> bool:
        """Read the replies to everything that was sent at once. Returns False if no command can follow."""
        rest = [self._connection.read_reply() for _ in range(self._unread_replies)]
        return all(reply.code != CLOSING and reply.is_smtp for reply in rest)

    def _receipt(
        self, outcome: Outcome, detail: str = "", reference: str | None = None, *, recipients_refused: bool = False
    ) -> Receipt:
        return Receipt(outcome, detail, reference, self._refused, self._deferred, recipients_refused=recipients_refused)


def _refusal(reply: Reply, what: str) -> _StoppedError:
    """Return how the transaction ends when the server did not accept `what`."""
    if reply.is_permanent:
        return _StoppedError(Outcome.NEVER, f"The mail server refused {what} ({reply.codes}).")
    if reply.code == CLOSING:
        return _StoppedError(Outcome.NOT_NOW, f"The mail server closed the connection ({reply.codes}).")
    if reply.is_transient:
        return _StoppedError(Outcome.NOT_NOW, f"The mail server does not take {what} now ({reply.codes}).")
    return _StoppedError(Outcome.NOT_NOW, "The mail server answered something that is not SMTP.")


def _queue_id(reply: Reply) -> str | None:
    """Return the server's own id for the message, if it names one; no standard says how."""
    found = _QUEUE_ID.search(reply.words)
    return found[1] if found else None
