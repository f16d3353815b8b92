-- Adds the item ARGV[1] to the quarantine KEYS[1], unless the same one is there already.
redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
