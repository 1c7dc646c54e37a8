"""One long conversation of a coding agent: `python scripts/make_conversation.py FOLDER [--turns N] [--bytes N]`.

Each call sends all that was said before, as agents do, so the log grows with the square of the turns: 400 turns up to a
request of 2 MB come to some 400 MB. Prints the session's id and what it made as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from llm_proxy.sinks import session_jsonl
from scripts.make_logs import Words

Entry = dict[str, Any]
SECOND = 10**9
MODEL = "claude-sonnet-4-5"
CODE = '''def settle(book: Book, cutoff: date) -> list[Group]:
    """Every posting lands in exactly one group."""
    groups: dict[Key, list[Posting]] = {}
    for posting in sorted(book.postings, key=lambda one: (one.day, one.id)):
        groups.setdefault(posting.key, []).append(posting)
    return [Group(key, tuple(found)) for key, found in sorted(groups.items()) if key.day <= cutoff]
'''


class Agent:
    """What is said on both sides, `size` characters in all over so many turns."""

    def __init__(self, turns: int, size: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.words = Words(self.chance)
        self.turns, self.each = turns, size // turns
        self.history: list[Entry] = []

    def asked(self, turn: int) -> Any:
        if turn % 12 == 0:
            return [
                {"type": "text", "text": f"{self.words.text(200).capitalize()}.\n\n- {self.words.text(60)}\n- `{turn}`"}
            ]
        lines = "\n".join(self.words.text(76) for _ in range(max(1, (self.each - 320) // 77)))
        failed = turn % 29 == 0
        return [{"type": "tool_result", "tool_use_id": f"toolu_{turn - 1}", "content": lines, "is_error": failed}]

    def answered(self, turn: int) -> list[Entry]:
        said: list[Entry] = [{"type": "thinking", "thinking": self.words.text(240), "signature": "EqQB"}]
        if turn % 3 == 0 or turn % 12 == 11:
            said.append(
                {"type": "text", "text": f"## {self.words.text(30)}\n\n{self.words.text(260)}\n\n```python\n{CODE}```"}
            )
        if turn % 12 != 11:
            given = (
                {"command": f"pytest -q {self.words.text(30)}"},
                {"file_path": "ledger/settle.py", "limit": 80, "offset": turn},
            )
            name = ("Bash", "Read")[turn % 2]
            said.append({"type": "tool_use", "id": f"toolu_{turn}", "name": name, "input": given[turn % 2]})
        return said


def make(root: Path, turns: int = 400, size: int = 2_000_000, seed: int = 1, end: int | None = None) -> Entry:
    """Writes the log; gives its session's id and how much it is."""
    agent = Agent(turns, size, seed)
    ns = ((end or int(time.time())) - turns * 40) * SECOND
    id = time.strftime("%Y%m%d-%H%M%S-", time.localtime(ns // SECOND)) + "b16c0175"
    path = root / session_jsonl.place("api.anthropic.com", id, ns)
    for folder in (path.parents[1], path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    meta = {"host": "api.anthropic.com", "machine": "ann@desk", "session": id}
    made = {"session": id, "turns": turns, "bytes": 0, "last_request": 0, "files": [str(path.relative_to(root))]}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        client = {
            "program": "claude",
            "cwd": "/home/ann/src/ledger",
            "project": "ledger",
            "root": "/home/ann/src/ledger",
        }
        start = {"type": "session_start", "provider": "anthropic", "upstream": "api.anthropic.com", "client": client}
        made["bytes"] += file.write(session_jsonl.line(start | {"_meta": meta | {"ts": session_jsonl.utc(ns)}}))
        for turn in range(turns):
            meta["request_id"] = f"019aa000-0000-7000-8000-{turn:012x}"
            for entry in _call(agent, turn, ns, meta):
                made["bytes"] += file.write(session_jsonl.line(entry))
                made["last_request"] = entry["size"] if entry["type"] == "request" else made["last_request"]
            ns += 40 * SECOND
    return made


def _call(agent: Agent, turn: int, ns: int, meta: Entry) -> tuple[Entry, Entry]:
    agent.history.append({"role": "user", "content": agent.asked(turn)})
    asked = {"model": MODEL, "max_tokens": 32000, "stream": True, "system": "You are careful. " * 800}
    body = json.dumps(asked | {"tools": [{"name": name} for name in ("Bash", "Read")], "messages": agent.history})
    request = {"type": "request", "_meta": meta | {"ts": session_jsonl.utc(ns)}, "seq": turn + 1, "method": "POST"}
    request |= {
        "path": "/v1/messages",
        "headers": {"Content-Type": ["application/json"]},
        "size": len(body),
        "body": body,
    }
    content = agent.answered(turn)
    agent.history.append({"role": "assistant", "content": content})
    tokens = len(body) // 4
    usage = {"input_tokens": 4, "cache_read_input_tokens": max(0, tokens - 1500), "output_tokens": 300}
    usage |= {"cache_creation_input_tokens": min(tokens, 1500)}
    stop = "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"
    message = {"id": f"msg_{turn}", "type": "message", "role": "assistant", "model": MODEL, "content": content}
    answer = json.dumps(message | {"stop_reason": stop, "usage": usage})
    response = {
        "type": "response",
        "_meta": meta | {"ts": session_jsonl.utc(ns + 6 * SECOND)},
        "seq": turn + 1,
        "status": 200,
        "headers": {"Content-Type": ["application/json"]},
        "timing": {"ttfb_ms": 1200, "total_ms": 6000},
        "ending": "complete",
        "size": len(answer),
        "body": answer,
        "price": {"usd": round(tokens * 3e-7 + 0.0045, 6), "basis": "list", "units": {"cache_read": 0.3, "output": 15}},
    }
    return request, response


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--bytes", type=int, default=2_000_000)
    given = parser.parse_args(arguments)
    print(json.dumps(make(given.folder, given.turns, given.bytes)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
