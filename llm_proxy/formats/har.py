"""HTTP Archive 1.2, for the network panels of browsers and the tools around them.

What the record does not hold is said as the format says it: -1 for sizes of heads and for unknown times.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import IO, Any
from urllib.parse import parse_qsl

import msgspec

from llm_proxy import __version__
from llm_proxy.formats.call import Call, headers_of

_encode = msgspec.json.Encoder().encode
_CREATOR = {"name": "llm-proxy", "version": __version__}


def write(calls: Iterable[Call], out: IO[bytes]) -> None:
    """Raises OSError."""
    out.write(b'{"log":{"version":"1.2","creator":' + _encode(_CREATOR) + b',"entries":[')
    for number, call in enumerate(calls):
        out.write((b",\n" if number else b"\n") + _encode(as_object(call)))
    out.write(b"\n]}}\n")


def as_object(call: Call) -> dict[str, Any]:
    row = call.row
    total, wait = row.total_ms or 0, min(call.head_ms or 0, row.total_ms or 0)
    return {
        "startedDateTime": call.started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "time": total,
        "request": _request(call),
        "response": _response(call),
        "cache": {},
        "timings": {"send": 0, "wait": wait, "receive": total - wait},
        "_id": row.id,
        "_session": row.session,
        "_model": row.model,
        "_ending": row.ending or "open",
        **({"_error": row.error} if row.error else {}),
    }


def _request(call: Call) -> dict[str, Any]:
    data = call.request_body
    told: dict[str, Any] = {
        "method": call.row.method,
        "url": call.url,
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": _headers(call.request),
        "queryString": [{"name": name, "value": value} for name, value in parse_qsl(call.query, True)],
        "headersSize": -1,
        "bodySize": (call.request or {}).get("size", len(data)),
    }
    if data:
        told["postData"] = {"mimeType": _media_type(call.request)} | _text(data)
    return told


def _response(call: Call) -> dict[str, Any]:
    data, response = call.response_body, call.response or {}
    return {
        "status": call.row.status or 0,
        "statusText": response.get("reason", ""),
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": _headers(call.response),
        "content": {"size": len(data), "mimeType": _media_type(call.response)} | _text(data),
        "redirectURL": next(iter(headers_of(call.response).get("Location", ())), ""),
        "headersSize": -1,
        "bodySize": response.get("size", -1),
    }


def _headers(entry: dict[str, Any] | None) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, values in headers_of(entry).items() for value in values]


def _media_type(entry: dict[str, Any] | None) -> str:
    return next(iter(headers_of(entry).get("Content-Type", ())), "application/octet-stream")


def _text(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"text": base64.b64encode(data).decode(), "encoding": "base64"}
