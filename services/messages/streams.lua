-- The messages of one queue inside Redis; services/messages/streams.py calls it, by digest.
-- A call runs alone and is in the append-only file whole or not at all. Times and sequences are integers below 2^53.

local META = KEYS[1] -- hash: epoch, sequence (the last given), bytes (of waiting bodies), call and reply (of the last change)
local STREAM = KEYS[2] -- waiting messages and dead letters; the id of an entry is SEQUENCE-0
local KNOWN = KEYS[3] -- hash: a message's key → SEQUENCE:MARK
local TRIES = KEYS[4] -- hash: SEQUENCE → packed {attempts, due, parked, detail} of waiting messages that were tried
local ENDS = KEYS[5] -- hash: SEQUENCE → packed {state, attempts, detail, ended, key, lane, published}
local AGES = KEYS[6] -- sorted set: padded SEQUENCE of what is done or refused, by when it ended
local BY_STATE = {done = KEYS[7], refused = KEYS[8], dead = KEYS[9]} -- sorted sets: SEQUENCE by itself

local call = redis.call

local function text(number)
  return string.format('%.0f', number)
end

-- Fields of an entry stand in the order in which append wrote them.
local function entry(sequence)
  local found = call('XRANGE', STREAM, sequence .. '-0', sequence .. '-0')[1]
  if not found then return nil end
  local fields = found[2]
  return {key = fields[2], lane = fields[4], body = fields[6], published = fields[8]}
end

local function is_dead(sequence)
  return call('ZSCORE', BY_STATE.dead, sequence)
end

local function tries(sequence)
  local packed = call('HGET', TRIES, sequence)
  if packed then return cmsgpack.unpack(packed) end
  return {0, 0, 0, ''}
end

local function record(sequence)
  local packed = call('HGET', ENDS, sequence)
  if packed then
    local e = cmsgpack.unpack(packed)
    local body = e[1] == 'dead' and entry(sequence).body or ''
    return {tonumber(sequence), e[5], e[6], body, e[1], e[2], e[3], tonumber(e[7]), e[4]}
  end
  local message = entry(sequence)
  if not message then return false end
  local t = tries(sequence)
  return {tonumber(sequence), message.key, message.lane, message.body, 'waiting', t[1], t[4], tonumber(message.published), 0}
end

local reads, changes = {}, {}

function changes.append(messages, now)
  local last = tonumber(call('HGET', META, 'sequence') or '0')
  local bytes, reply = 0, {}
  for i, message in ipairs(messages) do
    local key, lane = unpack(message)
    local body, mark = ARGV[3 + 2 * i], ARGV[4 + 2 * i]
    local known = call('HGET', KNOWN, key)
    if known then
      local colon = string.find(known, ':', 1, true)
      reply[i] = {tonumber(string.sub(known, 1, colon - 1)), 0, string.sub(known, colon + 1) == mark and 0 or 1}
    else
      last = last + 1
      call('XADD', STREAM, text(last) .. '-0', 'key', key, 'lane', lane, 'body', body, 'published', text(now))
      call('HSET', KNOWN, key, text(last) .. ':' .. mark)
      bytes = bytes + #body
      reply[i] = {last, 1, 0}
    end
  end
  call('HSET', META, 'sequence', text(last))
  call('HINCRBY', META, 'bytes', text(bytes))
  return reply
end

function changes.change(list, now)
  local bytes = 0
  for _, item in ipairs(list) do
    local number, state, attempts, detail, due, parked = unpack(item)
    local sequence = text(number)
    local message = not is_dead(sequence) and entry(sequence)
    if message and state == 'waiting' then
      call('HSET', TRIES, sequence, cmsgpack.pack({attempts, due, parked, detail}))
    elseif message then
      call('HDEL', TRIES, sequence)
      call('HSET', ENDS, sequence, cmsgpack.pack({state, attempts, detail, now, message.key, message.lane, message.published}))
      call('ZADD', BY_STATE[state], sequence, sequence)
      if state ~= 'dead' then
        call('XDEL', STREAM, sequence .. '-0')
        call('ZADD', AGES, text(now), string.format('%016.0f', number))
      end
      bytes = bytes + #message.body
    end
  end
  call('HINCRBY', META, 'bytes', text(0 - bytes))
  return {}
end

function changes.revive(sequences)
  local bytes, reply = 0, {}
  for _, number in ipairs(sequences) do
    local sequence = text(number)
    if is_dead(sequence) then
      local message, detail = entry(sequence), cmsgpack.unpack(call('HGET', ENDS, sequence))[3]
      call('ZREM', BY_STATE.dead, sequence)
      call('HDEL', ENDS, sequence)
      call('HSET', TRIES, sequence, cmsgpack.pack({0, 0, 0, detail}))
      bytes = bytes + #message.body
      reply[#reply + 1] = {number, message.lane}
    end
  end
  call('HINCRBY', META, 'bytes', text(bytes))
  return reply
end

function changes.discard(sequences)
  local count = 0
  for _, number in ipairs(sequences) do
    local sequence = text(number)
    if is_dead(sequence) then
      call('HDEL', KNOWN, entry(sequence).key)
      call('HDEL', ENDS, sequence)
      call('ZREM', BY_STATE.dead, sequence)
      call('XDEL', STREAM, sequence .. '-0')
      count = count + 1
    end
  end
  return {count}
end

function changes.forget(before, keep, limit)
  local padded = call('ZRANGE', AGES, '-inf', '(' .. text(before), 'BYSCORE', 'LIMIT', 0, limit)
  local excess = math.min(call('ZCARD', AGES) - keep, limit)
  if excess > #padded then padded = call('ZRANGE', AGES, 0, excess - 1) end
  for _, member in ipairs(padded) do
    local sequence = text(tonumber(member))
    local e = cmsgpack.unpack(call('HGET', ENDS, sequence))
    call('HDEL', KNOWN, e[5])
    call('HDEL', ENDS, sequence)
    call('ZREM', BY_STATE[e[1]], sequence)
    call('ZREM', AGES, member)
  end
  return {#padded}
end

function reads.entries(after, limit)
  local reply, from = {}, '(' .. text(after) .. '-0'
  while #reply < limit do
    local page = call('XRANGE', STREAM, from, '+', 'COUNT', limit)
    for _, found in ipairs(page) do
      local sequence = string.sub(found[1], 1, -3)
      if #reply < limit and not is_dead(sequence) then
        local t = tries(sequence)
        reply[#reply + 1] = {tonumber(sequence), found[2][4], t[1], t[2], t[3]}
      end
      from = '(' .. found[1]
    end
    if #page < limit then break end
  end
  return reply
end

function reads.bodies(sequences)
  local reply = {}
  for _, number in ipairs(sequences) do
    local sequence = text(number)
    local message = not is_dead(sequence) and entry(sequence)
    if message then reply[#reply + 1] = {number, message.key, message.body} end
  end
  return reply
end

function reads.find(keys)
  local reply = {}
  for i, key in ipairs(keys) do
    local known = call('HGET', KNOWN, key)
    reply[i] = known and record(string.match(known, '^%d+')) or false
  end
  return reply
end

function reads.ended(state, after, limit)
  local reply = {}
  for i, sequence in ipairs(call('ZRANGE', BY_STATE[state], '(' .. text(after), '+inf', 'BYSCORE', 'LIMIT', 0, limit)) do
    reply[i] = record(sequence)
  end
  return reply
end

function reads.counts()
  local done, refused, dead = call('ZCARD', BY_STATE.done), call('ZCARD', BY_STATE.refused), call('ZCARD', BY_STATE.dead)
  return {call('XLEN', STREAM) - dead, done, refused, dead, tonumber(call('HGET', META, 'bytes') or '0')}
end

-- ARGV: operation, epoch, number of the call, packed arguments; then what append keeps, body and mark of each message,
-- since cmsgpack does not read bytes.
-- At its maxmemory Redis refuses a call at the first thing it does that may need memory, and lets through what follows
-- a write. Only append shall be refused, since everything else makes room in the end: it drops what is not there.
local function pass_maxmemory()
  call('HDEL', META, 'nothing')
end

if ARGV[1] == 'open' then
  pass_maxmemory()
  call('HSET', META, 'call', 0)
  return call('HINCRBY', META, 'epoch', 1)
end
local meta = call('HMGET', META, 'epoch', 'call', 'reply')
if meta[1] ~= ARGV[2] then
  return redis.error_reply('FENCED ' .. (meta[1] or 'none'))
end
local arguments = cmsgpack.unpack(ARGV[4])
local read = reads[ARGV[1]]
if read then
  return read(unpack(arguments))
end
-- Who lost the connection asks the same call again and must hear what the first one did; what comes later still on a
-- connection that was given up must do nothing.
local number, last = tonumber(ARGV[3]), tonumber(meta[2])
if number == last then
  return cmsgpack.unpack(meta[3])
elseif number < last then
  return redis.error_reply('LATE ' .. ARGV[3])
end
if ARGV[1] ~= 'append' then pass_maxmemory() end
local reply = changes[ARGV[1]](unpack(arguments))
call('HSET', META, 'call', ARGV[3], 'reply', cmsgpack.pack(reply))
return reply
