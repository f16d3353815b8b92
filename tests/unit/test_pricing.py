"""What a text message costs: its segments, at every length where one more begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages.pricing import GSM7_BASIC, GSM7_EXTENSION, sms_segments

TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(sorted(GSM7_BASIC | GSM7_EXTENSION)))
GSM7_TEXTS = st.text(st.sampled_from(sorted(GSM7_BASIC | GSM7_EXTENSION)), max_size=500)


@pytest.mark.parametrize(
    ("length", "segments"),
    [(1, 1), (160, 1), (161, 2), (306, 2), (307, 3), (459, 3), (460, 4), (1530, 10), (1531, 11)],
)
def test_a_gsm_text_has_160_characters_a_segment_or_153_in_several(length: int, segments: int) -> None:
    assert sms_segments("a" * length) == segments


@pytest.mark.parametrize(
    ("length", "segments"), [(1, 1), (70, 1), (71, 2), (134, 2), (135, 3), (201, 3), (202, 4), (670, 10), (671, 11)]
)
def test_any_other_text_has_70_units_a_segment_or_67_in_several(length: int, segments: int) -> None:
    assert sms_segments("ж" * length) == segments


@pytest.mark.parametrize("character", sorted(GSM7_EXTENSION))
def test_a_character_of_the_extension_table_counts_two(character: str) -> None:
    assert sms_segments(character * 80) == 1
    assert sms_segments(character * 80 + "a") == 2
    assert sms_segments("a" * 158 + character) == 1
    assert sms_segments("a" * 159 + character) == 2


@pytest.mark.parametrize("character", sorted(GSM7_BASIC))
def test_a_character_of_the_basic_table_counts_one(character: str) -> None:
    assert (sms_segments(character * 160), sms_segments(character * 161)) == (1, 2)


def test_the_gsm_tables_hold_the_characters_of_the_standard() -> None:
    """3GPP TS 23.038, section 6.2.1: 128 places, one of which is the escape."""
    assert len(GSM7_BASIC) == 127
    assert frozenset("^{}\\[~]|€\f") == GSM7_EXTENSION
    assert GSM7_BASIC.isdisjoint(GSM7_EXTENSION)


@pytest.mark.parametrize("character", ["`", "ç", "ê", "\u2013", "\u2019", "\t", "\u00a0", "ş", "漢"])
def test_one_character_outside_the_alphabet_makes_the_whole_text_ucs2(character: str) -> None:
    assert sms_segments("a" * 69 + character) == 1
    assert sms_segments("a" * 70 + character) == 2


@pytest.mark.parametrize(("length", "segments"), [(1, 1), (35, 1), (36, 2), (66, 2), (67, 3)])
def test_an_emoji_counts_two_because_it_is_a_surrogate_pair(length: int, segments: int) -> None:
    assert sms_segments("\U0001f600" * length) == segments


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("a" * 152 + "€" + "a" * 152, 3),  # 306 septets, but the first segment ends before the euro sign
        ("a" * 151 + "€" + "a" * 153, 2),
        ("€" * 153, 3),  # 76 in each
        ("ж" * 66 + "\U0001f600" + "ж" * 66, 3),
        ("ж" * 65 + "\U0001f600" + "ж" * 67, 2),
    ],
)
def test_a_character_of_two_units_is_never_split_over_two_segments(text: str, segments: int) -> None:
    """3GPP TS 23.040, section 9.2.3.24.1."""
    assert sms_segments(text) == segments


def cut(text: str, part: int, widths: dict[str, int]) -> list[str]:
    """Cut a text into segments, one character after the other, as a phone's program does."""
    segments = [""]
    for character in text:
        if sum(widths[each] for each in segments[-1] + character) > part:
            segments.append("")
        segments[-1] += character
    return segments


@given(GSM7_TEXTS.filter(lambda text: len(text) > 160))
def test_a_long_gsm_text_takes_the_segments_into_which_it_can_be_cut(text: str) -> None:
    widths = dict.fromkeys(GSM7_BASIC, 1) | dict.fromkeys(GSM7_EXTENSION, 2)

    assert sms_segments(text) == len(cut(text, 153, widths))


@given(st.text(st.sampled_from("aж漢\U0001f600\U0001f44b"), min_size=71, max_size=300).filter(lambda text: "ж" in text))
def test_any_other_long_text_takes_the_segments_into_which_it_can_be_cut(text: str) -> None:
    widths = {character: len(character.encode("utf-16-le")) // 2 for character in text}

    assert sms_segments(text) == len(cut(text, 67, widths))


def test_an_emoji_of_several_code_points_counts_each_of_them() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # two units each, and two joiners of one

    assert len(family.encode("utf-16-le")) // 2 == 8
    assert (sms_segments(family * 8), sms_segments(family * 9)) == (1, 2)


@given(TEXTS)
def test_every_text_costs_at_least_one_segment(text: str) -> None:
    assert sms_segments(text) >= 1


@given(TEXTS, TEXTS)
def test_more_text_never_costs_less(text: str, more: str) -> None:
    assert sms_segments(text) <= sms_segments(text + more)
    assert sms_segments(text) <= sms_segments(more + text)


@given(GSM7_TEXTS)
def test_a_text_is_never_cheaper_outside_the_alphabet(text: str) -> None:
    assert sms_segments(text) <= sms_segments(text + "ж")


@given(TEXTS)
def test_the_order_of_characters_does_not_matter(text: str) -> None:
    assert sms_segments(text) == sms_segments("".join(sorted(text)))
