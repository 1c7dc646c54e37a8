"""The CSV sink: one row per call, `METHOD,URL,"REQUEST","RESPONSE"` unless other columns are asked for.

RFC 4180 but for the line end, which is `\\n` as the log it replaces has it. Bodies are decoded. Leaves out who makes
the file smaller: it grows, and may be moved or emptied at any time. Who wants his calls deleted has his rows taken out
where they have a cell with the call's `id`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from llm_proxy.formats.call import Call
from llm_proxy.lanes.appending import Appender, Unreadable
from llm_proxy.lanes.deleting import Gone
from llm_proxy.sinks.log_reader import LONGEST_LINE

# What a cell may tell.
COLUMNS: dict[str, Callable[[Call], str]] = {
    "method": lambda call: call.row.method,
    "url": lambda call: call.url,
    "request": lambda call: call.request_body.decode("utf-8", "replace"),
    "response": lambda call: call.response_body.decode("utf-8", "replace"),
    "time": lambda call: call.started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    "status": lambda call: "" if call.row.status is None else str(call.row.status),
    "ending": lambda call: call.row.ending,
    "error": lambda call: call.row.error,
    "provider": lambda call: call.row.provider,
    "model": lambda call: call.row.model,
    "input_tokens": lambda call: _count(call, "prompt"),
    "output_tokens": lambda call: _count(call, "output"),
    "tokens": lambda call: _count(call, "total"),
    "cost": lambda call: "" if call.row.usd is None else f"{call.row.usd:f}",
    "duration_ms": lambda call: "" if call.row.total_ms is None else str(call.row.total_ms),
    "first_token_ms": lambda call: "" if call.row.ttfb_ms is None else str(call.row.ttfb_ms),
    "project": lambda call: call.row.project,
    "session": lambda call: call.row.session,
    "id": lambda call: call.row.id,
}
REFERENCE = ("method", "url", "request", "response")
_ALWAYS_QUOTED = ("request", "response")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_CELL = re.compile(rb'(?:^|,)("[^"]*+(?:""[^"]*+)*+"|[^,"\r\n]*+)')
_ID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _rows(file: IO[bytes]) -> Iterator[bytes]:
    """A line end within quotes ends no row.

    Raises Unreadable: behind a quote that nobody closes all rows would be one.
    """
    row: list[bytes] = []
    length, quoted = 0, False
    while line := file.readline(LONGEST_LINE):
        row.append(line)
        length += len(line)
        quoted ^= line.count(b'"') % 2 == 1
        if length > LONGEST_LINE:
            break
        if not quoted:
            yield b"".join(row)
            row, length = [], 0
    if row:
        raise Unreadable("as CSV")


def _count(call: Call, name: str) -> str:
    return "" if call.row.usage is None else str(getattr(call.row.usage, name))


class CsvLog(Appender):
    """`options`: `file` (else `log.csv` in the folder), `header`, `columns` (names of COLUMNS), `defuse`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = Path(options.get("file") or folder / "log.csv").absolute()
        self._columns = tuple(options.get("columns") or REFERENCE)
        self._defuse = bool(options.get("defuse"))
        self._head = (",".join(self._columns) + "\n").encode() if options.get("header") else b""

    def write(self, calls: Sequence[Call]) -> None:
        self.append(self._path, b"".join(self._row(call) for call in calls), self._head)

    def forget(self, gone: Gone) -> str:
        unnamed = False

        def is_gone(row: bytes) -> bool:
            nonlocal unnamed
            ids = {cell.decode() for cell in _CELL.findall(row) if _ID.fullmatch(cell)}
            unnamed |= not ids and row != self._head
            return any(gone.covers(id, None, None) for id in ids)

        trouble = self.take_out(self._path, is_gone, _rows)
        return trouble or (f"{self._path}: rows without the column id" if unnamed else "")

    def close(self) -> None:
        """Nothing is held open."""

    def _row(self, call: Call) -> bytes:
        cells = [self._cell(name, COLUMNS[name](call)) for name in self._columns]
        return (",".join(cells) + "\n").encode("utf-8", "replace")

    def _cell(self, name: str, value: str) -> str:
        if self._defuse and value.startswith(_FORMULA):
            value = "'" + value  # a spreadsheet would take it for a formula
        if name in _ALWAYS_QUOTED or any(sign in value for sign in ',"\r\n'):
            return '"' + value.replace('"', '""') + '"'
        return value
