"""Hundreds of jobs that no worker can run, on every task of the wire: each is refused, and the worker works on."""

import copy
import json
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from models.sends.charges import State
from tests.conftest import TEMPLATE
from tests.flows.house import Deployment, until
from tests.flows.outside import QUEUES, Json
from tests.servers import PostgresServer, ValkeyServer

pytestmark = [pytest.mark.xdist_group("house"), pytest.mark.timeout(180)]

SEED: Final = 20261123
EACH: Final = 10
"""A good job comes after so many bad ones."""

INJECTED: Final = "X-Injected: yes"
BEYOND_64_BITS: Final = 2**80
SURROGATE: Final = "half a character: \ud83d"


@dataclass(frozen=True)
class Bad:
    """A job that must be refused, and why."""

    task: str
    args: list[Any]
    what: str
    kwargs: Json = field(default_factory=dict)
    reason: str = "invalid_job"
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))


def good_jobs(owner: str, member: str) -> dict[str, Json]:
    """A job of each task that would be done. Every field that may be given is."""
    plan = {"plan": "bad-input-plan", "name": "Small", "credits": {"email": 1, "sms": 1}, "price": 1, "currency": "EUR"}
    view = {"viewer": owner, "of": "owner", "since": "2026-01-01", "until": "2027-01-01T00:00:00Z", "page": 1}
    email = {
        "job_id": "never-mail",
        "sender": member,
        "cc": ["bad.cc@customer.example"],
        "bcc": ["bad.bcc@customer.example"],
        "subject": "Hello",
        "text": "Hello",
        "html": "<p>Hello</p>",
        "reply_to": "bad.desk@customer.example",
        "headers": {"X-Campaign": "spring"},
    }
    return {
        "email.send": {**email, "to": ["bad@customer.example"]},
        "sms.send": {
            "job_id": "never-text",
            "sender": member,
            "to": "+4915100000000",
            "text": "Hello",
            "from": "Acme",
        },
        "email.send_many": {
            **email,
            "job_id": "never-mails",
            "recipients": [{"to": "bad.many@customer.example", "values": {"name": "Ada"}}],
        },
        "sms.send_many": {
            "job_id": "never-texts",
            "sender": member,
            "text": "Hello",
            "from": "Acme",
            "recipients": [{"to": "+4915100000000", "values": {"name": "Ada"}}],
        },
        "credits.purchase": {
            "order_id": "never-order",
            "buyer": member,
            "credits": {"email": 1, "sms": 1},
            "amount": 1,
            "currency": "EUR",
            "credit_to": "owner",
            "billing": {"name": "Acme"},
        },
        "credits.set_owner": {"change_id": "never-change", "actor": owner, "user": member, "owner": member},
        "users.save": {
            "user_id": "never-user",
            "organization": "never-org",
            "name": "Never",
            "email": "never@postage.example",
            "role": "member",
            "billing": {"name": "Never"},
        },
        "roles.save": {"organization": "never-org", "role": "member", "rights": ["edit_user"]},
        "plans.save": {**plan, "plan": "never-plan"},
        "views.overview": view,
        "views.usage": {**view, "by": "day"},
        "views.orders": view,
        "views.billing": view,
        "views.users": view,
        "views.message": {**view, "job_id": "never-mail"},
    }


MAY_BE_NULL: Final = {"job_id", "cc", "bcc", "text", "html", "reply_to", "headers", "from", "billing", "since", "until"}
MAY_BE_LEFT_OUT: Final = {*MAY_BE_NULL, "of", "page", "by", "values", "credit_to"}


def nested(levels: int) -> Any:
    """Lists in lists."""
    inner: Any = []
    for _ in range(levels):
        inner = [inner]
    return inner


WRONG_TYPES: Final[tuple[Any, ...]] = (
    True,
    False,
    -1,
    1.5,
    BEYOND_64_BITS,
    -BEYOND_64_BITS,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    {"a": {"b": "c"}},
    "",
    nested(300),
)
WRONG_STRINGS: Final[tuple[str, ...]] = (
    "nul \x00 in it",
    "bell \x07 in it",
    "escape \x1b[31m in it",
    SURROGATE,
    "x" * 20_000,
    f"line\r\n{INJECTED}",
    f"line\n{INJECTED}",
    "\x85next line",
)
FREE_TEXT: Final = {"text", "html"}
"""Fields in which a line break is as good as any character, and which may be long."""

Path = tuple[str | int, ...]


def leaves(value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field of an object and of those inside it."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*at, name), part
        yield from leaves(part, (*at, name))


def put(job: Json, at: Path, value: Any) -> Json:
    """A copy of the job with another value in one place."""
    made = copy.deepcopy(job)
    inner: Any = made
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    return made


def without(job: Json, at: Path) -> Json:
    """A copy of the job that lacks one field."""
    made = copy.deepcopy(job)
    inner: Any = made
    for name in at[:-1]:
        inner = inner[name]
    del inner[at[-1]]
    return made


def spoiled(task: str, job: Json, draw: random.Random) -> Iterator[tuple[str, Json]]:
    """The job made wrong in every way that is wrong wherever it is done: what was done, and the job."""
    yield "an unknown field", {**job, "colour": "red"}
    yield "an unknown field with a name that breaks lines", {**job, f"a\r\n{INJECTED}": "b"}
    yield "an unknown field whose name is half a character", {**job, SURROGATE: "b"}
    yield "an unknown field with a huge name", {**job, "n" * 5000: 1}
    for at, value in leaves(job):
        name = at[-1]
        where = f"{task} {'.'.join(map(str, at))}"
        free_key = len(at) > 1 and at[-2] in ("billing", "headers", "values")
        optional = name in MAY_BE_LEFT_OUT or "credits" in at[:-1]
        if isinstance(name, str) and not free_key and not optional:
            yield f"{where} left out", without(job, at)
        if isinstance(name, str) and name not in MAY_BE_NULL:
            yield f"{where} null", put(job, at, None)
        for wrong in draw.sample(WRONG_TYPES, 3):
            if not _fits(at, value, wrong):
                yield f"{where} of the wrong type {type(wrong).__name__}", put(job, at, wrong)
        if isinstance(value, str):
            yield f"{where} a number", put(job, at, draw.choice((0, 7, BEYOND_64_BITS)))
            allowed = _breaks_allowed(at)
            for wrong in draw.sample([one for one in WRONG_STRINGS if not (allowed and _harmless(one))], 2):
                yield f"{where} with {wrong[:12]!r}", put(job, at, wrong)
        if isinstance(value, int):
            yield f"{where} a bool", put(job, at, True)
            yield f"{where} as text", put(job, at, str(value))


def _fits(at: Path, value: Any, wrong: Any) -> bool:
    """Whether what is meant to be wrong would be right in this place."""
    if wrong == {} and isinstance(wrong, dict):
        return at[-1] in ("values", "headers")
    if wrong == [] and isinstance(wrong, list):
        return at[-1] == "rights"
    if wrong == "" and isinstance(wrong, str):
        return "values" in at[:-1]
    return False


def _breaks_allowed(at: Path) -> bool:
    return at[-1] in FREE_TEXT or "values" in at[:-1]


def _harmless(text: str) -> bool:
    """Whether a body may hold this: a long text, or a line break."""
    return text.startswith(("line", "x"))


def special(jobs: dict[str, Json], owner: str) -> Iterator[Bad]:
    """What does not follow from the shape of a job: headers that are ours, lists that are too long, and the like."""
    email, many, text = jobs["email.send"], jobs["email.send_many"], jobs["sms.send"]
    for header in (
        {"Bcc": "spy@evil.example"},
        {"from": "boss@evil.example"},
        {"Content-Type": "text/html"},
        {"X-A": "b", "x-a": "c"},
        {"X-A:": "b"},
        {"X A": "b"},
        {f"X-A: b\r\n{INJECTED}": "c"},
        {"": "b"},
        {"X-A": f"b\r\n{INJECTED}"},
        {"X-A": ["b"]},
        {f"X-{number}": "b" for number in range(31)},
    ):
        yield Bad("email.send", [{**email, "headers": header}], f"header {str(header)[:30]}")
        yield Bad("email.send_many", [{**many, "headers": header}], f"header {str(header)[:30]}")
    for address in (
        f"bad@customer.example\r\n{INJECTED}",
        "bad@customer.example, worse@customer.example",
        "Bad <bad@customer.example>",
        "bad@customer.example>\r\nRCPT TO:<spy@evil.example",
        "bad@@customer.example",
        "bad",
        "@",
        "bad@" + "x" * 300 + ".example",
        "bad @customer.example",
        "bad\x00@customer.example",
        SURROGATE + "@customer.example",
    ):
        for where in ("to", "cc", "bcc", "reply_to"):
            yield Bad("email.send", [{**email, where: address}], f"{where} {address[:20]!r}")
        yield Bad("email.send_many", [{**many, "recipients": [{"to": address}]}], f"recipients {address[:20]!r}")
        yield Bad("users.save", [{**jobs["users.save"], "email": address}], f"email {address[:20]!r}")
    for number in ("12345", "+0123456789", "+49151123456789012345", "+49 151", "++4915112345678", "+4915112345678\n"):
        yield Bad("sms.send", [{**text, "to": number}], f"number {number!r}")
        yield Bad("sms.send_many", [{**jobs["sms.send_many"], "recipients": [{"to": number}]}], f"number {number!r}")
    readers = [f"reader{number}@customer.example" for number in range(501)]
    phones = [{"to": f"+49151{number:08}"} for number in range(501)]
    yield Bad("email.send", [{**email, "to": readers[:101]}], "101 recipients")
    yield Bad("email.send", [{**email, "to": readers[:50], "cc": readers[50:80], "bcc": readers[80:102]}], "102 in all")
    yield Bad("email.send_many", [{**many, "recipients": [{"to": reader} for reader in readers]}], "501 mails")
    yield Bad("sms.send_many", [{**jobs["sms.send_many"], "recipients": phones}], "501 texts")
    yield Bad("email.send", [{**email, "text": "x" * 1_000_001}], "a body of a megabyte")
    yield Bad("email.send", [{**email, "text": None, "html": None}], "no body")
    yield Bad("sms.send", [{**text, "text": "x" * 1531}], "eleven segments")
    yield Bad("email.send_many", [{**many, "text": "{{nobody}}"}], "a placeholder without a value")
    filled = [{"to": "bad@customer.example", "values": {"name": f"Ada\r\n{INJECTED}"}}]
    yield Bad("email.send_many", [{**many, "subject": "{{name}}", "recipients": filled}], "a value that breaks lines")
    purchase = jobs["credits.purchase"]
    for change in (
        {"plan": "bad-input-plan"},
        {"amount": -1},
        {"amount": 10**16},
        {"currency": "euro"},
        {"credits": {"email": 0, "sms": 0}},
        {"credits": {"email": -5}},
        {"credits": {"email": 2**63}},
        {"credit_to": "mary"},
        {"billing": {}},
        {"billing": {"a\nb": "c"}},
        {"billing": {"name": f"Acme\r\n{INJECTED}"}},
    ):
        yield Bad("credits.purchase", [{**purchase, **change}], f"purchase {change}")
    yield Bad("roles.save", [{**jobs["roles.save"], "rights": ["be_king"]}], "an unknown right")
    yield Bad("roles.save", [{**jobs["roles.save"], "rights": ["edit_user"] * 5000}], "a huge list of rights")
    for view in ("views.overview", "views.usage", "views.orders"):
        for change in ({"of": "all"}, {"since": "yesterday"}, {"until": 1}, {"page": 0}, {"page": 10**7}):
            yield Bad(view, [{**jobs[view], **change}], f"view {change}")
    yield Bad("views.usage", [{**jobs["views.usage"], "by": "year"}], "usage by year")
    yield Bad("views.message", [{**jobs["views.message"], "job_id": "a/b/c"}], "an id with two slashes")


def misfits(task: str, job: Json) -> Iterator[Bad]:
    """Arguments that are not one JSON object."""
    for args in ([], [None], [job, job], ["text"], [[job]], [42], [True], [float("nan")], [{}], [nested(300)]):
        yield Bad(task, args, f"{len(args)} arguments {str(args)[:12]}")
    yield Bad(task, [], "keywords only", kwargs=job)
    yield Bad(task, [job], "a keyword too many", kwargs={"colour": "red"})
    yield Bad(task, [json.dumps(job)], "JSON inside JSON")


def strangers(jobs: dict[str, Json], owner: str) -> Iterator[Bad]:
    """Well-formed jobs that name who or what is not there. Sends that do so are charges, see below."""
    plan = {"order_id": "never-order", "buyer": owner, "plan": "no-such-plan"}
    yield Bad("credits.purchase", [plan], "an unknown plan", reason="unknown_plan")
    yield Bad("credits.purchase", [{**jobs["credits.purchase"], "buyer": "nobody"}], "?", reason="unknown_user")
    for who in ("actor", "user", "owner"):
        yield Bad("credits.set_owner", [{**jobs["credits.set_owner"], who: "nobody"}], who, reason="unknown_user")
    for task, job in jobs.items():
        if task.startswith("views."):
            yield Bad(task, [{**job, "viewer": "nobody"}], "an unknown viewer", reason="unknown_user")
    yield Bad("users.save", [{**jobs["users.save"], "role": "no-such-role"}], "an unknown role", reason="not_found")
    yield Bad("views.message", [{"viewer": owner, "job_id": "no-such-job"}], "an unknown job", reason="not_found")


def bad_jobs(owner: str, member: str) -> list[Bad]:
    """All of them, in an order that mixes the tasks; the same each time, but for the task ids."""
    draw = random.Random(SEED)
    jobs = good_jobs(owner, member)
    assert set(jobs) == set(QUEUES)
    made = [*special(jobs, owner), *strangers(jobs, owner)]
    for task, job in jobs.items():
        made += misfits(task, job)
        made += [Bad(task, [wrong], what) for what, wrong in spoiled(task, job, draw)]
    draw.shuffle(made)
    return made


def test_every_malformed_job_is_refused_with_its_reason_and_every_good_one_is_done(house: Deployment) -> None:
    """On all fifteen tasks; the worker is the same process afterwards."""
    owner, member = house.people(email=1000, sms=1000)
    plan = {"plan": "bad-input-plan", "name": "Small", "credits": {"email": 1, "sms": 1}, "price": 1, "currency": "EUR"}
    house.producer.done("plans.save", plan)
    pid = house.worker.pid
    bad = bad_jobs(owner, member)
    assert len(bad) >= 500
    assert {job.task for job in bad} == set(QUEUES)

    good: list[str] = []
    unknown: list[str] = []
    for start in range(0, len(bad), EACH):
        for job in bad[start : start + EACH]:
            house.producer.send_raw(job.task, job.args, job.kwargs, task_id=job.task_id)
        unknown.append(_send_good(house, "nobody", f"unknown-{start}", start))
        good.append(_send_good(house, member, f"good-{start}", start))
    house.wait_until_final(*good, *unknown)
    waiting = {job.task_id: job.what for job in bad}
    until(
        lambda: not _answered(house, waiting),
        lambda: f"{len(waiting)} bad jobs are refused: {list(waiting.values())[:40]}",
    )
    house.wait_until_idle()

    refused = house.refusals([job.task_id for job in bad])
    said = {row.task_id: row.reason for row in refused}
    wrong = [(job.what, said.get(job.task_id)) for job in bad if said.get(job.task_id) != job.reason]
    assert wrong == []
    assert len(refused) == len(bad)
    assert Counter(row.task for row in refused) == Counter(job.task for job in bad)
    assert all(row.detail for row in refused)

    charges = house.charges([*good, *unknown])
    assert {charges[job_id].state for job_id in good} == {State.SENT}
    assert {(charges[job_id].state, charges[job_id].reason) for job_id in unknown} == {(State.REFUSED, "unknown_user")}
    assert house.charges([job["job_id"] for job in good_jobs(owner, member).values() if "job_id" in job]) == {}

    assert house.worker.runs()
    assert house.worker.pid == pid
    assert house.producer.control("stats")["pid"] == pid
    assert len(good) >= len(bad) / EACH
    assert house.remaining(owner) == {
        "email": 1000 - sum("mail" in one for one in good),
        "sms": 1000 - sum("text" in one for one in good),
    }
    assert [letter for letter in house.mail.letters if "bad" in " ".join(letter.recipients)] == []
    assert house.findings() == []


def _answered(house: Deployment, waiting: dict[str, str]) -> dict[str, str]:
    """Take those that were refused by now out of what waits, and give the rest."""
    for row in house.refusals(list(waiting)):
        waiting.pop(row.task_id, None)
    return waiting


def _send_good(house: Deployment, sender: str, job_id: str, number: int) -> str:
    """Enqueue an email or a text message, by turns; gives its id."""
    if number // EACH % 2:
        job_id += "-text"
        house.send("sms.send", {"job_id": job_id, "sender": sender, "to": "+4915112345678", "text": "Hello"})
    else:
        job_id += "-mail"
        to = f"{job_id}@customer.example"
        house.send("email.send", {"job_id": job_id, "sender": sender, "to": to, "subject": "Hello", "text": "Hello"})
    return job_id


@dataclass(frozen=True)
class Garbage:
    """A message that is not a task, or not as Celery writes it."""

    what: str
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
def busy_house(
    migrated_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, str]]:
    """Give a house for garbage alone, with a user who sends."""
    folder = tmp_path_factory.mktemp("busy")
    with (
        migrated_postgres.copy_of(TEMPLATE) as url,
        ValkeyServer(folder / "valkey") as broker,
        Deployment(folder, url, broker.url()) as house,
    ):
        _, member = house.people(email=2 * len(GARBAGE))
        yield house, member


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: garbage.what)
def test_a_worker_survives_a_message_that_is_no_job(busy_house: tuple[Deployment, str], garbage: Garbage) -> None:
    """And goes on with the next."""
    house, member = busy_house
    house.revive(by_force=not house.idle())
    pid = house.worker.pid

    house.producer.publish("email", garbage.body, garbage.headers, garbage.content_type)
    job_id = _send_good(house, member, f"after-{garbage.what.replace(' ', '-')}", 0)
    house.wait_until_final(job_id)
    house.wait_until_idle()

    assert len(house.mail.letters_of(job_id)) == 1
    assert house.worker.runs()
    assert house.producer.control("stats")["pid"] == pid
