"""`llm-proxy compare [--from --to] [--json]`: the record beside what Claude Code and Codex wrote themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from llm_proxy.cli import filters, show, usage
from llm_proxy.dialects.digest import Usage
from llm_proxy.service.compare import Comparison, Noted, Recorded
from llm_proxy.service.compare import compare as held

_SHOWN = 10  # of each kind


def compare(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble."""
    given = usage.parse("compare", arguments)
    since, until = filters.moment("--from", given.from_), filters.moment("--to", given.to_, end=True)
    found = held(filters.places_from(given), since, until, os.environ)
    if given.json:
        show.print_json([_object(one, utc=given.utc) for one in found])
    elif not found:
        print("neither Claude Code nor Codex has session files here")
    for one in [] if given.json else found:
        _print(one, utc=given.utc)
    return 0


def _object(one: Comparison, *, utc: bool) -> dict[str, Any]:
    return {
        "client": one.client,
        "folder": one.folder,
        "files": one.files,
        "unreadable_files": one.unreadable,
        "noted": len(one.noted),
        "both": len(one.pairs),
        "equal": len(one.pairs) - len(one.unequal),
        "unequal": [
            {
                **_noted(pair.noted, utc=utc),
                "call": pair.recorded.call,
                "recorded_usage": show.usage_object(pair.recorded.usage),
            }
            for pair in one.unequal
        ],
        "missed_by_client": [_recorded(answer, utc=utc) for answer in one.missed],
        "not_recorded": [_noted(answer, utc=utc) for answer in one.unrecorded],
        "lines": sum(answer.lines for answer in one.noted),
        "usage": {
            "recorded": show.usage_object(_sum(pair.recorded.usage for pair in one.pairs)),
            "noted": show.usage_object(_sum(pair.noted.usage for pair in one.pairs)),
            "all_lines_added_up": show.usage_object(_sum(pair.noted.added_up for pair in one.pairs)),
        },
    }


def _noted(answer: Noted, *, utc: bool) -> dict[str, Any]:
    return {
        "id": answer.id or answer.request_id,
        "session": answer.session,
        "model": answer.model,
        "time": show.iso(answer.when_ns, utc=utc),
        "lines": answer.lines,
        "usage": show.usage_object(answer.usage),
    }


def _recorded(answer: Recorded, *, utc: bool) -> dict[str, Any]:
    return {
        "call": answer.call,
        "id": answer.id or answer.request_id,
        "session": answer.session,
        "model": answer.model,
        "time": show.iso(answer.when_ns, utc=utc),
        "partial": answer.partial,
        "usage": show.usage_object(answer.usage),
    }


def _print(one: Comparison, *, utc: bool) -> None:
    print(f"{one.client}: {one.files} session files in {show.line(one.folder)}")
    if one.unreadable:
        print(f"  {one.unreadable} of them cannot be read")
    print(
        f"  {len(one.pairs):>6}  answers are in both, {len(one.pairs) - len(one.unequal)} of them with the same tokens"
    )
    for pair in one.unequal[:_SHOWN]:
        told, true = _tokens(pair.noted.usage), _tokens(pair.recorded.usage)
        print(
            f"          {show.line(pair.noted.id or pair.noted.request_id, 60)}: it noted {told}; recorded are {true}"
        )
    _more(len(one.unequal))
    print(f"  {len(one.missed):>6}  it did not note")
    for missed in one.missed[:_SHOWN]:
        cut = ", cut off" if missed.partial else ""
        _row(missed.when_ns, f"{missed.model}  call {missed.call}{cut}", missed.usage, utc=utc)
    _more(len(one.missed))
    print(f"  {len(one.unrecorded):>6}  are not recorded: they did not come through here")
    for answer in one.unrecorded[:_SHOWN]:
        _row(answer.when_ns, f"{answer.model}  {answer.id or answer.request_id}", answer.usage, utc=utc)
    _more(len(one.unrecorded))
    lines = sum(answer.lines for answer in one.noted)
    if lines > len(one.noted):
        used = _sum(pair.recorded.usage for pair in one.pairs).total
        added = _sum(pair.noted.added_up for pair in one.pairs).total
        print(
            f"  {lines:>6}  lines of it tell usage: who adds them all up counts {show.count(added)} tokens"
            f" where {show.count(used)} were used"
        )


def _row(when_ns: int, what: str, usage: Usage, *, utc: bool) -> None:
    print(f"          {show.when(when_ns, utc=utc, seconds=True)}  {show.line(what, 100)}: {_tokens(usage)}")


def _more(count: int) -> None:
    if count > _SHOWN:
        print(f"          and {count - _SHOWN} more; --json shows all")


def _tokens(usage: Usage) -> str:
    written = usage.cache_write_5m + usage.cache_write_1h
    told = ((usage.input, "in"), (usage.cache_read, "cached"), (written, "written"), (usage.output, "out"))
    return " ".join(f"{show.count(number)} {name}" for number, name in told if number) or "nothing"


def _sum(usages: Iterable[Usage]) -> Usage:
    return sum(usages, Usage())
