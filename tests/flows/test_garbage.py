"""Messages on a queue that are no jobs: the worker survives each, and goes on with the next job."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.conftest import TEMPLATE
from tests.flows.deployment import Deployment
from tests.flows.jobs import email_job
from tests.flows.outside import Json
from tests.servers import PostgresServer, ValkeyServer

pytestmark = [pytest.mark.xdist_group("garbage"), pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Garbage:
    """A message that is not a task, or not as Celery writes it."""

    description: str
    body: str
    headers: Json = field(default_factory=lambda: {"task": "email.send", "id": str(uuid.uuid4()), "lang": "py"})
    content_type: str = "application/json"


GARBAGE: Final = (
    Garbage("broken JSON", '[[{"to": "x'),
    Garbage("text", "hello"),
    Garbage("nothing", ""),
    Garbage("half a character", '[["\\ud83d"], {}, {}]'),
    Garbage("deep nesting", "[" * 100_000 + "]" * 100_000),
    Garbage("deep nesting inside an argument", "[[" + "[" * 100_000 + "]" * 100_000 + "], {}, {}]"),
    Garbage("null", "null"),
    Garbage("a number", "42"),
    Garbage("no arguments", "[]"),
    Garbage("an object for arguments", '[{"sender": "x"}, {}, {}]'),
    Garbage("text for arguments", '["email", {}, {}]'),
    Garbage("null for arguments", "[null, null, null]"),
    Garbage("a list for keywords", "[[], [], {}]"),
    Garbage("an object for a body", '{"sender": "x"}'),
    Garbage("pickle", "cos\nsystem\n(S'exit 1'\ntR.", content_type="application/x-python-serialize"),
    Garbage("YAML", "!!python/object/apply:os.system ['exit 1']", content_type="application/x-yaml"),
    Garbage("an unknown content type", "hello", content_type="application/x-nothing"),
    Garbage("no headers", "[[{}], {}, {}]", headers={}),
    Garbage("no id", "[[{}], {}, {}]", headers={"task": "email.send"}),
    Garbage("an unknown task", "[[{}], {}, {}]", headers={"task": "email.sned", "id": "typo"}),
    Garbage("a task that is no text", "[[{}], {}, {}]", headers={"task": ["email.send"], "id": "list"}),
    Garbage("an id that is no text", "[[{}], {}, {}]", headers={"task": "email.send", "id": {"a": "b"}}),
    Garbage("an unreadable time", "[[{}], {}, {}]", headers={"task": "email.send", "id": "eta", "eta": "soon"}),
    Garbage("a huge id", "[[{}], {}, {}]", headers={"task": "email.send", "id": "x" * 100_000}),
    Garbage("an id that breaks lines", "[[{}], {}, {}]", headers={"task": "email.send", "id": "a\r\n\x00b\ud83d"}),
)


@pytest.fixture(scope="module")
def deployment_of_one_sender(
    migrated_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, str]]:
    """Give a deployment for garbage alone, and a user who sends."""
    folder = tmp_path_factory.mktemp("garbage")
    with (
        migrated_postgres.copy_of(TEMPLATE) as url,
        ValkeyServer(folder / "valkey") as broker,
        Deployment(folder, url, broker.url()) as deployment,
    ):
        _, member = deployment.people(email=2 * len(GARBAGE))
        yield deployment, member


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: garbage.description)
def test_a_worker_survives_a_message_that_is_no_job(
    deployment_of_one_sender: tuple[Deployment, str], garbage: Garbage
) -> None:
    """The job after it is sent by the same worker."""
    deployment, member = deployment_of_one_sender
    deployment.restart_worker(by_force=not deployment.is_idle())
    pid = deployment.worker.pid
    job_id = f"after-{garbage.description.replace(' ', '-')}"

    deployment.producer.publish("email", garbage.body, garbage.headers, garbage.content_type)
    deployment.send("email.send", email_job(job_id, member))
    deployment.wait_until_final(job_id)
    deployment.wait_until_idle()

    assert len(deployment.mail_server.mails_of(job_id)) == 1
    assert deployment.worker.is_running()
    assert deployment.producer.control("stats")["pid"] == pid
