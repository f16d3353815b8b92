"""Phone numbers: whether a number in E.164 can exist, by the lengths that its country uses."""

import functools
from collections.abc import Collection

COUNTRY_CODE_MAX = 3
"""Digits of a country's code (ITU-T E.164, section 6.2.1)."""


def check_number(number: str) -> str:
    """Return a number in E.164, if its country code exists and numbers of that country can be as long as this one.

    Whether anybody has it is not asked: only the carrier knows.

    Raises
    ------
    ValueError
        If no phone can have it.

    """
    for digits in range(1, COUNTRY_CODE_MAX + 1):
        lengths = _possible_lengths(number[1 : 1 + digits])
        if lengths:
            if len(number) - 1 - digits in lengths:
                return number
            break
    msg = "must be a phone number that can exist, with plus and country code, like +31612345678"
    raise ValueError(msg)


@functools.cache
def _possible_lengths(country_code: str) -> Collection[int]:
    """Return how many digits may follow a country code; none if it is no country's.

    The library knows them for each country. To have it take every number apart takes fifty times as long.
    """
    # Imported when it is needed: it takes a quarter of a second.
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata  # noqa: PLC0415

    code = int(country_code)
    if code not in COUNTRY_CODE_TO_REGION_CODE:
        return ()
    region = COUNTRY_CODE_TO_REGION_CODE[code][0]
    metadata = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
    described = metadata and metadata.general_desc
    return frozenset(described.possible_length if described else ())
