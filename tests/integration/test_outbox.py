"""The receivers that `postage up` runs, asked over real SMTP and HTTP."""

import email
import email.policy
import http.client
import json
import smtplib
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.sends.carrier import Carrier, Email, OutboundMessage, Outcome, Receipt, Sms
from worker.carriers import open_email, open_sms
from worker.local.sinks import MAIL_MAX, MailSink, SmsSink

LETTER = Email(
    job_id="job:1/0",
    from_name="Ada",
    from_address="ada@example.org",
    to=("bob@example.org",),
    cc=(),
    recipients=("bob@example.org", "hidden@example.org"),
    subject="Grüße",
    text="Hello Bob",
    html=None,
    reply_to=None,
    headers={},
)
TEXT = Sms(job_id="job:1/0", to="+12025550123", sender_id=None, text="Grüße", segments=1)


def deliver(carrier: Carrier, message: OutboundMessage) -> Receipt:
    """Hand `message` over, and write nothing down before."""
    return carrier.deliver(message, lambda: None)


def mail(receiver: MailSink, *letters: Email) -> list[Receipt]:
    with closing(open_email(receiver.url, 20)) as carrier:
        return [deliver(carrier, letter) for letter in letters]


def text(receiver: SmsSink, *texts: Sms) -> list[Receipt]:
    with closing(open_sms(receiver.url, 20)) as carrier:
        return [deliver(carrier, sms) for sms in texts]


def mails(folder: Path) -> list[Path]:
    return sorted((folder / "mail").iterdir())


def texts(folder: Path) -> list[Path]:
    return sorted((folder / "sms").iterdir())


def test_each_mail_is_kept_as_a_file(tmp_path: Path) -> None:
    """Its name tells when it came and for which job, and its first lines who was on the envelope."""
    with MailSink(tmp_path) as receiver:
        (receipt,) = mail(receiver, LETTER)

    (path,) = mails(tmp_path)
    assert path.match("20*-job%3A1%2F0-*.eml")
    assert receipt == Receipt(Outcome.ACCEPTED, reference=path.stem.rpartition("-")[2])
    kept = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert kept["Subject"] == "Grüße"
    assert kept["X-Envelope-From"] == "ada@example.org"
    assert kept["X-Envelope-To"] == "bob@example.org, hidden@example.org"


def test_a_mail_that_comes_twice_is_kept_twice(tmp_path: Path) -> None:
    """Duplicates are there to be seen, in the order they came in."""
    letters = [replace(LETTER, job_id=job_id) for job_id in ("job-2", "job-1", "job-2")]
    with MailSink(tmp_path) as receiver:
        mail(receiver, *letters)

    assert [path.name.split("Z-")[1][:5] for path in mails(tmp_path)] == ["job-2", "job-1", "job-2"]


def test_mails_with_addresses_beyond_ascii_are_taken(tmp_path: Path) -> None:
    """The receiver knows SMTPUTF8 (RFC 6531)."""
    with MailSink(tmp_path) as receiver:
        (receipt,) = mail(receiver, replace(LETTER, to=("jörg@example.org",), recipients=("jörg@example.org",)))

    assert receipt.outcome is Outcome.ACCEPTED
    assert "X-Envelope-To: jörg@example.org\r\n" in mails(tmp_path)[0].read_bytes().decode()


def test_large_mails_are_taken_up_to_the_limit(tmp_path: Path) -> None:
    """Two million characters of html fit, more than 32 MiB do not."""
    with MailSink(tmp_path) as receiver, smtplib.SMTP("127.0.0.1", receiver.port, timeout=20) as line:
        (receipt,) = mail(receiver, replace(LETTER, html="<p>ü</p>" * 250_000))
        line.ehlo()
        code, _ = line.mail("ada@example.org", [f"SIZE={MAIL_MAX + 1}"])

    assert receipt.outcome is Outcome.ACCEPTED
    assert code == 552
    assert len(mails(tmp_path)) == 1


@pytest.mark.parametrize("name", ["<../../etc/x@example.org>", "", "<" + "a" * 400 + "@x>", "<\xe9@x>"])
def test_no_message_id_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """A file's name is made from it, whoever made it."""
    head = f"Message-ID: {name}\r\n\r\n.\r\n".encode()
    with (
        MailSink(tmp_path) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port)) as line,
        line.makefile("rwb") as talk,
    ):
        for said in (b"", b"HELO x\r\n", b"MAIL FROM:<a@b.c>\r\n", b"RCPT TO:<a@b.c>\r\n", b"DATA\r\n", head):
            talk.write(said)
            talk.flush()
            assert talk.readline()[:1] in (b"2", b"3")

    assert [path.parent for path in tmp_path.rglob("*.eml")] == [tmp_path / "mail"]


@pytest.mark.parametrize("kind", [MailSink, SmsSink])
def test_a_receiver_can_begin_again_on_its_port(tmp_path: Path, kind: type[MailSink] | type[SmsSink]) -> None:
    """The end is clean: nobody listens any more, and the port is free for the next."""
    with kind(tmp_path) as receiver:
        port = receiver.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    with kind(tmp_path, port) as again:
        assert again.port == port
        with pytest.raises(OSError, match="in use"):
            kind(tmp_path, port)


def test_a_worker_that_stays_connected_is_served_by_the_next_receiver(tmp_path: Path) -> None:
    """The end of a receiver ends its connections, and the carriers notice."""
    with MailSink(tmp_path) as mail_receiver, SmsSink(tmp_path) as sms_receiver:
        ports = mail_receiver.port, sms_receiver.port
        by_mail, by_sms = open_email(mail_receiver.url, 20), open_sms(sms_receiver.url, 20)
        deliver(by_mail, LETTER)
        deliver(by_sms, TEXT)
    with closing(by_mail), closing(by_sms), MailSink(tmp_path, ports[0]), SmsSink(tmp_path, ports[1]):
        assert deliver(by_mail, LETTER).outcome is Outcome.ACCEPTED
        assert deliver(by_sms, replace(TEXT, job_id="job-2")).outcome is Outcome.ACCEPTED

    assert (len(mails(tmp_path)), len(texts(tmp_path))) == (2, 2)


def test_each_text_is_kept_as_a_file(tmp_path: Path) -> None:
    """All that was posted, and the id it got."""
    with SmsSink(tmp_path) as receiver:
        (receipt,) = text(receiver, TEXT)

    (path,) = texts(tmp_path)
    assert path.match("20*-job%3A1%2F0-*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept.pop("received_at")
    assert kept == {
        "id": "job:1/0",
        "to": "+12025550123",
        "from": None,
        "text": "Grüße",
        "segments": 1,
        "reference": receipt.reference,
        "idempotency_key": "job:1/0",
    }


def test_a_text_that_comes_twice_is_kept_once(tmp_path: Path) -> None:
    """The same key gets the first answer, from a receiver that was started again too."""
    with SmsSink(tmp_path) as receiver:
        first, second = text(receiver, TEXT, TEXT)
    with SmsSink(tmp_path) as again:
        (third,) = text(again, TEXT)

    assert first == second == third
    assert len(texts(tmp_path)) == 1


def test_a_text_that_comes_many_times_at_once_is_kept_once(tmp_path: Path) -> None:
    """Nobody overtakes the first."""
    with (
        SmsSink(tmp_path) as receiver,
        closing(open_sms(receiver.url, 20)) as carrier,
        ThreadPoolExecutor(8) as threads,
    ):
        receipts = list(threads.map(deliver, [carrier] * 50, [TEXT] * 50))

    assert len({receipt.reference for receipt in receipts}) == 1
    assert len(texts(tmp_path)) == 1


@pytest.fixture
def line(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    with SmsSink(tmp_path) as receiver:
        connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=20)
        with closing(connection):
            yield connection


def post(line: http.client.HTTPConnection, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
    line.request("POST", "/", body, dict(headers))
    answer = line.getresponse()
    return answer.status, json.loads(answer.read())


def test_texts_without_a_key_are_all_kept(line: http.client.HTTPConnection, tmp_path: Path) -> None:
    """Nothing tells them apart, or the same."""
    first, second = post(line, b"{}", {}), post(line, b"{}", {})

    assert (first[0], second[0]) == (200, 200)
    assert first != second
    assert len(texts(tmp_path)) == 2


@pytest.mark.parametrize("body", [b"", b"text", b"[]", b"\xff", b"{", b"[" * 60_000])
def test_what_is_no_json_object_is_refused(line: http.client.HTTPConnection, tmp_path: Path, body: bytes) -> None:
    """And the line still serves the next request."""
    assert post(line, body, {"Idempotency-Key": "k"})[0] == 400
    assert texts(tmp_path) == []
    assert post(line, b"{}", {"Idempotency-Key": "k"})[0] == 200


@pytest.mark.parametrize("length", ["many", "-1", str(2**40)])
def test_a_length_that_cannot_be_is_refused(line: http.client.HTTPConnection, length: str) -> None:
    """Nobody waits for what will not come."""
    assert post(line, b"{}", {"Content-Length": length})[0] == 400


def test_other_files_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    """The folder is there to be looked at, and somebody may leave something."""
    (tmp_path / "sms").mkdir()
    for number, content in enumerate(["{}", "[]", "no json", '{"idempotency_key": null, "reference": "x"}']):
        (tmp_path / "sms" / f"{number}.json").write_text(content)
    with SmsSink(tmp_path) as receiver:
        (receipt,) = text(receiver, TEXT)

    assert receipt.outcome is Outcome.ACCEPTED
