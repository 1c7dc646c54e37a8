"""How fast a lane brings a backlog to Loki, and what all sinks together add to the latency of calls.

The receiver is the fake Loki in a process of its own, which reads and checks every entry; a figure is void where it
does not count what was sent.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median

import psutil

from bench_suite.added import percentiles
from bench_suite.client import Client, request
from bench_suite.contestants import Contestant, announced, daemon, direct, ours, provider
from bench_suite.table import Row
from tests.lokibed import LINES, Bed

PER_SESSION = 50
SINKS = ("daily", "csv", "dataset", "loki", "otlp")


def rows(*, quick: bool) -> list[Row]:
    return [
        _backlog("Loki, entries/s, small calls", 2_500 if quick else 12_500, "hello"),
        _backlog("Loki, entries/s, requests of 20 kB", 500 if quick else 2_500, "word " * 4000),
        _latency(quick),
    ]


def _backlog(name: str, calls: int, text: str) -> Row:
    wanted = calls * LINES + calls // PER_SESSION
    with tempfile.TemporaryDirectory(prefix="llm-proxy-bench-") as folder, _loki() as port:
        bed = Bed(Path(folder))
        bed.make(calls, per_session=PER_SESSION, text=text, step=0.01)
        lanes = bed.lanes(f"http://127.0.0.1:{port}/loki/api/v1/push")
        process = psutil.Process(lanes.process.pid)
        while not _counts(port)["pushes"]:  # its start is no part of it
            time.sleep(0.005)
        before, begun = _counts(port)["accepted"], time.monotonic()
        most = 0
        while (seen := _counts(port))["accepted"] < wanted and time.monotonic() - begun < 300:
            most = max(most, process.memory_info().rss)
            time.sleep(0.02)
        took = time.monotonic() - begun
        spent = process.cpu_times()
        lanes.stop()
    rate = (wanted - before) / took
    busy = (spent.user + spent.system) * 1e6 / wanted
    void = "" if seen["accepted"] == wanted and not seen["duplicates"] else f"{seen} of {wanted}"
    return Row(name, {"ours": f"{rate:,.0f} ({busy:.0f} µs of processor each, {most / 1e6:.0f} MB)"}, rate, void)


def _latency(quick: bool) -> Row:
    """One connection, in turn: direct, without sinks, with all of them; p50 over direct, the median of the rounds."""
    count, calls = (3, 300) if quick else (15, 1000)
    rounds, missing = [], ""
    with ExitStack() as stack:
        upstream = stack.enter_context(provider())
        port, backend = stack.enter_context(_loki()), stack.enter_context(announced(_run("bench_suite.backend")))
        every = stack.enter_context(_with_sinks(upstream, port, backend))
        contestants = [stack.enter_context(direct(upstream)), stack.enter_context(ours(upstream)), every]
        clients = [stack.enter_context(closing(Client(one))) for one in contestants]
        for number in range(count + 1):
            figures = {}
            for client in clients[number % 3 :] + clients[: number % 3]:
                to, sent = client.to, calls * (number + 1)
                messages = [request(to, 2_000, session=session) for session in range(16)]
                figures[to.name] = percentiles([client.call(messages[n % 16]) for n in range(calls)])
                if to.record and not to.record.wait_for(sent):
                    missing = f"{to.name}: {to.record.calls} of {sent} calls are in the logs"
                if to is every and (behind := _behind(to, sent)):
                    missing = behind
            rounds.append(figures)
        if not missing and (seen := _counts(port)["accepted"]) < calls * (count + 1) * LINES:
            missing = f"Loki has {seen} entries"
    off, on = (median(one[name][0] - one["direct"][0] for one in rounds[1:]) for name in ("ours", "every sink"))
    ratio = median(
        (one["every sink"][0] - one["direct"][0]) / (one["ours"][0] - one["direct"][0]) for one in rounds[1:]
    )
    plain = median(one["direct"][0] for one in rounds[1:])
    cells = {"direct": f"{plain:.0f} µs", "ours": f"+{off:.0f} µs without, +{on:.0f} µs with"}
    return Row("added latency p50, every sink on", cells, ratio, missing)


@contextmanager
def _with_sinks(upstream: int, loki: int, backend: int) -> Iterator[Contestant]:
    told = {
        "LLM_PROXY_SINKS": ",".join(("sessions", *SINKS)),
        "LLM_PROXY_DAILY_FOLDER": "~/daily",  # what lies with the session logs is counted as one
        "LLM_PROXY_LOKI_URL": f"http://127.0.0.1:{loki}",
        "LLM_PROXY_LOKI_BATCH_WAIT": "1s",
        "LLM_PROXY_OTLP_ENDPOINT": f"http://127.0.0.1:{backend}",
    }
    with daemon("every sink", "uvloop", upstream, **told) as contestant:
        yield contestant


def _behind(to: Contestant, sent: int) -> str:
    """Which sinks have not got so many calls within a minute; empty where all have."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{to.port}/health/sinks") as answer:
                told = json.load(answer)["sinks"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["sinks"]
        passed = {name: told[name]["passed"] for name in SINKS}
        if min(passed.values()) >= sent:
            return ""
        if time.monotonic() > deadline:
            return f"{passed} of {sent} calls"
        time.sleep(0.1)


@contextmanager
def _loki() -> Iterator[int]:
    with announced(_run("tests.fakeloki")) as port:
        yield port


def _run(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _counts(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/fake/counts") as answer:
        return dict(json.load(answer))
