"""Replies of mail servers: how they are cut out of what arrives, and what of them is repeated."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.carriers.smtp_replies import LINE_MAX, LINES_MAX, REPLY_MAX, Reply, ReplyReader

TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=30).map(str.encode)
REPLIES = st.builds(Reply, st.integers(200, 599), st.lists(TEXTS, min_size=1, max_size=4).map(b"\n".join))


def written(reply: Reply, end: bytes = b"\r\n") -> bytes:
    *lines, last = reply.text.split(b"\n")
    return b"".join(b"%d-%b%b" % (reply.code, line, end) for line in lines) + b"%d %b%b" % (reply.code, last, end)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    return [data[first:last] for first, last in pairwise(places)]


@given(st.lists(REPLIES, min_size=1, max_size=5), st.lists(st.integers(0, 10_000)), st.sampled_from([b"\r\n", b"\n"]))
def test_replies_are_the_same_however_they_were_divided_on_the_way(
    replies: list[Reply], cuts: list[int], end: bytes
) -> None:
    reader = ReplyReader()
    read = [
        reply
        for piece in pieces(b"".join(written(reply, end) for reply in replies), cuts)
        for reply in reader.feed(piece)
    ]

    assert read == replies
    assert not reader.is_inside
    assert not reader.is_broken


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
@example(b"250-a\r\n550 b\r\n", [])
@example(b"\r\n", [])
@example(b"250x\r\n", [3])
def test_anything_else_is_noticed_and_never_raised(data: bytes, cuts: list[int]) -> None:
    """However it is divided, the same replies come before it."""
    whole, divided = ReplyReader(), ReplyReader()
    read: list[Reply] = []
    for piece in pieces(data, cuts):
        read += divided.feed(piece)
        if divided.is_broken:
            break

    assert read == whole.feed(data)
    assert divided.is_broken == whole.is_broken


@pytest.mark.parametrize(
    "data",
    [
        b"250 " + b"x" * LINE_MAX + b"\r\n",
        b"250 " + b"x" * LINE_MAX,
        b"250-a\r\n" * (LINES_MAX + 1),
        (b"250-" + b"x" * 4_000 + b"\r\n") * (REPLY_MAX // 4_000 + 1),
        b"250-a\r\n251 b\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"\r\n",
    ],
)
def test_what_is_too_long_or_no_reply_ends_the_conversation(data: bytes) -> None:
    reader = ReplyReader()

    assert reader.feed(data) == []
    assert reader.is_broken


def test_a_reply_without_words_is_one() -> None:
    """RFC 5321 section 4.2 lets servers leave them out, and the blank before them."""
    assert ReplyReader().feed(b"250\r\n250 \r\n") == [Reply(250, b""), Reply(250, b"")]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        (b"5.7.1 no", "(550 5.7.1): no"),
        (b"no", "(550): no"),
        (b"", "(550)"),
        (b"5.1.1 <bob@example.org> is\n5.1.1 unknown", "(550 5.1.1): … is unknown"),
        (b"ask ada, s3cret", "(550): ask …, …"),
        (b"\x1b[31m\xff\xfe", "(550): [31m\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_is_quoted_names_nobody(text: bytes, quoted: str) -> None:
    """Neither addresses nor our own login are repeated in sentences that are kept with a charge."""
    assert Reply(550, text).quoted(("s3cret", "ada")) == quoted


@given(st.integers(200, 599), st.binary(max_size=600))
def test_words_are_one_printable_line(code: int, text: bytes) -> None:
    for words in (Reply(code, text).words, Reply(code, text).quoted()):
        assert words.isprintable()
        assert len(words) <= 330
