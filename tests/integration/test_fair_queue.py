"""The fair queue: senders take turns, each has their messages in order, and none is lost or taken twice."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from worker.broker import fair_queue

_numbers = itertools.count()


def put(redis: Redis, shown: str, task: str = "email.send") -> int:
    """Put a message on the queue whose header shows `shown` of its arguments. Returns its number."""
    number = next(_numbers)
    properties = {"delivery_tag": f"tag-{number}", "delivery_info": {"exchange": "", "routing_key": "email"}}
    headers = {"task": task, "argsrepr": shown}
    redis.lpush("email", json.dumps({"body": number, "headers": headers, "properties": properties}))
    return number


def take(redis: Redis, limit: int, *, bulk_limit: int = 8, shared: Sequence[str] = ("email",)) -> list[dict[str, Any]]:
    """Take as a worker does."""
    keys, *arguments = fair_queue.take_args(
        unacked="unacked",
        unacked_index="unacked_index",
        lists=["email"],
        queues=1,
        limit=limit,
        bulk_limit=bulk_limit,
        shared=shared,
    )
    _, *taken = fair_queue.take_script(redis)(keys=arguments[:keys], args=arguments[keys:])
    return [json.loads(item) for item in taken[2::3]]


def numbers(taken: Sequence[dict[str, Any]]) -> list[int]:
    """Give the numbers of messages."""
    return [message["body"] for message in taken]


def test_a_single_message_does_not_wait_for_a_whole_campaign(redis: Redis) -> None:
    campaign = [put(redis, f"(job=c-{number}, sender=big)") for number in range(1_000)]
    single = put(redis, "(job=single, sender=small)")

    taken = numbers(take(redis, 10))

    assert single in taken
    assert [number for number in taken if number != single] == campaign[:9]
    assert fair_queue.waiting_count(redis, "email") == 991


@pytest.mark.parametrize(
    "shown",
    [
        "(job=a, sender=small)",
        "[{'job_id': 'a', 'sender': 'small', 'to': 'x@y.example'}]",
        "({'sender': 'small'},)",
    ],
)
def test_the_sender_is_read_from_the_arguments_that_celery_shows(redis: Redis, shown: str) -> None:
    for _ in range(20):
        put(redis, "(job=c, sender=big)")
    put(redis, shown)

    take(redis, 1)

    assert set(redis.lrange("postage.lines:email", 0, -1)) == {b"big", b"small"}


def test_messages_that_name_no_sender_share_one_line(redis: Redis) -> None:
    for _ in range(20):
        put(redis, "(…)")
    single = put(redis, "(job=a, sender=small)")

    assert single in numbers(take(redis, 2))


def test_a_few_messages_are_taken_first_in_first_out(redis: Redis) -> None:
    waiting = [put(redis, f"(job=a, sender={sender})") for sender in ("a", "a", "b", "a")]

    assert numbers(take(redis, 10)) == waiting
    assert redis.exists("postage.lines:email") == 0


def test_a_queue_that_is_not_shared_is_first_in_first_out(redis: Redis) -> None:
    waiting = [put(redis, f"(job=a, sender={sender})") for sender in ("a", "a", "b", "a")]

    assert numbers(take(redis, 3, shared=())) == waiting[:3]


def test_no_more_resume_messages_are_taken_than_can_be_begun(redis: Redis) -> None:
    """The others wait in a line of their own, and delay nobody."""
    resumes = [put(redis, "(…)", "email.resume") for _ in range(5)]
    single = put(redis, "(job=a, sender=small)")

    assert numbers(take(redis, 10, bulk_limit=2)) == [*resumes[:2], single]
    assert numbers(take(redis, 10, bulk_limit=0)) == []
    assert fair_queue.waiting_count(redis, "email") == 3
    assert numbers(take(redis, 10, bulk_limit=8)) == resumes[2:]
    assert fair_queue.waiting_count(redis, "email") == 0


def test_no_more_bulk_jobs_are_taken_than_can_be_begun(redis: Redis) -> None:
    """The others stay on the queue, for an idle worker, and what is behind them waits as long."""
    jobs = [put(redis, "(job=j, sender=s)", "email.send_many") for _ in range(3)]
    other = put(redis, "(job=j, sender=s)", "credits.purchase")

    assert numbers(take(redis, 10, bulk_limit=2, shared=())) == jobs[:2]
    assert numbers(take(redis, 10, bulk_limit=0, shared=())) == []
    assert numbers(take(redis, 10, bulk_limit=2, shared=())) == [jobs[2], other]


def test_an_item_that_is_no_message_is_quarantined_from_a_line(redis: Redis) -> None:
    for _ in range(20):
        put(redis, "(job=c, sender=big)")
    redis.lpush("email", b'\xff sender=small "task": "email.resume')

    taken = take(redis, 100, bulk_limit=8)

    assert len(taken) == 20
    assert redis.zrange(fair_queue.QUARANTINE, 0, -1) == [b'\xff sender=small "task": "email.resume']


def test_a_purge_empties_the_lines(redis: Redis) -> None:
    for sender in ("a", "b", "b"):
        put(redis, f"(job=a, sender={sender})")
    put(redis, "(…)", "email.resume")
    take(redis, 1, bulk_limit=0)
    put(redis, "(job=a, sender=a)")

    assert fair_queue.purge(redis, "email") == 4
    assert (fair_queue.waiting_count(redis, "email"), redis.keys("postage.line*")) == (0, [])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.lists(st.sampled_from("aaaabc-"), min_size=1, max_size=30),
            st.tuples(st.integers(1, 12), st.integers(0, 2)),
        ),
        max_size=15,
    )
)
def test_every_sender_has_a_share_and_every_message_is_taken_once(
    redis: Redis, steps: list[list[str] | tuple[int, int]]
) -> None:
    redis.flushdb()
    lines: dict[str, list[int]] = defaultdict(list)
    for step in [*steps, (1_000, 1_000)]:
        if isinstance(step, list):
            for sender in step:
                task, shown = ("email.resume", "(…)") if sender == "-" else ("email.send", f"(job=j, sender={sender})")
                lines[sender].append(put(redis, shown, task))
            continue
        limit, resumes = step
        waited = {sender: len(line) for sender, line in lines.items()}
        few = sum(waited.values()) <= limit
        taken = take(redis, limit, bulk_limit=resumes)
        of = {number: sender for sender, line in lines.items() for number in line}
        got = Counter(of[message["body"]] for message in taken)
        for sender, line in lines.items():
            mine = [message["body"] for message in taken if of[message["body"]] == sender]
            assert mine == line[: len(mine)]
            del line[: len(mine)]
        assert got["-"] <= resumes
        assert len(taken) == min(limit, sum(waited.values()) - max(0, waited.get("-", 0) - resumes))
        senders = [sender for sender in "abc" if waited.get(sender)]
        if not few:
            most = max((got[sender] for sender in senders), default=0)
            assert all(got[sender] >= min(waited[sender], most - 1) for sender in senders)
        assert fair_queue.waiting_count(redis, "email") == sum(map(len, lines.values()))
    assert fair_queue.waiting_count(redis, "email") == 0
