"""Task messages: which fields and values are accepted, and which are refused by name."""

import json
import math
import unicodedata
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
from email_validator import validate_email
from hypothesis import assume, given
from hypothesis import strategies as st

from models.messages.addresses import check_address, normalize_address
from models.messages.billing import Purchase, SaveUser
from models.messages.sends import SendEmail, SendSms
from models.messages.views import View
from models.messages.wire import MESSAGES, parse
from tests.factories import content_of, cost_of, email_job, purchase_order, sms_job
from tests.unit.wire import EXAMPLES, TASKS, field_names, is_presentable, refusal


@pytest.mark.parametrize("task", TASKS)
def test_every_message_has_a_valid_example(task: str) -> None:
    assert isinstance(parse(task, EXAMPLES[task]), MESSAGES[task])


@pytest.mark.parametrize("task", [task for task in TASKS if not task.startswith("views.")])
def test_the_examples_show_nearly_every_field(task: str) -> None:
    left_out = {
        "credits.purchase": {"plan"},
        "email.send_many": {"cc", "bcc"},
        "messages.cancel": {"sender"},
    }

    assert set(field_names(task)) - set(EXAMPLES[task]) == left_out.get(task, set())


@pytest.mark.parametrize("task", TASKS)
def test_a_message_goes_through_json_unchanged(task: str) -> None:
    message = parse(task, EXAMPLES[task])

    again = parse(task, json.loads(json.dumps(message.model_dump(mode="json", exclude_none=True, by_alias=True))))

    assert again == message


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_field_is_refused_by_name(task: str) -> None:
    sentence = refusal(task, {**EXAMPLES[task], "prioritty": "secret"})

    assert "`prioritty`" in sentence
    assert "secret" not in sentence


@pytest.mark.parametrize("task", ["email.send_many", "sms.send_many"])
def test_an_unknown_field_of_a_recipient_is_refused_with_its_place(task: str) -> None:
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
@pytest.mark.parametrize("job", [None, [], [{}], "text", 7, True, math.nan])
def test_a_job_that_is_no_object_is_refused(task: str, job: object) -> None:
    assert refusal(task, job) == f"{task} takes one JSON object as its only argument."


@pytest.mark.parametrize("task", TASKS)
def test_nested_garbage_is_refused_in_every_field(task: str) -> None:
    deep: Any = "secret"
    for _ in range(5000):
        deep = [deep]
    for name in field_names(task):
        garbages: list[Any] = [deep, [[]], {"a": {"b": ["secret"]}}, [{"secret": None}]]
        for garbage in garbages:
            sentence = refusal(task, {**EXAMPLES[task], name: garbage})

            assert is_presentable(sentence)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "text",
    ["secret\x00", "\ud800secret", "secret\udfff", "\x00", "secret\x1b[2J", "secret\x85"],
    ids=["NUL", "high surrogate", "low surrogate", "NUL alone", "escape", "next line"],
)
def test_control_characters_and_lone_surrogates_are_refused(task: str, text: str) -> None:
    for name, value in EXAMPLES[task].items():
        if isinstance(value, str):
            sentence = refusal(task, {**EXAMPLES[task], name: text})

            assert f"`{name}" in sentence
            assert is_presentable(sentence)
            assert "secret" not in sentence


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
def test_line_breaks_cannot_smuggle_a_header_in(spoil: Any, line: str) -> None:
    assert is_presentable(refusal("email.send", email_job(**spoil(line))))


@pytest.mark.parametrize(
    "name", ["From", "BCC", "message-id", "Content-Type", "content-transfer-encoding", "Resent-To", "DKIM-Signature"]
)
def test_a_header_that_postage_writes_itself_is_refused(name: str) -> None:
    assert name in refusal("email.send", email_job(headers={name: "x"}))


def test_a_header_named_twice_is_refused() -> None:
    assert "once" in refusal("email.send", email_job(headers={"X-A": "1", "x-a": "2"}))


@pytest.mark.parametrize(
    "value", [True, False, "5", 5.0, 5.5, math.nan, math.inf, -1, 2**63, 2**64, 10**400, None, [5], {}]
)
def test_only_a_whole_number_within_bounds_is_a_count_of_credits(value: object) -> None:
    sentence = refusal("credits.purchase", purchase_order(credits={"email": value}))

    assert "`credits.email`" in sentence


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
def test_an_order_out_of_bounds_is_refused(fields: dict[str, Any]) -> None:
    """It names either a plan, or credits with an amount and a currency."""
    assert is_presentable(refusal("credits.purchase", {**purchase_order(email=1), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"to": []},
        {"to": ""},
        {"to": "ada"},
        {"to": "Ada, B. <ada@example.test>"},
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


def test_a_recipient_named_twice_costs_one_credit() -> None:
    job = email_job(to=["a@x.test", "b@x.test"], cc="a@x.test", bcc=["c@x.test", "b@x.test"])

    message = parse("email.send", job)

    assert isinstance(message, SendEmail)
    content = content_of(message)
    assert content.fields["recipients"] == ["a@x.test", "b@x.test", "c@x.test"]
    assert content.cost == 3


@pytest.mark.parametrize(
    "address", ["ada", "ada bob@x.test", "ada\r\n@x.test", ".ada@x.test", "a@x.test\n", "a@\u200bx.test"]
)
@pytest.mark.parametrize(
    ("task", "spoil"),
    [
        ("email.send", lambda address: {"to": address}),
        ("email.send", lambda address: {"bcc": ["bob@x.test", address]}),
        ("email.send_many", lambda address: {"recipients": [{"to": address}]}),
        ("email.send_many", lambda address: {"reply_to": address}),
        ("users.save", lambda address: {"email": address}),
    ],
    ids=["to", "bcc", "recipients", "reply_to", "user"],
)
def test_what_is_no_address_is_refused_wherever_one_stands(task: str, spoil: Any, address: str) -> None:
    assert "must be one email address" in refusal(task, {**EXAMPLES[task], **spoil(address)})


def test_the_address_of_a_user_is_stored_in_its_normal_form() -> None:
    user = parse("users.save", {**EXAMPLES["users.save"], "email": "Ada@EXAMPLE.test"})

    assert isinstance(user, SaveUser)
    assert user.email == "Ada@example.test"


def test_an_address_is_kept_as_it_was_written_and_stored_in_its_normal_form() -> None:
    job = email_job(to=["Ada@EXAMPLE.test", "Ada@example.test"], cc="jose\u0301@B\u00dcCHER.test", reply_to="D@X.Test")

    message = parse("email.send", job)

    assert isinstance(message, SendEmail)
    assert (message.to, message.cc, message.reply_to) == (job["to"], [job["cc"]], [job["reply_to"]])
    content = content_of(message)
    assert content.fields["recipients"] == ["Ada@example.test", "jos\u00e9@b\u00fccher.test"]
    assert content.fields["to"] == ["Ada@example.test"] * 2
    assert (content.fields["cc"], content.fields["reply_to"]) == (["jos\u00e9@b\u00fccher.test"], "D@x.test")


def test_a_recipient_named_twice_in_different_forms_counts_once_for_the_limit() -> None:
    hundred = [f"u{number}@example.test" for number in range(100)]

    message = parse("email.send", email_job(to=hundred, cc="u0@EXAMPLE.test"))

    assert isinstance(message, SendEmail)
    assert cost_of(message) == 100
    assert "must not have more than 100 recipients" in refusal(
        "email.send", email_job(to=hundred, cc="U0@example.test")
    )


@given(st.emails() | st.builds("{}@{}".format, st.text(max_size=70), st.sampled_from(["X.test", "B\u00fccher.test"])))
def test_the_normal_form_of_an_address_is_the_librarys(written: str) -> None:
    try:
        check_address(written)
    except ValueError:
        assume(False)

    theirs = validate_email(written, check_deliverability=False, test_environment=True)

    local = unicodedata.normalize("NFC", written.rpartition("@")[0])
    assert normalize_address(written) == f"{local}@{theirs.domain}"


def test_the_largest_messages_are_accepted() -> None:
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
def test_a_value_that_is_no_time_is_refused(value: object) -> None:
    assert "`since`: must be an ISO 8601 date" in refusal("views.usage", {"viewer": "john", "since": value})


def test_a_purchase_names_a_plan_or_a_count_of_credits() -> None:
    by_plan = parse("credits.purchase", {"order_id": "o", "buyer": "john", "plan": "small"})
    by_count = parse("credits.purchase", purchase_order(email=1))

    assert isinstance(by_plan, Purchase)
    assert isinstance(by_count, Purchase)
    assert (by_plan.plan, by_plan.credits, by_count.plan) == ("small", None, None)
