"""What an HTTP gateway says inside its answer, and the rules by which it is read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.carrier_urls import CarrierUrlError, parse_carrier_url
from worker.carriers.answer_rules import AnswerRules, Said

VONAGE = "https://sms.example/?taken=messages.*.status:0&later=messages.*.status:1|5|10"
VONAGE += "&fault=messages.*.status:4|8|9&never=messages.*.status:2|3|6|7|15|33&id=messages.0.message-id&window=0s"
TWILIO = "https://sms.example/?taken=sid&id=sid&fault=code:10001|20003|30002&later=code:20429&window=0s"
BREVO = "https://sms.example/?duplicate=code:duplicate_parameter&id=messageId&window=15m"
WRAPPED = "https://sms.example/?taken=ok:true&never=error.code:bad_number&fault=error.code:no_credit&id=result.id"


def rules(url: str) -> AnswerRules:
    """Return the rules of a URL."""
    return AnswerRules(parse_carrier_url(url).options)


def vonage(*statuses: str) -> dict[str, Any]:
    """Return what Vonage answers for as many parts of a message."""
    messages = [{"status": status, "message-id": f"A{place}"} for place, status in enumerate(statuses)]
    return {"message-count": str(len(statuses)), "messages": messages}


@pytest.mark.parametrize(
    ("url", "content", "said", "reference"),
    [
        (VONAGE, vonage("0"), Said.TAKEN, "A0"),
        (VONAGE, vonage("0", "0", "0"), Said.TAKEN, "A0"),
        (VONAGE, vonage("1"), Said.LATER, "A0"),
        (VONAGE, vonage("9"), Said.FAULT, "A0"),
        (VONAGE, vonage("7", "33"), Said.NEVER, "A0"),
        (VONAGE, vonage("0", "1"), None, "A0"),  # a part of it was taken
        (VONAGE, vonage(), None, None),
        (VONAGE, {"messages": [{"status": "0"}, {}]}, None, None),
        (VONAGE, "not JSON", None, None),
        (TWILIO, {"sid": "SM7", "status": "queued", "error_code": None}, Said.TAKEN, "SM7"),
        (TWILIO, {"sid": None}, None, None),
        (TWILIO, {"code": 30002, "message": "Account suspended", "status": 401}, Said.FAULT, None),
        (TWILIO, {"code": 21211, "message": "Invalid To", "status": 400}, None, None),
        (BREVO, {"messageId": 1511882900176220}, None, "1511882900176220"),
        (BREVO, {"code": "duplicate_parameter", "message": "…"}, Said.DUPLICATE, None),
        (WRAPPED, {"ok": True, "result": {"id": "r-1"}}, Said.TAKEN, "r-1"),
        (WRAPPED, {"ok": False, "error": {"code": "bad_number"}}, Said.NEVER, None),
        (WRAPPED, {"ok": False, "error": {"code": "no_credit"}}, Said.FAULT, None),
        (WRAPPED, {"ok": "true", "error": {"code": "bad_number"}}, Said.TAKEN, None),  # as text, and taken comes first
        (WRAPPED, {"ok": 1}, None, None),
    ],
)
def test_rules_tell_what_became_of_a_message(url: str, content: Any, said: Said | None, reference: str | None) -> None:
    """Those of gateways that say 200 and an error inside, that answer a repeated key by an error, and others."""
    found = rules(url)

    assert found.first(content, is_success=True) is said
    assert found.reference(content) == reference


def test_an_answer_that_is_no_success_is_never_taken() -> None:
    """But it may be one to a repeated key."""
    assert rules(TWILIO).first({"sid": "SM7"}, is_success=False) is None
    assert rules(BREVO).first({"code": "duplicate_parameter"}, is_success=False) is Said.DUPLICATE


def test_a_value_may_have_a_colon_and_be_of_any_type() -> None:
    """It is compared as text."""
    found = rules("https://sms.example/?taken=a.0:x:y|null|1.5|true")

    for value in ("x:y", None, 1.5, True):
        assert found.first({"a": [value]}, is_success=True) is Said.TAKEN
    for value in ("x", 0, False, "None", [], {}):
        assert found.first({"a": [value]}, is_success=True) is None


@pytest.mark.parametrize("text", ["", ":", "a:", "a:|", "a:1|", ".a", "a.", "a..b", "a b:1", "a.b.c.d.e.f.g.h.i.j.k"])
def test_a_rule_that_cannot_be_read_is_refused(text: str) -> None:
    """With a sentence that says how it is written."""
    with pytest.raises(CarrierUrlError, match=r"has taken=.*; it is written PATH or PATH:VALUE\|VALUE…$"):
        AnswerRules({"taken": text})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["0", "1", "9", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["messages", "status", "id", "0"]), inner)
    ),
)


@given(JSON)
def test_any_answer_can_be_looked_at(content: Any) -> None:
    """And only a status of 0 for every part means that it was taken."""
    if rules(VONAGE).first(content, is_success=True) is Said.TAKEN:
        assert {str(part["status"]) for part in content["messages"]} == {"0"}
    json.dumps(rules(VONAGE).reference(content))
