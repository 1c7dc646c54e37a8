"""What a named model costs: finding and replacing the name in a body of 1 MB, alone and through the proxy.

`python scripts/bench_rewrite.py [--calls N]`. Each pair of calls goes the transparent way and by the named model's
door, turn by turn, over kept connections to an upstream in another process; it is void where the upstream did not get
exactly the bytes that it should, or not every call is recorded. The promise: at most 5 ms more at the median.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llm_proxy.proxy.named import replaced
from llm_proxy.wire.json_span import ModelSpan

SIZE = 1_000_000
MODEL, UPSTREAM = "fast", "a-much-longer-name-upstream"


def body(model: str, size: int = SIZE) -> bytes:
    """A conversation with code in it, as agents send them; the model at the end, where it is found last."""
    source = Path(__file__).read_text()
    messages: list[dict[str, object]] = []
    length = 0
    while length < size:
        turn = len(messages)
        text = source[turn * 37 % 900 : turn * 37 % 900 + 1500]
        part = {"type": "tool_result", "tool_use_id": f"toolu_{turn:024}", "content": text}
        messages.append(
            {"role": "user" if turn % 2 else "assistant", "content": [part, {"type": "text", "text": text[:80]}]}
        )
        length += len(json.dumps(messages[-1]))
    return json.dumps({"max_tokens": 1000, "messages": messages, "model": model}).encode()


def scanned(data: bytes) -> float:
    """Seconds of processor time for one body, in the pieces in which the loop reads it."""
    pieces = [data[start : start + (1 << 18)] for start in range(0, len(data), 1 << 18)]
    began = time.thread_time()
    scanner = ModelSpan()
    for piece in pieces:
        scanner.feed(piece)
    span = scanner.found()
    assert span is not None
    list(replaced(pieces, span, json.dumps(UPSTREAM).encode()))
    return time.thread_time() - began


def upstream(listener: socket.socket, digests: set[str]) -> None:
    """Answers each request with whether its body was one of those expected."""
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            _serve(link, digests)
            os._exit(0)


def _serve(link: socket.socket, digests: set[str]) -> None:
    held = b""
    while True:
        while (end := held.find(b"\r\n\r\n")) < 0:
            data = link.recv(1 << 20)
            if not data:
                return
            held += data
        length = int(held[:end].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        pieces, left = [held[end + 4 :]], length - len(held) + end + 4
        while left > 0:
            pieces.append(link.recv(1 << 20))
            left -= len(pieces[-1])
        held = b""
        good = hashlib.sha256(b"".join(pieces)).hexdigest() in digests
        link.sendall(b"HTTP/1.1 %d OK\r\nContent-Length: 2\r\n\r\nok" % (200 if good else 500))


def ask(link: socket.socket, path: str, data: bytes) -> float:
    """Seconds until the answer. Raises SystemExit where it says that the body was another."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    began = time.perf_counter()
    link.sendall(head + data)
    answer = link.recv(65536)
    took = time.perf_counter() - began
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"void: {answer[:300]!r}")
    return took


def recorded(logs: Path, wanted: int, limit: float = 60.0) -> None:
    """Wait until every call is in the session logs, whole. Raises SystemExit where that does not come to be."""
    deadline = time.monotonic() + limit
    while (found := _complete(logs)) != wanted:
        if time.monotonic() > deadline:
            raise SystemExit(f"void: {wanted} calls were made, {found} are recorded as complete")
        time.sleep(0.2)


def _complete(logs: Path) -> int:
    lines = (line for path in logs.rglob("*.jsonl") for line in path.read_bytes().splitlines())
    entries = (json.loads(line) for line in lines if line.endswith(b"}"))
    return sum(one["type"] == "response" and one["ending"] == "complete" and one["status"] == 200 for one in entries)


def measured(calls: int) -> tuple[list[float], list[float]]:
    """Seconds of each call: transparent, and by the named model's door."""
    sent, wanted = body(MODEL), body(UPSTREAM)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = listener.getsockname()[1]
    digests = {hashlib.sha256(wanted).hexdigest()}
    server = multiprocessing.get_context("fork").Process(target=upstream, args=(listener, digests), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as home:
        config = Path(home, "config.toml")
        config.write_text(
            f'port = 0\n[[models]]\nname = "{MODEL}"\nmodel = "{UPSTREAM}"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        )
        command = [sys.executable, "-m", "llm_proxy", "--config", str(config)]
        proxy = subprocess.Popen(command, env=os.environ | {"HOME": home}, stdout=subprocess.PIPE, text=True)
        assert proxy.stdout is not None
        ours = int(proxy.stdout.readline().split("127.0.0.1:")[1])
        try:
            through: tuple[list[float], list[float]] = ([], [])
            plain = socket.create_connection(("127.0.0.1", ours))
            named = socket.create_connection(("127.0.0.1", ours))
            for number in range(calls + 5):
                first = ask(plain, f"/openai/127.0.0.1:{port}/v1/chat/completions", wanted)
                second = ask(named, "/v1/chat/completions", sent)
                if number >= 5:  # the first ones find connections and memory
                    through[0].append(first)
                    through[1].append(second)
                time.sleep(0.02)  # so that the journal is drained in between
            recorded(Path(home, ".llm-provider-logs"), 2 * (calls + 5))
            return through
        finally:
            proxy.terminate()
            proxy.wait(30)
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    given = parser.parse_args()
    data = body(MODEL)
    alone = sorted(scanned(data) for _ in range(given.calls))
    print(f"body of {len(data):,} bytes; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"scanning and replacing: p50 {statistics.median(alone) * 1e3:.2f} ms of processor time")
    plain, named = measured(given.calls)
    added = statistics.median(named) - statistics.median(plain)
    for name, times in (("transparent", plain), ("named model", named)):
        p50, p95 = statistics.median(times), sorted(times)[len(times) * 95 // 100]
        print(f"{name}: p50 {p50 * 1e3:.2f} ms, p95 {p95 * 1e3:.2f} ms")
    print(f"added at the median: {added * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
