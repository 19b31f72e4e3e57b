"""What is done in Redis in one step: keeping a shard of a model's pages within its bound.

`store` sends them. Each touches the keys of one shard, which share a slot. The index is a sorted set of
`size:entry` by the time at which the entry lapses; the count of bytes follows it. An entry that somebody else deleted
is counted until it lapses or is taken out, so the bound errs to the small side. Whoever can write these keys can make
the tier forget, or fill Redis as he could anyway; nothing in them is believed about a page's bytes.
"""

from __future__ import annotations

import hashlib

REDIS_SHARE = 0.8
"""Of Redis's own `maxmemory`: above it nothing is written, so that whatever else lives in the same server goes on."""
EVICTED_AT_ONCE = 512
"""Most entries that one write may push out."""

LONGEST_LIFE_MS = 30 * 86_400_000
"""Of a page, by the API's bound on `lifeSeconds`. A neighbour may write any time into an index."""

STORED, REFUSED_BY_BOUND, REFUSED_BY_REDIS = 1, 0, -1

_FORGET = """
local function forget(member)
  redis.call('ZREM', KEYS[2], member)
  local colon = string.find(member, ':', 1, true)
  if not colon then return 0 end
  redis.pcall('UNLINK', string.sub(member, colon + 1))
  return tonumber(string.sub(member, 1, colon - 1)) or 0
end
"""

_KEEP_BOOKS = f"""
local function keep_books(now_ms, ttl)
  local last = tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2] or '0')
  local life = math.max(2 * ttl, math.min(last - now_ms, {LONGEST_LIFE_MS}))
  redis.call('PEXPIRE', KEYS[2], string.format('%d', life))
  redis.call('PEXPIRE', KEYS[3], string.format('%d', life))
end
"""
"""The index and the count live as long as the last of the pages in them, which another deployment of the model, or an
earlier one, may have given a longer life. Forgotten pages would stand beside as many new ones."""

PUT = (
    _FORGET
    + _KEEP_BOOKS
    + f"""
local size, ttl, bound = #ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if size > bound then return {REFUSED_BY_BOUND} end
local memory = redis.pcall('INFO', 'memory')
if type(memory) == 'string' then
  local most = tonumber(string.match(memory, 'maxmemory:(%d+)') or '0')
  local now = tonumber(string.match(memory, 'used_memory:(%d+)') or '0')
  if most > 0 and now + size > most * {REDIS_SHARE} then return {REFUSED_BY_REDIS} end
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local used = tonumber(redis.call('GET', KEYS[3]) or '0') or 0
if used < 0 or redis.call('ZCARD', KEYS[2]) == 0 then used = 0 end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, {EVICTED_AT_ONCE})) do
  used = used - forget(member)
end
local member = size .. ':' .. KEYS[1]
if redis.call('ZREM', KEYS[2], member) == 1 then used = used - size end
for _ = 1, {EVICTED_AT_ONCE} do
  if used + size <= bound then break end
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then used = 0 break end
  used = used - forget(oldest)
end
local outcome = {REFUSED_BY_BOUND}
if used + size <= bound then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ttl)
  redis.call('ZADD', KEYS[2], now_ms + ttl, member)
  used = used + size
  outcome = {STORED}
end
redis.call('SET', KEYS[3], string.format('%d', math.max(0, used)))
keep_books(now_ms, ttl)
return outcome
"""
)
"""Keys: entry, index, count of bytes. Arguments: frame, time to live in ms, most bytes of the shard."""

TOUCH = (
    _KEEP_BOOKS
    + """
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ttl = tonumber(ARGV[1])
if redis.call('PEXPIRE', KEYS[1], ttl) == 1 then
  redis.call('ZADD', KEYS[2], 'XX', now_ms + ttl, ARGV[2] .. ':' .. KEYS[1])
  keep_books(now_ms, ttl)
end
return 1
"""
)
"""Keys: as above. Arguments: time to live in ms, size of the frame. A page that was used lives on."""

DROP = (
    _FORGET
    + """
local used = tonumber(redis.call('GET', KEYS[3]) or '0') or 0
local member = ARGV[1] .. ':' .. KEYS[1]
redis.call('UNLINK', KEYS[1])
if redis.call('ZSCORE', KEYS[2], member) then
  used = math.max(0, used - forget(member))
  redis.call('SET', KEYS[3], string.format('%d', used), 'KEEPTTL')
end
return 1
"""
)
"""Keys: as above. Arguments: size of the frame. What was refused makes room for what is right."""


def sha1_of(script: str) -> str:
    """By which EVALSHA knows it."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
