"""JSON lines, one object per call: what the log tells of it, what it meant, its tokens by class and its cost."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import IO, Any

import msgspec

from llm_proxy.dialects.digest import TOKEN_CLASSES
from llm_proxy.formats.call import Call, headers_of
from llm_proxy.records import understood

_encode = msgspec.json.Encoder().encode


def write(calls: Iterable[Call], out: IO[bytes]) -> None:
    """Raises OSError."""
    for call in calls:
        out.write(_encode(as_object(call)) + b"\n")


def as_object(call: Call) -> dict[str, Any]:
    """The fields are told in `docs/export.md`."""
    row, response = call.row, call.response or {}
    told: dict[str, Any] = {
        "id": row.id,
        "session": row.session,
        "seq": row.seq,
        "started": call.started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "ttfb_ms": call.head_ms,
        "first_token_ms": row.ttfb_ms,
        "total_ms": row.total_ms,
        "provider": row.provider,
        "project": row.project or None,
        "program": row.program or None,
        "method": row.method,
        "url": call.url,
        "status": row.status,
        "ending": row.ending or "open",
        "error": row.error or None,
        "model": row.model or None,
        "digest": response.get("digest") or understood.facts(call.digest) or None,
        "usage": {name: getattr(row.usage, name) for name in TOKEN_CLASSES} if row.usage is not None else None,
        "usd": None if row.usd is None else float(row.usd),
        "price_basis": row.basis or None,
        "price": response.get("price"),
        "streamed": call.streamed,
        "request": {"headers": headers_of(call.request)} | body_field(call.request_body),
        "response": {"headers": headers_of(call.response)} | body_field(call.response_body),
    }
    return told


def body_field(data: bytes) -> dict[str, str]:
    """As text; as base64 what is none."""
    try:
        return {"body": data.decode()}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(data).decode(), "body_encoding": "base64"}
