-- Moves the item ARGV[1] from the quarantine KEYS[1] to the queue KEYS[2]. Returns 1, or 0 if it was not there any more:
-- of two who ask at the same time, only one moves it.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
