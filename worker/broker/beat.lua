-- Notes on KEYS[1] that beat is alive, by Redis's clock, in seconds since 1970.
redis.call('SET', KEYS[1], redis.call('TIME')[1])
