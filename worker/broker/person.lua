-- Whose a message is, read from its body. What its headers show of the arguments is written by producers, too, but
-- nobody is charged by it: a text there could choose any line.
--
-- The body is JSON in base64, `[[{…, "sender": "mary", …}], {}, {}]`. To decode all of it would take too long, so the
-- name of the field is searched for as base64 has it (TOKENS, from fair_queue.py), and only what follows is decoded.
-- Inside a string of JSON the quotes around the name would have backslashes, so what is found is a name. Where it is
-- found more than once, as in the values of a bulk job, the whole body is decoded, or nobody's if it is long.

local DECODED_MAX = 65536  -- bytes of a message or body that is decoded: about 5 ms
local WINDOWS = {48, 160}  -- characters that are decoded from a name on: enough for most people, and for up to 64 bytes
local SEXTETS = {}
for value, letter in ipairs({string.byte('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/', 1, 64)}) do
    SEXTETS[letter] = value - 1
end

-- Decodes base64 whose length is a multiple of 4. Anything else in it counts as zeros.
local function decoded_base64(text)
    local parts, byte, char = {}, string.byte, string.char
    for at = 1, #text, 4 do
        local a, b, c, d = byte(text, at, at + 3)
        local bits = (SEXTETS[a] or 0) * 262144 + (SEXTETS[b] or 0) * 4096 + (SEXTETS[c] or 0) * 64 + (SEXTETS[d] or 0)
        local low, middle = bits % 256, bits % 65536
        parts[#parts + 1] = char((bits - middle) / 65536, (middle - low) / 256, low)
    end
    return table.concat(parts)
end

local function body_of(item)
    local _, quote = string.find(item, '^{"body": ?"')
    local last = quote and string.find(item, '"', quote + 1, true)
    if last and not string.find(item, '"body"', last, true) then
        local body = string.sub(item, quote + 1, last - 1)
        return string.find(body, '\\', 1, true) and string.gsub(body, '\\/', '/') or body
    end
    local decoded, message = pcall(cjson.decode, #item <= DECODED_MAX and item or '')
    return decoded and type(message) == 'table' and type(message.body) == 'string' and message.body or ''
end

-- The person that a body names at a group of base64, with `lead` - 1 bytes before the name; nil if that is no field.
local function person_at(body, group, lead, field)
    for _, size in ipairs(WINDOWS) do
        local window = string.sub(body, group, group + size - 1)
        local text = decoded_base64(string.sub(window, 1, #window - #window % 4))
        local person = string.match(text, '^"' .. field .. '"%s*:%s*"([%w._:-]+)"', lead)
        if person then
            return person
        end
    end
    return nil
end

-- The people that a body names by this field, at most two.
local function named_people(body, field)
    local people = {}
    for lead, token in ipairs(TOKENS[field]) do
        local at = string.find(body, token.text, 1, true)
        while at and #people < 2 do
            local group = at - token.first
            if group >= 1 and (group - 1) % 4 == 0 then
                people[#people + 1] = person_at(body, group, lead, field)
            end
            at = string.find(body, token.text, at + 1, true)
        end
    end
    return people
end

local function given_person(body, field)
    local decoded, payload = pcall(cjson.decode, decoded_base64(body))
    local args = decoded and type(payload) == 'table' and (payload.args or payload[1])
    local given = type(args) == 'table' and args[1]
    local person = type(given) == 'table' and given[field]
    return type(person) == 'string' and string.match(person, '^[%w._:-]+$') or ''
end

-- The person that the object in a message names by `field`, or an empty string.
local function person_of(item, field)
    local body = body_of(item)
    local people = named_people(body, field)
    if #people < 2 then
        return people[1] or ''
    end
    return #body <= DECODED_MAX and given_person(body, field) or ''
end
