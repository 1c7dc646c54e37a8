"""What a call may use: requests, tokens, streams and money, by the limits of everybody, a user, team, key and alias.

All that fit hold, and a call is counted on all or on none. Tokens and money are estimated before it and settled after
it, also where its caller leaves. Leaves out which limits hold (`limiting.rules`), counting (`limiting.local`,
`limiting.shared`), estimates (`limiting.estimate`) and words (`limiting.words`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import uuid4

from llm_proxy.gateway.costing import Prices
from llm_proxy.gateway.facts import Alias, Attempt, Caller
from llm_proxy.gateway.limiting import words
from llm_proxy.gateway.limiting.estimate import Estimate, Estimates
from llm_proxy.gateway.limiting.local import LocalCounter
from llm_proxy.gateway.limiting.meters import KINDS, Meter, Standing, Subject, Verdict, Want, What, left_of, period
from llm_proxy.gateway.limiting.rules import Rules
from llm_proxy.gateway.limiting.sums import Sums
from llm_proxy.gateway.store.schema import MOST_COST, MOST_TOKENS
from llm_proxy.wire.exposition import Sample, family

if TYPE_CHECKING:
    from llm_proxy.gateway.limiting.shared import SharedCounter
    from llm_proxy.gateway.options import Options, Secrets
    from llm_proxy.gateway.store.database import Store

log = logging.getLogger("llm_proxy.gateway")

NO_LIMIT: Final[Mapping[str, str]] = MappingProxyType({})
_MOST_WARNED: Final = 50_000  # meters of which is remembered that they were told of


class Demand(NamedTuple):
    """What a call asks for. `dialect` is the one its headers are in."""

    dialect: str = ""
    alias: Alias | None = None
    stream: bool = False
    estimate: Estimate | None = None  # none: no tokens


PLAIN: Final = Demand()


class Held:
    """What one call has been let have, until it is closed."""

    __slots__ = ("_attempts", "_id", "_limiter", "_wants", "headers")

    def __init__(self, limiter: Limiter | None, id: str, wants: Sequence[Want], headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._limiter = limiter
        self._id = id
        self._wants = wants
        self._attempts: list[Attempt] = []

    def note(self, attempt: Attempt) -> None:
        """What one attempt of it has used."""
        if self._limiter is not None and attempt.number:
            self._attempts.append(attempt)

    def close(self) -> None:
        """It has ended. Waits for nothing."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.settle(self._id, self._wants, self._attempts)


FREE: Final = Held(None, "", (), NO_LIMIT)  # of whoever is not limited


class Usage(NamedTuple):
    """Of a meter at the moment; `reset` in seconds, until nothing of it counts any more."""

    meter: Meter
    used: int
    held: int
    reset: float


class Limiter:
    """One for a process."""

    def __init__(self, rules: Rules, counter: LocalCounter | SharedCounter, prices: Prices | None = None) -> None:
        self.rules = rules
        self.counter = counter
        self._estimates = Estimates(prices or Prices())
        self._refused: dict[tuple[str, str], int] = {}
        self._warnings: dict[tuple[str, str], int] = {}
        self._warned: dict[str, int] = {}
        self._settling: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Until what machines share can be asked, or for a second: the first calls are to be counted there, too."""
        if not isinstance(self.counter, LocalCounter):
            await self.counter.open()

    async def take(self, caller: Caller, demand: Demand = PLAIN, id: str = "") -> Held:
        """Count a call of his, whose id may be given. Raises Refusal 429."""
        meters = await self.rules.of(caller, demand.alias)
        if not meters:
            return FREE
        wants = await self._wants(meters, demand)
        if not wants:
            return FREE
        id = id or uuid4().hex
        verdict = await self.counter.take(id, wants)
        if not verdict.passed:
            refusal, meter = words.refusal(wants, verdict, demand.dialect)
            _count(self._refused, meter)
            raise refusal
        headers = words.headers(wants, verdict, demand.dialect)
        if near := words.near(wants, verdict.standings):
            headers[words.WARNING] = words.warning(near)
            self._warn(near, verdict, caller)
        held = [want for want in wants if want.meter.kind.is_held]
        return Held(self if held else None, id, held, headers)  # the rest is counted already

    async def look(self, meters: Sequence[Meter]) -> list[Usage]:
        """How much of them is used."""
        if not meters:
            return []
        verdict = await self.counter.look([Want(meter, 0) for meter in meters])
        return [
            Usage(meter, one.used, one.held, left_of(meter.kind.span, verdict.at))
            for meter, one in zip(meters, verdict.standings, strict=True)
        ]

    def settle(self, id: str, wants: Sequence[Want], attempts: Sequence[Attempt]) -> None:
        """A call has ended, having used what its attempts have."""
        if any(want.meter.kind.what is What.SPEND for want in wants) and attempts:
            settling = asyncio.get_running_loop().create_task(self._settled(id, wants, attempts))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
        else:
            self._settle(id, wants, attempts, 0)

    def forget(self) -> None:
        """Something changed in the store."""
        self.rules.forget()

    def metrics(self) -> Iterator[str]:
        """Lines in Prometheus' text format."""
        for name, text, counts in (
            ("limited", "Requests refused by a limit, by which and whose.", self._refused),
            (
                "limit_warnings",
                "Limits of which 80 % were used, once in each span by each process, by which and whose.",
                self._warnings,
            ),
        ):
            # All from the start: a series that begins with 1 has no increase that an alert could see.
            names = ((kind.name, subject) for kind in KINDS for subject in Subject)
            samples = [Sample({"limit": kind, "subject": one}, counts.get((kind, one), 0)) for kind, one in names]
            yield from family(f"llm_proxy_gateway_{name}_total", "counter", text, samples)
        if not isinstance(self.counter, LocalCounter):
            yield from self.counter.metrics()
            text = "Calls whose use was not told to the other machines, because too many waited."
            yield from family("llm_proxy_gateway_limits_lost_total", "counter", text, [Sample({}, self.counter.lost)])

    async def close(self) -> None:
        await asyncio.gather(*self._settling, return_exceptions=True)
        if not isinstance(self.counter, LocalCounter):
            await self.counter.close()

    async def _wants(self, meters: Sequence[Meter], demand: Demand) -> list[Want]:
        """What of these it needs: no tokens and no money where it has no estimate, because it is free."""
        wants = []
        guessed: tuple[int, int] | None = None
        for meter in meters:
            what, need = meter.kind.what, 1
            if what is What.STREAMS:
                if not demand.stream:
                    continue
            elif what is not What.REQUESTS:
                if demand.estimate is None:
                    continue
                if guessed is None:
                    priced = any(one.kind.what is What.SPEND for one in meters)
                    guessed = await self._estimates.of(demand.estimate, priced=priced)
                need = max(guessed[what is What.SPEND], 1)
            wants.append(Want(meter, need))
        return wants

    async def _settled(self, id: str, wants: Sequence[Want], attempts: Sequence[Attempt]) -> None:
        cost = 0
        with suppress(Exception):  # prices are a foreign package's; the usage log tells of it
            cost = await asyncio.to_thread(self._estimates.cost, attempts)
        self._settle(id, wants, attempts, cost)

    def _settle(self, id: str, wants: Sequence[Want], attempts: Sequence[Attempt], cost: int) -> None:
        tokens = sum(attempt.usage.total for attempt in attempts)
        used = {What.TOKENS: min(max(tokens, 0), MOST_TOKENS), What.SPEND: min(cost, MOST_COST)}
        self.counter.settle(id, wants, [used.get(want.meter.kind.what, 0) for want in wants])

    def _warn(self, near: Sequence[tuple[Meter, Standing]], verdict: Verdict, caller: Caller) -> None:
        """A line for each meter, once in its span."""
        for meter, standing in near:
            span = meter.kind.span
            number = period(span, verdict.at) if span.is_calendar else int(verdict.at // 60)
            if self._warned.get(meter.key) == number:
                continue
            if len(self._warned) >= _MOST_WARNED:
                self._warned.clear()
            self._warned[meter.key] = number
            _count(self._warnings, meter)
            used = words.amount(meter.kind.what, standing.taken, meter.most)
            log.warning("80 %% of a limit: %s %d has %s (%s)", meter.subject, meter.id, used, meter.kind.name)


def make(store: Store, options: Options, secrets: Secrets, prices: Prices | None = None) -> Limiter:
    """The one for this machine alone, or with a Redis URL the one that all share. Raises ValueError: it is none."""
    return over(Rules(store, options), LocalCounter(Sums(store)), store, secrets.redis_url, prices)


def over(rules: Rules, alone: LocalCounter, store: Store, redis_url: str, prices: Prices | None = None) -> Limiter:
    """By what counts here alone, or together in that Redis. Raises ValueError."""
    if not redis_url:
        return Limiter(rules, alone, prices)
    from llm_proxy.gateway.limiting.shared import SharedCounter

    return Limiter(rules, SharedCounter(redis_url, alone, store.account(0)), prices)


def _count(counts: dict[tuple[str, str], int], meter: Meter) -> None:
    name = meter.kind.name, str(meter.subject)
    counts[name] = counts.get(name, 0) + 1
