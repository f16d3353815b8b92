"""Envelopes: the short way of writing an email is the same as the long way."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sends.carrier import Email
from worker.carriers import smtp_envelope
from worker.carriers.smtp_envelope import SmtpEnvelope, UnwritableError, write_envelope

EMAIL = Email(
    job_id="job-1",
    org_id=7,
    from_name="Ada",
    from_address="ada@example.org",
    to=(),
    cc=(),
    recipients=(),
    subject="Hello",
    text="Hello Bob",
    html=None,
    reply_to=(),
    headers={},
)
ADDRESSES = st.sampled_from(
    [
        *("bob@example.org", "a.b+c@sub.example.org", '"quoted@local"@example.org'),
        *("jörg@example.org", "x@müller.example"),
        *("no address", "@example.org", "bob@", "<bob@example.org>", "bob@exa mple.org", "bob@example.org\r\nDATA"),
    ]
)
MAILBOXES = st.lists(ADDRESSES, max_size=4).map(tuple)


def written(email: Email, *, utf8: bool) -> SmtpEnvelope | type[Exception]:
    try:
        return write_envelope(email, utf8=utf8)
    except (UnwritableError, ValueError) as error:
        return type(error)


EMAILS = st.builds(
    lambda sender, **mailboxes: replace(EMAIL, from_address=sender, **mailboxes),
    ADDRESSES,
    to=MAILBOXES,
    cc=MAILBOXES,
    recipients=MAILBOXES,
    reply_to=MAILBOXES,
)


@given(EMAILS, st.booleans())
def test_the_short_way_is_the_same_as_the_long_one(email: Email, utf8: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.carriers.mime._date", lambda _: "Mon, 30 Nov 2026 12:00:00 +0000")
        short = written(email, utf8=utf8)
        patch.setattr(smtp_envelope, "_is_ascii", lambda _: False)
        assert written(email, utf8=utf8) == short
    if isinstance(short, SmtpEnvelope):
        assert not any("\n" in address for address in short.recipients.values())
        assert "\n" not in short.sender
