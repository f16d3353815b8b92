"""MIME: how an email is composed, read back with the parser of the standard library."""

import email
import email.policy
import textwrap
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from email.header import decode_header, make_header
from email.headerregistry import AddressHeader, UniqueAddressHeader
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.sends.carrier import Email
from worker.carriers.mime import (
    _PRINTABLE,
    _WORDS,
    CRLF,
    FOLD_AT,
    _encoded,
    _one_line,
    _text,
    _without_surrogates,
    compose,
    message_id,
    needs_smtputf8,
    wire_address,
)

PLAIN = Email(
    job_id="job-1",
    org_id=7,
    from_name="Ada",
    from_address="ada@example.org",
    to=("bob@example.org",),
    cc=(),
    recipients=("bob@example.org", "hidden@example.org"),
    subject="Hello",
    text="Hello Bob",
    html=None,
    reply_to=(),
    headers={},
)
LINES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=900)
BODIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=3000)
Job = tuple[str, int]
JOBS = st.tuples(st.text("ab.:_-/%A0", min_size=1, max_size=64), st.integers(1, 12))


def read(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def addresses(header: Any) -> list[tuple[str, str]]:
    assert isinstance(header, AddressHeader | UniqueAddressHeader)
    return [(address.display_name, address.addr_spec) for address in header.addresses]


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert isinstance(part, EmailMessage)
    return str(part.get_content())


def as_lines(text: str) -> list[str]:
    """Divide a text into lines, which is all that mail keeps: how they ended, and whether the last did, is lost."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if len(lines) > 1 and lines[-1] == "" else lines


def assert_fit_for_smtp(content: bytes) -> None:
    assert content.endswith(b"\r\n")
    lines = content.split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines)
    assert max(map(len, lines)) <= 998


def test_an_email_says_who_writes_to_whom_about_what() -> None:
    """The headers are From, To, Cc, Subject, Date, Message-ID and Reply-To; the body is the text."""
    message = read(compose(replace(PLAIN, cc=("eve@example.org", "joe@example.org"), reply_to=("desk@example.org",))))

    assert addresses(message["From"]) == [("Ada", "ada@example.org")]
    assert addresses(message["To"]) == [("", "bob@example.org")]
    assert addresses(message["Cc"]) == [("", "eve@example.org"), ("", "joe@example.org")]
    assert addresses(message["Reply-To"]) == [("", "desk@example.org")]
    assert message["Subject"] == "Hello"
    assert message["Message-ID"] == "<job-1@7.example.org>"
    assert message["Date"].datetime is not None
    assert message.get_content() == "Hello Bob\r\n"


def test_hidden_recipients_stay_hidden() -> None:
    """A recipient who is only on the envelope is named nowhere in the message, and there is no Bcc."""
    content = compose(PLAIN)

    assert b"hidden" not in content
    assert b"Bcc" not in content


@given(subject=LINES, text=BODIES)
@example(subject="=?utf-8?q?not=20encoded?=", text="")
@example(subject="a" * 900, text="b" * 5000)
@example(subject="two  blanks, and one at the end ", text=".\r\n..\r\nFrom me\r\n")
@example(subject="é" * 300, text="é\n" * 300)
@example(subject="x", text="page\x0cbreak" + "c" * 998)
def test_any_subject_and_text_can_be_read_back(subject: str, text: str) -> None:
    """Every line is one that every mail server must take."""
    content = compose(replace(PLAIN, subject=subject, text=text))

    assert_fit_for_smtp(content)
    message = read(content)
    assert message["Subject"] == subject
    assert as_lines(body(message, "plain")) == as_lines(text)


@given(name=LINES)
@example(name='Doe, "Joe" \\ <x@y>')
@example(name="Müller, Zoë (Sales); " * 9)
def test_any_name_can_be_read_back_and_changes_no_address(name: str) -> None:
    """A display name may hold anything, and never becomes a part of the address."""
    content = compose(replace(PLAIN, from_name=name))

    assert_fit_for_smtp(content)
    # The newer parser keeps the blanks between encoded words in a name, against RFC 2047 section 6.2.
    phrase, address = parseaddr(email.message_from_bytes(content)["From"])
    assert str(make_header(decode_header(phrase))) == name.strip()
    assert address == "ada@example.org"


@given(value=LINES.filter(str.strip))
def test_any_extra_header_can_be_read_back(value: str) -> None:
    """It arrives as it was given, without the blanks around it."""
    content = compose(replace(PLAIN, headers={"X-Campaign": value}))

    assert_fit_for_smtp(content)
    assert read(content)["X-Campaign"] == value.strip()


def test_a_long_link_in_an_extra_header_stays_one_word() -> None:
    """A structured header in ASCII is never turned into encoded words."""
    link = f"<https://example.org/{'u' * 300}>, <mailto:stop@example.org>"
    content = compose(replace(PLAIN, headers={"List-Unsubscribe": link}))

    assert f"<https://example.org/{'u' * 300}>,".encode() in content
    assert read(content)["List-Unsubscribe"] == link


@pytest.mark.parametrize("name", ["Bcc", "from", "Message-ID", "Content-Type", "MIME-Version", "bad name", "x:y", ""])
def test_an_extra_header_never_doubles_one_of_postage(name: str) -> None:
    """Headers that Postage writes itself, and invalid names, are left out."""
    assert read(compose(replace(PLAIN, headers={name: "eve@example.org"}))).keys() == read(compose(PLAIN)).keys()


@given(text=st.text(max_size=200))
def test_no_line_break_of_any_kind_gets_into_a_header(text: str) -> None:
    """Lone surrogates, and what only some programs take for a line break, are kept out as well."""
    content = compose(replace(PLAIN, subject=text, from_name=text, headers={"X-Note": text}))

    assert_fit_for_smtp(content)
    assert read(content).keys() == ["From", "To", "Subject", "Date", "Message-ID", "X-Note", *MIME_HEADERS]


MIME_HEADERS = ["MIME-Version", "Content-Type", "Content-Transfer-Encoding"]


def test_text_and_html_are_two_forms_of_one_message() -> None:
    """The text comes first, as the plainer form (RFC 2046 section 5.1.4)."""
    message = read(compose(replace(PLAIN, text="Grüße", html="<p>Grüße</p>")))

    assert message.get_content_type() == "multipart/alternative"
    parts: Iterable[Any] = message.iter_parts()
    assert [part.get_content_type() for part in parts] == ["text/plain", "text/html"]
    assert body(message, "plain") == "Grüße\r\n"
    assert body(message, "html") == "<p>Grüße</p>\r\n"


def test_html_alone_is_the_whole_message() -> None:
    """A message without a text has no second part."""
    message = read(compose(replace(PLAIN, text=None, html="<p>Hello</p>")))

    assert message.get_content_type() == "text/html"
    assert message.get_content() == "<p>Hello</p>\r\n"


@given(first=JOBS, second=JOBS)
def test_each_job_of_each_organization_has_a_message_id_of_its_own(first: Job, second: Job) -> None:
    first_id, second_id = (
        message_id(replace(PLAIN, job_id=job_id, org_id=org_id)) for job_id, org_id in (first, second)
    )

    assert (first_id == second_id) == (first == second)


@pytest.mark.parametrize(
    ("job_id", "expected"),
    [
        ("a.b", "<a.b@example.org>"),
        ("a:b", "<a%3Ab@example.org>"),
        ("bulk/0", "<bulk/0@example.org>"),
        (".a..b.", "<%2Ea%2E%2Eb%2E@example.org>"),
        ("...", "<%2E%2E%2E@example.org>"),
        ("%2E", "<%252E@example.org>"),
    ],
)
def test_a_message_id_is_dot_atom_text(job_id: str, expected: str) -> None:
    """Characters that it must not hold are percent-encoded (RFC 5322 section 3.2.3)."""
    assert message_id(replace(PLAIN, job_id=job_id, org_id=None)) == expected


def test_a_domain_outside_ascii_is_written_in_ascii() -> None:
    """Every server can take such an address (RFC 5890)."""
    assert wire_address("info@müller.example") == "info@xn--mller-kva.example"
    assert not needs_smtputf8("info@müller.example")


def test_a_local_part_outside_ascii_is_written_in_utf8() -> None:
    """Only a server with SMTPUTF8 can take such a message (RFC 6531)."""
    content = compose(replace(PLAIN, to=("jörg@müller.example",)))

    assert needs_smtputf8("jörg@müller.example")
    assert "jörg@xn--mller-kva.example".encode() in content


@pytest.mark.parametrize(
    "address",
    ["", "nobody", "@example.org", "a@", "a@b>\r\nDATA", "a b@example.org", "a@\ud800.example", "a@-ü.example"],
)
def test_an_invalid_address_is_not_written(address: str) -> None:
    """It could end an SMTP command early and begin another."""
    with pytest.raises(ValueError, match=r"."):
        wire_address(address)


def test_an_email_with_only_hidden_recipients_has_a_to_without_names() -> None:
    """An empty group is allowed there (RFC 5322 section 3.6.3)."""
    assert read(compose(replace(PLAIN, to=())))["To"] == "undisclosed-recipients:;"


# -- the fast way of writing a header gives the same bytes as the slow one -------------------------------------------


def one_line_slowly(value: str) -> str:
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in _without_surrogates(value))


def text_slowly(name: str, value: str) -> str:
    clean = one_line_slowly(value)
    if not clean:
        return ""
    if "=?" not in clean and _WORDS.fullmatch(clean):
        indent = " " * (len(name) + 2)
        lines = textwrap.wrap(clean, FOLD_AT, initial_indent=indent, break_long_words=False, break_on_hyphens=False)
        return f"{CRLF} ".join(lines).removeprefix(indent)
    if "=?" not in clean and _PRINTABLE.fullmatch(clean):
        return clean
    return _encoded(name, clean)


@given(st.text())
@example("a\x85b\u2028c\ud800d\tE")
@example("\xa0no break\xad\u200b")
def test_a_printable_line_is_cleaned_as_the_slow_way_would(value: str) -> None:
    assert _one_line(value) == one_line_slowly(value)


@given(
    st.text("ABCX-", min_size=1, max_size=76),
    st.text() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=120)
    | st.lists(st.text("abc-.,=?", min_size=1, max_size=70)).map(" ".join),
)  # fmt: skip
@example("Subject", "a" * 67)
@example("Subject", "a" * 68)
@example("Subject", "a " * 33 + "b")
@example("Subject", "a " * 33 + "bc")
def test_a_short_header_is_folded_as_the_slow_way_would(name: str, value: str) -> None:
    assert _text(name, value) == text_slowly(name, value)
