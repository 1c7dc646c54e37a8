"""Takes what was deleted from the index out of its file too: pages that are free, and words of texts that are gone.

SQLite leaves deleted rows where they were until their place is needed, the search index until it is merged, and an
index that was moved aside stays beside the new one. Leaves out which rows go (`ingest`).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from llm_proxy.index import database

PATIENCE = 2000  # milliseconds for whoever reads just now
_SIDECARS = ("", "-wal", "-shm")


class Busy(Exception):
    """Somebody reads the index without an end. What was deleted may still be in its file; to be tried again."""


def remove_aside(path: Path) -> None:
    """What an index was before it was begun anew. Raises OSError."""
    for suffix in _SIDECARS:
        path.with_name(f"{path.name}.aside{suffix}").unlink(missing_ok=True)


def scrub(path: Path) -> None:
    """Nobody need stop using the index. Raises Busy, sqlite3.Error, OSError, database.Unusable."""
    remove_aside(path)
    if not path.exists():
        return
    with closing(database.open_for_writing(path)) as db, database.told():
        db.execute(f"PRAGMA busy_timeout = {PATIENCE}")
        db.execute("INSERT INTO words (words) VALUES ('optimize')")
        db.execute("VACUUM")
        (busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise Busy(f"{path} is being read")
