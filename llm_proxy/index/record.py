"""The record as it is asked: the open index, and the log files it points into.

Leaves out bringing the index up to date (`ingest`) and the questions themselves (`queries`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_proxy.dialects.digest import Digest
from llm_proxy.index.queries import CallRow, Index
from llm_proxy.records.understood import Entry, understand
from llm_proxy.sinks.log_reader import entry_at


@dataclass(frozen=True, slots=True)
class Record:
    """The open index, and the log folder whose places it names."""

    index: Index
    logs: Path

    def entries(self, call: CallRow) -> tuple[Entry | None, Entry | None]:
        """The request entry and the response entry as they stand in the log; None where there is none (any more)."""
        return self._entry(call.request), self._entry(call.response)

    def digest(self, call: CallRow) -> Digest | None:
        """What a call meant; None where its log has gone."""
        request, response = self.entries(call)
        return understand(request, response) if request is not None else None

    def _entry(self, place: tuple[str, int, int] | None) -> Entry | None:
        if place is None:
            return None
        file, offset, length = place
        try:
            return entry_at(self.logs / file, offset, length)
        except (OSError, ValueError):
            return None
