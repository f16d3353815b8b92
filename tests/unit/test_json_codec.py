"""The JSON codec of the broker: it is faster than Python's, and reads every document as Python does."""

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


def test_lone_surrogates_are_read() -> None:
    """A worker must be able to read a job before it can refuse it with a sentence."""
    assert json_codec.decode(b'["\\ud800"]') == ["\ud800"]


def test_an_object_stays_an_object_whatever_type_it_names() -> None:
    """Kombu's own codec would make a date of this one."""
    disguised = b'{"__type__": "datetime", "__value__": "2026-11-23"}'

    assert json_codec.decode(disguised) == {"__type__": "datetime", "__value__": "2026-11-23"}


@pytest.mark.parametrize("document", [b"", b"{", b"\xff", b'{"a": }', b"[" * 100_000])
def test_invalid_json_raises_an_error(document: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json_codec.decode(document)
