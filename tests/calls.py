"""Calls made for tests of what the explorer tells of one: a row, its entries, and what went in and out of the cache."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from llm_proxy.dialects.digest import Usage
from llm_proxy.formats.call import Call
from llm_proxy.index.queries import CallRow

SECOND = 10**9


def row(number: int = 1, *, at: float = 0.0, usage: Usage | None = None, **changed: Any) -> CallRow:
    """A call that went well; `at` in seconds."""
    known: dict[str, Any] = {
        "id": f"call-{number}",
        "session": "s",
        "seq": number,
        "started_ns": int((1_700_000_000 + at) * SECOND),
        "ended_ns": int((1_700_000_004 + at) * SECOND),
        "provider": "anthropic",
        "upstream": "api.anthropic.com",
        "project": "",
        "program": "",
        "method": "POST",
        "path": "/v1/messages",
        "api": "anthropic.messages",
        "model": "claude-sonnet-4-5",
        "status": 200,
        "ending": "complete",
        "error": "",
        "error_type": "",
        "failed": False,
        "ttfb_ms": 1000,
        "total_ms": 4000,
        "usage": usage,
        "usd": Decimal(0),
        "basis": "list",
        "stop_reason": "end_turn",
        "service_tier": "",
        "response_id": "",
        "partial": False,
        "request": None,
        "response": None,
    }
    return CallRow(**(known | changed))


def call(body: Any, number: int = 1, *, headers: dict[str, list[str]] | None = None, **about: Any) -> Call:
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    request = {"method": "POST", "path": "/v1/messages", "headers": headers or {}, "body": text, "size": len(text)}
    return Call(row(number, **about), request, {"status": 200, "headers": {}})
