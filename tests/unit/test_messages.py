"""The wire contract: what is taken, what is refused, and with which words."""

import json
import math
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Reason, Refused
from models.messages.base import TaskMessage
from models.messages.billing import Purchase
from models.messages.bulk import SendManyEmails, SendManySms
from models.messages.sends import SendEmail, SendSms
from models.messages.views import View
from models.messages.wire import MESSAGES, parse
from tests.factories import cost_of, email_job, messages_of, purchase_order, sms_job

Json = Any

EXAMPLES = {
    path.stem: json.loads(path.read_text())["job"]
    for path in sorted((Path(__file__).parents[2] / "examples" / "messages").glob("*.json"))
}
TASKS = sorted(MESSAGES)
TEXTS = st.text(st.characters())
"""Any text that JSON can carry, lone surrogates too."""
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
FIELDS = sorted({name for message in MESSAGES.values() for name in message.model_fields})
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=25,
)


def refusal(task: str, given_: object) -> str:
    """Give the sentence with which a job is refused."""
    with pytest.raises(Refused) as refused:
        parse(task, given_)
    assert refused.value.reason is Reason.INVALID_JOB
    return refused.value.detail


def is_presentable(detail: str) -> bool:
    return detail.isprintable() and 0 < len(detail) < 1000


def every_field(task: str) -> list[str]:
    return [field.alias or name for name, field in MESSAGES[task].model_fields.items()]


@pytest.mark.parametrize("task", TASKS)
def test_every_message_has_an_example_that_is_valid(task: str) -> None:
    assert isinstance(parse(task, EXAMPLES[task]), MESSAGES[task])


@pytest.mark.parametrize("task", [task for task in TASKS if not task.startswith("views.")])
def test_the_examples_show_nearly_every_field(task: str) -> None:
    left_out = {"credits.purchase": {"plan"}, "email.send_many": {"cc", "bcc"}}

    assert set(every_field(task)) - set(EXAMPLES[task]) == left_out.get(task, set())


@pytest.mark.parametrize("task", TASKS)
def test_a_message_goes_through_json_unchanged(task: str) -> None:
    message = parse(task, EXAMPLES[task])

    again = parse(task, json.loads(json.dumps(message.model_dump(mode="json", exclude_none=True, by_alias=True))))

    assert again == message


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_field_is_refused_by_name(task: str) -> None:
    said = refusal(task, {**EXAMPLES[task], "prioritty": "secret"})

    assert "`prioritty`" in said
    assert "secret" not in said


@pytest.mark.parametrize("task", ["email.send_many", "sms.send_many"])
def test_an_unknown_field_of_a_recipient_is_refused_by_its_place(task: str) -> None:
    job = deepcopy(EXAMPLES[task])
    job["recipients"][1]["vlaues"] = {}

    assert "`recipients.1.vlaues`" in refusal(task, job)


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_field_is_refused_by_name(task: str) -> None:
    for name, field in MESSAGES[task].model_fields.items():
        if field.is_required():
            without = {key: value for key, value in EXAMPLES[task].items() if key != name}

            assert f"`{name}`" in refusal(task, without)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("given_", [None, [], [{}], "text", 7, True, math.nan])
def test_what_is_no_object_is_refused(task: str, given_: object) -> None:
    assert refusal(task, given_) == f"{task} takes one JSON object as its only argument."


@pytest.mark.parametrize("task", TASKS)
def test_nested_garbage_is_refused_wherever_it_stands(task: str) -> None:
    deep: Any = "secret"
    for _ in range(5000):
        deep = [deep]
    for name in every_field(task):
        garbages: list[Json] = [deep, [[]], {"a": {"b": ["secret"]}}, [{"secret": None}]]
        for garbage in garbages:
            said = refusal(task, {**EXAMPLES[task], name: garbage})

            assert is_presentable(said)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "text",
    ["secret\x00", "\ud800secret", "secret\udfff", "\x00", "secret\x1b[2J", "secret\x85"],
    ids=["NUL", "high surrogate", "low surrogate", "NUL alone", "escape", "next line"],
)
def test_control_characters_and_lone_surrogates_are_refused_in_every_text(task: str, text: str) -> None:
    for name, value in EXAMPLES[task].items():
        if isinstance(value, str):
            said = refusal(task, {**EXAMPLES[task], name: text})

            assert f"`{name}" in said
            assert is_presentable(said)
            assert "secret" not in said


@pytest.mark.parametrize("line", ["\r\nBcc: eve@x.test", "a\nb", "a\rb", "\n", "a\x0bb", "a\u0085b"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: {"subject": line},
        lambda line: {"headers": {"X-Test": line}},
        lambda line: {"headers": {f"X{line}": "1"}},
        lambda line: {"to": f"ada@example.test{line}"},
        lambda line: {"cc": [f"{line}ada@example.test"]},
        lambda line: {"reply_to": f"ada{line}@example.test"},
        lambda line: {"sender": f"john{line}"},
        lambda line: {"job_id": f"job{line}"},
    ],
    ids=["subject", "header", "header name", "to", "cc", "reply_to", "sender", "job_id"],
)
def test_headers_cannot_be_smuggled_in(spoil: Any, line: str) -> None:
    assert is_presentable(refusal("email.send", email_job(**spoil(line))))


@pytest.mark.parametrize(
    "name", ["From", "BCC", "message-id", "Content-Type", "content-transfer-encoding", "Resent-To", "DKIM-Signature"]
)
def test_headers_that_the_post_writes_itself_are_refused(name: str) -> None:
    assert name in refusal("email.send", email_job(headers={name: "x"}))


def test_a_header_named_twice_is_refused() -> None:
    assert "once" in refusal("email.send", email_job(headers={"X-A": "1", "x-a": "2"}))


@pytest.mark.parametrize(
    "value", [True, False, "5", 5.0, 5.5, math.nan, math.inf, -1, 2**63, 2**64, 10**400, None, [5], {}]
)
def test_only_a_whole_number_within_bounds_is_a_count_of_credits(value: object) -> None:
    said = refusal("credits.purchase", purchase_order(credits={"email": value}))

    assert "`credits.email`" in said


@pytest.mark.parametrize("value", [True, "1000", 10.0, math.nan, -1, 2**64, 10**15 + 1])
def test_only_a_whole_number_within_bounds_is_an_amount(value: object) -> None:
    assert "`amount`" in refusal("credits.purchase", purchase_order(email=1, amount=value))


@pytest.mark.parametrize("value", [True, 0, -1, 1.0, "1", 2**63])
def test_only_a_whole_number_from_one_on_is_a_page(value: object) -> None:
    assert "`page`" in refusal("views.usage", {"viewer": "john", "page": value})


@pytest.mark.parametrize(
    "fields",
    [
        {"plan": "small"},
        {"credits": None},
        {"amount": None},
        {"currency": None},
        {"credits": None, "amount": None, "currency": None},
        {"plan": "small", "credits": None},
        {"credits": {}},
        {"credits": {"email": 0, "sms": 0}},
        {"currency": "eur"},
        {"currency": "EURO"},
        {"credit_to": "peter"},
        {"billing": {}},
        {"billing": {"name": ""}},
        {"billing": {"na me": "x"}},
        {"billing": {str(number): "x" for number in range(31)}},
        {"order_id": ""},
        {"order_id": "x" * 65},
        {"order_id": "a/b"},
        {"order_id": "é"},
    ],
)
def test_an_order_says_in_one_way_what_is_bought(fields: dict[str, Any]) -> None:
    assert is_presentable(refusal("credits.purchase", {**purchase_order(email=1), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"to": []},
        {"to": ""},
        {"to": "ada"},
        {"to": "Ada <ada@example.test>"},
        {"to": "ada@example.test, eve@example.test"},
        {"to": ["ada@example.test", ""]},
        {"to": [f"u{number}@example.test" for number in range(101)]},
        {"to": [f"u{number}@example.test" for number in range(60)], "bcc": [f"v{n}@example.test" for n in range(60)]},
        {"to": "ada@[127.0.0.1]"},
        {"to": "ada@localhost"},
        {"subject": ""},
        {"subject": "x" * 901},
        {"text": ""},
        {"text": None},
        {"html": ""},
        {"text": "x" * 1_000_001},
        {"headers": {f"X-{number}": "1" for number in range(31)}},
        {"headers": {"X A": "1"}},
        {"headers": {"X-A": ""}},
        {"headers": ["X-A"]},
    ],
)
def test_an_email_out_of_bounds_is_refused(fields: dict[str, Any]) -> None:
    assert is_presentable(refusal("email.send", email_job(**fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"to": "0612345678"},
        {"to": "+0612345678"},
        {"to": "+316"},
        {"to": "+" + "1" * 16},
        {"to": "+31612345678\n"},
        {"to": "+٣١٦١٢٣٤٥٦٧٨"},
        {"text": ""},
        {"text": "x" * 1531},
        {"text": "ж" * 671},
        {"from": ""},
        {"from": "TwelveLetter"},
        {"from": "Acme!"},
        {"from": "Acme\n"},
        {"from_": "Acme"},
    ],
)
def test_a_text_message_out_of_bounds_is_refused(fields: dict[str, Any]) -> None:
    assert is_presentable(refusal("sms.send", sms_job(**fields)))


def test_what_a_message_costs_counts_everybody_once() -> None:
    job = email_job(to=["a@x.test", "b@x.test"], cc="a@x.test", bcc=["c@x.test", "b@x.test"])

    message = parse("email.send", job)

    assert isinstance(message, SendEmail)
    assert message.recipients() == ("a@x.test", "b@x.test", "c@x.test")
    assert cost_of(message) == 3


def test_the_largest_messages_are_taken() -> None:
    hundred = [f"u{number}@example.test" for number in range(100)]
    email = parse("email.send", email_job(to=hundred, subject="x" * 900, text="x" * 1_000_000, html="x" * 2_000_000))
    sms = parse("sms.send", sms_job(text="x" * 1530))

    assert isinstance(email, SendEmail)
    assert isinstance(sms, SendSms)
    assert (cost_of(email), cost_of(sms)) == (100, 10)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("2026-11-23T10:00:00", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("2026-11-23T10:00:00Z", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("2026-11-23T10:00:00+02:00", datetime(2026, 11, 23, 8, tzinfo=UTC)),
    ],
)
def test_times_without_an_offset_are_utc(written: str, meant: datetime) -> None:
    message = parse("views.usage", {"viewer": "john", "since": written})

    assert isinstance(message, View)
    assert message.since == meant


@pytest.mark.parametrize(
    "value",
    ["", "yesterday", "2026-13-01", 1700000000, "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "x" * 10],
)
def test_what_is_no_time_is_refused(value: object) -> None:
    assert "`since`: must be an ISO 8601 date" in refusal("views.usage", {"viewer": "john", "since": value})


def shuffled(given_: Json) -> Json:
    """Give the same object with its fields in the opposite order, all the way down."""
    if isinstance(given_, dict):
        return {name: shuffled(value) for name, value in reversed(given_.items())}
    return [shuffled(value) for value in given_] if isinstance(given_, list) else given_


KEYED = [task for task in TASKS if MESSAGES[task].key]


@pytest.mark.parametrize("task", TASKS)
def test_the_order_of_fields_does_not_matter_to_the_digest(task: str) -> None:
    assert parse(task, EXAMPLES[task]).digest(task) == parse(task, shuffled(EXAMPLES[task])).digest(task)


@pytest.mark.parametrize("task", KEYED)
def test_the_key_is_no_part_of_the_digest(task: str) -> None:
    key = MESSAGES[task].key
    assert key is not None

    assert parse(task, EXAMPLES[task]).digest(task) == parse(task, {**EXAMPLES[task], key: "other"}).digest(task)


def test_the_task_is_part_of_the_digest() -> None:
    message = parse("email.send", EXAMPLES["email.send"])

    assert message.digest("email.send") != message.digest("email.send_many")


OTHERS = {"owner": "self", "EUR": "USD", "+31612345678": "+31612345679"}


def changed(given_: Json) -> Json:
    """Give something else that is as valid."""
    match given_:
        case str():
            return OTHERS.get(given_, f"x{given_}")
        case int():
            return given_ + 1
        case list():
            return [*given_, given_[0]]
        case _:
            first = next(iter(given_))
            return {**given_, first: changed(given_[first])}


@pytest.mark.parametrize("task", KEYED)
def test_every_field_that_was_given_is_part_of_the_digest(task: str) -> None:
    whole = EXAMPLES[task]
    fields = [name for name in whole if name != MESSAGES[task].key]

    others = [{**whole, name: changed(whole[name])} for name in fields]

    digests = {parse(task, given_).digest(task) for given_ in (whole, *others)}
    assert len(digests) == len(fields) + 1


def test_ways_to_write_the_same_have_the_same_digest() -> None:
    one = parse("email.send", email_job(to="ada@example.test", cc=None))
    two = parse("email.send", email_job(to=["ada@EXAMPLE.test"]))
    count = parse("credits.purchase", purchase_order(email=1))
    count_with_defaults = parse("credits.purchase", purchase_order(credits={"email": 1}, credit_to="owner"))

    assert one.digest("email.send") == two.digest("email.send")
    assert count.digest("credits.purchase") == count_with_defaults.digest("credits.purchase")


def test_a_digest_is_the_same_in_every_process_and_version() -> None:
    """It is stored, so a change here turns every job in flight into a conflicting one."""
    message = parse("sms.send", sms_job())

    assert message.digest("sms.send") == "042b49af3c5e112000a50215e1782a95276d685ec6e2a59ecd0959adf4ad28cf"


def bulk(task: str, recipients: list[Json], **fields: Any) -> list[SendEmail | SendSms]:
    shared = {"subject": "S", "text": "T"} if task == "email.send_many" else {"text": "T"}
    message = parse(task, {"job_id": "bulk", "sender": "john", "recipients": recipients, **shared, **fields})
    assert isinstance(message, SendManyEmails | SendManySms)
    return messages_of(message)


def test_placeholders_are_filled_for_each_recipient_and_escaped_in_html_alone() -> None:
    values = {"name": "<b>Tom & 'Ada'</b>", "n_1": '"'}

    [message] = bulk(
        "email.send_many",
        [{"to": "ada@x.test", "values": values}],
        subject="To {{name}}",
        text="{{name}} {{ n_1 }} {{{{n_1}}}} {name} {{ na me }}",
        html='<p title="{{n_1}}">{{  name  }}</p>',
    )

    assert isinstance(message, SendEmail)
    assert message.subject == "To <b>Tom & 'Ada'</b>"
    assert message.text == "<b>Tom & 'Ada'</b> \" {{\"}} {name} {{ na me }}"
    assert message.html == '<p title="&quot;">&lt;b&gt;Tom &amp; &#x27;Ada&#x27;&lt;/b&gt;</p>'


def test_a_value_that_looks_like_a_placeholder_is_not_filled_again() -> None:
    values = {"a": "{{b}}", "b": "secret"}

    [message] = bulk("sms.send_many", [{"to": "+31612345678", "values": values}], text="{{a}}")

    assert message.text == "{{b}}"


def test_values_that_no_placeholder_asks_for_are_no_fault() -> None:
    [message] = bulk("sms.send_many", [{"to": "+31612345678", "values": {"unused": "x"}}])

    assert message.text == "T"


def test_what_all_recipients_share_is_in_each_message() -> None:
    shared = {"cc": ["c@x.test"], "bcc": "b@x.test", "reply_to": "r@x.test", "headers": {"X-A": "1"}}

    messages = bulk("email.send_many", [{"to": "a@x.test"}, {"to": "d@x.test"}], **shared)

    expected = [
        SendEmail(
            sender="john",
            to=[to],
            cc=["c@x.test"],
            bcc=["b@x.test"],
            reply_to="r@x.test",
            headers={"X-A": "1"},
            subject="S",
            text="T",
        )
        for to in ("a@x.test", "d@x.test")
    ]
    assert messages == expected


def test_the_sender_of_a_bulk_text_is_in_each_message() -> None:
    [message] = bulk("sms.send_many", [{"to": "+31612345678"}], **{"from": "Acme"})

    assert isinstance(message, SendSms)
    assert message.from_ == "Acme"


@pytest.mark.parametrize(
    ("task", "values", "fields", "told"),
    [
        ("email.send_many", {}, {"text": "{{name}}"}, "`recipients.1.values` lacks 'name'"),
        ("email.send_many", {}, {"subject": "{{name}}"}, "`recipients.1.values` lacks 'name'"),
        ("email.send_many", {"name": "a\r\nBcc: b"}, {"subject": "{{name}}"}, "`recipients.1`"),
        ("email.send_many", {"name": "x" * 901}, {"subject": "{{name}}"}, "`recipients.1`"),
        ("email.send_many", {"name": ""}, {"text": "{{name}}"}, "`recipients.1`"),
        ("sms.send_many", {}, {"text": "{{name}}"}, "`recipients.1.values` lacks 'name'"),
        ("sms.send_many", {"name": "secret" * 300}, {"text": "{{name}}"}, "`recipients.1`"),
        ("sms.send_many", {"name": ""}, {"text": "{{name}}"}, "`recipients.1`"),
        ("sms.send_many", {"name": "\u00eb" * 1000 + "\u0451"}, {"text": "{{name}}"}, "longer than 10 segments"),
        ("email.send_many", {"name": "\0"}, {"html": "<p>{{name}}</p>"}, "`recipients.1.values.name`"),
    ],
)
def test_what_goes_wrong_for_one_recipient_names_them_by_their_place(
    task: str, values: dict[str, str], fields: dict[str, Any], told: str
) -> None:
    to = "ada@x.test" if task == "email.send_many" else "+31612345678"

    with pytest.raises(Refused) as refused:
        bulk(task, [{"to": to, "values": {"name": "Ada"}}, {"to": to, "values": values}], **fields)

    assert refused.value.reason is Reason.INVALID_JOB
    assert told in refused.value.detail
    assert is_presentable(refused.value.detail)
    assert "secret" not in refused.value.detail


def test_a_message_of_a_bulk_job_has_no_more_recipients_than_one_alone() -> None:
    copied = {"cc": [f"c{number}@x.test" for number in range(50)], "bcc": [f"b{number}@x.test" for number in range(50)]}

    [message] = bulk("email.send_many", [{"to": "c0@x.test"}], **copied)
    with pytest.raises(Refused) as refused:
        bulk("email.send_many", [{"to": "c0@x.test"}, {"to": "d@x.test"}], **copied)

    assert cost_of(message) == 100
    assert refused.value.detail == (
        "Filled for `recipients.1`, the message is not valid: The message must not have more than 100 recipients in "
        "to, cc and bcc together."
    )


@pytest.mark.parametrize("count", [0, 501])
def test_a_bulk_job_has_one_to_five_hundred_recipients(count: int) -> None:
    recipients = [{"to": f"u{number}@x.test"} for number in range(count)]

    job = {"sender": "john", "subject": "S", "text": "T", "recipients": recipients}
    assert "`recipients`" in refusal("email.send_many", job)


def spoilt_values(given_: Json, secret: str) -> list[Json]:
    """Give copies of an object, each with one text or number in it replaced by something wrong."""
    if isinstance(given_, dict):
        return [{**given_, name: bad} for name, value in given_.items() for bad in spoilt_values(value, secret)]
    if isinstance(given_, list):
        return [
            [*given_[:place], bad, *given_[place + 1 :]]
            for place, value in enumerate(given_)
            for bad in spoilt_values(value, secret)
        ]
    return [f"{secret}\x00", {secret: secret}, [secret], -4815162342]


@pytest.mark.parametrize("task", TASKS)
def test_a_refusal_never_repeats_a_value(task: str) -> None:
    for given_ in spoilt_values(EXAMPLES[task], "5ecret"):
        said = refusal(task, given_)

        assert "4815162342" not in said
        assert is_presentable(said)
        assert "5ecret\x00" not in said
        if {"5ecret": "5ecret"} not in _parts(given_):
            assert "5ecret" not in said


def _parts(given_: Json) -> list[Json]:
    inner = given_.values() if isinstance(given_, dict) else given_ if isinstance(given_, list) else []
    return [given_, *(part for value in inner for part in _parts(value))]


def test_a_refusal_names_three_faults_and_counts_the_rest() -> None:
    said = refusal("email.send", {f"wrong{number}": 1 for number in range(9)})

    assert said.endswith("And 9 more.")


@pytest.mark.parametrize(
    "name",
    ["x" * 65, "x" * 10_000, "é" * 100, "a\nb", "\x00", "\ud800", "", "\u202egnp.exe"],
    ids=["too long", "much too long", "accents", "line break", "NUL", "surrogate", "nothing", "backwards"],
)
def test_a_refusal_can_be_printed_whatever_the_fields_are_called(name: str) -> None:
    assert is_presentable(refusal("views.billing", {"viewer": "john", name: 1}))
    assert is_presentable(refusal("users.save", {**EXAMPLES["users.save"], "billing": {name: ""}}))


def test_the_longest_refusal_is_not_too_long() -> None:
    wrong = {f"{number}" + "\U0001f600" * 64: 1 for number in range(9)}

    assert is_presentable(refusal("email.send", email_job(headers=wrong, cc=[""] * 3)))
    assert is_presentable(refusal("email.send_many", {"recipients": [{"to": "a@x.test", "values": wrong}]}))


def outcome(task: str, given_: object) -> TaskMessage | Refused:
    """Give the message, or why it was refused; anything else that is raised is a bug."""
    try:
        message = parse(task, given_, job_id="task-1")
        if isinstance(message, SendManyEmails | SendManySms):
            list(message.each())
    except Refused as refused:
        return refused
    return message


def check_read(task: str, given_: object) -> None:
    found = outcome(task, given_)

    if isinstance(found, Refused):
        assert found.reason is Reason.INVALID_JOB
        assert is_presentable(found.detail)
    else:
        json.dumps(found.model_dump(mode="json"), allow_nan=False).encode()
        assert len(found.digest(task)) == 64


@given(st.sampled_from(TASKS), JSON)
def test_anything_is_read_or_refused_with_a_sentence(task: str, given_: object) -> None:
    check_read(task, given_)


@given(st.data(), st.sampled_from(TASKS))
def test_an_example_with_anything_in_it_is_read_or_refused_with_a_sentence(data: st.DataObject, task: str) -> None:
    names = data.draw(st.lists(st.sampled_from(every_field(task)), min_size=1, max_size=2))

    check_read(task, {**EXAMPLES[task], **{name: data.draw(JSON | st.lists(TEXTS, min_size=1)) for name in names}})


@given(st.text(st.characters() | st.sampled_from('@.<>"\\[]:;, \u200b'), max_size=60), TEXTS)
def test_anything_before_or_behind_an_at_sign_is_an_address_or_refused(local: str, domain: str) -> None:
    for to in (f"{local}@example.test", f"ada@{domain}", f"ada@{domain}.test", f"{local}@{domain}"):
        check_read("email.send", email_job(to=to))


@given(
    st.lists(st.text(st.characters() | st.sampled_from("{} ")), max_size=4), st.dictionaries(TEXTS, TEXTS, max_size=4)
)
def test_any_template_is_filled_or_refused_with_a_sentence(parts: list[str], values: dict[str, str]) -> None:
    template = "{{x}}".join(parts)
    recipients = [{"to": "ada@x.test", "values": values}, {"to": "eve@x.test", "values": {**values, "x": "{{x}}"}}]
    email = {"sender": "john", "subject": template, "html": template, "recipients": recipients}

    check_read("email.send_many", email)


def test_a_purchase_s_two_ways_are_both_read() -> None:
    by_plan = parse("credits.purchase", {"order_id": "o", "buyer": "john", "plan": "small"})
    by_count = parse("credits.purchase", purchase_order(email=1))

    assert isinstance(by_plan, Purchase)
    assert isinstance(by_count, Purchase)
    assert (by_plan.plan, by_plan.credits, by_count.plan) == ("small", None, None)
