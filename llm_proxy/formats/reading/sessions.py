"""Session logs of the reference program, in the five forms that they have had.

Time and names moved from the entries into `_meta`; call ids came; forks, which began with a copy of their parent's
lines, went. A call's two entries are found by its id, in older files by their order. Which conversations a file holds
is not believed: clients' ids collided, and conversations without one are scattered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from llm_proxy.formats.reading.foreign import (
    NOBODY,
    Draft,
    Foreign,
    Found,
    OwnLog,
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
    provider_of,
    side,
    target,
    unanswered,
    utf8,
)

NAME = "llm-proxy (Go)"
_LINE_ENDS = ("\n", "\r")
_KINDS = ("session_start", "request", "response", "fork")


class _Meta(msgspec.Struct):
    ts: Any = None
    machine: Any = None
    host: Any = None
    session: Any = None
    request_id: Any = None


class _Line(msgspec.Struct):
    """What must be known of a line to find calls."""

    type: str
    meta: _Meta = msgspec.field(name="_meta", default_factory=_Meta)
    ts: Any = None
    seq: Any = None
    provider: Any = None
    upstream: Any = None
    path: Any = None
    ending: Any = None
    imported: Any = None


class _Entry(msgspec.Struct):
    meta: _Meta = msgspec.field(name="_meta", default_factory=_Meta)
    ts: Any = None
    method: str = ""
    path: str = ""
    headers: Any = None
    body: Any = None
    chunks: Any = None
    size: Any = None
    status: Any = None
    timing: Any = None


_LINE = msgspec.json.Decoder(_Line)
_ENTRY = msgspec.json.Decoder(_Entry)


def recognises(line: dict[str, Any]) -> bool:
    return line.get("type") in _KINDS and ("_meta" in line or "ts" in line)


def find(path: str, lines: Iterable[tuple[Place, bytes]]) -> Iterator[Found | Part | Unreadable]:
    """The calls of one file. Raises OwnLog."""
    provider, upstream = _from_path(path)
    waiting: dict[str, Found] = {}
    for place, data in lines:
        try:
            line = decoded(_LINE, data)
        except Unreadable as error:
            yield error
            continue
        key = str(line.meta.request_id or line.seq)
        if line.type == "session_start":
            provider, upstream = _word(line.provider) or provider, _word(line.upstream) or upstream
        elif line.type == "request":
            if key in waiting:
                yield waiting.pop(key)
            try:
                waiting[key] = _found(place, data, line, provider, upstream)
            except Unreadable as error:
                yield error
        elif line.type == "response":
            if line.ending is not None:
                raise OwnLog
            request = waiting.pop(key, None)
            if request is None:
                yield Unreadable("an answer stands without its request")
            else:
                yield request._replace(lines=(*request.lines, place), answered=True)
        elif line.type != "fork":
            yield Unreadable("entries of this type are not known")
    yield from waiting.values()


def _found(place: Place, data: bytes, line: _Line, provider: str, upstream: str) -> Found:
    id = kept_id(line.meta.request_id, data)
    if line.imported is not None or (line.meta.request_id and id.version == 7):
        raise OwnLog
    return Found(
        id,
        begun(line.meta.ts, line.ts),
        (place,),
        answered=False,
        machine=_word(line.meta.machine) or NOBODY,
        about=(provider or provider_of(_word(line.path)), _word(line.meta.host) or upstream, _word(line.meta.session)),
    )


def _word(value: Any) -> str:
    return value[:255] if isinstance(value, str) else ""


def _from_path(path: str) -> tuple[str, str]:
    """Provider and upstream as the folders tell: <provider>/<id>, later <upstream>/<date>/<id>."""
    *_, above, folder, _ = ("", "", *path.split("/"))
    if folder in ("anthropic", "openai"):
        return folder, ""
    return "", above if folder[:2] == "20" and folder.count("-") == 2 else ""


def read(found: Found, lines: list[bytes]) -> Foreign:
    """Raises Unreadable."""
    request = decoded(_ENTRY, lines[0])
    provider, upstream, session = found.about
    draft = Draft(
        found,
        request.method,
        target(request.path),
        provider,
        upstream,
        _body(request, fields(request.headers)),
        scheme="http" if upstream.startswith(("127.0.0.1", "localhost")) else "https",
        origin={"session": session},
    )
    if not found.answered:
        return unanswered(draft).call(NAME)
    response = decoded(_ENTRY, lines[1])
    timing = response.timing if isinstance(response.timing, dict) else {}
    total = count(timing.get("total_ms"))
    after = moment(response.meta.ts or response.ts)
    draft.ended = total * 1_000_000 if total is not None else after - found.started if after is not None else None
    draft.status = count(response.status)
    if isinstance(response.chunks, list):
        _take_chunks(draft, response)
    else:
        ttfb = count(timing.get("ttfb_ms"))
        draft.first_byte = (ttfb or 0) * 1_000_000
        draft.response = _body(response, fields(response.headers), draft.ended or 0)
    return draft.call(NAME)


def _body(entry: _Entry, headers: Any, at: int = 0) -> Side:
    return side(headers, [(at, utf8(_text(entry.body)))], count(entry.size))


def _take_chunks(draft: Draft, response: _Entry) -> None:
    """Of Bedrock's frames only what was inside is told: an event each, with the time when it was unpacked."""
    end = draft.ended or 0
    pieces: list[tuple[int, bytes]] = []
    for chunk in response.chunks:
        raw = chunk.get("raw") if isinstance(chunk, dict) else None
        if not isinstance(raw, str):
            continue
        at = moment(chunk.get("ts"))
        since = min(max(at - draft.found.started, 0), end) if at is not None else end
        # `ttfb_ms` of a stream was counted from the head; when that came its first line tells.
        if not pieces and at is not None and raw.endswith(_LINE_ENDS):
            draft.first_byte = max(since - (count(chunk.get("delta_ms")) or 0) * 1_000_000, 0)
        pieces.append((since, utf8(raw if raw.endswith(_LINE_ENDS) else raw + "\n\n")))
    draft.stream = True
    draft.response = side(fields(response.headers), pieces, sum(len(data) for _, data in pieces))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
