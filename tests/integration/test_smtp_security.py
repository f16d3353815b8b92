"""TLS and logins of the SMTP carrier: no password and no email goes where it should not."""

import ssl
import warnings
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from structlog.testing import capture_logs

from models.sends.carrier import Outcome
from tests.integration import smtp_server
from tests.integration.smtp_server import EMAIL, LOOPS, LoopedCarrier, ScriptedServer, carrier_to, real_server, unnoted
from tests.integration.tls import server_context

PASSWORD = "pass:w/rd"
LOGIN = "ada%40example.org:pass%3Aw%2Frd"


def only_ada(_server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
    """Accept the login of ada alone."""
    return AuthResult(success=given == LoginPassword(b"ada@example.org", PASSWORD.encode()))


def distrusting_carrier_to(url: str) -> closing[LoopedCarrier]:
    """Give a carrier that does not trust the certificate of the tests, closed after the block."""
    return carrier_to(url, ssl_context=ssl.create_default_context())


def with_login(url: str) -> str:
    """Give the URL with the user ada and her password."""
    return url.replace("//", f"//{LOGIN}@")


def test_starttls_comes_before_the_login() -> None:
    """The password is sent over an encrypted connection."""
    options = {"tls_context": server_context(), "require_starttls": True}
    login = {"authenticator": only_ada, "auth_required": True}
    with real_server(**options, **login) as (mailbox, url), carrier_to(with_login(url)) as carrier:
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert len(mailbox.envelopes) == 2


def test_smtps_is_encrypted_from_the_first_byte() -> None:
    """Its connections are kept like others."""
    options = {"ssl_context": server_context(), "auth_require_tls": False}
    login = {"authenticator": only_ada, "auth_required": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # aiosmtpd does not know that the whole connection is encrypted
        with real_server(**options, **login) as (mailbox, url):
            smtps_url = with_login(url).replace("smtp://", "smtps://").replace("127.0.0.1", "localhost")
            with carrier_to(smtps_url) as carrier:
                receipts = [carrier.deliver(EMAIL, unnoted), carrier.deliver(EMAIL, unnoted)]

    assert [receipt.outcome for receipt in receipts] == [Outcome.ACCEPTED, Outcome.ACCEPTED]
    assert (len(mailbox.envelopes), mailbox.connections) == (2, 1)


@pytest.mark.parametrize("starttls", ["?starttls=require", "?starttls=if-offered", ""])
def test_an_unknown_certificate_is_not_trusted(starttls: str) -> None:
    """Not even where encryption is optional: the email is not sent unencrypted instead."""
    with real_server(tls_context=server_context()) as (mailbox, url), distrusting_carrier_to(url + starttls) as carrier:
        receipt = carrier.deliver(EMAIL, unnoted)

    assert receipt.outcome is Outcome.NOT_NOW
    assert "certificate" in receipt.detail
    assert mailbox.envelopes == []


def test_required_encryption_that_is_not_offered_means_not_now() -> None:
    """Nothing is sent unencrypted then."""
    with real_server() as (mailbox, url), carrier_to(f"{url}?starttls=require") as carrier:
        receipt = carrier.deliver(EMAIL, unnoted)

    assert (receipt.outcome, mailbox.envelopes) == (Outcome.NOT_NOW, [])
    assert "encryption" in receipt.detail


def test_unwanted_encryption_is_not_used() -> None:
    """`starttls=never` is for servers on this machine, whose certificates are not trusted."""
    with (
        real_server(tls_context=server_context()) as (mailbox, url),
        distrusting_carrier_to(f"{url}?starttls=never") as carrier,
    ):
        assert carrier.deliver(EMAIL, unnoted).outcome is Outcome.ACCEPTED

    assert len(mailbox.envelopes) == 1


def test_a_refused_login_is_logged_without_user_and_password() -> None:
    """It is our fault: the setting can be corrected."""
    refusal = "535 5.7.8 no ada@example.org " + PASSWORD
    with (
        capture_logs() as logs,
        ScriptedServer({"EHLO": "250-test\r\n250 AUTH PLAIN", "AUTH": refusal}) as server,
        carrier_to(with_login(server.url)) as carrier,
    ):
        receipt = carrier.deliver(EMAIL, unnoted)

    assert receipt.outcome is Outcome.OUR_FAULT
    assert [log["log_level"] for log in logs] == ["error"]
    for text in (str(logs), receipt.detail):
        assert "login" in text
        assert "ada" not in text
        assert PASSWORD not in text


def test_a_login_is_sent_unencrypted_only_to_this_machine_or_on_demand() -> None:
    """To another machine "if offered" means required: whoever removes the offer could read the password."""

    def starttls_of(url: str) -> str:
        with carrier_to(url) as carrier:
            return carrier.carrier.server.starttls

    assert starttls_of("smtp://ada:x@mail.example.org") == "require"
    assert starttls_of("smtp://ada:x@mail.example.org?starttls=if-offered") == "require"
    assert starttls_of("smtp://ada:x@mail.example.org?starttls=never") == "never"
    assert starttls_of("smtp://ada:x@127.0.0.1") == "if-offered"
    assert starttls_of("smtp://ada:x@[::1]") == "if-offered"
    assert starttls_of("smtp://mail.example.org") == "if-offered"


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_large_messages_go_out_encrypted(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, each of which is waited for, on either loop: the last one is not waited for in vain."""
    large = [replace(EMAIL, job_id=f"job-{n}", text="a line of text\n" * 10_000 * (n + 1)) for n in range(6)]
    options: dict[str, Any] = (
        {"tls_context": server_context()} if scheme == "smtp" else {"ssl_context": server_context()}
    )
    for loop in LOOPS:
        monkeypatch.setattr(smtp_server, "loop_name", loop)
        with real_server(**options) as (mailbox, url):
            its_url = url.replace("smtp", scheme).replace("127.0.0.1", "localhost")
            with carrier_to(f"{its_url}?connections=1", 5) as carrier:
                receipts = carrier.deliver_all(large)

        assert {receipt.outcome for receipt in receipts} == {"accepted"}
        assert len(mailbox.envelopes) == len(large)
