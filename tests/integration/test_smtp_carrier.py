"""The SMTP carrier: what arrives at a real server, and what the carrier never sends."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from models.sends.carrier import Outcome, Receipt, Sms
from tests.integration.smtp_server import (
    BOB,
    EMAIL,
    JOE,
    TO_THREE,
    carrier_to,
    deliver,
    real_server,
    unnoted,
)
from worker.carrier_urls import CarrierUrlError, parse_carrier_url
from worker.carriers.smtp import SmtpCarrier


def test_an_accepted_email_arrives_as_it_was_written() -> None:
    """Envelope and text are those of the job, even with dots at the beginning of lines."""
    with real_server() as (mailbox, url), carrier_to(url) as carrier:
        receipt = carrier.deliver(EMAIL, unnoted)

    assert receipt == Receipt(Outcome.ACCEPTED, reference="4XyZ12")
    (envelope,) = mailbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("ada@example.org", [BOB])
    assert envelope.content.endswith(b"\r\n\r\nFirst\r\n.\r\n..two dots\r\nlast\r\n")


def test_only_the_remaining_recipients_are_on_the_envelope() -> None:
    """A later attempt has the same headers, and goes only to the recipients who are left."""
    with real_server() as (mailbox, url), carrier_to(url) as carrier:
        carrier.deliver(replace(TO_THREE, recipients=(JOE,)), unnoted)

    (envelope,) = mailbox.envelopes
    assert envelope.rcpt_tos == [JOE]
    assert BOB.encode() in envelope.content


def test_the_smtp_carrier_knows_no_message_again() -> None:
    """SMTP has no idempotency key, so an email that is sent twice may arrive twice."""
    with carrier_to("smtp://localhost") as carrier:
        assert carrier.carrier.key_window == timedelta()


def test_each_connection_has_a_next_message() -> None:
    """Its envelope can then go with the final dot of the one before."""
    with carrier_to("smtp://localhost?connections=7") as carrier:
        assert carrier.carrier.capacity == 14


def test_an_email_that_is_too_large_for_the_server_is_not_sent() -> None:
    """Its size is announced first (RFC 1870), so the refusal costs nothing."""
    with real_server(data_size_limit=1000) as (mailbox, url), carrier_to(url) as carrier:
        receipt = carrier.deliver(replace(EMAIL, text="line\n" * 1000), unnoted)

    assert (receipt.outcome, receipt.recipients_refused, mailbox.envelopes) == (Outcome.NEVER, False, [])


def test_a_text_message_for_the_smtp_carrier_is_a_bug() -> None:
    """Unlike a fault of the network, a bug is raised."""
    with carrier_to("smtp://127.0.0.1") as carrier, pytest.raises(TypeError, match="takes no Sms"):
        carrier.deliver(Sms("job-1", 7, "+12025550123", None, "Hello", 1), unnoted)


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
        "smtp://mail.example.org?starttls=",
        "smtp://mail.example.org?tls=yes",
        "smtps://mail.example.org?starttls=never",
        "smtp://mail..example.org",
        "smtp://ada:pass%00word@mail.example.org",
        "smtp://ada:pass:w%2Frd@mail.example.org?x=1",
        "smtp://mail.example.org?window=1h",
        "smtp://mail.example.org?prefixes=49",
        "smtp://ada:secret@mail.example.org?auth=kerberos",
        "smtp://ada:secret@mail.example.org?auth=xoauth2",
        "smtp://mail.example.org?auth=plain",
        "smtp://mail.example.org?token_file=/run/token",
        "smtp://ada:secret@mail.example.org?token_file=/run/token",
        "smtp://ada@mail.example.org?token_file=/run/token&auth=login",
        "smtp://ada@mail.example.org?token_file=/run/token&token_command=token",
        "smtp://ada@mail.example.org?token_command=",
        "smtp://ada@mail.example.org?token_command=%27",
        "smtp://ada@mail.example.org?token_file=",
        "smtp://mail.example.org?ehlo=",
        "smtp://mail.example.org?ehlo=a%0D%0AMAIL",
        "smtp://mail.example.org?recipients=0",
        "smtp://mail.example.org?recipients=many",
        "smtp://mail.example.org?messages=-1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_sentence(url: str) -> None:
    """It is refused when the process starts, and never repeats a password."""
    with pytest.raises(CarrierUrlError, match=r"^The address of (the mail server|a carrier) .*\.$") as refusal:
        SmtpCarrier(parse_carrier_url(url), timeout_s=20)

    for secret in ("pass:w", "rd@", "secret", "ada"):
        assert secret not in str(refusal.value)


# -- addresses beyond ASCII (RFC 6531) --------------------------------------------------------------------------------


def test_an_address_beyond_ascii_goes_to_a_server_with_smtputf8() -> None:
    """Its local part is sent as UTF-8, its domain in ASCII."""
    email = replace(EMAIL, from_address="zoë@example.org", to=("jörg@müller.example",))
    with real_server() as (mailbox, url), carrier_to(url) as carrier:
        receipt = carrier.deliver(replace(email, recipients=email.to), unnoted)

    assert receipt.outcome is Outcome.ACCEPTED
    (envelope,) = mailbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("zoë@example.org", ["jörg@xn--mller-kva.example"])
    assert "jörg@xn--mller-kva.example".encode() in envelope.content


def test_an_address_beyond_ascii_is_refused_without_smtputf8() -> None:
    """The others get the email, which does not contain the address in its headers either."""
    email = replace(EMAIL, to=("jörg@example.org", BOB), cc=("jörg@example.org",))
    receipt, server = deliver({}, replace(email, recipients=email.to))

    assert receipt.outcome is Outcome.ACCEPTED
    assert receipt.refused.keys() == {"jörg@example.org"}
    assert server.messages[0].isascii()
    assert not any("SMTPUTF8" in command for command in server.commands)


def test_an_email_to_addresses_beyond_ascii_alone_is_not_sent() -> None:
    """All are refused for good, without asking the server."""
    receipt, server = deliver({}, replace(EMAIL, to=("jörg@example.org",), recipients=("jörg@example.org",)))

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, True)
    assert receipt.refused.keys() == {"jörg@example.org"}
    assert not any(command.startswith("MAIL") for command in server.commands)


@pytest.mark.parametrize("fields", [{"from_address": "zoë@example.org"}, {"reply_to": ("Zoë <zoë@example.org>",)}])
def test_a_sender_beyond_ascii_is_refused_without_smtputf8(fields: dict[str, Any]) -> None:
    """So is such an address for replies."""
    receipt, _ = deliver({}, replace(EMAIL, **fields))

    assert (receipt.outcome, receipt.recipients_refused) == (Outcome.NEVER, False)
