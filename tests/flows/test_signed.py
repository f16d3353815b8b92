"""Producers that are not trusted alike: keys with bounds, on a worker whose queues must be signed."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError
from sqlalchemy import text

from models.messages.signatures import ProducerKey
from tasks.client import enqueue, producer_app
from tests.conftest import TEMPLATE
from tests.flows.deployment import Deployment, run, wait_until
from tests.flows.jobs import email_job, new_id
from tests.flows.outside import NOTHING_AFTERWARDS, QUEUES, Json, Producer, signed
from tests.servers import PostgresServer, ValkeyServer

pytestmark = pytest.mark.xdist_group("signed")

DOCUMENT = (Path(__file__).parents[2] / "docs/producers.md").read_text()

NewKey = Callable[..., tuple[str, str]]
"""Makes a key by the command, and gives its name and secret."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the keys and of the deployment."""
    return tmp_path_factory.mktemp("signed")


@pytest.fixture(scope="module")
def new_key(folder: Path) -> NewKey:
    def make(name: str, *bounds: str) -> tuple[str, str]:
        made = run("keys", "new", name, *bounds, "--json", cwd=folder, producer_keys=folder / "keys.json")
        assert made.code == 0, made.err
        return name, json.loads(made.out)["secret"]

    return make


@pytest.fixture(scope="module")
def signing(folder: Path, migrated_postgres: PostgresServer, new_key: NewKey) -> Iterator[Deployment]:
    """Give a deployment whose worker accepts only what is signed, with a producer that signs with a key for all."""
    key = new_key("all-of-it")
    with (
        ValkeyServer(folder / "valkey") as broker,
        migrated_postgres.copy_of(TEMPLATE) as url,
        Deployment(
            folder,
            url,
            broker.url(),
            beat=True,
            producer=Producer(broker.url(), key),
            producer_keys=folder / "keys.json",
            signed_queues="email,sms,bulk,billing,views,upkeep",
        ) as deployment,
    ):
        yield deployment


def test_only_signed_jobs_are_done_and_a_key_is_held_to_its_bounds(signing: Deployment, new_key: NewKey) -> None:
    owner, member = signing.people(email=100)
    stranger, _ = signing.people(email=100)
    organization = owner.replace("owner", "org")
    bound = new_key("bound", "--organization", organization, "--task", "email.send", "--task", "plans.save")
    of_member = new_key("of-member", "--sender", member)
    forged, unknown = ("bound", "another secret"), ("never-made", "another secret")
    plan = {"plan": new_id("plan"), "name": "P", "credits": {"email": 1, "sms": 0}, "price": 1, "currency": "EUR"}

    jobs = [email_job(new_id("mail"), sender) for sender in (owner, member, member)]
    for job, key in zip(jobs, (bound, bound, of_member), strict=True):
        put(signing, "email.send", job, key)
    refused = {
        put(signing, task, job, key): why
        for task, job, key, why in (
            ("email.send", email_job(new_id("mail"), owner), None, "must be signed"),
            ("email.send", email_job(new_id("mail"), owner), forged, "does not fit"),
            ("email.send", email_job(new_id("mail"), owner), unknown, "no key never-made"),
            ("email.send", email_job(new_id("mail"), owner), of_member, "some people only"),
            ("email.send", email_job(new_id("mail"), stranger), bound, "nobody there"),
            ("email.send", email_job(new_id("mail"), "never-saved"), bound, "nobody there"),
            ("plans.save", plan, bound, "one of its people"),
            ("users.erase", {"erasure_id": "e", "actor": owner, "user": member}, bound, "only for email.send"),
        )
    }

    charges = signing.wait_until_final(*(job["job_id"] for job in jobs))
    wait_until(lambda: len(signing.refusals(list(refused))) == len(refused), "all others are refused")
    for row in signing.refusals(list(refused)):
        assert row.reason == "not_permitted"
        assert refused[row.task_id] in row.detail
    assert {str(charge.state) for charge in charges.values()} == {"sent"}
    assert (signing.remaining(owner)["email"], signing.remaining(stranger)["email"]) == (97, 100)
    assert signing.findings() == []
    dead = run("dead", "list", "--json", cwd=signing.folder, **signing.settings)
    assert [task_id for task_id in refused if task_id in dead.out] == []  # a replay would be signed by Postage itself


def put(signing: Deployment, task: str, job: Json, key: tuple[str, str] | None) -> str:
    """Enqueue a job, signed with this key; gives its task id."""
    task_id = new_id("task")
    headers = {} if key is None else signed(key, task, task_id, [[job], {}, NOTHING_AFTERWARDS])
    signing.producer.app.send_task(task, args=[job], task_id=task_id, queue=QUEUES[task], headers=headers)
    return task_id


def test_what_postage_sends_itself_is_signed(signing: Deployment) -> None:
    """Attempts, bulk messages, retries after faults, and beat's rounds go on where all must be signed."""
    owner, _ = signing.people(email=100)
    put_off, faulty, bulk = new_id("put-off"), new_id("faulty"), new_id("bulk")
    signing.mail_server.will_answer(put_off, "451 4.3.0 Not now")
    signing.send("email.send", email_job(put_off, owner))
    recipients = [{"to": f"{number}@example.org"} for number in range(3)]
    content = {"sender": owner, "subject": "Hello", "text": "Hello!"}
    signing.send("email.send_many", {"job_id": bulk, "recipients": recipients, **content})
    signing.wait_until_final(put_off, bulk)

    with signing.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE charges RENAME TO charges_gone"))
    signing.send("email.send", email_job(faulty, owner))
    wait_until(lambda: "fault" in signing.worker.output, "the job meets a fault")
    with signing.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE charges_gone RENAME TO charges"))
    charges = signing.wait_until_final(put_off, faulty, bulk)

    assert [str(charges[job].state) for job in (put_off, faulty)] == ["sent", "sent"]
    assert [len(signing.mail_server.mails_of(job)) for job in (put_off, faulty)] == [1, 1]
    assert signing.remaining(owner)["email"] == 95


def test_a_refused_forgery_takes_no_id_and_leaves_nothing_to_be_replayed(signing: Deployment) -> None:
    owner, _ = signing.people(email=100)
    job: Json = email_job(new_id("mail"), owner)
    forger = Producer(str(signing.settings["broker_url"]))
    with forger:
        task_id = forger.send("email.send", job)
    wait_until(lambda: signing.refusals([task_id]), "the forgery is refused")

    signing.send("email.send", job)
    charges = signing.wait_until_final(job["job_id"])
    dead = run("dead", "list", "--json", cwd=signing.folder, **signing.settings)

    assert charges[job["job_id"]].state == "sent"
    assert task_id not in dead.out


def test_a_revoked_key_is_refused(signing: Deployment, new_key: NewKey, folder: Path) -> None:
    owner, _ = signing.people(email=100)
    key = new_key("soon-revoked")
    with Producer(str(signing.settings["broker_url"]), key) as producer:
        before = email_job(new_id("mail"), owner)
        producer.send("email.send", before)
        signing.wait_until_final(before["job_id"])
        revoked = run("keys", "revoke", "soon-revoked", cwd=folder, producer_keys=folder / "keys.json")

        def is_refused() -> bool:
            task_id = producer.send("email.send", email_job(new_id("mail"), owner))
            signing.wait_until_idle()
            return bool(signing.refusals([task_id]))

        wait_until(is_refused, "what the key signs is refused")

    listed = run("keys", "list", cwd=folder, producer_keys=folder / "keys.json")
    assert revoked.code == 0, revoked.err
    assert "soon-revoked" in listed.out
    assert key[1] not in listed.out


def test_the_snippet_of_the_documents_signs_as_it_must(signing: Deployment, new_key: NewKey) -> None:
    mary = {"user_id": "mary", "organization": "acme", "name": "Mary", "email": "mary@acme.example", "role": "admin"}
    signing.producer.do("roles.save", {"organization": "acme", "role": "admin", "rights": []})
    signing.producer.do("users.save", mary)
    [snippet] = re.findall(r"^```python\n(.*?)^```", section("Signed messages"), re.MULTILINE | re.DOTALL)
    _, secret = new_key("shop", "--organization", "acme", "--task", "email.send", "--sender", "mary")

    exec(snippet, {"BROKER_URL": signing.settings["broker_url"], "SECRET": secret})  # noqa: S102  the document's own

    def is_taken_for_hers() -> bool:
        return bool(signing.message("mary", "invoice-4711")["reason"] == "insufficient_credits")

    wait_until(is_taken_for_hers, "the job is refused for want of credits, and for nothing else")


def test_a_producer_that_may_only_push_enqueues_and_does_nothing_else(signing: Deployment, new_key: NewKey) -> None:
    owner, _ = signing.people(email=100)
    [recipe] = re.findall(r"^ACL SETUSER shop .*", section("Producers that may only push"), re.MULTILINE)
    signing.redis.execute_command(*recipe.split())
    url = str(signing.settings["broker_url"]).replace("redis://", "redis://shop:password@")
    name, secret = new_key("pusher")
    by_client, by_celery = (email_job(new_id("mail"), owner) for _ in range(2))

    with closing(producer_app(url)) as app:
        enqueue(app, [("email.send", by_client)], key=ProducerKey(name, secret))
    with Producer(url, (name, secret)) as producer:
        producer.send("email.send", by_celery, declare=[])
    signing.wait_until_final(by_client["job_id"], by_celery["job_id"])

    with Redis.from_url(url) as shop:
        for command in (
            ("LRANGE", "email", "0", "-1"),
            ("LPUSH", "billing", "{}"),
            ("SADD", "_kombu.binding.email", "x"),
            ("PUBLISH", "/0.celery.pidbox", "{}"),
            ("DEL", "email"),
            ("HGETALL", "unacked"),
            ("GET", "celery-task-meta-1"),
            ("EVAL", "return 1", "0"),
            ("KEYS", "*"),
        ):
            with pytest.raises(NoPermissionError):
                shop.execute_command(*command)


def section(title: str) -> str:
    """Give a section of docs/producers.md."""
    return DOCUMENT.partition(f"# {title}\n")[2].partition("\n##")[0]
