"""What the replies of a mail server mean: accepted, never, not now, or unsure."""

import pytest
from structlog.testing import capture_logs

from models.sends.carrier import Outcome, Receipt
from tests.integration.smtp_server import (
    BOB,
    CLOSE,
    EMAIL,
    EVE,
    HANG,
    JOE,
    LARGE,
    RESET_INSIDE,
    TO_THREE,
    Handovers,
    Replies,
    ScriptedServer,
    carrier_to,
    deliver,
    unnoted,
)
from tests.servers import free_port


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_transient_reply_at_any_step_means_not_now(step: str) -> None:
    """4xx: it may be accepted later (RFC 5321 section 4.2.1)."""
    receipt, _ = deliver({step: "451 4.3.0 try again"})

    assert receipt.outcome is Outcome.NOT_NOW
    assert receipt.detail


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_permanent_reply_at_any_step_means_never(step: str) -> None:
    """5xx: the reply will always be the same (RFC 5321 section 4.2.1)."""
    receipt, _ = deliver({step: "550 5.7.1 no"})

    assert receipt.outcome is Outcome.NEVER
    assert receipt.detail
    assert receipt.recipients_refused == (step == "RCPT")


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["RCPT", "DATA", "DOT"])
def test_a_server_that_closes_the_connection_with_421_means_not_now(step: str) -> None:
    """The next email goes over a new connection (RFC 5321 section 3.8)."""
    script: Replies = {step: ["421 4.3.2 shutting down", "354 go on" if step == "DATA" else "250 Ok"]}
    with ScriptedServer(script) as server, carrier_to(server.url) as carrier:
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.NOT_NOW
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert server.connections == 2


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("broken", [CLOSE, "what?", "999 what?"])
def test_a_broken_mail_transaction_before_the_message_means_not_now(step: str, broken: str) -> None:
    """The message was not sent, so the server cannot have accepted it."""
    receipt, _ = deliver({step: broken, "HELO": broken})

    assert receipt.outcome is Outcome.NOT_NOW


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_server_that_hangs_before_the_message_means_not_now(step: str) -> None:
    """A reply is waited for no longer than the timeout."""
    receipt, _ = deliver({step: HANG}, timeout_s=0.3)

    assert receipt.outcome is Outcome.NOT_NOW


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_connection_that_breaks_within_the_message_means_not_now() -> None:
    """The final dot was never sent, so the server cannot have accepted the message."""
    receipt, _ = deliver({"DOT": RESET_INSIDE}, LARGE)

    assert receipt.outcome is Outcome.NOT_NOW


@pytest.mark.usefixtures("with_and_without_pipelining")
@pytest.mark.parametrize("instead", [CLOSE, "what?", "354 go on"])
def test_a_missing_reply_to_the_whole_message_means_unsure(instead: str) -> None:
    """The server had everything that it needs to deliver the message (RFC 5321 section 4.5.3.2.6)."""
    receipt, server = deliver({"DOT": instead})

    assert receipt.outcome is Outcome.UNSURE
    assert len(server.messages) == 1


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_a_server_that_hangs_after_the_message_means_unsure() -> None:
    """A late reply cannot be told from none."""
    receipt, _ = deliver({"DOT": HANG}, dot_timeout_s=0.3)

    assert receipt.outcome is Outcome.UNSURE


def test_a_server_that_is_not_there_means_not_now() -> None:
    """Nothing listens on the port, so no handover begins."""
    handovers = Handovers()
    with carrier_to(f"smtp://127.0.0.1:{free_port()}") as carrier:
        receipt = carrier.deliver(EMAIL, handovers)

    assert (receipt.outcome, handovers.count) == (Outcome.NOT_NOW, 0)
    assert "refused" in receipt.detail


def test_a_host_name_that_does_not_exist_means_not_now() -> None:
    """No name under `.invalid` does (RFC 6761 section 6.4)."""
    with carrier_to("smtp://mail.invalid") as carrier:
        receipt = carrier.deliver(EMAIL, unnoted)

    assert receipt.outcome is Outcome.NOT_NOW


# -- recipients -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_refused_recipients_are_named_and_the_others_get_the_email() -> None:
    """Those who are refused for good and those who are deferred are told apart, with the words of the server."""
    receipt, server = deliver({"RCPT": ["550 5.1.1 unknown", "250 Ok", "450 4.2.0 greylisted"]}, TO_THREE)

    assert receipt == Receipt(
        Outcome.ACCEPTED,
        reference="4XyZ12",
        refused={BOB: "550 5.1.1 unknown"},
        deferred={JOE: "450 4.2.0 greylisted"},
    )
    assert len(server.messages) == 1


def test_an_email_is_not_sent_if_all_recipients_are_refused() -> None:
    """The receipt says that it was because of them."""
    receipt, server = deliver({"RCPT": "550 5.1.1 unknown"}, TO_THREE)

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, True)
    assert receipt.refused.keys() == {BOB, EVE, JOE}
    assert "DATA" not in server.commands


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_no_accepted_and_a_deferred_recipient_mean_not_now() -> None:
    """The refused recipients are named all the same, and need not be tried again."""
    receipt, _ = deliver({"RCPT": ["550 5.1.1 unknown", "450 4.2.0 greylisted"]}, TO_THREE)

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NOT_NOW, False)
    assert receipt.refused == {BOB: "550 5.1.1 unknown"}


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_too_many_recipients_are_deferred_whatever_the_code_is() -> None:
    """552 for a recipient must be read as 452 (RFC 5321 section 4.5.3.1.10)."""
    receipt, _ = deliver({"RCPT": ["250 Ok", "552 too many", "452 4.5.3 too many"]}, TO_THREE)

    assert receipt.outcome is Outcome.ACCEPTED
    assert receipt.deferred.keys() == {EVE, JOE}


# -- the words of the server ------------------------------------------------------------------------------------------


def test_the_words_about_a_recipient_are_kept_but_sanitized() -> None:
    """No control characters, no broken encoding, no more than 300 characters."""
    receipt, _ = deliver({"RCPT": "550 5.1.1 \x1b[31mred\x00 " + "x" * 500})

    (words,) = receipt.refused.values()
    assert words.startswith("550 5.1.1")
    assert words.isprintable()
    assert len(words) == 300


@pytest.mark.usefixtures("with_and_without_pipelining")
def test_details_have_the_words_of_the_server_without_addresses_and_logs_have_none() -> None:
    """The words help whoever reads the answer; an address in it would outlast the message."""
    words = f"550-5.1.1 <{BOB}> First\r\n550 5.1.1 Hello <{BOB}>"
    for step in ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
        for reply in (words, words.replace("55", "45"), "what? " + BOB):
            with capture_logs() as logs:
                receipt, _ = deliver({step: reply, "HELO": reply})

            assert "@" not in receipt.detail
            assert receipt.detail.endswith(": … First Hello …" if reply[0] in "45" else "not SMTP.")
            for text in ("@", "Hello"):
                assert text not in str(logs)


def test_the_password_is_in_no_detail_even_if_the_server_says_it() -> None:
    """What a server does with a password is unknown."""
    script: Replies = {"EHLO": "250-test\r\n250 AUTH PLAIN", "AUTH": "235 ok", "DOT": "554 5.7.1 ada may not s3cret"}
    with ScriptedServer(script) as server, carrier_to(server.url.replace("//", "//ada:s3cret@")) as carrier:
        receipt = carrier.deliver(EMAIL, unnoted)

    assert receipt.detail == "The mail server refused the message (554 5.7.1): … may not …"
