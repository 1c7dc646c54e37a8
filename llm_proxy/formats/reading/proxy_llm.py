"""Records of proxy-llm (LLMInteractionRecorderProxy), first and last layout: a line per call, without heads.

The pieces of streams stand in files of their own, under the same ids. Of some calls the request's body is not told,
only the messages in it: then the body is made from these, and the log says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from llm_proxy.formats.reading.foreign import (
    UNKNOWN,
    Draft,
    Foreign,
    Found,
    Part,
    Place,
    Unreadable,
    begun,
    count,
    decoded,
    derived_id,
    moment,
    side,
    target,
    unanswered,
    utf8,
)
from llm_proxy.records.exchange import Ending, Fields

NAME = "proxy-llm"


class _Line(msgspec.Struct):
    id: str
    timestamp: Any = None
    chunk: Any = None
    index: Any = None


class _Record(msgspec.Struct):
    id: str
    session_id: Any = ""
    endpoint: str = ""
    method: str = ""
    model: Any = ""
    system_prompt: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    request_body: msgspec.Raw = msgspec.Raw()
    status_code: Any = None
    response_body: msgspec.Raw = msgspec.Raw()
    aggregated_response: msgspec.Raw = msgspec.Raw()
    stream: Any = False
    duration: Any = ""
    error: Any = ""


_LINE = msgspec.json.Decoder(_Line)
_RECORD = msgspec.json.Decoder(_Record)
_GONE = 499  # what it says where the client left


def recognises(line: dict[str, Any]) -> bool:
    record = "endpoint" in line and "request_body" in line
    return (
        isinstance(line.get("id"), str) and "session_id" in line and (record or ("chunk" in line and "index" in line))
    )


def find(path: str, lines: Iterable[tuple[Place, bytes]]) -> Iterator[Found | Part | Unreadable]:
    for place, data in lines:
        try:
            line = decoded(_LINE, data)
            if isinstance(line.chunk, str):
                yield Part(line.id, place)
            else:
                # Its numbers begin again with each start, so that an id alone might not be the only one.
                yield Found(derived_id(data.rstrip()), begun(line.timestamp), (place,), key=line.id)
        except Unreadable as error:
            yield error


def read(found: Found, lines: list[bytes]) -> Foreign:
    """The record, then the pieces of its stream. Raises Unreadable."""
    told = decoded(_RECORD, lines[0])
    draft = Draft(
        found,
        told.method,
        target(f"/v1/{told.endpoint.strip('/')}"),
        "anthropic" if "messages" in told.endpoint else "openai",
        UNKNOWN,
        side(_session_header(told.session_id), [(0, _request(told))]),
        origin={"id": told.id, "session": told.session_id if isinstance(told.session_id, str) else ""},
    )
    if not _there(told.request_body):
        draft.origin["rebuilt"] = True
    draft.ended = _lasted(told.duration)
    draft.status = count(told.status_code)
    pieces = _pieces(lines[1:], found.started)
    if draft.ended is None and pieces:
        draft.ended = pieces[-1][0]
    body = told.response_body if _there(told.response_body) else told.aggregated_response
    if pieces:
        draft.stream, draft.first_byte = True, pieces[0][0]
        draft.response = side((), pieces)
    elif _there(body):
        draft.response = side((), [(draft.ended or 0, bytes(body))])
    if isinstance(told.error, str) and told.error:
        draft.ending, draft.error = Ending.UPSTREAM_FAILED, told.error
    if draft.status == _GONE:  # its own word; it streams only what was answered well
        draft.ending, draft.status, draft.answered = Ending.CLIENT_GONE, 200 if pieces else None, _GONE
    elif draft.status is None and not draft.error:
        unanswered(draft)
    return draft.call(NAME)


def _request(told: _Record) -> bytes:
    if _there(told.request_body):
        return bytes(told.request_body)
    known = {"model": told.model, "system": told.system_prompt}
    made = {name: value for name, value in known.items() if value}
    return msgspec.json.encode(made | ({"messages": told.messages} if _there(told.messages) else {}))


def _pieces(lines: list[bytes], started: int) -> list[tuple[int, bytes]]:
    chunks = sorted((decoded(_LINE, line) for line in lines), key=lambda chunk: count(chunk.index) or 0)
    return [
        (max((moment(chunk.timestamp) or started) - started, 0), utf8(chunk.chunk))
        for chunk in chunks
        if isinstance(chunk.chunk, str)
    ]


def _session_header(session: Any) -> Fields:
    """The one header that can be told: every other name for a session is made up by the program itself."""
    if not isinstance(session, str) or not session or session.startswith("session_") or session == "default":
        return ()
    return (("X-Session-ID", session[:255].encode("utf-8", "replace").decode("latin-1")),)


_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(s|ms|µs|μs|us|ns))?", re.ASCII)
_UNITS = {"s": 10**9, "ms": 10**6, "µs": 1000, "μs": 1000, "us": 1000, "ns": 1}


def _lasted(text: Any) -> int | None:
    """A span as Go writes it, in nanoseconds."""
    match = _SPAN.fullmatch(text) if isinstance(text, str) and 0 < len(text) < 64 else None
    if match is None:
        return None
    hours, minutes, number, unit = match.groups()
    seconds = int(hours or 0) * 3600 + int(minutes or 0) * 60
    return seconds * 10**9 + int(float(number or 0) * _UNITS[unit or "s"])


def _there(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in (b"", b"null")
