"""The gateway beside LiteLLM's proxy: one worker each, the same provider that answers at once, everything recorded.

Passed through (OpenAI's chat API to OpenAI's) and translated (to Anthropic's), whole and as streams. A run of ours is
void where a call is missing from the session logs or from the gateway's own usage.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import uvloop

from bench_suite.contestants import ROOT, Record, announced, free_port, running, seen_by, throwaway, wait_for
from bench_suite.table import Row

LITELLM = ROOT / ".cache/litellm"
CONNECTIONS = 16
STREAMS = 500
SIZE = 2_000  # bytes of a prompt
MODELS = {"passed through": "fast", "translated": "smart"}
_FIRST = 5  # calls
_PASSWORD = "a long and private one"

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = '{body}'
function done(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.duration, failed, latency:percentile(50)))
end
"""


@dataclass(frozen=True, slots=True)
class Gate:
    """A gateway with both models: where it listens, the key that opens it, its processes, and our record."""

    name: str
    port: int
    key: str
    worker: Callable[[], psutil.Process] | None = None
    home: Path | None = None


@dataclass(frozen=True, slots=True)
class Run:
    answered: int
    rate: float
    p50: float  # µs
    failed: int


def rows(*, quick: bool) -> list[Row]:
    seconds, rounds = (4, 1) if quick else (8, 3)
    rates: dict[tuple[str, str], list[float]] = {}
    added: dict[tuple[str, str], list[float]] = {}
    void = ""
    for _ in range(rounds):
        for make in (_direct, _litellm, _ours):
            with _instant() as upstream, make(upstream) as gate:
                for kind, model in MODELS.items():
                    _warm(gate, model)
                    rates.setdefault((gate.name, kind), []).append(
                        (run := _wrk(gate, model, seconds, CONNECTIONS)).rate
                    )
                    alone = _wrk(gate, model, max(seconds // 3, 1), 1)
                    added.setdefault((gate.name, kind), []).append(alone.p50)
                    if run.failed or alone.failed:
                        void = void or f"{gate.name}: {run.failed + alone.failed} calls failed"
                void = void or _missing(gate, upstream)
    done = []
    for kind in MODELS:
        rate = {name: median(rates[name, kind]) for name in ("direct", "litellm", "ours")}
        ratio = median(a / b for a, b in zip(rates["ours", kind], rates["litellm", kind], strict=True))
        done.append(
            Row(f"gateway, {kind}, requests/s", {name: f"{one:,.0f}" for name, one in rate.items()}, ratio, void)
        )
        more = {
            name: median(a - b for a, b in zip(added[name, kind], added["direct", kind], strict=True)) / 1000
            for name in ("litellm", "ours")
        }
        cells = {"direct": f"{median(added['direct', kind]) / 1000:.2f} ms"}
        cells |= {name: f"+{one:.2f} ms" for name, one in more.items()}
        done.append(Row(f"gateway, {kind}, added p50", cells, more["ours"], void))
    return [*done, *_streams(quick), *_memory(quick)]


# --- streams


def _streams(quick: bool) -> Iterator[Row]:
    """The first token beside direct, and 500 at once with nothing lost."""
    rounds = 50 if quick else 300
    with _instant() as upstream, _direct(upstream) as gate:
        straight = median(uvloop.run(_first_tokens(gate, "/v1/messages", rounds)))
    with _instant() as upstream, _ours(upstream) as gate:
        ours = median(uvloop.run(_first_tokens(gate, "/v1/chat/completions", rounds)))
        void = _missing(gate, upstream)
    with _instant() as upstream, _litellm(upstream) as gate:
        litellm = median(uvloop.run(_first_tokens(gate, "/v1/chat/completions", rounds // 5)))
    cells = {"direct": f"{straight * 1e3:.2f} ms", "ours": f"+{(ours - straight) * 1e3:.2f} ms"}
    cells["litellm"] = f"+{(litellm - straight) * 1e3:.2f} ms"
    yield Row("gateway, first token of a translated stream", cells, (ours - straight) * 1e3, void)
    with _instant("--pause", "2000") as upstream, _ours(upstream) as gate:
        begun = time.monotonic()
        whole = uvloop.run(_at_once(gate, STREAMS))
        took = time.monotonic() - begun
        void = _missing(gate, upstream)
    cells = {"ours": f"{whole} whole, {took:.1f} s"}
    yield Row(f"gateway, {STREAMS} translated streams at once, lost", cells, STREAMS - whole, void)


async def _first_tokens(gate: Gate, path: str, rounds: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
    message = _message(gate, path, "smart")
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        writer.write(message)
        data = b""
        while b"all " not in data:
            data += await _some(reader)
        found.append(time.perf_counter() - begun)
        while not data.endswith(b"0\r\n\r\n"):
            data += await _some(reader)
    writer.close()
    return found


async def _some(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(1 << 16)
    if not data:
        raise ConnectionError("the gateway closed the connection in the middle of a stream")
    return data


async def _at_once(gate: Gate, count: int) -> int:
    """How many of so many streams that are open together came to their end, every word in its place."""
    from bench_suite.instant import WORDS

    async def one() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(_message(gate, "/v1/chat/completions", "smart"))
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += await _some(reader)
        writer.close()
        lines = [line[6:] for line in data.splitlines() if line.startswith(b"data: {")]
        chunks = [json.loads(line) for line in lines]
        words = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        return words.split() == WORDS.split() and b"data: [DONE]" in data

    return sum([done is True for done in await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)])


def _message(gate: Gate, path: str, model: str) -> bytes:
    body = _body(model, stream=True)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{gate.port}\r\nAuthorization: Bearer {gate.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _body(model: str, **more: object) -> bytes:
    told = {"model": model, "messages": [{"role": "user", "content": "x" * SIZE}], "max_tokens": 100, **more}
    return json.dumps(told).encode()


# --- memory


def _memory(quick: bool) -> Iterator[Row]:
    calls = 5_000 if quick else 200_000
    with _instant() as upstream, _ours(upstream) as gate:
        assert gate.worker is not None
        sizes = []
        for _ in range(4):
            done = 0
            while done < calls // 4:
                done += _wrk(gate, "smart" if len(sizes) % 2 else "fast", 2 if quick else 10, CONNECTIONS).answered
            sizes.append(_size(gate.worker()))
        void = _missing(gate, upstream)
    cells = {"ours": " → ".join(f"{size:.0f}" for size in sizes) + " MB"}
    yield Row(f"gateway, memory over {calls:,} requests", cells, sizes[-1], void)
    yield Row("gateway, memory, last quarter beside the second", {}, sizes[-1] / sizes[1], void)


def _size(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


# --- the provider and the three


def _instant(*options: str) -> AbstractContextManager[int]:
    """A provider of each contestant's own, which counts what it sees; its port."""
    return announced([sys.executable, "-m", "bench_suite.instant", *options])


@contextmanager
def _direct(upstream: int) -> Iterator[Gate]:
    yield Gate("direct", upstream, "sk-none")


@contextmanager
def _litellm(upstream: int) -> Iterator[Gate]:
    port, key = free_port(), "sk-litellm"
    with throwaway() as home:
        config = home / "config.yaml"
        base = f"http://127.0.0.1:{upstream}"
        told = {
            "model_list": [
                {"model_name": "fast", "litellm_params": _model("openai/gpt-4o-mini", f"{base}/v1")},
                {"model_name": "smart", "litellm_params": _model("anthropic/claude-sonnet-4-5", base)},
            ],
            "general_settings": {"master_key": key},
            "litellm_settings": {"telemetry": False},
        }
        config.write_text(json.dumps(told))
        options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
        environ |= {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with running([str(_program()), *options], environ, home) as pid:
            wait_for(lambda: _lives(f"http://127.0.0.1:{port}/health/liveliness"), "LiteLLM", 120)
            yield Gate("litellm", port, key, lambda: psutil.Process(pid))


def _model(name: str, base: str) -> dict[str, str]:
    return {"model": name, "api_base": base, "api_key": "sk-1"}


def _program() -> Path:
    """LiteLLM's proxy, installed on first use."""
    program = LITELLM / "bin/litellm"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", LITELLM], check=True)
        subprocess.run([LITELLM / "bin/python", "-m", "pip", "install", "--quiet", "litellm[proxy]"], check=True)
    return program


@contextmanager
def _ours(upstream: int) -> Iterator[Gate]:
    port = free_port()
    with throwaway() as home:
        environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
        environ["LLM_PROXY_UPSTREAMS_ALLOW"] = base = f"http://127.0.0.1:{upstream}"
        try:
            with running(
                [sys.executable, "-I", "-m", "llm_proxy", "gateway", "--port", str(port)], environ, home
            ) as pid:
                ask = _Asking(f"http://127.0.0.1:{port}")
                wait_for(lambda: _lives(f"{ask.url}/health/gateway"), "our gateway", 60)
                key = _furnish(ask, base)
                yield Gate("ours", port, key, lambda: _worker(pid), home)
        finally:
            for pointer in home.glob(".local/state/llm-proxy/journal/*/ring"):
                Path(pointer.read_text()).unlink(missing_ok=True)


def _worker(pid: int) -> psutil.Process:
    return next(child for child in psutil.Process(pid).children() if "llm_proxy.gateway" in child.cmdline())


class _Asking:
    def __init__(self, url: str) -> None:
        self.url = url
        self.token = ""

    def post(self, path: str, body: object) -> Any:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        asked = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read() or b"null")


def _furnish(ask: _Asking, base: str) -> str:
    """An account, a key for each provider, both aliases; an API key."""
    who = {"email": "bench@example.com", "password": _PASSWORD}
    ask.post("/auth/signup", who)
    ask.token = ask.post("/auth/login", who)["token"]
    for name, provider, model, url in (
        ("fast", "openai", "gpt-4o-mini", f"{base}/v1"),
        ("smart", "anthropic", "claude-sonnet-4-5", base),
    ):
        told = {"provider": provider, "api_key": "a-key-of-the-provider", "base_url": url}
        row = ask.post("/manage/providers", told)
        ask.post("/manage/aliases", {"alias": name, "target_model": model, "provider_key_id": row["id"]})
    return str(ask.post("/auth/key", {})["token"])


def _lives(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- load and its proof


def _warm(gate: Gate, model: str) -> None:
    """The first calls load what is loaded on first use."""
    path = _path(gate, model)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {gate.key}"}
    for _ in range(_FIRST):
        asked = urllib.request.Request(f"http://127.0.0.1:{gate.port}{path}", _body(model), headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            answer.read()
    _wrk(gate, model, 1, CONNECTIONS)


def _path(gate: Gate, model: str) -> str:
    return "/v1/messages" if gate.name == "direct" and model == "smart" else "/v1/chat/completions"


def _wrk(gate: Gate, model: str, seconds: int, connections: int) -> Run:
    with throwaway() as place:
        script = place / "wrk.lua"
        script.write_text(_SCRIPT.format(key=gate.key, body=_body(model).decode()))
        path = _path(gate, model)
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "-s",
            script,
            f"http://127.0.0.1:{gate.port}{path}",
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    answered, microseconds, failed, p50 = map(int, done.stdout.rpartition("RESULT ")[2].split())
    return Run(answered, answered / microseconds * 1e6, p50, failed)


def _missing(gate: Gate, upstream: int) -> str:
    """What keeps a run of ours from counting: a call that the provider saw and the session logs or the usage do not."""
    if gate.home is None:
        return ""
    seen, record = seen_by(upstream), Record(gate.home)
    if not record.wait_for(seen, 600):
        return f"{record.calls} of {seen} calls are in the session logs"
    database = gate.home / ".local/share/llm-proxy/gateway/gateway.db"
    deadline = time.monotonic() + 60
    while (rows := _rows(database)) < seen:
        if time.monotonic() > deadline:
            return f"{rows} of {seen} calls are in the gateway's usage"
        time.sleep(0.1)
    return ""


def _rows(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as link:
        return int(link.execute("SELECT count(*) FROM request_logs WHERE attempt > 0").fetchone()[0])
