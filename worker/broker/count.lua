-- Returns how many messages wait on the queue KEYS[1], whether or not they were moved to their senders (keys.lua).
local queue = KEYS[1]
local waiting = redis.call('LLEN', queue) + redis.call('LLEN', RESUMES .. queue)
for _, sender in ipairs(redis.call('LRANGE', SENDERS .. queue, 0, -1)) do
    waiting = waiting + redis.call('LLEN', SENDER .. queue .. ':' .. sender)
end
return waiting
