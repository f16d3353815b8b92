"""Dead letters: which jobs are worth keeping, and under which id each is replayed."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages.wire import MESSAGES
from models.sends.dead_letters import ID, JOB_MAX, KEPT_TASKS, StoredLetter, is_keepable, next_replay_id, replay_of

IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True)


@pytest.mark.parametrize(
    ("key", "replayed"),
    [
        ("job-1", "job-1:r1"),
        ("job-1:r1", "job-1:r2"),
        ("job-1:r9", "job-1:r10"),
        ("job-1:r0", "job-1:r0:r1"),
        (":r1", ":r1:r1"),
        ("x" * 61, "x" * 61 + ":r1"),
    ],
)
def test_a_replay_is_numbered(key: str, replayed: str) -> None:
    assert next_replay_id(key) == replayed


@given(IDS | st.text(min_size=1, max_size=300))
def test_a_replay_gets_a_new_and_valid_id_that_is_always_the_same(key: str) -> None:
    assert ID.fullmatch(next_replay_id(key))
    assert next_replay_id(key) == next_replay_id(key)
    assert next_replay_id(key) != key


@given(IDS, st.integers(2, 12))
def test_replays_of_replays_never_use_an_id_again(key: str, times: int) -> None:
    seen = [key]
    for _ in range(times):
        seen.append(next_replay_id(seen[-1]))

    assert len(set(seen)) == times + 1


@given(st.lists(st.from_regex(r"[a-z]{60,62}(/[0-9]{1,3})?", fullmatch=True), min_size=2, max_size=2, unique=True))
def test_ids_that_are_shortened_stay_different(keys: list[str]) -> None:
    assert next_replay_id(keys[0]) != next_replay_id(keys[1])


def test_a_replayed_message_of_a_bulk_job_gets_an_id_of_its_own() -> None:
    assert next_replay_id("campaign/7").startswith("campaign.7.")
    assert next_replay_id("campaign/7") not in (next_replay_id("campaign.7"), next_replay_id("campaign/77"))


@pytest.mark.parametrize("task", MESSAGES)
def test_every_job_but_a_view_can_be_kept(task: str) -> None:
    assert is_keepable(task, {"a": 1}) is not task.startswith("views.")


@pytest.mark.parametrize("task", ["email.resume", "upkeep.sweep", "nonsense"])
def test_internal_and_unknown_tasks_are_not_kept(task: str) -> None:
    assert not is_keepable(task, {"a": 1})


@pytest.mark.parametrize(
    "given_",
    [
        None,
        [],
        "text",
        {"text": "x" * JOB_MAX},
        {"number": float("nan")},
        {"number": 10**5000},
        {"when": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
    ids=["nothing", "a list", "a text", "too large", "not a number", "too long a number", "a date"],
)
def test_an_object_that_is_no_valid_json_job_is_not_kept(given_: object) -> None:
    assert not is_keepable("email.send", given_)


def test_a_job_nested_too_deeply_is_not_kept() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = [deep]

    assert not is_keepable("email.send", {"to": deep})
    assert is_keepable("email.send", {"to": [[[[["\ud800"]]]]]})


def stored_letter(task: str, key: str, kind: str, reason: str | None, job: dict[str, Any]) -> StoredLetter:
    fields = {"task": task, "key": key, "kind": kind, "reason": reason}
    return StoredLetter(1, datetime(2026, 1, 1, tzinfo=UTC), job, fields)


@pytest.mark.parametrize(
    ("kind", "reason", "key", "replayed"),
    [
        ("refused", "insufficient_credits", "job-1", "job-1:r1"),
        ("refused", "unknown_user", "job-1", "job-1:r1"),
        ("refused", "conflicting_job", "job-1", "job-1:r1"),
        ("failed", "carrier_unavailable", "job-1", "job-1:r1"),
        ("refused", "invalid_job", "job-1", "job-1"),
        ("fault", None, "job-1", "job-1"),
        ("fault", None, "no proper id", next_replay_id("no proper id")),
    ],
)
def test_a_replayed_send_gets_a_new_id_if_its_own_is_taken(
    kind: str, reason: str | None, key: str, replayed: str
) -> None:
    """Nothing was decided under the id of an invalid job or of one that a fault ended, so these keep their id."""
    job = {"sender": "john", "text": "Hello"}

    assert replay_of(stored_letter("sms.send", key, kind, reason, job)) == (replayed, {**job, "job_id": replayed})


@pytest.mark.parametrize("task", sorted(set(KEPT_TASKS) - {task for task in MESSAGES if "send" in task}))
def test_all_other_replayed_jobs_keep_their_id(task: str) -> None:
    """A refused purchase or change may be enqueued again under the same id."""
    job = {"order_id": "order-1", "buyer": "john"}

    assert replay_of(stored_letter(task, "order-1", "refused", "unknown_user", job)) == ("order-1", job)
