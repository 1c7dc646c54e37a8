"""The record as it is asked: the open index, and the log files it points into.

Leaves out bringing the index up to date (`ingest`) and the questions themselves (`queries`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llm_proxy.dialects.digest import Digest
from llm_proxy.index.bodies import Bodies, Local
from llm_proxy.index.queries import CallRow, Index, Place
from llm_proxy.index.viewer import METADATA, NONE, REDACTED
from llm_proxy.records.redaction import Redactor
from llm_proxy.records.understood import Entry, understand


@dataclass(frozen=True, slots=True)
class Record:
    """The open index, and the log folder whose places it names; `bodies` where they are other machines' too. What it
    gives is what the index's viewer may see; `redactor` takes secrets out where that is redacted, and without one
    nothing of it is given.
    """

    index: Index
    logs: Path
    redactor: Redactor | None = None
    bodies: Bodies | None = None
    until: float | None = None  # monotonic seconds: how long entries of other machines are waited for

    def withholds(self, call: CallRow) -> bool:
        """Whether the viewer may see that there was this call, and nothing that was said."""
        level = self.index.viewer.sees(call.account)
        return level in (NONE, METADATA) or (level == REDACTED and self.redactor is None)

    def request(self, call: CallRow) -> Entry | None:
        """The request entry as it stands in the log; None where there is none (any more), or it is withheld."""
        return self._entry(call, call.request)

    def response(self, call: CallRow) -> Entry | None:
        return self._entry(call, call.response)

    def entries(self, call: CallRow) -> tuple[Entry | None, Entry | None]:
        return self.request(call), self.response(call)

    def digest(self, call: CallRow) -> Digest | None:
        """What a call meant; None where its log has gone."""
        request, response = self.entries(call)
        return understand(request, response) if request is not None else None

    def machines(self, files: Iterable[str]) -> tuple[str, ...]:
        """That have these files; none where the record is one machine's."""
        return tuple(dict.fromkeys(file.partition("/")[0] for file in files)) if self.bodies is not None else ()

    def missing(self, call: CallRow) -> str:
        """Why there is no entry of a call, in words."""
        place = call.request or call.response
        machine = place.file.partition("/")[0] if place is not None and self.bodies is not None else ""
        if not machine:
            return "The log of this call is no longer there."
        return f"The log of this call is on the machine {machine}, from which it cannot be had just now."

    def _entry(self, call: CallRow, place: tuple[str, int, int] | None) -> Entry | None:
        if place is None or self.withholds(call):
            return None
        try:
            found = (self.bodies or Local(self.logs)).entry(Place(*place), self.until)
        except (OSError, ValueError):
            return None
        if self.redactor is not None and self.index.viewer.sees(call.account) == REDACTED:
            return self.redactor.entry(found)
        return found
