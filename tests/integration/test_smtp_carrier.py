"""The SMTP carrier against real servers on this machine: a civil one (aiosmtpd), and one that says what it is told."""

import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from structlog.testing import capture_logs

from models.sends.carrier import Email, Outcome, Receipt, Sms
from worker.carriers import open_email
from worker.carriers.null import NullCarrier
from worker.carriers.smtp import KEPT_MAX, STEPS, SmtpCarrier
from worker.carriers.smtp_connection import SmtpConnection
from worker.carriers.smtp_transaction import PIPELINED_MAX
from worker.local.sinks import LoopbackController
from worker.settings import SettingsError

CERTIFICATES = Path(__file__).parent.parent / "certificates"
BOB, EVE, JOE = "bob@example.org", "eve@example.org", "joe@example.org"
LETTER = Email(
    job_id="job-1",
    from_name="Ada",
    from_address="ada@example.org",
    to=(BOB,),
    cc=(),
    recipients=(BOB,),
    subject="Hello",
    text="First\n.\n..two dots\nlast",
    html=None,
    reply_to=None,
    headers={},
)
TO_THREE = replace(LETTER, to=(BOB, EVE, JOE), recipients=(BOB, EVE, JOE))
LARGE = replace(LETTER, text="a line of text, again and again\n" * 600_000)
"""More than the buffers of two sockets hold."""
SECRET = "pass:w/rd"

CLOSE = "close"
HANG = "hang"
RESET_INSIDE = "reset inside"
LATER = "later"
Answers = Mapping[str, str | list[str]]
PIPELINING = "250-test\r\n250-PIPELINING\r\n250 SIZE 50000000"

USUAL: dict[str, str | list[str]] = {
    "GREETING": "220 test",
    "EHLO": "250-test\r\n250 SIZE 50000000",
    "DATA": "354 go on",
    "DOT": "250 2.0.0 Ok: queued as 4XyZ12",
    "QUIT": "221 bye",
}


class Scripted:
    """A mail server that answers each command as told; a list of answers is used up one by one, its last one kept.

    `GREETING` is its first word and `DOT` its answer to a whole message. It may also `CLOSE` the line, `HANG` until the
    test is over, answer together with what comes next (`LATER`), or reset the line when the message has only begun to
    arrive (`RESET_INSIDE`). Of a message whose end never comes it keeps what there was in `fragments`. `slow_s` is how
    long it thinks about each recipient.
    """

    def __init__(self, answers: Answers, slow_s: float = 0.0) -> None:
        told = {**USUAL, **answers}
        self.answers = {key: list(said) if isinstance(said, list) else [said] for key, said in told.items()}
        self.commands: list[str] = []
        self.messages: list[bytes] = []
        self.fragments: list[bytes] = []
        self.said = ""
        self.connections = 0
        self._slow_s = slow_s
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()
        self.url = f"smtp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._talk, args=(line,))
                self._threads.append(thread)
                thread.start()

    def _talk(self, line: socket.socket) -> None:
        line.settimeout(30)
        with line, line.makefile("rb") as heard, suppress(OSError):
            going = self._answer(line, "GREETING")
            while going and (command := heard.readline()):
                self.commands.append(command.decode().strip())
                verb = command.decode().split()[0].upper()
                going = self._answer(line, verb) and verb != "QUIT"
                if going and verb == "DATA" and self.said.rpartition("\n")[2].startswith("354"):
                    going = self._take_message(line, heard)

    def _take_message(self, line: socket.socket, heard: Any) -> bool:
        if self.answers["DOT"] == [RESET_INSIDE]:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        message = b""
        while (text := heard.readline()) != b".\r\n":
            if not text:
                self.fragments.append(message)
                return False
            message += text
        self.messages.append(message)
        return self._answer(line, "DOT")

    def _answer(self, line: socket.socket, key: str) -> bool:
        """Say what is to be said; False if the conversation is over."""
        left = self.answers.setdefault(key, ["250 2.1.0 Ok"])
        said = self.said = left.pop(0) if len(left) > 1 else left[0]
        if said == HANG:
            self._over.wait(30)
        if said in (HANG, CLOSE):
            return False
        if said == LATER:
            return True
        if key == "RCPT":
            self._over.wait(self._slow_s)
        line.sendall(f"{said}\r\n".encode())
        return not said.startswith("421")


@pytest.fixture(params=[USUAL["EHLO"], PIPELINING], ids=["one-by-one", "pipelined"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server that says what it is told not offer PIPELINING, and offer it."""
    monkeypatch.setitem(USUAL, "EHLO", request.param)


def unnoted() -> None:
    """Write nothing down before a message is handed over."""


class Notes:
    """Counts the times that a message was about to be handed over."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def send(
    answers: Answers, email: Email = LETTER, timeout_s: float = 20, note: Callable[[], None] = unnoted
) -> tuple[Receipt, Scripted]:
    """Send one email through a new carrier to a server that answers so."""
    with Scripted(answers) as server, closing(SmtpCarrier(server.url, timeout_s)) as carrier:
        return carrier.deliver(email, note), server


class Postbox:
    """What aiosmtpd hands everything to: keeps envelopes and counts connections."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []
        self.greetings = 0

    async def handle_EHLO(  # noqa: N802
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.greetings += 1
        return responses

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.envelopes.append(SimpleNamespace(**vars(envelope)))
        return "250 2.0.0 Ok: queued as 4XyZ12"


@contextmanager
def civil_server(**options: Any) -> Iterator[tuple[Postbox, int]]:
    postbox = Postbox()
    controller = LoopbackController(postbox, **options)
    controller.start()
    try:
        yield postbox, controller.port
    finally:
        controller.stop()


@contextmanager
def carrier_to(port: int, options: str = "", **more: Any) -> Iterator[SmtpCarrier]:
    with closing(SmtpCarrier(f"smtp://127.0.0.1:{port}{options}", 20, **more)) as carrier:
        yield carrier


def test_an_accepted_email_arrives_as_it_was_written() -> None:
    """Envelope and text are what the job said, dots at the beginning of lines included."""
    with civil_server() as (postbox, port), carrier_to(port) as carrier:
        receipt = carrier.deliver(LETTER, unnoted)

    assert receipt == Receipt(Outcome.ACCEPTED, reference="4XyZ12")
    (envelope,) = postbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("ada@example.org", [BOB])
    assert envelope.content.endswith(b"\r\n\r\nFirst\r\n.\r\n..two dots\r\nlast\r\n")


def test_an_email_may_be_asked_for_twice_and_arrive_twice() -> None:
    """SMTP knows no idempotency key."""
    with closing(SmtpCarrier("smtp://localhost", 20)) as carrier:
        assert not carrier.is_idempotent


def test_only_those_still_to_be_served_are_on_the_envelope() -> None:
    """A second attempt shows the same names but goes to the rest."""
    with civil_server() as (postbox, port), carrier_to(port) as carrier:
        carrier.deliver(replace(TO_THREE, recipients=(JOE,)), unnoted)

    (envelope,) = postbox.envelopes
    assert envelope.rcpt_tos == [JOE]
    assert BOB.encode() in envelope.content


def test_one_connection_serves_one_email_after_the_other() -> None:
    """Connecting costs more than sending."""
    with civil_server() as (postbox, port), carrier_to(port) as carrier:
        for _ in range(10):
            assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

    assert (len(postbox.envelopes), postbox.greetings) == (10, 1)


def test_threads_do_not_share_a_conversation() -> None:
    """Each email of many threads arrives once and whole, over no more connections than threads."""
    letters = [replace(LETTER, job_id=f"job-{n}", recipients=(f"r{n}@example.org",)) for n in range(200)]
    with civil_server() as (postbox, port), carrier_to(port) as carrier, ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(carrier.deliver, letters, repeat(unnoted)))

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert sorted(e.rcpt_tos[0] for e in postbox.envelopes) == sorted(letter.recipients[0] for letter in letters)
    assert all(b"<job-%s@" % e.rcpt_tos[0][1:-12].encode() in e.content for e in postbox.envelopes)
    assert postbox.greetings <= 8


def test_connections_beyond_the_kept_ones_are_closed_with_a_goodbye() -> None:
    """The pool is bounded, however many threads there were."""
    together = threading.Barrier(KEPT_MAX + 3)

    def deliver(carrier: SmtpCarrier) -> None:
        line = carrier._connect(float("inf"))
        together.wait(30)
        carrier._keep(line)

    with Scripted({}) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        with ThreadPoolExecutor(KEPT_MAX + 3) as threads:
            list(threads.map(deliver, [carrier] * (KEPT_MAX + 3)))
        assert len(carrier._idle) == KEPT_MAX

    assert server.commands.count("quit") == KEPT_MAX + 3


def test_closing_says_goodbye() -> None:
    """A kept connection ends with QUIT, and one that is given back later does too."""
    _, server = send({})

    assert server.commands[-1] == "quit"


def test_a_connection_idle_for_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers drop idle connections, and firewalls forget them without a word."""
    with Scripted({}) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        carrier.deliver(LETTER, unnoted)
        monkeypatch.setattr("worker.carriers.smtp.IDLE_MAX_S", -1.0)
        assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

    assert server.connections == 2


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("how", [CLOSE, "421 4.4.2 idle for too long"])
def test_a_kept_connection_that_died_is_replaced(how: str) -> None:
    """Nothing was said over it, so the email goes over a new one at once."""
    with Scripted({"MAIL": ["250 Ok", how, "250 Ok"]}) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        carrier.deliver(LETTER, unnoted)
        receipt = carrier.deliver(replace(LETTER, job_id="job-2"), unnoted)

    assert receipt.outcome is Outcome.ACCEPTED
    assert (server.connections, len(server.messages)) == (2, 2)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("how", [CLOSE, "421 4.3.2 shutting down"])
def test_a_new_connection_that_dies_is_not_replaced(how: str) -> None:
    """Once more, not for ever."""
    receipt, server = send({"MAIL": how})

    assert receipt.outcome is Outcome.NOT_NOW
    assert server.connections == 1


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_transient_answer_at_any_step_means_not_now(step: str) -> None:
    """4xx: asked again, it may be taken (RFC 5321 section 4.2.1)."""
    receipt, _ = send({step: "451 4.3.0 try again"})

    assert receipt.outcome is Outcome.NOT_NOW
    assert receipt.detail


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_final_answer_at_any_step_means_never(step: str) -> None:
    """5xx: asked again, the answer would be the same (RFC 5321 section 4.2.1)."""
    receipt, _ = send({step: "550 5.7.1 no"})

    assert receipt.outcome is Outcome.NEVER
    assert receipt.detail
    assert receipt.recipients_refused == (step == "RCPT")


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("step", ["RCPT", "DATA", "DOT"])
def test_a_server_that_closes_the_line_with_421_is_left_alone(step: str) -> None:
    """It is not now, and the next email goes over a new connection (RFC 5321 section 3.8)."""
    answers: Answers = {step: ["421 4.3.2 shutting down", "354 go on" if step == "DATA" else "250 Ok"]}
    with Scripted(answers) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        assert carrier.deliver(LETTER, unnoted).outcome is Outcome.NOT_NOW
        assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

    assert server.connections == 2


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("what", [CLOSE, "what?", "999 what?"])
def test_a_broken_conversation_before_the_message_means_not_now(step: str, what: str) -> None:
    """The message was not sent, so it was certainly not taken."""
    receipt, _ = send({step: what, "HELO": what})

    assert receipt.outcome is Outcome.NOT_NOW


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_server_that_hangs_before_the_message_means_not_now(step: str) -> None:
    """Silence is awaited no longer than the timeout."""
    receipt, _ = send({step: HANG}, timeout_s=0.3)

    assert receipt.outcome is Outcome.NOT_NOW


@pytest.mark.usefixtures("each_way")
def test_a_line_that_breaks_within_the_message_means_not_now() -> None:
    """The final dot was never sent, so the server cannot have taken the message."""
    receipt, _ = send({"DOT": RESET_INSIDE}, LARGE)

    assert receipt.outcome is Outcome.NOT_NOW


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("what", [CLOSE, "what?", "354 go on"])
def test_a_missing_answer_to_the_whole_message_leaves_it_unsure(what: str) -> None:
    """The server had everything it needs to deliver (RFC 5321 section 4.5.3.2.6)."""
    receipt, server = send({"DOT": what})

    assert receipt.outcome is Outcome.UNSURE
    assert len(server.messages) == 1


@pytest.mark.usefixtures("each_way")
def test_a_server_that_hangs_after_the_message_leaves_it_unsure() -> None:
    """A late answer and none look the same."""
    receipt, _ = send({"DOT": HANG}, timeout_s=0.3)

    assert receipt.outcome is Outcome.UNSURE


@pytest.mark.usefixtures("each_way")
def test_some_recipients_refused_are_named_and_the_others_get_it() -> None:
    """Refused for good and deferred are told apart, each with the server's words."""
    receipt, server = send({"RCPT": ["550 5.1.1 unknown", "250 Ok", "450 4.2.0 greylisted"]}, TO_THREE)

    assert receipt == Receipt(
        Outcome.ACCEPTED,
        reference="4XyZ12",
        refused={BOB: "550 5.1.1 unknown"},
        deferred={JOE: "450 4.2.0 greylisted"},
    )
    assert len(server.messages) == 1


def test_all_recipients_refused_is_said_to_be_so() -> None:
    """It was the recipients and not the message, and no message was sent."""
    receipt, server = send({"RCPT": "550 5.1.1 unknown"}, TO_THREE)

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, True)
    assert receipt.refused.keys() == {BOB, EVE, JOE}
    assert "DATA" not in server.commands


@pytest.mark.usefixtures("each_way")
def test_none_accepted_but_some_deferred_means_not_now() -> None:
    """The refused ones are named all the same, so that they need not be asked again."""
    receipt, _ = send({"RCPT": ["550 5.1.1 unknown", "450 4.2.0 greylisted"]}, TO_THREE)

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NOT_NOW, False)
    assert receipt.refused == {BOB: "550 5.1.1 unknown"}


@pytest.mark.usefixtures("each_way")
def test_too_many_recipients_are_deferred_whatever_the_number() -> None:
    """552 for a recipient is to be read as 452 (RFC 5321 section 4.5.3.1.10)."""
    receipt, _ = send({"RCPT": ["250 Ok", "552 too many", "452 4.5.3 too many"]}, TO_THREE)

    assert receipt.outcome is Outcome.ACCEPTED
    assert receipt.deferred.keys() == {EVE, JOE}


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
def test_after_a_refusal_the_same_connection_serves_the_next_email(step: str) -> None:
    """RSET makes it clean (RFC 5321 section 4.1.1.5)."""
    answers: Answers = {step: ["550 5.7.1 no", "354 go on" if step == "DATA" else "250 Ok"]}
    with Scripted(answers) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        carrier.deliver(LETTER, unnoted)
        assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

    assert server.connections == 1
    assert "rset" in server.commands


def test_a_connection_that_cannot_be_reset_is_closed() -> None:
    """Nobody goes on in the middle of somebody else's conversation."""
    with Scripted({"RCPT": ["550 no", "250 Ok"], "RSET": CLOSE}) as server:
        with closing(SmtpCarrier(server.url, 20)) as carrier:
            carrier.deliver(LETTER, unnoted)
            assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

        assert server.connections == 2


def test_a_message_too_large_for_the_server_is_never_sent() -> None:
    """Its size is told first (RFC 1870), so the refusal costs nothing."""
    with civil_server(data_size_limit=1000) as (postbox, port), carrier_to(port) as carrier:
        receipt = carrier.deliver(replace(LETTER, text="line\n" * 1000), unnoted)

    assert (receipt.outcome, receipt.recipients_refused, postbox.envelopes) == (Outcome.NEVER, False, [])


def test_the_servers_words_are_kept_but_made_safe() -> None:
    """No control characters, no broken encoding, no more than 300 characters."""
    receipt, _ = send({"RCPT": "550 5.1.1 \x1b[31mred\x00 " + "x" * 500})

    (words,) = receipt.refused.values()
    assert words.startswith("550 5.1.1")
    assert words.isprintable()
    assert len(words) == 300


@pytest.mark.usefixtures("each_way")
def test_neither_details_nor_logs_repeat_the_servers_words() -> None:
    """They often hold an address; the codes say enough."""
    words = f"550-5.1.1 <{BOB}> First\r\n550 5.1.1 Hello <{BOB}>"
    for step in ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
        for said in (words, words.replace("55", "45"), "what? " + BOB):
            with capture_logs() as logs:
                receipt, _ = send({step: said, "HELO": said})

            assert receipt.detail
            for told in (receipt.detail, str(logs)):
                assert "@" not in told
                assert "Hello" not in told


def test_a_server_that_is_not_there_means_not_now() -> None:
    """Nobody listens on the port, so nothing was about to be handed over."""
    notes = Notes()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with carrier_to(port) as carrier:
        receipt = carrier.deliver(LETTER, notes)

    assert (receipt.outcome, notes.count) == (Outcome.NOT_NOW, 0)
    assert "refused" in receipt.detail


def test_a_name_that_is_not_known_means_not_now() -> None:
    """`.invalid` never is (RFC 6761 section 6.4)."""
    with closing(SmtpCarrier("smtp://mail.invalid", 20)) as carrier:
        receipt = carrier.deliver(LETTER, unnoted)

    assert receipt.outcome is Outcome.NOT_NOW


def test_a_text_message_is_a_bug() -> None:
    """Bugs are not the network's, and leave the carrier."""
    with (
        closing(SmtpCarrier("smtp://127.0.0.1", 20)) as carrier,
        pytest.raises(TypeError, match="takes no Sms"),
    ):
        carrier.deliver(Sms("job-1", "+12025550123", None, "Hello", 1), unnoted)


# The note that is made before a message is handed over


@pytest.mark.usefixtures("each_way")
def test_the_note_is_made_when_the_server_has_asked_for_the_message_and_has_nothing_of_it() -> None:
    """354 is the last word before the message (RFC 5321 section 4.1.1.4)."""
    moments: list[tuple[str, str, int]] = []
    with Scripted({}) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        carrier.deliver(LETTER, lambda: moments.append((server.commands[-1], server.said, len(server.messages))))

    assert moments == [("DATA", "354 go on", 0)]
    assert len(server.messages) == 1


@pytest.mark.usefixtures("each_way")
def test_each_email_is_noted_once() -> None:
    """However many recipients it has, and whoever used the connection before."""
    notes = Notes()
    answers: Answers = {"RCPT": ["250 Ok", "550 5.1.1 unknown", "450 4.2.0 greylisted", "250 Ok"]}
    with Scripted(answers) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        for count in (1, 2, 3):
            carrier.deliver(TO_THREE, notes)
            assert notes.count == count

    assert (server.connections, len(server.messages)) == (1, 3)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("how", [CLOSE, "421 4.4.2 idle for too long"])
def test_an_email_that_moves_to_a_new_connection_is_noted_once(how: str) -> None:
    """Over the dead one it never came so far."""
    notes = Notes()
    with Scripted({"MAIL": ["250 Ok", how, "250 Ok"]}) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        carrier.deliver(LETTER, unnoted)
        carrier.deliver(LETTER, notes)

    assert (server.connections, notes.count) == (2, 1)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("said", ["451 4.3.0 try again", "550 5.7.1 no", "421 4.3.2 shutting down", "what?", CLOSE])
def test_a_message_that_the_server_did_not_ask_for_is_not_noted(step: str, said: str) -> None:
    """It was not about to be handed over: whoever reads the notes after a crash may send it again."""
    notes = Notes()
    send({step: said, "HELO": said}, note=notes)

    assert notes.count == 0


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("said", ["250 2.0.0 Ok", HANG])
def test_no_other_answer_to_data_is_taken_for_the_one_that_asks_for_the_message(said: str) -> None:
    """Only 354 is, and silence is not."""
    notes = Notes()
    receipt, server = send({"DATA": said}, timeout_s=0.3, note=notes)

    assert (receipt.outcome, notes.count, server.messages) == (Outcome.NOT_NOW, 0, [])


@pytest.mark.parametrize(
    "email",
    [replace(LETTER, recipients=("jörg@example.org",)), replace(LETTER, from_address="zoë@example.org")],
    ids=["recipient", "sender"],
)
def test_a_message_that_cannot_be_written_for_the_server_is_not_noted(email: Email) -> None:
    """The server is not asked at all."""
    notes = Notes()
    send({}, email, note=notes)

    assert notes.count == 0


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("what", ["451 4.3.0 try again", "550 5.7.1 no", "what?", CLOSE, RESET_INSIDE])
def test_whatever_becomes_of_the_message_it_was_noted_once(what: str) -> None:
    """The note was made before anybody could know."""
    notes = Notes()
    send({"DOT": what}, LARGE if what == RESET_INSIDE else LETTER, note=notes)

    assert notes.count == 1


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("error", [LookupError, TimeoutError, KeyboardInterrupt])
def test_without_the_note_the_server_gets_nothing_of_the_message(error: type[BaseException]) -> None:
    """What the note raises goes through, also if it looks like the network's; its line is closed and not used again."""

    def fail() -> None:
        raise error("no note")

    with Scripted({}) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        carrier.deliver(LETTER, unnoted)
        with pytest.raises(error, match=r"^no note$"):
            carrier.deliver(replace(LETTER, job_id="job-2"), fail)
        assert carrier.deliver(replace(LETTER, job_id="job-3"), unnoted).outcome is Outcome.ACCEPTED

    assert server.fragments == [b""]
    assert [b"<job-2@" in message for message in server.messages] == [False, False]
    assert server.connections == 2


def test_a_civil_server_forgets_an_email_without_its_note() -> None:
    """Without the final dot there is no message (RFC 5321 section 4.1.1.4)."""

    def fail() -> None:
        raise LookupError

    with civil_server() as (postbox, port), carrier_to(port) as carrier:
        with pytest.raises(LookupError):
            carrier.deliver(LETTER, fail)
        assert carrier.deliver(replace(LETTER, job_id="job-2"), unnoted).outcome is Outcome.ACCEPTED

    assert [b"<job-2@" in envelope.content for envelope in postbox.envelopes] == [True]
    assert postbox.greetings == 2


@pytest.mark.usefixtures("each_way")
def test_a_note_that_comes_too_late_means_not_now() -> None:
    """The lease may be over before such a delivery is, so nothing is handed over."""
    receipt, server = send({}, timeout_s=0.4, note=lambda: time.sleep((STEPS + 0.2) * 0.4))

    assert receipt.outcome is Outcome.NOT_NOW
    assert (server.messages, server.fragments) == ([], [b""])


# Several commands at once (RFC 2920)


AT_ONCE: Answers = {"MAIL": LATER, "RCPT": LATER, "DATA": "250 Ok\r\n250 Ok\r\n354 go on"}


def test_a_server_with_pipelining_hears_everything_up_to_the_message_in_one_go() -> None:
    """It answers nothing before it has heard DATA, and is waited for no more often than twice."""
    receipt, server = send({**AT_ONCE, "EHLO": PIPELINING})

    assert receipt == Receipt(Outcome.ACCEPTED, reference="4XyZ12")
    assert [command.split()[0] for command in server.commands] == ["ehlo", "MAIL", "RCPT", "DATA", "quit"]


def test_a_server_without_pipelining_hears_one_command_after_the_other() -> None:
    """Nothing follows before its answer is there."""
    receipt, server = send(AT_ONCE, timeout_s=0.3)

    assert receipt.outcome is Outcome.NOT_NOW
    assert "RCPT" not in str(server.commands)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize("how", [CLOSE, HANG, "what?"])
def test_wherever_the_line_is_cut_the_message_went_out_once_or_never(step: str, how: str) -> None:
    """Before its dot it is not now, after it nobody knows."""
    receipt, server = send({step: ["250 Ok", how] if step == "RCPT" else how}, TO_THREE, timeout_s=0.3)

    assert receipt.outcome is (Outcome.UNSURE if step == "DOT" else Outcome.NOT_NOW)
    assert len(server.messages) == (1 if step == "DOT" else 0)
    assert set(server.fragments) <= {b""}


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
def test_a_server_that_asks_for_a_message_it_refused_gets_none(step: str) -> None:
    """Not even an empty one: the line is closed, and the next email goes over a new one (RFC 2920 section 3.1)."""
    notes = Notes()
    answers: Answers = {"EHLO": PIPELINING, step: ["550 5.7.1 no", "250 Ok"]}
    with Scripted(answers) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        receipt = carrier.deliver(LETTER, notes)
        assert (notes.count, server.messages) == (0, [])
        assert carrier.deliver(LETTER, notes).outcome is Outcome.ACCEPTED

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, step == "RCPT")
    assert (server.connections, server.fragments, len(server.messages)) == (2, [b""], 1)


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
@pytest.mark.parametrize(("rest", "connections"), [("503 5.5.1 no", 1), ("421 4.3.2 bye", 2), ("what?", 2), (CLOSE, 2)])
def test_a_refusal_in_the_midst_is_heard_out_before_the_line_is_used_again(
    step: str, rest: str, connections: int
) -> None:
    """Its other answers must not be taken for those to the next email."""
    answers: Answers = {"EHLO": PIPELINING, step: ["550 no", "250 Ok"], "DATA": [rest, "354 go on"]}
    with Scripted(answers) as server, closing(SmtpCarrier(server.url, 20)) as carrier:
        assert carrier.deliver(LETTER, unnoted).outcome is Outcome.NEVER
        assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

    assert (server.connections, len(server.messages)) == (connections, 1)


@pytest.mark.usefixtures("each_way")
def test_an_email_to_many_has_each_of_them_named_once() -> None:
    """More are not said at once than the buffers hold."""
    people = tuple(f"r{n}@example.org" for n in range(3 * PIPELINED_MAX))
    refused = ["550 5.1.1 unknown" if n % 2 else "250 Ok" for n in range(len(people))]
    receipt, server = send({"RCPT": refused}, replace(LETTER, to=people, recipients=people))

    assert receipt.outcome is Outcome.ACCEPTED
    assert list(receipt.refused) == list(people[1::2])
    assert [command for command in server.commands if "RCPT" in command] == [f"RCPT TO:<{to}>" for to in people]
    assert len(server.messages) == 1


@pytest.mark.usefixtures("each_way")
def test_many_slow_answers_do_not_last_beyond_the_deadline() -> None:
    """Each of them comes in time, all of them do not: the lease would end."""
    people = tuple(f"r{n}@example.org" for n in range(20))
    began = time.monotonic()
    with Scripted({}, slow_s=0.2) as server, closing(SmtpCarrier(server.url, 0.3)) as carrier:
        receipt = carrier.deliver(replace(LETTER, to=people, recipients=people), unnoted)
        took = time.monotonic() - began

    assert receipt.outcome is Outcome.NOT_NOW
    assert took < (STEPS + 1) * 0.3
    assert server.messages == []


def test_a_command_that_would_be_two_is_a_bug() -> None:
    """No address may say more than an address."""
    with pytest.raises(ValueError, match="one line"):
        SmtpConnection().send_commands(["MAIL FROM:<ada@example.org>", "RCPT TO:<bob@example.org>\nDATA"])


# Addresses beyond ASCII (RFC 6531)


def test_an_address_beyond_ascii_goes_to_a_server_that_knows_them() -> None:
    """The local part as UTF-8, the domain in ASCII."""
    email = replace(LETTER, from_address="zoë@example.org", to=("jörg@müller.example",))
    with civil_server() as (postbox, port), carrier_to(port) as carrier:
        receipt = carrier.deliver(replace(email, recipients=email.to), unnoted)

    assert receipt.outcome is Outcome.ACCEPTED
    (envelope,) = postbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("zoë@example.org", ["jörg@xn--mller-kva.example"])
    assert "jörg@xn--mller-kva.example".encode() in envelope.content


def test_an_address_beyond_ascii_is_refused_for_a_server_that_does_not_know_them() -> None:
    """The others get the email, and the address does not stand in its headers either."""
    email = replace(LETTER, to=("jörg@example.org", BOB), cc=("jörg@example.org",))
    receipt, server = send({}, replace(email, recipients=email.to))

    assert receipt.outcome is Outcome.ACCEPTED
    assert receipt.refused.keys() == {"jörg@example.org"}
    assert server.messages[0].isascii()
    assert not any("SMTPUTF8" in command for command in server.commands)


def test_recipients_who_are_all_beyond_ascii_leave_nothing_to_send() -> None:
    """All are refused for good, without a word to the server."""
    receipt, server = send({}, replace(LETTER, to=("jörg@example.org",), recipients=("jörg@example.org",)))

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, True)
    assert receipt.refused.keys() == {"jörg@example.org"}
    assert not any(command.startswith("MAIL") for command in server.commands)


@pytest.mark.parametrize("field", ["from_address", "reply_to"])
def test_a_sender_beyond_ascii_can_never_send_through_such_a_server(field: str) -> None:
    """Neither can replies be asked for at such an address."""
    receipt, _ = send({}, replace(LETTER, **{field: "zoë@example.org"}))  # type: ignore[arg-type]

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, False)


# TLS and login


def server_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    return context


def client_tls() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATES / "server.pem")


def only_ada(_server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
    return AuthResult(success=given == LoginPassword(b"ada@example.org", SECRET.encode()))


LOGIN = "ada%40example.org:pass%3Aw%2Frd"


def test_starttls_is_used_where_it_is_offered_and_the_login_comes_after_it() -> None:
    """A password goes over an encrypted line only."""
    options = {"tls_context": server_tls(), "require_starttls": True, "authenticator": only_ada, "auth_required": True}
    with civil_server(**options) as (postbox, port):
        url = f"smtp://{LOGIN}@127.0.0.1:{port}"
        with closing(SmtpCarrier(url, 20, ssl_context=client_tls())) as carrier:
            assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED
            assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

    assert len(postbox.envelopes) == 2


def test_smtps_is_encrypted_from_the_first_byte() -> None:
    """And its connections are kept like others."""
    options = {"ssl_context": server_tls(), "authenticator": only_ada, "auth_require_tls": False, "auth_required": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # aiosmtpd does not know that the whole line is encrypted
        with (
            civil_server(**options) as (postbox, port),
            closing(SmtpCarrier(f"smtps://{LOGIN}@localhost:{port}", 20, ssl_context=client_tls())) as carrier,
        ):
            receipts = [carrier.deliver(LETTER, unnoted), carrier.deliver(LETTER, unnoted)]

    assert [receipt.outcome for receipt in receipts] == [Outcome.ACCEPTED, Outcome.ACCEPTED]
    assert (len(postbox.envelopes), postbox.greetings) == (2, 1)


@pytest.mark.parametrize("starttls", ["?starttls=require", "?starttls=if-offered", ""])
def test_an_unknown_certificate_is_not_trusted(starttls: str) -> None:
    """Not even where encryption was optional: an offer that cannot be verified is no reason to go on in the clear."""
    with civil_server(tls_context=server_tls()) as (postbox, port), carrier_to(port, starttls) as carrier:
        receipt = carrier.deliver(LETTER, unnoted)

    assert receipt.outcome is Outcome.NOT_NOW
    assert "certificate" in receipt.detail
    assert postbox.envelopes == []


def test_required_encryption_that_is_not_offered_means_not_now() -> None:
    """Nothing is sent in the clear then."""
    with civil_server() as (postbox, port), carrier_to(port, "?starttls=require") as carrier:
        receipt = carrier.deliver(LETTER, unnoted)

    assert (receipt.outcome, postbox.envelopes) == (Outcome.NOT_NOW, [])
    assert "encryption" in receipt.detail


def test_unwanted_encryption_is_not_used() -> None:
    """`starttls=never` is for servers on this machine whose certificate nobody knows."""
    with civil_server(tls_context=server_tls()) as (postbox, port), carrier_to(port, "?starttls=never") as carrier:
        assert carrier.deliver(LETTER, unnoted).outcome is Outcome.ACCEPTED

    assert len(postbox.envelopes) == 1


def test_a_refused_login_is_loud_in_the_log_without_user_and_password() -> None:
    """It is not now: somebody will mend the setting."""
    refusal = "535 5.7.8 no ada@example.org " + SECRET
    with (
        capture_logs() as logs,
        Scripted({"EHLO": "250-test\r\n250 AUTH PLAIN", "AUTH": refusal}) as server,
        closing(SmtpCarrier(server.url.replace("//", f"//{LOGIN}@"), 20)) as carrier,
    ):
        receipt = carrier.deliver(LETTER, unnoted)

    assert receipt.outcome is Outcome.NOT_NOW
    assert [log["log_level"] for log in logs] == ["error"]
    for told in (str(logs), receipt.detail):
        assert "login" in told
        assert "ada" not in told
        assert SECRET not in told


def test_a_login_goes_in_the_clear_only_to_this_machine_or_where_it_was_said_so() -> None:
    """To another machine, encryption "if offered" means required: who takes the offer away would read the password."""
    assert SmtpCarrier("smtp://ada:x@mail.example.org", 20)._server.starttls == "require"
    assert SmtpCarrier("smtp://ada:x@mail.example.org?starttls=if-offered", 20)._server.starttls == "require"
    assert SmtpCarrier("smtp://ada:x@mail.example.org?starttls=never", 20)._server.starttls == "never"
    assert SmtpCarrier("smtp://ada:x@127.0.0.1", 20)._server.starttls == "if-offered"
    assert SmtpCarrier("smtp://ada:x@[::1]", 20)._server.starttls == "if-offered"
    assert SmtpCarrier("smtp://mail.example.org", 20)._server.starttls == "if-offered"


@pytest.mark.parametrize(
    "url",
    [
        "http://mail.example.org",
        "mail.example.org:25",
        "smtp://",
        "smtp://:25",
        "smtp://mail.example.org:port",
        "smtp://ada:pass:w/rd@mail.example.org",
        "smtp://mail.example.org/inbox",
        "smtp://mail.example.org?starttls=perhaps",
        "smtp://mail.example.org?starttls",
        "smtp://mail.example.org?tls=yes",
        "smtps://mail.example.org?starttls=never",
        "smtp://mail..example.org",
        "smtp://ada:passwört@mail.example.org",
        "smtp://ada:pass:w%2Frd@mail.example.org?x=1",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_a_sentence(url: str) -> None:
    """It is refused when the process starts, and never repeats a password."""
    with pytest.raises(SettingsError, match=r"^POSTAGE_SMTP_URL: The address of the mail server .*\.$") as refusal:
        open_email(url, 20)

    assert "pass:w" not in str(refusal.value)
    assert "rd@" not in str(refusal.value)


def test_null_accepts_every_email() -> None:
    """For benchmarks. It honours the job id, so nothing is noted."""
    carrier, notes = open_email("null://", 20), Notes()

    assert isinstance(carrier, NullCarrier)
    assert carrier.is_idempotent
    assert carrier.deliver(LETTER, notes) == Receipt(Outcome.ACCEPTED, reference="job-1")
    assert notes.count == 0
    carrier.close()
