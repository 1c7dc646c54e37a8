"""How far each lane is, and what its sink must remember: one small SQLite file, a transaction per batch.

Leaves out who asks (`lane`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

KEPT = 30  # days for which a note stays that is not made again

_TABLES = """
    CREATE TABLE IF NOT EXISTS lanes
        (sink TEXT PRIMARY KEY, position INTEGER NOT NULL, ledger TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS notes
        (sink TEXT NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL, day INTEGER NOT NULL, PRIMARY KEY (sink, key))
        WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS notes_by_day ON notes (sink, day)
"""


class Cursors:
    """`ledger` is written whole each time, `notes` are told one by one. Raises sqlite3.Error. For any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with closing(self._open()) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_TABLES)

    def of(self, sink: str) -> tuple[int, dict[str, Any]] | None:
        with closing(self._open()) as db:
            row = db.execute("SELECT position, ledger FROM lanes WHERE sink = ?", (sink,)).fetchone()
        return (int(row[0]), json.loads(row[1])) if row else None

    def set(self, sink: str, position: int, ledger: dict[str, Any], notes: Mapping[str, str] | None = None) -> None:
        """All of it or nothing."""
        day = int(time.time() // 86400)
        with closing(self._open()) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT OR REPLACE INTO lanes VALUES (?, ?, ?)", (sink, position, json.dumps(ledger)))
            if notes:
                rows = ((sink, key, text, day) for key, text in notes.items())
                db.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", rows)
                # Here alone: calls that are offered again after a crash find the notes that they found before.
                db.execute("DELETE FROM notes WHERE sink = ? AND day < ?", (sink, day - KEPT))
            db.execute("COMMIT")

    def note(self, sink: str, key: str) -> str | None:
        with closing(self._open()) as db:
            row = db.execute("SELECT text FROM notes WHERE sink = ? AND key = ?", (sink, key)).fetchone()
        return str(row[0]) if row else None

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
