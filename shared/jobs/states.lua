-- Every change of a job's state, each in one atomic step. Loaded once as one script; ARGV[1] names the verb.
--
--                        take                  succeed
--   submit ──▶ queued ─────────▶ running ──────────────────▶ succeeded
--                ▲ ▲               │ │ │        fail
--                │ └── release ──┘ │ └───────────────────▶ failed (dead when its attempts are used up)
--                └─ again (delayed) ─┘                          │
--                ▲          cancel: queued, running ─▶ cancelled│
--                └──────────────── retry ────────────────┴──────┘
--
-- `fence` counts the deliveries of a job and is never reset. Whoever writes about a running job names the fence that it
-- was given; a worker that was thought dead and comes back holds an old one and changes nothing. `tries` counts the
-- deliveries that a retry budget is spent on. Keys: see redis_keys.py. Times: milliseconds of the Redis server's clock.

local root = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local GROUP = 'workers'
local FRONT = 0 -- the stream that is read first: jobs that were handed back
local IN_LINE = 2 -- jobs of one tenant and level that stand in a stream; the others wait behind it until one is taken
local TENANT_SHARE = 4 -- a tenant with less than this part of the places is let in although others have taken them all

local function key(kind, name) return root .. ':' .. kind .. ':' .. (name or 'all') end
local function stream(service, level) return key('stream', service .. ':' .. level) end
local function get(id, ...) return redis.call('HMGET', key('job', id), ...) end
local function set(id, ...) redis.call('HSET', key('job', id), ...) end
local function unset(id, ...) redis.call('HDEL', key('job', id), ...) end
local function tell(id) redis.call('PUBLISH', key('changed'), id) end

-- Counts the bytes that a job holds, in Redis and in the object store, against its tenant.
local function hold(id, bytes)
  local tenant, held = unpack(get(id, 'tenant', 'held'))
  set(id, 'held', bytes)
  if redis.call('INCRBY', key('bytes', tenant), bytes - tonumber(held or 0)) <= 0 then
    redis.call('DEL', key('bytes', tenant))
  end
end

-- The job if this tenant may see it: not somebody else's, not past its expiry (the sweep may be late).
local function visible(id, tenant)
  local owner, expires = unpack(get(id, 'tenant', 'expires'))
  return owner == tenant and not (expires and tonumber(expires) <= now)
end

-- Streams ---------------------------------------------------------------------------------------------------------

local function push(id, service, level)
  set(id, 'at', level, 'entry', redis.call('XADD', stream(service, level), '*', 'job', id))
end

-- Tenants take turns: each has a few jobs in the stream and the rest in a backlog of its own, from which the next one
-- follows when one is taken. So a flood of one tenant stands in front of another's job with a few jobs only.
local function line_of(id)
  local service, tenant, level = unpack(get(id, 'service', 'tenant', 'level'))
  local name = service .. ':' .. level .. ':' .. tenant
  return key('line', name), key('backlog', name), service, level
end

local function append(id, service, level)
  if tonumber(level) == FRONT then return push(id, service, level) end
  local line, backlog = line_of(id)
  if redis.call('ZCARD', line) >= IN_LINE then
    redis.call('ZADD', backlog, redis.call('ZSCORE', key('waiting', service), id) or now, id)
  else
    redis.call('ZADD', line, now, id)
    push(id, service, level)
  end
end

local function leave_line(id)
  local line, backlog, service, level = line_of(id)
  redis.call('ZREM', line, id)
  redis.call('ZREM', backlog, id)
  while redis.call('ZCARD', line) < IN_LINE do
    local following = redis.call('ZPOPMIN', backlog)[1]
    if not following then break end
    redis.call('ZADD', line, now, following)
    push(following, service, level)
  end
end

local function is_full(service, tenant, limit)
  local depth = redis.call('ZCARD', key('waiting', service))
  if depth < limit then return false end
  local own = redis.call('SCARD', key('own', service .. ':' .. tenant))
  return depth >= 2 * limit or own >= math.max(1, limit / TENANT_SHARE)
end

local function drop_entry(id)
  local service, at, entry = unpack(get(id, 'service', 'at', 'entry'))
  if entry then
    redis.call('XACK', stream(service, at), GROUP, entry)
    redis.call('XDEL', stream(service, at), entry)
    unset(id, 'at', 'entry')
  end
  leave_line(id)
end

local function stop_waiting(id, service)
  redis.call('ZREM', key('waiting', service), id)
  redis.call('SREM', key('own', service .. ':' .. get(id, 'tenant')[1]), id)
end

local function wait_in_line(id, service, level)
  local turn = redis.call('INCR', key('sequence', service))
  redis.call('ZADD', key('waiting', service), level * 2 ^ 44 + turn, id)
  redis.call('SADD', key('own', service .. ':' .. get(id, 'tenant')[1]), id)
  set(id, 'status', 'queued')
  unset(id, 'note', 'progress')
end

local function enqueue(id, service, level)
  wait_in_line(id, service, level)
  append(id, service, level)
end

local function enqueue_due(service)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('delayed', service), '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', key('delayed', service), id)
    append(id, service, get(id, 'level')[1])
  end
end

-- The next entry of a stream for this consumer: first one whose worker fell silent, then a new one.
local function next_entry(name, consumer, lease)
  if lease then
    local cursor = '0-0'
    repeat
      local found = redis.pcall('XAUTOCLAIM', name, GROUP, consumer, lease, cursor, 'COUNT', 1)
      if found.err then break end -- no group yet: nothing was ever delivered
      if found[2][1] then return found[2][1], true end
      cursor = found[1]
    until cursor == '0-0'
  end
  local read = { 'XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', name, '>' }
  local found = redis.pcall(unpack(read))
  if found and found.err then
    redis.call('XGROUP', 'CREATE', name, GROUP, '0', 'MKSTREAM')
    found = redis.call(unpack(read))
  end
  if found then return found[1][2][1], false end
end

-- Endings ---------------------------------------------------------------------------------------------------------

local function expire(id, at)
  set(id, 'expires', at)
  redis.call('ZADD', key('expiring'), at, id)
end

local function close(id, status, ttl)
  drop_entry(id)
  set(id, 'status', status, 'finished', now)
  unset(id, 'note')
  if ttl then expire(id, now + ttl) end
  tell(id)
end

-- Dead letters stay until retried; only the oldest of too many are let go.
local function bury(id, kept)
  local tenant = get(id, 'tenant')[1]
  set(id, 'dead', 1)
  close(id, 'failed')
  redis.call('ZADD', key('dead', tenant), now, id)
  while redis.call('ZCARD', key('dead', tenant)) > kept do
    expire(redis.call('ZPOPMIN', key('dead', tenant))[1], now)
  end
end

-- 'mine': this attempt runs the job. 'done': an earlier try of the same write got through. 'lost': no longer ours.
local function standing(id, fence)
  local status, current = unpack(get(id, 'status', 'fence'))
  if current ~= fence or status == 'cancelled' then return 'lost' end
  return status == 'running' and 'mine' or 'done'
end

local verbs = {}

-- What callers do -------------------------------------------------------------------------------------------------

function verbs.submit(id, tenant, service, level, limit, size, quota, once, fingerprint, ...)
  if redis.call('EXISTS', key('job', id)) == 1 then return { 'new', id } end -- the same call, sent again
  if once ~= '' then
    local first = redis.call('GET', key('once', once))
    if first and visible(first, tenant) then
      return { get(first, 'fingerprint')[1] == fingerprint and 'same' or 'conflict', first }
    end
    redis.call('SET', key('once', once), id)
  end
  local depth = redis.call('ZCARD', key('waiting', service))
  local held = tonumber(redis.call('GET', key('bytes', tenant)) or 0)
  local refusal = is_full(service, tenant, tonumber(limit)) and { 'full', tostring(depth) }
    or held + size > tonumber(quota) and { 'quota', tostring(held) }
  if refusal then
    if once ~= '' then redis.call('DEL', key('once', once)) end
    return refusal
  end
  set(id, 'tenant', tenant, 'service', service, 'level', level, 'once', once, 'fingerprint', fingerprint,
    'created', now, 'fence', 0, 'tries', 0, 'size', size, ...)
  hold(id, size)
  redis.call('ZADD', key('tenant', tenant), now, id)
  enqueue(id, service, level)
  return { 'new', id }
end

function verbs.look(id, tenant, ...)
  if not visible(id, tenant) then return false end
  return { redis.call('ZRANK', key('waiting', get(id, 'service')[1]), id) or -1, get(id, ...) }
end

-- Up to `limit` jobs that may be seen, behind the job `after` where one is named; false where that is not in the list.
function verbs.list(kind, tenant, limit, after, ...)
  local found, place = {}, 0
  if after ~= '' then
    local rank = redis.call('ZREVRANK', key(kind, tenant), after)
    if not rank then return false end
    place = rank + 1
  end
  limit = tonumber(limit)
  repeat
    local ids = redis.call('ZREVRANGE', key(kind, tenant), place, place + limit - 1)
    for _, id in ipairs(ids) do
      local row = #found < limit and verbs.look(id, tenant, ...)
      if row then found[#found + 1] = { id, row } end
    end
    place = place + limit
  until #ids < limit or #found == limit
  return found
end

function verbs.cancel(id, tenant, ttl)
  if not visible(id, tenant) then return 'missing' end
  local status, service = unpack(get(id, 'status', 'service'))
  if status ~= 'queued' and status ~= 'running' then return status end
  stop_waiting(id, service)
  redis.call('ZREM', key('delayed', service), id)
  close(id, 'cancelled', ttl)
  redis.call('PUBLISH', key('stop', service), id)
  return 'cancelled'
end

-- A finished job is gone for callers at once, and for good with the next sweep.
function verbs.delete(id, tenant)
  if not visible(id, tenant) then return 'missing' end
  local status = get(id, 'status')[1]
  if status == 'queued' or status == 'running' then return status end
  redis.call('ZREM', key('dead', tenant), id)
  unset(id, 'body', 'answer')
  hold(id, 0)
  expire(id, now)
  return 'deleted'
end

-- caller: the headers of whoever asks, as JSON; they replace those of whoever asked first.
function verbs.retry(id, tenant, limit, caller)
  if not visible(id, tenant) then return 'missing' end
  local status, service, level = unpack(get(id, 'status', 'service', 'level'))
  if status ~= 'failed' and status ~= 'cancelled' then return status end
  if is_full(service, tenant, tonumber(limit)) then return 'full' end
  if caller ~= '{}' then
    local headers = cjson.decode(get(id, 'headers')[1])
    headers['x-fovea-key'] = nil
    for name, value in pairs(cjson.decode(caller)) do headers[name] = value end
    set(id, 'headers', cjson.encode(headers))
  end
  redis.call('ZREM', key('dead', tenant), id)
  redis.call('ZREM', key('expiring'), id)
  unset(id, 'dead', 'error', 'started', 'finished', 'expires',
    'answer_status', 'answer_type', 'answer_headers', 'answer')
  set(id, 'tries', 0)
  hold(id, get(id, 'size')[1] or 0)
  enqueue(id, service, level)
  tell(id)
  return 'again'
end

-- What workers do -------------------------------------------------------------------------------------------------

-- lease: milliseconds of silence after which a job is taken from its worker, '' to leave all of them alone.
function verbs.take(service, consumer, lease, attempts, kept, ...)
  enqueue_due(service)
  local last = {}
  for level = FRONT, 3 do
    local name = stream(service, level)
    while true do
      local entry, reclaimed = next_entry(name, consumer, lease ~= '' and lease)
      if not entry then break end
      local id = entry[2][2]
      local status, current, tries = unpack(get(id, 'status', 'entry', 'tries'))
      if current ~= entry[1] or status ~= (reclaimed and 'running' or 'queued') then
        redis.call('XACK', name, GROUP, entry[1]) -- of a job that has moved on
        redis.call('XDEL', name, entry[1])
      elseif reclaimed and tonumber(tries) >= tonumber(attempts) then
        unset(id, 'error')
        bury(id, tonumber(kept))
      else
        stop_waiting(id, service)
        leave_line(id)
        redis.call('HINCRBY', key('job', id), 'tries', 1)
        local fence = redis.call('HINCRBY', key('job', id), 'fence', 1)
        unset(id, 'note', 'progress')
        set(id, 'status', 'running', 'started', now)
        tell(id)
        return { 'job', id, fence, get(id, ...) }
      end
    end
    last[#last + 1] = redis.call('XINFO', 'STREAM', name)[8] -- last-generated-id: what the doorbell listens after
  end
  local due = redis.call('ZRANGE', key('delayed', service), 0, 0, 'WITHSCORES')[2]
  return { 'none', due and math.max(0, due - now) or -1, last }
end

-- Renews the leases of this worker's attempts (id, fence, id, fence …); returns those that have lost their job. A worker
-- that was given its own job again names both attempts: one of them is lost.
function verbs.renew(service, consumer, alive, ...)
  redis.call('HSET', key('workers', service), consumer, alive)
  local held, lost = { ... }, {}
  for i = 1, #held, 2 do
    local id, fence = held[i], held[i + 1]
    if standing(id, fence) == 'mine' then
      local at, entry = unpack(get(id, 'at', 'entry'))
      redis.call('XCLAIM', stream(service, at), GROUP, consumer, 0, entry, 'JUSTID')
    else
      lost[#lost + 1] = { id, fence }
    end
  end
  return lost
end

function verbs.progress(id, fence, fraction, note)
  local mine = standing(id, fence) == 'mine'
  if mine then
    set(id, 'progress', fraction, 'note', note)
    tell(id)
  end
  return mine and 1 or 0
end

function verbs.succeed(id, fence, ttl, size, ...)
  local how = standing(id, fence)
  -- An attempt that failed or was handed back is over: its late answer must not take the request from the next one.
  if how == 'done' and get(id, 'status')[1] ~= 'succeeded' then how = 'lost' end
  if how == 'mine' then
    set(id, 'progress', 1, ...)
    unset(id, 'body') -- a succeeded job is never run again
    hold(id, size)
    close(id, 'succeeded', ttl)
  end
  return how
end

function verbs.fail(id, fence, ttl, size, problem, ...)
  local how = standing(id, fence)
  if how == 'mine' then
    set(id, 'error', problem, ...)
    hold(id, (get(id, 'size')[1] or 0) + size)
    close(id, 'failed', ttl)
  end
  return how
end

function verbs.again(id, fence, attempts, kept, delay, problem)
  local how = standing(id, fence)
  if how == 'mine' then
    local service, level, tries = unpack(get(id, 'service', 'level', 'tries'))
    set(id, 'error', problem)
    if attempts == '' then -- it never began: this is no attempt of it
      redis.call('HINCRBY', key('job', id), 'tries', -1)
    end
    if attempts ~= '' and tonumber(tries) >= tonumber(attempts) then
      bury(id, tonumber(kept))
    else
      drop_entry(id)
      wait_in_line(id, service, level)
      redis.call('ZADD', key('delayed', service), now + delay, id)
      tell(id)
    end
  end
  return how
end

function verbs.release(id, fence)
  local how = standing(id, fence)
  if how == 'mine' then
    drop_entry(id)
    redis.call('HINCRBY', key('job', id), 'tries', -1)
    enqueue(id, get(id, 'service')[1], FRONT)
    tell(id)
  end
  return how
end

-- What keeps the house clean --------------------------------------------------------------------------------------

function verbs.expired(limit)
  return redis.call('ZRANGEBYSCORE', key('expiring'), '-inf', now, 'LIMIT', 0, limit)
end

function verbs.forget(id)
  local tenant, once = unpack(get(id, 'tenant', 'once'))
  redis.call('ZREM', key('expiring'), id)
  if not tenant then return end
  if once ~= '' and redis.call('GET', key('once', once)) == id then redis.call('DEL', key('once', once)) end
  redis.call('ZREM', key('tenant', tenant), id)
  redis.call('ZREM', key('dead', tenant), id)
  hold(id, 0)
  redis.call('DEL', key('job', id))
end

-- Takes a worker off the books. A consumer that still holds entries stays: deleting it would lose them.
function verbs.leave(service, consumer)
  redis.call('HDEL', key('workers', service), consumer)
  for level = FRONT, 3 do
    local name = stream(service, level)
    local found = redis.pcall('XPENDING', name, GROUP, '-', '+', 1, consumer)
    if not found.err and #found == 0 then redis.call('XGROUP', 'DELCONSUMER', name, GROUP, consumer) end
  end
end

function verbs.counts(service)
  local running = 0
  for level = FRONT, 3 do
    local held = redis.pcall('XPENDING', stream(service, level), GROUP)
    if not held.err then running = running + held[1] end
  end
  return { redis.call('ZCARD', key('waiting', service)), running }
end

local verb = table.remove(ARGV, 1)
return verbs[verb](unpack(ARGV))
