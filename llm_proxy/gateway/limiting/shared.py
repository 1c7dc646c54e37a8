"""Meters that all machines share, in one Redis: a script there looks at all of a call's and counts in one step.

A Redis that answers nobody for 50 ms is away, and what it reads much later it does not count. Meanwhile each machine
counts by itself, says so in its log and its metrics, and tells Redis when it is back; no call waits to find that out.
What a call holds is leased: a machine that was killed gives it back within `LEASE`. Leaves out what is counted
(`limiting.meters`), how that is told (`limiting`), and the scripts (`limiting.scripts`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple
from uuid import uuid4

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from llm_proxy.gateway.limiting.local import LocalCounter
from llm_proxy.gateway.limiting.meters import Meter, Standing, Verdict, Want, What, period
from llm_proxy.gateway.limiting.scripts import RENEW, SETTLE, SPANS, TAKE, TOO_LATE, UNKNOWN
from llm_proxy.wire.exposition import Sample, family

log = logging.getLogger("llm_proxy.gateway")

_LATE: Final = 1.2  # times PATIENCE: waking up later than that is our own doing
_SLICE: Final = 0.005  # seconds, at least, between two looks at whether it has answered
_TURNS: Final = 4  # of the event loop
_TRIES: Final = 8  # of a call that Redis reads too late, or that midnight comes between
PATIENCE: Final = 0.05  # seconds that calls wait for a Redis that answers nobody
LEASE: Final = 30.0  # seconds; renewed three times meanwhile
_AGAIN: Final = 1.0  # seconds until it is tried again
_TOLD_EVERY: Final = 60.0  # seconds between two lines about the same trouble
_SOCKET: Final = 1.0  # seconds after which a connection counts as dead, whoever still waits for it
_CONNECTIONS: Final = 8
_BATCH: Final = 16  # scripts sent at once: Redis is busy with them for some 2 ms
_MOST_OWED: Final = 50_000  # settlements that wait for Redis; the oldest go first
_REMEMBERED: Final = 600  # seconds in which a settlement that is sent twice is counted once
_FLUSHED: Final = 1.5  # seconds after which the usage log has written a call

_ONCE, _UNDO = ":once", ":undo"

_Reply = list[int]
_Asking = asyncio.Future[_Reply]


class _Debt(NamedTuple):
    """What Redis is to be told of a call that has ended, by our clock; what is told `again` of it has a name."""

    id: str
    again: str
    meters: Sequence[Meter]
    held: Sequence[int]
    used: Sequence[int]
    at: float


class _Seed(NamedTuple):
    """What a calendar's meter has held already, in the `period` of that number; `known` 0 where that is a guess.

    `here` is what was counted by this machine alone.
    """

    amount: int
    number: int
    known: int
    here: int


_NONE: Final = _Seed(-1, -1, 0, 0)


class SharedCounter:
    """`alone` counts where Redis does not answer; `tag` tells our keys from another gateway's.

    Raises ValueError where the URL is none.
    """

    def __init__(self, url: str, alone: LocalCounter, tag: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.fallbacks = self.lost = 0
        self._alone = alone
        self._tag = f"llm-proxy:{{{tag}}}"
        self._name = uuid4().hex
        self._clock = clock
        self._told = self._astonished = -math.inf
        self._heard = -math.inf
        self._offset: float | None = None  # of Redis' clock from ours, in seconds
        self._asking: set[_Asking] = set()
        self._queue: deque[tuple[_Asking, list[str], list[str | int]]] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._owed: deque[_Debt] = deque()
        self._settled = 0  # that were owed before, told or given up
        self._awaited: dict[int, asyncio.Future[None]] = {}  # until so many are settled
        self._turn = asyncio.Lock()  # of telling what is owed
        self._holding: dict[str, Sequence[Want]] = {}
        self._draining: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
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
        pool.connection_class = _telling(pool.connection_class, self._hear)
        self._redis = Redis.from_pool(pool)
        self._take: Any = self._redis.register_script(TAKE)
        self._settle: Any = self._redis.register_script(SETTLE)
        self._renew: Any = self._redis.register_script(RENEW)
        # With the first call it would be slow: who is new to it must not take that for trouble.
        self._opening = asyncio.get_running_loop().create_task(self._opened())

    @property
    def is_away(self) -> bool:
        """Whether each machine counts by itself now."""
        return self._recovering is not None

    async def open(self) -> None:
        """Until Redis is known to be there or not, or for a second."""
        await asyncio.wait({self._opening}, timeout=_SOCKET)

    async def take(self, id: str, wants: Sequence[Want]) -> Verdict:
        if self._owed and not self.is_away and any(want.meter.kind.what is What.STREAMS for want in wants):
            # Who has just ended a stream may begin the next one: what is owed now is told before.
            told = self._awaited.setdefault(self._settled + len(self._owed), asyncio.get_running_loop().create_future())
            await asyncio.wait({told}, timeout=PATIENCE)
        verdict = await self._shared(id, wants)
        if verdict is None:
            self.fallbacks += 1
            verdict = await self._alone.take(id, wants)
            if verdict.passed and any(at_once := [_at_once(want) for want in wants]):
                self._owe(id, wants, at_once, again=_ONCE)
        else:
            self._alone.mirror(id, wants, verdict)
        if verdict.passed and any(want.meter.kind.is_held for want in wants):
            self._hold(id, wants)
        return verdict

    async def look(self, wants: Sequence[Want]) -> Verdict:
        return await self._shared("", wants) or await self._alone.look(wants)

    def settle(self, id: str, wants: Sequence[Want], used: Sequence[int]) -> None:
        self._alone.settle(id, wants, used)
        if self._holding.pop(id, None) is not None:
            self._owe(id, wants, used)

    def metrics(self) -> Iterator[str]:
        words = "1 while limits are not shared because Redis does not answer."
        yield from family("llm_proxy_gateway_limits_degraded", "gauge", words, [Sample({}, int(self.is_away))])
        words = "Requests that were limited by this machine alone."
        yield from family("llm_proxy_gateway_limits_local_total", "counter", words, [Sample({}, self.fallbacks)])
        words = "Calls whose use the other machines have not been told of."
        yield from family("llm_proxy_gateway_limits_untold", "gauge", words, [Sample({}, len(self._owed))])

    async def close(self) -> None:
        """What is owed is told, if Redis answers."""
        if self._draining is not None:
            await asyncio.wait({self._draining}, timeout=_SOCKET)
        tasks = [
            task
            for task in (
                self._opening,
                self._sending,
                self._draining,
                self._recovering,
                self._renewing,
                *self._asking,
            )
            if task
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.aclose()

    # -- taking

    async def _opened(self) -> None:
        try:
            await self._greet()
        except (RedisError, OSError) as error:
            self._trouble(type(error).__name__)

    def _hear(self) -> None:
        self._heard = self._clock()

    async def _greet(self) -> None:
        """Redis is there, has the scripts, and says what time it is. Raises RedisError, OSError."""
        for script in (self._take, self._settle, self._renew):
            await self._redis.script_load(script.script)
        told = _seconds(await self._redis.time())
        self._heard = self._clock()
        self._offset = told - self._heard

    async def _shared(self, id: str, wants: Sequence[Want]) -> Verdict | None:
        """What Redis says; None where it does not in time."""
        seeds: dict[int, _Seed] = {}
        for _ in range(_TRIES):
            reply = await self._ask(id, wants, seeds)
            if reply is None:
                return None
            status, now, *rest = reply
            if status == TOO_LATE:
                continue
            if status != UNKNOWN:
                standings = tuple(
                    Standing(used, held, wait / 1e6)
                    for used, held, wait in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
                )
                return Verdict(status == 1, standings, now / 1e6, shared=True)
            for place in (place for place, unknown in enumerate(rest) if unknown):
                meter = wants[place].meter
                number = period(meter.kind.span, now / 1e6)
                told = await self._alone.sums.soon(meter, number)
                # Of calls under way and of the last second the store knows nothing yet.
                seeds[place] = _Seed(told.amount, number, int(told.known), self._alone.counted(meter, number))
        return None

    async def _ask(self, id: str, wants: Sequence[Want], seeds: dict[int, _Seed]) -> _Reply | None:
        if not self._opening.done():
            await asyncio.wait({self._opening}, timeout=PATIENCE)
        if self.is_away or not self._opening.done():
            return None
        # What is sent is not thrown away with the patience of who waits for it.
        asking: _Asking = asyncio.get_running_loop().create_future()
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        self._queue.append((asking, *self._said(id, wants, seeds)))
        if self._sending is None:
            self._sending = asyncio.create_task(self._sent())
            self._sending.add_done_callback(self._has_sent)
        try:
            await self._patiently(asking)
        except asyncio.CancelledError:
            self._undo(asking, id, wants)
            raise
        if not asking.done():
            self._undo(asking, id, wants)
            self._trouble("no answer in time")
            return None
        if (error := asking.exception()) is not None:
            self._trouble(type(error).__name__)
            return None
        return asking.result()

    async def _patiently(self, asking: _Asking) -> None:
        """Wait for it as long as Redis answers somebody, and PATIENCE when it does not: of our own idle time, because
        what comes while we are busy is not late. If it is Redis that all wait for, we are not.
        """
        began = self._clock()
        while not asking.done():
            woke = self._clock()
            await asyncio.wait({asking}, timeout=max(max(began, self._heard) + PATIENCE - woke, _SLICE))
            now = self._clock()
            on_time = now - woke <= _LATE * PATIENCE
            if now - began > _SOCKET or (on_time and now - max(began, self._heard) >= PATIENCE):
                await self._read_what_is_there(asking)
                if max(began, self._heard) + PATIENCE <= now or now - began > _SOCKET:
                    break

    async def _read_what_is_there(self, asking: _Asking) -> None:
        """What Redis has said and we had no time to look at: a turn of the loop each to read and to tell it."""
        for _ in range(_TURNS):
            if not asking.done():
                await asyncio.sleep(0)

    def _said(self, id: str, wants: Sequence[Want], seeds: dict[int, _Seed]) -> tuple[list[str], list[str | int]]:
        """The script's keys, and its arguments without the first."""
        arguments: list[str | int] = [id, int(LEASE * 1e6), self._name]
        for place, want in enumerate(wants):
            kind = want.meter.kind
            need = want.amount if want.need else 0
            arguments += [SPANS[kind.span], want.meter.most, need, int(kind.is_held), *seeds.get(place, _NONE)]
        return [self._key(want.meter) for want in wants], arguments

    async def _sent(self) -> None:
        """What calls ask together goes together: by one connection, a batch when the one before is answered."""
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]
            try:
                replies = await self._batch(batch)
                if any(isinstance(reply, NoScriptError) for reply in replies):  # it was started anew
                    await self._greet()
                    replies = await self._batch(batch)
            except (RedisError, OSError) as error:
                replies = [error] * len(batch)
            else:
                self._heard = self._clock()
            for (asking, *_), reply in zip(batch, replies, strict=True):
                if asking.done():
                    continue
                if isinstance(reply, Exception):
                    asking.set_exception(reply)
                else:
                    asking.set_result([int(number) for number in reply])

    async def _batch(self, batch: Sequence[tuple[_Asking, list[str], list[str | int]]]) -> list[Any]:
        """Raises RedisError, OSError."""
        until = 0.0 if self._offset is None else self._clock() + self._offset + _SOCKET
        async with self._redis.pipeline(transaction=False) as pipe:
            for _, keys, arguments in batch:
                pipe.evalsha(self._take.sha, len(keys), *keys, int(until * 1e6), *arguments)
            return list(await pipe.execute(raise_on_error=False))

    def _has_sent(self, _: asyncio.Task[None]) -> None:
        self._sending = None

    def _key(self, meter: Meter) -> str:
        return f"{self._tag}:{meter.key}"

    def _asked(self, asking: _Asking) -> None:
        """Whatever came of it is looked at, also where nobody waits any more."""
        self._asking.discard(asking)
        if not asking.cancelled() and asking.exception() is None:
            self._offset = asking.result()[1] / 1e6 - self._clock()

    def _undo(self, asking: _Asking, id: str, wants: Sequence[Want]) -> None:
        """Nobody waits for it any more: should it have counted the call, that is taken back."""

        def taken_back(asking: _Asking) -> None:
            if id and not asking.cancelled() and asking.exception() is None and asking.result()[0] == 1:
                self._owe(id, wants, [-_at_once(want) for want in wants], again=_UNDO)

        asking.add_done_callback(taken_back)

    # -- settling

    def _owe(self, id: str, wants: Sequence[Want], used: Sequence[int], again: str = "") -> None:
        meters = [want.meter for want in wants]
        held = [want.amount if want.meter.kind.is_held and again != _ONCE else 0 for want in wants]
        self._owed.append(_Debt(id, again, meters, held, used, self._clock()))
        while len(self._owed) > _MOST_OWED:
            self._owe_less()
            self.lost += 1
        if self._draining is None and not self.is_away:
            self._draining = asyncio.create_task(self._drained())
            self._draining.add_done_callback(self._has_drained)

    def _owe_less(self) -> None:
        self._owed.popleft()
        self._settled += 1
        if (told := self._awaited.pop(self._settled, None)) is not None:
            told.set_result(None)

    async def _drained(self) -> None:
        try:
            await self._tell()
        except (RedisError, OSError) as error:
            self._trouble(type(error).__name__)

    def _has_drained(self, _: asyncio.Task[None]) -> None:
        self._draining = None

    async def _tell(self) -> None:
        """Redis has all that is owed. What it is told twice it counts once. Raises RedisError, OSError."""
        async with self._turn:
            while debts := list(islice(self._owed, _BATCH)):
                await self._tell_of(debts)
                self._heard = self._clock()
                for debt in debts:
                    if self._owed and self._owed[0] is debt:  # the oldest may have been given up meanwhile
                        self._owe_less()

    async def _tell_of(self, debts: Sequence[_Debt]) -> None:
        """Raises RedisError, OSError."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for debt in debts:
                # What is still under way the store cannot know.
                new = debt.again == _ONCE and debt.id in self._holding
                at = 0.0 if new or self._offset is None else debt.at + self._offset + _FLUSHED
                arguments: list[str | int] = [debt.id, int(at * 1e6), _REMEMBERED, self._name]
                for meter, held, used in zip(debt.meters, debt.held, debt.used, strict=True):
                    arguments += [SPANS[meter.kind.span], held, used]
                keys = [*map(self._key, debt.meters), f"{self._tag}:settled:{debt.id}{debt.again}"]
                await self._settle(keys=keys, args=arguments, client=pipe)
            await pipe.execute()

    def _hold(self, id: str, wants: Sequence[Want]) -> None:
        self._holding[id] = wants
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renewed())

    async def _renewed(self) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            if not self.is_away:
                try:
                    await self._renew_all()
                except (RedisError, OSError) as error:
                    self._trouble(type(error).__name__)
                except Exception:  # the next calls' leases are still to be renewed
                    self._unforeseen()

    async def _renew_all(self) -> None:
        """Raises RedisError, OSError."""
        holding = list(self._holding.items())
        for start in range(0, len(holding), _BATCH):
            async with self._redis.pipeline(transaction=False) as pipe:
                for id, wants in holding[start : start + _BATCH]:
                    held = [want for want in wants if want.meter.kind.is_held]
                    if id in self._holding:  # it may have ended meanwhile
                        arguments = [id, int(LEASE * 1e6), *(want.amount for want in held)]
                        keys = [*(self._key(want.meter) for want in held), f"{self._tag}:settled:{id}"]
                        await self._renew(keys=keys, args=arguments, client=pipe)
                await pipe.execute()

    # -- trouble

    def _trouble(self, words: str) -> None:
        while self._awaited:  # nobody waits a second time
            self._awaited.popitem()[1].set_result(None)
        if self._recovering is None:
            self._recovering = asyncio.create_task(self._recovered())
        now = self._clock()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            log.warning("Redis cannot be asked (%s): each machine limits requests by itself until it can", words)

    def _unforeseen(self) -> None:
        """Of the error that is being handled."""
        now = self._clock()
        if now - self._astonished >= _TOLD_EVERY:
            self._astonished = now
            log.exception("sharing limits by Redis met an error that nobody foresaw; it is tried again")

    async def _recovered(self) -> None:
        """Until Redis answers, and knows what was counted without it."""
        while True:
            await asyncio.sleep(_AGAIN)
            try:
                await self._redis.connection_pool.disconnect(inuse_connections=False)  # they may be dead
                await self._greet()
                await self._tell()
                await self._renew_all()
                break
            except (RedisError, OSError):
                continue
            except Exception:  # who gives up here never shares limits again
                self._unforeseen()
        self._recovering = None
        log.warning("Redis answers: limits are shared again")


def _telling(kind: Any, hear: Callable[[], None]) -> Any:
    """A kind of connection that tells of whatever Redis says: also of the words with which one begins."""

    class Telling(kind):  # type: ignore[misc]
        async def read_response(self, *arguments: Any, **more: Any) -> Any:
            answer = await super().read_response(*arguments, **more)
            hear()
            return answer

    return Telling


def _at_once(want: Want) -> int:
    """What of it is counted when the call begins."""
    return 0 if want.meter.kind.is_held else want.amount


def _seconds(told: tuple[int, int]) -> float:
    return told[0] + told[1] / 1e6
