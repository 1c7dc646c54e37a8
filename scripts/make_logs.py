"""Session logs as a coding agent makes them: `python scripts/make_logs.py FOLDER [--calls N] [--sessions N] [...]`.

Each call sends its whole history again, up to about 20 kB, and adds at most 2 kB of new text; some end badly. The same
arguments make the same logs. Prints what it made as JSON: a figure holds only where the index counts the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import UUID

from llm_proxy.sinks import session_jsonl

Entry = dict[str, Any]

MODELS = ("claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5")
PROJECTS = tuple(f"/home/ann/src/{name}" for name in ("compiler", "website", "pipeline", "notes", "firmware", "api"))
HISTORY = 16_000  # characters of messages a request holds at most; the oldest go first
SPAN = 31 * 86_400  # seconds over which the sessions are spread
SYSTEM = 13_000  # characters of instructions, the same in every call


class Words:
    """Text of a vocabulary in which a few words are frequent and most are rare, as in any language."""

    def __init__(self, chance: random.Random, size: int = 30_000) -> None:
        syllables = [c + v for c in "bcdfghklmnprstvz" for v in "aeiou"]
        self._chance = chance
        self._words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(size)]
        self._weights = list(accumulate(1 / (rank + 10) for rank in range(size)))

    def text(self, length: int) -> str:
        words = self._chance.choices(self._words, cum_weights=self._weights, k=max(1, length // 6))
        return " ".join(words)[:length]


class Maker:
    def __init__(self, root: Path, *, sessions: int, calls: int, seed: int, digests: bool, end: int) -> None:
        self.root = root
        self.chance = random.Random(seed)
        self.words = Words(self.chance)
        self.system = self.words.text(SYSTEM)
        self.digests = digests
        self.end = end
        self.sessions, self.calls = sessions, calls
        self.made = {"sessions": 0, "calls": 0, "failed": 0, "bytes": 0, "output_tokens": 0}

    def run(self) -> None:
        for number in range(self.sessions):
            share = self.calls // self.sessions + (number < self.calls % self.sessions)
            opened = self.end - SPAN + SPAN * number // self.sessions
            self._session(number, share, opened * 1_000_000_000)

    def _session(self, number: int, calls: int, ns: int) -> None:
        name = time.strftime("%Y%m%d-%H%M%S-", time.localtime(ns // 10**9)) + f"{number:08x}"
        path = self.root / session_jsonl.place("api.anthropic.com", name, ns)
        for folder in (path.parents[1], path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for entry in self._entries(number, name, calls, ns):
                self.made["bytes"] += file.write(session_jsonl.line(entry))
        last = (ns + calls * 60 * 10**9) / 1e9
        os.utime(path, (last, last))
        self.made["sessions"] += 1
        self.made["calls"] += calls

    def _entries(self, number: int, name: str, calls: int, ns: int) -> Iterator[Entry]:
        chance = self.chance
        root = PROJECTS[number % len(PROJECTS)]
        model = chance.choice(MODELS)
        meta = {"host": "api.anthropic.com", "machine": "ann@desk", "session": name}
        yield {
            "type": "session_start",
            "_meta": meta | {"ts": session_jsonl.utc(ns)},
            "provider": "anthropic",
            "upstream": "api.anthropic.com",
            "client_session": str(UUID(int=chance.getrandbits(128))),
            "client_session_source": "x-claude-code-session-id",
            "client": {"program": "claude", "cwd": root, "project": root.rpartition("/")[2], "root": root},
        }
        history: list[Entry] = []
        for seq in range(1, calls + 1):
            ns += chance.randint(5, 60) * 10**9
            meta["request_id"] = str(UUID(int=chance.getrandbits(128)))
            history.append({"role": "user", "content": self.words.text(chance.randint(100, 1200))})
            while sum(len(str(message["content"])) for message in history) > HISTORY:
                del history[:2]
            yield self._request(meta, seq, ns, model, history)
            answer = self.words.text(chance.randint(100, 800))
            yield self._response(meta, seq, ns, model, history, answer)
            history.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})

    def _request(self, meta: Entry, seq: int, ns: int, model: str, history: list[Entry]) -> Entry:
        asked = {"model": model, "max_tokens": 4096, "stream": True, "system": self.system, "messages": history}
        body = json.dumps(asked)
        headers = {
            "Anthropic-Version": ["2023-06-01"],
            "Content-Type": ["application/json"],
            "User-Agent": ["claude-cli/2.1.329 (external, cli)"],
            "X-Api-Key": ["sk-ant-...mnop"],
        }
        return {
            "type": "request",
            "_meta": meta | {"ts": session_jsonl.utc(ns)},
            "seq": seq,
            "method": "POST",
            "path": "/v1/messages",
            "headers": headers,
            "size": len(body),
            "body": body,
        }

    def _response(self, meta: Entry, seq: int, ns: int, model: str, history: list[Entry], answer: str) -> Entry:
        ttfb = self.chance.randint(200, 3000)
        total = ttfb + self.chance.randint(100, 20_000)
        entry: Entry = {
            "type": "response",
            "_meta": meta | {"ts": session_jsonl.utc(ns + total * 10**6)},
            "seq": seq,
            "timing": {"ttfb_ms": ttfb, "total_ms": total},
            "ending": "complete",
        }
        if self.chance.random() < 0.02:
            self.made["failed"] += 1
            body = '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
            entry |= {"status": 529, "headers": {"Content-Type": ["application/json"]}, "size": len(body), "body": body}
            digest: Entry = {"api": "anthropic.messages", "model": model, "error_type": "overloaded_error"}
        else:
            usage = {
                "input_tokens": 3,
                "cache_read_input_tokens": len(str(history)) // 4,
                "output_tokens": len(answer) // 4,
            }
            self.made["output_tokens"] += usage["output_tokens"]
            stream = list(_stream(model, usage, answer))
            chunks = [
                {"ts": session_jsonl.utc(ns + ttfb * 10**6), "delta_ms": number, "raw": line + "\n"}
                for number, line in enumerate("\n".join(stream).split("\n"))
            ]
            headers = {"Content-Type": ["text/event-stream; charset=utf-8"], "Request-Id": [f"req_{seq}"]}
            entry |= {"status": 200, "headers": headers, "size": sum(map(len, stream)), "chunks": chunks}
            digest = {
                "api": "anthropic.messages",
                "model": model,
                "stop_reason": "end_turn",
                "response_id": "msg_1",
                "usage": {
                    "input": 3,
                    "cache_read": usage["cache_read_input_tokens"],
                    "output": usage["output_tokens"],
                },
            }
            if self.digests:
                entry["price"] = {"usd": round(usage["output_tokens"] * 25e-6, 9), "basis": "list", "source": "made"}
        if self.digests:
            entry["digest"] = digest
        return entry


def _stream(model: str, usage: dict[str, int], answer: str) -> Iterator[str]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": model, "usage": usage}
    events: list[Entry] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    pieces = [answer[start : start + 100] for start in range(0, len(answer), 100)]
    events += [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in pieces
    ]
    events += [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n"


def make(
    root: Path, *, calls: int, sessions: int, seed: int = 1, digests: bool = True, end: int | None = None
) -> dict[str, int]:
    """Logs of `calls` calls below `root`, the last at about `end` (seconds since 1970; now). Gives what was made."""
    maker = Maker(root, sessions=sessions, calls=calls, seed=seed, digests=digests, end=end or int(time.time()))
    maker.run()
    return maker.made


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--old", action="store_true", help="as written before digests stood in the log")
    given = parser.parse_args()
    made = make(given.folder, calls=given.calls, sessions=given.sessions, seed=given.seed, digests=not given.old)
    print(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
