"""What a mail server takes at most: recipients, messages and connections, as settings and as it turns out."""

import asyncio
import socket
from dataclasses import replace

import pytest

from models.sends.carrier import Outcome, Receipt
from tests.integration.smtp_server import (
    CLOSE,
    EMAIL,
    PIPELINING,
    Handovers,
    Replies,
    ScriptedServer,
    carrier_to,
    deliver,
    unnoted,
)

NINE = replace(EMAIL, recipients=tuple(f"r{n}@example.org" for n in range(9)))


def limited(most: int, reply: str, recipients: int = 9) -> list[str]:
    """Give the replies of a server that takes only so many recipients in a transaction."""
    replies: list[str] = []
    while recipients:
        replies += ["250 Ok"] * min(most, recipients) + [reply] * max(0, recipients - most)
        recipients -= min(most, recipients)
    return replies


def recipients_of(server: ScriptedServer) -> list[list[str]]:
    """Give the recipients that were named in each transaction."""
    transactions: list[list[str]] = []
    for command in server.commands:
        if command.startswith("MAIL"):
            transactions.append([])
        elif command.startswith("RCPT"):
            transactions[-1].append(command)
    return transactions


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize(
    "reply", ["452 4.5.3 too many", "451 4.5.3 too many", "452 too many", "552 5.5.3 too many", "552 too many"]
)
def test_recipients_beyond_a_limit_get_the_email_in_further_transactions(reply: str) -> None:
    """At once, in the same delivery, so that progress uses up no attempt."""
    handovers = Handovers()
    receipt, server = deliver({"RCPT": limited(4, reply)}, NINE, handover=handovers)

    assert receipt == Receipt(Outcome.ACCEPTED, reference="4XyZ12")
    assert [len(named) for named in recipients_of(server)] == [9, 5, 1]
    assert len(server.messages) == 3
    assert (server.connections, handovers.count) == (1, 1)


def test_a_limit_of_recipients_is_learnt() -> None:
    """The next email names no more at a time."""
    with ScriptedServer({"RCPT": [*limited(4, "452 4.5.3 too many"), "250 Ok"]}) as server:
        with carrier_to(server.url) as carrier:
            carrier.deliver(NINE)
            before = len(recipients_of(server))
            carrier.deliver(NINE)

        assert [len(named) for named in recipients_of(server)[before:]] == [4, 4, 1]


def test_a_limit_of_recipients_can_be_set() -> None:
    with ScriptedServer({}) as server, carrier_to(f"{server.url}?recipients=2") as carrier:
        assert carrier.deliver(NINE) == Receipt(Outcome.ACCEPTED, reference="4XyZ12")

    assert [len(named) for named in recipients_of(server)] == [2, 2, 2, 2, 1]


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_full_mailbox_is_no_limit() -> None:
    """Its enhanced code tells it from too many recipients, so nothing is sent once more at once."""
    receipt, server = deliver({"RCPT": ["250 Ok", "452 4.2.2 full", "250 Ok"]}, NINE)

    assert receipt.deferred == {"r1@example.org": "452 4.2.2 full"}
    assert len(server.messages) == 1


def test_a_refused_recipient_does_not_keep_the_others_waiting() -> None:
    """Each transaction has only some of them, and there may be nobody left in one of them."""
    script: Replies = {"RCPT": ["550 5.1.1 no", "450 4.2.1 later", "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(f"{server.url}?recipients=1") as carrier:
        receipt = carrier.deliver(NINE)

    assert receipt.outcome is Outcome.ACCEPTED
    assert (receipt.refused.keys(), receipt.deferred.keys()) == ({"r0@example.org"}, {"r1@example.org"})
    assert len(server.messages) == 7


def test_recipients_who_are_all_refused_in_several_transactions_are_refused() -> None:
    with ScriptedServer({"RCPT": "550 5.1.1 no"}) as server, carrier_to(f"{server.url}?recipients=4") as carrier:
        receipt = carrier.deliver(NINE)

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, True)
    assert receipt.refused.keys() == set(NINE.recipients)


@pytest.mark.parametrize("later", ["451 4.3.0 later", "421 4.3.2 bye", CLOSE])
@pytest.mark.parametrize("step", ["MAIL", "DATA"])
def test_what_a_later_transaction_lacks_is_deferred(step: str, later: str) -> None:
    """The first recipients have the email, and are not to get it again."""
    script: Replies = {step: ["354 go on" if step == "DATA" else "250 Ok", later]}
    with ScriptedServer(script) as server, carrier_to(f"{server.url}?recipients=4") as carrier:
        receipt = carrier.deliver(NINE)

    assert receipt.outcome is Outcome.ACCEPTED
    assert list(receipt.deferred) == list(NINE.recipients[4:])
    assert all(receipt.deferred.values())
    assert len(server.messages) == 1


def test_recipients_whom_a_later_transaction_refuses_are_refused() -> None:
    script: Replies = {"DOT": ["250 Ok", "554 5.7.1 no", "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(f"{server.url}?recipients=4") as carrier:
        receipt = carrier.deliver(NINE)

    assert receipt.outcome is Outcome.ACCEPTED
    assert list(receipt.refused) == list(NINE.recipients[4:8])
    assert list(receipt.deferred) == list(NINE.recipients[8:])


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_only_recipients_of_a_later_transaction_without_an_answer_are_in_doubt() -> None:
    """Those before have the email, and those after it certainly not."""
    script: Replies = {"DOT": ["250 Ok", CLOSE], "RCPT": ["250 Ok"] * 5 + ["550 5.1.1 no", "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(f"{server.url}?recipients=4") as carrier:
        receipt = carrier.deliver(NINE)

    assert receipt.outcome is Outcome.ACCEPTED
    assert list(receipt.unsure) == ["r4@example.org", "r6@example.org", "r7@example.org"]
    assert list(receipt.refused) == ["r5@example.org"]
    assert list(receipt.deferred) == ["r8@example.org"]


def test_recipients_after_a_first_transaction_in_doubt_are_certainly_without_the_email() -> None:
    with ScriptedServer({"DOT": CLOSE}) as server, carrier_to(f"{server.url}?recipients=4") as carrier:
        receipt = carrier.deliver(NINE)

    assert receipt.outcome is Outcome.UNSURE
    assert list(receipt.deferred) == list(NINE.recipients[4:])


# -- messages on a connection -----------------------------------------------------------------------------------------


def test_a_limit_of_messages_can_be_set() -> None:
    emails = [replace(EMAIL, job_id=f"job-{n}") for n in range(7)]
    with (
        ScriptedServer({"EHLO": PIPELINING}) as server,
        carrier_to(f"{server.url}?messages=3&connections=1") as carrier,
    ):
        assert {receipt.outcome for receipt in carrier.deliver_all(emails)} == {Outcome.ACCEPTED}

    assert server.connections == 3
    assert server.commands.count("QUIT") == 3


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("reply", ["421 4.7.0 too many messages", "451 4.7.0 too many messages", "452 4.5.3 too many"])
def test_a_limit_of_messages_is_learnt(reply: str) -> None:
    """Once it has shown twice. No message is lost or counted for it."""
    emails = [replace(EMAIL, job_id=f"job-{n}") for n in range(12)]
    with FewMessages(3, reply) as server, carrier_to(f"{server.url}?connections=1") as carrier:
        receipts = [carrier.deliver(email) for email in emails]

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert (len(server.messages), server.refusals) == (12, 2)


class FewMessages(ScriptedServer):
    """A server that takes so many messages on a connection, and then says so, and closes it if that was no 452."""

    def __init__(self, most: int, reply: str) -> None:
        self._most, self._refusal = most, reply
        self._taken: dict[object, int] = {}
        self.refusals = 0
        super().__init__({})

    def _reply(self, connection: socket.socket, key: str) -> bool:
        if key == "MAIL":
            self._taken[connection] = self._taken.get(connection, 0) + 1
            if self._taken[connection] > self._most:
                self.refusals += 1
                connection.sendall(f"{self._refusal}\r\n".encode())
                return self._refusal.startswith("452")
        return super()._reply(connection, key)


# -- connections ------------------------------------------------------------------------------------------------------


class FewConnections(ScriptedServer):
    """A server that takes so many connections at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._talking: set[object] = set()
        self.most_at_a_time = 0
        self.refusals = 0
        super().__init__({"EHLO": PIPELINING}, slow_s=0.01)

    def _serve(self, connection: socket.socket) -> None:
        super()._serve(connection)
        self._talking.discard(connection)

    def _reply(self, connection: socket.socket, key: str) -> bool:
        if key == "GREETING":
            if len(self._talking) >= self._most:
                self.refusals += 1
                connection.sendall(b"421 4.7.0 too many connections from you\r\n")
                return False
            self._talking.add(connection)
            self.most_at_a_time = max(self.most_at_a_time, len(self._talking))
        return super()._reply(connection, key)


def test_a_limit_of_connections_is_learnt() -> None:
    """Messages then wait for the connections that there are; no attempt is used up."""
    emails = [replace(EMAIL, job_id=f"job-{n}", recipients=(f"r{n}@example.org",)) for n in range(60)]
    with FewConnections(3) as server, carrier_to(f"{server.url}?connections=10") as carrier:

        async def one_then_all() -> list[Receipt]:
            first = await carrier.carrier.deliver(emails[0], unnoted)
            return [first, *await asyncio.gather(*[carrier.carrier.deliver(email, unnoted) for email in emails[1:]])]

        receipts = carrier.run(one_then_all())
        assert carrier.carrier.capacity <= 8

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert len(server.messages) == 60
    assert 1 <= server.refusals <= 10


def test_a_limit_that_the_first_messages_meet_is_learnt() -> None:
    """All connections are opened at once, and refusals come before those are ready that the server takes."""
    emails = [replace(EMAIL, job_id=f"job-{n}", recipients=(f"r{n}@example.org",)) for n in range(60)]
    with FewConnections(3) as server, carrier_to(f"{server.url}?connections=10") as carrier:
        receipts = carrier.deliver_all(emails)

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert len(server.messages) == 60
    assert server.most_at_a_time <= 3


def test_a_server_that_takes_no_connection_at_all_is_failing() -> None:
    receipt, _ = deliver({"GREETING": "421 4.7.0 too many connections"})

    assert (receipt.outcome, receipt.is_failing) == (Outcome.NOT_NOW, True)


def test_a_message_that_finds_no_connection_in_time_is_not_sent() -> None:
    """All connections are busy for longer than one message may take."""
    script: Replies = {"EHLO": PIPELINING, "DOT": "hang"}
    emails = [replace(EMAIL, job_id=f"job-{n}") for n in range(3)]
    with ScriptedServer(script) as server, carrier_to(f"{server.url}?connections=1", 0.1, 0.1) as carrier:
        receipts = carrier.deliver_all(emails)

    assert {receipt.outcome for receipt in receipts} <= {Outcome.UNSURE, Outcome.NOT_NOW}
    assert all(receipt.is_failing for receipt in receipts)
