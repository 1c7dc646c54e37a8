"""How fast the keeper turns journal into session logs: `python scripts/bench_keeper.py [exchanges] [--profile]`.

Writes a journal of 2 kB exchanges of some conversations into a throw-away folder, lets a keeper settle it, prints
exchanges per second, and counts the entries: a wrong number makes the figure void.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llm_proxy.journal import segments
from llm_proxy.journal.frames import Closing, Flag, Kind, pack, pack_end, pack_open, route_facts

BLOCK = 256 << 10
SEGMENT = 64 << 20
SESSIONS = 16
FACTS = route_facts("anthropic", "https", "api.anthropic.com", "bare path")


def frames(number: int) -> bytes:
    """One exchange: a request and an answer of 2 kB."""
    session = f"bench-{number % SESSIONS}"
    request = b'{"model":"m","max_tokens":10,"messages":[{"role":"user","content":"%b"}]}' % (b"x" * 1930)
    answer = b'{"type":"message","content":[{"type":"text","text":"%b"}]}' % (b"y" * 1950)
    head = (
        "POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Type: application/json\r\n"
        f"X-Claude-Code-Session-Id: {session}\r\nUser-Agent: bench/1.0\r\nAnthropic-Version: 2023-06-01\r\n"
        f"X-Api-Key: sk-ant-...0000\r\nContent-Length: {len(request)}\r\n\r\n"
    ).encode()
    answer_head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRequest-Id: req_1\r\nServer: bench\r\n"
        f"Content-Length: {len(answer)}\r\n\r\n"
    ).encode()
    opened = number * 1_000_000
    wall = time.time_ns()
    closing = Closing(0, 0, 0, len(request), len(answer), wall, opened + 900_000, "")
    return b"".join(
        (
            pack(Kind.OPEN, 0, number, opened, pack_open(os.urandom(16), wall, FACTS, head)),
            pack(Kind.REQUEST, Flag.LAST, number, opened + 10, request),
            pack(Kind.HEAD, 0, number, opened + 900_000, answer_head),
            pack(Kind.RESPONSE, Flag.LAST, number, opened + 910_000, answer),
            pack(Kind.END, 0, number, opened + 920_000, pack_end(closing)),
        )
    )


def write_journal(folder: Path, exchanges: int) -> None:
    folder.mkdir(mode=0o700)
    run, number, place = os.urandom(16), 1, 0
    writer = segments.SegmentWriter(folder, segments.SegmentHead(run, number, 0, 0))
    block = bytearray()
    for serial in range(1, exchanges + 1):
        block += frames(serial)
        if len(block) < BLOCK and serial < exchanges:
            continue
        if writer.size > SEGMENT:
            writer.close()
            number += 1
            writer = segments.SegmentWriter(folder, segments.SegmentHead(run, number, 0, 0))
        writer.append(memoryview(bytes(block)), place)
        place += len(block)
        block.clear()
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("exchanges", type=int, nargs="?", default=20_000)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_journal(folder / "journal", given.exchanges)
        profiler = ["-m", "cProfile", "-s", "tottime"] if given.profile else []
        arguments = ["--journal", folder / "journal", "--logs", folder / "logs", "--state", folder / "state"]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *profiler, "-m", "llm_proxy.keeper", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        took = time.perf_counter() - begun
        if given.profile:
            print("\n".join(done.stdout.splitlines()[:45]))
        lines = [line for path in (folder / "logs").rglob("*.jsonl") for line in path.read_bytes().splitlines()]
        expected = 2 * given.exchanges + SESSIONS
        print(f"{given.exchanges / took:,.0f} exchanges/s ({given.exchanges} in {took:.2f} s, start-up included)")
        print(f"{len(lines)} entries, {expected} expected")
        return 0 if len(lines) == expected else 1


if __name__ == "__main__":
    sys.exit(main())
