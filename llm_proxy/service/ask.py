"""Opens the record for questions: the index, brought up to date first, and the log folder it tells of.

Leaves out the questions (`index.queries`) and how answers look (`cli`).
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_proxy import paths, settings
from llm_proxy.errors import IndexTrouble
from llm_proxy.index.database import Unusable
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import IndexUnavailable, open_index
from llm_proxy.index.record import Record


@dataclass(frozen=True, slots=True)
class Places:
    """Where the logs and their index are."""

    logs: Path
    index: Path


def places(environ: Mapping[str, str], config: str | None = None, log_dir: str = "") -> Places:
    """As the daemon finds them. Raises ConfigError."""
    flags = {"log_dir": log_dir} if log_dir else {}
    logs = Path(settings.load(flags, environ, config).settings.log_dir)
    return Places(logs, Path(paths.index_file(str(logs))))


@contextmanager
def record(where: Places) -> Iterator[Record]:
    """The record, with all that stands in the logs now.

    Where nothing can be written, a disk being full, it is what the index knows, and that is said. Raises IndexTrouble.
    """
    trouble = ""
    try:
        freshen(where)
    except (sqlite3.Error, OSError, Unusable) as error:
        trouble = f"the index cannot be brought up to date: {error}"
    try:
        with open_index(where.index) as index:
            if trouble:
                print(f"llm-proxy: {trouble}; the newest calls may be missing", file=sys.stderr)
            yield Record(index, where.logs)
    except IndexUnavailable as error:
        raise IndexTrouble(trouble or f"{error}; llm-proxy reindex makes a new index from the logs") from error


def freshen(where: Places) -> None:
    """Take in what no keeper has indexed yet. Raises sqlite3.Error, OSError."""
    indexer = Indexer(where.index, where.logs)
    try:
        indexer.catch_up_all()
    finally:
        indexer.close()
