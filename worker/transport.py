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

from worker import codec

log = structlog.get_logger(__name__)

QUARANTINE = "postage.quarantine"
"""The list that keeps what can never be a job, as it was found, newest first."""
TAKEN_AT_ONCE = 100
"""Messages taken in one round trip, at most."""
RETURNS_MAX = 20
"""How often a message comes back from workers that did not give it back themselves: they died, or stood still."""
FORGOTTEN_AT_ONCE = 500
"""Acknowledged messages that wait to be forgotten, at most."""
PAUSE_S = 0.02
"""How long Redis holds its answer back when there was nothing the last time."""
NEVER_FILLED = "postage.pause"
"""A list to which nobody ever pushes: waiting for it is a pause that takes nothing."""

TAKE = """
local unacked, index, quarantine = KEYS[1], KEYS[2], KEYS[3]
local now, limit, queues = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local answer, taken = {0}, 0

local function tag_of(item)
    local properties = cjson.decode(item).properties
    local info = properties.delivery_info
    if type(properties.delivery_tag) ~= 'string' or type(info.exchange) ~= 'string'
            or type(info.routing_key) ~= 'string' then
        error('not a message')
    end
    return properties.delivery_tag
end

local function take(list, queue)
    local item = redis.call('RPOP', list)
    if not item then
        return false
    end
    local good, tag = pcall(tag_of, item)
    if not good then  -- Lua's reader is stricter than Python's about what stands in strings, such as half characters
        tag = string.match(item, '"delivery_tag": ?"([%w-]+)"')
        good = tag and string.match(item, '"exchange": ?"') and string.match(item, '"routing_key": ?"')
    end
    if good then
        redis.call('ZADD', index, now, tag)
        -- As kombu notes it: the item, an exchange and a key. No exchange and the queue's name lead back to this queue,
        -- whatever exchange the message once came through.
        redis.call('HSET', unacked, tag, '[' .. item .. ',"",' .. cjson.encode(queue) .. ']')
        answer[#answer + 1] = list
        answer[#answer + 1] = tag
        answer[#answer + 1] = item
        taken = taken + 1
    else
        redis.call('LPUSH', quarantine, item)
        answer[1] = answer[1] + 1
    end
    return true
end

for first = 4, #KEYS, queues do  -- one priority after the other
    local more = true
    while more and taken < limit do  -- one from each queue in turn
        more = false
        for list = first, first + queues - 1 do
            if taken < limit and take(KEYS[list], KEYS[list - first + 4]) then
                more = true
            end
        end
    end
end
return answer
"""


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
        virtual.QoS.ack(self, delivery_tag)
        if len(self._to_forget) >= FORGOTTEN_AT_ONCE:
            self.forget()

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


class Channel(redis.Channel):
    """Takes messages with the script; everything else is kombu's."""

    QoS = QoS

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  kombu's
        self.taken_tags: set[str] = set()
        self._unacknowledged_queues: set[str] = set()
        self._asked_by_script = False
        self._paused = False
        self._forgotten = 0
        super().__init__(*args, **options)

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
        queues = self._queue_cycle.consume(len(self.active_queues))
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

    def _take_command(self, queues: Sequence[str]) -> tuple[Any, ...]:
        lists = [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues]
        keys = [self.unacked_key, self.unacked_index_key, QUARANTINE, *lists]
        credit = self.qos.can_consume_max_estimate()
        limit = TAKEN_AT_ONCE if credit is None else min(credit, TAKEN_AT_ONCE)
        return ("EVAL", TAKE, len(keys), *keys, time(), limit, len(queues))

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
        self._paused = not taken
        if broken:
            log.error("quarantined", why="not messages", items=broken)
        if not taken:
            raise Empty
        for key, tag, item in zip(taken[::3], taken[1::3], taken[2::3], strict=True):
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self._deliver_taken(queue, bytes_to_str(tag), item)
        return True

    def _deliver_taken(self, queue: str, tag: str, item: bytes) -> None:
        self.taken_tags.add(tag)
        try:
            self.connection._deliver(codec.read(item), queue)  # noqa: SLF001  kombu's channels call it so
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001  whatever is wrong with it, the next message must not suffer
            # Without its traceback, which may show the body.
            log.error("quarantined", why=f"{type(error).__name__} while it was read")  # noqa: TRY400
            self.qos.quarantine(tag, item)


class Transport(redis.Transport):
    """The transport behind redis://, rediss:// and redis+socket:// in a Postage process."""

    Channel = Channel


def client_of(channel: Any) -> Redis:  # noqa: ANN401  kombu's
    """The client of the broker beneath a channel of kombu's Redis transport."""
    client: Redis = channel.client
    return client


def use_transport() -> None:
    """Let every Redis URL of this process mean this transport."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "worker.transport:Transport"
