"""Logs of claude-trace: a line per pair of request and response, as the client itself saw them.

JSON bodies stand in them as JSON, streams as text, both with their content coding taken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llm_proxy.formats.reading.foreign import (
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
    fields,
    moment,
    provider_of,
    side,
    target,
    unanswered,
    utf8,
    value_of,
)

NAME = "claude-trace"


class _Time(msgspec.Struct):
    timestamp: Any = None


class _Line(msgspec.Struct):
    request: _Time
    response: _Time | None = None


class _Request(msgspec.Struct):
    method: str = ""
    url: str = ""
    headers: Any = None
    body: msgspec.Raw = msgspec.Raw()


class _Response(msgspec.Struct):
    timestamp: Any = None
    status_code: Any = None
    headers: Any = None
    body: msgspec.Raw = msgspec.Raw()
    body_raw: Any = None


class _Pair(msgspec.Struct):
    request: _Request
    response: _Response | None = None
    logged_at: Any = None


_LINE = msgspec.json.Decoder(_Line)
_PAIR = msgspec.json.Decoder(_Pair)
_TEXT = msgspec.json.Decoder(str)


def recognises(line: dict[str, Any]) -> bool:
    request = line.get("request")
    return isinstance(request, dict) and "url" in request and "timestamp" in request and "response" in line


def find(path: str, lines: Iterable[tuple[Place, bytes]]) -> Iterator[Found | Part | Unreadable]:
    for place, data in lines:
        try:
            line = decoded(_LINE, data)
            answered = line.response is not None
            yield Found(derived_id(data.rstrip()), begun(line.request.timestamp), (place,), answered)
        except Unreadable as error:
            yield error


def read(found: Found, lines: list[bytes]) -> Foreign:
    """Raises Unreadable."""
    pair = decoded(_PAIR, lines[0])
    request, response = pair.request, pair.response
    try:
        url = urlsplit(request.url)
    except ValueError:
        raise Unreadable("the URL is none") from None
    if url.scheme not in ("http", "https") or not url.netloc:
        raise Unreadable("the URL is none")
    draft = Draft(
        found,
        request.method,
        target(url.path or "/", url.query),
        provider_of(url.path),
        url.netloc.rpartition("@")[2],
        side(fields(request.headers), [(0, _body(request.body))]),
        scheme=url.scheme,
    )
    if response is None:
        return unanswered(draft).call(NAME)
    head, logged = moment(response.timestamp), moment(pair.logged_at)
    draft.first_byte = max(head - found.started, 0) if head is not None else 0
    draft.ended = logged - found.started if logged is not None else draft.first_byte or None
    draft.status = count(response.status_code)
    headers = fields(response.headers)
    raw = utf8(response.body_raw) if isinstance(response.body_raw, str) else _body(response.body)
    draft.stream = value_of(headers, "content-type").lower().startswith("text/event-stream")
    draft.response = side(headers, [(draft.ended or 0, raw)])
    return draft.call(NAME)


def _body(raw: msgspec.Raw) -> bytes:
    data = bytes(raw)
    if not data or data == b"null":
        return b""
    return utf8(decoded(_TEXT, data)) if data.startswith(b'"') else data
