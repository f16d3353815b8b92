"""Bulk jobs: how a template becomes a message for each recipient, and what is refused."""

from typing import Any

import pytest

from models.errors import Reason, Refused
from models.messages.bulk import SendManyEmails, SendManySms
from models.messages.sends import SendEmail, SendSms
from models.messages.wire import parse
from tests.factories import cost_of, messages_of
from tests.unit.wire import is_presentable, refusal

Json = Any


def messages_of_job(task: str, recipients: list[Json], **fields: Any) -> list[SendEmail | SendSms]:
    """Give the messages of a bulk job of john's."""
    shared = {"subject": "S", "text": "T"} if task == "email.send_many" else {"text": "T"}
    message = parse(task, {"job_id": "bulk", "sender": "john", "recipients": recipients, **shared, **fields})
    assert isinstance(message, SendManyEmails | SendManySms)
    return messages_of(message)


def test_placeholders_are_filled_and_escaped_only_in_html() -> None:
    values = {"name": "<b>Tom & 'Ada'</b>", "n_1": '"'}

    [message] = messages_of_job(
        "email.send_many",
        [{"to": "ada@x.test", "values": values}],
        subject="To {{name}}",
        text="{{name}} {{ n_1 }} {name} }}",
        html='<p title="{{n_1}}">{{  name  }}</p>',
    )

    assert isinstance(message, SendEmail)
    assert message.subject == "To <b>Tom & 'Ada'</b>"
    assert message.text == "<b>Tom & 'Ada'</b> \" {name} }}"
    assert message.html == '<p title="&quot;">&lt;b&gt;Tom &amp; &#x27;Ada&#x27;&lt;/b&gt;</p>'


@pytest.mark.parametrize(
    "text",
    [
        "{{ na me }}",
        "{{}}",
        "{{",
        "{{{{n}}}}",
        "{{{n}}}",
        "{{#if n}}x{{/if}}",
        "{{n|upper}}",
        "{{n",
        "{{ n.\u200b }}",
        "{ {{n}}{{",
    ],
)
@pytest.mark.parametrize("field", ["subject", "text", "html"])
def test_no_braces_go_out(field: str, text: str) -> None:
    recipients = [{"to": "ada@x.test", "values": {"n": "Ada"}}]

    detail = refusal(
        "email.send_many", {"sender": "a", "subject": "S", "text": "T", "recipients": recipients, field: text}
    )

    assert "{{name}}" in detail
    assert "{{name}}" in refusal(
        "sms.send_many", {"sender": "a", "text": text, "recipients": [{"to": "+31612345678", "values": {"n": "Ada"}}]}
    )


def test_placeholders_are_filled_in_no_header() -> None:
    job = {"sender": "a", "subject": "S", "text": "T", "recipients": [{"to": "a@x.test"}]}

    assert "headers" in refusal("email.send_many", {**job, "headers": {"List-Unsubscribe": "<https://x.test/{{n}}>"}})


@pytest.mark.parametrize("name", ["naïve", "имя", "first-name", "user.name", "名前", "n_1", "0"])
def test_names_of_placeholders_may_be_of_any_script(name: str) -> None:
    [message] = messages_of_job(
        "sms.send_many", [{"to": "+31612345678", "values": {name: "x"}}], text=f"{{{{ {name} }}}}"
    )

    assert message.text == "x"


def test_a_value_that_looks_like_a_placeholder_is_not_filled_again() -> None:
    values = {"a": "{{b}}", "b": "secret"}

    [message] = messages_of_job("sms.send_many", [{"to": "+31612345678", "values": values}], text="{{a}}")

    assert message.text == "{{b}}"


def test_values_that_no_placeholder_asks_for_are_accepted() -> None:
    [message] = messages_of_job("sms.send_many", [{"to": "+31612345678", "values": {"unused": "x"}}])

    assert message.text == "T"


def test_shared_fields_are_in_each_message() -> None:
    shared = {"cc": ["c@x.test"], "bcc": "b@x.test", "reply_to": "r@x.test", "headers": {"X-A": "1"}}

    messages = messages_of_job("email.send_many", [{"to": "a@x.test"}, {"to": "d@x.test"}], **shared)

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
    [message] = messages_of_job("sms.send_many", [{"to": "+31612345678"}], **{"from": "Acme"})

    assert isinstance(message, SendSms)
    assert message.from_ == "Acme"


@pytest.mark.parametrize(
    ("task", "values", "fields", "sentence"),
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
def test_a_fault_of_one_recipient_is_refused_with_their_place(
    task: str, values: dict[str, str], fields: dict[str, Any], sentence: str
) -> None:
    to = "ada@x.test" if task == "email.send_many" else "+31612345678"

    with pytest.raises(Refused) as refused:
        messages_of_job(task, [{"to": to, "values": {"name": "Ada"}}, {"to": to, "values": values}], **fields)

    assert refused.value.reason is Reason.INVALID_JOB
    assert sentence in refused.value.detail
    assert is_presentable(refused.value.detail)
    assert "secret" not in refused.value.detail


def test_addresses_of_a_bulk_job_are_stored_in_their_normal_form() -> None:
    copied = {"cc": ["A@X.test", "a@x.TEST"], "reply_to": "r@X.test"}

    [message] = messages_of_job("email.send_many", [{"to": "a@X.test"}], **copied)

    assert isinstance(message, SendEmail)
    assert (message.to, message.cc, message.reply_to) == (["a@x.test"], ["A@x.test", "a@x.test"], ["r@x.test"])
    assert cost_of(message) == 2


def test_a_message_of_a_bulk_job_has_at_most_a_hundred_recipients() -> None:
    copied = {"cc": [f"c{number}@x.test" for number in range(50)], "bcc": [f"b{number}@x.test" for number in range(50)]}

    [message] = messages_of_job("email.send_many", [{"to": "c0@x.test"}], **copied)
    with pytest.raises(Refused) as refused:
        messages_of_job("email.send_many", [{"to": "c0@x.test"}, {"to": "d@x.test"}], **copied)

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


def test_a_text_is_counted_before_it_is_made() -> None:
    """A hundred kilobytes would become 28 MB for each recipient."""
    recipients = [{"to": f"a{number}@x.test", "values": {"n": "v" * 2_000}} for number in range(500)]

    with pytest.raises(Refused, match="more than 2,000,000 characters") as refused:
        messages_of_job("email.send_many", recipients, text="{{n}}" * 14_000)

    assert refused.value.reason is Reason.INVALID_JOB


def test_a_bulk_job_whose_messages_are_too_large_together_is_refused() -> None:
    recipients = [{"to": f"a{number}@x.test"} for number in range(500)]

    with pytest.raises(Refused, match="send fewer recipients") as refused:
        messages_of_job("email.send_many", recipients, html="x" * 60_000)
    few = messages_of_job("email.send_many", recipients[:400], html="x" * 60_000)

    assert refused.value.reason is Reason.TOO_LARGE
    assert len(few) == 400
