-- Takes messages from queues, and notes them as unacknowledged in the same step, so that none is lost.
--
--   KEYS[1]   hash    unacknowledged messages by delivery tag, as kombu stores them: [message, exchange, routing key]
--   KEYS[2]   zset    their delivery tags by the time at which they were taken, in seconds since 1970 by Redis's clock
--   KEYS[3]   zset    the quarantine: items that are not messages, as they were found, by the time at which they were
--   KEYS[4]   hash    the organization of each person (keys.lua)
--   KEYS[5…]  lists   the queues to take from: those of the highest priority, then those of the next one, and so on
--
--   ARGV[1]   the prefix of all keys
--   ARGV[2]   how many messages to take at most
--   ARGV[3]   the longest message that is taken, in bytes; longer ones go to the quarantine unread
--   ARGV[4]   how many bytes to take: no further message is taken once all have so many
--   ARGV[5…]  for each queue: its name; the field that names whose turn it is, empty if the queue is not shared; and how
--             many messages to take from it at most that stand for many jobs (resume, send_many)
--
-- Returns the number of items that were quarantined, a list of the keys that are no lists, and then queue, delivery tag
-- and item of each message.
--
-- A script that ends with an error, because Redis is out of memory or forbids a command, keeps what it has done before.
-- So everything is written to its new place first, and removed from the old one then.

local MOVED_MAX = 5000  -- messages that one call moves to their people: about 30 ms, in which Redis serves nobody else
local FIRST_LIST, FIRST_QUEUE, PER_QUEUE = 5, 5, 3
local APART_S = 1e-6  -- between the times of messages taken at once: those that are not acknowledged come back in order
local MOVED_AT_ONCE = 16  -- messages that are read together; each may be long

local unacked, unacked_index, quarantine, organizations = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local limit = tonumber(ARGV[2])
local bytes_max, bytes_left = tonumber(ARGV[3]), tonumber(ARGV[4])
local queues = (#ARGV - FIRST_QUEUE + 1) / PER_QUEUE
local answer, taken, bulk_left = {0, {}}, 0, {}

-- What a message says of itself -------------------------------------------------------------------------------------

-- What follows a name in quotes, by a pattern; nil if it is not there. A plain search takes a tenth of a pattern's time.
local function value_of(item, name, pattern)
    local _, last = string.find(item, name, 1, true)
    return last and string.match(item, pattern, last + 1)
end

-- The delivery tag of a message, or nil for what is certainly not a message. Whether it is one is seen when it is read.
local function delivery_tag(item)
    return value_of(item, '"exchange"', '^: ?"') and value_of(item, '"routing_key"', '^: ?"')
        and value_of(item, '"delivery_tag"', '^: ?"([%w-]+)"')
end

local function names_task(item, task)
    return string.find(item, '.' .. task .. '"', 1, true) and string.find(item, '"task": ?"%l+%.' .. task .. '"') ~= nil
end

local function is_resume(item)
    return names_task(item, 'resume')
end

local function is_bulk(item)
    return names_task(item, 'send_many') or is_resume(item)
end

-- Queues on which people take turns ---------------------------------------------------------------------------------

-- Whose turn it is to be: their organization's, and theirs within it.
local function give_turn(queue, person)
    local org = person ~= '' and redis.call('HGET', organizations, person) or ''
    if redis.call('LPUSH', people_key(queue.list, org), person) == 1 then
        redis.call('LPUSH', turns_key(queue.list), org)
    end
end

-- Moves some messages from the tail of a queue to their people, the oldest first, so that they stay in order.
local function move_to_people(queue, count)
    local items, lists, moved = redis.call('LRANGE', queue.list, -count, -1), {}, {}
    for place = #items, 1, -1 do
        local item, person = items[place], ''
        local list = #item <= bytes_max and is_resume(item) and resumes_key(queue.list)
        if not list then
            person = #item <= bytes_max and person_of(item, queue.field) or ''
            list = messages_key(queue.list, person)
        end
        if not moved[list] then
            lists[#lists + 1] = {key = list, person = person, takes_turns = list ~= resumes_key(queue.list)}
            moved[list] = {}
        end
        table.insert(moved[list], item)
    end
    for _, list in ipairs(lists) do
        if list.takes_turns and redis.call('EXISTS', list.key) == 0 then
            give_turn(queue, list.person)
        end
        redis.call('LPUSH', list.key, unpack(moved[list.key]))
    end
    redis.call('LTRIM', queue.list, 0, -count - 1)
end

local function partition_by_person(queue)
    local waiting = redis.call('LLEN', queue.list)
    local is_parted = redis.call('EXISTS', turns_key(queue.list), people_key(queue.list, ''), resumes_key(queue.list)) > 0
    if waiting <= limit and not is_parted then
        return  -- all of it is taken now
    end
    local left = math.min(waiting, MOVED_MAX)
    while left > 0 do
        local count = math.min(left, MOVED_AT_ONCE)
        move_to_people(queue, count)
        left = left - count
    end
end

-- The list of the person whose turn it is, which is not empty; nil if there is none. What people_key and turns_key hold
-- for lists that ended is removed on the way.
local function next_messages(queue)
    local turns = turns_key(queue.list)
    while true do
        local org = redis.call('LINDEX', turns, -1)
        if not org and redis.call('EXISTS', people_key(queue.list, '')) == 0 then
            return nil
        end
        local people = people_key(queue.list, org or '')  -- without turns: moved by a worker of an earlier release
        local person = redis.call('LINDEX', people, -1)
        if person and redis.call('EXISTS', messages_key(queue.list, person)) == 1 then
            return messages_key(queue.list, person), people, org and turns
        end
        redis.call('RPOP', person and people or turns)
    end
end

-- Give the next ones their turn, or end the turns of who has nothing left.
local function end_turn(messages, people, turns)
    if redis.call('EXISTS', messages) == 1 then
        redis.call('RPOPLPUSH', people, people)
    else
        redis.call('RPOP', people)
    end
    if turns and redis.call('EXISTS', people) == 1 then
        redis.call('RPOPLPUSH', turns, turns)
    elseif turns then
        redis.call('RPOP', turns)
    end
end

-- Taking ------------------------------------------------------------------------------------------------------------

-- Moves the last item of a list to the unacknowledged messages, or to the quarantine if it is no message.
local function take_last(list, queue, item)
    local tag = #item <= bytes_max and delivery_tag(item)
    if tag then
        while redis.call('HEXISTS', unacked, tag) == 1 do
            tag = tag .. '-'  -- producers choose it, and some always the same: that would overwrite the other message
        end
        redis.call('ZADD', unacked_index, now + taken * APART_S, tag)
        -- With no exchange and the queue's name as routing key it comes back to this queue, whatever exchange it came by.
        redis.call('HSET', unacked, tag, '[' .. item .. ',"",' .. cjson.encode(queue.name) .. ']')
        redis.call('LTRIM', list, 0, -2)
        answer[#answer + 1] = queue.name
        answer[#answer + 1] = tag
        answer[#answer + 1] = item
        taken = taken + 1
        bytes_left = bytes_left - #item
    else
        redis.call('ZADD', quarantine, 'NX', now + answer[1] * APART_S, item)
        redis.call('LTRIM', list, 0, -2)
        answer[1] = answer[1] + 1
    end
end

-- Takes the last item of a list, unless it stands for many jobs and no more of these may be taken.
local function take_from(list, queue)
    local item = redis.call('LINDEX', list, -1)
    if not item then
        return false
    end
    if #item <= bytes_max and is_bulk(item) then
        if bulk_left[queue.name] <= 0 then
            return false
        end
        bulk_left[queue.name] = bulk_left[queue.name] - 1
    end
    take_last(list, queue, item)
    return true
end

local function take_in_turn(queue)
    local messages, people, turns = next_messages(queue)
    if not messages or not take_from(messages, queue) then
        return false
    end
    end_turn(messages, people, turns)
    return true
end

local function take_unpartitioned(queue)
    local item = redis.call('LINDEX', queue.list, -1)
    while item and #item <= bytes_max and is_resume(item) do
        redis.call('RPOPLPUSH', queue.list, resumes_key(queue.list))
        if take_from(resumes_key(queue.list), queue) then
            return true
        end
        item = redis.call('LINDEX', queue.list, -1)
    end
    return take_from(queue.list, queue)
end

-- Takes the next message of a queue. Returns false if there is none.
local function take(queue)
    if queue.field == '' then
        return take_from(queue.list, queue)
    end
    return take_from(resumes_key(queue.list), queue) or take_in_turn(queue) or take_unpartitioned(queue)
end

-- Whether a key can be a queue. Somebody may have written something else there: that stops this queue alone.
local function is_list(key)
    local kind = redis.call('TYPE', key).ok
    if kind == 'list' or kind == 'none' then
        return true
    end
    answer[2][#answer[2] + 1] = key
    return false
end

for first = FIRST_LIST, #KEYS, queues do  -- one priority after the other
    local nonempty = {}
    for place = 0, queues - 1 do
        local list, at = KEYS[first + place], FIRST_QUEUE + PER_QUEUE * place
        local name, field = ARGV[at], ARGV[at + 1]
        bulk_left[name] = bulk_left[name] or tonumber(ARGV[at + 2])
        if is_list(list) then
            local queue = {list = list, name = name, field = first == FIRST_LIST and field or ''}
            if queue.field ~= '' then
                partition_by_person(queue)
            end
            nonempty[#nonempty + 1] = queue
        end
    end
    while #nonempty > 0 and taken < limit and bytes_left > 0 do  -- one message from each queue in turn, as long as it has any
        local asked = nonempty
        nonempty = {}
        for _, queue in ipairs(asked) do
            if taken < limit and bytes_left > 0 and take(queue) then
                nonempty[#nonempty + 1] = queue
            end
        end
    end
end
return answer
