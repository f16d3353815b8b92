-- Gives slots back that rates.lua has reserved and nobody has used.
--
--   KEYS[…]  hash  the limit of each slot (rates.lua); one that is gone had no slot left that anybody could use
--   ARGV[…]        for each of them, when the slot begins, and its length
local FREE_MAX = 1000  -- slots that a limit remembers; further ones are lost

local function read_free(key)
    local slots = {}
    for first, last in string.gmatch(redis.call('HGET', key, 'free') or '', '(%d+)-(%d+)') do
        slots[#slots + 1] = {first = tonumber(first), last = tonumber(last)}
    end
    return slots
end

-- All slots in order, those that follow each other as one.
local function joined(slots)
    table.sort(slots, function(one, other) return one.first < other.first end)
    local found = {}
    for _, slot in ipairs(slots) do
        local before = found[#found]
        if before and before.last == slot.first then
            before.last = slot.last
        else
            found[#found + 1] = slot
        end
    end
    return found
end

for number, key in ipairs(KEYS) do
    local next_slot = tonumber(redis.call('HGET', key, 'next'))
    if next_slot then
        local start, length = tonumber(ARGV[2 * number - 1]), tonumber(ARGV[2 * number])
        local slots = read_free(key)
        slots[#slots + 1] = {first = start, last = start + length}
        slots = joined(slots)
        if slots[#slots].last == next_slot then
            next_slot = table.remove(slots).first
        end
        local free = {}
        for place = 1, math.min(#slots, FREE_MAX) do
            free[place] = string.format('%.0f-%.0f', slots[place].first, slots[place].last)
        end
        redis.call('HSET', key, 'next', string.format('%.0f', next_slot), 'free', table.concat(free, ' '))
    end
end
