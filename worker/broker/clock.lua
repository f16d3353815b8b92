-- The time by Redis's clock, in seconds since 1970, put before each script that uses it.
local time = redis.call('TIME')  -- seconds and microseconds
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
