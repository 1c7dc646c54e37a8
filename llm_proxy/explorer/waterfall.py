"""Where the time of a call went: its phases, each read of its stream, each block of the answer, each silence.

Pure. Times are milliseconds after the request began to arrive; where a lane lies is percent of its width. A silence
longer than half of the call is drawn shortened. Leaves out markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from llm_proxy.dialects.reading import count, mapping
from llm_proxy.explorer import words
from llm_proxy.explorer.events import Block, Event, silences
from llm_proxy.records.understood import Entry

LONG_MS = 1000  # a silence of which is said how long it was
_SHORTENED = 14.0  # percent of the width that a shortened silence takes
_MOST_TICKS = 1500  # what a screen can show; more are thinned out evenly
_MOST_LANES = 40
_STEPS = (1, 2, 5)  # times a power of ten, of the axis

Kind = Literal["connect", "send", "wait", "stream", "thinking", "text", "tool", "other"]


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing came between `from_ms` and `until_ms`. `inside`: the block it fell into, "" between two."""

    from_ms: int
    until_ms: int
    inside: str = ""

    @property
    def length_ms(self) -> int:
        return self.until_ms - self.from_ms


@dataclass(frozen=True, slots=True)
class Lane:
    """One line. `bars` are (from, until) in milliseconds; `took_ms` is None where it is not known, with `note` why."""

    kind: Kind
    name: str
    note: str
    took_ms: int | None
    bars: tuple[tuple[int, int], ...] = ()
    ticks: tuple[int, ...] = ()
    silences: tuple[Silence, ...] = ()


@dataclass(frozen=True, slots=True)
class Waterfall:
    """`shortened` is the silence drawn shorter than it was, if any; `lanes` in the order in which they began."""

    total_ms: int
    lanes: tuple[Lane, ...]
    events: int
    pieces: int
    longest: Silence | None
    long_silences: int
    shortened: Silence | None = None
    left_out: int = 0  # lanes
    axis: tuple[tuple[str, int], ...] = field(default=())  # (label, milliseconds)

    def x(self, ms: float) -> float:
        """Percent of the width."""
        total, cut = max(1, self.total_ms), self.shortened
        ms = min(max(0, ms), total)
        if cut is None:
            return 100 * ms / total
        rest = max(1, total - cut.length_ms)
        before = min(ms, cut.from_ms) + max(0, ms - cut.until_ms)
        within = min(max(0, ms - cut.from_ms), cut.length_ms)
        return (100 - _SHORTENED) * before / rest + _SHORTENED * within / cut.length_ms

    def width(self, from_ms: float, until_ms: float) -> float:
        """Percent of the width; never so little that it cannot be seen."""
        return max(0.25, self.x(until_ms) - self.x(from_ms))


def waterfall(request: Entry | None, response: Entry | None, events: Sequence[Event]) -> Waterfall | None:
    """None where the log does not tell how long the call took: it is open, or of a program that did not say."""
    timing = mapping((response or {}).get("timing"))
    if response is None or "total_ms" not in timing:
        return None
    total = max(count(timing["total_ms"]), max((event.at_ms or 0 for event in events), default=0))
    head = count(timing.get("ttfb_ms"))
    long = _silences(events)
    blocks = list(_blocks(events, long))
    lanes = [*_phases(request or {}, response, timing, total, head), *_stream(response, events, total, head, long)]
    longest = max(long, key=lambda one: one.length_ms, default=None)
    wait = Silence(0, head)
    # Waiting is the whole story of a call that does not stream: nothing would become clearer.
    shortened = next((one for one in (longest, wait) if events and one and one.length_ms * 2 > total), None)
    return Waterfall(
        total_ms=total,
        lanes=(*lanes, *blocks[:_MOST_LANES]),
        events=len(events),
        pieces=len({event.piece for event in events if event.at_ms is not None}),
        longest=longest,
        long_silences=len(long),
        shortened=shortened,
        left_out=max(0, len(blocks) - _MOST_LANES),
        axis=tuple(_axis(total, shortened)),
    )


def _phases(request: Entry, response: Entry, timing: Entry, total: int, head: int) -> Iterable[Lane]:
    answered = response.get("status") is not None
    sent = min(count(timing.get("request_ms")), total)
    wait = head if answered else total
    if response.get("connection") == "reused":
        yield Lane("connect", "Connect", "reused", 0, ((0, 0),))
    elif response.get("connection") == "new" or response.get("retried") is True:
        again = "again, the first had died" if response.get("retried") is True else "new"
        ready = min(count(timing.get("connect_ms")), wait) if "connect_ms" in timing else None
        yield Lane("connect", "Connect", again, ready, ((0, ready),) if ready is not None else ())
    size = count(request.get("size"))
    if "request_ms" in timing:
        yield Lane("send", "Request arrived", words.size(size), sent, ((0, sent),))
    elif size:
        yield Lane("send", "Request arrived", words.size(size), None)
    start = min(sent, wait)
    yield Lane("wait", "Waiting for first byte", "" if answered else "none came", wait - start, ((start, wait),))


def _stream(
    response: Entry, events: Sequence[Event], total: int, head: int, long: tuple[Silence, ...]
) -> Iterable[Lane]:
    if response.get("status") is None:
        return
    size = words.size(count(response.get("size")))
    if not any(event.at_ms is not None for event in events):
        yield Lane("stream", "Response", size, total - head, ((head, total),))
        return
    ticks = list(dict.fromkeys(event.at_ms for event in events if event.at_ms is not None))
    pieces = len({event.piece for event in events})
    step = -(-len(ticks) // _MOST_TICKS)
    note = f"{pieces} piece{'' if pieces == 1 else 's'}, {size}"
    yield Lane("stream", "Stream", note, total - head, (), tuple(ticks[::step]), long)


def _silences(events: Sequence[Event]) -> tuple[Silence, ...]:
    return tuple(Silence(start, end, _inside(events, end)) for start, end in silences(events, LONG_MS))


def _inside(events: Sequence[Event], until: int) -> str:
    """The block that was open when it ended: the event after the silence goes on with it."""
    names: dict[str, str] = {}
    before = ""
    for event in events:
        place = event.delta.place
        if event.at_ms == until:
            return names.get(place, "") if place and place == before else ""
        if place:
            before = place
            names[place] = names.get(place) or event.delta.name or event.delta.kind
    return ""


_NAMES: dict[Block, str] = {"thinking": "thinking", "text": "text", "tool": "tool", "other": "block"}


def _blocks(events: Sequence[Event], long: Sequence[Silence]) -> Iterable[Lane]:
    """A lane for each part of the answer, cut where it was silent for long."""
    parts: dict[str, list[Event]] = {}
    for event in events:
        if event.delta.place and event.at_ms is not None:
            parts.setdefault(event.delta.place, []).append(event)
    for part in parts.values():
        times = [event.at_ms for event in part if event.at_ms is not None]
        about: Block = next((one.delta.block for one in part if one.delta.block != "other"), "other")
        name = next((one.delta.name for one in part if one.delta.name), _NAMES.get(about, "block"))
        said = sum(len(one.delta.text) for one in part if "signature" not in one.delta.kind)
        inside = tuple(one for one in long if times[0] <= one.from_ms and one.until_ms <= times[-1])
        note = f"{said:,} character{'' if said == 1 else 's'}" if said else ""
        yield Lane(
            about or "other", name, note, times[-1] - times[0], tuple(_between(times[0], times[-1], inside)), (), inside
        )


def _between(start: int, end: int, holes: Sequence[Silence]) -> Iterable[tuple[int, int]]:
    edges = [start, *(edge for hole in holes for edge in (hole.from_ms, hole.until_ms)), end]
    return [(one, other) for number, (one, other) in enumerate(pairwise(edges)) if number % 2 == 0]


def _axis(total: int, shortened: Silence | None) -> Iterable[tuple[str, int]]:
    """A few round times, by the time that is drawn to scale. None lies in what is shortened."""
    step = _step(total - (shortened.length_ms if shortened is not None else 0))
    spans = [(0, total)] if shortened is None else [(0, shortened.from_ms), (shortened.until_ms, total)]
    for start, end in spans:
        for at in range(-(-start // step) * step, end + 1, step):
            if at <= total - step // 3:  # the total itself stands at the end
                yield (f"{at / 1000:g} s" if total >= 1000 else f"{at} ms"), at


def _step(span: int) -> int:
    power = 1
    while True:
        for times in _STEPS:
            if span / (times * power) <= 6:
                return times * power
        power *= 10
