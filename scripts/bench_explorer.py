"""How quick the explorer's pages are: `python scripts/bench_explorer.py [--calls N] [--sessions N] [--folder DIR]`.

Makes logs as coding agents do (`make_logs.py`), and one long conversation among them (`make_conversation.py`), indexes
them, starts an explorer of its own process and asks it over one connection, as a browser does. A figure holds only
where the page counts what was made: else its row is void and the exit status 1. Beside the time on the clock stands
that of the explorer's processor, which is the same where nobody else wants it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil

from llm_proxy.explorer import guard
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import open_index

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from bench_index import Table, Taken, words_of  # noqa: E402
from make_logs import MODELS, make  # noqa: E402

from scripts import make_conversation  # noqa: E402

TURNS, SIZE = 400, 2_000_000
ROUNDS = 25
QUERIES = 100


class Explorer:
    """An explorer in a process of its own, and one connection to it."""

    def __init__(self, folder: Path) -> None:
        state = folder / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        self._headers = guard.bearer(guard.new_secret(state))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = {"index": str(folder / "index.db"), "logs": str(folder / "logs"), "state": str(state), "port": port}
        self._process = subprocess.Popen([sys.executable, "-m", "llm_proxy.explorer", json.dumps(options)])
        self._usage = psutil.Process(self._process.pid)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(400):
            try:
                self._connection.connect()
                return
            except OSError:
                time.sleep(0.05)  # nothing tells when a process listens
        raise SystemExit("the explorer did not begin to listen")

    def get(self, path: str) -> tuple[bytes, Taken]:
        cpu, wall = self._cpu(), time.perf_counter()
        self._connection.request("GET", f"/llm-proxy{path}", headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        taken = Taken(time.perf_counter() - wall, self._cpu() - cpu)
        if answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}")
        return body, taken

    def told(self, path: str) -> Any:
        return json.loads(self.get(f"/api{path}")[0])

    def _cpu(self) -> float:
        used = self._usage.cpu_times()
        return used.user + used.system

    def close(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.wait(20)


def row(table: Table, what: str, taken: Sequence[Taken], target: str, holds: bool) -> None:
    """The median by the clock; of the processor the mean, whose clock ticks too slowly for single pages."""
    wall = sorted(one.wall for one in taken)
    cpu = statistics.mean(one.cpu for one in taken)
    late = wall[-(-len(wall) * 95 // 100) - 1]
    figure = f"{statistics.median(wall) * 1e3:.0f} ms, p95 {late * 1e3:.0f} ({cpu * 1e3:.0f} CPU)"
    table.row(what, figure, target, holds)


def ask(explorer: Explorer, table: Table, made: dict[str, Any], queries: Sequence[str]) -> None:
    def page(what: str, path: str, target: str, holds: Callable[[bytes], bool]) -> bytes:
        body, _ = explorer.get(path)
        row(table, what, [explorer.get(path)[1] for _ in range(ROUNDS)], target, holds(body))
        return body

    calls, sessions = made["calls"], made["sessions"]
    total = explorer.told("/sessions")["total"] == sessions
    home = page("home", "/", "p50 <= 100 ms", lambda body: total and f"{sessions:,}".encode() in body)
    table.row("home, weight", f"{len(home) / 1e3:.0f} kB", "<= 150 kB", total)
    narrow = urlencode({"project": "api", "model": MODELS[0], "status": "errors"})
    count = explorer.told(f"/sessions?{narrow}")["count"]
    page("home, three filters", f"/?{narrow}", "", lambda body: f"<b>{count:,}</b> of".encode() in body and count > 0)
    page("home, by cost", "/?sort=cost", "", lambda body: total)
    cursor, seen = "", set()
    for _ in range(20):
        some = explorer.told(f"/sessions?n=200&before={quote(cursor)}")
        seen |= {one["id"] for group in some["groups"] for one in group["sessions"]}
        cursor = some["next"]
    holds = len(seen) == min(sessions, 4000)
    if cursor:
        page("home, behind 4,000 sessions", f"/?before={quote(cursor)}", "", lambda body: holds)

    found = [explorer.get(f"/search?q={quote(query)}") for query in queries]
    holds = all(b'class="snip"' in body for body, _ in found)
    row(table, f"search, {len(queries)} queries", [taken for _, taken in found], "p50 <= 150 ms", holds)
    narrow = [f"{query} project:api since:14d" for query in queries]
    row(table, "search, with filters", [explorer.get(f"/search?q={quote(query)}")[1] for query in narrow], "", holds)

    # Sessions are spread over 31 days: a year holds all of them.
    whole = explorer.told("/figures?range=12m")["sums"]["totals"]["calls"] == calls
    page("figures, 30 days", "/figures", "p50 <= 300 ms", lambda body: whole and b'id="latency"' in body)
    page("figures, 12 months", "/figures?range=12m", "", lambda body: whole)
    page("figures, by project", "/figures?by=project", "", lambda body: whole)
    page("figures, of one project", "/figures?project=api", "", lambda body: whole)

    path = f"/sessions/{made['conversation']}"
    turns = re.compile(rb'<article class="turn ')
    last = f"turn {TURNS}".encode()
    screen = page(
        "a conversation of 400 turns, 2 MB", path, "p50 <= 300 ms", lambda body: len(turns.findall(body)) >= 40
    )
    table.row("its first screen, weight", f"{len(screen) / 1e3:.0f} kB", "", len(turns.findall(screen)) >= 40)
    page("its last turns", f"{path}?from={TURNS - 39}", "", lambda body: last in body)


def run(folder: Path, calls: int, sessions: int) -> int:
    root = folder / "logs"
    known = folder / "made.json"
    if not root.exists():
        known.write_text(json.dumps(make(root, calls=calls, sessions=sessions)))
    made = json.loads(known.read_text())
    if "conversation" not in made:
        told = make_conversation.make(root, TURNS, SIZE, end=int(time.time()) - 3600)
        made |= {"conversation": told["session"], "calls": made["calls"] + TURNS, "sessions": made["sessions"] + 1}
        made["bytes"] += told["bytes"]
        known.write_text(json.dumps(made))
    indexer = Indexer(folder / "index.db", root)
    indexer.catch_up_all()
    indexer.close()
    with open_index(folder / "index.db") as index:
        queries = words_of(index, QUERIES)
    table = Table()
    load = os.getloadavg()[0]
    about = f"{made['calls']} calls, {made['sessions']} sessions, load {load:.1f}"
    table.row("logs", f"{made['bytes'] / 1e6:.0f} MB", about)
    explorer = Explorer(folder)
    try:
        ask(explorer, table, made, queries)
    finally:
        explorer.close()
    return 1 if table.void else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keep the logs and the index there and use them again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return run(folder, given.calls, given.sessions)


if __name__ == "__main__":
    sys.exit(main())
