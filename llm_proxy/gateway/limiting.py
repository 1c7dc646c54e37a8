"""How many requests a user may make in a minute and in a day, and the headers that tell him how many are left.

Limits are a user's, whichever of his keys he comes by. The minute is the last sixty seconds, so there is no boundary at
which twice as many pass; the day is the calendar's, in UTC, and is counted on from `request_logs` after a restart.
Only what passes is counted. What a team has spent of its budget is asked here too (`budgets`). Leaves out how machines
share limits (`limiting_shared`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from sqlalchemy import and_, distinct, func, not_, select

from llm_proxy.gateway.budgets import Budgets
from llm_proxy.gateway.facts import Caller
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.store.schema import request_logs
from llm_proxy.wire.exposition import Sample, family

if TYPE_CHECKING:
    from llm_proxy.gateway.options import Options, Secrets
    from llm_proxy.gateway.store.database import Store

log = logging.getLogger("llm_proxy.gateway")

MINUTE: Final = 60.0
DAY: Final = 86_400
NO_LIMIT: Final[Mapping[str, str]] = MappingProxyType({})
LOOKUP: Final = 2.0  # seconds that the store has to say what a user has made today
_MOST_USERS: Final = 10_000  # remembered, before those who have made nothing for a minute are forgotten


class Limits(NamedTuple):
    """Requests; 0 for no limit."""

    minute: int
    day: int

    def __bool__(self) -> bool:
        return self.minute > 0 or self.day > 0


class Standing(NamedTuple):
    """What a user has made, the request at hand included where it `passed`.

    `wait` is seconds until one more fits into the minute, `midnight` until the day ends.
    """

    passed: bool
    in_minute: int
    in_day: int
    wait: float
    midnight: float


class Limiter(Protocol):
    async def take(self, caller: Caller) -> Mapping[str, str]:
        """Count one request of his and give the `x-ratelimit-*` headers for its answer. Raises Refusal 429."""

    def spent(self, team_id: int, cost: int) -> None:
        """A member's call has cost that much, in billionths of a dollar."""

    def metrics(self) -> Iterator[str]:
        """Lines in Prometheus' text format."""

    async def close(self) -> None: ...


def make(store: Store, options: Options, secrets: Secrets) -> Limiter:
    """The one for this machine alone, or with a Redis URL the one that all share. Raises ValueError: it is none."""
    alone = LocalLimiter(store, options)
    if not secrets.redis_url:
        return alone
    from llm_proxy.gateway.limiting_shared import SharedLimiter

    return SharedLimiter(secrets.redis_url, alone)


class _User:
    """What one user has made. `times` are monotonic, of the last minute; `day` counts days since 1970, -1 for none."""

    __slots__ = ("count", "day", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque()
        self.day = -1
        self.count = 0


class LocalLimiter:
    """Counts what passes in this process. `clock` is monotonic, `wall` seconds since 1970."""

    def __init__(
        self,
        store: Store,
        options: Options,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.budgets = Budgets(store, clock=clock, wall=wall)
        self.days = Days(store)
        self.refused: dict[str, int] = {"minute": 0, "day": 0}
        self._minute = options.rate_limit_minute
        self._day = options.rate_limit_daily
        self._clock = clock
        self._wall = wall
        self._users: dict[int, _User] = {}

    async def take(self, caller: Caller) -> Mapping[str, str]:
        if caller.team_ids:
            await self.budgets.check(caller.team_ids[0])
        limits = self.limits(caller)
        return await self.count(caller.user_id, limits) if limits else NO_LIMIT

    def limits(self, caller: Caller) -> Limits:
        minute, day = caller.rate_limit_minute, caller.rate_limit_daily
        return Limits(self._minute if minute is None else minute, self._day if day is None else day)

    async def count(self, user_id: int, limits: Limits) -> Mapping[str, str]:
        """`take` by limits alone."""
        user = self._users.get(user_id) or self._new(user_id)
        wall = self._wall()
        while limits.day > 0 and user.day != (today := int(wall // DAY)):
            user = await self._begun(user_id, today)
            wall = self._wall()
        # From here on nothing waits, so no other request comes between looking and counting.
        now = self._clock()
        _forget(user.times, now - MINUTE)
        made = len(user.times)
        wait = 0.0
        if 0 < limits.minute <= made:
            wait = user.times[made - limits.minute] + MINUTE - now
        passed = not wait and not 0 < limits.day <= user.count
        if passed:
            if limits.minute > 0:
                user.times.append(now)
                made += 1
            user.count += 1
        return self.told(limits, Standing(passed, made, user.count, wait, DAY - wall % DAY))

    def passed_elsewhere(self, user_id: int, *, minute: bool) -> None:
        """A request was counted by those who share, so that it is known here when they cannot be asked.

        The day's are not all ours then: the store is to be asked for them.
        """
        user = self._users.get(user_id) or self._new(user_id)
        user.day = -1
        now = self._clock()
        _forget(user.times, now - MINUTE)
        if minute:
            user.times.append(now)

    def told(self, limits: Limits, standing: Standing) -> Mapping[str, str]:
        """The headers that say so. Raises Refusal 429."""
        if not standing.passed:
            kind = "minute" if standing.wait > 0 else "day"
            self.refused[kind] += 1
            raise _refusal(kind, limits, standing)
        return _headers(limits, standing)

    def spent(self, team_id: int, cost: int) -> None:
        self.budgets.spent(team_id, cost)

    def metrics(self) -> Iterator[str]:
        yield from family(
            "llm_proxy_gateway_limited_total",
            "counter",
            "Requests refused by a limit, by which.",
            [Sample({"limit": kind}, count) for kind, count in self.refused.items()]
            + [Sample({"limit": "budget"}, self.budgets.refused)],
        )

    async def close(self) -> None:
        """Nothing is held."""

    def _new(self, user_id: int) -> _User:
        if len(self._users) >= _MOST_USERS:
            before = self._clock() - MINUTE
            idle = [id for id, user in self._users.items() if not user.times or user.times[-1] <= before]
            for id in idle:
                del self._users[id]
        return self._users.setdefault(user_id, _User())

    async def _begun(self, user_id: int, today: int) -> _User:
        count = await self.days.of(user_id, today)
        user = self._users.get(user_id) or self._new(user_id)
        if user.day != today:
            user.day, user.count = today, count
        return user


class Days:
    """What users have made on a day as the store knows it, asked once, however many requests wait for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking: dict[tuple[int, int], asyncio.Task[int]] = {}

    async def of(self, user_id: int, day: int) -> int:
        """`day` counts since 1970."""
        asking = self._asking.get((user_id, day))
        if asking is None:
            asking = asyncio.create_task(requests_of_day(self._store, user_id, day))
            self._asking[user_id, day] = asking
            asking.add_done_callback(lambda _: self._asking.pop((user_id, day), None))
        return await asyncio.shield(asking)  # who leaves does not take the others' answer along


async def requests_of_day(store: Store, user_id: int, day: int) -> int:
    """His requests on that day since 1970 which a limit let pass, however many attempts each took.

    0 where the store does not say in time: a limit never stops the traffic because something of ours is down.
    """
    from llm_proxy.gateway.store.database import StoreAway

    start = datetime.fromtimestamp(day * DAY, UTC)
    end = datetime.fromtimestamp((day + 1) * DAY, UTC)
    limited = and_(request_logs.c.attempt == 0, request_logs.c.status_code == 429)
    query = select(func.count(distinct(request_logs.c.request_id))).where(
        request_logs.c.user_id == user_id,
        request_logs.c.created_at >= start,
        request_logs.c.created_at < end,
        not_(func.coalesce(limited, False)),
    )
    try:
        async with asyncio.timeout(LOOKUP), store.reading() as connection:
            return int(await connection.scalar(query) or 0)
    except (StoreAway, TimeoutError) as error:
        log.warning("the day's requests of user %d are counted from 0: %s", user_id, error or "no answer in time")
        return 0


def _forget(times: deque[float], until: float) -> None:
    while times and times[0] <= until:
        times.popleft()


def _headers(limits: Limits, standing: Standing) -> dict[str, str]:
    """As OpenAI calls them, of the limit that is nearer: `reset` is until nothing counts any more."""
    left, limit, reset = math.inf, 0, 0.0
    if limits.minute > 0:
        left, limit, reset = limits.minute - standing.in_minute, limits.minute, MINUTE
    if limits.day > 0 and limits.day - standing.in_day < left:
        left, limit, reset = limits.day - standing.in_day, limits.day, standing.midnight
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(max(left, 0)),
        "x-ratelimit-reset-requests": _duration(reset),
    }


def _refusal(kind: str, limits: Limits, standing: Standing) -> Refusal:
    limit, wait = (limits.minute, standing.wait) if kind == "minute" else (limits.day, standing.midnight)
    seconds = max(math.ceil(wait), 1)
    headers = {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": _duration(MINUTE if kind == "minute" else wait),
        "Retry-After": str(seconds),
    }
    if kind == "day":
        headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's SDKs would try again within seconds
    words = f"you may make {limit} requests in a {kind}, and have; try again in {_duration(seconds)}"
    return Refusal(429, "rate_limit_exceeded", words, headers=headers)


def _duration(seconds: float) -> str:
    """As OpenAI writes it, in whole seconds: `6m0s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
