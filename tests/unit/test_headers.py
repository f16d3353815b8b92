"""Headers that a job may give an email, and those that it must not."""

import pytest

from models.errors import Reason, Refused
from models.messages.acceptance import check_acceptable, is_blank, refuse_other_headers
from models.messages.headers import check_headers
from models.messages.wire import parse
from tests.unit.wire import refusal

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
