"""The scripts that count in Redis, by its own clock: taking, settling, and renewing what calls under way hold.

A meter is a hash (`sum` of the last minute; `period`, `count`, when that was `seeded` and whether it was seeded with a
`guess`; what is `held`), a list `:uses` of "microseconds amount" of the last minute, a list `:early` of "microseconds
amount process" used before it was known what a calendar's meter had held, by when the store knows of it, and a set
`:holds` of "amount:call" by the microsecond at which the lease ends. Every key of one gateway has the same hash tag.
Leaves out who runs them (`limiting.shared`).
"""

from __future__ import annotations

from typing import Final

from llm_proxy.gateway.limiting.meters import Span

SPANS: Final = {Span.MINUTE: "w", Span.DAY: "d", Span.MONTH: "m", Span.NOW: "n"}
UNKNOWN: Final = -1  # of a calendar's meter: the store is to be asked for what it has held already
TOO_LATE: Final = -2  # whoever asked waits no more

_COMMON: Final = """
local clock = redis.call('TIME')
local seconds = tonumber(clock[1])
local now, span = seconds * 1000000 + tonumber(clock[2]), 60000000
local days = math.floor(seconds / 86400)

local function whole(number) return string.format('%.0f', number) end

-- The month since year 0, of a day since 1970 (days_from_civil, turned round).
local function month(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local mp = math.floor((5 * (doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))) + 2) / 153)
  local m = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (m <= 2 and 1 or 0)) * 12 + m - 1
end

local function period(kind) if kind == 'd' then return days end return month(days) end

-- Seconds until the day or month ends.
local function left(kind)
  local last = days
  if kind == 'm' then
    local this = month(days)
    while month(last + 1) == this do last = last + 1 end
  end
  return (last + 1) * 86400 - seconds
end

local KEPT = {w = 3600, n = 3600, d = 172800, m = 3456000}
local function keep(key, kind)
  redis.call('EXPIRE', key, KEPT[kind])
end

local function begin(key, this)
  redis.call('HSET', key, 'period', this, 'count', 0, 'seeded', 0)
  redis.call('HDEL', key, 'guess')
end

-- The time of the window: its newest entry's, where the clock was set back a little; one set back far is forgotten.
local function window(key)
  local newest = redis.call('LINDEX', key .. ':uses', -1)
  if not newest then redis.call('HDEL', key, 'sum') return now end
  newest = tonumber(string.match(newest, '^%d+'))
  if newest > now + span then
    redis.call('DEL', key .. ':uses')
    redis.call('HDEL', key, 'sum')
    return now
  end
  return math.max(now, newest)
end

local function use(key, kind, amount, at)
  if kind == 'w' then
    redis.call('RPUSH', key .. ':uses', whole(at) .. ' ' .. whole(amount))
    redis.call('PEXPIRE', key .. ':uses', 61000)
    redis.call('HINCRBY', key, 'sum', whole(amount))
  else
    redis.call('HINCRBY', key, 'count', whole(amount))
  end
  keep(key, kind)
end
"""

# KEYS: the meters. ARGV: until when it is waited for ("0": not said), the call ("": only look), the lease, who asks;
# of each meter its span, its most, the need (0: only look), whether it is held, what it is said to have held already,
# of which period, whether the store said so, and what who asks counted; where it is a guess the count goes on from it,
# and the store is asked again.
# Gives 1 or 0, now and (used, held, wait) of each; or UNKNOWN, now and 1 for each that is unknown; or TOO_LATE, now.
TAKE: Final = (
    _COMMON
    + """
local deadline, id, lease = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
if deadline > 0 and now > deadline then return {-2, now} end
local meters, unknown, missing = {}, {}, false

-- What others have used that the store does not know of yet.
local function early(key)
  local sum = 0
  for _, one in ipairs(redis.call('LRANGE', key .. ':early', 0, -1)) do
    local known, amount, who = string.match(one, '^(%d+) (%-?%d+) (%w+)$')
    if tonumber(known) > now and who ~= ARGV[4] then sum = sum + tonumber(amount) end
  end
  redis.call('DEL', key .. ':early')
  return sum
end

for i, key in ipairs(KEYS) do
  local a = 4 + (i - 1) * 8
  local meter = {kind = ARGV[a + 1], most = tonumber(ARGV[a + 2]), need = tonumber(ARGV[a + 3]), used = 0, held = 0,
    is_held = ARGV[a + 4] == '1', at = now}
  if meter.is_held then
    for _, gone in ipairs(redis.call('ZRANGEBYSCORE', key .. ':holds', '-inf', whole(now))) do
      redis.call('ZREM', key .. ':holds', gone)
      redis.call('HINCRBY', key, 'held', '-' .. string.match(gone, '^%d+'))
    end
    if redis.call('EXISTS', key .. ':holds') == 0 then redis.call('HDEL', key, 'held') end
    meter.held = tonumber(redis.call('HGET', key, 'held') or '0')
  end
  unknown[i] = 0
  if meter.kind == 'w' then
    meter.at = window(key)
    local oldest = redis.call('LINDEX', key .. ':uses', 0)
    while oldest do
      local at, amount = string.match(oldest, '^(%d+) (%-?%d+)$')
      if tonumber(at) > meter.at - span then break end
      redis.call('LPOP', key .. ':uses')
      redis.call('HINCRBY', key, 'sum', whole(-tonumber(amount)))
      oldest = redis.call('LINDEX', key .. ':uses', 0)
    end
    if not oldest then redis.call('HDEL', key, 'sum') end
    meter.used = tonumber(redis.call('HGET', key, 'sum') or '0')
  elseif meter.kind ~= 'n' then
    local this, seeded = period(meter.kind), tonumber(ARGV[a + 6])
    local kept = redis.call('HMGET', key, 'period', 'count', 'guess')
    local at, count = tonumber(kept[1] or '-1'), tonumber(kept[2] or '0')
    if kept[1] and at < this then
      begin(key, this)
    elseif at == this and not kept[3] then
      meter.used = count
    elseif seeded == this then
      local said, sure = tonumber(ARGV[a + 5]) + early(key), ARGV[a + 7] == '1'
      meter.used = math.max(said, tonumber(ARGV[a + 8]), at == this and count or 0)
      redis.call('HSET', key, 'period', this, 'count', whole(meter.used), 'seeded', sure and whole(now) or '0')
      if sure then redis.call('HDEL', key, 'guess') else redis.call('HSET', key, 'guess', 1) end
      keep(key, meter.kind)
    else
      unknown[i], missing = 1, true
    end
  end
  meters[i] = meter
end
if missing then return {-1, now, unpack(unknown)} end

local passed = 1
for i, key in ipairs(KEYS) do
  local meter = meters[i]
  meter.wait = 0
  local over = meter.used + meter.held + meter.need - meter.most
  if meter.need > 0 and over > 0 then
    passed = 0
    meter.wait = 1000000
    if meter.kind == 'd' or meter.kind == 'm' then
      meter.wait = left(meter.kind) * 1000000
    elseif meter.kind == 'w' then
      local start = 0
      while over > 0 do
        local uses = redis.call('LRANGE', key .. ':uses', start, start + 99)
        if #uses == 0 then break end
        for _, one in ipairs(uses) do
          local at, amount = string.match(one, '^(%d+) (%-?%d+)$')
          over = over - tonumber(amount)
          if over <= 0 then meter.wait = math.max(tonumber(at) + span - meter.at, 1) break end
        end
        start = start + 100
      end
    end
  end
end

local answer = {passed, now}
for i, key in ipairs(KEYS) do
  local meter = meters[i]
  if passed == 1 and id ~= '' and meter.need > 0 then
    if meter.is_held then
      redis.call('ZADD', key .. ':holds', whole(now + lease), whole(meter.need) .. ':' .. id)
      redis.call('PEXPIRE', key .. ':holds', whole(2 * lease / 1000))
      redis.call('HINCRBY', key, 'held', whole(meter.need))
      meter.held = meter.held + meter.need
      keep(key, meter.kind)
    else
      use(key, meter.kind, meter.need, meter.at)
      meter.used = meter.used + meter.need
    end
  end
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = meter.used, meter.held, meter.wait
end
return answer
"""
)

# KEYS: the meters, and what says that this was done. ARGV: the call, by when the store knew of it ("0": not said), how
# long it is remembered, who tells; of each meter its span, what was held and what was used.
SETTLE: Final = (
    _COMMON
    + """
local id, known = ARGV[1], tonumber(ARGV[2])
if not redis.call('SET', KEYS[#KEYS], 1, 'NX', 'EX', ARGV[3]) then return 0 end
for i = 1, #KEYS - 1 do
  local key, a = KEYS[i], 4 + (i - 1) * 3
  local kind, held, used = ARGV[a + 1], ARGV[a + 2], tonumber(ARGV[a + 3])
  if held ~= '0' and redis.call('ZREM', key .. ':holds', held .. ':' .. id) == 1 then
    redis.call('HINCRBY', key, 'held', '-' .. held)
  end
  if used ~= 0 and kind == 'w' then
    use(key, kind, used, window(key))
  elseif used ~= 0 and kind ~= 'n' then
    local kept, this = redis.call('HMGET', key, 'period', 'seeded'), period(kind)
    if kept[1] and tonumber(kept[1]) < this then
      begin(key, this)
      kept = {this, 0}
    end
    -- Where the store was asked behind its end, the sum has it already.
    local has = known > 0 and tonumber(kept[2] or '0') > known
    if not kept[1] then
      local entry = whole(known > 0 and known or now + span) .. ' ' .. whole(used) .. ' ' .. ARGV[4]
      redis.call('RPUSH', key .. ':early', entry)
      redis.call('PEXPIRE', key .. ':early', 61000)
    elseif tonumber(kept[1]) == this and not has then
      use(key, kind, used, now)
    end
  end
end
return 1
"""
)

# KEYS: the meters, and what says that it is settled. ARGV: the call, the lease, and what it holds of each.
RENEW: Final = (
    _COMMON
    + """
local id, lease = ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[#KEYS]) == 1 then return 0 end
for i = 1, #KEYS - 1 do
  local key, amount = KEYS[i], ARGV[2 + i]
  if redis.call('ZADD', key .. ':holds', whole(now + lease), amount .. ':' .. id) == 1 then
    redis.call('HINCRBY', key, 'held', amount)
  end
  redis.call('PEXPIRE', key .. ':holds', whole(2 * lease / 1000))
  if redis.call('TTL', key) < 3600 then redis.call('EXPIRE', key, 3600) end
end
return 1
"""
)
