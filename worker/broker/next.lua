-- Returns what tells apart the messages that are next on the queues KEYS (keys.lua): the oldest of the queue's own list,
-- the oldest that stands for many jobs, and the oldest of the person whose turn it is. They stay the same exactly as long
-- as nothing is taken.
--
-- A message may have megabytes, so only its length and its two ends are looked at. kombu writes a delivery tag of the
-- message's own at the end.
local END = 512

local marks = {}

local function mark(list)
    local item = redis.call('LINDEX', list, -1)
    if item then
        marks[#marks + 1] = #item .. ':' .. redis.sha1hex(string.sub(item, 1, END) .. string.sub(item, -END))
    end
end

for _, queue in ipairs(KEYS) do
    mark(queue)
    mark(resumes_key(queue))
    local org = redis.call('LINDEX', turns_key(queue), -1) or ''
    local person = redis.call('LINDEX', people_key(queue, org), -1)
    if person then
        mark(messages_key(queue, person))
    end
end
return marks
