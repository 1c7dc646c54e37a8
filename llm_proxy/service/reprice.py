"""Prices recorded calls again: the price of then, with what is known of prices now.

What changed is appended to the session's log as an entry; what was written stays. Leaves out what calls cost
(`records.pricing`) and how lines get into files that keepers write, too (`keeper.append`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_proxy import paths, settings
from llm_proxy.dialects.digest import Answer, Digest, Message
from llm_proxy.errors import StateUnusable
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import CallRow, Filter
from llm_proxy.keeper.append import Appender
from llm_proxy.keeper.store import StoreDamaged
from llm_proxy.records.pricing import Price, to_entry
from llm_proxy.records.understood import understand
from llm_proxy.service import ask, prices
from llm_proxy.sinks.session_jsonl import line, utc

Entry = dict[str, Any]

# Written at a time: a keeper waits while it happens.
_AT_ONCE = 200
_NOTHING = Decimal("1e-9")


@dataclass(slots=True)
class Outcome:
    """Counts of calls, and what they cost before and now, in USD."""

    looked_at: int = 0
    changed: int = 0
    unpriced: int = 0  # of those looked at, now
    gone: int = 0  # changed, but their file has gone
    before: Decimal = Decimal(0)
    after: Decimal = Decimal(0)
    reasons: dict[str, int] = field(default_factory=dict)  # why calls are unpriced


def reprice(wanted: Filter, where: ask.Places, configured: settings.Settings, *, dry_run: bool = False) -> Outcome:
    """Raises IndexTrouble, StateUnusable. Can be broken off and called again."""
    outcome = Outcome()
    book = prices.book(configured)
    changed: dict[str, list[Entry]] = {}
    with ask.record(where) as record:
        for call in record.index.calls(wanted):
            request, response = record.entries(call)
            if request is None or response is None or call.response is None:
                continue
            try:
                price = book.of(request, call.provider, _digest(call, understand(request, response)))
            except ValueError:  # no host or no time that could be read: no entry of ours
                continue
            if price is None:
                continue
            _count(outcome, call, price)
            if _differs(call, price):
                changed.setdefault(call.response.file, []).append(_entry(request, call, price))
    outcome.changed = sum(map(len, changed.values()))
    if changed and not dry_run:
        outcome.gone = _write(changed, where)
    return outcome


def _digest(call: CallRow, digest: Digest) -> Digest:
    """Where the log no longer has the answers themselves, what it still tells of their usage."""
    if digest.usage is not None or call.usage is None:
        return digest
    told = Answer(model=call.model, message=Message("assistant", ()), usage=call.usage, service_tier=call.service_tier)
    return Digest(digest.asked, (told,))


def _count(outcome: Outcome, call: CallRow, price: Price) -> None:
    outcome.looked_at += 1
    outcome.before += call.usd or 0
    outcome.after += price.usd or 0
    if price.usd is None:
        outcome.unpriced += 1
        outcome.reasons[price.why] = outcome.reasons.get(price.why, 0) + 1


def _differs(call: CallRow, price: Price) -> bool:
    if call.basis != price.basis or (call.usd is None) != (price.usd is None):
        return True
    return call.usd is not None and price.usd is not None and abs(call.usd - price.usd) >= _NOTHING


def _entry(request: Entry, call: CallRow, price: Price) -> Entry:
    meta = request["_meta"] | {"ts": utc(time.time_ns())}
    return {"_meta": meta, "price": to_entry(price), "seq": call.seq, "type": "price"}


def _write(changed: Mapping[str, list[Entry]], where: ask.Places) -> int:
    """The number of entries whose file has gone."""
    gone = 0
    database = Path(paths.state_folder()) / "sessions.db"
    try:
        with Appender(database, where.logs) as appender, closing(Indexer(where.index, where.logs)) as indexer:
            for file, entries in changed.items():
                for group in _groups(entries):
                    if not appender.append(file, b"".join(map(line, group))):
                        gone += len(group)
                indexer.catch_up(file)
    except (OSError, sqlite3.Error, StoreDamaged) as error:
        raise StateUnusable(f"the new prices cannot be written: {error}") from error
    return gone


def _groups(entries: list[Entry]) -> Iterator[list[Entry]]:
    return (entries[start : start + _AT_ONCE] for start in range(0, len(entries), _AT_ONCE))
