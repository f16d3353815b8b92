# mypy: disable-error-code="attr-defined,misc,no-untyped-call,type-arg"
# kombu is only partly typed, and its channels get much of what they have while running.
"""kombu's Redis transport, taking messages so that none is lost.

kombu pops a message (BRPOP) and writes it to the `unacked` hash in a second round trip: a worker killed in between
loses it. Here one script pops messages and registers them as unacknowledged in the same step, many in one round trip.
On the wire nothing changes: producers, Flower and other workers go on using plain kombu.
"""

import functools
import json
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.transport.virtual import Empty
from kombu.utils.encoding import bytes_to_str
from redis import Redis

from worker import codec, taking
from worker.taking import QUARANTINE

log = structlog.get_logger(__name__)

RETURNS_MAX = 20
"""How often a message comes back from workers that did not give it back themselves: they died, or stood still."""
FORGOTTEN_AT_ONCE = 500
"""Acknowledged messages that wait to be forgotten, at most."""
PAUSE_S = 0.02
"""How long a worker waits before it asks again, when there was nothing the last time."""
NEVER_FILLED = "postage.pause"
"""A list to which nobody ever pushes: waiting for it is a pause that takes nothing."""


class QoS(redis.QoS):
    """What is delivered and not yet acknowledged."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  kombu's
        super().__init__(*args, **options)
        self._to_forget: list[str] = []

    def ack(self, delivery_tag: str) -> None:
        """Have a message forgotten with the next one that is asked for; in time, if nobody asks.

        Nothing is lost where that fails: the message comes again after the visibility timeout, and is known then.
        """
        self._to_forget.append(delivery_tag)
        self.channel.heavy_taken.discard(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        if len(self._to_forget) >= FORGOTTEN_AT_ONCE:
            self.forget()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's
        """Give a message back, or drop it."""
        self.channel.heavy_taken.discard(delivery_tag)
        super().reject(delivery_tag, requeue)

    def forget(self) -> None:
        """Remove what was acknowledged from Redis, in one round trip."""
        commands = self.commands_to_forget()
        if commands:
            with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                pipe.execute()

    def commands_to_forget(self) -> list[tuple[Any, ...]]:
        """What to say to Redis so that it forgets what was acknowledged; it counts as said."""
        tags, self._to_forget = self._to_forget, []
        return [("ZREM", self.unacked_index_key, *tags), ("HDEL", self.unacked_key, *tags)] if tags else []

    def restore_unacked_once(self, stderr: Any = None) -> None:  # noqa: ANN401  kombu's
        """At the end: forget what was acknowledged, and put back what was not."""
        with suppress(*self.channel.connection_errors):
            self.forget()
        super().restore_unacked_once(stderr)

    @property
    def in_hand(self) -> int:
        """How many messages are delivered and not acknowledged."""
        return len(self._delivered or ()) - len(self._dirty or ())

    def append(self, message: Any, delivery_tag: str) -> None:  # noqa: ANN401  kombu's
        """Remember a delivered message; one that the script took is registered in Redis already."""
        if delivery_tag in self.channel.taken_tags:
            self.channel.taken_tags.discard(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:  # noqa: ANN401, FBT001, FBT002
        """Put a message back on its queue, or set it aside if it has come back too often, in one step.

        kombu's own way forgets a message, and prints it, where it cannot tell which queue it is for.
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
            queues = self.channel._lookup(exchange, key) if exchange else [key]  # noqa: SLF001  kombu's own way
            if not _note_return(message, died=tag not in (self._delivered or ())):
                queues = []
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            message, queues = None, []
        if not queues:
            log.error("quarantined", why="it came back too often, or to no queue: it may be what ends the workers")
            pipe.lpush(QUARANTINE, held if message is None else json.dumps(message))
        for queue in queues:
            priority = self.channel._get_message_priority(message, reverse=False)  # noqa: SLF001
            push = pipe.lpush if leftmost else pipe.rpush
            push(self.channel._q_for_pri(queue, priority), json.dumps(message))  # noqa: SLF001

    def quarantine(self, delivery_tag: str, item: bytes) -> None:
        """Set a message aside that can never be a job, and forget it, in one step."""
        self.channel.heavy_taken.discard(delivery_tag)
        with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
            pipe.lpush(QUARANTINE, item)
            self._remove_from_indices(delivery_tag, pipe).execute()
        virtual.QoS.ack(self, delivery_tag)


def _note_return(message: Any, *, died: bool) -> bool:  # noqa: ANN401  any JSON
    """Mark a message as delivered before; False if workers have died with it, or stood still, too often."""
    properties = message["properties"]
    message["headers"]["redelivered"] = properties["delivery_info"]["redelivered"] = True
    returns = int(properties.get("returns", 0)) + died
    if died:
        properties["returns"] = returns
    return returns <= RETURNS_MAX


class Message(virtual.Message):
    """A message whose body is read in one step if it is JSON: kombu's own way there is longer than the reading."""

    def _decode(self) -> Any:  # noqa: ANN401  JSON
        if self.body and (self.content_type, self.content_encoding) == (codec.JSON, "utf-8"):
            return codec.read(self.body)
        return super()._decode()


class Channel(redis.Channel):
    """Takes messages with the script; everything else is kombu's."""

    Message = Message
    QoS = QoS

    shared_queues: Sequence[str] = ()
    """Queues of which each sender has a share, and which are taken from in batches."""
    batch: int = 1
    """Of shared queues no fewer are taken than this, as long as there is work in hand: few at a time cost more."""
    heavy_max: int = 1
    """Messages that stand for many jobs in hand at a time, at most; not those that wait for a time of their own."""
    from_transport_options = (*redis.Channel.from_transport_options, "shared_queues", "batch", "heavy_max")

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  kombu's
        self.taken_tags: set[str] = set()
        self.heavy_taken: set[str] = set()
        self._unacknowledged_queues: set[str] = set()
        self._asked_by_script = False
        self._paused = False
        self._forgotten = 0
        self._kept_client: Any = None
        super().__init__(*args, **options)

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  kombu's
        """A client of the broker. kombu makes one for each command, which takes longer than most commands."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **options: Any) -> Any:  # noqa: ANN401, FBT001
        """Consume; who wants messages without acknowledging them (replies of remote control) gets them kombu's way.

        A worker does so for a moment at its start, on the very channel that then consumes its tasks.
        """
        if no_ack:
            self._unacknowledged_queues.add(queue)
        return super().basic_consume(queue, no_ack, *args, **options)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for messages, after a pause if there were none the last time."""
        self._asked_by_script = self._unacknowledged_queues.isdisjoint(self.active_queues)
        if not self._asked_by_script:
            self.qos.forget()
            super()._brpop_start(timeout)
            return
        if self._paused and self.connection.loop is not None:
            return
        queues = [queue for queue in self._queue_cycle.consume(len(self.active_queues)) if self._is_worth_asking(queue)]
        if not queues:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        commands = [*self.qos.commands_to_forget(), self._take_command(queues)]
        self._forgotten = len(commands) - 1
        if self._paused:
            commands.insert(self._forgotten, ("BRPOP", NEVER_FILLED, PAUSE_S))
        connection.send_packed_command(connection.pack_commands(commands))

    def _pause(self) -> None:
        """Have nothing asked for a moment. The event loop's clock is finer than that of a Redis that is at rest."""
        self._paused = True
        if self.connection.loop is not None:
            self.connection.loop.call_later(PAUSE_S, self._end_pause)

    def _end_pause(self) -> None:
        self._paused = False

    def _is_worth_asking(self, queue: str) -> bool:
        if queue not in self.shared_queues or not self.qos.in_hand:
            return True
        credit = self.qos.can_consume_max_estimate()
        return credit is None or credit >= min(self.batch, self.qos.prefetch_count // 2)

    def _take_command(self, queues: Sequence[str]) -> tuple[Any, ...]:
        lists = [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues]
        credit = self.qos.can_consume_max_estimate()
        return taking.take_command(
            (self.unacked_key, self.unacked_index_key),
            lists,
            len(queues),
            time(),
            taking.TAKEN_AT_ONCE if credit is None else min(credit, taking.TAKEN_AT_ONCE),
            max(0, self.heavy_max - len(self.heavy_taken)),
            [queue for queue in queues if queue in self.shared_queues],
        )

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401  kombu's
        """Deliver what was taken."""
        if not self._asked_by_script:
            return bool(super()._brpop_read(**options))
        connection = self.client.connection
        try:
            for _ in range(self._forgotten):
                self.client.parse_response(connection, "HDEL")
            if self._paused:
                self.client.parse_response(connection, "BRPOP")
            broken, *taken = self.client.parse_response(connection, "EVAL")
        except Exception:
            connection.disconnect()  # what was not read yet must not be taken for the next answer
            raise
        finally:
            self._in_poll = None
        self._paused = False
        if broken:
            log.error("quarantined", why="not messages", items=broken)
        if not taken:
            self._pause()
            raise Empty
        for key, tag, item in zip(taken[::3], taken[1::3], taken[2::3], strict=True):
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self._deliver_taken(queue, bytes_to_str(tag), item)
        return True

    def _deliver_taken(self, queue: str, tag: str, item: bytes) -> None:
        self.taken_tags.add(tag)
        try:
            message = codec.read(item)
            if taking.is_heavy(item) and not message["headers"].get("eta"):
                self.heavy_taken.add(tag)
            self.connection._deliver(message, queue)  # noqa: SLF001  kombu's channels call it so
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001  whatever is wrong with it, the next message must not suffer
            # Without its traceback, which may show the body.
            log.error("quarantined", why=f"{type(error).__name__} while it was read")  # noqa: TRY400
            self.qos.quarantine(tag, item)

    def _size(self, queue: str) -> int:
        with self.conn_or_acquire() as client:
            of_other_priorities = int(super()._size(queue)) - int(client.llen(queue))
            return of_other_priorities + taking.waiting(client, queue)

    def _purge(self, queue: str) -> int:
        with self.conn_or_acquire() as client:
            return taking.purge(client, queue) + int(super()._purge(queue))


class Transport(redis.Transport):
    """The transport behind redis://, rediss:// and redis+socket:// in a Postage process."""

    Channel = Channel
    loop: Any = None
    """The event loop that asks for messages, where there is one."""

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ANN401  kombu's
        """Let the event loop ask for messages."""
        self.loop = loop
        super().register_with_event_loop(connection, loop)


def client_of(channel: Any) -> Redis:  # noqa: ANN401  kombu's
    """The client of the broker beneath a channel of kombu's Redis transport."""
    client: Redis = channel.client
    return client


def use_transport() -> None:
    """Let every Redis URL of this process mean this transport."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "worker.transport:Transport"
