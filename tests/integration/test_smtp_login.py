"""How the SMTP carrier logs in: mechanisms, tokens, and what a refusal means."""

import base64
import hmac
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from structlog.testing import capture_logs

from models.sends.carrier import Outcome
from tests.integration.smtp_server import (
    CLOSE,
    EMAIL,
    HANG,
    Replies,
    ScriptedServer,
    carrier_to,
    real_server,
)
from tests.integration.tls import server_context

USER, PASSWORD = "ada@example.org", "pass:w/rd"
LOGIN = "ada%40example.org:pass%3Aw%2Frd"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def offering(*mechanisms: str, **replies: str | list[str]) -> Replies:
    return {"EHLO": f"250-test\r\n250 AUTH {' '.join(mechanisms)}", "AUTH": "235 2.7.0 welcome", **replies}


def commands(server: ScriptedServer) -> list[str]:
    """Give what was sent between the greeting and the first message."""
    sent = server.commands[1:]
    return sent[: next((n for n, command in enumerate(sent) if command.startswith(("MAIL", "QUIT"))), len(sent))]


@contextmanager
def server_with(script: Replies, login: str = LOGIN, options: str = "") -> Iterator[tuple[ScriptedServer, str]]:
    """Give a server, and its URL with a login."""
    with ScriptedServer(script) as server:
        yield server, server.url.replace("//", f"//{login}@") + options


@pytest.mark.parametrize(
    ("offered", "options", "expected"),
    [
        ("PLAIN LOGIN CRAM-MD5", "", "AUTH CRAM-MD5"),
        ("LOGIN PLAIN", "", f"AUTH PLAIN {b64(chr(0) + USER + chr(0) + PASSWORD)}"),
        ("GSSAPI LOGIN", "", "AUTH LOGIN"),
        ("PLAIN LOGIN CRAM-MD5", "?auth=login", "AUTH LOGIN"),
        ("PLAIN LOGIN CRAM-MD5", "?auth=plain", f"AUTH PLAIN {b64(chr(0) + USER + chr(0) + PASSWORD)}"),
    ],
)
def test_the_best_way_of_what_is_offered_is_taken(offered: str, options: str, expected: str) -> None:
    """Without encryption the best is that which does not send the password; a setting may name another one."""
    with server_with(offering(offered), options=options) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert commands(server)[0] == expected


def test_an_old_server_may_write_auth_with_an_equals_sign() -> None:
    script: Replies = {"EHLO": "250-test\r\n250 AUTH=PLAIN", "AUTH": "235 ok"}
    with server_with(script) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert commands(server)[0].startswith("AUTH PLAIN")


def test_login_is_asked_for_user_and_password() -> None:
    script = offering("LOGIN", AUTH=f"334 {b64('Username:')}", ANSWER=[f"334 {b64('Password:')}", "235 ok"])
    with server_with(script) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert commands(server) == ["AUTH LOGIN", b64(USER), b64(PASSWORD)]


def test_cram_md5_proves_that_it_knows_the_password_without_telling_it() -> None:
    """RFC 2195 section 2."""
    challenge = "<1896.697170952@postoffice.example.net>"
    script = offering("CRAM-MD5", AUTH=f"334 {b64(challenge)}", ANSWER="235 ok")
    with server_with(script) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    digest = hmac.new(PASSWORD.encode(), challenge.encode(), "md5").hexdigest()
    assert commands(server) == ["AUTH CRAM-MD5", b64(f"{USER} {digest}")]


def test_a_challenge_that_cannot_be_read_ends_the_login() -> None:
    """`*` takes it back (RFC 4954 section 4)."""
    script = offering("CRAM-MD5", AUTH="334 !!!", ANSWER="501 5.7.0 cancelled")
    with server_with(script) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.OUR_FAULT

    assert commands(server) == ["AUTH CRAM-MD5", "*"]


def test_a_user_and_a_password_beyond_ascii_are_sent_as_utf8() -> None:
    """RFC 4616 section 2."""
    with server_with(offering("PLAIN"), "zo%C3%AB:pw%C3%B6rd") as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert commands(server) == [f"AUTH PLAIN {b64(chr(0) + 'zoë' + chr(0) + 'pwörd')}"]


def test_a_way_that_is_too_weak_for_the_user_is_followed_by_the_next() -> None:
    """534 (RFC 4954 section 6). What is simply refused is not tried in another way: it would lock the account."""
    script = offering("CRAM-MD5", "PLAIN", AUTH=["534 5.7.9 too weak", "235 ok"])
    with server_with(script) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert [command.split()[1] for command in commands(server)] == ["CRAM-MD5", "PLAIN"]


@pytest.mark.parametrize(
    ("reply", "outcome", "is_failing"),
    [
        ("535 5.7.8 wrong password", Outcome.OUR_FAULT, False),
        ("534 5.7.9 too weak", Outcome.OUR_FAULT, False),
        ("538 5.7.11 encrypt first", Outcome.OUR_FAULT, False),
        ("454 4.7.0 try again later", Outcome.NOT_NOW, True),
        ("421 4.7.0 bye", Outcome.NOT_NOW, True),
        ("what?", Outcome.NOT_NOW, True),
        (CLOSE, Outcome.NOT_NOW, True),
        (HANG, Outcome.NOT_NOW, True),
    ],
)
def test_what_a_refused_login_means(reply: str, outcome: Outcome, is_failing: bool) -> None:
    """A refusal for good is for what is wrong with us, anything else for what is wrong with the server."""
    with server_with(offering("PLAIN", AUTH=reply)) as (_, url), carrier_to(url, timeout_s=0.3) as carrier:
        receipt = carrier.deliver(EMAIL)

    assert (receipt.outcome, receipt.is_failing) == (outcome, is_failing)
    assert "ada" not in receipt.detail


def test_a_server_that_offers_no_way_that_is_known_is_our_fault() -> None:
    with server_with(offering("GSSAPI")) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.OUR_FAULT

    assert server.messages == []


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize("reply", ["530 5.7.0 log in first", "535 5.7.8 no", "538 5.7.11 encrypt", "550 5.7.8 no"])
def test_a_message_that_is_not_taken_without_a_login_is_our_fault(step: str, reply: str) -> None:
    """The recipients are not to blame."""
    with ScriptedServer({step: reply}) as server, carrier_to(server.url) as carrier:
        receipt = carrier.deliver(EMAIL)

    if (step, reply[:3]) == ("RCPT", "550"):
        assert receipt.outcome is Outcome.NEVER
    else:
        assert (receipt.outcome, receipt.refused) == (Outcome.OUR_FAULT, {})


def test_a_fault_is_found_before_anything_is_sent() -> None:
    with server_with(offering("PLAIN", AUTH=["535 5.7.8 no", "235 ok"])) as (server, url), carrier_to(url) as carrier:
        assert carrier.find_fault() == "The mail server refused Postage's login (535 5.7.8)."
        assert carrier.find_fault() is None

    assert server.commands[-1] == "QUIT"


# -- tokens -----------------------------------------------------------------------------------------------------------


def shown(token: str) -> str:
    return f"AUTH XOAUTH2 {b64(f'user={USER}{chr(1)}auth=Bearer {token}{chr(1)}{chr(1)}')}"


def printing(*lines: str) -> str:
    """Give the option for a command that writes these lines."""
    program = "; ".join(f"print({line!r})" for line in lines)
    return "?token_command=" + quote(f'{sys.executable} -c "{program}"')


def test_a_token_is_read_from_a_file(tmp_path: Path) -> None:
    """It is read anew for each connection, so that whoever renews it only writes the file."""
    file = tmp_path / "token"
    file.write_text("first\n")
    options = f"?token_file={file}&messages=1"
    with server_with(offering("PLAIN", "XOAUTH2"), "ada%40example.org", options) as (server, url):
        with carrier_to(url) as carrier:
            carrier.deliver(EMAIL)
            file.write_text("second\n")
            carrier.deliver(EMAIL)

        assert [command for command in server.commands if "XOAUTH2" in command] == [shown("first"), shown("second")]


@pytest.mark.parametrize("lines", [["abc.DEF-123"], ['{"access_token": "abc.DEF-123", "expires_in": 3600}']])
def test_a_token_is_what_a_command_writes(lines: list[str], tmp_path: Path) -> None:
    """Alone, or as token endpoints answer (RFC 6749 section 5.1). The command runs once for many connections."""
    program = tmp_path / "token"
    program.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho '{lines[0]}'\n")
    program.chmod(0o700)
    options = f"?token_command={program}&messages=1&connections=3"
    with server_with(offering("XOAUTH2"), "ada%40example.org", options) as (server, url), carrier_to(url) as carrier:
        receipts = carrier.deliver_all([EMAIL] * 6)

    assert {receipt.outcome for receipt in receipts} == {Outcome.ACCEPTED}
    assert {command for command in server.commands if "XOAUTH2" in command} == {shown("abc.DEF-123")}
    assert (tmp_path / "runs").read_text().count("run") == 1


def test_an_expired_token_is_asked_for_again(tmp_path: Path) -> None:
    """A minute before its end."""
    program = tmp_path / "token"
    program.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\necho \'{{"access_token": "a", "expires_in": 60}}\'\n')
    program.chmod(0o700)
    options = f"?token_command={program}&messages=1"
    with server_with(offering("XOAUTH2"), "ada%40example.org", options) as (_, url), carrier_to(url) as carrier:
        carrier.deliver(EMAIL)
        carrier.deliver(EMAIL)

    assert (tmp_path / "runs").read_text().count("run") == 2


def test_a_refused_token_is_replaced_once(tmp_path: Path) -> None:
    """The refusal is a challenge with its reason, to which the answer is empty; then the login is over."""
    program = tmp_path / "token"
    program.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho token-$(wc -l < {tmp_path}/runs)\n")
    program.chmod(0o700)
    script = offering("XOAUTH2", AUTH=[f"334 {b64('401')}", "235 ok"], ANSWER="535 5.7.8 no")
    options = f"?token_command={program}"
    with server_with(script, "ada%40example.org", options) as (server, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

    assert commands(server) == [shown("token-1"), "", shown("token-2")]


def test_a_token_that_is_refused_and_not_replaced_is_our_fault(tmp_path: Path) -> None:
    """The same one is not shown twice."""
    file = tmp_path / "token"
    file.write_text("old")
    with server_with(offering("XOAUTH2", AUTH="535 5.7.8 no"), "ada%40example.org", f"?token_file={file}") as (
        server,
        url,
    ):
        with carrier_to(url) as carrier:
            assert carrier.deliver(EMAIL).outcome is Outcome.OUR_FAULT

        assert commands(server) == [shown("old")]


@pytest.mark.parametrize(
    "options",
    [
        "?token_file=/does/not/exist",
        "?token_file=/dev/zero",
        "?token_command=/does/not/exist",
        "?token_command=false",
        "?token_command=true",
        "?token_command=yes",
        "?token_command=sleep%20100",
        printing("two words"),
        printing("{}"),
        printing("t\u00f6ken"),
    ],
)
def test_a_token_that_cannot_be_had_is_our_fault(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that does not end is ended, and nothing that was read is repeated."""
    monkeypatch.setattr("worker.carriers.smtp_tokens.COMMAND_S", 0.3)
    with (
        server_with(offering("XOAUTH2"), "ada%40example.org", options) as (server, url),
        carrier_to(url) as carrier,
        capture_logs() as logs,
    ):
        receipt = carrier.deliver(EMAIL)

    assert receipt.outcome is Outcome.OUR_FAULT
    assert "token" in receipt.detail
    assert "ken" not in str(logs).replace("token", "")
    assert server.messages == []


def test_what_a_command_has_started_is_ended_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold the pipe open."""
    monkeypatch.setattr("worker.carriers.smtp_tokens.COMMAND_S", 0.3)
    options = "?token_command=" + quote("sh -c 'sleep 100 & sleep 100'")
    before = threading.active_count()
    with server_with(offering("XOAUTH2"), "ada%40example.org", options) as (_, url), carrier_to(url) as carrier:
        assert carrier.deliver(EMAIL).outcome is Outcome.OUR_FAULT

    assert threading.active_count() <= before + 1


# -- real servers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_a_real_server_takes_the_login_over_tls(mechanism: str) -> None:
    def only_ada(_server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
        return AuthResult(success=given == LoginPassword(USER.encode(), PASSWORD.encode()))

    options = {"tls_context": server_context(), "require_starttls": True}
    with real_server(**options, authenticator=only_ada, auth_required=True) as (mailbox, url):
        with carrier_to(url.replace("//", f"//{LOGIN}@") + f"?auth={mechanism}") as carrier:
            assert carrier.deliver(EMAIL).outcome is Outcome.ACCEPTED

        assert len(mailbox.envelopes) == 1
