-- Returns the lists, other than its own, that hold messages of the queue KEYS[1] (keys.lua).
return lists_of(KEYS[1])
