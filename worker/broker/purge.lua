-- Deletes all messages that wait on the queue KEYS[1], wherever they are (keys.lua). Returns how many they were.
local queue = KEYS[1]
local deleted = redis.call('LLEN', queue)
redis.call('DEL', queue)
for _, list in ipairs(lists_of(queue)) do
    deleted = deleted + redis.call('LLEN', list)
    redis.call('DEL', list)
end
for _, org in ipairs(organizations_of(queue)) do
    redis.call('DEL', people_key(queue, org))
end
redis.call('DEL', turns_key(queue))
return deleted
