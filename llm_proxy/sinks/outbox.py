"""What the keeper has written and the lanes have not passed on yet: one row per line, in the order in which it settled.

A table in the keeper's own database, filled in the transaction that settles the lines, so that no crash loses or
repeats one. Holds places, no content. Leaves out who passes them on (`lanes`).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

HALVES = ("request", "response")
# AUTOINCREMENT: a number is never given again, whatever has been deleted.
TABLE = """
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT, call BLOB NOT NULL, type TEXT NOT NULL, logs TEXT NOT NULL,
        file TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL
    );
    CREATE INDEX outbox_by_call ON outbox (call)
"""
LANES = "ALTER TABLE outbox ADD COLUMN lanes TEXT NOT NULL DEFAULT ''"
POST = "INSERT INTO outbox (call, type, logs, file, offset, length, lanes) VALUES (?, ?, ?, ?, ?, ?, ?)"
BUSY_TIMEOUT = 30.0  # seconds


class Posted(NamedTuple):
    """A line and where it stands: `logs` is the log folder, `file` relative to it. `lanes` says for whose lanes."""

    call: bytes  # the id's 16
    type: str
    logs: str
    file: str
    offset: int
    length: int
    lanes: str = ""


class Waiting(NamedTuple):
    """A call that is over. `number` grows; `request` is None where its line was written before lanes were told."""

    number: int
    response: Posted
    request: Posted | None


class Outbox:
    """The table as the lanes of one name see it. Raises sqlite3.Error; one thread at a time."""

    def __init__(self, path: Path, lanes: str = "") -> None:
        self._path = path
        self._lanes = lanes
        self._made: set[str] = set()

    def last(self) -> int:
        """The highest number ever given; 0 where the keeper has not made the table yet."""
        if not self._has("id"):
            return 0
        with closing(self._open()) as db:
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
            return int(row[0]) if row else 0

    def after(self, number: int, limit: int) -> list[Waiting]:
        """The next calls behind `number`, in order."""
        query = """
            SELECT r.id, r.call, r.type, r.logs, r.file, r.offset, r.length,
                q.call, q.type, q.logs, q.file, q.offset, q.length
            FROM outbox r LEFT JOIN outbox q ON q.call = r.call AND q.type = 'request'
            WHERE r.type = 'response' AND r.id > ? AND r.lanes = ? GROUP BY r.id ORDER BY r.id LIMIT ?
        """
        if not self._has("lanes"):
            return []
        with closing(self._open()) as db:
            rows = db.execute(query, (number, self._lanes, limit)).fetchall()
        return [Waiting(row[0], Posted(*row[1:7]), Posted(*row[7:13]) if row[7] else None) for row in rows]

    def count(self, number: int) -> int:
        """How many calls wait behind `number`."""
        with closing(self._open()) as db:
            (count,) = db.execute(
                "SELECT count(*) FROM outbox WHERE type = 'response' AND id > ? AND lanes = ?", (number, self._lanes)
            ).fetchone()
            return int(count)

    def forget(self, number: int) -> None:
        """Calls up to `number` have been passed on by everyone; their requests are not needed any more either."""
        done = "SELECT call FROM outbox WHERE type = 'response' AND id <= ? AND lanes = ?"
        with closing(self._open()) as db:
            db.execute(f"DELETE FROM outbox WHERE call IN ({done})", (number, self._lanes))

    def _has(self, column: str) -> bool:
        """Whether the table is there, and as it is today: that is the keeper's business, which starts beside us."""
        if column not in self._made and self._path.exists():
            with closing(self._open()) as db:
                self._made |= {name for (name,) in db.execute("SELECT name FROM pragma_table_info('outbox')")}
        return column in self._made

    def _open(self) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
