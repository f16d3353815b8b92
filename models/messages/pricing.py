"""What a text message costs. Pure: no database, no clock."""

import math
import string
from collections.abc import Set as AbstractSet

GSM7_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./:;<=>?¡ÄÖÑÜ§¿äöñüà" + string.digits + string.ascii_letters
)
"""Characters of one septet: 3GPP TS 23.038, section 6.2.1 (default alphabet)."""
GSM7_EXTENSION = frozenset("\f^{}\\[~]|€")
"""Characters of two septets, the first an escape: 3GPP TS 23.038, section 6.2.1.1 (extension table)."""
_GSM7 = GSM7_BASIC | GSM7_EXTENSION

GSM7_SINGLE, GSM7_PART = 160, 153
"""Septets in a text of one segment, and in each of several (3GPP TS 23.040, section 9.2.3.24.1: the header takes 7)."""
UCS2_SINGLE, UCS2_PART = 70, 67
"""UTF-16 code units in a text of one segment, and in each of several (the header takes 3)."""


def sms_segments(text: str) -> int:
    """Return the number of segments that `text` takes, which is its cost in SMS credits.

    A text whose characters are all in the GSM 7-bit alphabet is counted in septets, any other in UTF-16 code units.
    A character of two septets or units is never split over two segments: the next one begins with it.
    """
    characters = frozenset(text)
    if characters <= _GSM7:
        return _segments(text, characters & GSM7_EXTENSION, GSM7_SINGLE, GSM7_PART)
    return _segments(text, {character for character in characters if character > "\uffff"}, UCS2_SINGLE, UCS2_PART)


def _segments(text: str, double: AbstractSet[str], single: int, part: int) -> int:
    """Return the segments of a text in which `double` characters take two units, any other one."""
    units = len(text) + sum(map(text.count, double))
    if units <= single:
        return 1
    if not double:
        return math.ceil(units / part)
    segments, left = 1, part
    for character in text:
        width = 2 if character in double else 1
        if width > left:
            segments, left = segments + 1, part
        left -= width
    return segments
