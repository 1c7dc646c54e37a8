"""From places in the session logs to calls as sinks take them.

Leaves out which calls (`sinks.outbox`) and what becomes of them (`lane`).
"""

from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from uuid import UUID

from llm_proxy.formats.call import Call
from llm_proxy.index.queries import CallRow, Place
from llm_proxy.records import understood
from llm_proxy.records.first_token import waited_ms
from llm_proxy.sinks import log_reader
from llm_proxy.sinks.outbox import Posted, Waiting

Entry = dict[str, Any]

_REMEMBERED = 1024  # session files of which the first entries are kept
_LONGEST_SEARCH = 64 << 20  # bytes of a file that are searched for a line whose place is not known


class Gone(Exception):
    """The log file is not there any more, or says something else: there is nothing left to pass on."""


class Reader:
    """Reads calls from their places. Not to be shared between threads."""

    def __init__(self) -> None:
        self._starts: OrderedDict[tuple[str, str], tuple[Entry, Entry]] = OrderedDict()

    def call(self, waiting: Waiting) -> Call:
        """Raises Gone; OSError where the log cannot be read just now."""
        posted = waiting.response
        response = self._entry(posted)
        if response is None:
            raise Gone(f"{posted.file} at {posted.offset}")
        request = self._entry(waiting.request) if waiting.request else self._search(posted, "request")
        start, fork = self._start(posted.logs, posted.file)
        row = row_of(UUID(bytes=posted.call), request or {}, response, start, waiting)
        return Call(row, request, response, start or None, fork or None)

    def _entry(self, posted: Posted) -> Entry | None:
        """The entry, or None where it is not there (any more); a file may have been compressed meanwhile.

        It stands elsewhere where a keeper was killed that had taken lines out, and not yet said where the others went.
        """
        plain = Path(posted.logs, posted.file)
        for path in (plain, Path(str(plain) + log_reader.COMPRESSED.removeprefix(log_reader.PLAIN))):
            try:
                entry = log_reader.entry_at(path, posted.offset, posted.length)
            except (FileNotFoundError, NotADirectoryError, ValueError):
                continue
            if entry.get("type") == posted.type and _id(entry) == str(UUID(bytes=posted.call)):
                return entry
        return self._search(posted, posted.type)

    def _search(self, posted: Posted, kind: str) -> Entry | None:
        """A line whose place is not known, as that of a request written before lanes were told of lines."""
        wanted = str(UUID(bytes=posted.call))
        try:
            for offset, _, entry in log_reader.entries(Path(posted.logs, posted.file)):
                if entry.get("type") == kind and _id(entry) == wanted:
                    return entry
                if offset > _LONGEST_SEARCH:
                    break
        except FileNotFoundError:
            pass
        return None

    def _start(self, logs: str, file: str) -> tuple[Entry, Entry]:
        """The `session_start` of a file, and the `fork` behind it; empty where there is none."""
        known = self._starts.get((logs, file))
        if known is None:
            known = self._starts[logs, file] = _beginning(Path(logs, file))
            if len(self._starts) > _REMEMBERED:
                self._starts.popitem(last=False)
        return known


def _beginning(path: Path) -> tuple[Entry, Entry]:
    try:
        found = (entry for _, _, entry in log_reader.entries(path))
        start = next(found, {})
        if start.get("type") != "session_start":
            return {}, {}
        fork = next(found, {}) if "parent_seq" in start else {}
    except FileNotFoundError:
        return {}, {}
    return start, fork if fork.get("type") == "fork" else {}


def row_of(id: UUID, request: Entry, response: Entry, start: Entry, waiting: Waiting) -> CallRow:
    """What the index would say of the call."""
    told = _object(response.get("digest"))
    price = _object(response.get("price"))
    timing = _object(response.get("timing"))
    client = _object(start.get("client"))
    meta = _object(response.get("_meta"))
    status = _number(response.get("status"))
    ending = str(response.get("ending") or "complete")
    error_type = str(told.get("error_type") or "")
    good = ending == "client_gone" or (ending == "complete" and status is not None and status < 400)
    return CallRow(
        id=str(id),
        session=str(meta.get("session") or ""),
        seq=_number(response.get("seq")) or 0,
        started_ns=understood.moment_of(request) or understood.moment_of(response) or 0,
        ended_ns=understood.moment_of(response),
        provider=str(start.get("provider") or ""),
        upstream=str(meta.get("host") or ""),
        project=str(client.get("project") or ""),
        program=str(client.get("program") or ""),
        method=str(request.get("method") or ""),
        path=str(request.get("path") or ""),
        api=str(told.get("api") or ""),
        model=str(told.get("model") or ""),
        status=status,
        ending=ending,
        error=str(response.get("error") or ""),
        error_type=error_type,
        failed=not good or bool(error_type),
        ttfb_ms=waited_ms(response),
        total_ms=_number(timing.get("total_ms")),
        usage=understood.usage_from(told),
        usd=_dollars(price),
        basis=str(price.get("basis") or ""),
        stop_reason=str(told.get("stop_reason") or ""),
        service_tier=str(told.get("service_tier") or ""),
        response_id=str(told.get("response_id") or ""),
        partial=bool(told.get("partial")),
        request=_place(waiting.request),
        response=_place(waiting.response),
    )


def _place(posted: Posted | None) -> Place | None:
    return None if posted is None else Place(posted.file, posted.offset, posted.length)


def _id(entry: Entry) -> str:
    return str(_object(entry.get("_meta")).get("request_id"))


def _object(value: Any) -> Entry:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _dollars(price: Entry) -> Decimal | None:
    try:
        amount = Decimal(str(price.get("usd")))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and price.get("basis") != "unpriced" else None
