"""`llm-proxy tail`: each call as it begins and as it ends, until Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from llm_proxy.cli import filters, show, usage
from llm_proxy.errors import IndexTrouble, UsageError
from llm_proxy.index.queries import CallRow, Filter
from llm_proxy.service.ask import Places, record

_EVERY = 0.25  # seconds between two looks
_LATE = 600 * 10**9  # ns; a call that began this long ago and was never seen open is passed over


def tail(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble."""
    given = usage.parse("tail", arguments)
    if given.lines < 0:
        raise UsageError(f"--lines must be a whole number from 0, got {given.lines}")
    wanted = filters.filter_from(given)
    for call in _follow(filters.places_from(given), wanted, given.lines):
        if given.json:
            show.print_json(as_object(call, utc=given.utc), lines=True)
        else:
            print(_line(call, utc=given.utc), flush=True)
    return 0


def _follow(where: Places, wanted: Filter, lines: int) -> Iterator[CallRow]:
    """The last `lines` calls, then each change: a call that began, a call that ended."""
    with record(where) as opened:
        news = list(opened.index.calls(wanted, newest_first=True, limit=lines)) if lines else []
    began = time.time_ns()
    opens: dict[str, int] = {}  # calls told of while they were open: when they started
    ended: dict[str, int] = {}
    while True:
        for call in reversed(news):
            (opens if call.open else ended)[call.id] = call.started_ns
            if not call.open:
                opens.pop(call.id, None)
            yield call
        time.sleep(_EVERY)
        since = max(min([time.time_ns() - _LATE, *opens.values()]), wanted.since_ns or 0)
        ended = {id: started for id, started in ended.items() if started >= since}
        try:
            if not where.index.parent.is_dir():
                return
            with record(where) as opened:
                found = list(opened.index.calls(replace(wanted, since_ns=since), newest_first=True))
        except IndexTrouble:
            if not where.index.exists():  # uninstalled meanwhile: nothing is to be put there again
                return
            raise
        news = [call for call in found if _is_news(call, opens, ended, began)]


def _is_news(call: CallRow, opens: dict[str, int], ended: dict[str, int], began: int) -> bool:
    if call.open:
        return call.id not in opens
    return call.id in opens or (call.id not in ended and (call.ended_ns or 0) >= began)


def as_object(call: CallRow, *, utc: bool) -> dict[str, Any]:
    """A call as `--json` shows it."""
    return {
        "id": call.id,
        "session": call.session,
        "seq": call.seq,
        "started": show.iso(call.started_ns, utc=utc),
        "ended": show.iso(call.ended_ns, utc=utc),
        "open": call.open,
        "provider": call.provider,
        "upstream": call.upstream,
        "project": call.project or None,
        "program": call.program or None,
        "method": call.method,
        "path": call.path,
        "model": call.model or None,
        "status": call.status,
        "ending": call.ending or None,
        "error": call.error or None,
        "error_type": call.error_type or None,
        "first_token_ms": call.ttfb_ms,
        "total_ms": call.total_ms,
        "stop_reason": call.stop_reason or None,
        "usage": show.usage_object(call.usage),
        "usd": None if call.usd is None else show.decimal(call.usd),
        "price_basis": call.basis or None,
        "partial": call.partial,
    }


def _line(call: CallRow, *, utc: bool) -> str:
    used = call.usage
    status = "open" if call.open else str(call.status) if call.status is not None else call.ending
    cells = (
        show.when(call.started_ns, utc=utc, seconds=True),
        f"{status:>4}",
        f"{show.duration(call.total_ms):>7}",
        call.model or f"{call.method} {call.path}",
        f"{show.count(used.prompt)} in {show.count(used.output)} out" if used is not None else "",
        show.price(call.usd, call.basis),
        call.project or call.upstream,
        call.id,
        call.error if call.failed else "",
    )
    text = "  ".join(show.line(cell) if place not in (1, 2) else cell for place, cell in enumerate(cells) if cell)
    if call.failed and sys.stdout.isatty():
        return f"\x1b[31m{text}\x1b[0m"
    return text
