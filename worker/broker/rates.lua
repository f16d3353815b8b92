-- Reserves slots: when each of some messages may go, under every rate that holds for it. clock.lua stands before it.
--
--   KEYS[…]   hash  one for each limit, whose times are microseconds since 1970 by Redis's clock:
--                   next  when the slot begins that follows all others
--                   free  slots before it that were given back: start-end, in order, with blanks between them
--                   away  until when messages will come back that got no slot
--
--   ARGV[1]   how far ahead slots are reserved
--   ARGV[2]   how far ahead a message is told at most to come back
--   ARGV[3…]  for each key, how far in the past a slot may begin: what a limit has not used for so long is lost to it
--   then for each message: how many limits it has, and for each of them the place of its key and the length of its slot
--
-- Returns for each message how long it has to wait, and when each slot begins that it got. Its limits are tried one
-- after the other, and the first that makes it wait is the last of which it gets a slot: the others would lose theirs
-- meanwhile. A message that would wait too long gets no slot at all, and is told when to come back.
local clock = tonumber(time[1]) * 1e6 + tonumber(time[2])
local horizon, away_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local limits = {}
local EXTRA_MS = 1000  -- for which a key is kept when it says nothing any more

for place, key in ipairs(KEYS) do
    local stored = redis.call('HMGET', key, 'next', 'free', 'away')
    local free = {}
    for first, last in string.gmatch(stored[2] or '', '(%d+)-(%d+)') do
        free[#free + 1] = {first = tonumber(first), last = tonumber(last)}
    end
    limits[place] = {
        earliest = clock - tonumber(ARGV[2 + place]),
        next = tonumber(stored[1]) or 0,
        free = free,
        away = tonumber(stored[3]) or 0,
    }
end

-- When a slot of this length can begin, and the place of the free slot that it would be a part of.
local function find(limit, length)
    for place, slot in ipairs(limit.free) do
        local start = math.max(slot.first, limit.earliest)
        if start + length <= slot.last then
            return start, place
        end
    end
    return math.max(limit.next, limit.earliest)
end

local function take(limit, length)
    local start, place = find(limit, length)
    limit.is_changed = true
    if not place then
        limit.next = start + length
        return start
    end
    local slot = table.remove(limit.free, place)
    if start + length < slot.last then
        table.insert(limit.free, place, {first = start + length, last = slot.last})
    end
    return start  -- what is free before it is past
end

-- When a message that gets no slot is to come back: not all of them at once.
local function come_back(limit, length, wait)
    limit.is_changed = true
    local at = math.min(math.max(limit.away, clock + wait), clock + away_max)
    limit.away = at + length
    return at - clock
end

local answers = {}
local place = 3 + #KEYS
while place <= #ARGV do
    local count = tonumber(ARGV[place])
    local wanted = {}
    for number = 1, count do
        wanted[number] = {limits[tonumber(ARGV[place + 2 * number - 1])], tonumber(ARGV[place + 2 * number])}
    end
    place = place + 1 + 2 * count

    local wait, last = 0, count
    for number, each in ipairs(wanted) do
        wait = find(each[1], each[2]) - clock
        if wait > 0 then
            last = number
            break
        end
    end
    local answer = {math.max(0, wait)}
    if wait > horizon then
        answer[1] = come_back(wanted[last][1], wanted[last][2], wait)
    else
        for number = 1, last do
            answer[number + 1] = take(wanted[number][1], wanted[number][2])
        end
    end
    answers[#answers + 1] = answer
end

for number, key in ipairs(KEYS) do
    local limit = limits[number]
    if limit.is_changed then
        local free = {}
        for _, slot in ipairs(limit.free) do
            if slot.last > limit.earliest then
                free[#free + 1] = string.format('%.0f-%.0f', slot.first, slot.last)
            end
        end
        redis.call(
            'HSET', key, 'next', string.format('%.0f', limit.next), 'free', table.concat(free, ' '),
            'away', string.format('%.0f', limit.away)
        )
        local until_then = math.max(limit.next, limit.away) - limit.earliest
        redis.call('PEXPIRE', key, math.ceil(until_then / 1000) + EXTRA_MS)
    end
end
return answers
