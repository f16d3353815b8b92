"""The digest of a message: it is equal for the same job, however that is written, and different for any other."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import Field, create_model
from pydantic_core import from_json

from models.errors import Refused
from models.messages.base import TaskMessage
from models.messages.billing import (
    Adjustment,
    CancelMessages,
    Credits,
    EraseUser,
    Purchase,
    Reversal,
    SetOwner,
    SignedCredits,
)
from models.messages.bulk import EmailRecipient, SendManyEmails, SendManySms, SmsRecipient
from models.messages.sends import SendEmail, SendSms
from models.messages.wire import MESSAGES, parse
from tests.factories import email_job
from tests.unit.wire import EXAMPLES, TASKS, field_names

Json = Any

KEYED = [task for task in TASKS if MESSAGES[task].key]
"""Tasks whose jobs have an id that the producer makes."""
FOLDER = Path(__file__).parent / "digests"
GOLDEN = [
    pytest.param(task, example, id=f"{task}, {name}")
    for task in KEYED
    for name, example in json.loads((FOLDER / f"{task}.json").read_text()).items()
]
"""Jobs, and the digests that are stored of them wherever they were charged. Add examples, and never change one.

The older digests are those of the release that stored such ones.
"""


OLDER = [example for example in GOLDEN if "version 1" in example.values[1]]  # type: ignore[operator]
"""Those of tasks that an older release knew."""


def digest_of(task: str, job: Json) -> str:
    return parse(task, job).digest()


# -- golden examples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "example"), GOLDEN)
def test_a_job_keeps_its_digest(task: str, example: Json) -> None:
    assert digest_of(task, example["job"]) == example["digest"]


@pytest.mark.parametrize(("task", "example"), OLDER)
def test_a_job_is_recognized_by_the_digest_of_an_older_release(task: str, example: Json) -> None:
    message = parse(task, example["job"])

    assert message.has_digest(example["digest"])
    assert message.has_digest(example["version 1"])


@pytest.mark.parametrize(("task", "example"), GOLDEN)
def test_a_digest_is_of_what_the_producer_wrote(task: str, example: Json) -> None:
    """No library's idea of a normal form is in it: any JSON library and SHA-256 make it from the job."""
    given = {name: value for name, value in example["job"].items() if name != MESSAGES[task].key}
    written = json.dumps([task, given], sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    assert example["digest"] == f"2:{base64.b64encode(hashlib.sha256(written.encode()).digest()).decode()}"


@pytest.mark.parametrize("task", KEYED)
def test_the_examples_of_a_task_give_every_field(task: str) -> None:
    jobs = [example.values[1]["job"] for example in GOLDEN if example.values[0] == task]

    assert len(jobs) >= 3
    assert {name for job in jobs for name in job} == set(field_names(task))


def test_no_two_examples_have_the_same_digest() -> None:
    digests = [example.values[1]["digest"] for example in GOLDEN]
    digests += [example.values[1]["version 1"] for example in OLDER]

    assert len(set(digests)) == len(digests)


def test_no_file_of_examples_is_left_over() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == KEYED


def later(message: type[TaskMessage], **parts: Any) -> type[TaskMessage]:
    """Make the message of a later release, in which it has new optional fields, and its parts are these."""
    fields: dict[str, Any] = {
        "a_new_text": (str | None, None),
        "new_mode": (Literal["fast", "slow"], "fast"),
        "new_names": (list[str], Field(default_factory=list)),
        "new_switch": (bool, False),
        "z_new_number": (int, 1),
    }
    return create_model(f"Later{message.__name__}", __base__=message, **parts, **fields)


LATER = {
    "email.send": later(SendEmail),
    "email.send_many": later(SendManyEmails, recipients=list[later(EmailRecipient)]),
    "sms.send": later(SendSms),
    "sms.send_many": later(SendManySms, recipients=list[later(SmsRecipient)]),
    "credits.purchase": later(Purchase, credits=(later(Credits) | None, None)),
    "credits.set_owner": later(SetOwner),
    "credits.reverse": later(Reversal, credits=(later(Credits) | None, None)),
    "credits.adjust": later(Adjustment, credits=later(SignedCredits)),
    "users.erase": later(EraseUser),
    "messages.cancel": later(CancelMessages),
}


@pytest.mark.parametrize(("task", "example"), GOLDEN)
def test_a_new_optional_field_leaves_the_digests_as_they_are(task: str, example: Json) -> None:
    message = LATER[task].model_validate(example["job"])

    assert message.digest() == example["digest"]
    assert message.has_digest(example.get("version 1", example["digest"]))


@pytest.mark.parametrize("task", KEYED)
def test_a_new_field_that_is_given_is_part_of_the_digest(task: str) -> None:
    job = EXAMPLES[task]
    news = [{"a_new_text": "x"}, {"new_mode": "slow"}, {"new_names": ["x"]}, {"new_switch": True}, {"z_new_number": 2}]

    digests = {LATER[task].model_validate({**job, **new}).digest() for new in ({}, *news)}

    assert len(digests) == 6


# -- the same job -----------------------------------------------------------------------------------------------------

IDS = st.sampled_from(["ann", "ben", "0"])
TEXTS = st.sampled_from(["a", "A", "{{a}}", "\u00e9", "e\u0301"]) | st.text(
    st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=5
)
ADDRESSES = st.sampled_from(
    [
        *("ada@x.test", "Ada@x.test", "ada@X.test", "info@x.test", "INFO@x.test"),
        *("jos\u00e9@b\u00fccher.test", "jose\u0301@b\u00fccher.test"),
        *("ada@b\u00fccher.test", "ada@xn--bcher-kva.test"),
        *("Ada <ada@x.test>", '"Ada" <ada@x.test>', "ada <ada@x.test>"),
    ]
)
MANY_ADDRESSES = st.lists(ADDRESSES, min_size=1, max_size=3)
NUMBERS = st.sampled_from(["+31612345678", "+31612345679"])
VALUES = st.dictionaries(st.sampled_from(["a", "A", "b"]), TEXTS, max_size=2)
LINES = st.dictionaries(st.sampled_from(["X-A", "X-B", "x-c"]), TEXTS, min_size=1)
HEADERS = st.dictionaries(
    st.sampled_from(["X-A", "X-B", "x-c"]), TEXTS.filter(lambda text: "{{" not in text), min_size=1
)
SENDS = {"sender": IDS, "text": TEXTS}
REPLIES = ADDRESSES | st.lists(ADDRESSES, min_size=2, max_size=3)
EMAILS = {
    "cc": MANY_ADDRESSES,
    "bcc": MANY_ADDRESSES,
    "html": TEXTS,
    "reply_to": REPLIES,
    "headers": HEADERS,
}
COUNTS = st.sampled_from([{"email": 1}, {"sms": 1}, {"email": 1, "sms": 1}, {"email": 0, "sms": 11}])


def recipients_at(to: st.SearchStrategy[str]) -> st.SearchStrategy[Json]:
    return st.lists(st.fixed_dictionaries({"to": to}, optional={"values": VALUES}), min_size=1, max_size=3)


PURCHASES = {"credit_to": st.sampled_from(["owner", "self"]), "billing": LINES}
JOBS: dict[str, st.SearchStrategy[Json]] = {
    "email.send": st.fixed_dictionaries({**SENDS, "subject": TEXTS, "to": MANY_ADDRESSES}, optional=EMAILS),
    "email.send_many": st.fixed_dictionaries(
        {**SENDS, "subject": TEXTS, "recipients": recipients_at(ADDRESSES)}, optional=EMAILS
    ),
    "sms.send": st.fixed_dictionaries({**SENDS, "to": NUMBERS}, optional={"from": st.sampled_from(["Acme", "acme"])}),
    "sms.send_many": st.fixed_dictionaries(
        {**SENDS, "recipients": recipients_at(NUMBERS)}, optional={"from": st.sampled_from(["Acme", "acme"])}
    ),
    "credits.purchase": st.fixed_dictionaries({"buyer": IDS, "plan": IDS}, optional=PURCHASES)
    | st.fixed_dictionaries(
        {
            "buyer": IDS,
            "credits": COUNTS,
            "amount": st.sampled_from([0, 1, 10**15]),
            "currency": st.sampled_from(["EUR", "USD"]),
        },
        optional=PURCHASES,
    ),
    "credits.set_owner": st.fixed_dictionaries({"actor": IDS, "user": IDS, "owner": IDS}),
    "credits.reverse": st.fixed_dictionaries(
        {"order_id": IDS, "kind": st.sampled_from(["refund", "chargeback"]), "reason": TEXTS},
        optional={"credits": COUNTS, "buyer": IDS},
    ),
    "credits.adjust": st.fixed_dictionaries(
        {"actor": IDS, "owner": IDS, "credits": COUNTS | st.just({"email": -1}), "reason": TEXTS}
    ),
    "users.erase": st.fixed_dictionaries({"actor": IDS, "user": IDS}),
    "messages.cancel": st.fixed_dictionaries({"actor": IDS, "job_id": IDS})
    | st.fixed_dictionaries({"actor": IDS, "sender": IDS}),
}
"""Jobs without their id, of few values, so that two of them are often the same but for one."""


def with_key(task: str, job: Json, key: str = "key-1") -> Json:
    return {str(MESSAGES[task].key): key, **job}


def shuffled(data: st.DataObject, value: Json) -> Json:
    """Give the same JSON with the fields of each object in any order."""
    if isinstance(value, dict):
        return {name: shuffled(data, value[name]) for name in data.draw(st.permutations(list(value)))}
    return [shuffled(data, each) for each in value] if isinstance(value, list) else value


@given(st.data(), st.sampled_from(KEYED))
def test_a_job_written_in_another_way_has_the_same_digest(data: st.DataObject, task: str) -> None:
    job = with_key(task, data.draw(JOBS[task]))
    spelled_out = parse(task, job).model_dump(mode="json")  # with all defaults and nulls
    chosen = data.draw(st.sets(st.sampled_from(sorted(spelled_out))))
    same = {**job, **{name: spelled_out[name] for name in chosen}}
    for name in ("to", "cc", "bcc"):
        if isinstance(same.get(name), list) and len(same[name]) == 1 and data.draw(st.booleans()):
            [same[name]] = same[name]
    same[str(MESSAGES[task].key)] = "key-2"

    assert digest_of(task, shuffled(data, same)) == digest_of(task, job)


@given(st.data(), st.sampled_from(KEYED))
def test_two_jobs_have_the_same_digest_only_if_they_ask_for_the_same(data: st.DataObject, task: str) -> None:
    job, other = data.draw(JOBS[task]), data.draw(JOBS[task])
    replaced = data.draw(st.sets(st.sampled_from(sorted({**job, **other}))))
    mixed = {
        name: (other if name in replaced else job)[name]
        for name in {**job, **other}
        if name in (other if name in replaced else job)
    }
    try:
        message, another = parse(task, with_key(task, job)), parse(task, with_key(task, mixed))
    except Refused:
        assume(False)

    assert (message.digest() == another.digest()) == (message == another)
    assert another.has_digest(message.digest()) == (message == another)


@given(st.data(), st.sampled_from(KEYED))
def test_words_that_change_places_make_another_digest(data: st.DataObject, task: str) -> None:
    job = data.draw(JOBS[task])
    moved = data.draw(st.permutations([name for name in job if isinstance(job[name], str)]))
    exchanged = {**job, **dict(zip(sorted(moved), (job[name] for name in moved), strict=True))}
    try:
        message, another = parse(task, with_key(task, job)), parse(task, with_key(task, exchanged))
    except Refused:
        assume(False)

    assert (message.digest() == another.digest()) == (job == exchanged)


def changed(value: Json) -> Json:
    """Give another value that is as valid."""
    match value:
        case str():
            return OTHERS.get(value, f"x{value}")
        case int():
            return value + 1
        case list():
            return [*value, value[0]]
        case _:
            first = next(iter(value))
            return {**value, first: changed(value[first])}


OTHERS = {
    "refund": "chargeback",
    "owner": "self",
    "self": "owner",
    "EUR": "USD",
    "+31612345678": "+31612345679",
    "+4930123": "Acme",
}
"""A value that is as valid, for fields that do not take any text."""


@pytest.mark.parametrize("task", KEYED)
def test_every_given_field_is_part_of_the_digest(task: str) -> None:
    whole = EXAMPLES[task]
    fields = [name for name in whole if name != MESSAGES[task].key]

    others = [{**whole, name: changed(whole[name])} for name in fields]

    digests = {digest_of(task, job) for job in (whole, *others)}
    assert len(digests) == len(fields) + 1


@pytest.mark.parametrize("task", sorted({str(example.values[0]) for example in OLDER}))
def test_another_job_has_no_digest_of_an_older_release(task: str) -> None:
    [example] = [example.values[1] for example in OLDER if example.id == f"{task}, everything"]
    job = example["job"]

    for name in job:
        assert parse(task, {**job, name: changed(job[name])}).has_digest(example["version 1"]) == (
            name == MESSAGES[task].key
        )


def test_the_task_is_part_of_the_digest() -> None:
    shared = {"job_id": "a", "sender": "mary", "text": "Hello"}
    sms = parse("sms.send", {**shared, "to": "+31612345678"})
    bulk = parse("sms.send_many", {**shared, "recipients": [{"to": "+31612345678"}]})

    assert {MESSAGES[task].task for task in KEYED} == set(KEYED)
    assert sms.digest() != bulk.digest()


@pytest.mark.parametrize("task", KEYED)
def test_null_is_taken_only_where_it_is_the_default(task: str) -> None:
    """So null is the same as a field that is left out, in the digest as in what is done."""
    schema = MESSAGES[task].model_json_schema()
    fields = [field for part in (schema, *schema.get("$defs", {}).values()) for field in part["properties"].values()]

    assert all(field["default"] is None for field in fields if {"type": "null"} in field.get("anyOf", ()))


def test_of_a_field_that_is_there_twice_the_last_counts() -> None:
    """For the digest as for what is sent, since both are of the decoded job."""
    job = email_job(text="last")
    document = json.dumps(job).replace('"text"', '"text": "first", "text"')

    assert digest_of("email.send", from_json(document)) == digest_of("email.send", job)
    assert digest_of("email.send", json.loads(document)) == digest_of("email.send", job)


def test_recipients_in_another_order_make_another_email() -> None:
    """Everybody sees the order in the mail, and the messages of a bulk job are numbered by it."""
    there, back = ["ada@x.test", "bob@x.test"], ["bob@x.test", "ada@x.test"]

    assert digest_of("email.send", email_job(to=there)) != digest_of("email.send", email_job(to=back))


@pytest.mark.parametrize("stored", ["", "3:", "2:", "0" * 64, "3:" + "0" * 44])
def test_a_digest_of_an_unknown_kind_is_no_jobs_digest(stored: str) -> None:
    assert not any(parse(task, EXAMPLES[task]).has_digest(stored) for task in KEYED)


@given(st.data(), st.sampled_from(KEYED))
def test_a_digest_says_its_version_and_is_short(data: st.DataObject, task: str) -> None:
    digest = digest_of(task, with_key(task, data.draw(JOBS[task])))

    assert digest.startswith("2:")
    assert len(digest) == 46
    assert digest.isascii()
