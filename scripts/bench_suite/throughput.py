"""Requests per second at 64 connections, and what they cost in CPU time.

Every run has processes of its own and ends before its journal could reach the cap; the next one begins when the
keeper is done. The session logs are counted against what the client got and what the provider saw: a run of ours
with a call missing is void.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from bench_suite.client import SESSIONS, request
from bench_suite.contestants import Contestant, Maker, mitmdump, nginx, ours, ours_asyncio, provider, seen_by
from bench_suite.table import Row

CONNECTIONS = 64
SIZE = 2_000  # bytes of the request's body

_SCRIPT = """
local requests, turn = {{}}, 0
for number = 0, {last} do
    local file = io.open("{folder}/" .. number, "rb")
    requests[number] = file:read("*a")
    file:close()
end
function request()
    turn = turn + 1
    return requests[turn % {sessions}]
end
function done(summary)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("RESULT %d %d %d\\n", summary.requests, summary.duration, failed))
end
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: calls answered, calls/s, CPU seconds per 1,000 calls, and of the keeper how far it was behind."""

    answered: int
    rate: float
    cpu: float
    keeper_cpu: float = 0.0
    behind: float = 0.0  # MB of journal at the end of the run
    drained_after: float = 0.0  # seconds
    void: str = ""


def rows(*, quick: bool) -> list[Row]:
    seconds, rounds = (2, 1) if quick else (5, 3)
    runs: dict[str, list[Run]] = {}
    for _ in range(rounds):
        for make in (nginx, ours, mitmdump, ours_asyncio):
            _add(runs, make, seconds)
    rate = {name: median(run.rate for run in figures) for name, figures in runs.items()}
    cpu = {name: median(run.cpu for run in figures) for name, figures in runs.items()}
    both = [name for name in runs if name.startswith("ours")]
    keeper = {name: median(run.keeper_cpu for run in runs[name]) for name in both}
    behind = {
        name: f"{max(run.behind for run in runs[name]):.0f} MB, {max(run.drained_after for run in runs[name]):.0f} s"
        for name in both
    }
    void = next((run.void for figures in runs.values() for run in figures if run.void), "")
    against_nginx, against_mitmdump = (_ratio(runs, name, lambda run: run.rate) for name in ("nginx", "mitmdump"))
    cost = _ratio(runs, "nginx", lambda run: run.cpu)
    return [
        Row("requests/s, 64 connections", _cells(rate, ",.0f"), against_nginx, void),
        Row("the same beside mitmdump", {}, against_mitmdump, void),
        Row("CPU s per 1,000 requests", _cells(cpu, ".3f"), cost, void),
        Row("the keeper's CPU s per 1,000", _cells(keeper, ".3f")),
        Row("the keeper behind at the end, at most", behind),
        Row("requests in the longest run", {name: f"{max(run.answered for run in runs[name]):,}" for name in runs}),
    ]


def _add(runs: dict[str, list[Run]], make: Maker, seconds: int) -> None:
    with provider() as upstream, make(upstream) as contestant:
        runs.setdefault(contestant.name, []).append(_run(contestant, upstream, seconds))


def _ratio(runs: dict[str, list[Run]], other: str, figure: Callable[[Run], float]) -> float:
    """Ours to the other's, paired round by round."""
    return median(figure(our) / figure(its) for our, its in zip(runs["ours"], runs[other], strict=True))


def _run(to: Contestant, upstream: int, seconds: int) -> Run:
    assert to.process is not None
    with _load(to) as wrk:
        warm, _, _ = wrk(1)
        if to.record:
            to.record.wait_for(warm)
        before, keeper_before = _cpu(to.process), _cpu(to.keeper)
        answered, took, failed = wrk(seconds)
    cpu = (_cpu(to.process) - before) / answered * 1000
    void = f"{to.name}: {failed} calls failed" if failed else ""
    if to.record is None:
        return Run(answered, answered / took, cpu, void=void)
    begun, behind = time.monotonic(), to.record.journal_size() / 1e6
    seen = seen_by(upstream)
    if not to.record.wait_for(seen):
        void = f"{to.name}: {to.record.calls} of {seen} calls are in the logs"
    elif to.record.calls > seen + 2 * CONNECTIONS or to.record.incomplete or to.record.endings["complete"] < answered:
        void = f"{to.name}: {dict(to.record.endings)}, {to.record.incomplete} incomplete, of {seen} calls"
    keeper_cpu = (_cpu(to.keeper) - keeper_before) / answered * 1000
    return Run(answered, answered / took, cpu, keeper_cpu, behind, time.monotonic() - begun, void)


@contextmanager
def _load(to: Contestant) -> Iterator[_Wrk]:
    with TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        folder = Path(name)
        for number in range(SESSIONS):
            (folder / str(number)).write_bytes(request(to, SIZE, session=number))
        script = folder / "wrk.lua"
        script.write_text(_SCRIPT.format(folder=folder, last=SESSIONS - 1, sessions=SESSIONS))
        yield _Wrk(to.port, script)


@dataclass(frozen=True, slots=True)
class _Wrk:
    port: int
    script: Path

    def __call__(self, seconds: int) -> tuple[int, float, int]:
        """Load for that long: calls answered, seconds it took, calls that failed."""
        done = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", self.script, f"http://127.0.0.1:{self.port}/"],
            check=True,
            capture_output=True,
            text=True,
        )
        answered, microseconds, failed = map(int, done.stdout.rpartition("RESULT ")[2].split())
        return answered, microseconds / 1e6, failed


def _cpu(process: psutil.Process | None) -> float:
    """User and system time so far, in seconds."""
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


def _cells(figures: dict[str, float], form: str) -> dict[str, str]:
    return {name: format(figure, form) for name, figure in figures.items()}
