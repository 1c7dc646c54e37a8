"""Keeps the index in step with the log files, and never lets it stand in their way.

What is written is handed on at once. Where the index refuses, or the journal fills faster than it can be emptied, lines
are let go and the index catches up from the files later, a little at a time. Leaves out what the index holds (`index`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llm_proxy.index.ingest import Indexer
from llm_proxy.index.lines import Line
from llm_proxy.index.scrubbing import remove_aside, scrub

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds after a failure
SLICE = 0.25  # seconds of catching up while the journal waits


class Indexing:
    """The index of one keeper. Nothing here raises; `trouble` is why the index is behind, "" where nothing is wrong."""

    def __init__(self, path: str, logs: Path) -> None:
        """`path` "" is no index."""
        self.trouble = ""
        self._path = path
        self._logs = logs
        self._indexer: Indexer | None = None
        self._behind = True
        self._next_try = 0.0
        self._pause = FIRST_PAUSE

    @property
    def state(self) -> str:
        if not self._path:
            return "off"
        return "failing" if self.trouble else "behind" if self._behind else "ok"

    def take(self, lines: Sequence[Line], hurry: bool) -> None:
        """Lines just written. In a `hurry` they are left to be read from the files."""
        if self._path and lines and not (hurry or self._waits()):
            self._try(lambda: self._open().take(lines))
        elif lines:
            self._behind = True

    def catch_up(self, waiting: Callable[[], bool]) -> None:
        """Take in what was missed; a slice of it as soon as something else is `waiting`."""
        if self._path and self._behind and not self._waits():
            end = time.monotonic() + SLICE
            self._try(lambda: self._catch_up(lambda: time.monotonic() < end or not waiting()))

    def look_again(self) -> None:
        """Files may have changed by other hands than ours."""
        self._behind = True

    def forget(self, found: bool = True) -> bool:
        """Lines may have been taken out of files: nothing of them is left when this is True; else try again.

        Where none were `found`, the index is as it was.
        """
        if not self._path:
            return True
        self._try(self._forget if found else lambda: remove_aside(Path(self._path)))
        return not self.trouble and not (found and self._behind)

    def close(self) -> None:
        indexer, self._indexer = self._indexer, None
        if indexer is not None:
            indexer.close()

    def _open(self) -> Indexer:
        if self._indexer is None:
            self._indexer = Indexer(Path(self._path), self._logs)
        return self._indexer

    def _forget(self) -> None:
        """Only where all is caught up the file is cleaned: until then a slice at a time, and calls between them."""
        end = time.monotonic() + SLICE
        self._catch_up(lambda: time.monotonic() < end)
        if not self._behind:
            scrub(Path(self._path))

    def _catch_up(self, go_on: Callable[[], bool]) -> None:
        self._behind = not self._open().catch_up_all(go_on)

    def _waits(self) -> bool:
        return time.monotonic() < self._next_try

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is: the log files are the record, and go on without the index
            self.trouble = f"the index {self._path} is behind: {error!r}"
            self._behind = True
            self._next_try = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            with suppress(Exception):
                self.close()
        else:
            self.trouble, self._pause = "", FIRST_PAUSE
            self._behind |= self._indexer is not None and not self._indexer.complete
