"""Phone numbers that can exist, as the library that knows them says."""

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages.numbers import check_number

CODES = sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)


def is_possible(number: str) -> bool:
    try:
        return check_number(number) == number
    except ValueError:
        return False


@given(code=st.sampled_from(CODES), rest=st.from_regex("[1-9][0-9]{1,13}", fullmatch=True))
def test_a_number_is_possible_where_the_library_says_so(code: int, rest: str) -> None:
    number = f"+{code}{rest}"
    parsed = phonenumbers.PhoneNumber(country_code=code, national_number=int(rest))
    reason = phonenumbers.is_possible_number_with_reason(parsed)

    assert is_possible(number) == (reason == phonenumbers.ValidationResult.IS_POSSIBLE)


@pytest.mark.parametrize("number", ["+31612345678", "+4915112345678", "+12125551234", "+442079460000", "+390612345678"])
def test_usual_numbers_are_possible(number: str) -> None:
    assert is_possible(number)


@pytest.mark.parametrize("number", ["+999123456789", "+2101234567", "+123456789012345", "+316123", "+1212555123"])
def test_numbers_that_no_phone_can_have_are_not(number: str) -> None:
    assert not is_possible(number)
