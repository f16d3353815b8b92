"""Words of servers: whom they name is left out, what they say is kept."""

import pytest

from models.text import without_people


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("550 5.1.1 <ada@example.test>: no such user", "550 5.1.1 <…>: no such user"),
        ("Sender john@acme.test (ada@b.test,bob@b.test)", "Sender … (…,…)"),
        ("No route to +31612345678", "No route to …"),
        ("No route to +31 6 1234 5678.", "No route to …."),
        ("555-0123-99", "…"),
        ("535 5.7.8 Error: authentication failed", "535 5.7.8 Error: authentication failed"),
        ("HTTP 402 since 2026, code 30002", "HTTP 402 since 2026, code 30002"),
        ("421 4.7.0 [192.168.100.200] Try again", "421 4.7.0 [192.168.100.200] Try again"),
        ("The carrier does not work now; it is tried again.", "The carrier does not work now; it is tried again."),
        ("", ""),
    ],
)
def test_addresses_and_numbers_are_left_out(words: str, left: str) -> None:
    assert without_people(words) == left
