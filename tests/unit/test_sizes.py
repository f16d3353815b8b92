"""What is too large is neither inflated nor decoded, and its ids are found all the same."""

import bz2
import json
import lzma
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.sizes import TooLargeError, check_size, ids_in, inflate

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}


@pytest.mark.parametrize("compression", COMPRESS)
@given(body=st.binary(max_size=2_000), limit=st.integers(0, 2_000))
def test_a_body_is_inflated_up_to_the_limit(compression: str, body: bytes, limit: int) -> None:
    compressed = COMPRESS[compression](body)

    if len(body) <= limit:
        assert inflate(compressed, compression, limit) == body
    else:
        with pytest.raises(TooLargeError):
            inflate(compressed, compression, limit)


@pytest.mark.parametrize("compression", COMPRESS)
@given(garbage=st.binary(max_size=200), cut=st.integers(1, 30))
def test_what_is_not_compressed_is_no_body(compression: str, garbage: bytes, cut: int) -> None:
    whole = COMPRESS[compression](b"x" * 100)

    for broken in (whole[:-cut], garbage):
        try:
            inflate(broken, compression, 1_000)
        except ValueError:
            continue
        assert broken == whole[:-cut] or compression != "application/x-lzma"


@pytest.mark.parametrize("compression", ["application/zstd", "application/x-brotli", "zip", ""])
def test_only_what_can_be_inflated_up_to_a_limit_is_inflated(compression: str) -> None:
    with pytest.raises(ValueError, match="gzip, bzip2 and lzma"):
        inflate(b"x", compression, 10)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"{}," * 30_000 + b"{}]",
        b"[" * 200_000,
        b"[" + b"1," * 400_001 + b"1]",
        b'"' + b"x" * 5_000_000 + b'"',
    ],
    ids=["objects", "nested", "values", "text"],
)
def test_what_takes_many_times_its_length_is_not_decoded(body: bytes) -> None:
    with pytest.raises(TooLargeError):
        check_size(body, 4_000_000)


def test_the_largest_bulk_job_is_read() -> None:
    values = {f"name-{number}": "value" for number in range(100)}
    recipients = [{"to": f"u{number}@x.example", "values": values} for number in range(500)]
    job = {"job_id": "a", "sender": "mary", "subject": "s", "html": "," * 200_000, "recipients": recipients}

    check_size(json.dumps([[job], {}, {}]).encode(), 6_000_000)


def test_ids_are_found_at_both_ends() -> None:
    body = json.dumps([[{"job_id": "a-1", "text": "x" * 1_000_000, "sender": "mary"}], {}, {}]).encode()

    assert ids_in(body) == {"job_id": "a-1", "sender": "mary"}
