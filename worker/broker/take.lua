-- Takes messages from queues, and notes them as unacknowledged in the same step, so that none is lost.
--
--   KEYS[1]   hash    unacknowledged messages by delivery tag, as kombu stores them: [message, exchange, routing key]
--   KEYS[2]   zset    their delivery tags by the time at which they were taken, in seconds since 1970 by Redis's clock
--   KEYS[3]   zset    the quarantine: items that are not messages, as they were found, by the time at which they were
--   KEYS[4…]  lists   the queues to take from: those of the highest priority, then those of the next one, and so on
--
--   ARGV[1]   how many messages to take at most
--   ARGV[2]   how many queues there are of each priority
--   ARGV[3]   how many messages to take at most that stand for many jobs (resume, send_many)
--   ARGV[4…]  the queues that senders share (keys.lua)
--
-- Returns the number of items that were quarantined, and then queue, delivery tag and item of each message.

local SHARED_OUT_MAX = 5000  -- messages that one call moves to their senders: about 15 ms, in which Redis serves nobody else

local unacked, unacked_index, quarantine = KEYS[1], KEYS[2], KEYS[3]
local limit, queues, bulk_left = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local FIRST_QUEUE, FIRST_SHARED = 4, 4
local APART_S = 1e-6  -- between the times of messages taken at once: those that are not acknowledged come back in order
local is_shared = {}
for place = FIRST_SHARED, #ARGV do
    is_shared[ARGV[place]] = true
end
local answer, taken = {0}, 0

-- What a message says of itself -------------------------------------------------------------------------------------

local function decoded_tag(item)
    local properties = cjson.decode(item).properties
    local info = properties.delivery_info
    if type(properties.delivery_tag) ~= 'string' or type(info.exchange) ~= 'string'
            or type(info.routing_key) ~= 'string' then
        error('not a message')
    end
    return properties.delivery_tag
end

-- The delivery tag of a message, or nil for what is not a message. Lua's JSON decoder is stricter than Python's about what
-- strings may contain, such as lone surrogates, so a message that it refuses is searched for the same three words.
local function delivery_tag(item)
    local decoded, tag = pcall(decoded_tag, item)
    if decoded then
        return tag
    end
    if string.find(item, '"exchange": ?"') and string.find(item, '"routing_key": ?"') then
        return string.match(item, '"delivery_tag": ?"([%w-]+)"')
    end
    return nil
end

-- The sender that the header shows of the arguments, or an empty string. This and the next function search for plain text
-- first, which takes a tenth of the time of a pattern.
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

-- Queues that senders share -----------------------------------------------------------------------------------------

local function move_to_sender(queue, item)
    if is_resume(item) then
        redis.call('LPUSH', RESUMES .. queue, item)
        return
    end
    local sender = sender_of(item)
    if redis.call('LPUSH', SENDER .. queue .. ':' .. sender, item) == 1 then
        redis.call('LPUSH', SENDERS .. queue, sender)
    end
end

local function partition_by_sender(queue)
    local waiting = redis.call('LLEN', queue)
    if waiting <= limit and redis.call('EXISTS', SENDERS .. queue, RESUMES .. queue) == 0 then
        return  -- all of it is taken now
    end
    for _ = 1, math.min(waiting, SHARED_OUT_MAX) do
        move_to_sender(queue, redis.call('RPOP', queue))
    end
end

local function pop_resume(queue)
    local item = bulk_left > 0 and redis.call('RPOP', RESUMES .. queue)
    if item then
        bulk_left = bulk_left - 1
    end
    return item
end

local function pop_next_sender(queue)
    local sender = redis.call('RPOP', SENDERS .. queue)
    if not sender then
        return false
    end
    local messages = SENDER .. queue .. ':' .. sender
    local item = redis.call('RPOP', messages)
    if redis.call('EXISTS', messages) == 1 then
        redis.call('LPUSH', SENDERS .. queue, sender)
    end
    return item
end

local function pop_unpartitioned(queue)
    local item = redis.call('RPOP', queue)
    while item and is_resume(item) do
        move_to_sender(queue, item)
        if bulk_left > 0 then
            return pop_resume(queue)
        end
        item = redis.call('RPOP', queue)
    end
    return item
end

-- Taking ------------------------------------------------------------------------------------------------------------

local function pop_unshared(queue)
    local item = redis.call('LINDEX', queue, -1)
    if item and names_task(item, 'send_many') then
        if bulk_left <= 0 then
            return false
        end
        bulk_left = bulk_left - 1
    end
    return item and redis.call('RPOP', queue)
end

-- Takes the next message of `list`, which is `queue` at some priority. Returns false if there is none.
local function take(list, queue)
    local item
    if is_shared[list] then
        item = pop_resume(list) or pop_next_sender(list) or pop_unpartitioned(list)
    else
        item = pop_unshared(list)
    end
    if not item then
        return false
    end
    local tag = delivery_tag(item)
    if tag then
        redis.call('ZADD', unacked_index, now + taken * APART_S, tag)
        -- With no exchange and the queue's name as routing key it comes back to this queue, whatever exchange it came by.
        redis.call('HSET', unacked, tag, '[' .. item .. ',"",' .. cjson.encode(queue) .. ']')
        answer[#answer + 1] = list
        answer[#answer + 1] = tag
        answer[#answer + 1] = item
        taken = taken + 1
    else
        redis.call('ZADD', quarantine, 'NX', now + answer[1] * APART_S, item)
        answer[1] = answer[1] + 1
    end
    return true
end

for place = FIRST_QUEUE, #KEYS do
    if is_shared[KEYS[place]] then
        partition_by_sender(KEYS[place])
    end
end
for first = FIRST_QUEUE, #KEYS, queues do  -- one priority after the other
    local places = {}
    for place = first, first + queues - 1 do
        places[#places + 1] = place
    end
    while #places > 0 and taken < limit do  -- one message from each queue in turn, as long as it has any
        local nonempty = {}
        for _, place in ipairs(places) do
            if taken < limit and take(KEYS[place], KEYS[place - first + FIRST_QUEUE]) then
                nonempty[#nonempty + 1] = place
            end
        end
        places = nonempty
    end
end
return answer
