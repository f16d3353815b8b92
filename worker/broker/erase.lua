-- Erases the items of the quarantine KEYS[1] that came at ARGV[1] or before, at most ARGV[2] of them. Returns how many.
--
-- Items on the list KEYS[2], where workers of earlier releases put them, move to the quarantine, as if they came now.
local before, limit = ARGV[1], tonumber(ARGV[2])

for _ = 1, limit do
    local item = redis.call('RPOP', KEYS[2])
    if not item then
        break
    end
    redis.call('ZADD', KEYS[1], 'NX', now, item)
end
local due = math.min(redis.call('ZCOUNT', KEYS[1], '-inf', before), limit)
if due > 0 then
    redis.call('ZREMRANGEBYRANK', KEYS[1], 0, due - 1)
end
return due
