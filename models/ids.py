"""Ids that Postage makes itself."""

import random
import time


def new_id() -> str:
    """Return a new UUID of version 7 (RFC 9562, section 5.7), as 32 hex digits.

    It begins with the time, so that rows that are written one after the other stand beside each other in an index. It
    is no secret, so its 74 random bits come from Python's generator, which costs no system call.
    """
    milliseconds = time.time_ns() // 1_000_000
    random_bits = random.getrandbits(74)
    version_7 = milliseconds << 80 | 0x7 << 76 | random_bits >> 62 << 64
    variant = 0b10 << 62 | random_bits & (1 << 62) - 1
    return f"{version_7 | variant:032x}"
