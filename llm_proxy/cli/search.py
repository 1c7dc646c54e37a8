"""`llm-proxy search WORDS`: messages that hold all the words, the best first, each with the call to look at.

Filters may stand among the words, as in the explorer (`index.syntax`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC
from typing import Any

from llm_proxy.cli import filters, show, usage
from llm_proxy.errors import UsageError
from llm_proxy.index import syntax
from llm_proxy.index.queries import Hit
from llm_proxy.index.search import asked_for, conditions
from llm_proxy.service.ask import record


def search(arguments: Sequence[str]) -> int:
    """Exit status 1 where nothing was found. Raises UsageError, ConfigError, IndexTrouble."""
    given = usage.parse("search", arguments)
    words = " ".join(given.words).strip()
    if not words:
        raise UsageError("search takes the words to look for")
    if given.limit < 1:
        raise UsageError(f"--limit must be a whole number from 1, got {given.limit}")
    wanted = filters.filter_from(given)
    try:
        query = syntax.parse(words, time.time(), UTC if given.utc else None)
    except syntax.BadQuery as error:
        raise UsageError(str(error)) from None
    if not asked_for(query):
        raise UsageError(f"search takes words beside filters, got {words!r}")
    with record(filters.places_from(given)) as opened:
        also, values = conditions(query)
        hits = opened.index.matches(asked_for(query), wanted, given.limit, also, values)
    if given.json:
        show.print_json({"words": words, "hits": [_object(hit, utc=given.utc) for hit in hits]})
    else:
        _print(hits, utc=given.utc)
    return 0 if hits else 1


def _object(hit: Hit, *, utc: bool) -> dict[str, Any]:
    return {
        "id": hit.call,
        "session": hit.session,
        "seq": hit.seq,
        "started": show.iso(hit.started_ns, utc=utc),
        "provider": hit.provider,
        "project": hit.project or None,
        "model": hit.model,
        "role": hit.role,
        "text": "".join(text for text, _ in hit.pieces),
        "found": [text for text, found in hit.pieces if found],
        "score": round(hit.score, 3),
    }


def _print(hits: Sequence[Hit], *, utc: bool) -> None:
    if not hits:
        print("nothing was found")
        return
    if not sys.stdout.isatty():
        for hit in hits:
            where = f"{hit.call}\t{show.when(hit.started_ns, utc=utc)}\t{hit.role}"
            print(f"{where}\t{show.line(''.join(text for text, _ in hit.pieces))}")
        return
    from rich.text import Text

    console = show.console()
    for hit in hits:
        about = "  ".join(filter(None, (show.when(hit.started_ns, utc=utc), hit.project, hit.model, hit.role)))
        console.print(Text.assemble((hit.call, "cyan"), "  ", (show.line(about), "dim")))
        shown = Text("  ")
        for text, found in hit.pieces:
            shown.append(show.visible(" ".join(text.split("\n"))), "bold yellow" if found else "")
        console.print(shown)
    console.print(Text(f"llm-proxy view {hits[0].call} shows the first of them whole", "dim"))
