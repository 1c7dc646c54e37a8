"""A line of a session file as the index takes it, live or read back."""

from __future__ import annotations

from typing import Any, NamedTuple

from llm_proxy.dialects.digest import Digest

Entry = dict[str, Any]


class Line(NamedTuple):
    """One entry and where it stands. `length` counts the line's end; `digest` spares understanding it again."""

    file: str  # relative to the log folder
    offset: int
    length: int
    entry: Entry
    digest: Digest | None = None
