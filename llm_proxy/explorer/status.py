"""How recording stands, for the bar and the foot of each page: by the keeper's snapshot and the index.

Each is looked at again only after a while, because every page shows it. Leaves out how it looks.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from llm_proxy.explorer import words
from llm_proxy.explorer.options import Options
from llm_proxy.index.queries import IndexUnavailable, TookTooLong
from llm_proxy.index.record import Record
from llm_proxy.index.size import Size, size

SNAPSHOT_EVERY, COUNTED_EVERY = 1.0, 10.0  # seconds
_BEHIND = 64 << 20  # bytes of journal that are not in the log files yet, from which on pages say so

OK, DEGRADED, STOPPED, NONE = "ok", "degraded", "stopped", "none"
# Dot and short words of each.
_SHOWN = {
    OK: ("ok", "recording"),
    DEGRADED: ("warn", "degraded"),
    STOPPED: ("err", "not recording"),
    NONE: ("", "stand-alone"),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """`state`: ok, degraded, stopped, or none where no daemon belongs to this explorer; `reason` in words."""

    state: str
    reason: str


@dataclass(slots=True)
class Status:
    """What the bar and the foot of one page show; `began` is when it was asked for."""

    version: str
    recording: Recording
    size: Size | None
    began: datetime

    @property
    def open(self) -> int:
        """Calls under way now."""
        return self.size.open if self.size is not None else 0

    @property
    def dot(self) -> str:
        return _SHOWN[self.recording.state][0]

    @property
    def short(self) -> str:
        return _SHOWN[self.recording.state][1]

    @property
    def words(self) -> str:
        return self.recording.reason

    @property
    def holds(self) -> str:
        """`1,842 sessions, 20,412 calls, 2.4 GB`; empty where that is not known."""
        if self.size is None:
            return ""
        sessions, calls = (
            f"{count:,} {name}{'' if count == 1 else 's'}"
            for count, name in ((self.size.sessions, "session"), (self.size.calls, "call"))
        )
        return f"{sessions}, {calls}, {words.size(self.size.octets)}"

    def took(self) -> str:
        return words.duration((datetime.now(UTC) - self.began).total_seconds() * 1000)


class Standing:
    """Remembers what was seen last. Any thread may ask; two that look at once only look twice."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._recording = Recording(NONE, "")
        self._looked = self._counted = -1e9
        self._size: Size | None = None

    def status(self, began: datetime, *, outlined: bool = False) -> Status:
        """`outlined`: without how much there is of everybody's, and without words of the machine's."""
        now = time.monotonic()
        if now - self._looked > SNAPSHOT_EVERY:
            self._looked = now
            self._recording = recording(self._options)
        if outlined:
            return Status(self._options.version, Recording(self._recording.state, ""), None, began)
        return Status(self._options.version, self._recording, self._size, began)

    def count(self, record: Record) -> None:
        """Take the opportunity of an open index."""
        now = time.monotonic()
        if now - self._counted > COUNTED_EVERY:
            self._counted = now
            try:
                self._size = size(record.index)
            except (IndexUnavailable, TookTooLong):
                self._size = None


def recording(options: Options) -> Recording:
    """What the keeper last said of itself, if it still runs."""
    if not options.journal:
        if options.socket:
            return Recording(STOPPED, "The journal cannot be opened: calls are carried and not recorded")
        return Recording(NONE, "What stands in the log files; no daemon belongs to this explorer, so nothing is live")
    try:
        told = msgspec.json.decode(Path(options.journal, "keeper.json").read_bytes(), type=_Snapshot)
        if told.pid <= 0 or told.state == "stopped":
            raise ValueError
        os.kill(told.pid, 0)
    except (OSError, ValueError, OverflowError):
        return Recording(DEGRADED, "The keeper is not running; the journal keeps everything until it is")
    if told.state != "ok":
        return Recording(DEGRADED, told.last_error or "The keeper reports trouble")
    if told.lag_bytes > _BEHIND:
        return Recording(DEGRADED, f"The log files are {words.size(told.lag_bytes)} behind; nothing is lost")
    if told.index_trouble:
        return Recording(DEGRADED, f"Everything is recorded, but the index is behind: {told.index_trouble}")
    return Recording(OK, "Every call is recorded")


class _Snapshot(msgspec.Struct):
    """`keeper.json`, as far as it matters here."""

    pid: int
    state: str
    last_error: str = ""
    lag_bytes: int = 0
    index_trouble: str = ""
