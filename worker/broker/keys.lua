-- The keys of a queue on which people take turns, put before each script that uses them. ARGV[1] is the prefix of all
-- keys, which a queue's own has too, and may be empty.
--
--   <queue>                        list  what producers push: new messages at its head, the oldest at its tail
--   postage.line:<queue>:<person>  list  the messages of one person, in the same order; the person may be empty
--   postage.lines:<queue>          list  the people of no known organization who have messages there; the one whose
--                                        turn is next at its tail
--   postage.lines:<queue>@<org>    list  the people of an organization who have messages there, in the same order
--   postage.turns:<queue>          list  the organizations that have such people, in the same order; none is the empty
--                                        string
--   postage.resumes:<queue>        list  messages of <kind>.resume, each of which stands for many jobs
--   postage.organizations          hash  the organization of each person whose jobs were charged lately
--
-- The names stay as they are: after an upgrade the new workers must find what the old ones have put there.
local prefix = ARGV[1]

local function key_of(kind, queue)
    return prefix .. 'postage.' .. kind .. ':' .. string.sub(queue, #prefix + 1)
end

local function people_key(queue, org)
    return key_of('lines', queue) .. (org ~= '' and '@' .. org or '')
end

local function messages_key(queue, person)
    return key_of('line', queue) .. ':' .. person
end

local function turns_key(queue)
    return key_of('turns', queue)
end

local function resumes_key(queue)
    return key_of('resumes', queue)
end

-- The organizations that have messages on a queue. Those that an older worker has moved have none.
local function organizations_of(queue)
    local found, listed = {''}, {['']=true}
    for _, org in ipairs(redis.call('LRANGE', turns_key(queue), 0, -1)) do
        if not listed[org] then
            listed[org] = true
            found[#found + 1] = org
        end
    end
    return found
end

-- The lists that hold messages of a queue, other than its own.
local function lists_of(queue)
    local lists = {resumes_key(queue)}
    for _, org in ipairs(organizations_of(queue)) do
        for _, person in ipairs(redis.call('LRANGE', people_key(queue, org), 0, -1)) do
            lists[#lists + 1] = messages_key(queue, person)
        end
    end
    return lists
end
