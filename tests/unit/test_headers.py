"""Headers that a job may give an email, and those that it must not."""

import email
import re
from email.header import decode_header, make_header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.errors import Reason, Refused
from models.messages.acceptance import check_acceptable, is_blank, refuse_other_headers
from models.messages.headers import ALLOWED_HEADERS, HEADER_MAX, WORD_MAX, check_headers
from models.messages.wire import parse
from models.sends.carrier import Email
from tests.unit.wire import refusal
from worker.carriers.mime import compose

EMAIL = {"job_id": "a", "sender": "john", "to": "a@x.test", "subject": "S", "text": "T"}
ADDING_RECIPIENTS = ["X-SMTPAPI", "X-MC-BccAddress", "X-Mailgun-Variables", "X-SES-CONFIGURATION-SET", "X-PM-Tag"]


@pytest.mark.parametrize(
    "name", ["List-Unsubscribe", "list-id", "Auto-Submitted", "Precedence", "In-Reply-To", "References", "Importance"]
)
def test_headers_that_only_describe_a_mail_are_allowed(name: str) -> None:
    check_headers({name: "x"})
    refuse_other_headers({name: "x"}, ())


@pytest.mark.parametrize(
    "name",
    [
        *("From", "Sender", "Bcc", "Received", "Return-Path", "DKIM-Signature", "Content-Type", "Resent-To"),
        *("Disposition-Notification-To", "Return-Receipt-To", "ARC-Seal", "Authentication-Results", "Message-ID"),
    ],
)
def test_all_others_are_refused(name: str) -> None:
    assert name in refusal("email.send", {**EMAIL, "headers": {name: "x"}})


@pytest.mark.parametrize("name", [*ADDING_RECIPIENTS, "X-Anything"])
def test_what_begins_with_x_is_allowed_where_the_operator_names_it(name: str) -> None:
    with pytest.raises(Refused, match=name) as refused:
        refuse_other_headers({name: "x"}, frozenset({"x-campaign"}))
    refuse_other_headers({name: "x"}, frozenset({name.lower()}))

    assert refused.value.reason is Reason.INVALID_JOB
    assert "POSTAGE_EMAIL_HEADERS" in refused.value.detail


@pytest.mark.parametrize("blank", [" ", "\n\t ", "\u200b", "\ufeff \u00a0", "\u2003"])
@pytest.mark.parametrize("field", ["text", "html"])
def test_a_blank_text_is_refused(field: str, blank: str) -> None:
    with pytest.raises(Refused, match=f"`{field}`: must not be blank"):
        check_acceptable(parse("email.send", {**EMAIL, field: blank}), ())

    assert not is_blank(f"{blank}x")


WORDS = st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=300), min_size=1)
VALUES = WORDS.map(" ".join).filter(lambda value: len(value) <= HEADER_MAX)


@given(name=st.sampled_from(sorted(ALLOWED_HEADERS)), value=VALUES)
@example("list-unsubscribe", "<https://x.test/?q=?utf-8?q?x?=>")
@example("references", " ".join(f"<{number}@{'m' * 60}.test>" for number in range(14)))
@example("feedback-id", f"a{' ' * 97}{'b' * WORD_MAX}")
@example("list-unsubscribe-post", "b" * WORD_MAX)
def test_a_header_that_programs_read_is_folded_at_its_blanks_and_nothing_else_is_done_to_it(
    name: str, value: str
) -> None:
    check_headers({name: value})

    head = head_of({name: value})

    assert max(map(len, head.split("\r\n"))) <= 998
    assert f"{name}: {value}\r\n" in head.replace("\r\n ", " ")


@pytest.mark.parametrize("name", sorted(ALLOWED_HEADERS))
@pytest.mark.parametrize("value", ["<https://x.test/é>", "é", "b" * (WORD_MAX + 1)])
def test_a_header_that_programs_read_is_refused_if_it_needs_encoded_words(name: str, value: str) -> None:
    assert f"must have {name} in ASCII" in refusal("email.send", {**EMAIL, "headers": {name: value}})


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters='<"'), max_size=200))
@example("Grüße von uns")
def test_the_description_of_a_list_is_read_back_and_its_id_stays_as_it_is(words: str) -> None:
    value = f"{words} <news.x.test>".strip()
    check_headers({"List-Id": value})

    head = head_of({"List-Id": value})

    read = email.message_from_string(head)["List-Id"]
    assert " ".join(str(make_header(decode_header(read))).split()) == " ".join(value.split())
    assert re.search(r"[ :]<news\.x\.test>\r\n", head)


def test_any_other_header_may_be_as_long_as_a_line_in_any_script() -> None:
    value = "é" * HEADER_MAX

    head = head_of({"X-Shop": value})

    assert max(map(len, head.split("\r\n"))) <= 78
    assert str(make_header(decode_header(email.message_from_string(head)["X-Shop"]))) == value
    assert "at most 998 characters" in refusal("email.send", {**EMAIL, "headers": {"X-Shop": f"{value}é"}})


def head_of(headers: dict[str, str]) -> str:
    """Give the headers of a mail."""
    shown = {"subject": "Hello", "text": "Hello", "html": None, "from_name": "", "from_address": "p@x.test"}
    to = {"to": ("a@x.test",), "cc": (), "recipients": ("a@x.test",), "reply_to": ()}
    return compose(Email(job_id="a", org_id=1, headers=headers, **to, **shown)).decode("ascii")  # type: ignore[arg-type]
