"""Recordings as Taco writes them, one JSON line per call, with the field names of its README."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import IO, Any

import msgspec

from llm_proxy.formats.call import Call, headers_of
from llm_proxy.formats.jsonl import body_field

_encode = msgspec.json.Encoder().encode
_NAMES = {"anthropic": "claude"}


def write(calls: Iterable[Call], out: IO[bytes]) -> None:
    """Raises OSError."""
    for call in calls:
        out.write(_encode(as_object(call)) + b"\n")


def as_object(call: Call) -> dict[str, Any]:
    row = call.row
    request: dict[str, Any] = {"method": row.method, "path": row.path}
    if call.query:
        request["query"] = call.query
    request |= {"headers": headers_of(call.request)} | _body(call.request_body)
    response: dict[str, Any] = {"status": row.status or 0, "headers": headers_of(call.response)}
    response |= _body(call.response_body, as_text=call.streamed) | {"streaming": call.streamed}
    told: dict[str, Any] = {
        "id": row.id,
        "timestamp": _moment(call.started),
        "provider": _NAMES.get(row.provider, row.provider),
        "request": request,
        "response": response,
        "timing": {
            "startTime": _moment(call.started),
            "endTime": _moment(call.ended),
            "durationMs": row.total_ms or 0,
        },
    }
    if row.error:
        told["error"] = row.error
    return told


def _body(data: bytes, *, as_text: bool = False) -> dict[str, Any]:
    """JSON stays JSON, to the digit; all else is text, or what Taco calls base64."""
    if not data:
        return {}
    if not as_text:
        try:
            msgspec.json.decode(data)
            return {"body": msgspec.Raw(msgspec.json.format(data, indent=-1))}
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    field = body_field(data)
    return {"body": ("base64:" if "body_encoding" in field else "") + field["body"]}


def _moment(when: datetime) -> str:
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")
