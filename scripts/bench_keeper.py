"""How fast the keeper turns journal into record: `python scripts/bench_keeper.py [exchanges] [--agents] [--profile]`.

Writes a journal into a throw-away folder, lets a keeper settle it, prints exchanges per second. Without `--agents`: 2
kB exchanges to session logs alone. With it: the traffic of coding agents (requests of 20 kB that send their history
again, at most 2 kB of new text per call, answers streamed) to session logs, understood, priced, secrets looked for, and
into the index. Everything is counted afterwards: a wrong number makes the figure void.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from make_logs import Words

from llm_proxy.index.queries import Filter, open_index
from llm_proxy.journal import segments
from llm_proxy.journal.frames import Closing, Flag, Kind, pack, pack_end, pack_open, route_facts
from llm_proxy.keeper.options import Options

BLOCK = 256 << 10
SEGMENT = 64 << 20
SESSIONS = 16  # at a time
CALLS = 20  # of an agent's session
FACTS = route_facts("anthropic", "https", "api.anthropic.com", "bare path")


def exchange(number: int, request: bytes, answer: bytes, media_type: str, session: str) -> bytes:
    head = (
        "POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Type: application/json\r\n"
        f"{session}User-Agent: bench/1.0\r\nAnthropic-Version: 2023-06-01\r\n"
        f"X-Api-Key: sk-ant-...0000\r\nContent-Length: {len(request)}\r\n\r\n"
    ).encode()
    answer_head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nRequest-Id: req_1\r\nServer: bench\r\n"
        f"Content-Length: {len(answer)}\r\n\r\n"
    ).encode()
    opened = number * 1_000_000
    wall = START + opened
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


START = time.time_ns() - 3600 * 10**9


def small(count: int, sessions: set[int], together: int) -> Iterator[bytes]:
    """Requests and answers of 2 kB, of so many sessions, whose numbers are left in `sessions`."""
    request = b'{"model":"m","max_tokens":10,"messages":[{"role":"user","content":"%b"}]}' % (b"x" * 1930)
    answer = b'{"type":"message","content":[{"type":"text","text":"%b"}]}' % (b"y" * 1950)
    for number in range(1, count + 1):
        session = f"X-Claude-Code-Session-Id: bench-{number % together}\r\n"
        sessions.add(number % together)
        yield exchange(number, request, answer, "application/json", session)


class Agent:
    """One conversation. Every second one gives no id: its calls are to be known by what they repeat."""

    def __init__(self, number: int, words: Words, chance: random.Random, system: str) -> None:
        self.number = number
        self.session = f"X-Claude-Code-Session-Id: bench-{number}\r\n" if number % 2 else ""
        self.words, self.chance, self.system = words, chance, system
        self.messages: list[dict[str, object]] = [{"role": "user", "content": f"task {number}: {words.text(1000)}"}]
        self.calls = 0

    def request(self) -> bytes:
        asked = {"model": "claude-sonnet-4-5", "max_tokens": 4096, "stream": True, "system": self.system}
        return json.dumps(asked | {"messages": self.messages}).encode()

    def answer(self) -> bytes:
        """A streamed text and a tool call; what the tool gives is in the next request."""
        self.calls += 1
        text, tool = self.words.text(self.chance.randint(100, 500)), f"toolu_{self.calls}"
        arguments = {"command": self.words.text(60)}
        used = {"type": "tool_use", "id": tool, "name": "Bash", "input": arguments}
        result = {
            "type": "tool_result",
            "tool_use_id": tool,
            "content": self.words.text(self.chance.randint(200, 1300)),
        }
        self.messages += [
            {"role": "assistant", "content": [{"type": "text", "text": text}, used]},
            {"role": "user", "content": [result]},
        ]
        return b"".join(events(text, used, json.dumps(arguments)))


def events(text: str, used: dict[str, object], arguments: str) -> Iterator[bytes]:
    usage = {"input_tokens": 9, "cache_read_input_tokens": 5000, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": []}
    yield event("message_start", message=message | {"usage": usage})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for start in range(0, len(text), 50):
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": text[start : start + 50]})
    yield event("content_block_stop", index=0)
    yield event("content_block_start", index=1, content_block=used | {"input": {}})
    yield event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": arguments})
    yield event("content_block_stop", index=1)
    yield event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 120})
    yield event("message_stop")


def event(name: str, **data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()


def agents(count: int, sessions: set[int]) -> Iterator[bytes]:
    """Conversations, some at a time. Their numbers are left in `sessions`."""
    chance = random.Random(1)
    words = Words(chance)
    system = words.text(4000)
    running: list[Agent] = []
    begun = 0
    for number in range(1, count + 1):
        if len(running) < SESSIONS:
            running.append(Agent(begun, words, chance, system))
            begun += 1
        agent = running.pop(0)
        sessions.add(agent.number)
        yield exchange(number, agent.request(), agent.answer(), "text/event-stream", agent.session)
        if agent.calls < CALLS:
            running.append(agent)


def write_journal(folder: Path, exchanges: Iterator[bytes]) -> int:
    """Gives its size in bytes."""
    folder.mkdir(mode=0o700)
    run, number, place = os.urandom(16), 1, 0
    writer = segments.SegmentWriter(folder, segments.SegmentHead(run, number, 0, 0))
    block = bytearray()

    def flush() -> None:
        nonlocal place
        writer.append(memoryview(bytes(block)), place)
        place += len(block)
        block.clear()

    for one in exchanges:
        block += one
        if len(block) >= BLOCK:
            if writer.size > SEGMENT:
                writer.close()
                number += 1
                writer = segments.SegmentWriter(folder, segments.SegmentHead(run, number, 0, 0))
            flush()
    flush()
    writer.close()
    return place


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("exchanges", type=int, nargs="?", default=20_000)
    parser.add_argument("--agents", action="store_true")
    parser.add_argument("--apart", action="store_true", help="each call is a session of its own, as a script's are")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    count = given.exchanges
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sessions: set[int] = set()
        exchanges = (
            agents(count, sessions) if given.agents else small(count, sessions, count if given.apart else SESSIONS)
        )
        size = write_journal(folder / "journal", exchanges)
        profiler = ["-m", "cProfile", "-s", "tottime"] if given.profile else []
        arguments = ["--journal", folder / "journal", "--logs", folder / "logs", "--state", folder / "state"]
        if given.agents:
            arguments += ["--options", Options(index=str(folder / "state/index.db")).to_json()]
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
            print("\n".join(done.stdout.splitlines()[:60]))
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{count / took:,.0f} exchanges/s ({count} of {size // count:,} bytes in {took:.2f} s, start-up included; "
            f"{used.ru_utime:.2f} + {used.ru_stime:.2f} s of CPU)"
        )
        return 0 if is_complete(folder, count, len(sessions), given.agents) else 1


def is_complete(folder: Path, count: int, sessions: int, indexed: bool) -> bool:
    files = list((folder / "logs").rglob("*.jsonl"))
    lines = sum(path.read_bytes().count(b"\n") for path in files)
    print(f"{lines} entries in {len(files)} files, {2 * count + sessions} in {sessions} expected")
    if not indexed:
        return (lines, len(files)) == (2 * count + sessions, sessions)
    with open_index(folder / "state/index.db") as index:
        (row,) = index.stats(Filter())
        found = len(index.sessions(Filter(), None))
    print(f"{row.calls} calls in {found} sessions in the index; {row.usage.output} tokens out, {row.cost.usd} USD")
    whole = row.calls == count and found == sessions and row.usage.output == 120 * count and not row.cost.unpriced
    return whole and (lines, len(files)) == (2 * count + sessions, sessions)


if __name__ == "__main__":
    sys.exit(main())
