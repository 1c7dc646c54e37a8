"""Meters in this process: for a machine alone, and for one whose Redis does not answer.

Nothing waits between looking and counting, so limits are exact. What a day or month has already held is the store's to
say, at first and then every few seconds, because other processes may write there too. Leaves out how machines share
meters (`limiting.shared`), which has the same rules in Redis.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from llm_proxy.gateway.limiting.meters import MINUTE, Meter, Span, Standing, Verdict, Want, left_of, period
from llm_proxy.gateway.limiting.sums import LATER, LOOKUP, Sums

REFRESH: Final = 5.0  # seconds after which the store is asked again, while calls go on by what is known
STALE: Final = 30.0  # seconds after which a call waits for what it says
_SHARE: Final = 20.0  # of the time it is let alone, the store spends at most one part of this with adding up
_MOST: Final = 50_000  # meters remembered, before those that hold nothing are forgotten
_SOON: Final = 1.0  # seconds: nobody knows when a call that is under way ends


class _Count:
    """Of one meter. `times` are (monotonic, amount) of the last minute; `number` is the calendar's period, -1: none."""

    __slots__ = ("asked", "asking", "held", "holds", "number", "sum", "times", "took")

    def __init__(self) -> None:
        self.times: deque[tuple[float, int]] = deque()
        self.number = -1
        self.sum = 0
        self.holds: dict[str, int] = {}
        self.held = 0
        self.asked = -math.inf
        self.took = 0.0
        self.asking: asyncio.Task[None] | None = None

    def add(self, at: float, amount: int, span: Span) -> None:
        if span is Span.MINUTE and amount:
            self.times.append((at, amount))
        self.sum += amount

    def forget(self, until: float) -> None:
        while self.times and self.times[0][0] <= until:
            self.sum -= self.times.popleft()[1]

    def hold(self, id: str, amount: int) -> None:
        self.held += amount - self.holds.get(id, 0)
        self.holds[id] = amount

    def let_go(self, id: str) -> None:
        self.held -= self.holds.pop(id, 0)

    def wait(self, now: float, over: int) -> float:
        """Seconds until so much of the last minute has left."""
        for at, amount in self.times:
            over -= amount
            if over <= 0:
                return at + MINUTE - now
        return _SOON  # it is held


class LocalCounter:
    """`clock` is monotonic, `wall` seconds since 1970."""

    def __init__(
        self, sums: Sums, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.sums = sums
        self._clock = clock
        self._wall = wall
        self._counts: dict[str, _Count] = {}

    async def take(self, id: str, wants: Sequence[Want]) -> Verdict:
        return await self._verdict(wants, id)

    async def look(self, wants: Sequence[Want]) -> Verdict:
        return await self._verdict(wants, "")

    def settle(self, id: str, wants: Sequence[Want], used: Sequence[int]) -> None:
        now, wall = self._clock(), self._wall()
        for want, amount in zip(wants, used, strict=True):
            meter = want.meter
            count = self._count(meter)
            count.let_go(id)
            span = meter.kind.span
            if span is Span.NOW or (meter.kind.is_calendar and count.number != period(span, wall)):
                continue
            count.add(now, amount, span)

    def mirror(self, id: str, wants: Sequence[Want], verdict: Verdict) -> None:
        """What those who share have counted: it is known here when they cannot be asked."""
        now = self._clock()
        for want, standing in zip(wants, verdict.standings, strict=True):
            meter = want.meter
            count, span = self._count(meter), meter.kind.span
            if span.is_calendar:
                number = period(span, verdict.at)  # answers come in any order
                count.sum = max(standing.used, count.sum) if count.number == number else standing.used
                count.number, count.asked = number, now
            elif span is Span.MINUTE and not meter.kind.is_held and verdict.passed:
                count.forget(now - MINUTE)
                count.add(now, want.amount, span)
            if meter.kind.is_held and verdict.passed:
                count.hold(id, want.amount)

    def counted(self, meter: Meter, number: int) -> int:
        """What is known here of a calendar's meter in the `period` of that number."""
        count = self._counts.get(meter.key)
        return count.sum if count is not None and count.number == number else 0

    async def _verdict(self, wants: Sequence[Want], id: str) -> Verdict:
        wall = self._wall()
        calendars = [want.meter for want in wants if want.meter.kind.is_calendar]
        while unknown := [meter for meter in calendars if self._is_unknown(meter, wall)]:
            await asyncio.gather(*(self._learn(meter, wall) for meter in unknown))
            wall = self._wall()
        # From here on nothing waits, so no other call comes between looking and counting.
        now = self._clock()
        counted = [(want, self._count(want.meter)) for want in wants]
        standings = [_standing(want, count, now, wall) for want, count in counted]
        passed = not any(standing.wait for standing in standings)
        if passed and id:
            standings = [_taken(id, want, count, now) for want, count in counted]
        return Verdict(passed, tuple(standings), wall)

    def _count(self, meter: Meter) -> _Count:
        key = meter.key
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= _MOST:
                self._forget_idle()
            count = self._counts[key] = _Count()
        return count

    def _forget_idle(self) -> None:
        """What a calendar's meter has counted, the store knows."""
        before = self._clock() - MINUTE
        for key, count in list(self._counts.items()):
            if not count.holds and (not count.times or count.times[-1][0] <= before) and count.asked <= before:
                del self._counts[key]

    def _is_unknown(self, meter: Meter, wall: float) -> bool:
        """Whether it has to be waited for. What may have grown old is asked for, and waited for by nobody."""
        count = self._count(meter)
        if count.number != period(meter.kind.span, wall):
            return True
        age, seldom = self._clock() - count.asked, count.took * _SHARE
        if count.asking is None and age >= max(REFRESH, seldom):
            count.asking = asyncio.create_task(self._refreshed(meter, count, count.number))
        return age >= max(STALE, 2 * seldom)

    async def _learn(self, meter: Meter, wall: float) -> None:
        number = period(meter.kind.span, wall)
        count = self._count(meter)
        if count.number == number and count.asking is not None:
            await asyncio.wait({count.asking}, timeout=LOOKUP)
            count.asked = self._clock()  # what is known goes on, also where the store is still adding up
            return
        told = await self.sums.of(meter, number)
        count = self._count(meter)
        if count.number != number:
            count.number, count.sum = number, told.amount
            count.asked, count.took = self._clock(), told.took if told.known else 0.0

    async def _refreshed(self, meter: Meter, count: _Count, number: int) -> None:
        """What was counted here is in the store within about a second: the larger one knows more."""
        try:
            told = await self.sums.of(meter, number, LATER)
            if told.known and count.number == number:
                count.sum = max(count.sum, told.amount)
            count.took = told.took
        finally:
            count.asked = self._clock()
            count.asking = None


def _standing(want: Want, count: _Count, now: float, wall: float) -> Standing:
    kind = want.meter.kind
    if kind.span is Span.MINUTE:
        count.forget(now - MINUTE)
    over = count.sum + count.held + want.amount - want.meter.most
    if not want.need or over <= 0:
        return Standing(count.sum, count.held)
    if kind.is_calendar:
        return Standing(count.sum, count.held, left_of(kind.span, wall))
    return Standing(count.sum, count.held, count.wait(now, over))


def _taken(id: str, want: Want, count: _Count, now: float) -> Standing:
    kind = want.meter.kind
    if kind.is_held:
        count.hold(id, want.amount)
    else:
        count.add(now, want.amount, kind.span)
    return Standing(count.sum, count.held)
