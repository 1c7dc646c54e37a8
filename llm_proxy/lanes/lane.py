"""One sink's lane: takes calls from the outbox in order, passes them on, remembers how far it is.

A lane that is slow, full or broken holds up nobody else: it has a thread, a cursor and its troubles for itself. What
the world refuses (a full disk, a dead server) is tried again, as long as it takes; a call that the sink itself cannot
take is tried three times and parked, so that those behind it go on. Leaves out what sinks do (`sink`).
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_proxy.formats.call import Call
from llm_proxy.lanes.cursors import Cursors
from llm_proxy.lanes.deleting import Deletions
from llm_proxy.lanes.options import DELETING
from llm_proxy.lanes.reading import Gone, Reader
from llm_proxy.lanes.sink import Declined, Pace, Refused, Sink
from llm_proxy.sinks.outbox import Outbox, Waiting

ATTEMPTS = 3  # at a call that the sink itself cannot take
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 60.0  # seconds; a random quarter is taken off
_REMEMBERED = 256  # notes that are not looked up again


@dataclass(slots=True)
class State:
    """How a lane stands, for `--status` and `/health/sinks`. `state` is ok, retrying, or broken."""

    state: str = "ok"
    waiting: int = 0  # calls
    since: float = 0.0  # when it last had passed on everything; 0: it has now
    passed: int = 0
    parked: int = 0
    gone: int = 0  # their log was deleted before they could be passed on
    retries: int = 0  # how often something had to be offered again
    last_error: str = ""
    last_error_at: float = 0.0


class Parking:
    """What cannot be passed on, told in a file; where it stands in the logs, not what it says."""

    def __init__(self, folder: Path, sink: str) -> None:
        self._folder = folder
        self._sink = sink

    def add(self, row: Waiting, error: str, what: Mapping[str, Any]) -> None:
        told = {"sink": self._sink, "error": error[:1000], "at": time.time(), **what}
        told |= {"logs": row.response.logs, "file": row.response.file, "offset": row.response.offset}
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{self._sink}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "ab") as file:
            file.write(json.dumps(told).encode() + b"\n")


class Desk:
    """Notes and what is put aside, until the calls count as passed on."""

    def __init__(self, sink: str, cursors: Cursors) -> None:
        self._sink = sink
        self._cursors = cursors
        self._known: OrderedDict[str, str | None] = OrderedDict()
        self.notes: dict[str, str] = {}
        self.aside: list[tuple[Call, str, Mapping[str, Any]]] = []

    def note(self, key: str) -> str | None:
        if key in self.notes:
            return self.notes[key]
        if key not in self._known:
            self._remember(key, self._cursors.note(self._sink, key))
        return self._known[key]

    def keep(self, key: str, text: str) -> None:
        self.notes[key] = text

    def put_aside(self, call: Call, error: str, what: Mapping[str, Any]) -> None:
        self.aside.append((call, error, what))

    def clear(self, *, held: bool = False) -> None:
        """What was kept is forgotten, or where `held` it stands in the database now."""
        if held:
            for key, text in self.notes.items():
                self._remember(key, text)
        self.notes = {}
        self.aside = []

    def _remember(self, key: str, text: str | None) -> None:
        self._known[key] = text
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


@dataclass
class Lane:
    """Runs in a thread of its own. `news` is set when there may be calls, `stop` when it is to end."""

    name: str
    sink: Sink
    outbox: Outbox
    cursors: Cursors
    parking: Path
    all_calls: bool = False  # a new sink begins with what is there, not with what comes from now on
    deletions: Deletions = field(default_factory=Deletions)
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.news = threading.Event()
        self._stop = threading.Event()
        self._reader = Reader()
        self._thread = threading.Thread(target=self._run, name=f"lane {self.name}", daemon=True)
        self._pace: Pace = getattr(self.sink, "pace", Pace())
        self._desk = Desk(self.name, self.cursors)
        self._parking = Parking(self.parking, self.name)
        self._attempts = 0
        self._failures = 0  # in a row
        self._one_by_one = 0
        self._gathers_until = 0.0

    def start(self) -> None:
        self._thread.start()

    def finish(self, deadline: float) -> None:
        """Pass on what is there, until `deadline` (monotonic); what remains is passed on after the next start."""
        self._stop.set()
        self.news.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def standing(self) -> dict[str, Any]:
        """How it stands; what came while the sink takes its time over others is counted too."""
        told = asdict(self.state) | _of_its_own(self.sink)
        known = self.cursors.of(self.name) if told["since"] else None
        return told | ({"waiting": self.outbox.count(known[0])} if known is not None else {})

    # -- in the thread

    def _run(self) -> None:
        position: int | None = None
        while True:
            try:
                if position is None:
                    position = self._begin()
                reached = self._step(position)
                position = position if reached is None else reached
                self._forget(position)  # behind a step: what a killed one has written is known now
                if reached is None and not self._gathers_until:
                    self._tend()
            except Exception as error:  # whatever it is: this lane's trouble alone
                self._desk.clear()
                self._trouble(error)
                if self._stop.is_set():
                    return
                self._stop.wait(self._pause(error))
                continue
            if reached is not None:
                continue
            if self._stop.is_set():
                self.sink.close()
                return
            self.news.wait(max(0.0, self._gathers_until - time.monotonic()) if self._gathers_until else None)
            self.news.clear()

    def _begin(self) -> int:
        """Where this lane is. A new sink's place is taken before it says since when it gets calls: none is nobody's."""
        known = self.cursors.of(self.name)
        begins = known[0] if known is not None else 0 if self.all_calls else self.outbox.last()
        attend = getattr(self.sink, "attend", None)
        if attend is not None:
            attend(self._desk)
        resume = getattr(self.sink, "resume", None)
        if resume is not None:
            resume(known[1] if known is not None else {})
        if known is None:
            self.cursors.set(self.name, begins, getattr(self.sink, "ledger", {}))
        return begins

    def _step(self, position: int) -> int | None:
        """Pass on the next calls; how far that went, None where there is nothing, or too little yet."""
        rows = self._next(position)
        if not rows:
            return None
        found = [(row, self._read(row)) for row in rows]
        calls = [call for _, call in found if call is not None]
        taken = passed = len(calls)
        try:
            if calls:
                said = self.sink.write(calls)
                taken = passed = taken if said is None else max(1, said)
        except (OSError, Refused):  # the world's fault: again, as long as it takes
            raise
        except Exception as error:
            self._poisoned(rows, error)
            passed = 0
        else:
            self._attempts = 0
            self._one_by_one = max(0, self._one_by_one - len(rows))
        reached = self._done(_first(found, taken))
        self._failures, self.state.state = 0, "ok"
        self.state.passed += passed
        return reached

    def _forget(self, position: int) -> None:
        """Be rid of what users want to be deleted. Its log has gone, so that nothing of it is still to come."""
        forget = getattr(self.sink, "forget", None) if self.name in DELETING else None
        if forget is None or self._stop.is_set() or not (asked := self.deletions.asked()):
            return
        left = forget(self.deletions.gone(asked))
        self.cursors.set(self.name, position, getattr(self.sink, "ledger", {}))
        self.deletions.answer(asked, left if isinstance(left, str) else "")

    def _tend(self) -> None:
        """Nothing waits: what the sink does by itself."""
        tend = getattr(self.sink, "tend", None)
        if tend is not None and not self._stop.is_set():
            tend()
        self._failures, self.state.state = 0, "ok"

    def _next(self, position: int) -> Sequence[Waiting]:
        """A batch. Nothing where there is nothing, or not enough and the time for more is not over."""
        limit = 1 if self._one_by_one else self._pace.calls
        found = self.outbox.after(position, limit)
        rows = _fitting(found, self._pace.octets)
        if not found:
            self.state.waiting, self.state.since, self._gathers_until = 0, 0.0, 0.0
            return ()
        now = time.monotonic()
        self.state.since = self.state.since or time.time()
        self.state.waiting = len(found)
        self._gathers_until = self._gathers_until or now + self._pace.gather
        full = len(found) == limit or len(rows) < len(found)
        if not full and not self._failures and not self._stop.is_set() and now < self._gathers_until:
            return ()
        self._gathers_until = 0.0
        return rows

    def _done(self, found: Sequence[tuple[Waiting, Call | None]]) -> int:
        """These are done with: from here on nobody asks for them again."""
        position = found[-1][0].number
        places = {id(call): row for row, call in found}
        for call, error, what in self._desk.aside:
            self._parking.add(places[id(call)], error, what)
        self.cursors.set(self.name, position, getattr(self.sink, "ledger", {}), self._desk.notes)
        if self._desk.aside:
            self._tell(self._desk.aside[-1][1])
        self.state.parked += len(self._desk.aside)
        self.state.gone += sum(call is None for _, call in found)
        self._desk.clear(held=True)
        return position

    def _read(self, row: Waiting) -> Call | None:
        try:
            return self._reader.call(row)
        except Gone:
            return None

    def _poisoned(self, rows: Sequence[Waiting], error: Exception) -> None:
        """A call that the sink cannot take. Raises `error` again until it is known which one, and that it is so."""
        self._desk.clear()
        if len(rows) > 1:
            self._one_by_one = len(rows)
            raise error
        self._attempts += 1
        if self._attempts < ATTEMPTS:
            raise error
        self._attempts = 0
        self._one_by_one = max(0, self._one_by_one - 1)
        self._parking.add(rows[0], _words(error), {})
        self.state.parked += 1
        self._tell(_words(error))

    def _trouble(self, error: Exception) -> None:
        self._failures += 1
        self.state.retries += 1
        if self._failures > self._pace.tolerated or getattr(error, "lasting", False):
            self.state.state = "retrying"
        self._tell(_words(error))

    def _tell(self, error: str) -> None:
        self.state.last_error = error
        self.state.last_error_at = time.time()

    def _pause(self, error: Exception) -> float:
        """Seconds until the next attempt: twice as many each time, and not the same for all who wait for one server."""
        growing = FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16)
        return max(min(growing, LONGEST_PAUSE) * random.uniform(0.75, 1.0), getattr(error, "after", 0.0))


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | Refused | Declined) else repr(error)


def _of_its_own(sink: Sink) -> dict[str, Any]:
    """What a sink says itself. A class of somebody's may mean something else by these names."""
    counted, warning = getattr(sink, "counted", None), getattr(sink, "warning", None)
    told: dict[str, Any] = {}
    if isinstance(counted, dict):
        told["counted"] = {str(name): number for name, number in dict(counted).items() if isinstance(number, int)}
    if isinstance(warning, str):
        told["warning"] = warning
    return told


def _first(found: Sequence[tuple[Waiting, Call | None]], taken: int) -> Sequence[tuple[Waiting, Call | None]]:
    """Up to the call of that number, with those after it that have no log any more."""
    for number, (_, call) in enumerate(found):
        if call is not None:
            if not taken:
                return found[:number]
            taken -= 1
    return found


def _fitting(rows: Sequence[Waiting], octets: int) -> Sequence[Waiting]:
    """The first of these whose lines are not too much at once; a single larger one is a batch of its own."""
    size = 0
    for number, row in enumerate(rows):
        size += row.response.length + (row.request.length if row.request else 0)
        if size > octets and number:
            return rows[:number]
    return rows
