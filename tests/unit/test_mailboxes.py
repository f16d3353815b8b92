"""Names before addresses: what a job asks for is what the reader of a mail sees, and who gets it stays the same."""

import email
import re
from email.header import decode_header, make_header
from email.utils import getaddresses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.messages.addresses import (
    DIRECTION_MARKS,
    NAME_MAX,
    check_mailbox,
    join_mailbox,
    normalize_mailbox,
    split_mailbox,
)
from models.messages.bulk import SendManyEmails
from models.messages.sends import SendEmail
from models.messages.wire import parse
from models.sends.carrier import Email
from tests.factories import email_job
from tests.unit.wire import refusal
from worker.carriers.mime import compose
from worker.carriers.smtp_envelope import write_envelope

NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="".join(DIRECTION_MARKS)),
    max_size=NAME_MAX,
).map(str.strip)
ADDRESSES = st.sampled_from(["ada@x.test", "bob@x.test", "o'neil+a=b@x.test"])
MAILBOXES = st.lists(st.tuples(NAMES, ADDRESSES), min_size=1, max_size=4)
Named = list[tuple[str, str]]


def content_of(**fields: object) -> tuple[dict[str, object], int]:
    """Give what is stored of an email, and its cost."""
    message = parse("email.send", email_job(**fields))
    assert isinstance(message, SendEmail)
    return message.content(message.given())


def email_of(content: dict[str, object]) -> Email:
    """Give the email that a carrier gets."""
    reply_to = content.get("reply_to", [])
    lists = {name: tuple(content.get(name, ())) for name in ("to", "cc", "recipients")}  # type: ignore[arg-type,var-annotated]
    replies = (reply_to,) if isinstance(reply_to, str) else tuple(reply_to)  # type: ignore[arg-type]
    shown = {"subject": "Hello", "text": "Hello", "html": None, "headers": {}, "from_name": "Peter"}
    return Email(job_id="a", org_id=1, from_address="p@x.test", reply_to=replies, **lists, **shown)  # type: ignore[arg-type]


def seen_in(value: str) -> Named:
    """Give what a mail program shows of the mailboxes in a header."""
    # The newer parser keeps the blanks between encoded words in a name, against RFC 2047 section 6.2.
    return [(str(make_header(decode_header(phrase))), address) for phrase, address in getaddresses([value])]


@given(to=MAILBOXES, cc=MAILBOXES, reply_to=MAILBOXES)
@example([('Doe, "Joe" \\ <x@y>', "ada@x.test")], [("=?utf-8?q?not=20encoded?=", "ada@x.test")], [("", "ada@x.test")])
@example([("é" * NAME_MAX, "ada@x.test")], [("a" * NAME_MAX, "ada@x.test")], [("\\" * NAME_MAX, "ada@x.test")])
def test_a_reader_sees_the_names_and_addresses_that_a_job_gave(to: Named, cc: Named, reply_to: Named) -> None:
    """Each line is short enough, and no encoded word stands in quotes or in an address (RFC 2047 section 5)."""
    asked = {"to": to, "cc": cc, "reply_to": reply_to}
    content, cost = content_of(**{name: [join_mailbox(*each) for each in named] for name, named in asked.items()})

    written = compose(email_of(content))

    head = written.partition(b"\r\n\r\n")[0].decode("ascii")
    assert max(map(len, head.split("\r\n"))) <= 78
    message = email.message_from_bytes(written)
    for name, named in (("To", to), ("Cc", cc), ("Reply-To", reply_to)):
        assert seen_in(message[name]) == named
        assert not re.search(r"<[^>]*=\?", re.sub(r'"(?:[^"\\]|\\.)*"', "", message[name]))
    addresses = list(dict.fromkeys(address for _, address in (*to, *cc)))
    assert content["recipients"] == addresses
    assert cost == len(addresses)


@given(NAMES, ADDRESSES)
def test_a_mailbox_that_is_joined_is_taken_apart_again(name: str, address: str) -> None:
    joined = join_mailbox(name, address)

    assert split_mailbox(check_mailbox(joined)) == (name, address)
    assert normalize_mailbox(joined) == joined


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("ada@X.test", "ada@x.test"),
        ("<ada@X.test>", "ada@x.test"),
        ('"" <ada@x.test>', "ada@x.test"),
        ("Dr. Ada B. <ada@X.test>", '"Dr. Ada B." <ada@x.test>'),
        ("Zoë<ada@x.test>", '"Zoë" <ada@x.test>'),
        (r'"Ada \"B\"" <ada@x.test>', r'"Ada \"B\"" <ada@x.test>'),
    ],
)
def test_a_mailbox_has_a_normal_form(given: str, normal: str) -> None:
    assert normalize_mailbox(check_mailbox(given)) == normal


@pytest.mark.parametrize(
    ("mailbox", "sentence"),
    [
        ("Ada, B. <ada@x.test>", "must be one address, or a name and an address"),
        ("eve@x.test, Bob <bob@x.test>", "must be one address, or a name and an address"),
        ('"Ada" B <ada@x.test>', "must be one address, or a name and an address"),
        ("Ada <ada@x.test>, <eve@x.test>", "must be one address, or a name and an address"),
        ("Ada <<ada@x.test>>", "must be one address, or a name and an address"),
        ("Ada <ada>", "must be one email address"),
        ("Ada <ada@x.test> ", "must be one email address"),
        ("Ada\r\nBcc: eve <ada@x.test>", "must be one address"),
        ('"Ada\r\nBcc: eve" <ada@x.test>', "must not have control characters, line breaks"),
        ('"Ada\\\nB" <ada@x.test>', "must not have control characters, line breaks"),
        ("Ada\u2028 <ada@x.test>", "must not have control characters, line breaks"),
        *((f"Ada{mark} <ada@x.test>", "change the direction of text") for mark in sorted(DIRECTION_MARKS)),
        (f"{'a' * (NAME_MAX + 1)} <ada@x.test>", f"a name of more than {NAME_MAX} characters"),
    ],
)
@pytest.mark.parametrize("field", ["to", "bcc", "reply_to"])
def test_what_is_no_mailbox_is_refused_with_a_sentence(field: str, mailbox: str, sentence: str) -> None:
    refused = refusal("email.send", email_job(**{field: [mailbox]}))

    assert sentence in refused
    assert f"`{field}.0`: " in refused


def test_a_single_address_for_replies_is_the_same_job_as_a_list_of_it() -> None:
    single, in_list = (parse("email.send", email_job(reply_to=given)) for given in ("d@x.test", ["d@x.test"]))

    assert single.digest() == in_list.digest()
    assert content_of(reply_to=["d@x.test"])[0]["reply_to"] == "d@x.test"


def test_a_recipient_with_two_names_costs_one_credit_and_gets_one_mail() -> None:
    content, cost = content_of(to=["Ada <ada@x.test>", "ada@X.test"], bcc="Countess <ada@x.test>")

    assert (content["recipients"], cost) == (["ada@x.test"], 1)


def test_a_recipient_of_a_bulk_job_may_have_a_name() -> None:
    job = {**email_job(), "recipients": [{"to": "Ada <ada@X.test>"}], "reply_to": ["Desk <d@X.test>", "e@x.test"]}
    del job["to"]

    bulk = parse("email.send_many", job)

    assert isinstance(bulk, SendManyEmails)
    [content] = bulk.each()
    assert content.fields["to"] == ['"Ada" <ada@x.test>']
    assert content.fields["recipients"] == ["ada@x.test"]
    assert content.fields["reply_to"] == ['"Desk" <d@x.test>', "e@x.test"]


def test_a_recipient_whom_a_server_cannot_take_is_in_no_header() -> None:
    content, _ = content_of(to=["Jörg <jörg@x.test>", "Bob <bob@x.test>"])

    envelope = write_envelope(email_of(content), utf8=False)

    assert list(envelope.recipients) == ["bob@x.test"]
    assert list(envelope.refused) == ["jörg@x.test"]
    assert seen_in(email.message_from_bytes(envelope.message)["To"]) == [("Bob", "bob@x.test")]
