-- Returns how many messages wait on the queues KEYS, whether or not they were moved to their people (keys.lua).
local waiting = 0
for _, queue in ipairs(KEYS) do
    waiting = waiting + redis.call('LLEN', queue)
    for _, list in ipairs(lists_of(queue)) do
        waiting = waiting + redis.call('LLEN', list)
    end
end
return waiting
