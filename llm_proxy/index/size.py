"""How much is recorded: three numbers from the sums that are kept. Leaves out what of it."""

from __future__ import annotations

from typing import NamedTuple

from llm_proxy.index.queries import Index
from llm_proxy.sinks.log_reader import COMPRESSED


class Size(NamedTuple):
    """`octets` is what the log files take on disk; `open` are calls that have not ended."""

    sessions: int
    calls: int
    open: int
    octets: int


def size(index: Index) -> Size:
    """Raises IndexUnavailable, TookTooLong."""
    query = f"""
        SELECT (SELECT count(*) FROM sessions), total(calls), total(open), (
            SELECT total(CASE WHEN path LIKE '%{COMPRESSED}' THEN disk_size ELSE cursor END) FROM files
        ) FROM slots
    """
    ((sessions, calls, opened, octets),) = index.rows(query, {})
    return Size(int(sessions), int(calls), int(opened), int(octets))
