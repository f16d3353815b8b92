-- Returns how many messages wait on the queue KEYS[1], whether or not they were moved to their people (keys.lua).
local queue = KEYS[1]
local waiting = redis.call('LLEN', queue)
for _, list in ipairs(lists_of(queue)) do
    waiting = waiting + redis.call('LLEN', list)
end
return waiting
