"""`llm-proxy sessions`: conversations, the one used last first; forks and sub-agents under the one they came from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from llm_proxy.cli import filters, show, usage
from llm_proxy.errors import UsageError
from llm_proxy.index.queries import SessionRow
from llm_proxy.service.ask import record

_COLUMNS = (
    show.Column("SESSION"),
    show.Column("LAST"),
    show.Column("PROJECT", spare=2),
    show.Column("PROGRAM", spare=5),
    show.Column("MODEL", spare=3),
    show.Column("CALLS", right=True, spare=1),
    show.Column("ERRORS", right=True),
    show.Column("TOKENS", right=True, spare=4),
    show.Column("COST", right=True),
    show.Column("TITLE", grows=True),
)


def sessions(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble."""
    given = usage.parse("sessions", arguments)
    if given.limit < 1:
        raise UsageError(f"--limit must be a whole number from 1, got {given.limit}")
    wanted = filters.filter_from(given)
    with record(filters.places_from(given)) as opened:
        found = opened.index.sessions(wanted, given.limit)
    if given.json:
        show.print_json({"sessions": [as_object(row, utc=given.utc) for row in found]})
    elif found:
        show.table(_COLUMNS, (_cells(row, depth, utc=given.utc) for row, depth in family(found)))
    else:
        print("no session is recorded that fits")
    return 0


def family(rows: Sequence[SessionRow]) -> Iterator[tuple[SessionRow, int]]:
    """Each row with its depth, children behind their parent where that is among the rows."""
    known = {row.id for row in rows}
    children: dict[str, list[SessionRow]] = {}
    for row in rows:
        children.setdefault(row.parent if row.parent in known and row.parent != row.id else "", []).append(row)
    told: set[str] = set()
    open_rows = [(row, 0) for row in reversed(children.get("", ()))]
    while open_rows:
        row, depth = open_rows.pop()
        told.add(row.id)
        yield row, depth
        open_rows += [(child, depth + 1) for child in reversed(children.get(row.id, ())) if child.id not in told]
    for row in rows:  # parents in a circle: nothing of ours writes that
        if row.id not in told:
            yield row, 0


def as_object(row: SessionRow, *, utc: bool) -> dict[str, Any]:
    """A session as `--json` shows it."""
    return {
        "id": row.id,
        "client_session": row.client_session or None,
        "parent": row.parent or None,
        "parent_seq": row.parent_seq,
        "forked": row.forked,
        "agent": row.agent or None,
        "provider": row.provider,
        "upstream": row.upstream,
        "program": row.program or None,
        "project": row.project or None,
        "cwd": row.cwd or None,
        "root": row.root or None,
        "branch": row.branch or None,
        "title": row.title,
        "started": show.iso(row.started_ns, utc=utc),
        "last": show.iso(row.last_ns, utc=utc),
        "calls": row.calls,
        "errors": row.errors,
        "open": row.open,
        "models": list(row.models),
        "usage": show.usage_object(row.usage),
        "cost": show.cost_object(row.cost),
        "files": list(row.files),
    }


def _cells(row: SessionRow, depth: int, *, utc: bool) -> tuple[str, ...]:
    mark = "  " * (depth - 1) + ("└ " if depth else "")
    model = row.models[-1] if row.models else ""
    return (
        mark + row.id,
        show.lately(row.last_ns, utc=utc) if sys.stdout.isatty() else show.when(row.last_ns, utc=utc),
        show.line(row.project, 20),
        show.line(row.program, 16),
        show.line(model, 24) + (f" +{len(row.models) - 1}" if len(row.models) > 1 else ""),
        str(row.calls),
        str(row.errors) if row.errors else "",
        show.count(row.usage.total) if row.usage.total else "",
        show.cost(row.cost),
        ("fork: " if row.forked else f"{row.agent}: " if row.agent else "") + row.title,
    )
