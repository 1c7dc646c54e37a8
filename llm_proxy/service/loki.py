"""Sends what was recorded before to Loki: the same lines as the lane's, oldest first, in streams of their own.

Streams of the backfill have the label `backfill`, the hour of their entries: Loki refuses what is an hour behind the
newest of its stream, so that what is sent again, or after what came later, would be refused; and what happens now must
not wait for what was. Leaves out what lines say (`formats.loki`) and how they are pushed (`lanes.loki`).
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from heapq import heappop, heappush
from pathlib import Path
from uuid import UUID

from llm_proxy import paths, settings
from llm_proxy.errors import BrokenOff, ConfigError
from llm_proxy.formats import loki as format
from llm_proxy.formats.call import Call
from llm_proxy.index.queries import CallRow, Filter
from llm_proxy.index.record import Record
from llm_proxy.lanes import loki as lane
from llm_proxy.lanes.cursors import Cursors
from llm_proxy.lanes.reading import Gone, Reader
from llm_proxy.lanes.sink import Refused, Unusable
from llm_proxy.service import ask, passing, state
from llm_proxy.sinks import log_reader
from llm_proxy.sinks.outbox import Posted, Waiting

RATE = 2e6  # bytes a second, before compression: half of what Loki takes of a tenant unless it is told otherwise
LIMIT_DAYS = 7  # Loki's `reject_old_samples_max_age`, unless it is told otherwise
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds
_PROGRESS = "loki-backfill.json"
_SESSIONS = 2048  # whose tracks are remembered


@dataclass(slots=True)
class Outcome:
    """`calls` and `entries` that were sent, or would be; what was not: entries that are `too_old` for Loki or `refused`
    for another reason (`why`), calls that were sent `before` and those whose log has `gone`. `until`: seconds."""

    calls: int = 0
    entries: int = 0
    too_old: int = 0
    refused: int = 0
    why: str = ""
    before: int = 0
    gone: int = 0
    live: float = 0.0  # since when calls are sent as they end; 0: they never were
    on: bool = False  # whether they are now


def backfill(
    wanted: Filter,
    where: ask.Places,
    configured: settings.Settings,
    *,
    dry_run: bool = False,
    again: bool = False,
    told: Callable[[int], None] = lambda number: None,
) -> Outcome:
    """Send the calls of that time; without an end to it, those before the lane began. `told` how many are done.

    Raises ConfigError, IndexTrouble, BrokenOff.
    """
    try:
        plan = lane.plan(passing.loki(configured))
    except Unusable as error:
        raise ConfigError(str(error)) from None
    outcome = Outcome(live=live_since(), on=passing.LOKI in passing.sinks(configured))
    live_ns = int(outcome.live * 1e9) if wanted.until_ns is None and outcome.live else None
    wanted = replace(wanted, until_ns=wanted.until_ns or live_ns)
    if not dry_run:
        state.prepare(paths.state_folder())
    noted = Noted(plan, wanted)
    sender = _Counter(plan, outcome) if dry_run else _Sender(plan, outcome, noted)
    with ask.record(where) as record:
        tracks = _Tracks(record, Reader(), where.logs, plan.common)
        for number, row in enumerate(by_end(record.index.calls(wanted)), 1):
            told(number)
            if live_ns is not None and _end(row)[0] >= live_ns:  # the lane's
                break
            if not again and noted.has(row):
                outcome.before += 1
                continue
            call = tracks.call(row)
            if call is None:
                outcome.gone += 1
                continue
            lines, track = format.lines(call, tracks.before(row), plan.common)
            tracks.keep(row, track)
            sender.add(row, lane.entries([dated(line) for line in lines], call))
        sender.finish()
    return outcome


def dated(line: format.Line) -> format.Line:
    """In a stream of its hour."""
    hour = datetime.fromtimestamp(line.ts_ns // 10**9, UTC).strftime("%Y-%m-%dT%H")
    return replace(line, labels=tuple(sorted((*line.labels, ("backfill", hour)))))


def by_end(rows: Iterable[CallRow]) -> Iterator[CallRow]:
    """Calls that come by their beginning, by their end; those that are not over yet are left out.

    Held are only those that go on while others begin.
    """
    held: list[tuple[int, str, CallRow]] = []
    for row in rows:
        while held and held[0][0] <= row.started_ns:
            yield heappop(held)[2]
        if row.response is not None:
            heappush(held, (*_end(row), row))
    while held:
        yield heappop(held)[2]


def _end(row: CallRow) -> tuple[int, str]:
    return row.ended_ns or row.started_ns, row.id


def live_since() -> float:
    """When the lane of all usual daemons began, in seconds since 1970; 0 where it never did."""
    path = Path(paths.state_folder(), "sinks.db")
    if not path.exists():
        return 0.0
    try:
        known = Cursors(path).of(passing.LOKI)
    except (sqlite3.Error, OSError):
        return 0.0
    since = known[1].get("since") if known is not None else None
    return float(since) if isinstance(since, int | float) else 0.0


class _Tracks:
    """What must be known of sessions; counted from a session's first call, whenever it is asked."""

    def __init__(self, record: Record, reader: Reader, logs: Path, common: format.Common) -> None:
        self._record = record
        self._reader = reader
        self._logs = str(logs)
        self._common = common
        self._known: OrderedDict[str, format.Track] = OrderedDict()

    def call(self, row: CallRow) -> Call | None:
        """As the lane reads it; None where its log has gone."""
        if row.response is None:
            return None
        id = UUID(row.id).bytes

        def posted(kind: str, place: tuple[str, int, int]) -> Posted:
            file, offset, length = place
            plain = file.removesuffix(log_reader.COMPRESSED.removeprefix(log_reader.PLAIN))
            return Posted(id, kind, self._logs, plain, offset, length)

        request = None if row.request is None else posted("request", row.request)
        try:
            return self._reader.call(Waiting(0, posted("response", row.response), request))
        except (Gone, OSError):
            return None

    def before(self, row: CallRow) -> format.Track:
        track = self._known.get(row.session)
        if track is None:
            track = format.Track()
            earlier = (
                one for one in self._record.index.calls_of(row.session) if one.response and _end(one) < _end(row)
            )
            for one in sorted(earlier, key=_end):
                if (call := self.call(one)) is not None:
                    _, track = format.lines(call, track, self._common)
        return track

    def keep(self, row: CallRow, track: format.Track) -> None:
        self._known[row.session] = track
        self._known.move_to_end(row.session)
        if len(self._known) > _SESSIONS:
            self._known.popitem(last=False)


class Noted:
    """How far a backfill to this place has come: what began at `from` or later has been sent if it ended by `at`.

    `at` is the end of a call that was sent: calls that end later may not have been in the log yet.
    """

    def __init__(self, plan: lane.Plan, wanted: Filter) -> None:
        whose = (plan.poster.url, plan.poster.headers.get("X-Scope-OrgID"), plan.common)
        self._place = sha256(repr(whose).encode()).hexdigest()[:16]
        self._from = wanted.since_ns or 0
        self._until = wanted.until_ns
        self._at = (0, "")
        told = self._read()
        begins, at = told.get("from"), told.get("at")
        if told.get("place") != self._place or not isinstance(begins, int) or not isinstance(at, list):
            return
        if len(at) == 2 and isinstance(at[0], int) and begins <= self._from <= at[0]:
            self._from, self._at = begins, (at[0], str(at[1]))

    def has(self, row: CallRow) -> bool:
        return _end(row) <= self._at

    def sent(self, row: CallRow) -> None:
        """No further than the range goes: others that began behind it may have ended before this one."""
        end = _end(row) if self._until is None else min(_end(row), (self._until, ""))
        self._at = max(self._at, end)
        told = {"place": self._place, "from": self._from, "at": self._at}
        state.write(paths.state_folder(), _PROGRESS, json.dumps(told))

    def _read(self) -> dict[str, object]:
        try:
            told = json.loads(state.read(paths.state_folder(), _PROGRESS) or "{}")
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}


class _Counter:
    """Sends nothing."""

    def __init__(self, plan: lane.Plan, outcome: Outcome) -> None:
        self._outcome = outcome
        self._oldest = time.time_ns() - LIMIT_DAYS * 86400 * 10**9

    def add(self, row: CallRow, entries: list[lane.Entry]) -> None:
        self._outcome.calls += 1
        self._outcome.entries += len(entries)
        self._outcome.too_old += sum(entry.ts_ns < self._oldest for entry in entries)

    def finish(self) -> None:
        """Nothing is held."""


class _Sender:
    """Pushes what one push holds, no faster than RATE; gives up after as many failures as the lane tolerates."""

    def __init__(self, plan: lane.Plan, outcome: Outcome, noted: Noted) -> None:
        self._pusher = lane.Pusher(plan)
        self._patience = plan.retry_max
        self._outcome = outcome
        self._noted = noted
        self._held: list[lane.Entry] = []
        self._rows: list[CallRow] = []
        self._size = 0

    def add(self, row: CallRow, entries: list[lane.Entry]) -> None:
        size = sum(entry.size for entry in entries)
        if self._held and not self._pusher.fits(len(self._held) + len(entries), self._size + size):
            self.finish()
        self._held += entries
        self._rows.append(row)
        self._size += size

    def finish(self) -> None:
        """Send what is held."""
        if not self._rows:
            return
        began = time.monotonic()
        rejected = self._pushed()
        self._outcome.calls += len(self._rows)
        self._outcome.entries += len(self._held) - len(rejected)
        self._outcome.too_old += sum(one.too_old for one in rejected)
        self._outcome.refused += sum(not one.too_old for one in rejected)
        self._outcome.why = next((one.why for one in rejected if not one.too_old), self._outcome.why)
        self._noted.sent(self._rows[-1])
        time.sleep(max(0.0, self._size / RATE - (time.monotonic() - began)))
        self._held, self._rows, self._size = [], [], 0

    def _pushed(self) -> list[lane.Rejected]:
        failures = 0
        while True:
            try:
                return self._pusher.push(self._held)
            except (Refused, OSError) as error:
                failures += 1
                if failures >= self._patience or getattr(error, "lasting", False):
                    self._pusher.close()
                    raise BrokenOff(
                        f"{error}; {self._outcome.calls} calls were sent, the next run goes on there"
                    ) from error
                pause = min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.0)
                time.sleep(max(pause, getattr(error, "after", 0.0)))
