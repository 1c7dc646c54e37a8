"""Brings the index up to date with the log files. Live and rebuild are the same path from lines to rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llm_proxy.index.lines import Line


class Progress(NamedTuple):
    """How far a rebuild has come: bytes of log files as they lie on disk, and calls found."""

    bytes: int
    total_bytes: int
    calls: int


class Indexer:
    """The index at `path` of the log files below `logs_root`. Raises sqlite3.Error, OSError; can be called again after.

    Any number of processes may take lines: each call is one transaction, and looks first where the index stands.
    """

    def __init__(self, path: Path, logs_root: Path) -> None:
        raise NotImplementedError

    def close(self) -> None: ...

    def take(self, lines: Sequence[Line]) -> None:
        """Lines just written, those of a file in order. Where the index is not at a line's offset the file is read."""

    def catch_up(self, file: str) -> None:
        """What has become of one file: it grew, or is another, or gone."""

    def catch_up_all(self) -> int:
        """Every file, also those that are gone. Gives the number of files that were not up to date."""
        return 0

    def rebuild(self, progress: Callable[[Progress], None] | None = None, workers: int | None = None) -> int:
        """All rows anew from the log files; until that is done the old ones serve. Gives the number of calls."""
        return 0
