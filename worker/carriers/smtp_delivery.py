"""The delivery of one email: in one transaction, or in more where the server takes only so many recipients."""

import asyncio
from collections.abc import Iterable

from models.sends.carrier import Email, Handover, Outcome, Receipt
from worker.carriers.smtp_connection import SmtpConnection
from worker.carriers.smtp_envelope import SmtpEnvelope, UnwritableError, write_envelope
from worker.carriers.smtp_opening import NotOpenedError
from worker.carriers.smtp_pool import SmtpPool
from worker.carriers.smtp_transaction import Ending, SmtpTransaction

LATER = "The email was not handed over for this recipient yet."
NOBODY = "The mail server can take none of the recipients' addresses."

MOVES_MAX = 5
"""How often an email may move to another connection. Usually once is enough: that one is new."""

Place = SmtpTransaction | SmtpConnection
"""Where a transaction may be: one that has begun already, or a connection that is ready for one."""


class SmtpDelivery:
    """Hands one email over to all of its recipients.

    After a transaction that the server has accepted, whatever it says is about the recipients of the next one alone.
    """

    __slots__ = (
        "_deferred",
        "_dot_timeout_s",
        "_email",
        "_envelope",
        "_handover",
        "_is_accepted",
        "_is_noted",
        "_limit",
        "_moves",
        "_pending",
        "_pool",
        "_reference",
        "_refused",
        "_stop",
        "_unsure",
    )

    def __init__(self, email: Email, handover: Handover, pool: SmtpPool, dot_timeout_s: float) -> None:
        """Prepare; nothing is written yet."""
        self._email = email
        self._handover = handover
        self._pool = pool
        self._dot_timeout_s = dot_timeout_s
        self._envelope: SmtpEnvelope
        self._pending: list[str] = []
        self._refused: dict[str, str] = {}
        self._deferred: dict[str, str] = {}
        self._unsure: dict[str, str] = {}
        self._reference: str | None = None
        self._is_accepted = False
        self._is_noted = False
        self._stop: Ending | None = None
        self._limit = 0
        self._moves = 0

    async def run(self) -> Receipt:
        """Deliver it, and return what became of it."""
        until = asyncio.get_running_loop().time() + self._dot_timeout_s
        try:
            self._write(utf8=True)
            if self._pending:
                await self._hand_over(await self._pool.take(self), until)
        except UnwritableError as error:
            self._end_with(Ending(Outcome.NEVER, str(error)), self._pending)
        except NotOpenedError as error:
            is_failing = error.outcome is Outcome.NOT_NOW
            self._end_with(Ending(error.outcome, error.detail, is_failing=is_failing), self._pending)
        return self._receipt()

    def ride(self, connection: SmtpConnection) -> SmtpTransaction | None:
        """Return a transaction on `connection`, with as many recipients as the server takes.

        None if it needs SMTPUTF8 and has not got it.

        It may be behind another one that goes on there.
        """
        if self._envelope.utf8 and not connection.smtputf8:
            return None
        return SmtpTransaction(connection, self._envelope, self._pending[: self._pool.recipients.now])

    def _write(self, *, utf8: bool) -> None:
        """Write the email, or write it anew for a server that turned out not to know SMTPUTF8."""
        envelope = self._envelope = write_envelope(self._email, utf8=utf8)
        self._pending = [address for address in self._pending or envelope.recipients if address in envelope.recipients]
        self._refused.update(envelope.refused)

    # -- transactions -------------------------------------------------------------------------------------------------

    async def _hand_over(self, place: Place, until: float) -> None:
        """Run transactions, the first one in this place, until all recipients have an answer or time is over."""
        while True:
            transaction = place if isinstance(place, SmtpTransaction) else self._begin(place)
            if transaction is None:
                return
            ending = await self._run(transaction)
            if ending.is_stale and self._moves < MOVES_MAX:
                self._moves += 1
                place = await self._find_another_place(transaction, ending)
                continue
            self._note(transaction, ending)
            if self._pending and asyncio.get_running_loop().time() > until:
                self._end_with(Ending(Outcome.NOT_NOW, "There was no time left for more recipients."), self._pending)
            connection = transaction.connection
            if not self._pending:
                if connection.owner is transaction:
                    self._pool.release(connection)
                return
            if connection.fault is None and not connection.is_spent and self._pool.may_take_more(connection):
                place = connection
            else:
                self._pool.release(connection)
                place = await self._pool.take(self)

    def _begin(self, connection: SmtpConnection) -> SmtpTransaction | None:
        """Begin a transaction on a connection that is ready; None if nobody is left to whom it can go."""
        try:
            transaction = self.ride(connection)
            if transaction is None:
                self._write(utf8=False)
                transaction = self.ride(connection) if self._pending else None
        except BaseException:
            self._pool.release(connection)
            raise
        if transaction is None:
            self._pool.release(connection)
        else:
            connection.write(transaction.begin())
        return transaction

    async def _run(self, transaction: SmtpTransaction) -> Ending:
        def take_rider() -> bytes:
            has_more = transaction.too_many or len(transaction.recipients) < len(self._pending)
            return b"" if has_more else self._pool.next_rider(transaction.connection)

        try:
            return await transaction.run(self._note_handover, self._dot_timeout_s, take_rider)
        except BaseException:
            if transaction.connection.owner is transaction:
                self._pool.drop(transaction.connection)
            raise

    async def _note_handover(self) -> None:
        """Have the handover noted before the first transaction in which anything is handed over."""
        if not self._is_noted:
            await self._handover()
            self._is_noted = True

    async def _find_another_place(self, transaction: SmtpTransaction, ending: Ending) -> Place:
        """Find another place for a transaction in which nothing was handed over."""
        connection = transaction.connection
        if connection.owner is not transaction:
            return await self._pool.take(self)
        if ending.is_limit:
            self._pool.suspect_limit(connection.messages - 1)
        return await self._pool.replace(connection, self)

    # -- what becomes of the recipients -------------------------------------------------------------------------------

    def _note(self, transaction: SmtpTransaction, ending: Ending) -> None:
        """Note what the transaction means for its recipients, and who is still to get the email."""
        rest = self._pending[len(transaction.recipients) :]
        if transaction.refused:
            self._refused.update(transaction.refused)
        if transaction.deferred:
            self._deferred.update(transaction.deferred)
        if ending.outcome is Outcome.ACCEPTED:
            self._is_accepted = True
            self._reference = self._reference or ending.reference
            self._pending = [*transaction.too_many, *rest] if transaction.too_many else rest
            self._learn(transaction)
        elif ending.is_of_recipients:
            if self._stop is None or ending.outcome is Outcome.NOT_NOW:
                self._stop = ending
            self._pending = rest
        else:
            self._deferred.update(transaction.too_many)
            self._end_with(ending, transaction.recipients, rest)

    def _learn(self, transaction: SmtpTransaction) -> None:
        """Learn how many recipients the server takes, once it has taken in another transaction those beyond."""
        if self._limit:
            self._pool.learn_recipients(self._limit)
        self._limit = transaction.limit

    def _end_with(self, ending: Ending, asked: Iterable[str], rest: Iterable[str] = ()) -> None:
        """End the delivery. The ending is about whom was `asked`; the server does not know the `rest`."""
        left = [address for address in asked if address not in self._refused and address not in self._deferred]
        self._pending = []
        if self._is_accepted:
            noted = {Outcome.NEVER: self._refused, Outcome.UNSURE: self._unsure}.get(ending.outcome, self._deferred)
            noted.update(dict.fromkeys(left, ending.detail))
        else:
            self._stop = ending
        self._deferred.update(dict.fromkeys(rest, LATER))

    def _receipt(self) -> Receipt:
        refused, deferred = self._refused, self._deferred
        if self._is_accepted:
            if not (refused or deferred or self._unsure):
                return Receipt(Outcome.ACCEPTED, reference=self._reference)
            return Receipt(
                Outcome.ACCEPTED, reference=self._reference, refused=refused, deferred=deferred, unsure=self._unsure
            )
        stop = self._stop or Ending(Outcome.NEVER, NOBODY, is_of_recipients=True)
        return Receipt(
            stop.outcome,
            stop.detail,
            refused=refused,
            deferred=deferred,
            recipients_refused=stop.outcome is Outcome.NEVER and stop.is_of_recipients,
            is_failing=stop.is_failing,
        )
