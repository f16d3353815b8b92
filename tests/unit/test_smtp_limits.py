"""Limits that a mail server has shown."""

import pytest

from worker.carriers.smtp_limits import LearntLimit


def test_a_limit_is_what_was_set_until_another_one_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is then tried again, one more at a time, and never more than was set."""
    now = 1000.0
    monkeypatch.setattr("worker.carriers.smtp_limits.time.monotonic", lambda: now)
    limit = LearntLimit(10, grow_s=30)

    assert limit.now == 10
    limit.learn(4)
    assert limit.now == 4
    now += 29
    assert limit.now == 4
    now += 1
    assert limit.now == 5
    now += 1_000
    assert limit.now == 10


def test_a_limit_is_at_least_one_and_at_most_what_was_set() -> None:
    limit = LearntLimit(10, grow_s=30)
    limit.learn(0)
    assert limit.now == 1
    limit.learn(50)
    assert limit.now == 10
