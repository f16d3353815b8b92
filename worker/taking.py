"""Which messages a worker takes next: each sender in turn, so that a campaign holds up nobody but itself.

On Redis a queue is a list, first in, first out: behind a campaign of a hundred thousand emails a single one would wait
for all of them. The script that takes messages therefore shares queues of send jobs out, as soon as more waits than one
batch: each sender's messages go to a line of their own, and the lines are taken from in turn, one message each. Within
a line the order stays. The sender is read from what the message's header shows of its arguments, which Celery's clients
write; messages that do not say share one line.

A `resume` or `send_many` message stands for many jobs, and is not answered in a batch. Of those no more are taken than
can be begun at once: the others are for workers that have nothing to do, and behind them, the jobs of everybody else
would wait in the worker.
"""

import re
from collections.abc import Sequence
from typing import Any

from kombu.utils.encoding import bytes_to_str
from redis import Redis

QUARANTINE = "postage.quarantine"
"""The list that keeps what can never be a job, as it was found, newest first."""
TAKEN_AT_ONCE = 100
"""Messages taken in one round trip, at most."""
SHARED_OUT_AT_ONCE = 5_000
"""Messages that one round trip puts in their lines, at most: about 15 ms, in which Redis answers nobody else."""

LINES = "postage.lines:"
"""And a queue: the list of the senders that have a line, the one whose turn is next at its end."""
LINE = "postage.line:"
"""And a queue, a colon, and a sender: their line."""
RESUMES = "postage.resumes:"
"""And a queue: the line of its `resume` messages."""

_NAMES = f"""
local LINES, LINE, RESUMES = '{LINES}', '{LINE}', '{RESUMES}'
local SHARED_OUT_AT_ONCE = {SHARED_OUT_AT_ONCE}
"""
_TAKE = """
local unacked, index, quarantine = KEYS[1], KEYS[2], KEYS[3]
local now, limit, queues, heavy = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local shared = {}
for place = 5, #ARGV do
    shared[ARGV[place]] = true
end
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

-- Both look for a plain word first, which takes a tenth of the time that a pattern takes.
local function sender_of(item)
    local at = string.find(item, 'sender', 1, true)
    while at do
        local sender = string.match(item, "^sender=([%w._:-]+)", at)
            or string.match(item, "^sender': '([%w._:-]+)'", at)
        if sender then
            return sender
        end
        at = string.find(item, 'sender', at + 1, true)
    end
    return ''
end

local function names_task(item, task)
    return string.find(item, '.' .. task .. '"', 1, true) and string.find(item, '"task": ?"%l+%.' .. task .. '"') ~= nil
end

local function is_resume(item)
    return names_task(item, 'resume')
end

local function line_up(queue, item)  -- at the end of its line
    if is_resume(item) then
        redis.call('LPUSH', RESUMES .. queue, item)
        return
    end
    local sender = sender_of(item)
    if redis.call('LPUSH', LINE .. queue .. ':' .. sender, item) == 1 then
        redis.call('LPUSH', LINES .. queue, sender)
    end
end

local function share_out(queue)
    local waiting = redis.call('LLEN', queue)
    if waiting <= limit and redis.call('EXISTS', LINES .. queue, RESUMES .. queue) == 0 then
        return  -- all of it is taken now
    end
    for _ = 1, math.min(waiting, SHARED_OUT_AT_ONCE) do
        line_up(queue, redis.call('RPOP', queue))
    end
end

local function next_in_turn(queue)
    local sender = redis.call('RPOP', LINES .. queue)
    if not sender then
        return false
    end
    local line = LINE .. queue .. ':' .. sender
    local item = redis.call('RPOP', line)
    if redis.call('EXISTS', line) == 1 then
        redis.call('LPUSH', LINES .. queue, sender)
    end
    return item
end

local function next_resume(queue)
    local item = heavy > 0 and redis.call('RPOP', RESUMES .. queue)
    if item then
        heavy = heavy - 1
    end
    return item
end

local function next_shared(queue)
    local item = redis.call('RPOP', queue)
    while item and is_resume(item) do
        line_up(queue, item)
        if heavy > 0 then
            return next_resume(queue)
        end
        item = redis.call('RPOP', queue)
    end
    return item
end

local function next_plain(list)
    local item = redis.call('LINDEX', list, -1)
    if item and names_task(item, 'send_many') then
        if heavy <= 0 then
            return false
        end
        heavy = heavy - 1
    end
    return item and redis.call('RPOP', list)
end

local function take(list, queue)
    local item
    if shared[list] then
        item = next_resume(list) or next_in_turn(list) or next_shared(list)
    else
        item = next_plain(list)
    end
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

for list = 4, #KEYS do
    if shared[KEYS[list]] then
        share_out(KEYS[list])
    end
end
for first = 4, #KEYS, queues do  -- one priority after the other
    local left = {}
    for list = first, first + queues - 1 do
        left[#left + 1] = list
    end
    while #left > 0 and taken < limit do  -- one from each queue in turn, as long as it has any
        local more = {}
        for _, list in ipairs(left) do
            if taken < limit and take(KEYS[list], KEYS[list - first + 4]) then
                more[#more + 1] = list
            end
        end
        left = more
    end
end
return answer
"""

_COUNT = """
local waiting = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', RESUMES .. KEYS[1])
for _, sender in ipairs(redis.call('LRANGE', LINES .. KEYS[1], 0, -1)) do
    waiting = waiting + redis.call('LLEN', LINE .. KEYS[1] .. ':' .. sender)
end
return waiting
"""


def take_command(  # noqa: PLR0917  the script's arguments
    unacked: Sequence[str], lists: Sequence[str], queues: int, now: float, limit: int, heavy: int,
    shared: Sequence[str],
) -> tuple[Any, ...]:  # fmt: skip
    """The command that takes up to `limit` messages from `lists`: the `queues` of each priority, one after the other.

    `unacked` are the keys of what is delivered and not acknowledged. Of `shared` queues each sender has a share, and at
    most `heavy` messages of the kinds that stand for many jobs are taken. The answer is how many items were no
    messages, and then list, delivery tag and item of each message.
    """
    keys = [*unacked, QUARANTINE, *lists]
    return ("EVAL", _NAMES + _TAKE, len(keys), *keys, now, limit, queues, heavy, *shared)


def is_heavy(item: bytes) -> bool:
    """Whether an item is a message that stands for many jobs, as the script sees it."""
    # Plain words first, as in the script: nearly no item has them, and looking for the pattern takes much longer.
    return (b".resume" in item or b".send_many" in item) and _HEAVY.search(item) is not None


_HEAVY = re.compile(rb'"task": ?"[a-z]+\.(resume|send_many)"')


def waiting(redis: Redis, queue: str) -> int:
    """How many messages wait on a queue, in its list and in the lines of its senders."""
    return int(redis.eval(_NAMES + _COUNT, 1, queue))


def purge(redis: Redis, queue: str) -> int:
    """Throw away what waits on a queue; gives how many messages those were."""
    senders = (bytes_to_str(sender) for sender in redis.lrange(f"{LINES}{queue}", 0, -1))
    lines = [f"{LINE}{queue}:{sender}" for sender in senders]
    names = [queue, f"{RESUMES}{queue}", *lines]
    with redis.pipeline() as pipe:
        for name in names:
            pipe.llen(name)
        pipe.delete(f"{LINES}{queue}", *names)
        *counts, _ = pipe.execute()
    return sum(counts)
