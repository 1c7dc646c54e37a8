"""Live: calls in flight as they go on, and those that have just ended. Also as a stream of server-sent events.

The page is the state as of now; the stream (`/live/events`) tells what changes, each event a small JSON object with the
same fragments of HTML that the page is made of. Leaves out reading the journal (`live.watch`) and sharing (`live.hub`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web

from llm_proxy.dialects.digest import Asked as AskedOf
from llm_proxy.dialects.digest import PartKind
from llm_proxy.explorer.asking import Asked, choice, text
from llm_proxy.explorer.guard import VIEWER
from llm_proxy.explorer.live.call import MS, Words
from llm_proxy.explorer.live.hub import HEARTBEAT, Event, Flight, Hub
from llm_proxy.explorer.page import Extra, Page
from llm_proxy.index.queries import CallRow, Cost, Filter, IndexUnavailable, SessionRow, TookTooLong
from llm_proxy.index.record import Record
from llm_proxy.index.viewer import Viewer
from llm_proxy.records.understood import understand

JUST_FINISHED = 20
NORMAL_DAYS = 7
NORMAL_KEPT = 600.0  # seconds
DAY = 86_400 * 10**9
_MOST_KEPT = 100  # viewers whose normal times are kept

PARAMS = (
    text("project", "Only calls of this project.", many=True),
    text("model", "Only calls of this model.", many=True),
    text("session", "Only calls of this session.", many=True),
)
STREAM = (*PARAMS, choice("only", "Everything, or only where calls begin and end.", "all", "marks"))


@dataclass(frozen=True, slots=True)
class Normal:
    """How long a model takes to its first token, of the last days' calls."""

    first_p50_ms: int
    first_p95_ms: int
    calls: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """A call that is open. `session` is "" until the index has it. `usd` is what it comes to so far by list prices.

    `phase`: sending, waiting, receiving, thinking, text, tool. `output_tokens` are estimated unless `counted`.
    """

    id: str
    session: str
    title: str
    project: str
    model: str
    provider: str
    upstream: str
    method: str
    path: str
    started_ns: int
    phase: str
    tool: str
    first_ms: int | None
    request_bytes: int
    response_bytes: int
    output_tokens: int
    counted: bool
    tokens_per_second: float | None
    usd: Decimal | None
    subscription: bool
    words: tuple[Words, ...]
    normal: Normal | None


@dataclass(frozen=True, slots=True)
class Finished:
    """A call that has just ended. `cost` is None until it is recorded; `trouble` is what went wrong, "" if nothing."""

    id: str
    session: str
    title: str
    project: str
    what: str
    model: str
    ended_ns: int
    total_ms: int | None
    tokens: int | None
    cost: Cost | None
    trouble: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Live:
    """What is in flight, newest first, and what has just ended, newest first. `on`: a daemon is there to be watched."""

    on: bool
    now_ns: int
    calls: tuple[InFlight, ...]
    beyond: int  # further calls in flight that are not followed
    finished: tuple[Finished, ...]
    last_minute_calls: int
    last_minute_cost: Cost


def view(record: Record, asked: Asked, live: Hub) -> Live:
    now = time.time_ns()
    normals = _NORMALS.all(record, asked.viewer)
    seen = (live.shown(one, asked.viewer) for one in live.now(record))
    flights = [one for one in seen if one is not None and _is_wanted(one, asked)]
    rows = list(record.index.calls(Filter(since_ns=now - DAY), newest_first=True, limit=10 * JUST_FINISHED))
    ended = [
        row for row in rows if not row.open and _fits(asked, project=row.project, model=row.model, session=row.session)
    ]
    ended.sort(key=lambda row: -(row.ended_ns or 0))
    minute = record.index.stats(Filter(since_ns=now - 60 * 10**9))
    return Live(
        on=live.on,
        now_ns=now,
        calls=tuple(in_flight(one, normals) for one in reversed(flights)),
        beyond=live.beyond if asked.viewer.sees_everything else 0,
        finished=tuple(_of_row(record, row) for row in ended[:JUST_FINISHED]),
        last_minute_calls=minute[0].calls if minute else 0,
        last_minute_cost=minute[0].cost if minute else Cost(),
    )


def in_flight(flight: Flight, normals: dict[str, Normal]) -> InFlight:
    seen, place = flight.seen, flight.place
    return InFlight(
        id=seen.id,
        session=place.session if place else "",
        title=place.title if place else "",
        project=flight.project,
        model=flight.model,
        provider=seen.provider,
        upstream=seen.upstream,
        method=seen.method,
        path=seen.path,
        started_ns=seen.started_ns,
        phase=seen.phase,
        tool=seen.tool,
        first_ms=seen.first_ms,
        request_bytes=seen.request_bytes,
        response_bytes=seen.response_bytes,
        output_tokens=seen.output,
        counted=seen.counted,
        tokens_per_second=seen.speed,
        usd=flight.usd,
        subscription=seen.subscription,
        words=seen.words,
        normal=normals.get(flight.model),
    )


def finished(flight: Flight) -> Finished:
    """As the stream told it; with `flight.row` as it is recorded."""
    seen, place, row = flight.seen, flight.place, flight.row
    if row is not None:
        return _finished(row, place.title if place else "", seen.did)
    return Finished(
        id=seen.id,
        session=place.session if place else "",
        title=place.title if place else "",
        project=flight.project,
        what=seen.did,
        model=flight.model,
        ended_ns=seen.started_ns + (seen.total_ms or 0) * MS,
        total_ms=seen.total_ms,
        tokens=seen.usage.total if seen.usage else None,
        cost=None,
        trouble=_trouble(seen.failed, seen.status, seen.ending, seen.error, ""),
        failed=seen.failed,
    )


def _of_row(record: Record, row: CallRow) -> Finished:
    sessions = (one for one in record.index.find(row.session, 1) if isinstance(one, SessionRow))
    return _finished(row, next((one.title for one in sessions), ""), _did(record, row))


def _finished(row: CallRow, title: str, did: str) -> Finished:
    spent, plan = (row.usd or Decimal(0)), row.basis == "subscription"
    return Finished(
        id=row.id,
        session=row.session,
        title=title,
        project=row.project,
        what=did or f"{row.method} {row.path}",
        model=row.model,
        ended_ns=row.ended_ns or row.started_ns,
        total_ms=row.total_ms,
        tokens=row.usage.total if row.usage else None,
        cost=Cost(Decimal(0) if plan else spent, spent if plan else Decimal(0), int(row.basis == "unpriced")),
        trouble=_trouble(row.failed, row.status, row.ending, row.error, row.error_type),
        failed=row.failed,
    )


_ENDINGS = {
    "client_gone": "the client left",
    "upstream_failed": "the upstream broke off",
    "timed_out": "nothing came for too long",
    "refused": "refused by this proxy",
    "interrupted": "this proxy was stopped",
}


def _trouble(failed: bool, status: int | None, ending: str, error: str, kind: str) -> str:
    if not failed and ending in ("", "complete"):
        return ""
    code = str(status) if status is not None and status >= 400 else ""
    why = kind or (error if ending in ("", "complete") else _ENDINGS.get(ending, ending))
    return " ".join(filter(None, (code, why)))[:200] or "failed"


def _did(record: Record, row: CallRow) -> str:
    """The tools that an answer calls, else its first words; the request needs no reading for that."""
    entry = record.entries(replace(row, request=None))[1]
    if entry is None:
        return ""
    digest = understand({"method": row.method, "path": row.path}, entry, AskedOf(api=row.api))
    message = digest.last.message
    if message is None:
        return digest.last.error[:120]
    tools = [part.name for part in message.parts if part.kind == PartKind.TOOL_CALL and part.name]
    return ", ".join(dict.fromkeys(tools)) or " ".join(message.text[:200].split())[:120]


# --- which


def _is_wanted(flight: Flight, asked: Asked) -> bool:
    return _fits(
        asked, project=flight.project, model=flight.model, session=flight.place.session if flight.place else ""
    )


def _fits(asked: Asked, **facts: str) -> bool:
    return all(not asked[name] or value in asked[name] for name, value in facts.items())


class _Normals:
    """By model, kept for some minutes: what is normal does not change quickly."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Viewer], tuple[float, dict[str, Normal]]] = {}

    def all(self, record: Record, viewer: Viewer) -> dict[str, Normal]:
        place, now = (str(record.logs), viewer), time.monotonic()
        made, known = self._kept.get(place, (-NORMAL_KEPT, {}))
        if now - made < NORMAL_KEPT:
            return known
        try:
            rows = record.index.stats(Filter(since_ns=time.time_ns() - NORMAL_DAYS * DAY), by="model")
        except TookTooLong:
            return known
        found = {
            row.key: Normal(row.ttfb_p50_ms, row.ttfb_p95_ms, row.calls)
            for row in rows
            if row.key and row.ttfb_p50_ms is not None and row.ttfb_p95_ms is not None
        }
        if len(self._kept) >= _MOST_KEPT:
            self._kept = {}
        self._kept[place] = (now, found)
        return found

    def known(self, logs: str, viewer: Viewer) -> dict[str, Normal]:
        return self._kept.get((logs, viewer), (0.0, {}))[1]


_NORMALS = _Normals()


# --- the stream


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events until the viewer leaves, with ids `epoch-number`; `Last-Event-ID` goes on from there."""
    from llm_proxy.explorer.site import SITE, asked_of

    site = request.app[SITE]
    asked = asked_of(request, "/live/events", STREAM)
    async with site.live.watching(asked.viewer) as welcome:
        if not welcome:
            raise web.HTTPServiceUnavailable(text="too many pages watch already; close some")
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        stream.headers["X-Accel-Buffering"] = "no"
        await stream.prepare(request)
        if request.method == "HEAD":
            return stream
        viewer = _Viewer(site, asked, stream, lambda: _still(request))
        try:
            await viewer.stay(request.headers.get("Last-Event-ID", ""))
        except ConnectionError:  # it has left
            pass
        return stream


async def _still(request: web.Request) -> bool:
    """Whether whoever began a stream may still come in, as the same."""
    from llm_proxy.explorer.site import TEAM

    viewer = request[VIEWER]
    return viewer.sees_everything or await request.app[TEAM].viewer(request) == viewer


class _Viewer:
    """One open stream: its place in the row of events, and which calls its page shows."""

    def __init__(
        self, site: Any, asked: Asked, stream: web.StreamResponse, still: Callable[[], Awaitable[bool]]
    ) -> None:
        self._site = site
        self._still = still
        self._hub: Hub = site.live
        self._asked = asked
        self._stream = stream
        self._shown: set[str] = set()
        self._epoch = ""
        self._number = 0
        self._silent_until = 0.0
        self._marks = asked["only"] == "marks"

    async def stay(self, last: str) -> None:
        await self._write(b"retry: 1000\n\n")
        if self._asked.viewer.sees_everything:
            self._resume(last)
        if self._epoch != self._hub.epoch:
            await self._begin()
        while True:
            # Signs of life come by this viewer's own clock: others' calls do not show by their absence.
            news = await self._hub.news(self._number, max(0.0, self._silent_until - time.monotonic()))
            if not await self._still():  # asked behind the wait, in which somebody may have been shut out
                return
            found = self._hub.since(self._number) if self._epoch == self._hub.epoch else None
            if found is None:
                await self._begin()
            elif news:
                await self._tell(found)
            if time.monotonic() >= self._silent_until:
                await self._write(b": still here\n\n")

    def _resume(self, last: str) -> None:
        epoch, _, number = last.partition("-")
        if epoch == self._hub.epoch and number.isascii() and number.isdigit() and len(number) < 16:
            known = self._hub.since(int(number))
            if known is not None:
                self._epoch, self._number = epoch, int(number)
                self._shown = {flight.seen.id for flight in self._hub.flights}

    async def _begin(self) -> None:
        """Everything as of now: the viewer is new here, or too much has happened since."""
        page = [] if self._marks else await self._now()
        self._epoch, self._number = self._hub.epoch, self._hub.last()
        seen = (self._hub.shown(one, self._asked.viewer) for one in self._hub.flights)
        flights = [one for one in seen if one is not None and _is_wanted(one, self._asked)]
        self._shown = {one.seen.id for one in flights}
        calls = [_mark(one) if self._marks else self._shows(one) for one in reversed(flights)]
        now = time.time_ns() // MS
        facts = {"now_ms": now, "on": self._hub.on, "calls": calls, "finished": page}
        await self._say("hello", facts, self._number)

    async def _now(self) -> list[dict[str, str]]:
        try:
            live = await self._site.ask(self._asked.viewer, lambda record: view(record, self._asked, self._hub))
        except (IndexUnavailable, TookTooLong):
            return []
        return [{"id": one.id, "html": self._row(one)} for one in live.finished]

    async def _tell(self, found: Iterable[Event]) -> None:
        told: list[tuple[int, str, dict[str, Any]]] = []
        for event in found:
            self._number = event.number
            kind, data = self._told(event)
            if told and kind == told[-1][1] == "said" and told[-1][2]["id"] == data["id"]:
                data["words"] = (*told[-1][2]["words"], *data["words"])  # a viewer that lags is told at once
                told.pop()
            if kind:
                told.append((event.number, kind, data))
        for number, kind, data in told:
            await self._say(kind, data, number)

    def _told(self, event: Event) -> tuple[str, dict[str, Any]]:
        """Name and data of what the viewer is told; no name where it is none of its calls."""
        flight, id = self._hub.shown(event.flight, self._asked.viewer), event.flight.seen.id
        if flight is None or not _is_wanted(flight, self._asked):
            return "", {}
        if self._marks:
            return ("", {}) if event.kind == "said" else (event.kind, _mark(flight))
        if event.kind in ("over", "recorded"):
            if event.kind == "over":
                self._shown.discard(id)
            return event.kind, {"id": id, "html": self._row(finished(flight))}
        if id not in self._shown:
            self._shown.add(id)
            return "opened", self._shows(flight)
        if event.kind == "said":
            words = event.words if self._hub.tells(flight, self._asked.viewer) else ()
            return "said", {"id": id, "words": words, **facts(flight)}
        return event.kind, self._shows(flight)

    def _shows(self, flight: Flight) -> dict[str, str]:
        call = in_flight(flight, _NORMALS.known(self._site.options.logs, self._asked.viewer))
        return {"id": call.id, "html": self._site.fragment("live_call.html", self._asked, call=call)}

    def _row(self, one: Finished) -> str:
        return str(self._site.fragment("live_finished.html", self._asked, one=one))

    async def _say(self, name: str, data: dict[str, Any], number: int) -> None:
        # Numbers count everybody's events, so whoever does not see everything begins anew after a break.
        id = f"id: {self._epoch}-{number}\n" if self._asked.viewer.sees_everything else ""
        head = f"{id}event: {name}\ndata: "
        await self._write(head.encode() + _ENCODE(data) + b"\n\n")

    async def _write(self, data: bytes) -> None:
        await self._stream.write(data)
        self._silent_until = time.monotonic() + HEARTBEAT


_ENCODE = msgspec.json.Encoder(decimal_format="number").encode


def _mark(flight: Flight) -> dict[str, Any]:
    """That a call of a session is open, or no longer."""
    return {"id": flight.seen.id, "session": flight.place.session if flight.place else "", "open": not flight.over}


def facts(flight: Flight) -> dict[str, Any]:
    """What changes while a call goes on."""
    seen = flight.seen
    return {
        "phase": seen.phase,
        "tool": seen.tool,
        "first_ms": seen.first_ms,
        "output_tokens": seen.output,
        "counted": seen.counted,
        "tokens_per_second": seen.speed,
        "usd": flight.usd,
        "subscription": seen.subscription,
        "request_bytes": seen.request_bytes,
        "response_bytes": seen.response_bytes,
    }


PAGES = (Page("/live", "live", "Calls in flight, and those that have just ended.", PARAMS, view, with_live=True),)
EXTRAS = (Extra("/live/events", events, "What is in flight, as server-sent events.", STREAM),)
