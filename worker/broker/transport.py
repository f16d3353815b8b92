# mypy: disable-error-code="attr-defined,misc,no-untyped-call,type-arg"
# kombu is only partly typed, and its channels get much of what they have while running.
"""kombu's Redis transport, which takes messages in such a way that none is lost.

kombu pops a message (BRPOP) and writes it to the `unacked` hash in a second round trip. A worker that is killed in
between loses it. Here one script pops messages and registers them as unacknowledged in the same step, many in one round
trip. On the wire nothing changes: producers, Flower and other workers go on using plain kombu.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.transport.virtual import Empty
from kombu.utils.encoding import bytes_to_str
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from worker.broker import fair_queue, json_codec
from worker.broker.json_message import JsonMessage, is_published_message
from worker.broker.prefixed import PrefixedRedis, with_prefix
from worker.broker.signing import signed_headers
from worker.broker.waking import Waker
from worker.producer_keys import keys_at

log = structlog.get_logger(__name__)

RETURNS_MAX = 20
"""How often a message may come back without having been given back: its worker was killed, or stood still."""
ACK_BATCH = 500
"""Acknowledgements that wait to be written, at most."""
PAUSE_S = 0.02
"""How long a worker waits before it asks again after it got nothing, in seconds."""
ID_LENGTH = 17
"""Characters of the id of a quarantined item."""
ASLEEP_S = 1.0
"""How long an idle worker sleeps that the broker wakes, in seconds: it asks once more in case it was not woken."""
NEVER_FILLED = "postage.pause"
"""A list to which nobody ever pushes. To wait for it is a pause that takes nothing."""


class QoS(redis.QoS):
    """The messages that were delivered and not acknowledged yet. Acknowledgements are written many at a time."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  kombu's
        super().__init__(*args, **options)
        self._acked: list[str] = []

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. It is removed from Redis with the next request for messages, or with the batch.

        If that fails nothing is lost: the message comes again after the visibility timeout, and is known then.
        """
        self._acked.append(delivery_tag)
        self.channel.forget_taken(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        if len(self._acked) >= ACK_BATCH:
            self.write_acks()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's
        """Give a message back, or drop it."""
        self.channel.forget_taken(delivery_tag)
        super().reject(delivery_tag, requeue)

    @property
    def has_acked(self) -> bool:
        """Whether acknowledgements wait to be written."""
        return bool(self._acked)

    def write_acks(self) -> None:
        """Remove what was acknowledged from Redis, in one round trip."""
        commands = self.take_ack_commands()
        if commands:
            with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                pipe.execute()

    def take_ack_commands(self) -> list[tuple[Any, ...]]:
        """Return the commands that remove what was acknowledged from Redis; the caller must send them."""
        tags, self._acked = self._acked, []
        return [("ZREM", self.unacked_index_key, *tags), ("HDEL", self.unacked_key, *tags)] if tags else []

    def restore_unacked_once(self, stderr: Any = None) -> None:  # noqa: ANN401  kombu's
        """At the end: remove what was acknowledged, and put back what was not."""
        with suppress(*self.channel.connection_errors):
            self.write_acks()
        super().restore_unacked_once(stderr)

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ANN401  kombu's
        """Put back what was not acknowledged, the newest first: each goes before all that wait. kombu reverses them."""
        delivered: Any = self._delivered
        with self.channel.conn_or_acquire(client) as connected:
            for tag in reversed(delivered):
                self.restore_by_tag(tag, connected)
        delivered.clear()

    @property
    def unacked_count(self) -> int:
        """How many messages are delivered and not acknowledged."""
        return len(self._delivered or ()) - len(self._dirty or ())

    def append(self, message: Any, delivery_tag: str) -> None:  # noqa: ANN401  kombu's
        """Remember a delivered message; one that the script took is registered in Redis already."""
        if delivery_tag in self.channel.taken_tags:
            self.channel.taken_tags.discard(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 1) -> None:  # noqa: ARG002  kombu's
        """Put back what was not acknowledged within the visibility timeout, by Redis's clock.

        kombu goes by the clock of the worker: one that runs ahead would put back what others are working on.
        """
        with (
            self.channel.conn_or_acquire() as client,
            suppress(redis.MutexHeld),
            redis.Mutex(client, self.unacked_mutex_key, self.unacked_mutex_expire),
        ):
            seconds, microseconds = client.time()
            latest = seconds + microseconds / 1e6 - self.visibility_timeout
            for tag in client.zrange(self.unacked_index_key, latest, "-inf", desc=True, byscore=True):
                self.restore_by_tag(tag, client)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:  # noqa: ANN401, FBT001, FBT002
        """Put a message back on its queue, or into the quarantine if it came back too often, in one step.

        kombu drops a message, and prints it, if it cannot tell which queue it is for.
        """
        with self.channel.conn_or_acquire(client) as connected:
            connected.transaction(functools.partial(self._put_back, tag, leftmost), self.unacked_key)

    def _put_back(self, tag: str, leftmost: bool, pipe: Any) -> None:  # noqa: ANN401, FBT001
        held = pipe.hget(self.unacked_key, tag)
        pipe.multi()
        self._remove_from_indices(tag, pipe)
        if held is None:  # acknowledged, or put back by another worker
            return
        try:
            message, exchange, key = json.loads(held)
            queues = self.channel._lookup(exchange, key) if exchange else [key]  # noqa: SLF001  as kombu does
            if not _note_return(message, was_lost=tag not in (self._delivered or ())):
                queues = []
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            message, queues = None, []
        if not queues:
            log.error("quarantined", why="it came back too often, or to no known queue; it may crash workers")
            _add_to_quarantine(pipe, held if message is None else json.dumps(message).encode())
        for queue in queues:
            priority = self.channel._get_message_priority(message, reverse=False)  # noqa: SLF001
            push = pipe.lpush if leftmost else pipe.rpush
            push(self.channel._q_for_pri(queue, priority), json.dumps(message))  # noqa: SLF001

    def quarantine(self, delivery_tag: str, item: bytes) -> None:
        """Move a message that can never be a job into the quarantine, and acknowledge it, in one step."""
        self.channel.forget_taken(delivery_tag)
        with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
            _add_to_quarantine(pipe, item)
            self._remove_from_indices(delivery_tag, pipe).execute()
        virtual.QoS.ack(self, delivery_tag)


def _add_to_quarantine(pipe: Any, item: bytes) -> None:  # noqa: ANN401  a pipeline
    """Add an item with its time to the quarantine, unless the same one is there already."""
    pipe.eval(fair_queue.lua("clock.lua", "quarantine.lua"), 1, fair_queue.QUARANTINE, item)


def _note_return(message: Any, *, was_lost: bool) -> bool:  # noqa: ANN401  any JSON
    """Mark a message as delivered before. Returns False if too many workers were killed with it, or stood still."""
    properties = message["properties"]
    message["headers"]["redelivered"] = properties["delivery_info"]["redelivered"] = True
    returns = int(properties.get("returns", 0)) + was_lost
    if was_lost:
        properties["returns"] = returns
    return returns <= RETURNS_MAX


class AtWork:
    """What this worker has taken from each queue and not answered: messages, bytes, and those that stand for many."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.bulk: Counter[str] = Counter()
        self._taken: dict[str, tuple[str, int, bool]] = {}

    def add(self, tag: str, queue: str, size: int, *, is_bulk: bool) -> None:
        """Count a message."""
        self._taken[tag] = (queue, size, is_bulk)
        self._count(1, queue, size, is_bulk=is_bulk)

    def forget(self, tag: str) -> None:
        """Count a message no longer."""
        if tag in self._taken:
            queue, size, is_bulk = self._taken.pop(tag)
            self._count(-1, queue, size, is_bulk=is_bulk)

    def _count(self, sign: int, queue: str, size: int, *, is_bulk: bool) -> None:
        self.messages[queue] += sign
        self.bytes[queue] += sign * size
        self.bulk[queue] += sign * is_bulk


class Channel(redis.Channel):
    """kombu's channel, which takes messages with the script."""

    Message = JsonMessage
    QoS = QoS

    shared_queues: Mapping[str, str] = MappingProxyType({})
    """Queues on which people take turns, and the field of a job that names whose turn it is."""
    batched_queues: Sequence[str] = ()
    """Queues from which jobs are taken in batches."""
    batch: int = 1
    """As long as there is work to do, no fewer messages are taken from batched queues than this: few cost more each."""
    at_work_of: Mapping[str, int] = MappingProxyType({})
    """Messages of a batched queue that are at work at a time, about. What holds up one queue holds up no other."""
    body_max: int = 6_000_000
    """The longest body that is read, in bytes, inflated; jobs with longer ones are refused."""
    bytes_max: int = 16_000_000
    """The longest message that is taken, in bytes; longer ones are quarantined unread."""
    at_work_max: int = 8_000_000
    """Bytes of the messages of batched queues that are at work at a time, at most, and of those of all others; one
    message may have more."""
    bulk_max: int = 1
    """Messages of a queue that stand for many jobs and are at work at a time, at most; those with an ETA do not count.
    """
    producer_keys: str | None = None
    """The file of the keys with which messages are signed that are published here."""
    from_transport_options = (
        *redis.Channel.from_transport_options,
        *("shared_queues", "batched_queues", "batch", "at_work_of", "bulk_max"),
        *("body_max", "bytes_max", "at_work_max", "producer_keys"),
    )

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  kombu's
        self.taken_tags: set[str] = set()
        self.at_work = AtWork()
        self._bytes_left = self.at_work_max
        self._unacknowledged_queues: set[str] = set()
        self._asked_by_script = False
        self._paused = False
        self._pause_timer: Any = None
        self._waker: Waker | None = None
        self._ack_commands = 0
        self._kept_client: Any = None
        self._take_script: Any = None
        self._not_lists: set[str] = set()
        super().__init__(*args, **options)

    def _get_client(self) -> Any:  # noqa: ANN401  kombu's
        """Return what makes clients, which put the prefix before every key, if there is one."""
        plain = super()._get_client()
        if not self.global_keyprefix:
            return plain
        return functools.partial(PrefixedRedis, global_keyprefix=self.global_keyprefix)

    @property
    def _script_binding_deadlines(self) -> str:
        """The second key of a script of kombu's, which adds the prefix itself, because its own client would not."""
        return str(self.keyprefix_binding_deadlines)

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  kombu's
        """Return a client of the broker. kombu makes one for each command, which takes longer than most commands."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client

    def prepare_message(self, body: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401  kombu's
        """Return a message as it is published, signed if its headers say so."""
        message: Any = super().prepare_message(body, *args, **options)
        if self.producer_keys:
            message["headers"] = signed_headers(message["headers"], body, keys_at(Path(self.producer_keys)))
        return message

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **options: Any) -> Any:  # noqa: ANN401, FBT001
        """Consume a queue. Without acknowledgements (replies of remote control) its messages are taken as kombu does.

        A worker does so for a moment at its start, on the very channel that consumes its tasks afterwards.
        """
        if no_ack:
            self._unacknowledged_queues.add(queue)
        return super().basic_consume(queue, no_ack, *args, **options)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for messages, after a pause if there were none the last time."""
        self._asked_by_script = self._unacknowledged_queues.isdisjoint(self.active_queues)
        if not self._asked_by_script:
            self.qos.write_acks()
            super()._brpop_start(timeout)
            return
        if self._paused and self.connection.loop is not None:
            return
        queues = [queue for queue in self._queue_cycle.consume(len(self.active_queues)) if self._is_worth_asking(queue)]
        if not queues:
            return
        self._bytes_left = min(map(self._bytes_left_for, queues))
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        commands = [*self.qos.take_ack_commands(), self._take_command(queues)]
        self._ack_commands = len(commands) - 1
        if self._paused:
            commands.insert(self._ack_commands, ("BRPOP", NEVER_FILLED, PAUSE_S))
        named = [with_prefix(self.global_keyprefix, *command) for command in commands]
        connection.send_packed_command(connection.pack_commands(named))

    def _pause(self) -> None:
        """Ask for nothing for a moment; with nothing at work, until the broker wakes this channel."""
        self._paused = True
        loop = self.connection.loop
        if loop is not None:  # its clock is finer than that of an idle Redis
            self._pause_timer = loop.call_later(ASLEEP_S if self._may_sleep(loop) else PAUSE_S, self._end_pause)

    def _end_pause(self) -> None:
        self._paused = False
        self._pause_timer.cancel()

    def _may_sleep(self, loop: Any) -> bool:  # noqa: ANN401  kombu's hub
        """Whether nothing has to be written or taken until somebody puts something on a queue, which is then told."""
        if self.qos.unacked_count or self.qos.has_acked:
            return False
        if self._waker is None:
            self._waker = Waker(loop, self._end_pause)
        return self._waker.arm(self.client.connection, self.pool)

    def close(self) -> None:
        """Close the channel."""
        if self._waker is not None:
            self._waker.close()
        super().close()

    def forget_taken(self, tag: str) -> None:
        """Count a message no longer as one that is at work."""
        self.at_work.forget(tag)

    def _is_worth_asking(self, queue: str) -> bool:
        """Whether messages of a queue may be taken. Of a batched one, few are taken only if none is at work."""
        if self._bytes_left_for(queue) <= 0:
            return False
        if queue not in self.batched_queues or not self.qos.unacked_count:
            return True
        credit = self.qos.can_consume_max_estimate()
        if credit is not None and credit < min(self.batch, self.qos.prefetch_count // 2):
            return False
        most = self.at_work_of.get(queue)
        return most is None or most - self.at_work.messages[queue] >= min(self.batch, most // 2)

    def _bytes_left_for(self, queue: str) -> int:
        """Return how many bytes may be taken from a queue, which shares them with all batched ones, or all others."""
        is_batched = queue in self.batched_queues
        its_own = (size for name, size in self.at_work.bytes.items() if (name in self.batched_queues) == is_batched)
        return self.at_work_max - sum(its_own)

    def _take_command(self, queues: Sequence[str]) -> tuple[Any, ...]:
        lists = [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues]
        credit = self.qos.can_consume_max_estimate()
        if self._take_script is None:
            self._take_script = fair_queue.take_script(self.client)
        arguments = fair_queue.take_args(
            unacked=self.unacked_key,
            unacked_index=self.unacked_index_key,
            lists=lists,
            queues=queues,
            limit=fair_queue.TAKE_MAX if credit is None else min(credit, fair_queue.TAKE_MAX),
            bulk_limits={queue: max(0, self.bulk_max - self.at_work.bulk[queue]) for queue in queues},
            bytes_max=self.bytes_max,
            bytes_limit=self._bytes_left,
            shared=self.shared_queues,
            prefix=self.global_keyprefix,
        )
        return ("EVALSHA", self._take_script.sha, *arguments)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401  kombu's
        """Read the answer of the script, and deliver what was taken."""
        if not self._asked_by_script:
            return bool(super()._brpop_read(**options))
        connection = self.client.connection
        try:
            for _ in range(self._ack_commands):
                self.client.parse_response(connection, "HDEL")
            if self._paused:
                self.client.parse_response(connection, "BRPOP")
            broken, not_lists, *taken = self.client.parse_response(connection, "EVALSHA")
        except NoScriptError:  # a broker that was just started
            self.client.script_load(self._take_script.script)
            raise Empty from None
        except Exception:
            connection.disconnect()  # answers that were not read must not be taken for the next ones
            raise
        finally:
            self._in_poll = None
        self._paused = False
        if broken:
            log.error("quarantined", why="not messages, or too long", items=broken)
        self._tell_not_lists({bytes_to_str(key) for key in not_lists})
        if not taken:
            self._pause()
            raise Empty
        for name, tag, item in zip(taken[::3], taken[1::3], taken[2::3], strict=True):
            queue = bytes_to_str(name)
            self._queue_cycle.rotate(queue)
            self._deliver_taken(queue, bytes_to_str(tag), item)
        return True

    def _handle_message(self, client: Any, r: Any) -> Any:  # noqa: ANN401  kombu's
        """Return what was published, without its data if no message can be made of it: kombu would end, or log it."""
        payload = super()._handle_message(client, r)
        is_message = bytes_to_str(payload["type"]).endswith("message")
        if is_message and payload["data"] and not is_published_message(payload["data"]):
            log.warning("published item dropped: it is not a message", bytes=len(payload["data"]))
            payload["data"] = None
        return payload

    def _tell_not_lists(self, keys: set[str]) -> None:
        """Log which queues cannot be read, once: others go on."""
        for key in keys - self._not_lists:
            log.error("queue stopped: its key is not a list; delete or rename it", key=key)
        for key in self._not_lists - keys:
            log.warning("queue goes on: its key is a list again", key=key)
        self._not_lists = keys

    def _deliver_taken(self, queue: str, tag: str, item: bytes) -> None:
        self.taken_tags.add(tag)
        try:
            message = json_codec.decode(item)
            message["properties"]["delivery_tag"] = tag  # as it is registered, whatever the message says elsewhere
            stands_for_many = fair_queue.is_bulk(item) and not message["headers"].get("eta")
            self.at_work.add(tag, queue, len(item), is_bulk=stands_for_many)
            self.connection._deliver(message, queue)  # noqa: SLF001  kombu's channels call it so
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001  whatever is wrong with one message, the next ones are delivered
            # Without its traceback, which may show the body.
            log.error("quarantined", why=f"{type(error).__name__} while it was read", item=item_id(item))  # noqa: TRY400
            self.qos.quarantine(tag, item)

    def _size(self, queue: str) -> int:
        with self.conn_or_acquire() as client:
            of_other_priorities = int(super()._size(queue)) - int(client.llen(queue))
            return of_other_priorities + fair_queue.waiting_count(client, queue)

    def _purge(self, queue: str) -> int:
        with self.conn_or_acquire() as client:
            return fair_queue.purge(client, queue) + int(super()._purge(queue))


def set_aside(message: Any) -> str | None:  # noqa: ANN401  kombu's
    """Quarantine a message that was taken; a broker without this transport has no quarantine, and drops it.

    Returns its id in the quarantine.
    """
    channel = message.channel
    if not isinstance(channel, Channel):
        message.reject()
        return None
    item = json.dumps(message._raw).encode()  # noqa: SLF001  as it came
    channel.qos.quarantine(message.delivery_tag, item)
    return item_id(item)


def item_id(item: bytes) -> str:
    """Return the id of a quarantined item, which is made from its bytes: the same ones have the same."""
    return "q" + hashlib.sha256(item).hexdigest()[: ID_LENGTH - 1]


class Transport(redis.Transport):
    """The transport behind redis://, rediss:// and redis+socket:// in a Postage process."""

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, ResponseError)
    """A broker that answers with an error (out of memory, a replica, a full disk, no right) is one that is away."""
    loop: Any = None
    """The event loop that asks for messages, if there is one."""

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ANN401  kombu's
        """Note the event loop, which asks for messages."""
        self.loop = loop
        super().register_with_event_loop(connection, loop)


class SentinelChannel(Channel, redis.SentinelChannel):
    """The channel to the broker that Sentinels name."""

    from_transport_options = tuple({*Channel.from_transport_options, *redis.SentinelChannel.from_transport_options})


class SentinelTransport(Transport, redis.SentinelTransport):
    """The transport behind sentinel://: each new connection asks a Sentinel where the broker is."""

    Channel = SentinelChannel


def redis_client(channel: Any) -> Redis:  # noqa: ANN401  kombu's
    """Return the Redis client of a channel of this transport."""
    client: Redis = channel.client
    return client


def register_transport() -> None:
    """Make these the transports for every Redis URL of this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "worker.broker.transport:Transport"
    TRANSPORT_ALIASES["sentinel"] = "worker.broker.transport:SentinelTransport"
