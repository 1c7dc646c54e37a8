"""Limits that all machines share, in one Redis: a script there looks and counts in one step, by its own clock.

Redis has 50 ms for it. Where it does not answer, each machine limits by what it knows itself, and says so in its
log and its metrics; one request a second tries whether Redis is back, so that it is not run over. Leaves out what is
counted and how that is told (`limiting`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from llm_proxy.gateway.facts import Caller
from llm_proxy.gateway.limiting import NO_LIMIT, Limits, LocalLimiter, Standing
from llm_proxy.wire.exposition import Sample, family

log = logging.getLogger("llm_proxy.gateway")

_LATE: Final = 1.2  # times PATIENCE: waking up later than that is our own doing
PATIENCE: Final = 0.05  # seconds that a request waits for Redis
_AGAIN: Final = 1.0  # seconds until it is tried again
_TOLD_EVERY: Final = 60.0  # seconds between two lines about the same trouble
_SOCKET: Final = 1.0  # seconds after which a connection counts as dead, whoever still waits for it
_CONNECTIONS: Final = 32

# The minute is a list of microseconds, oldest first. The day is a hash that says which one it counts. Where that is not
# known (a new user, an emptied Redis) nothing is counted and -1 asks for what the store knows of that day.
_SCRIPT: Final = """
local per_minute, per_day, known, known_day = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local clock = redis.call('TIME')
local seconds, now = tonumber(clock[1]), tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local today, span = math.floor(seconds / 86400), 60000000
local midnight = (today + 1) * 86400 - seconds
local made, wait, count = 0, 0, 0
if per_minute > 0 then
  local newest = tonumber(redis.call('LINDEX', KEYS[1], -1) or '0')
  if newest > now + span then redis.call('DEL', KEYS[1]) elseif newest > now then now = newest end
  local oldest = redis.call('LINDEX', KEYS[1], 0)
  while oldest and tonumber(oldest) <= now - span do
    redis.call('LPOP', KEYS[1])
    oldest = redis.call('LINDEX', KEYS[1], 0)
  end
  made = redis.call('LLEN', KEYS[1])
  if made >= per_minute then
    wait = math.max(tonumber(redis.call('LINDEX', KEYS[1], made - per_minute)) + span - now, 1)
  end
end
if per_day > 0 then
  local kept = redis.call('HMGET', KEYS[2], 'day', 'count')
  if kept[1] and tonumber(kept[1]) == today then
    count = tonumber(kept[2])
  elseif not kept[1] or tonumber(kept[1]) > today then
    if known_day ~= today then return {-1, today, 0, 0, 0} end
    count = known
  end
end
local passed = 0
if wait == 0 and not (per_day > 0 and count >= per_day) then
  passed = 1
  if per_minute > 0 then
    made = redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
    redis.call('PEXPIRE', KEYS[1], 61000)
  end
  count = count + 1
end
if per_day > 0 then
  redis.call('HSET', KEYS[2], 'day', today, 'count', count)
  redis.call('EXPIRE', KEYS[2], 172800)
end
return {passed, made, count, wait, midnight}
"""


class SharedLimiter:
    """`alone` limits where Redis does not answer. Raises ValueError where the URL is none."""

    def __init__(self, url: str, alone: LocalLimiter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.fallbacks = 0
        self._alone = alone
        self._clock = clock
        self._away_until = -math.inf
        self._told = -math.inf
        self._asking: set[asyncio.Task[list[int]]] = set()
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_SOCKET,
                socket_timeout=_SOCKET,
                socket_connect_timeout=_SOCKET,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:  # which might show the password
            raise ValueError("REDIS_URL must be like redis://host:6379/0, rediss:// or unix://") from None
        self._redis = Redis.from_pool(pool)
        self._script: Any = self._redis.register_script(_SCRIPT)

    @property
    def is_away(self) -> bool:
        """Whether each machine limits by itself now."""
        return self._away_until > -math.inf

    async def take(self, caller: Caller) -> Mapping[str, str]:
        if caller.team_ids:
            await self._alone.budgets.check(caller.team_ids[0])
        limits = self._alone.limits(caller)
        if not limits:
            return NO_LIMIT
        standing = await self._shared(caller.user_id, limits)
        if standing is None:
            self.fallbacks += 1
            return await self._alone.count(caller.user_id, limits)
        if standing.passed:
            self._alone.passed_elsewhere(caller.user_id, minute=limits.minute > 0)
        return self._alone.told(limits, standing)

    def spent(self, team_id: int, cost: int) -> None:
        self._alone.spent(team_id, cost)

    def metrics(self) -> Iterator[str]:
        yield from self._alone.metrics()
        words = "1 while limits are not shared because Redis does not answer."
        yield from family("llm_proxy_gateway_limits_degraded", "gauge", words, [Sample({}, int(self.is_away))])
        words = "Requests that were limited by this machine alone."
        yield from family("llm_proxy_gateway_limits_local_total", "counter", words, [Sample({}, self.fallbacks)])

    async def close(self) -> None:
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._redis.aclose()

    async def _shared(self, user_id: int, limits: Limits) -> Standing | None:
        """What Redis says; None where it does not in time."""
        said = await self._ask(user_id, limits)
        while isinstance(said, int):
            said = await self._ask(user_id, limits, await self._alone.days.of(user_id, said), said)
        return said

    async def _ask(self, user_id: int, limits: Limits, known: int = -1, day: int = -1) -> Standing | int | None:
        """`known` is what the user made on that day since 1970. Gives a day that Redis has to be told of first."""
        now = self._clock()
        if now < self._away_until:
            return None
        if self.is_away:
            self._away_until = now + _AGAIN  # this request tries, others do not
        # A connection that is being made is not thrown away with the patience of who waits for it.
        asking = asyncio.create_task(self._run(user_id, limits, known, day))
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        await asyncio.wait({asking}, timeout=PATIENCE)
        if not asking.done() and self._clock() - now > _LATE * PATIENCE:
            await asyncio.wait({asking}, timeout=PATIENCE)  # this process was busy: Redis may have answered long ago
        if not asking.done():
            self._trouble("no answer in time")
            return None
        if asking.exception() is not None:
            self._trouble(type(asking.exception()).__name__)
            return None
        if self.is_away:
            self._away_until = -math.inf
            log.warning("Redis answers: limits are shared again")
        passed, made, count, wait, midnight = asking.result()
        return made if passed < 0 else Standing(passed == 1, made, count, wait / 1e6, float(midnight))

    async def _run(self, user_id: int, limits: Limits, known: int, day: int) -> list[int]:
        """Raises RedisError, OSError."""
        keys = [f"llm-proxy:{{{user_id}}}:{span}" for span in ("minute", "day")]
        return [int(number) for number in await self._script(keys=keys, args=[*limits, known, day])]

    def _asked(self, asking: asyncio.Task[list[int]]) -> None:
        """Whatever came of it is looked at, also where nobody waits any more."""
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()

    def _trouble(self, words: str) -> None:
        now = self._clock()
        self._away_until = now + _AGAIN
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            log.warning("Redis cannot be asked (%s): each machine limits requests by itself until it can", words)
