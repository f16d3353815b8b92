"""The fair queue: senders take turns, each has their messages in order, and none is lost or taken twice."""

import asyncio
import base64
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from celery import Celery
from flower.utils import broker as flower_broker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from worker.broker import fair_queue
from worker.broker.flower_queues import count_as_postage_does
from worker.broker.transport import register_transport

_numbers = itertools.count()


def put(redis: Redis, sender: str | None, task: str = "email.send", **given: Any) -> int:
    """Put a message of a sender on the queue, or one that names none. Returns its number."""
    number = next(_numbers)
    named = {} if sender is None else {"sender": sender}
    redis.lpush("email", as_message(number, json.dumps([[{**given, **named}], {}, None]), task))
    return number


def as_message(number: int, body: str, task: str = "email.send") -> str:
    """Give a message as kombu writes it."""
    properties = {"delivery_tag": f"tag-{number}", "delivery_info": {"exchange": "", "routing_key": "email"}}
    encoded = base64.b64encode(body.encode()).decode()
    return json.dumps({"body": encoded, "headers": {"task": task}, "properties": properties})


def take(
    redis: Redis, limit: int, *, bulk_limit: int = 8, bytes_max: int = 10**6, shared: Sequence[str] = ("email",)
) -> list[dict[str, Any]]:
    """Take as a worker does."""
    keys, *arguments = fair_queue.take_args(
        unacked="unacked",
        unacked_index="unacked_index",
        lists=["email"],
        queues=["email"],
        limit=limit,
        bulk_limits={"email": bulk_limit},
        bytes_max=bytes_max,
        bytes_limit=10**8,
        shared=dict.fromkeys(shared, "sender"),
    )
    _, _, *taken = fair_queue.take_script(redis)(keys=arguments[:keys], args=arguments[keys:])
    return [json.loads(item) for item in taken[2::3]]


def numbers(taken: Sequence[dict[str, Any]]) -> list[int]:
    """Give the numbers of messages."""
    return [int(message["properties"]["delivery_tag"].removeprefix("tag-")) for message in taken]


def test_a_single_message_does_not_wait_for_a_whole_campaign(redis: Redis) -> None:
    campaign = [put(redis, "big") for number in range(1_000)]
    single = put(redis, "small")

    taken = numbers(take(redis, 10))

    assert single in taken
    assert [number for number in taken if number != single] == campaign[:9]
    assert fair_queue.waiting_count(redis, "email") == 991


WRITTEN = st.fixed_dictionaries(
    {"separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]), "ensure_ascii": st.booleans()}
)
"""How a producer writes its JSON."""
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(['"sender": "z17"', "sender=z17", '\\"sender\\": \\"z17\\"']))
OBJECTS = st.recursive(
    st.one_of(TEXTS, st.integers(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.one_of(TEXTS, st.just("sender")), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    fields=st.dictionaries(st.sampled_from(["job_id", "a_sender", "values", "headers", "subject", "zz"]), OBJECTS),
    sender=st.from_regex("[A-Za-z0-9._:-]{1,64}", fullmatch=True),
    last=st.booleans(),
    written=WRITTEN,
)
def test_the_sender_is_the_one_in_the_body_whatever_else_is_there(
    redis: Redis, fields: dict[str, Any], sender: str, last: bool, written: dict[str, Any]
) -> None:
    """Who writes somebody else's name into a subject, a value or a header stays in their own line."""
    redis.flushdb()
    job = {**fields, "sender": sender} if last else {"sender": sender, **fields}
    body = json.dumps([[job], {}, {"chain": None}], **written)
    message = as_message(next(_numbers), body.encode("utf-8", "replace").decode()).replace(
        '"task"', '"argsrepr": "(job=a, sender=z17)", "task"'
    )
    put(redis, "first")
    redis.lpush("email", message)

    take(redis, 1)

    assert redis.keys("postage.line:email:*") == [f"postage.line:email:{sender}".encode()]


@pytest.mark.parametrize(
    "message",
    [
        '{"headers": {"body": "W10="}, "body": "BODY", "properties": PROPERTIES}',
        '{"body": "BODY", "headers": {"task": "email.send", "sender": "z17"}, "properties": PROPERTIES}',
        '{"properties": PROPERTIES, "headers": {}, "body": "BODY"}',
        '{"body": "SLASHED", "headers": {}, "properties": PROPERTIES}',
        '{"body": "VERSION1", "headers": {}, "properties": PROPERTIES}',
    ],
    ids=["other body in headers", "sender in headers", "body last", "slashes as PHP writes them", "protocol 1"],
)
def test_the_sender_is_found_in_messages_of_other_producers(redis: Redis, message: str) -> None:
    def encode(value: object) -> str:
        return base64.b64encode(json.dumps(value).encode()).decode()

    job = {"subject": "???>>>???>>>" * 3, "values": {"sender": "z17"}, "sender": "mary"}
    properties = {"delivery_tag": "tag-1", "delivery_info": {"exchange": "", "routing_key": "email"}}
    put(redis, "first")
    redis.lpush(
        "email",
        message.replace("BODY", encode([[job], {}, {}]))
        .replace("SLASHED", encode([[job], {}, {}]).replace("/", "\\/"))
        .replace("VERSION1", encode({"task": "email.send", "args": [job], "kwargs": {}}))
        .replace("PROPERTIES", json.dumps(properties)),
    )

    take(redis, 1)

    assert redis.keys("postage.line:email:*") == [b"postage.line:email:mary"]


def test_organizations_take_turns_before_their_people(redis: Redis) -> None:
    """A tenant with a hundred senders gets no more than one with a single sender."""
    people = [f"a{number}" for number in range(100)]
    redis.hset(fair_queue.ORGANIZATIONS, mapping={**dict.fromkeys(people, 1), "b": 2})
    for person in people:
        put(redis, person)
    others = [put(redis, "b") for _ in range(100)]

    taken = numbers(take(redis, 40))

    assert [number for number in taken if number in others] == others[:20]


def test_what_workers_of_an_earlier_release_moved_is_found(redis: Redis) -> None:
    moved = [next(_numbers) for _ in range(4)]
    for number, sender in zip(moved, "abab", strict=True):
        redis.lpush(f"postage.line:email:{sender}", as_message(number, "[]"))
    redis.lpush("postage.lines:email", "a", "b")

    assert fair_queue.waiting_count(redis, "email") == 4
    assert sorted(numbers(take(redis, 10))) == moved
    assert redis.keys("postage.line*") == []


# -- what stands in the way -------------------------------------------------------------------------------------------


def everything(redis: Redis) -> set[bytes]:
    """Give all messages, wherever they are."""
    lists = [key for key in redis.scan_iter() if key == b"email" or key.startswith(b"postage.line:")]
    waiting = [item for key in lists for item in redis.lrange(key, 0, -1)]
    registered = [json.dumps(json.loads(held)[0]).encode() for held in redis.hvals("unacked")]
    return {*waiting, *registered, *redis.zrange(fair_queue.QUARANTINE, 0, -1)}


@pytest.mark.parametrize("waiting", [3, 50], ids=["few", "many"])
def test_a_redis_that_is_out_of_memory_loses_no_message(redis: Redis, waiting: int) -> None:
    for number in range(waiting):
        put(redis, f"s{number % 3}")
    before = everything(redis)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="maxmemory"):
            take(redis, 10)
    finally:
        redis.config_set("maxmemory", 0)

    assert everything(redis) == before
    assert len(take(redis, waiting)) == waiting


@pytest.mark.parametrize("forbidden", ["rpoplpush", "lpush", "zadd", "hset", "ltrim", "lrange", "hget", "exists"])
def test_a_redis_that_forbids_a_command_loses_no_message(redis: Redis, valkey_url: str, forbidden: str) -> None:
    for number in range(50):
        put(redis, f"s{number % 3}")
    put(redis, None, "email.resume")
    before = everything(redis)
    redis.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", f"-{forbidden}"])
    try:
        with Redis.from_url(valkey_url, username="limited", password="any") as limited:
            for _ in range(3):
                with pytest.raises(RedisError, match=r"permission|NOPERM"):
                    take(limited, 10)
        resumes = set(redis.lrange("postage.resumes:email", 0, -1))
        assert everything(redis) | resumes == before
    finally:
        redis.acl_deluser("limited")


def test_a_key_that_is_no_list_stops_its_own_queue_alone(redis: Redis) -> None:
    redis.set("sms", "not a list")
    number = put(redis, "a")
    keys, *arguments = fair_queue.take_args(
        unacked="unacked", unacked_index="unacked_index", lists=["sms", "email"], queues=["sms", "email"],
        limit=10, bulk_limits={"email": 1, "sms": 1}, bytes_max=10**6, bytes_limit=10**8,
        shared={"email": "sender", "sms": "sender"},
    )  # fmt: skip

    _, not_lists, *taken = fair_queue.take_script(redis)(keys=arguments[:keys], args=arguments[keys:])

    assert not_lists == [b"sms"]
    assert numbers([json.loads(item) for item in taken[2::3]]) == [number]


@pytest.mark.parametrize("others", [0, 30], ids=["few", "many"])
def test_a_message_that_is_too_long_is_quarantined_unread(redis: Redis, others: int) -> None:
    long = as_message(next(_numbers), "x" * 2_000)
    redis.lpush("email", long)
    for _ in range(others):
        put(redis, "a")

    assert len(take(redis, 100, bytes_max=2_000)) == others
    assert redis.zrange(fair_queue.QUARANTINE, 0, -1) == [long.encode()]


def test_messages_that_name_no_sender_share_one_line(redis: Redis) -> None:
    for _ in range(20):
        put(redis, None)
    single = put(redis, "small")

    assert single in numbers(take(redis, 2))


def test_a_few_messages_are_taken_first_in_first_out(redis: Redis) -> None:
    waiting = [put(redis, sender) for sender in ("a", "a", "b", "a")]

    assert numbers(take(redis, 10)) == waiting
    assert redis.exists("postage.lines:email") == 0


def test_a_queue_that_is_not_shared_is_first_in_first_out(redis: Redis) -> None:
    waiting = [put(redis, sender) for sender in ("a", "a", "b", "a")]

    assert numbers(take(redis, 3, shared=())) == waiting[:3]


def test_no_more_resume_messages_are_taken_than_can_be_begun(redis: Redis) -> None:
    """The others wait in a line of their own, and delay nobody."""
    resumes = [put(redis, None, "email.resume") for _ in range(5)]
    single = put(redis, "small")

    assert numbers(take(redis, 10, bulk_limit=2)) == [*resumes[:2], single]
    assert numbers(take(redis, 10, bulk_limit=0)) == []
    assert fair_queue.waiting_count(redis, "email") == 3
    assert numbers(take(redis, 10, bulk_limit=8)) == resumes[2:]
    assert fair_queue.waiting_count(redis, "email") == 0


def test_no_more_bulk_jobs_are_taken_than_can_be_begun(redis: Redis) -> None:
    """The others stay on the queue, for an idle worker, and what is behind them waits as long."""
    jobs = [put(redis, "s", "email.send_many") for _ in range(3)]
    other = put(redis, "s", "credits.purchase")

    assert numbers(take(redis, 10, bulk_limit=2, shared=())) == jobs[:2]
    assert numbers(take(redis, 10, bulk_limit=0, shared=())) == []
    assert numbers(take(redis, 10, bulk_limit=2, shared=())) == [jobs[2], other]


def test_an_item_that_is_no_message_is_quarantined_from_a_line(redis: Redis) -> None:
    for _ in range(20):
        put(redis, "big")
    redis.lpush("email", b'\xff sender=small "task": "email.resume')

    taken = take(redis, 100, bulk_limit=8)

    assert len(taken) == 20
    assert redis.zrange(fair_queue.QUARANTINE, 0, -1) == [b'\xff sender=small "task": "email.resume']


def test_flower_counts_what_was_moved_to_people(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_broker.Broker, "__new__", flower_broker.Broker.__new__)  # put back afterwards
    monkeypatch.setattr("kombu.transport._transport_cache", {})  # other tests may have used kombu's own transport
    register_transport()
    count_as_postage_does(Celery(broker=valkey_url, set_as_current=False))
    for number in range(50):
        put(redis, f"s{number % 3}")
    take(redis, 10)
    redis.lpush("sms\x06\x163", "urgent")

    shown = asyncio.run(flower_broker.Broker(valkey_url).queues(["email", "sms"]))

    assert shown == [{"name": "email", "messages": 40}, {"name": "sms", "messages": 1}]


def test_a_purge_empties_the_lines(redis: Redis) -> None:
    for sender in ("a", "b", "b"):
        put(redis, sender)
    put(redis, None, "email.resume")
    take(redis, 1, bulk_limit=0)
    put(redis, "a")

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
                is_resume = sender == "-"
                number = put(redis, None, "email.resume") if is_resume else put(redis, sender)
                lines[sender].append(number)
            continue
        limit, resumes = step
        waited = {sender: len(line) for sender, line in lines.items()}
        few = sum(waited.values()) <= limit
        taken = take(redis, limit, bulk_limit=resumes)
        of = {number: sender for sender, line in lines.items() for number in line}
        got = Counter(of[number] for number in numbers(taken))
        for sender, line in lines.items():
            mine = [number for number in numbers(taken) if of[number] == sender]
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
