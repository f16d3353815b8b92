"""The transport: it registers each message in the step that takes it, and quarantines items that are no messages."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from kombu import Connection, Consumer, Message, Producer, Queue
from kombu.transport import redis as stock
from redis import ConnectionPool, Redis

from models.messages.base import Json
from worker.broker import fair_queue
from worker.broker.prefixed import PrefixedRedis
from worker.broker.transport import RETURNS_MAX, Transport


@pytest.fixture(params=["", "shop-1:"], ids=["no-prefix", "prefix"])
def options(request: pytest.FixtureRequest) -> Json:
    """Give the options of all transports: every test is right with a prefix of keys as without one."""
    return {"global_keyprefix": request.param}


@pytest.fixture
def redis(valkey_url: str, options: Json) -> Iterator[Redis]:
    """Give a client of the empty broker, and make sure that no key is without the prefix in the end."""
    with PrefixedRedis(connection_pool=ConnectionPool.from_url(valkey_url), **options) as client:
        yield client
        prefix = options["global_keyprefix"].encode()
        assert [name for name in client.scan_iter() if not name.startswith(prefix)] == []


@pytest.fixture
def connection(valkey_url: str, options: Json) -> Iterator[Connection]:
    """Give a connection of our transport."""
    with Connection(valkey_url, transport=Transport, transport_options=options) as connection:
        yield connection


@pytest.fixture
def producer(valkey_url: str, options: Json) -> Iterator[Producer]:
    """Give a producer that knows nothing of our transport."""
    with Connection(valkey_url, transport=stock.Transport, transport_options=options) as connection:
        yield Producer(connection.channel())


def publish(producer: Producer, queue: str, *numbers: int, priority: int = 0) -> None:
    for number in numbers:
        producer.publish({"number": number}, routing_key=queue, serializer="json", priority=priority)


def take(connection: Connection, *queues: str, prefetch: int, no_ack: bool = False) -> list[Message]:
    """Give the messages that arrive within a moment at a consumer that acknowledges nothing."""
    taken: list[Message] = []
    consume(connection, taken, *queues, prefetch=prefetch, no_ack=no_ack)
    for _ in range(10):
        try:
            connection.drain_events(timeout=0.1 if taken else 2.0)  # the first may wait for a busy machine
        except TimeoutError:
            break
    return taken


def take_one(connection: Connection, queue: str) -> Message:
    """Give the next message, as soon as it arrives at a consumer that acknowledges nothing and then takes no more."""
    taken: list[Message] = []
    consumer = consume(connection, taken, queue, prefetch=1)
    while not taken:
        connection.drain_events(timeout=2.0)
    consumer.cancel()
    [message] = taken
    return message


def consume(
    connection: Connection, taken: list[Message], *queues: str, prefetch: int, no_ack: bool = False
) -> Consumer:
    """Begin to consume queues. Messages that arrive are added to `taken`."""
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
    return consumer


def numbers(taken: list[Message]) -> list[int]:
    """Give the numbers of messages."""
    return [json.loads(message.body)["number"] for message in taken]


def test_taken_messages_are_registered_as_unacknowledged(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    """The list is empty, and every message is in the hash and the index, in the form of kombu."""
    publish(producer, "email", 1, 2, 3)

    taken = take(connection, "email", prefetch=10)

    assert numbers(taken) == [1, 2, 3]
    assert redis.llen("email") == 0
    tags = {message.delivery_tag for message in taken}
    assert {tag.decode() for tag in redis.hkeys("unacked")} == tags
    assert {tag.decode() for tag in redis.zrange("unacked_index", 0, -1)} == tags
    [message, exchange, routing_key] = json.loads(redis.hget("unacked", taken[0].delivery_tag))
    assert (message["body"], exchange, routing_key) == (taken[0]._raw["body"], "", "email")


def test_messages_with_the_same_delivery_tag_are_kept_apart(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    """A program that writes messages by itself may use one tag for all."""
    for number in (1, 2, 3):
        producer.publish({"number": number}, routing_key="email", serializer="json", delivery_tag="same")

    taken = take(connection, "email", prefetch=10)
    assert numbers(taken) == [1, 2, 3]
    assert redis.hlen("unacked") == redis.zcard("unacked_index") == 3
    taken[0].ack()
    taken[0].channel.qos.write_acks()

    assert redis.hlen("unacked") == redis.zcard("unacked_index") == 2


def publish_bulk(producer: Producer, number: int, **headers: object) -> None:
    """Publish a message that stands for many jobs."""
    headers = {"task": "email.send_many", **headers}
    producer.publish({"number": number}, routing_key="bulk", serializer="json", headers=headers)


@pytest.mark.parametrize("end", ["acknowledged", "rejected", "quarantined"])
def test_the_next_bulk_message_is_taken_when_the_last_one_has_ended(
    connection: Connection, producer: Producer, end: str
) -> None:
    """However it has ended: a place that is not freed would be missing for ever."""
    publish_bulk(producer, 1)
    publish_bulk(producer, 2)
    taken = take(connection, "bulk", prefetch=10)
    [first] = taken
    {
        "acknowledged": first.ack,
        "rejected": first.reject,
        "quarantined": lambda: first.channel.qos.quarantine(first.delivery_tag, b"broken"),
    }[end]()

    with suppress(TimeoutError):
        while len(taken) == 1:
            connection.drain_events(timeout=2.0)

    assert numbers(taken) == [1, 2]


def test_a_bulk_message_with_an_eta_takes_no_place(connection: Connection, producer: Producer) -> None:
    publish_bulk(producer, 1, eta="2036-01-01T00:00:00Z")
    publish_bulk(producer, 2)

    assert numbers(take(connection, "bulk", prefetch=10)) == [1, 2]


def test_a_message_survives_a_crash_right_after_it_was_taken(redis: Redis, connection: Connection) -> None:
    """Nobody reads the answer of the script: the message is in the hash until the visibility timeout."""
    with connection.channel() as channel:
        channel._queue_cycle.update(["email"])
        Producer(channel).publish({"number": 1}, routing_key="email", serializer="json")
        command = channel._take_command(["email"])
        redis.script_load(channel._take_script.script)
        redis.execute_command(*command)

    assert (redis.llen("email"), redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 1, 1)


def test_acknowledged_messages_are_forgotten(redis: Redis, connection: Connection, producer: Producer) -> None:
    publish(producer, "email", 1, 2)

    for message in take(connection, "email", prefetch=10):
        message.ack()
    publish(producer, "email", 3)
    [third] = take(connection, "email", prefetch=10)

    assert redis.hkeys("unacked") == [third.delivery_tag.encode()]
    assert redis.zrange("unacked_index", 0, -1) == [third.delivery_tag.encode()]


def test_the_last_acknowledgement_is_written_when_the_channel_is_closed(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    """And a message that was not acknowledged is on its queue again."""
    publish(producer, "email", 1, 2)
    first, _second = take(connection, "email", prefetch=10)

    first.ack()
    first.channel.close()

    assert (redis.hlen("unacked"), redis.zcard("unacked_index"), redis.llen("email")) == (0, 0, 1)


def test_a_requeued_message_is_on_its_queue_again(redis: Redis, connection: Connection, producer: Producer) -> None:
    publish(producer, "email", 1)
    message = take_one(connection, "email")

    message.requeue()

    [item] = redis.lrange("email", 0, -1)
    assert redis.hlen("unacked") == 0
    assert json.loads(item)["properties"]["delivery_tag"] == message.delivery_tag


def restore(connection: Connection, message: Message) -> None:
    """Put a message back as another worker does if it was not acknowledged in time."""
    with connection.clone() as other:
        other.default_channel.qos.restore_by_tag(message.delivery_tag)


def test_messages_that_a_killed_worker_had_taken_come_back_in_order(
    valkey_url: str, options: Json, connection: Connection, producer: Producer
) -> None:
    """Of two saves of one user, the first one must not win because a worker was killed."""
    publish(producer, "billing", *range(100))
    take(connection, "billing", prefetch=100)

    with Connection(valkey_url, transport=Transport, transport_options={**options, "visibility_timeout": 0}) as other:
        other.default_channel.qos.restore_visible()
        again = take(other, "billing", prefetch=100)

    assert numbers(again) == list(range(100))


@pytest.mark.parametrize("hours", [2, -2])
def test_what_others_work_on_is_left_alone_by_a_worker_whose_clock_is_wrong(
    valkey_url: str, *, options: Json, redis: Redis, connection: Connection, producer: Producer, hours: int
) -> None:
    """Its own messages come back in time, too."""
    publish(producer, "email", 1, 2)
    take_one(connection, "email")

    with time_machine.travel(datetime.now(UTC) + timedelta(hours=hours)), connection.clone() as other:
        take_one(other, "email")
        other.default_channel.qos.restore_visible()
        assert (redis.llen("email"), redis.hlen("unacked")) == (0, 2)

    with Connection(valkey_url, transport=Transport, transport_options={**options, "visibility_timeout": 0}) as third:
        third.default_channel.qos.restore_visible()
    assert (redis.llen("email"), redis.hlen("unacked")) == (2, 0)


def test_messages_that_a_worker_hands_back_at_its_end_come_again_in_order(
    connection: Connection, producer: Producer
) -> None:
    publish(producer, "billing", *range(10))
    first, *_ = take(connection, "billing", prefetch=5)

    first.channel.close()

    assert numbers(take(connection, "billing", prefetch=10)) == list(range(10))


def test_a_message_goes_back_to_its_queue_whatever_its_exchange_is(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    """Bindings may be gone, or may never have existed. kombu would drop the message."""
    publish(producer, "email", 1, priority=3)
    email = "email\x06\x163"
    item = json.loads(redis.rpop(email))
    item["properties"]["delivery_info"] = {"exchange": "forgotten", "routing_key": "nowhere"}
    redis.lpush(email, json.dumps(item))
    message = take_one(connection, "email")

    restore(connection, message)

    [back] = redis.lrange(email, 0, -1)
    assert json.loads(back)["body"] == item["body"]
    assert json.loads(back)["headers"]["redelivered"] is True
    assert (redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0)


def test_a_message_during_which_workers_keep_crashing_is_quarantined(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    publish(producer, "email", 1)
    for _ in range(RETURNS_MAX):
        restore(connection, take_one(connection, "email"))
    assert (redis.llen("email"), redis.zcard(fair_queue.QUARANTINE)) == (1, 0)

    message = take_one(connection, "email")
    restore(connection, message)

    [item] = redis.zrange(fair_queue.QUARANTINE, 0, -1)
    assert json.loads(item)["properties"]["delivery_tag"] == message.delivery_tag
    assert (redis.llen("email"), redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0, 0)


def test_a_message_may_be_requeued_any_number_of_times(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    publish(producer, "email", 1)

    for _ in range(RETURNS_MAX + 2):
        take_one(connection, "email").requeue()

    assert (redis.llen("email"), redis.zcard(fair_queue.QUARANTINE)) == (1, 0)


@pytest.mark.parametrize("held", [b"not JSON", b"17", b"[]", b'[{"headers": null, "properties": {}}, "", "email"]'])
def test_a_message_that_cannot_be_put_back_is_quarantined(redis: Redis, connection: Connection, held: bytes) -> None:
    redis.hset("unacked", "tag-1", held)
    redis.zadd("unacked_index", {"tag-1": 0})

    connection.default_channel.qos.restore_by_tag("tag-1")

    assert redis.zrange(fair_queue.QUARANTINE, 0, -1) == [held]
    assert (redis.hlen("unacked"), redis.zcard("unacked_index")) == (0, 0)


def test_no_more_messages_are_taken_than_the_prefetch_count(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    publish(producer, "email", *range(10))

    taken = take(connection, "email", prefetch=4)

    assert numbers(taken) == [0, 1, 2, 3]
    assert (redis.llen("email"), redis.hlen("unacked")) == (6, 4)


def test_queues_take_turns_so_that_a_long_one_delays_no_other(connection: Connection, producer: Producer) -> None:
    publish(producer, "email", *range(100, 200))
    publish(producer, "sms", 1, 2)

    taken = take(connection, "email", "sms", prefetch=4)

    assert sorted(numbers(taken)) == [1, 2, 100, 101]


def test_messages_are_taken_in_the_order_of_their_priorities(connection: Connection, producer: Producer) -> None:
    """0 is the highest, as in kombu on Redis."""
    publish(producer, "email", 9, priority=9)
    publish(producer, "email", 3, priority=3)
    publish(producer, "email", 0, priority=0)

    assert numbers(take(connection, "email", prefetch=10)) == [0, 3, 9]


def test_an_item_that_is_no_message_is_quarantined_as_it_came(
    redis: Redis, connection: Connection, producer: Producer
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

    assert numbers(take(connection, "email", prefetch=50)) == [1]
    assert (redis.llen("email"), redis.hlen("unacked")) == (0, 1)
    assert set(redis.zrange(fair_queue.QUARANTINE, 0, -1)) == set(garbage)


def test_messages_of_a_consumer_without_acknowledgements_are_not_kept(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    """Replies of remote control are read so. If they were registered, they would come again later."""
    publish(producer, "reply", 1)

    assert numbers(take(connection, "reply", prefetch=0, no_ack=True)) == [1]
    assert redis.hlen("unacked") == 0


def test_tasks_are_taken_by_the_script_after_replies_on_the_same_channel(
    redis: Redis, connection: Connection, producer: Producer
) -> None:
    """A worker reads the replies of other workers before it consumes its first task."""
    channel = connection.default_channel
    replies = Consumer(
        channel, [Queue("reply", routing_key="reply")], on_message=print, no_ack=True, auto_declare=False
    )
    with replies, pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)
    before = redis.info("commandstats").get("cmdstat_ltrim", {"calls": 0})["calls"]
    publish(producer, "email", 1)
    taken: list[Message] = []
    consumer = Consumer(channel, [Queue("email", routing_key="email")], on_message=taken.append, auto_declare=False)
    consumer.consume()
    connection.drain_events(timeout=2)

    assert numbers(taken) == [1]
    assert redis.info("commandstats")["cmdstat_ltrim"]["calls"] > before  # the script's; kombu's own is BRPOP
