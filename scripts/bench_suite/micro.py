"""Units of the hot path in µs, for whoever tunes it: CPU time of this thread, the best of many runs. No sockets.

The journal is a real one, drained by its real threads, so the last two units pay for it as the daemon does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_suite.client import ANSWER, head
from bench_suite.contestants import Contestant
from bench_suite.table import Row
from llm_proxy.journal.frames import Kind, pack_header
from llm_proxy.journal.writer import Journal
from llm_proxy.proxy.client import ClientConnection
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.server import Proxy, ProxyConfig
from llm_proxy.proxy.upstream import UpstreamConnection
from llm_proxy.wire.head import parse_request, parse_response

_ANSWER_HEAD = b"""HTTP/1.1 200 OK\r
Date: Fri, 21 Nov 2025 10:00:00 GMT\r
Content-Type: application/json\r
Content-Length: %d\r
anthropic-ratelimit-requests-limit: 4000\r
anthropic-ratelimit-requests-remaining: 3999\r
anthropic-ratelimit-requests-reset: 2025-11-21T10:00:00Z\r
request-id: req_011CVLFrZ1ZPFGAbc\r
anthropic-organization-id: 0b0c9c7e-0000-4000-8000-000000000000\r
Server: cloudflare\r
CF-RAY: 9a1f0b1c2d3e4f50-FRA\r
\r
"""


class NullTransport(asyncio.Transport):
    """Takes everything, sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def write(self, data: Any) -> None:
        self.written += len(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None: ...

    def abort(self) -> None: ...


def rows(*, quick: bool) -> list[Row]:
    runs = 5 if quick else 40
    with TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        journal = Journal.open(Path(name), ring_size=8 << 20, cap=1 << 40)
        with closing(journal):
            figures = asyncio.run(_units(journal, runs))
    return [Row(f"unit: {what}", {"ours": f"{figure:.2f} µs"}) for what, figure in figures.items()]


async def _units(journal: Journal, runs: int) -> dict[str, float]:
    proxy = Proxy(ProxyConfig(), journal)
    requests = proxy.core.requests
    body = b"x" * 2000
    raw = head(Contestant("ours", 8080, "/anthropic/127.0.0.1:9000"), len(body))
    answer = _ANSWER_HEAD % ANSWER
    request = requests.route(raw, *requests.parse(raw))
    frame = pack_header(Kind.REQUEST, 0, 1, 0, len(body))

    def put() -> None:
        while not journal.ring.put(frame, body):
            journal.wake()
            time.sleep(0.001)  # until there is room again; only CPU time is counted

    units: dict[str, Callable[[], object]] = {
        "request head of 18 fields, parsed": lambda: parse_request(raw),
        "response head of 10 fields, parsed": lambda: parse_response(answer),
        "request head: parsed, gate, route, outgoing and recorded head": lambda: requests.route(
            raw, *requests.parse(raw)
        ),
        "the same for a head seen before": lambda: requests.known(raw),
        "2 kB frame into the ring": put,
        "one exchange of 2 kB, both ways": _exchange(
            proxy.core, request.prepared.route.key, raw + body, answer + b"y" * ANSWER
        ),
    }
    return {what: _best(unit, runs) for what, unit in units.items()}


def _exchange(core: Core, key: Any, message: bytes, answer: bytes) -> Callable[[], object]:
    """A call through both connections and the relay between them."""
    client, upstream = ClientConnection(core), UpstreamConnection(key)
    back = NullTransport()
    client.connection_made(back)
    upstream.connection_made(NullTransport())
    upstream.pool = core.pool
    upstream.release()

    def once() -> None:
        client.data_received(message)
        upstream.data_received(answer)

    once()
    assert back.written == len(answer), f"the client was sent {back.written} of {len(answer)} bytes"
    return once


def _best(unit: Callable[[], object], runs: int, calls: int = 500) -> float:
    """µs per call in the best run. Between runs the drain thread has its turn."""
    best = float("inf")
    for _ in range(runs):
        begun = time.thread_time_ns()
        for _ in range(calls):
            unit()
        best = min(best, (time.thread_time_ns() - begun) / calls / 1000)
        time.sleep(0.03)
    return best
