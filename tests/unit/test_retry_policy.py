"""The retry policy: how often a job is attempted, and how long it waits between attempts."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sends.retry_policy import RetryPolicy


@pytest.mark.parametrize(("attempts", "is_exhausted"), [(1, False), (2, False), (3, True), (4, True)])
def test_attempts_are_exhausted_once_the_most_were_made(attempts: int, is_exhausted: bool) -> None:
    assert RetryPolicy(attempts_max=3).is_exhausted(attempts) is is_exhausted


def test_a_policy_of_one_attempt_allows_no_second() -> None:
    assert RetryPolicy(attempts_max=1).is_exhausted(1)


@pytest.mark.parametrize(
    ("attempts", "max_s"), [(1, 5), (2, 10), (3, 20), (4, 40), (7, 320), (8, 640), (10, 2560), (11, 3600), (1000, 3600)]
)
def test_the_longest_delay_doubles_with_each_attempt_up_to_a_limit(attempts: int, max_s: int) -> None:
    assert RetryPolicy().delay(attempts, draw=1.0) == timedelta(seconds=max_s)


def test_the_shortest_delay_is_half_the_longest() -> None:
    assert RetryPolicy(base_s=8.0).delay(1, draw=0.0) == timedelta(seconds=4)


def test_a_limit_below_the_base_wins() -> None:
    assert RetryPolicy(base_s=8.0, max_s=2.0).delay(1, draw=1.0) == timedelta(seconds=2)


@given(st.integers(1, 100_000), st.none() | st.floats(0, 1))
def test_every_delay_is_between_half_the_base_and_the_limit(attempts: int, draw: float | None) -> None:
    delay = RetryPolicy(base_s=5.0, max_s=900.0).delay(attempts, draw)

    assert timedelta(seconds=2.5) <= delay <= timedelta(seconds=900)


@given(st.integers(1, 1000), st.floats(0, 1))
def test_a_later_attempt_never_waits_less_for_the_same_draw(attempts: int, draw: float) -> None:
    assert RetryPolicy().delay(attempts, draw) <= RetryPolicy().delay(attempts + 1, draw)


def test_delays_are_drawn_at_random() -> None:
    """Jobs that failed together do not come back together."""
    assert len({RetryPolicy().delay(3) for _ in range(20)}) > 1


def test_the_lease_is_given_in_seconds() -> None:
    assert RetryPolicy(lease_s=90.0).lease == timedelta(minutes=1, seconds=30)
