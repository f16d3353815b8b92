-- Deletes all messages that wait on the queue KEYS[1], wherever they are (keys.lua). Returns how many they were.
local queue = KEYS[1]
local lists = {queue, RESUMES .. queue}
for _, sender in ipairs(redis.call('LRANGE', SENDERS .. queue, 0, -1)) do
    lists[#lists + 1] = SENDER .. queue .. ':' .. sender
end
local deleted = 0
for _, list in ipairs(lists) do
    deleted = deleted + redis.call('LLEN', list)
    redis.call('DEL', list)
end
redis.call('DEL', SENDERS .. queue)
return deleted
