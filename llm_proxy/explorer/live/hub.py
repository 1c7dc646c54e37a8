"""Hands what is in flight to everybody who watches: one reader of the journal, any number of viewers.

What happens is kept once, in a short row of events; each viewer has a place in it. Who is too slow for that begins anew
with what is true by then, so that nobody waits for anybody. The journal is read only while somebody watches. Leaves out
what a call is (`call`) and how it looks on a page (`pages.live`).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from llm_proxy.explorer.bell import Bell
from llm_proxy.explorer.live.call import OVER, Manner, Seen, Words
from llm_proxy.explorer.live.watch import Change, Watch
from llm_proxy.explorer.options import Options
from llm_proxy.index import threads
from llm_proxy.index.queries import CallRow, IndexUnavailable, SessionRow, TookTooLong
from llm_proxy.index.record import Record
from llm_proxy.index.viewer import FULL, NONE, REDACTED, Viewer
from llm_proxy.records import privacy
from llm_proxy.records.pricing import PriceBook
from llm_proxy.records.redaction import Redactor

VIEWERS = 32
FOR_THE_OWNER = 8  # of them
OF_ONE = 8  # of one account, which must not keep the others out
EVENTS = 2000  # kept for viewers that lag or come back
HEARTBEAT = 15.0  # seconds
LINGER = 20.0  # seconds after the last viewer, so that a reload begins where it was
# Seconds after a call began or ended at which it is looked up in the index: the keeper writes it at about that time.
LOOK_UPS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_PER_LOOK = 20  # calls looked up at a time
_MOST_ENDED = 200  # calls that are over and not recorded yet

Ask = Callable[[Callable[[Record], Any]], Awaitable[Any]]


class Place(NamedTuple):
    """Where a call belongs, as the index knows it."""

    session: str
    seq: int
    title: str
    project: str
    model: str
    whole: bool = True  # the session has no calls but of this call's account


@dataclass(frozen=True, slots=True)
class Flight:
    """A call with what the index knows of it: `place` is None until it does, `row` until the call is recorded."""

    seen: Seen
    place: Place | None = None
    row: CallRow | None = None
    usd: Decimal | None = None  # by list prices, so far

    @property
    def model(self) -> str:
        return self.seen.model or (self.place.model if self.place else "")

    @property
    def project(self) -> str:
        return self.place.project if self.place else ""

    @property
    def over(self) -> bool:
        return self.seen.phase == OVER


class Event(NamedTuple):
    """`kind`: opened, placed, said, over, recorded (the index has it)."""

    number: int
    kind: str
    flight: Flight
    words: tuple[Words, ...] = ()


@dataclass(slots=True)
class _Pending:
    """A call to be looked up in the index, and when next."""

    due: float
    wanted: str  # placed, recorded
    tries: int = 0


class Hub:
    """What is in flight, for the pages and their event streams. `ask` asks the record."""

    def __init__(self, options: Options, bell: Bell, ask: Ask) -> None:
        self.on = bool(options.journal)
        self.epoch = os.urandom(6).hex()
        self._viewers: Counter[str] = Counter()  # by account
        self._bell = bell
        self._ask = ask
        self._redactor = Redactor(options.patterns, lambda kind, secret: 0) if options.redact else None
        self._personal = Redactor((*options.patterns, *privacy.PERSONAL), lambda kind, secret: 0)
        manner = Manner(
            self._redactor, bool(options.patterns), options.metadata_only, options.gateway_privacy, self._personal
        )
        self._watch = Watch(Path(options.journal), manner)
        self._prices = PriceBook()
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._next = 1
        self._flights: dict[str, Flight] = {}
        self._ended: dict[str, Flight] = {}  # not recorded yet
        self._pending: dict[str, _Pending] = {}
        self._news = asyncio.Event()
        self._grown = asyncio.Event()
        self._asked_for = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live")

    # -- for pages

    def now(self, record: Record) -> list[Flight]:
        """What is in flight at this moment, oldest first; from any thread."""
        seen = self._watch.look() if self.on else []
        places = dict(_places(record, [one.id for one in seen]))
        return [self._priced(Flight(one, places[one.id][1] if one.id in places else None)) for one in seen]

    @property
    def flights(self) -> list[Flight]:
        """Oldest first."""
        return list(self._flights.values())

    def tells(self, flight: Flight, viewer: Viewer) -> bool:
        """Whether a viewer may see what is said in a call while it is said: redacted it is seen when it is whole."""
        return viewer.sees(flight.seen.account) == FULL

    def shown(self, flight: Flight, viewer: Viewer) -> Flight | None:
        """The call as a viewer may see it; None where he may not."""
        level = viewer.sees(flight.seen.account)
        if not viewer.sees_everything:
            flight = _apart(flight)
        if level in (NONE, FULL):
            return flight if level == FULL else None
        veil = self._personal.text if level == REDACTED else _nothing
        seen = flight.seen
        seen = replace(seen, tool=veil(seen.tool), error=veil(seen.error), words=(), did=veil(seen.did))
        place, row = flight.place, flight.row
        return replace(
            flight,
            seen=seen,
            place=place._replace(title=veil(place.title)) if place is not None else None,
            row=replace(row, error=veil(row.error)) if row is not None else None,
        )

    @property
    def beyond(self) -> int:
        return self._watch.beyond

    # -- for viewers

    @property
    def viewers(self) -> int:
        return self._viewers.total()

    @asynccontextmanager
    async def watching(self, viewer: Viewer) -> AsyncIterator[bool]:
        """For as long as a viewer stays; False where there are too many already, of all or of the same account."""
        account = viewer.account
        if self.viewers >= VIEWERS - (FOR_THE_OWNER if account else 0) or (
            account and self._viewers[account] >= OF_ONE
        ):
            yield False
            return
        self._viewers[account] += 1
        try:
            self._start()
            yield True
        finally:
            self._viewers[account] -= 1
            if not self._viewers[account]:
                del self._viewers[account]

    def last(self) -> int:
        """Number of the last event."""
        return self._next - 1

    def since(self, number: int) -> list[Event] | None:
        """The events behind that one; None where not all of them are there any more."""
        if number >= self._next:
            return None
        oldest = self._events[0].number if self._events else self._next
        if number + 1 < oldest:
            return None
        return [event for event in self._events if event.number > number]

    async def news(self, number: int, limit: float = HEARTBEAT) -> bool:
        """Until there are events behind that one; False after `limit` seconds without."""
        if self._next - 1 != number:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._news.wait()
        return self._next - 1 != number

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._watch.close()

    # -- reading

    def _start(self) -> None:
        if self.on and not any(not task.done() for task in self._tasks):
            self._grown.set()
            chores = self._listen(), self._follow(), self._find(), self._leave()
            self._tasks = [asyncio.create_task(chore) for chore in chores]

    async def _leave(self) -> None:
        """When nobody has watched for a while, nothing is read any more."""
        alone = 0
        while alone < 2:
            await asyncio.sleep(LINGER / 2)
            alone = 0 if self.viewers else alone + 1
        # No viewer can come in between: from here on nothing waits.
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._thread.submit(self._watch.forget)
        self._begin_anew()

    async def _listen(self) -> None:
        """Rings set a flag, so that none is missed while the journal is read; a lost one costs a heartbeat."""
        while True:
            await self._bell.wait(HEARTBEAT)
            self._grown.set()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, lambda: self._prices.data)  # loading them takes its time
        generation = self._watch.generation
        while True:
            self._grown.clear()
            while (changes := await loop.run_in_executor(self._thread, self._watch.step)) is not None:
                if self._watch.generation != generation:
                    generation = self._watch.generation
                    self._begin_anew()
                for change in changes:
                    self._take(change, loop.time())
            await self._grown.wait()

    def _begin_anew(self) -> None:
        self.epoch = os.urandom(6).hex()
        self._events.clear()
        self._flights.clear()
        self._pending.clear()
        self._next += 1
        self._ring()

    def _take(self, change: Change, now: float) -> None:
        seen = change.seen
        known = self._flights.get(seen.id)
        flight = self._priced(replace(known, seen=seen) if known else Flight(seen))
        if known is None and not change.opened:
            return
        if change.opened:
            self._seek(seen.id, now, "placed")
        if change.opened or known is None:
            self._tell("opened", flight, ())  # its words stand in it
        elif not flight.over or change.words:
            self._tell("said", flight, change.words)
        if flight.over:
            self._flights.pop(seen.id, None)
            self._seek(seen.id, now, "recorded")
            self._tell("over", flight, ())
            self._ended[seen.id] = flight
            if len(self._ended) > _MOST_ENDED:
                self._ended.pop(next(iter(self._ended)))
        else:
            self._flights[seen.id] = flight

    def _seek(self, id: str, now: float, wanted: str) -> None:
        self._pending[id] = _Pending(now + LOOK_UPS[0], wanted)
        self._asked_for.set()

    def _priced(self, flight: Flight) -> Flight:
        seen = flight.seen
        if seen.usage is None or not flight.model:
            return flight
        price = self._prices.price(
            provider=seen.provider,
            upstream=seen.upstream,
            model=flight.model,
            usages=[seen.usage],
            when_ns=seen.started_ns,
            service_tier=seen.tier,
            subscription=seen.subscription,
        )
        return replace(flight, usd=price.usd)

    def _tell(self, kind: str, flight: Flight, words: tuple[Words, ...]) -> None:
        self._events.append(Event(self._next, kind, flight, words))
        self._next += 1
        self._ring()

    def _ring(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # -- the index

    async def _find(self) -> None:
        """Look up calls that the keeper should have written by now; text does not wait for that."""
        loop = asyncio.get_running_loop()
        while True:
            self._asked_for.clear()
            due = min((one.due for one in self._pending.values()), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._asked_for.wait()
            ids = [id for id, one in self._pending.items() if one.due <= loop.time()][:_PER_LOOK]
            if ids:
                await self._look_up(ids, loop)

    async def _look_up(self, ids: list[str], loop: asyncio.AbstractEventLoop) -> None:
        try:
            found = await self._ask(lambda record: dict(_places(record, ids)))
        except (IndexUnavailable, TookTooLong):
            found = {}
        for id in ids:
            self._found(id, found.get(id), loop.time())

    def _found(self, id: str, found: tuple[CallRow, Place] | None, now: float) -> None:
        pending = self._pending.get(id)
        if pending is None:
            return
        flight = self._flights.get(id) or self._ended.get(id)
        done = found is not None and (pending.wanted == "placed" or not found[0].open)
        if flight is not None and found is not None and done:
            row, place = found
            flight = replace(flight, place=place, row=None if row.open else row)
            if id in self._flights:
                self._flights[id] = flight
            self._tell(pending.wanted, flight, ())
        pending.tries += 1
        if done or flight is None or pending.tries >= len(LOOK_UPS):
            self._pending.pop(id, None)
            self._ended.pop(id, None)
        else:
            pending.due = now + LOOK_UPS[pending.tries]


def _nothing(text: str) -> str:
    return ""


def _apart(flight: Flight) -> Flight:
    """Without what another account's calls of the same session say of it."""
    place, row = flight.place, flight.row
    if place is None or place.whole:
        return flight
    row = replace(row, project="", program="") if row is not None else None
    return replace(flight, place=place._replace(title="", project=""), row=row)


def _places(record: Record, ids: Sequence[str]) -> Iterator[tuple[str, tuple[CallRow, Place]]]:
    titles: dict[str, str] = {}
    for id in ids:
        row = next((one for one in record.index.find(id, 1) if isinstance(one, CallRow)), None)
        if row is None:
            continue
        if row.session not in titles:
            sessions = (one for one in record.index.find(row.session, 1) if isinstance(one, SessionRow))
            titles[row.session] = next((one.title for one in sessions), "")
        whole = not row.account or threads.is_of_one(record.index, row.session, row.account)
        yield id, (row, Place(row.session, row.seq, titles[row.session], row.project, row.model, whole))
