"""docs/log-format.md as data: the fields its tables name, and which fields of an entry it does not tell about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parent.parent / "docs/log-format.md").read_text()


def told_in(heading: str) -> set[str]:
    """The names in the first column of the tables below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/log-format.md has no heading {heading!r}"
    cells = re.findall(r"^\| (`.*?) \|", found[1], re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


_META = told_in("Entries")
_BODIES = told_in("Bodies that are not simply text")
_CHUNK = told_in("Chunks")
_TIMING = told_in("Timing")
_WEBSOCKET = told_in("WebSocket")
_PRICE = told_in("`price`")
_DIGEST = told_in("`digest`")
_ENTRIES = {
    "session_start": told_in("`session_start`"),
    "fork": told_in("`fork`"),
    "request": told_in("`request`") | _BODIES,
    "response": told_in("`response`") | _BODIES,
    "gap": told_in("`recording-gaps.jsonl`"),
    "price": {"seq", "price"},
}


def untold(entry: dict[str, Any]) -> list[str]:
    """The fields of an entry that the page does not name."""
    return list(_untold(entry))


def _untold(entry: dict[str, Any]) -> Iterator[str]:
    kind = entry["type"]
    yield from _beyond(entry, _ENTRIES[kind] | {"type", "_meta"}, kind)
    yield from _beyond(entry["_meta"], _META, "_meta")
    for chunk in entry.get("chunks") or ():
        yield from _beyond(chunk, _CHUNK, "chunk")
    websocket = entry.get("websocket") or {"messages": ()}
    yield from _beyond(websocket, _WEBSOCKET, "websocket")
    for message in websocket["messages"]:
        yield from _beyond(message, _CHUNK | _WEBSOCKET | {"size"}, "message")
    yield from _beyond(entry.get("price") or {}, _PRICE, "price")
    digest = entry.get("digest") or {}
    yield from _beyond(digest, _DIGEST, "digest")
    yield from _beyond(digest.get("usage") or {}, _DIGEST, "usage")
    if "timing" in entry:
        yield from _beyond(entry["timing"], _TIMING, "timing")


def _beyond(facts: dict[str, Any], told: set[str], where: str) -> Iterator[str]:
    return (f"{where}.{name}" for name in facts if name not in told)
