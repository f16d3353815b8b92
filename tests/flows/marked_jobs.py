"""Task messages with a marked secret in every place where a producer can put text, right or wrong."""

import base64
import itertools
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.flows.outside import QUEUES, Json

MARK: Final = "SECRET-7f3a"
NUMBER: Final = "+4915177377373"
MARKS: Final = (
    MARK.lower(),
    NUMBER.removeprefix("+49"),
    *(base64.b64encode(b"-" * shift + MARK.encode())[4 * (shift > 0) : -4].decode().lower() for shift in range(3)),
)
"""Every secret has one of these in it, or would have it in base64. In small letters."""

TEXT: Final = f"{MARK} is private"
ADDRESS: Final = f"{MARK}@customer.example"
ANY: Final = {TEXT: [TEXT, {TEXT: TEXT}]}
"""A value of a type that no field has."""
SIGNATURE: Final[Json] = {"task": "shop.paid", "args": [TEXT], "kwargs": {"a": TEXT}, "options": {"queue": "shop"}}

_numbers = itertools.count(1)


@dataclass
class MarkedMessage:
    """A message as it lies on a queue, of which any part may be wrong."""

    queue: str
    body: object
    headers: Json
    properties: Json = field(default_factory=dict)
    raw_body: str | None = None
    fields: Json = field(default_factory=dict)

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return str(self.headers["id"])

    @property
    def job(self) -> Json:
        """The object that the task takes."""
        given: Json = self.body[0][0]  # type: ignore[index]
        return given

    @property
    def job_id(self) -> str:
        """The id in it."""
        return str(self.job["job_id"])

    def item(self) -> str:
        """Give the message as kombu writes it."""
        body = self.raw_body if self.raw_body is not None else json.dumps(self.body)
        properties = {
            "correlation_id": self.headers.get("id"),
            "reply_to": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": self.queue, "routing_key": self.queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
            **self.properties,
        }
        envelope = {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": self.headers,
            "properties": properties,
        }
        return json.dumps({**envelope, **self.fields})


def message(
    task: str,
    *args: object,
    kwargs: Mapping[str, object] | None = None,
    embed: Mapping[str, object] | None = None,
    properties: Json | None = None,
    **headers: object,
) -> MarkedMessage:
    """Give a message for a task. Its headers repeat the arguments, as those of Celery's clients do."""
    number = next(_numbers)
    shown = {"argsrepr": repr(args), "kwargsrepr": repr(kwargs), "shadow": None, "origin": f"gen1@{MARK}"}
    return MarkedMessage(
        QUEUES.get(task, "email"),
        [list(args), dict(kwargs or {}), dict(embed or {})],
        {"lang": "py", "task": task, "id": f"marked-{number}", "root_id": f"marked-{number}", **shown, **headers},
        properties or {},
    )


def email(sender: str, job_id: str | None = None, **fields: object) -> Json:
    """Give an email of which every field is private."""
    private = {"to": ADDRESS, "cc": [f"cc-{ADDRESS}"], "bcc": f"bcc-{ADDRESS}", "reply_to": f"reply-{ADDRESS}"}
    content = {"subject": TEXT, "text": TEXT, "html": f"<p>{TEXT}</p>", "headers": {"List-Id": TEXT}}
    return {"job_id": job_id or f"email-{next(_numbers)}", "sender": sender, **private, **content, **fields}


def sms(sender: str, **fields: object) -> Json:
    """Give a text message of which every field is private."""
    return {"job_id": f"sms-{next(_numbers)}", "sender": sender, "to": NUMBER, "text": TEXT, **fields}


TEXT_HEADERS: Final = (
    *("argsrepr", "kwargsrepr", "shadow", "origin", "group", "root_id", "parent_id", "stamps", "stamped_headers"),
    *("retries", "timelimit", "ignore_result", "group_index", "replaced_task_nesting", "eta", "expires", "lang"),
    *("meth", "reply_to", "correlation_id", "delivery_info", "hostname", "compression", "redelivered", "postage", TEXT),
)
PROPERTIES: Final = ("correlation_id", "reply_to", "delivery_mode", "priority", "delivery_tag", "body_encoding", TEXT)
ROUTE: Final = {"exchange": f"{MARK} exchange", "routing_key": f"{MARK} key"}
EVERYTHING_TOLD: Final[Json] = {
    **dict.fromkeys(("root_id", "parent_id", "group", "shadow", "origin", "argsrepr", "kwargsrepr", "lang"), TEXT),
    "stamps": {TEXT: TEXT},
    "stamped_headers": [TEXT],
}
"""Headers that may be any text, and of which none makes a job invalid."""


def job_told_wrongly(sender: str, job_id: str, **headers: object) -> MarkedMessage:
    """Give a job that is done, with a secret in each part that Celery shows of a job and a producer may choose."""
    properties = {"delivery_info": ROUTE, "correlation_id": TEXT, "reply_to": TEXT}
    return message("email.send", email(sender, job_id), properties=properties, **{**EVERYTHING_TOLD, **headers})


def marked_sends(sender: str) -> Iterator[MarkedMessage]:
    """Give send jobs with a secret in each field, in names of fields, and in values of the wrong type."""
    for name in (*email(sender), *sms(sender), "recipients"):
        for task, job in (("email.send", email(sender)), ("sms.send", sms(sender))):
            yield message(task, {**job, name: ANY})
            yield message(task, {**job, name: [TEXT]})
            yield message(task, {**job, name: f"{TEXT}\r\n{TEXT}"})
            yield message(task, {name: job.get(name)})
    for header in (f"X-{MARK}", TEXT, f"{TEXT}\n{TEXT}", ""):
        yield message("email.send", email(sender, headers={header: TEXT}))
    yield message("email.send", email(sender, text=None, html=None, headers={"List-Id": TEXT * 100}))
    for strange in (TEXT, [TEXT], [email(sender)], None):
        yield message("email.send", strange)
    yield message("email.send", email(sender), email(sender))
    yield message("email.send", kwargs=email(sender))


def marked_bulk_jobs(sender: str) -> Iterator[MarkedMessage]:
    """Give bulk jobs: a good one of either kind, and bad ones."""
    values = {"name": TEXT}
    shared = {"sender": sender, "text": f"{TEXT} {{{{name}}}}"}
    mails = {**shared, "subject": TEXT, "recipients": [{"to": ADDRESS, "values": values}]}
    texts = {**shared, "recipients": [{"to": NUMBER, "values": values}]}
    for task, job in (("email.send_many", mails), ("sms.send_many", texts)):
        yield message(task, {**job, "job_id": task})
        for wrong in (
            {"text": "{{" + MARK + "}}"},
            {"text": "{{" + TEXT + "}}"},
            {"recipients": [{"to": ADDRESS + "@", "values": values}]},
            {"recipients": [{"to": NUMBER + "000000", "values": {TEXT: TEXT}}]},
            {"recipients": [{"to": ADDRESS, "values": {"name": ANY}, TEXT: TEXT}]},
            {"recipients": ANY},
            {"recipients": TEXT},
            {TEXT: TEXT},
        ):
            yield message(task, {**job, "job_id": f"bad-many-{next(_numbers)}", **wrong})


def marked_commands(owner: str, member: str) -> Iterator[MarkedMessage]:
    """Give purchases, saves, changes and questions that are refused, and some that are done."""
    billing = {"name": TEXT, "address": TEXT, "email": ADDRESS}
    purchase = {"buyer": member, "credits": {"email": 1}, "amount": 1, "currency": "EUR", "billing": billing}
    user = {"user_id": member, "organization": f"org-{owner.removeprefix('owner-')}", "role": "member"}
    saved = {**user, "name": TEXT, "email": ADDRESS, "billing": billing}
    role = {"organization": user["organization"], "role": "reader", "rights": []}
    plan = {"plan": "marked", "name": TEXT, "credits": {"email": 1}, "price": 1, "currency": "EUR"}
    adjust = {"adjustment_id": "marked", "actor": owner, "owner": owner, "credits": {"email": 1}, "reason": TEXT}
    reverse = {"reversal_id": "marked", "order_id": "none", "kind": "refund", "reason": TEXT}
    change = {"change_id": "marked", "actor": owner, "user": member, "owner": owner}
    cancel = {"cancel_id": "marked", "actor": owner, "job_id": "none"}
    erase = {"erasure_id": "marked", "actor": member, "user": owner}
    views = {name: {"viewer": owner, "job_id": "none"} for name in ("views.message", "views.explain")}
    views |= {name: {"viewer": owner} for name in ("views.overview", "views.usage", "views.orders", "views.changes")}
    commands: Json = {"credits.purchase": {"order_id": "marked", **purchase}, "users.save": saved, "roles.save": role}
    commands |= {"plans.save": plan, "credits.adjust": adjust, "credits.reverse": reverse, "credits.set_owner": change}
    commands |= {"messages.cancel": cancel, "users.erase": erase, **views}
    for task, job in commands.items():
        good = message(task, job)
        good.queue = QUEUES.get(task) or ("views" if task.startswith("views.") else "billing")
        if not task.startswith("views."):
            yield good
        for name in (*job, TEXT):
            for wrong in (ANY, [TEXT], TEXT, {"email": TEXT, "sms": TEXT}):
                bad = message(task, {**job, name: wrong})
                bad.queue = good.queue
                yield bad
    for refused in ({"plan": "none"}, {"credit_to": "self"}, {"billing": {TEXT: TEXT}}, {"buyer": "nobody"}):
        order = {**purchase, "order_id": f"marked-{next(_numbers)}", **refused}
        yield message("credits.purchase", {**order, **({"credits": None} if "plan" in refused else {})})


def marked_parts(sender: str) -> Iterator[MarkedMessage]:
    """Give jobs with a secret in each part of Celery's protocol: headers, properties, and what is to be done later."""
    for name, value in itertools.product(TEXT_HEADERS, (TEXT, [TEXT], {TEXT: TEXT})):
        yield message("email.send", email(sender), **{name: value})
    for name, value in itertools.product(PROPERTIES, (TEXT, {TEXT: TEXT})):
        yield message("email.send", email(sender), properties={name: value})
    for route in (ROUTE, {"exchange": ANY, "routing_key": ANY}, TEXT, [TEXT]):
        yield message("email.send", email(sender), properties={"delivery_info": route})
    for name, later in itertools.product(("callbacks", "errbacks", "chain", "chord"), marked_signatures(sender)):
        embed = {name: later if name == "chord" else [later]}
        yield message("email.send", email(sender), embed=embed)
        yield message("email.send", TEXT, embed=embed)
        yield message("users.save", email(sender), embed=embed)
        yield message("email.send", email(sender), embed={name: [later, TEXT]})


def marked_signatures(sender: str) -> Iterator[object]:
    """Give what is to be done after a job: tasks of ours and of others, some of which cannot be sent."""
    yield from (TEXT, ANY)
    for task in ("email.send", "sms.send_many", TEXT):
        for options in ({"queue": "shop"}, {TEXT: TEXT}, {"headers": {TEXT: TEXT}, "queue": "shop"}):
            yield {**SIGNATURE, "task": task, "args": [email(sender)], "options": options}
    names = ("queue", "exchange", "routing_key", "serializer", "compression", "eta", "priority", "countdown", "headers")
    for name, value in itertools.product(names, (TEXT, ANY)):
        yield {**SIGNATURE, "options": {"queue": "shop", name: value}}


CELERYS: Final = (
    *("celery.map", "celery.starmap", "celery.chunks", "celery.chord", "celery.chord_unlock", "celery.group"),
    *("celery.chain", "celery.accumulate", "celery.backend_cleanup"),
)


def no_jobs(sender: str) -> Iterator[MarkedMessage]:
    """Give messages of which no job can be made: unknown tasks, Celery's own, and broken ones."""
    job = email(sender)
    inner = {**SIGNATURE, "task": "email.send"}
    for task in CELERYS:
        yield message(task, job, kwargs={"task": inner, "it": [job], "header": [inner], "body": inner})
        body = {"task": task, "id": f"old-{next(_numbers)}", "args": [job], "kwargs": {"task": inner, "it": [[job]]}}
        yield MarkedMessage("email", body, {})
        yield MarkedMessage("email", {**body, "kwargs": {}}, {})
    old = {"task": "email.send", "id": f"old-{next(_numbers)}", "args": [job], "kwargs": {}, "taskset": TEXT}
    yield MarkedMessage("email", old, {})
    wrong = {"args": [TEXT], "kwargs": {TEXT: TEXT}, "errbacks": [TEXT]}
    yield MarkedMessage("email", {**old, "id": "old-bad", **wrong}, {})
    yield MarkedMessage("email", {**old, "task": TEXT, "id": TEXT}, {})
    yield message(TEXT, job)
    yield message(f"email.{MARK}", job, id=TEXT)
    yield message("email.sned", job, id=ADDRESS)
    broken = json.dumps([[job], {}, {}])
    for raw_body in (broken[:-20], f"{broken} {TEXT}", TEXT, f'[["{TEXT}\\ud83d"], {{}}, {{}}]', f"\x00{TEXT}"):
        each = message("email.send")
        each.raw_body = raw_body
        yield each
    for name in ("content-type", "content-encoding", "headers", "properties", "body", TEXT):
        for value in (TEXT, [TEXT], {TEXT: TEXT}):
            each = message("email.send", job)
            each.fields = {name: value}
            yield each


RAW_ITEMS: Final = (TEXT, f'"{TEXT}"', f'{{"{TEXT}": "{TEXT}"}}', f'["{TEXT}"]', f'{{"body": "{TEXT}"', "\x00" + TEXT)
"""Items on a queue that are not even messages."""


def marked_messages(owner: str, member: str) -> list[MarkedMessage]:
    """Give all of them."""
    return [
        *marked_sends(member),
        *marked_bulk_jobs(member),
        *marked_commands(owner, member),
        *marked_parts(member),
        *no_jobs(member),
    ]
