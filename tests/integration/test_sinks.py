"""The local mail and SMS sinks that `postage up` runs, over real SMTP and HTTP."""

import email
import email.policy
import json
import smtplib
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from models.sends.carrier import Carrier, Email, OutboundMessage, Outcome, Receipt, Sms
from tests.fakes import LOOP
from worker.carrier_urls import parse_carrier_url
from worker.carriers.sms_gateway import SmsGateway
from worker.carriers.smtp import SmtpCarrier
from worker.local.sinks import MAIL_MAX, MailSink, SmsSink

EMAIL = Email(
    job_id="job:1/0",
    org_id=7,
    from_name="Ada",
    from_address="ada@example.org",
    to=("bob@example.org",),
    cc=(),
    recipients=("bob@example.org", "hidden@example.org"),
    subject="Grüße",
    text="Hello Bob",
    html=None,
    reply_to=(),
    headers={},
)
TEXT = Sms(job_id="job:1/0", org_id=7, to="+12025550123", sender_id=None, text="Grüße", segments=1)


async def note_nothing() -> None:
    """Note no handover."""


def carrier_at(url: str) -> Carrier:
    """Give the carrier of a sink."""
    address = parse_carrier_url(url)
    if address.scheme == "smtp":
        return SmtpCarrier(address, timeout_s=20)
    return SmsGateway(address, timeout_s=20)


def deliver(carrier: Carrier, message: OutboundMessage) -> Receipt:
    """Hand a message over, and note nothing before."""
    return LOOP.run(carrier.deliver(message, note_nothing)).result(30)


@contextmanager
def opened(url: str) -> Iterator[Carrier]:
    """Give the carrier of a sink, closed in the end."""
    carrier = carrier_at(url)
    yield carrier
    LOOP.run(carrier.close()).result(30)


def send_to(url: str, *messages: OutboundMessage) -> list[Receipt]:
    """Hand messages over to a sink, one after the other."""
    with opened(url) as carrier:
        return [deliver(carrier, message) for message in messages]


def send_emails(sink: MailSink, *emails: Email) -> list[Receipt]:
    return send_to(sink.url, *emails)


def send_texts(sink: SmsSink, *texts: Sms) -> list[Receipt]:
    return send_to(sink.url, *texts)


def kept_emails(folder: Path) -> list[Path]:
    return sorted((folder / "mail").iterdir())


def kept_texts(folder: Path) -> list[Path]:
    return sorted((folder / "sms").iterdir())


def test_each_email_is_kept_as_a_file(tmp_path: Path) -> None:
    """Its name contains the time and the job id, and its first lines the envelope."""
    with MailSink(tmp_path) as sink:
        (receipt,) = send_emails(sink, EMAIL)

    (path,) = kept_emails(tmp_path)
    assert path.match("20*-job%3A1%2F0-*.eml")
    assert receipt == Receipt(Outcome.ACCEPTED, reference=path.stem.rpartition("-")[2])
    kept = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert kept["Subject"] == "Grüße"
    assert kept["X-Envelope-From"] == "ada@example.org"
    assert kept["X-Envelope-To"] == "bob@example.org, hidden@example.org"


def test_an_email_that_comes_twice_is_kept_twice(tmp_path: Path) -> None:
    """Duplicates can be seen, in the order in which they came."""
    emails = [replace(EMAIL, job_id=job_id) for job_id in ("job-2", "job-1", "job-2")]
    with MailSink(tmp_path) as sink:
        send_emails(sink, *emails)

    assert [path.name.split("Z-")[1][:5] for path in kept_emails(tmp_path)] == ["job-2", "job-1", "job-2"]


def test_addresses_beyond_ascii_are_accepted(tmp_path: Path) -> None:
    """The sink knows SMTPUTF8 (RFC 6531)."""
    with MailSink(tmp_path) as sink:
        (receipt,) = send_emails(sink, replace(EMAIL, to=("jörg@example.org",), recipients=("jörg@example.org",)))

    assert receipt.outcome is Outcome.ACCEPTED
    assert "X-Envelope-To: jörg@example.org\r\n" in kept_emails(tmp_path)[0].read_bytes().decode()


def test_large_emails_are_accepted_up_to_the_limit(tmp_path: Path) -> None:
    """Two million characters of HTML fit, more than 32 MiB do not."""
    with MailSink(tmp_path) as sink, smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as connection:
        (receipt,) = send_emails(sink, replace(EMAIL, html="<p>ü</p>" * 250_000))
        connection.ehlo()
        code, _ = connection.mail("ada@example.org", [f"SIZE={MAIL_MAX + 1}"])

    assert receipt.outcome is Outcome.ACCEPTED
    assert code == 552
    assert len(kept_emails(tmp_path)) == 1


@pytest.mark.parametrize("name", ["<../../etc/x@example.org>", "", "<" + "a" * 400 + "@x>", "<\xe9@x>"])
def test_no_message_id_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """The name of the file is made from it, and anybody may have written it."""
    head = f"Message-ID: {name}\r\n\r\n.\r\n".encode()
    with (
        MailSink(tmp_path) as sink,
        socket.create_connection(("127.0.0.1", sink.port)) as connection,
        connection.makefile("rwb") as talk,
    ):
        for command in (b"", b"HELO x\r\n", b"MAIL FROM:<a@b.c>\r\n", b"RCPT TO:<a@b.c>\r\n", b"DATA\r\n", head):
            talk.write(command)
            talk.flush()
            assert talk.readline()[:1] in (b"2", b"3")

    assert [path.parent for path in tmp_path.rglob("*.eml")] == [tmp_path / "mail"]


@pytest.mark.parametrize("kind", [MailSink, SmsSink])
def test_a_sink_can_be_started_again_on_its_port(tmp_path: Path, kind: type[MailSink] | type[SmsSink]) -> None:
    """Nothing listens on the port any more once a sink is closed."""
    with kind(tmp_path) as sink:
        port = sink.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    with kind(tmp_path, port) as again:
        assert again.port == port
        with pytest.raises(OSError, match="in use"):
            kind(tmp_path, port)


def test_a_worker_that_stays_connected_is_served_by_the_next_sink(tmp_path: Path) -> None:
    """A sink ends its connections when it is closed, and the carriers notice."""
    with MailSink(tmp_path) as mail_sink, SmsSink(tmp_path) as sms_sink:
        ports = mail_sink.port, sms_sink.port
        by_mail, by_sms = carrier_at(mail_sink.url), carrier_at(sms_sink.url)
        deliver(by_mail, EMAIL)
        deliver(by_sms, TEXT)
    with MailSink(tmp_path, ports[0]), SmsSink(tmp_path, ports[1]):
        assert deliver(by_mail, EMAIL).outcome is Outcome.ACCEPTED
        assert deliver(by_sms, replace(TEXT, job_id="job-2")).outcome is Outcome.ACCEPTED
        for carrier in (by_mail, by_sms):
            LOOP.run(carrier.close()).result(30)

    assert (len(kept_emails(tmp_path)), len(kept_texts(tmp_path))) == (2, 2)


def test_each_text_is_kept_as_a_file(tmp_path: Path) -> None:
    """It contains all that was posted, and the id that it got."""
    with SmsSink(tmp_path) as sink:
        (receipt,) = send_texts(sink, TEXT)

    (path,) = kept_texts(tmp_path)
    assert path.match("20*-job%3A1%2F0@7-*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept.pop("received_at")
    assert kept == {
        "id": "job:1/0",
        "to": "+12025550123",
        "from": None,
        "text": "Grüße",
        "segments": 1,
        "reference": receipt.reference,
        "idempotency_key": "job:1/0@7",
    }


def test_a_text_that_comes_twice_is_kept_once(tmp_path: Path) -> None:
    """The same key gets the first answer, also from a sink that was started again."""
    with SmsSink(tmp_path) as sink:
        first, second = send_texts(sink, TEXT, TEXT)
    with SmsSink(tmp_path) as again:
        (third,) = send_texts(again, TEXT)

    assert first == second == third
    assert len(kept_texts(tmp_path)) == 1


def test_texts_of_one_job_id_in_two_organizations_are_both_kept(tmp_path: Path) -> None:
    """Neither organization can know, or take, the ids of the other."""
    with SmsSink(tmp_path) as sink:
        send_texts(sink, TEXT, replace(TEXT, org_id=8, to="+12025550199"))

    assert {json.loads(path.read_text(encoding="utf-8"))["to"] for path in kept_texts(tmp_path)} == {
        "+12025550123",
        "+12025550199",
    }


def test_a_text_that_comes_many_times_at_the_same_time_is_kept_once(tmp_path: Path) -> None:
    """All get the answer to the first."""
    with (
        SmsSink(tmp_path) as sink,
        opened(sink.url) as carrier,
        ThreadPoolExecutor(8) as threads,
    ):
        receipts = list(threads.map(deliver, [carrier] * 50, [TEXT] * 50))

    assert len({receipt.reference for receipt in receipts}) == 1
    assert len(kept_texts(tmp_path)) == 1


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[HTTPConnection]:
    """Give a connection to an SMS sink."""
    with (
        SmsSink(tmp_path) as sink,
        closing(HTTPConnection("127.0.0.1", sink.port, timeout=20)) as connection,
    ):
        yield connection


def post(connection: HTTPConnection, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
    """Post to an SMS sink; gives status and answer."""
    connection.request("POST", "/", body, dict(headers))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_texts_without_a_key_are_all_kept(connection: HTTPConnection, tmp_path: Path) -> None:
    """Nothing tells whether they are the same."""
    first, second = post(connection, b"{}", {}), post(connection, b"{}", {})

    assert (first[0], second[0]) == (200, 200)
    assert first != second
    assert len(kept_texts(tmp_path)) == 2


@pytest.mark.parametrize("body", [b"", b"text", b"[]", b"\xff", b"{", b"[" * 60_000])
def test_a_body_that_is_no_json_object_is_refused(connection: HTTPConnection, tmp_path: Path, body: bytes) -> None:
    """The connection can still be used for the next request."""
    assert post(connection, body, {"Idempotency-Key": "k"})[0] == 400
    assert kept_texts(tmp_path) == []
    assert post(connection, b"{}", {"Idempotency-Key": "k"})[0] == 200


@pytest.mark.parametrize("length", ["many", "-1", str(2**40)])
def test_an_impossible_content_length_is_refused(connection: HTTPConnection, length: str) -> None:
    """The sink does not wait for what will not come."""
    assert post(connection, b"{}", {"Content-Length": length})[0] == 400


def test_other_files_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    """People look into the folder, and may leave something there."""
    (tmp_path / "sms").mkdir()
    for number, content in enumerate(["{}", "[]", "no json", '{"idempotency_key": null, "reference": "x"}']):
        (tmp_path / "sms" / f"{number}.json").write_text(content)
    with SmsSink(tmp_path) as sink:
        (receipt,) = send_texts(sink, TEXT)

    assert receipt.outcome is Outcome.ACCEPTED
