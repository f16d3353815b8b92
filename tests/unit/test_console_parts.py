"""Parts of the console that need no database: charts, amounts, addresses, sentences."""

import pytest

from models.messages.currencies import CURRENCIES, minor_digits
from worker.console.charts import HEIGHT, LABELS_MAX, WIDTH, stacked_bars
from worker.console.rendering import HERE, money
from worker.console.screens import SCREENS
from worker.console.security import is_local_path
from worker.console.sentences import has_sentence


def test_bars_are_stacked_in_proportion() -> None:
    chart = stacked_bars([("Mon", {"email": 10, "sms": 5}), ("Tue", {"email": 0, "sms": 20})])
    email, sms, whole = chart.parts

    assert [mark.text for mark in chart.up] == ["0", "10", "20"]
    assert (email.height, sms.height, whole.height) == (HEIGHT / 2, HEIGHT / 4, HEIGHT)
    assert sms.y + sms.height == email.y
    assert email.x < whole.x < WIDTH


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11, 99, 100, 101, 999_999, 10**18])
def test_the_axis_holds_the_highest_bar_and_has_whole_numbers(count: int) -> None:
    _, half, top = (int(mark.text.replace(",", "")) for mark in stacked_bars([("x", {"email": count})]).up)

    assert top >= count
    assert top == 2 * half


@pytest.mark.parametrize("bars", [0, 1, 8, 9, 62, 1000])
def test_labels_stay_few(bars: int) -> None:
    assert len(stacked_bars([(str(number), {"email": 1}) for number in range(bars)]).across) <= LABELS_MAX


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (1990, "EUR", "19.90 EUR"),
        (5, "EUR", "0.05 EUR"),
        (123456789, "USD", "1,234,567.89 USD"),
        (1990, "JPY", "1,990 JPY"),
        (1990, "KWD", "1.990 KWD"),
        (-50, "EUR", "-0.50 EUR"),
        (9007199254740993, "EUR", "90,071,992,547,409.93 EUR"),
    ],
)
def test_an_amount_has_the_decimals_of_its_currency(amount: int, currency: str, shown: str) -> None:
    assert money(amount, currency) == shown


def test_every_currency_has_decimals() -> None:
    assert {minor_digits(code) for code in CURRENCIES} == {0, 2, 3}


@pytest.mark.parametrize(
    ("path", "is_local"),
    [("/overview", True), ("/users/a.b/profile?of=self", True), ("//evil", False), ("/\\evil", False), ("evil", False)],
)
def test_only_addresses_of_the_console_are_local(path: str, is_local: bool) -> None:
    assert is_local_path(path) is is_local


@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen.name)
def test_a_screen_has_a_title_and_a_template(screen: object) -> None:
    name = screen.name  # type: ignore[attr-defined]

    assert has_sentence(f"{name}.title")
    assert (HERE / "templates" / f"{name}.html").exists()
