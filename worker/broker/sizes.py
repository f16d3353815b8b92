"""How large a message may be: as it is on the wire, when it is inflated, and when it is decoded.

Python needs 64 bytes and more for each object of a JSON document, so `{},{},…` takes twenty times its length. What is
too large is not decoded at all. Its ids are searched for in the text, so that the refusal can be found under them.
"""

import bz2
import lzma
import re
import zlib
from typing import Any, Protocol

OBJECTS_MAX = 30_000
"""Objects and lists in one document, counted by their brackets, also those in texts: about 7 MB once they are decoded.
The largest bulk job has a thousand; a page of HTML with all of its styles has some thousand brackets."""
VALUES_MAX = 400_000
"""Values in one document, counted by their commas, also those in texts: about 20 MB once they are decoded."""
SEARCHED = 65_536
"""Bytes at the beginning and at the end of a document in which ids are searched for."""
LZMA_MEMORY = 32_000_000
"""Bytes that a stream of lzma may ask the decoder to use."""
_ID = rb'"%s"\s*:\s*"([A-Za-z0-9._:-]{1,64})"'
NAMED = ("job_id", "sender", "order_id", "buyer", "actor", "viewer")


class TooLargeError(Exception):
    """A message is too large to be read. The message says what its limit is."""


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _decompressor(compression: str) -> _Decompressor:
    if compression in ("application/x-gzip", "gzip", "zlib"):
        return zlib.decompressobj()
    if compression in ("application/x-bz2", "bzip2", "bzip"):
        return bz2.BZ2Decompressor()
    if compression in ("application/x-lzma", "lzma", "xz"):
        return lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
    msg = "a compression other than gzip, bzip2 and lzma, which alone can be inflated up to a limit"
    raise ValueError(msg)


def inflate(body: bytes, compression: str, limit: int) -> bytes:
    """Return what a body holds that a producer has compressed, as kombu names the compression.

    Raises
    ------
    TooLargeError
        If it holds more than `limit` bytes.
    ValueError
        If it cannot be inflated.

    """
    decompressor: Any = _decompressor(compression)
    try:
        inflated: bytes = decompressor.decompress(body, limit + 1)
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(str(error)) from error
    if len(inflated) > limit:
        raise TooLargeError(_over(limit))
    if not decompressor.eof:
        msg = "a compressed body that ends too early"
        raise ValueError(msg)
    return inflated


def check_size(body: bytes, limit: int) -> None:
    """Make sure that a JSON document may be decoded.

    Raises
    ------
    TooLargeError
        With the limit that it exceeds.

    """
    if len(body) > limit:
        raise TooLargeError(_over(limit))
    if len(body) > OBJECTS_MAX and body.count(b"{") + body.count(b"[") > OBJECTS_MAX:
        msg = f"The message must not hold more than {OBJECTS_MAX:,} objects and lists."
        raise TooLargeError(msg)
    if len(body) > VALUES_MAX and body.count(b",") > VALUES_MAX:
        msg = f"The message must not hold more than {VALUES_MAX:,} values."
        raise TooLargeError(msg)


def _over(limit: int) -> str:
    return f"The message must not hold more than {limit:,} bytes: split it, or send fewer recipients at a time."


def ids_in(body: bytes) -> dict[str, str]:
    """Return the ids that a document names near its beginning or end, without decoding it."""
    text = body[:SEARCHED] + b"\n" + body[-SEARCHED:]
    found = {name: re.search(_ID % name.encode(), text) for name in NAMED}
    return {name: match[1].decode() for name, match in found.items() if match}
