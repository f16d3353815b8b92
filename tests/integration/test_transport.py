"""The transport: what it takes is registered in the same step, and what is no message is set aside."""

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest
from kombu import Connection, Consumer, Message, Producer, Queue
from kombu.transport import redis as stock
from redis import Redis

from worker.broker import fair_queue
from worker.broker.transport import RETURNS_MAX, Transport


@pytest.fixture
def ours(valkey_url: str) -> Iterator[Connection]:
    with Connection(valkey_url, transport=Transport) as connection:
        yield connection


@pytest.fixture
def producer(valkey_url: str) -> Iterator[Producer]:
    """A producer that knows nothing of our transport."""
    with Connection(valkey_url, transport=stock.Transport) as connection:
        yield Producer(connection.channel())


def publish(producer: Producer, queue: str, *numbers: int, priority: int = 0) -> None:
    for number in numbers:
        producer.publish({"number": number}, routing_key=queue, serializer="json", priority=priority)


def take(connection: Connection, *queues: str, prefetch: int, no_ack: bool = False) -> list[Message]:
    """What arrives within a moment for a consumer that acknowledges nothing."""
    taken: list[Message] = []
    channel = connection.channel()
    channel.basic_qos(0, prefetch, False)
    consumer = Consumer(
        channel,
        queues=[Queue(name, routing_key=name) for name in queues],
        on_message=taken.append,
        no_ack=no_ack,
        auto_declare=False,
    )
    consumer.consume()
    for _ in range(10):
        try:
            connection.drain_events(timeout=0.1 if taken else 2.0)  # the first may wait for a busy machine
        except TimeoutError:
            break
    return taken


def numbers(taken: list[Message]) -> list[int]:
    return [json.loads(message.body)["number"] for message in taken]


def test_what_is_taken_is_registered_as_unacknowledged(redis: Redis, ours: Connection, producer: Producer) -> None:
    """The list is empty and every message is in the hash and the index, in kombu's own form."""
    publish(producer, "email", 1, 2, 3)

    taken = take(ours, "email", prefetch=10)

    assert numbers(taken) == [1, 2, 3]
    assert redis.llen("email") == 0
    tags = {message.delivery_tag for message in taken}
    assert {tag.decode() for tag in redis.hkeys("unacked")} == tags
    assert {tag.decode() for tag in redis.zrange("unacked_index", 0, -1)} == tags
    [message, exchange, routing_key] = json.loads(redis.hget("unacked", taken[0].delivery_tag))
    assert (message["body"], exchange, routing_key) == (taken[0]._raw["body"], "", "email")


def heavy(producer: Producer, number: int, **headers: object) -> None:
    """Publish what stands for many jobs."""
    headers = {"task": "email.send_many", **headers}
    producer.publish({"number": number}, routing_key="bulk", serializer="json", headers=headers)


@pytest.mark.parametrize("end", ["acknowledged", "rejected", "set aside"])
def test_of_what_stands_for_many_jobs_the_next_is_taken_when_the_last_has_ended(
    ours: Connection, producer: Producer, end: str
) -> None:
    """However it has ended: room that is not given back would be missing for ever."""
    heavy(producer, 1)
    heavy(producer, 2)
    taken = take(ours, "bulk", prefetch=10)
    [first] = taken
    {
        "acknowledged": first.ack,
        "rejected": first.reject,
        "set aside": lambda: first.channel.qos.quarantine(first.delivery_tag, b"broken"),
    }[end]()

    with suppress(TimeoutError):
        while len(taken) == 1:
            ours.drain_events(timeout=2.0)

    assert numbers(taken) == [1, 2]


def test_what_waits_for_a_time_of_its_own_takes_nobodys_place(ours: Connection, producer: Producer) -> None:
    heavy(producer, 1, eta="2036-01-01T00:00:00Z")
    heavy(producer, 2)

    assert numbers(take(ours, "bulk", prefetch=10)) == [1, 2]


def test_a_message_survives_a_worker_that_dies_before_it_hears_of_it(redis: Redis, ours: Connection) -> None:
    """The script has run and nobody reads its answer: the message waits in the hash for the visibility timeout."""
    with ours.channel() as channel:
        channel._queue_cycle.update(["email"])
        Producer(channel).publish({"number": 1}, routing_key="email", serializer="json")
        redis.execute_command(*channel._take_command(["email"]))

    assert (redis.llen("email"), redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 1, 1)


def test_acknowledged_messages_are_forgotten(redis: Redis, ours: Connection, producer: Producer) -> None:
    publish(producer, "email", 1, 2)

    for message in take(ours, "email", prefetch=10):
        message.ack()
    publish(producer, "email", 3)
    [third] = take(ours, "email", prefetch=10)

    assert redis.hkeys("unacked") == [third.delivery_tag.encode()]
    assert redis.zrange("unacked_index", 0, -1) == [third.delivery_tag.encode()]


def test_what_was_acknowledged_last_is_forgotten_at_the_end(redis: Redis, ours: Connection, producer: Producer) -> None:
    """And what was not is on its queue again."""
    publish(producer, "email", 1, 2)
    first, _second = take(ours, "email", prefetch=10)

    first.ack()
    first.channel.close()

    assert (redis.hlen("unacked"), redis.zcard("unacked_index"), redis.llen("email")) == (0, 0, 1)


def test_a_requeued_message_is_on_its_queue_again(redis: Redis, ours: Connection, producer: Producer) -> None:
    publish(producer, "email", 1)
    [message] = take(ours, "email", prefetch=1)

    message.requeue()

    [item] = redis.lrange("email", 0, -1)
    assert redis.hlen("unacked") == 0
    assert json.loads(item)["properties"]["delivery_tag"] == message.delivery_tag


def restore(connection: Connection, message: Message) -> None:
    """What another worker does with a message that was not acknowledged in time."""
    with connection.clone() as other:
        other.default_channel.qos.restore_by_tag(message.delivery_tag)


def test_a_message_goes_back_to_the_queue_it_was_taken_from_whatever_it_says_of_its_exchange(
    redis: Redis, ours: Connection, producer: Producer
) -> None:
    """Bindings may be gone, or never have been: kombu would drop the message."""
    publish(producer, "email", 1, priority=3)
    [email] = redis.keys("email*")
    item = json.loads(redis.rpop(email))
    item["properties"]["delivery_info"] = {"exchange": "forgotten", "routing_key": "nowhere"}
    redis.lpush(email, json.dumps(item))
    [message] = take(ours, "email", prefetch=1)

    restore(ours, message)

    [back] = redis.lrange(email, 0, -1)
    assert json.loads(back)["body"] == item["body"]
    assert json.loads(back)["headers"]["redelivered"] is True
    assert (redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0)


def test_a_message_over_which_workers_die_again_and_again_is_set_aside(
    redis: Redis, ours: Connection, producer: Producer
) -> None:
    publish(producer, "email", 1)
    for _ in range(RETURNS_MAX):
        [message] = take(ours, "email", prefetch=1)
        restore(ours, message)
    assert (redis.llen("email"), redis.llen(fair_queue.QUARANTINE)) == (1, 0)

    [message] = take(ours, "email", prefetch=1)
    restore(ours, message)

    [item] = redis.lrange(fair_queue.QUARANTINE, 0, -1)
    assert json.loads(item)["properties"]["delivery_tag"] == message.delivery_tag
    assert (redis.llen("email"), redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0, 0)


def test_a_message_that_its_worker_gives_back_may_come_as_often_as_it_likes(
    redis: Redis, ours: Connection, producer: Producer
) -> None:
    publish(producer, "email", 1)

    for _ in range(RETURNS_MAX + 2):
        [message] = take(ours, "email", prefetch=1)
        message.requeue()

    assert (redis.llen("email"), redis.llen(fair_queue.QUARANTINE)) == (1, 0)


@pytest.mark.parametrize("held", [b"not JSON", b"17", b"[]", b'[{"headers": null, "properties": {}}, "", "email"]'])
def test_what_cannot_be_put_back_is_set_aside_and_not_lost(redis: Redis, ours: Connection, held: bytes) -> None:
    redis.hset("unacked", "tag-1", held)
    redis.zadd("unacked_index", {"tag-1": 0})

    ours.default_channel.qos.restore_by_tag("tag-1")

    assert redis.lrange(fair_queue.QUARANTINE, 0, -1) == [held]
    assert (redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0)


def test_no_more_is_taken_than_may_be_held(redis: Redis, ours: Connection, producer: Producer) -> None:
    publish(producer, "email", *range(10))

    taken = take(ours, "email", prefetch=4)

    assert numbers(taken) == [0, 1, 2, 3]
    assert (redis.llen("email"), redis.hlen("unacked")) == (6, 4)


def test_queues_take_turns_so_that_a_long_one_holds_up_none(ours: Connection, producer: Producer) -> None:
    publish(producer, "email", *range(100, 200))
    publish(producer, "sms", 1, 2)

    taken = take(ours, "email", "sms", prefetch=4)

    assert sorted(numbers(taken)) == [1, 2, 100, 101]


def test_every_priority_is_consumed_the_highest_first(ours: Connection, producer: Producer) -> None:
    """0 is the highest, as kombu has it on Redis."""
    publish(producer, "email", 9, priority=9)
    publish(producer, "email", 3, priority=3)
    publish(producer, "email", 0, priority=0)

    assert numbers(take(ours, "email", prefetch=10)) == [0, 3, 9]


def test_what_is_no_message_is_set_aside_as_it_came_and_the_next_one_is_taken(
    redis: Redis, ours: Connection, producer: Producer
) -> None:
    address = {"exchange": "", "routing_key": "email"}
    garbage = [
        b"garbage",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b'{"properties": 5}',
        b'{"properties": {"delivery_tag": 5, "delivery_info": {"exchange": "", "routing_key": "email"}}}',
        b"[" * 100_000,
        json.dumps({"properties": {"delivery_tag": "headers", "delivery_info": address}, "headers": 5}).encode(),
        b'{"x": "\xff", "properties": {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "x"}}}',
    ]
    for item in garbage:
        redis.lpush("email", item)
    publish(producer, "email", 1)

    assert numbers(take(ours, "email", prefetch=50)) == [1]
    assert (redis.llen("email"), redis.hlen("unacked")) == (0, 1)
    assert set(redis.lrange(fair_queue.QUARANTINE, 0, -1)) == set(garbage)


def test_who_acknowledges_nothing_leaves_nothing_unacknowledged(
    redis: Redis, ours: Connection, producer: Producer
) -> None:
    """Replies of remote control are read so; registered, they would come back after the visibility timeout."""
    publish(producer, "reply", 1)

    assert numbers(take(ours, "reply", prefetch=0, no_ack=True)) == [1]
    assert redis.hlen("unacked") == 0


def test_tasks_are_taken_by_the_script_after_replies_were_read_on_the_same_channel(
    redis: Redis, ours: Connection, producer: Producer
) -> None:
    """A worker greets its neighbours so before it consumes its first task."""
    channel = ours.default_channel
    replies = Consumer(
        channel, [Queue("reply", routing_key="reply")], on_message=print, no_ack=True, auto_declare=False
    )
    with replies, pytest.raises(TimeoutError):
        ours.drain_events(timeout=0.1)
    before = redis.info("commandstats").get("cmdstat_rpop", {"calls": 0})["calls"]
    publish(producer, "email", 1)
    taken: list[Message] = []
    consumer = Consumer(channel, [Queue("email", routing_key="email")], on_message=taken.append, auto_declare=False)
    consumer.consume()
    ours.drain_events(timeout=2)

    assert numbers(taken) == [1]
    assert redis.info("commandstats")["cmdstat_rpop"]["calls"] > before  # the script's; kombu's own is BRPOP
