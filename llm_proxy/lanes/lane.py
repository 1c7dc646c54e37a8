"""One sink's lane: takes calls from the outbox in order, passes them on, remembers how far it is.

A lane that is slow, full or broken holds up nobody else: it has a thread, a cursor and its troubles for itself. What
the world refuses (a full disk, a dead server) is tried again, as long as it takes; a call that the sink itself cannot
take is tried three times and parked, so that those behind it go on. Leaves out what sinks do (`sink`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_proxy.formats.call import Call
from llm_proxy.lanes.reading import Gone, Reader
from llm_proxy.lanes.sink import Refused, Sink
from llm_proxy.sinks.outbox import Outbox, Waiting

BATCH = 100  # calls handed to a sink at once
BATCH_BYTES = 16 << 20  # of log lines; a single larger call is a batch of its own
ATTEMPTS = 3  # at a call that the sink itself cannot take
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds


@dataclass(slots=True)
class State:
    """How a lane stands, for `--status` and `/health/sinks`. `state` is ok, retrying, or broken."""

    state: str = "ok"
    waiting: int = 0  # calls
    since: float = 0.0  # when it last had passed on everything; 0: it has now
    passed: int = 0
    parked: int = 0
    gone: int = 0  # their log was deleted before they could be passed on
    last_error: str = ""
    last_error_at: float = 0.0


class Cursors:
    """How far each lane is, and what its sink must remember. One small SQLite file. Raises sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with closing(self._open()) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS lanes"
                " (sink TEXT PRIMARY KEY, position INTEGER NOT NULL, ledger TEXT NOT NULL) WITHOUT ROWID"
            )

    def of(self, sink: str) -> tuple[int, dict[str, Any]] | None:
        with closing(self._open()) as db:
            row = db.execute("SELECT position, ledger FROM lanes WHERE sink = ?", (sink,)).fetchone()
        return (int(row[0]), json.loads(row[1])) if row else None

    def set(self, sink: str, position: int, ledger: dict[str, Any]) -> None:
        with closing(self._open()) as db:
            db.execute("INSERT OR REPLACE INTO lanes VALUES (?, ?, ?)", (sink, position, json.dumps(ledger)))

    def known(self) -> bool:
        """Whether any sink has ever had a lane here."""
        with closing(self._open()) as db:
            return db.execute("SELECT 1 FROM lanes").fetchone() is not None

    def lowest(self, sinks: Sequence[str]) -> int:
        """What all of these have passed on."""
        positions = [known[0] for sink in sinks if (known := self.of(sink)) is not None]
        return min(positions, default=0)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30.0, isolation_level=None)


@dataclass
class Lane:
    """Runs in a thread of its own. `news` is set when there may be calls, `stop` when it is to end."""

    name: str
    sink: Sink
    outbox: Outbox
    cursors: Cursors
    parking: Path
    all_calls: bool = False  # a new sink begins with what is there, not with what comes from now on
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.news = threading.Event()
        self._stop = threading.Event()
        self._reader = Reader()
        self._thread = threading.Thread(target=self._run, name=f"lane {self.name}", daemon=True)
        self._attempts = 0
        self._one_by_one = 0

    def start(self) -> None:
        self._thread.start()

    def finish(self, deadline: float) -> None:
        """Pass on what is there, until `deadline` (monotonic); what remains is passed on after the next start."""
        self._stop.set()
        self.news.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def standing(self) -> dict[str, Any]:
        """How it stands; what came while the sink takes its time over others is counted too."""
        told = asdict(self.state)
        known = self.cursors.of(self.name) if told["since"] else None
        return told | ({"waiting": self.outbox.count(known[0])} if known is not None else {})

    # -- in the thread

    def _run(self) -> None:
        pause = FIRST_PAUSE
        position: int | None = None
        while True:
            try:
                if position is None:
                    position = self._begin()
                reached = self._step(position)
            except Exception as error:  # whatever it is: this lane's trouble alone
                self._trouble(error)
                if self._stop.wait(pause):
                    return
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self.state.state = "ok"
            if reached is not None:
                position = reached
            elif self._stop.is_set():
                self.sink.close()
                return
            else:
                self.news.wait()
                self.news.clear()

    def _begin(self) -> int:
        """Where this lane is."""
        known = self.cursors.of(self.name)
        if known is None:
            known = 0 if self.all_calls else self.outbox.last(), {}
            self.cursors.set(self.name, *known)
        resume = getattr(self.sink, "resume", None)
        if resume is not None:
            resume(known[1])
        return known[0]

    def _step(self, position: int) -> int | None:
        """Pass on the next calls; how far that went, None where there is nothing."""
        found = self.outbox.after(position, 1 if self._one_by_one else BATCH)
        if not found:
            self.state.waiting, self.state.since = 0, 0.0
            return None
        self.state.waiting = len(found) if len(found) < BATCH else self.outbox.count(position)
        self.state.since = self.state.since or time.time()
        rows = _fitting(found)
        calls = [call for row in rows if (call := self._read(row)) is not None]
        try:
            if calls:
                self.sink.write(calls)
        except (OSError, Refused):  # the world's fault: again, as long as it takes
            raise
        except Exception as error:
            self._poisoned(rows, error)
        else:
            self.state.passed += len(calls)
            self._attempts = 0
            self._one_by_one = max(0, self._one_by_one - len(rows))
        position = rows[-1].number
        self.cursors.set(self.name, position, getattr(self.sink, "ledger", {}))
        return position

    def _read(self, row: Waiting) -> Call | None:
        try:
            return self._reader.call(row)
        except Gone:
            self.state.gone += 1
            return None

    def _poisoned(self, rows: Sequence[Waiting], error: Exception) -> None:
        """A call that the sink cannot take. Raises `error` again until it is known which one, and that it is so."""
        if len(rows) > 1:
            self._one_by_one = len(rows)
            raise error
        self._attempts += 1
        if self._attempts < ATTEMPTS:
            raise error
        self._attempts = 0
        self._one_by_one = max(0, self._one_by_one - 1)
        self._park(rows[0], error)

    def _park(self, row: Waiting, error: Exception) -> None:
        self.state.parked += 1
        self._trouble(error)
        self.parking.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = {"sink": self.name, "error": repr(error)[:1000], "at": time.time()}
        told |= {"logs": row.response.logs, "file": row.response.file, "offset": row.response.offset}
        path = self.parking / f"{self.name}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "ab") as file:
            file.write(json.dumps(told).encode() + b"\n")

    def _trouble(self, error: Exception) -> None:
        self.state.state = "retrying"
        self.state.last_error = f"{error}" if isinstance(error, OSError | Refused) else repr(error)
        self.state.last_error_at = time.time()


def _fitting(rows: Sequence[Waiting]) -> Sequence[Waiting]:
    """The first of these whose lines are not too much at once."""
    size = 0
    for number, row in enumerate(rows):
        size += row.response.length + (row.request.length if row.request else 0)
        if size > BATCH_BYTES and number:
            return rows[:number]
    return rows
