"""When the first token of a stream came: its head may be there long before, and some events say nothing yet.

Pure. Leaves out streams that are told in frames or messages of their own kind (WebSocket).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Lines of a stream that carry a first piece of an answer: Anthropic's and Responses' deltas, then fields of the others.
_TOKEN = re.compile(
    r'"type": ?"(?:content_block_delta|response\.[a-z_.]+\.delta)"'
    r'|"(?:content|reasoning|reasoning_content|arguments|text)": ?"[^"]'
    r'|"contentBlockDelta"'
)
_BEFORE = 200  # lines in which it is looked for


def first_token_ms(response: Mapping[str, Any]) -> int | None:
    """Milliseconds from the request's arrival, of a response entry; None where it is not known."""
    timing, chunks = response.get("timing"), response.get("chunks")
    if not isinstance(timing, Mapping):
        return None
    known = _count(timing.get("first_token_ms"))
    if known is not None:
        return known
    for chunk in chunks[:_BEFORE] if isinstance(chunks, list) else ():
        raw = chunk.get("raw") if isinstance(chunk, dict) else None
        if isinstance(raw, str) and _TOKEN.search(raw):
            head = _count(timing.get("ttfb_ms"))
            after = _count(chunk.get("delta_ms"))
            return None if head is None or after is None else head + after
    return None


def waited_ms(response: Mapping[str, Any]) -> int | None:
    """Until the answer began to come: the first token where that is known, else the head; None where none came."""
    known = first_token_ms(response)
    status, timing = _count(response.get("status")), response.get("timing")
    if known is not None or status is None or status >= 400 or not isinstance(timing, Mapping):
        return known
    return _count(timing.get("ttfb_ms"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
