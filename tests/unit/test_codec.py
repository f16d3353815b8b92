"""JSON as it comes over the wire: what the fast reader says is what Python's says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker import json_codec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_a_document_is_read_as_python_reads_it(value: object, ascii_only: bool) -> None:
    document = json.dumps(value, ensure_ascii=ascii_only)

    assert json_codec.decode(document.encode()) == json.loads(document)


def test_half_characters_are_read_so_that_the_job_can_be_refused_for_them() -> None:
    assert json_codec.decode(b'["\\ud800"]') == ["\ud800"]


def test_an_object_is_an_object_whatever_it_calls_itself() -> None:
    """Kombu would make a date of it."""
    disguised = b'{"__type__": "datetime", "__value__": "2026-11-23"}'

    assert json_codec.decode(disguised) == {"__type__": "datetime", "__value__": "2026-11-23"}


@pytest.mark.parametrize("document", [b"", b"{", b"\xff", b'{"a": }', b"[" * 100_000])
def test_what_is_no_json_is_an_error_and_nothing_worse(document: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json_codec.decode(document)
