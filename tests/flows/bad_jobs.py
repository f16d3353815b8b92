"""Hundreds of jobs that must be refused, made from a good job of each task."""

import copy
import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.flows.outside import QUEUES, Json

SEED: Final = 20261123
INJECTED: Final = "X-Injected: yes"
BEYOND_64_BITS: Final = 2**80
SURROGATE: Final = "half a character: \ud83d"


@dataclass(frozen=True)
class BadJob:
    """A job that must be refused: what is wrong with it, and the reason that the refusal must give."""

    task: str
    args: list[Any]
    description: str
    kwargs: Json = field(default_factory=dict)
    reason: str = "invalid_job"
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))


def good_jobs(owner: str, member: str) -> dict[str, Json]:
    """Give a job of each task that would be done, with every field that it may have."""
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
        "headers": {"List-Id": "spring"},
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
        "users.erase": {"erasure_id": "never-erasure", "actor": owner, "user": member},
        "messages.cancel": {"cancel_id": "never-cancel", "actor": owner, "job_id": "never-job"},
        "views.overview": view,
        "views.usage": {**view, "by": "day"},
        "views.orders": view,
        "views.billing": view,
        "views.users": view,
        "views.message": {**view, "job_id": "never-mail"},
        "views.explain": {**view, "job_id": "never-mail"},
    }


MAY_BE_NULL: Final = {"job_id", "cc", "bcc", "text", "html", "reply_to", "headers", "from", "billing", "since", "until"}
MAY_BE_LEFT_OUT: Final = {*MAY_BE_NULL, "of", "page", "by", "values", "credit_to"}


def nested(levels: int) -> Any:
    """Give a list in a list, and so on."""
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
"""Fields that may hold line breaks, and may be long."""

Path = tuple[str | int, ...]


def leaves(value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Give the path and value of every field of an object, and of the objects inside it."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*at, name), part
        yield from leaves(part, (*at, name))


def put(job: Json, at: Path, value: Any) -> Json:
    """Give a copy of the job with another value in one place."""
    changed = copy.deepcopy(job)
    inner: Any = changed
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    return changed


def without(job: Json, at: Path) -> Json:
    """Give a copy of the job that lacks one field."""
    changed = copy.deepcopy(job)
    inner: Any = changed
    for name in at[:-1]:
        inner = inner[name]
    del inner[at[-1]]
    return changed


def with_spoiled_fields(task: str, job: Json, draw: random.Random) -> Iterator[tuple[str, Json]]:
    """Spoil each field of a job in every way that does not depend on the task. Gives what is wrong, and the job."""
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
            for wrong in draw.sample([text for text in WRONG_STRINGS if not (allowed and _is_harmless(text))], 2):
                yield f"{where} with {wrong[:12]!r}", put(job, at, wrong)
        if isinstance(value, int):
            yield f"{where} a bool", put(job, at, True)
            yield f"{where} as text", put(job, at, str(value))


def _fits(at: Path, value: Any, wrong: Any) -> bool:
    """Whether a value that is meant to be wrong is right in this place."""
    if wrong == {} and isinstance(wrong, dict):
        return at[-1] in ("values", "headers")
    if wrong == [] and isinstance(wrong, list):
        return at[-1] == "rights"
    if wrong == "" and isinstance(wrong, str):
        return "values" in at[:-1]
    return False


def _breaks_allowed(at: Path) -> bool:
    return at[-1] in FREE_TEXT or "values" in at[:-1]


def _is_harmless(text: str) -> bool:
    """Whether free text may hold this: it is only long, or has a line break."""
    return text.startswith(("line", "x"))


def spoiled_specially(jobs: dict[str, Json]) -> Iterator[BadJob]:
    """Spoil jobs in ways of their own: headers that Postage writes itself, lists that are too long, and the like."""
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
        yield BadJob("email.send", [{**email, "headers": header}], f"header {str(header)[:30]}")
        yield BadJob("email.send_many", [{**many, "headers": header}], f"header {str(header)[:30]}")
    for address in (
        f"bad@customer.example\r\n{INJECTED}",
        "bad@customer.example, worse@customer.example",
        "Bad, B. <bad@customer.example>",
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
            yield BadJob("email.send", [{**email, where: address}], f"{where} {address[:20]!r}")
        yield BadJob("email.send_many", [{**many, "recipients": [{"to": address}]}], f"recipients {address[:20]!r}")
        yield BadJob("users.save", [{**jobs["users.save"], "email": address}], f"email {address[:20]!r}")
    for number in ("12345", "+0123456789", "+49151123456789012345", "+49 151", "++4915112345678", "+4915112345678\n"):
        yield BadJob("sms.send", [{**text, "to": number}], f"number {number!r}")
        yield BadJob("sms.send_many", [{**jobs["sms.send_many"], "recipients": [{"to": number}]}], f"number {number!r}")
    readers = [f"reader{number}@customer.example" for number in range(501)]
    phones = [{"to": f"+49151{number:08}"} for number in range(501)]
    yield BadJob("email.send", [{**email, "to": readers[:101]}], "101 recipients")
    yield BadJob(
        "email.send", [{**email, "to": readers[:50], "cc": readers[50:80], "bcc": readers[80:102]}], "102 in all"
    )
    yield BadJob("email.send_many", [{**many, "recipients": [{"to": reader} for reader in readers]}], "501 mails")
    yield BadJob("sms.send_many", [{**jobs["sms.send_many"], "recipients": phones}], "501 texts")
    yield BadJob("email.send", [{**email, "text": "x" * 1_000_001}], "a body of a megabyte")
    yield BadJob("email.send", [{**email, "text": None, "html": None}], "no body")
    yield BadJob("sms.send", [{**text, "text": "x" * 1531}], "eleven segments")
    yield BadJob("email.send_many", [{**many, "text": "{{nobody}}"}], "a placeholder without a value")
    filled = [{"to": "bad@customer.example", "values": {"name": f"Ada\r\n{INJECTED}"}}]
    yield BadJob(
        "email.send_many", [{**many, "subject": "{{name}}", "recipients": filled}], "a value that breaks lines"
    )
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
        yield BadJob("credits.purchase", [{**purchase, **change}], f"purchase {change}")
    yield BadJob("roles.save", [{**jobs["roles.save"], "rights": ["be_king"]}], "an unknown right")
    yield BadJob("roles.save", [{**jobs["roles.save"], "rights": ["edit_user"] * 5000}], "a huge list of rights")
    for view in ("views.overview", "views.usage", "views.orders"):
        for change in ({"of": "all"}, {"since": "yesterday"}, {"until": 1}, {"page": 0}, {"page": 10**7}):
            yield BadJob(view, [{**jobs[view], **change}], f"view {change}")
    yield BadJob("views.usage", [{**jobs["views.usage"], "by": "year"}], "usage by year")
    yield BadJob("views.message", [{**jobs["views.message"], "job_id": "a/b/c"}], "an id with two slashes")


def with_wrong_arguments(task: str, job: Json) -> Iterator[BadJob]:
    """Give a task arguments that are not one JSON object."""
    for args in ([], [None], [job, job], ["text"], [[job]], [42], [True], [float("nan")], [{}], [nested(300)]):
        yield BadJob(task, args, f"{len(args)} arguments {str(args)[:12]}")
    yield BadJob(task, [], "keywords only", kwargs=job)
    yield BadJob(task, [job], "a keyword too many", kwargs={"colour": "red"})
    yield BadJob(task, [json.dumps(job)], "JSON inside JSON")


def naming_strangers(jobs: dict[str, Json], owner: str) -> Iterator[BadJob]:
    """Give valid jobs that name who or what does not exist. Sends are left out: their refusal is a charge."""
    plan = {"order_id": "never-order", "buyer": owner, "plan": "no-such-plan"}
    yield BadJob("credits.purchase", [plan], "an unknown plan", reason="unknown_plan")
    yield BadJob("credits.purchase", [{**jobs["credits.purchase"], "buyer": "nobody"}], "?", reason="unknown_user")
    for who in ("actor", "user", "owner"):
        yield BadJob("credits.set_owner", [{**jobs["credits.set_owner"], who: "nobody"}], who, reason="unknown_user")
    for who in ("actor", "user"):
        yield BadJob("users.erase", [{**jobs["users.erase"], who: "nobody"}], who, reason="unknown_user")
    cancel = jobs["messages.cancel"]
    yield BadJob("messages.cancel", [{**cancel, "actor": "nobody"}], "a stranger cancels", reason="unknown_user")
    yield BadJob("messages.cancel", [{**cancel, "job_id": "no-such-job"}], "nothing to cancel", reason="not_found")
    for task, job in jobs.items():
        if task.startswith("views."):
            yield BadJob(task, [{**job, "viewer": "nobody"}], "an unknown viewer", reason="unknown_user")
    yield BadJob("users.save", [{**jobs["users.save"], "role": "no-such-role"}], "an unknown role", reason="not_found")
    yield BadJob("views.message", [{"viewer": owner, "job_id": "no-such-job"}], "an unknown job", reason="not_found")


def bad_jobs(owner: str, member: str) -> list[BadJob]:
    """Give all bad jobs, in an order that mixes the tasks. They are the same each time, except for their task ids."""
    draw = random.Random(SEED)
    jobs = good_jobs(owner, member)
    assert set(jobs) == set(QUEUES)
    bad = [*spoiled_specially(jobs), *naming_strangers(jobs, owner)]
    for task, job in jobs.items():
        bad += with_wrong_arguments(task, job)
        bad += [BadJob(task, [wrong], description) for description, wrong in with_spoiled_fields(task, job, draw)]
    draw.shuffle(bad)
    return bad
