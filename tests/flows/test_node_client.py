"""The package for producers in Node: packed, installed alone into an empty folder, and used against a worker."""

import json
import os
import re
import shutil
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.sentinel import Sentinel

from models.messages.sends import Send
from models.messages.signatures import HEADER, ProducerKey
from models.messages.wire import MESSAGES
from tasks.client import producer_app
from tasks.job_ids import redacted_args
from tests.flows.deployment import Deployment, wait_until
from tests.integration.queued import body_of
from tests.servers import ValkeyServer, sentinels_of
from tests.unit.wire import EXAMPLES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "clients/node"

pytestmark = [
    pytest.mark.xdist_group("node-client"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node"),
]

ETA = datetime(2027, 1, 1, 10, 0, 0, 1, tzinfo=UTC)
PRODUCER = """
import { PostageClient } from "postage-client";
const [broker, owner, member] = process.argv.slice(2);
const postage = new PostageClient(broker);
const email = { sender: member, to: ["a@customer.example", "b@customer.example"], subject: "Grüße", text: "Hello" };
await postage.send("email.send", { ...email, job_id: "node-mail", cc: undefined }, { priority: 3 });
const soon = { eta: new Date(Date.now() + 100), expires: new Date(Date.now() + 3_600_000) };
await postage.send("email.send", { ...email, job_id: "node-soon" }, soon);
await postage.send("email.send", { ...email, job_id: "node-late" }, { expires: "2020-01-01T00:00:00Z" });
function* many() {
  const sms = { sender: member, to: "+4915112345671", text: "Hello" };
  for (let n = 0; n < 700; n++) yield ["sms.send", { ...sms, job_id: `node-${n}` }];
}
const ids = await postage.sendMany(many());
const order = { order_id: "node-order", buyer: owner, credits: { email: 1 }, amount: 1, currency: "EUR" };
console.log(JSON.stringify([
  new Set(ids).size,
  await postage.ask("credits.purchase", order),
  await postage.ask("credits.purchase", order),
  await postage.ask("credits.purchase", { order_id: "node-order-2", buyer: owner, plan: "none" }),
  await postage.ask("views.overview", { viewer: member }, { timeout: 20_000 }),
]));
await postage.close();
"""
EVERY_TASK = """
import { readFileSync } from "node:fs";
import { PostageClient } from "postage-client";
const [url, eta, id, secret] = process.argv.slice(2);
const postage = new PostageClient(url, { key: { id, secret } });
const options = { eta, priority: 5 };
await postage.sendMany(JSON.parse(readFileSync(0)).map(([task, job]) => [task, job, options]));
await postage.close();
"""
PUSHING = """
import { PostageClient } from "postage-client";
const postage = new PostageClient(process.argv[2]);
await postage.send("email.send", { job_id: "one", sender: "mary", to: "a@b.example", subject: "Hello", text: "Hello" });
console.log(JSON.stringify(await postage.ask("views.overview", { viewer: "mary" })));
await postage.close();
"""
WATCHED = """
import { createInterface } from "node:readline";
import { PostageClient } from "postage-client";
const [url, password] = process.argv.slice(2);
const postage = new PostageClient(url, { sentinelMaster: "mymaster", sentinelPassword: password });
const job = (n) => ["sms.send", { job_id: `job-${n}`, sender: "mary", to: "+4915112345671", text: "Hello" }];
let n = 0;
for await (const line of createInterface(process.stdin)) {
  try {
    if (line === "send") await postage.sendMany([job(n++), job(n++)]);
    const answer = line === "ask" ? await postage.ask("views.overview", { viewer: "mary" }) : null;
    console.log(JSON.stringify(answer));
  } catch (error) {
    console.log(JSON.stringify(String(error)));
  }
}
await postage.close();
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which the package is installed, from its tarball."""
    folder = tmp_path_factory.mktemp("node-client")
    packed = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", folder, PACKAGE], capture_output=True, text=True, check=True
    )
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    install = ["npm", "install", "--silent", f"./{packed.stdout.split()[-1]}"]
    if subprocess.run(install, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("npm finds no registry here")
    return folder


def written(folder: Path, program: str) -> Path:
    """Write a program into the folder."""
    path = folder / "program.js"
    path.write_text(program)
    return path


def node(folder: Path, program: str, *arguments: str, given: str = "") -> str:
    """Run a program in the folder to its end; gives what it printed."""
    ended = subprocess.run(
        ["node", written(folder, program), *arguments],
        input=given,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_it_sends_and_asks(folder: Path, deployment: Deployment, broker_url: str) -> None:
    owner, member = deployment.people(email=4, sms=700)

    count, order, again, refused, overview = json.loads(node(folder, PRODUCER, broker_url, owner, member))

    assert count == 700
    assert (order["status"], order["credits"]) == ("done", {"email": 1, "sms": 0})
    assert again == order
    assert (refused["reason"], refused["credits"]) == ("unknown_plan", None)
    assert set(refused) == set(order)
    assert (overview["owner"], overview["viewer"]) == (owner, member)
    deployment.wait_until_final("node-mail", "node-soon", *(f"node-{number}" for number in range(700)))
    assert deployment.remaining(owner) == {"email": 1, "sms": 0}
    [mail] = deployment.mail_server.mails_of("node-mail")
    assert (mail.content["Subject"], len(mail.recipients)) == ("Grüße", 2)
    assert deployment.message(member, "node-late")["reason"] == "expired"


def test_a_message_of_every_task_equals_that_of_celery(folder: Path, valkey_url: str) -> None:
    """Only ids, the language and the process differ, and where in the body JSON has spaces. It is signed besides."""
    key = ProducerKey("shop", "a secret")
    jobs = [(task, {"job_id": "one", **job} if is_send(task) else job) for task, job in EXAMPLES.items()]
    with Redis.from_url(valkey_url) as redis, producer_app(valkey_url) as app:
        node(folder, EVERY_TASK, valkey_url, ETA.isoformat(), key.id, key.secret, given=json.dumps(jobs))
        of_node = everything_queued(redis, key)
        redis.flushdb()
        for task, job in jobs:
            shown = redacted_args([job])
            app.send_task(task, [job], argsrepr=shown, eta=ETA, priority=5, ignore_result=True)
        of_celery = everything_queued(redis)

    assert sum(map(len, of_node.values())) == len(MESSAGES)
    assert of_node == of_celery


def is_send(task: str) -> bool:
    return issubclass(MESSAGES[task], Send)


def everything_queued(redis: Redis, key: ProducerKey | None = None) -> dict[str, list[Any]]:
    """Give every message by its list, without what differs for each message, and without its signature."""
    found = {}
    for name in redis.scan_iter(_type="list"):
        messages = [json.loads(text) for text in redis.lrange(name, 0, -1)]
        for message in messages:
            headers, properties = message["headers"], message["properties"]
            if key:
                signed = {"task": headers["task"], "task_id": headers["id"], "body": b64decode(message["body"])}
                assert key.has_signed(headers.pop(HEADER), **signed)
            ids = [headers.pop("id"), headers.pop("root_id"), properties.pop("correlation_id")]
            assert len(set(ids)) == 1
            for each in (ids[0], properties.pop("delivery_tag"), properties.pop("reply_to")):
                assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", each)
            assert headers.pop("lang") in ("py", "js")
            assert re.fullmatch(r"(gen)?[0-9]+@.+", headers.pop("origin"))
            message["body"] = body_of(message)
        found[name.decode()] = messages
    return found


def test_a_producer_that_may_only_push_and_read_answers_can_use_it(folder: Path, tmp_path: Path) -> None:
    """Its user of the broker has the rights that docs/producers.md gives it."""
    documented = (ROOT / "docs/producers.md").read_text().partition("### Producers that may only push")[2]
    [user] = re.findall(r"^ACL SETUSER shop .*", documented, re.MULTILINE)
    [reading] = re.findall(r"add `(%R~celery-task-meta.*?)`", documented)
    with ValkeyServer(tmp_path / "valkey") as broker, Redis.from_url(broker.url()) as admin:
        admin.execute_command(*user.split(), *reading.split(), "%W~views")
        url = broker.url().replace("//", "//shop:password@")
        answering = threading.Thread(target=answer_one, args=(admin,))
        answering.start()
        assert json.loads(node(folder, PUSHING, url)) == {"status": "done"}
        answering.join()
        assert admin.llen("email") == 1


def test_it_follows_a_broker_that_fails_over(folder: Path, tmp_path: Path) -> None:
    """A producer that was connected to the old one finds the new one."""
    with sentinels_of(tmp_path) as (master, watching):
        url = ";".join(f"sentinel://127.0.0.1:{sentinel.port}" for sentinel in watching)
        at = [("127.0.0.1", sentinel.port) for sentinel in watching]
        redis = Sentinel(at).master_for("mymaster")
        with conversation(folder, WATCHED, url) as say:
            assert say("send") is None
            assert redis.wait(1, 10_000) == 1, "the replica has every job"
            master.kill()
            wait_until(
                lambda: {one.ask()["port"] for one in watching}.isdisjoint({master.port}), "the replica takes over"
            )
            assert say("send") is None
            answering = threading.Thread(target=answer_one, args=(redis,))
            answering.start()
            assert say("ask") == {"status": "done"}
            answering.join()
            assert redis.llen("sms") == 4
        redis.close()


def answer_one(redis: Redis) -> None:
    """Answer one view as a worker would."""
    popped: Any = redis.brpop(["views"], 20)
    key = f"celery-task-meta-{json.loads(popped[1])['headers']['id']}"
    text = json.dumps({"status": "SUCCESS", "result": {"status": "done"}})
    redis.set(key, text)
    redis.publish(key, text)


@contextmanager
def conversation(folder: Path, program: str, *arguments: str) -> Iterator[Callable[[str], Any]]:
    """Run a program that answers lines; gives a function that says one, and returns what it answers."""
    command = ["node", written(folder, program), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def say(line: str) -> Any:
            print(line, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())  # type: ignore[union-attr]

        try:
            yield say
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_its_own_tests_pass(folder: Path, tmp_path: Path) -> None:
    tests = folder / "node_modules/postage-client/tests"
    shutil.copytree(PACKAGE / "tests", tests)
    with ValkeyServer(tmp_path / "valkey") as broker:
        ended = subprocess.run(
            ["node", "--test", tests],
            env={**os.environ, "BROKER_URL": broker.url(), "CERTIFICATES": str(ROOT / "tests/certificates")},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    assert ended.returncode == 0, ended.stdout
    assert "# pass 0" not in ended.stdout


def test_it_brings_one_package_and_no_tests(folder: Path) -> None:
    installed = {
        path.parent.relative_to(folder / "node_modules") for path in folder.rglob("node_modules/**/package.json")
    }

    assert {Path("postage-client"), Path("@redis/client")} >= {path for path in installed if "dist" not in path.parts}
    assert (folder / "node_modules/postage-client/README.md").is_file()


def test_the_example_in_the_documentation_works(folder: Path, valkey_url: str) -> None:
    section = (ROOT / "docs" / "producers.md").read_text().partition("## From Node")[2]
    [example] = re.findall(r"^```js\n(.*?)^```", section, re.MULTILINE | re.DOTALL)

    node(folder, example.replace("redis://127.0.0.1:6379/0", valkey_url))

    with Redis.from_url(valkey_url) as redis:
        assert [redis.llen(queue) for queue in ("email", "sms")] == [10_000, 1]
