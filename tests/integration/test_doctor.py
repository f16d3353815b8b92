"""`postage doctor`: each fault is a sentence with a cure, and one check hides no other."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis

from models.errors import OperatorError
from tests.integration.smtp_server import LoopbackController
from worker import doctor
from worker.app import PostageApp, create_app
from worker.cli.main import postage
from worker.doctor import Found, examine
from worker.settings import Settings

SECRET = "s3cret-word"


@pytest.fixture
def app(sqlite_url: str, valkey_url: str, tmp_path: Path) -> Iterator[PostageApp]:
    app = create_app(Settings(database_url=sqlite_url, broker_url=valkey_url, var=tmp_path / "var"))
    yield app
    app.close_context()


def test_a_check_that_hangs_or_breaks_hides_no_other(app: PostageApp) -> None:
    def refuse(_: PostageApp) -> Found:
        raise OperatorError("Do this.")

    hangs = threading.Event()
    checks = {
        "hangs": lambda _: Found(well=str(hangs.wait())),
        "breaks": lambda _: Found(well=str(1 // 0)),
        "refuses": refuse,
        "well": lambda _: Found(well="All is well."),
    }

    found = examine(app, checks, within_s=0.2)
    hangs.set()

    assert [(finding.check, finding.state) for finding in found] == [
        ("hangs", "fault"), ("breaks", "fault"), ("refuses", "fault"), ("well", "ok"),
    ]  # fmt: skip
    assert [finding.detail for finding in found[1:3]] == [
        "This could not be checked: ZeroDivisionError, integer division or modulo by zero.",
        "Do this.",
    ]


def test_jobs_on_a_queue_that_nobody_consumes_are_found(app: PostageApp, redis: Redis) -> None:
    """As those of a producer that names no queue. Our own lists, and answers of remote control, are known."""
    redis.rpush("celery", "job", "job")
    for known in ("email", "email\x06\x163", "postage.line:email:mary", "x.reply.celery.pidbox"):
        redis.rpush(known, "job")
    redis.set("celery-task-meta-1", "{}")

    [sentence] = doctor.check_queues(app).faults

    assert sentence.startswith("Jobs wait on the queue celery, which no worker consumes (2): producers must name one")


def test_only_what_is_under_the_key_prefix_is_looked_at(sqlite_url: str, valkey_url: str, redis: Redis) -> None:
    app = create_app(Settings(database_url=sqlite_url, broker_url=valkey_url, key_prefix="shop-1:"))
    redis.rpush("shop-1:celery", "job")
    redis.rpush("shop-1:email", "job")
    redis.rpush("of somebody else", "job")

    [sentence] = doctor.check_queues(app).faults

    assert sentence.startswith("Jobs wait on the queue celery, which no worker consumes (1)")


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as client:
        client.flushdb()
        yield client
        client.flushdb()


def test_everything_that_is_away_is_named_without_a_password(tmp_path: Path) -> None:
    away = {
        "POSTAGE_DATABASE_URL": f"postgresql://postage:{SECRET}@127.0.0.1:1/money",
        "POSTAGE_BROKER_URL": f"redis://:{SECRET}@127.0.0.1:1/0",
        "POSTAGE_SMTP_URL": f"smtp://mary:{SECRET}@127.0.0.1:1",
        "POSTAGE_SMS_URL": f"http://mary:{SECRET}@127.0.0.1:1/",
        "POSTAGE_VAR": str(tmp_path / "var"),
    }

    shown = CliRunner(env=away).invoke(postage, ["doctor", "--json"])

    faults = {finding["check"] for finding in json.loads(shown.stdout)["findings"] if finding["state"] == "fault"}
    assert shown.exit_code == 1
    assert faults == {"database", "broker", "email", "sms", "workers", "beat", "queues"}
    assert SECRET not in shown.output
    assert list(tmp_path.iterdir()) == []


def test_a_mail_server_is_greeted_and_nothing_is_sent() -> None:
    commands: list[str] = []

    class Server:
        async def handle_EHLO(self, _server: Any, session: Any, _envelope: Any, hostname: str, answers: Any) -> Any:  # noqa: N802
            session.host_name = hostname
            commands.append("EHLO")
            return answers

        async def handle_QUIT(self, *_: Any) -> str:  # noqa: N802
            commands.append("QUIT")
            return "221 Bye"

        async def handle_MAIL(self, *_: Any) -> str:  # noqa: N802
            commands.append("MAIL")
            return "250 OK"

    controller = LoopbackController(Server())
    controller.start()
    try:
        app = create_app(Settings(smtp_url=f"smtp://127.0.0.1:{controller.port}?starttls=never"))
        found = doctor.check_email(app)
    finally:
        controller.stop()

    assert found == Found(well="The mail server takes the login.")
    assert commands == ["EHLO", "QUIT"]


def test_carriers_that_send_nowhere_are_a_warning(app: PostageApp) -> None:
    assert "every message is charged" in doctor.check_email(app).warnings[0]
    assert "every message is charged" in doctor.check_sms(app).warnings[0]


def test_a_database_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    app = create_app(Settings(database_url=f"sqlite:///{tmp_path}/none.db"))

    assert "`postage migrate` makes one" in doctor.check_database(app).faults[0]
    assert list(tmp_path.iterdir()) == []


def test_files_that_others_may_read_are_named(app: PostageApp) -> None:
    app.settings.var.mkdir(mode=0o700)
    (app.settings.var / "postage.db").touch(mode=0o644)

    [sentence] = doctor.check_files(app).warnings

    assert "postage.db: chmod -R go-rwx" in sentence
