"""The daily sink: `recordings-YYYY-MM-DD.jsonl`, one line per call in Taco's format, by local date of its end.

A line of the gateway's has one field more, `gateway`, which says whose the call is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llm_proxy.formats import taco
from llm_proxy.formats.call import Call
from llm_proxy.lanes.appending import Appender
from llm_proxy.lanes.deleting import Gone, id_of, whose

_encode = msgspec.json.Encoder().encode


class Daily(Appender):
    """`options`: `folder`, else the folder given."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._folder = Path(options.get("folder") or folder)

    def write(self, calls: Sequence[Call]) -> None:
        days: dict[str, bytearray] = {}
        for call in calls:
            ended = call.row.ended_ns or call.row.started_ns
            day = time.strftime("%Y-%m-%d", time.localtime(ended // 10**9))
            days.setdefault(day, bytearray()).extend(_encode(taco.as_object(call) | whose(call.request)) + b"\n")
        for day, lines in days.items():
            self.append(self._folder / f"recordings-{day}.jsonl", bytes(lines))
        self.remember_last()

    def forget(self, gone: Gone) -> str:
        files = (path for path in sorted(self._folder.glob("recordings-*.jsonl")) if not path.is_symlink())
        return "; ".join(filter(None, [self.take_out(path, lambda line: id_of(line, gone)) for path in files]))

    def close(self) -> None:
        """Nothing is held open."""
