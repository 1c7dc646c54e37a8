"""Recordings of Taco and of MIRRA, its successor: a line per call, with either spelling of the times.

JSON bodies stand in them as JSON; to the digit they are taken as they stand. No line tells which host was called.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llm_proxy.formats.reading.foreign import (
    HOSTS,
    UNKNOWN,
    Draft,
    Foreign,
    Found,
    Part,
    Place,
    Side,
    Unreadable,
    begun,
    count,
    decoded,
    fields,
    kept_id,
    moment,
    side,
    target,
    unanswered,
    utf8,
)
from llm_proxy.records.exchange import Ending

NAME = "Taco"
_PROVIDERS = {"claude": "anthropic", "google": "gemini"}
_BASE64 = "base64:"
# MIRRA puts the day before the UUID; one in 43 UUIDs begins with eight digits itself.
_DATED = re.compile(r"\A[0-9]{8}-(?=.{36})", re.DOTALL)
_FILE = re.compile(r"recordings-.*\.jsonl", re.DOTALL)


class _Timing(msgspec.Struct):
    startTime: Any = None
    endTime: Any = None
    durationMs: Any = None
    started_at: Any = None
    completed_at: Any = None
    duration_ms: Any = None


class _Half(msgspec.Struct):
    method: str = ""
    path: str = ""
    query: Any = ""
    headers: Any = None
    body: msgspec.Raw = msgspec.Raw()
    status: Any = None
    streaming: Any = False


class _Status(msgspec.Struct):
    status: Any = None


class _Line(msgspec.Struct):
    id: Any = None
    timestamp: Any = None
    provider: Any = None
    response: _Status | None = None
    timing: _Timing = msgspec.field(default_factory=_Timing)


class _Recording(msgspec.Struct):
    id: Any = None
    provider: str = ""
    timing: _Timing = msgspec.field(default_factory=_Timing)
    request: _Half = msgspec.field(default_factory=_Half)
    response: _Half | None = None
    responseSize: Any = None
    error: Any = None


_LINE = msgspec.json.Decoder(_Line)
_RECORDING = msgspec.json.Decoder(_Recording)
_TEXT = msgspec.json.Decoder(str)


def recognises(line: dict[str, Any]) -> bool:
    request = line.get("request")
    return isinstance(request, dict) and "path" in request and "provider" in line and "timing" in line


class Seen(NamedTuple):
    """What a line says at a glance. `at` is nanoseconds since 1970; `ms` None: not told."""

    id: str
    at: int
    provider: str
    status: int
    ms: int | None


def seen(data: bytes) -> Seen:
    """Raises Unreadable."""
    line = decoded(_LINE, data)
    timing = line.timing
    return Seen(
        line.id if isinstance(line.id, str) else "",
        begun(line.timestamp, timing.started_at, timing.startTime),
        line.provider if isinstance(line.provider, str) else "",
        (count(line.response.status) if line.response else None) or 0,
        count(timing.duration_ms if timing.duration_ms is not None else timing.durationMs),
    )


def files(folder: Path) -> list[str]:
    """The recordings in a folder, by their days. Raises OSError."""
    return sorted(str(path) for path in folder.iterdir() if _FILE.fullmatch(path.name))


def find(path: str, lines: Iterable[tuple[Place, bytes]]) -> Iterator[Found | Part | Unreadable]:
    for place, data in lines:
        try:
            line = decoded(_LINE, data)
            timing = line.timing
            id = kept_id(_DATED.sub("", line.id) if isinstance(line.id, str) else None, data)
            yield Found(id, begun(timing.started_at, timing.startTime, line.timestamp), (place,))
        except Unreadable as error:
            yield error


def read(found: Found, lines: list[bytes]) -> Foreign:
    """Raises Unreadable."""
    told = decoded(_RECORDING, lines[0])
    provider = _PROVIDERS.get(told.provider, told.provider)
    draft = Draft(
        found,
        told.request.method,
        target(told.request.path, told.request.query),
        provider,
        HOSTS.get(provider, UNKNOWN),
        _side(told.request),
        origin={"id": told.id if isinstance(told.id, str) and told.id != str(found.id) else ""},
    )
    response = told.response
    if response is None:
        return unanswered(draft).call(NAME)
    draft.ended = _ended(told.timing, found.started)
    draft.status = count(response.status) or None
    draft.response = _side(response, draft.ended or 0, count(told.responseSize))
    draft.stream = response.streaming is True
    if isinstance(told.error, str) and told.error:
        draft.ending, draft.error = Ending.UPSTREAM_FAILED, told.error
        if draft.status == 502 and not draft.response.pieces:  # its own
            draft.status, draft.answered = None, 502
    return draft.call(NAME)


def _ended(timing: _Timing, started: int) -> int | None:
    end = moment(timing.completed_at if timing.completed_at is not None else timing.endTime)
    if end is not None:
        return end - started
    lasted = count(timing.duration_ms if timing.duration_ms is not None else timing.durationMs)
    return lasted * 1_000_000 if lasted is not None else None


def _side(half: _Half, at: int = 0, size: int | None = None) -> Side:
    headers = fields(half.headers)
    data, coded = _body(bytes(half.body))
    return side(headers, [(at, data)], size, coded=coded)


def _body(raw: bytes) -> tuple[bytes, bool]:
    """The bytes, and whether they are as they came, compressed where they were. Raises Unreadable."""
    if not raw or raw == b"null":
        return b"", False
    if not raw.startswith(b'"'):
        return raw, False
    text = decoded(_TEXT, raw)
    if text.startswith(_BASE64):
        try:
            return base64.b64decode(text[len(_BASE64) :], validate=True), True
        except ValueError:
            pass
    return utf8(text), False
