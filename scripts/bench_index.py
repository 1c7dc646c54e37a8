"""How fast the index is made and answers: `python scripts/bench_index.py [--calls N] [--sessions N] [--folder DIR]`.

Makes logs as coding agents do (`make_logs.py`), indexes them, asks, and prints a table. A figure holds only where the
number of indexed calls equals the number of calls made: else its row is void and the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_proxy.dialects.digest import Digest
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.lines import Line
from llm_proxy.index.queries import Filter, Index, open_index
from llm_proxy.records import understood
from llm_proxy.sinks import log_reader

sys.path.insert(0, str(Path(__file__).parent))
from make_logs import MODELS, make

LIVE_CALLS = 5_000
BATCH = 256  # lines that a keeper hands over at once


class Table:
    def __init__(self) -> None:
        self.void = 0

    def row(self, what: str, figure: str, target: str = "", holds: bool = True) -> None:
        self.void += not holds
        print(f"{what:44} {figure:>26}   {target:16}{'' if holds else '  VOID'}", flush=True)


class Taken(NamedTuple):
    """Seconds on the clock, and of the processor: the same where nobody else wants it."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall * 1e3:.1f} ms ({self.cpu * 1e3:.1f} CPU)"


def timed(question: Callable[[], Any]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    question()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def median(taken: Sequence[Taken]) -> Taken:
    return Taken(*(statistics.median(column) for column in zip(*taken, strict=True)))


def times(question: Callable[[], Any], repeat: int = 9) -> Taken:
    """The median; the first time reads the pages in."""
    question()
    return median([timed(question) for _ in range(repeat)])


def words_of(index: Index, count: int) -> list[str]:
    """What people look for: one, two or three words of a message."""
    chance = random.Random(7)
    titles = [row.title.split()[:-1] for row in index.sessions(Filter(), 2000)]
    return [" ".join(chance.sample(chance.choice(titles), chance.randint(1, 3))) for _ in range(count)]


def ask(index: Index, table: Table, calls: int) -> None:
    sums = index.stats(Filter())[0]
    queries = words_of(index, 100)
    hits = sum(bool(index.search(query, Filter())) for query in queries)
    found = [timed(lambda query=query: index.search(query, Filter())) for query in queries]
    table.row("search, p50 of 100 queries", str(median(found)), "<= 60 ms", hits == len(queries))
    table.row("search, p95", str(sorted(found)[94]), "", hits == len(queries))
    chosen = Filter(project="compiler", model=MODELS[0])
    narrow = [timed(lambda query=query: index.search(query, chosen)) for query in queries]
    table.row("search in a project and a model, p50", str(median(narrow)))
    month = Filter(since_ns=sums.first_ns, until_ns=sums.last_ns + 1)
    for by in ("total", "day", "model", "project", "session"):
        same = sum(row.calls for row in index.stats(month, by)) == calls
        taken = times(lambda by=by: index.stats(month, by), 5)
        table.row(f"stats of a month, by {by}", str(taken), "<= 300 ms", same)
    table.row("sessions, the last 50", str(times(lambda: index.sessions(Filter()))), "<= 100 ms")
    narrowed = Filter(errors=True, model=MODELS[1], project="api")
    table.row("sessions with errors, a model, a project", str(times(lambda: index.sessions(narrowed))), "<= 100 ms")
    table.row("sessions, all of them", str(times(lambda: index.sessions(Filter(), None), 3)))
    some = index.sessions(Filter(), 1)[0]
    table.row("calls of a session", str(times(lambda: index.calls_of(some.id))))
    table.row("find by the beginning of an id", str(times(lambda: index.find(some.id[:12]))))


def live(root: Path, table: Table, folder: Path) -> None:
    """As the keeper does: batches of lines with what they mean, each in a transaction."""
    lines = []
    calls = 0
    for file in log_reader.files(root):
        lines += list(_with_digests(file, root))
        calls = sum(line.entry["type"] == "response" for line in lines)
        if calls >= LIVE_CALLS:
            break
    indexer = Indexer(folder / "live.db", root)
    started = time.process_time()
    for start in range(0, len(lines), BATCH):
        indexer.take(lines[start : start + BATCH])
    taken = time.process_time() - started
    with open_index(indexer.path) as index:
        holds = index.stats(Filter())[0].calls == calls
    indexer.close()
    table.row("live, without understanding (CPU)", f"{taken / calls * 1e6:.0f} us an exchange", "", holds)


def _with_digests(file: str, root: Path) -> Iterator[Line]:
    request: dict[str, Any] = {}
    for offset, length, entry in log_reader.entries(root / file):
        digest: Digest | None = None
        if entry["type"] == "request":
            request = entry
        elif entry["type"] == "response":
            digest = understood.understand(request, entry)
        yield Line(file, offset, length, entry, digest)


def run(folder: Path, calls: int, sessions: int) -> int:
    root = folder / "logs"
    if not root.exists():
        (folder / "made.json").write_text(json.dumps(make(root, calls=calls, sessions=sessions)))
    made = json.loads((folder / "made.json").read_text())
    calls, size = made["calls"], made["bytes"]
    table = Table()
    table.row("logs", f"{size / 1e6:.0f} MB", f"{calls} calls, {made['sessions']} sessions")
    path = folder / "index.db"
    for old in folder.glob("*.db*"):
        old.unlink()
    indexer = Indexer(path, root)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, cpu = time.perf_counter(), time.process_time()
    indexed = indexer.rebuild()
    taken = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() - cpu + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with open_index(path) as index:
        (total,) = index.stats(Filter())
        same = (indexed, total.calls, total.errors, total.usage.output, len(index.sessions(Filter(), None))) == (
            (calls, calls, made["failed"], made["output_tokens"], made["sessions"])
        )
        rate = f"{calls / taken:.0f} exchanges/s"
        table.row(f"reindex on {os.cpu_count()} cores", rate, ">= 3000", same)
        table.row("reindex, CPU of all processes", f"{cpu / calls * 1e6:.0f} us an exchange", "", same)
        share = path.stat().st_size / size
        table.row("index, of the logs' size", f"{path.stat().st_size / 1e6:.0f} MB, {share:.1%}", "<= 25 %", same)
        ask(index, table, calls)
    table.row("catch up with nothing new", str(times(indexer.catch_up_all, 5)))
    indexer.close()
    live(root, table, folder)
    return 1 if table.void else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keep the logs there and use them again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return run(folder, given.calls, given.sessions)


if __name__ == "__main__":
    sys.exit(main())
