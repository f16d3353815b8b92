-- Returns how many seconds ago beat noted on KEYS[1] that it is alive; -1 if it never did.
local at = tonumber(redis.call('GET', KEYS[1]))
return at and math.max(0, redis.call('TIME')[1] - at) or -1
