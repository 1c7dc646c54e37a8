"""A record worth exploring: session logs as the keeper writes them, of every API, with what goes well and what does not.

`record(folder)` writes them and their index and gives where they are and the ids by name. `python -m tests.explored
FOLDER` makes one to look at. The same moment makes the same logs.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from llm_proxy.index.ingest import Indexer
from llm_proxy.records import understood
from llm_proxy.records.pricing import PriceBook, to_entry
from llm_proxy.sinks import session_jsonl

Entry = dict[str, Any]
SECOND = 10**9
TOOLS = ("Bash", "Edit", "Glob", "Grep", "Read", "Task", "TodoWrite", "WebFetch", "Write", "mcp__ledger__balance")
SYSTEM = (
    "You are an interactive agent that helps users with software engineering tasks. Use the instructions below and the "
    "tools available to you to assist the user.\n\n# Tone\nBe concise, direct and to the point. "
) + "Keep answers short unless asked for detail. " * 200
# What a model, a client or a tool may say; none of it may run, load or lead anywhere by itself.
HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=2>",
    "<svg onload=window.pwned=3>",
    '"><svg/onload=window.pwned=4>',
    "javascript:window.pwned=5",
    "[click](javascript:window.pwned=6) ![pixel](http://127.0.0.1:9/pixel.png) <http://127.0.0.1:9/auto>",
    "[data](data:text/html,<script>window.pwned=7</script>)",
    "</script><script>window.pwned=8</script>",
    "{{ 7*7 }} {% raw %} ${7*7}",
    "<iframe src=http://127.0.0.1:9/frame></iframe><link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    "<style>*{display:none}</style><base href=http://127.0.0.1:9/>",
    "\x1b[31mred\x07\u202ereversed\u2028line\x00",
    "<a href='http://127.0.0.1:9/x' onclick=window.pwned=9>link</a><math><mtext></form><form><mglyph><style></math>",
    "'+window.pwned+'",
)


def png(width: int = 24, height: int = 16, colour: tuple[int, int, int] = (63, 155, 139)) -> bytes:
    """A picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Made(NamedTuple):
    """Where the record is. `sessions` and `calls` are ids by name: `calls["ledger"]` a tuple in order of seq."""

    logs: Path
    index: Path
    sessions: dict[str, str]
    calls: dict[str, tuple[str, ...]]


class Session:
    """One session file in the making; `now` is the time of its next call."""

    def __init__(self, maker: Maker, name: str, provider: str, upstream: str, start: int, **about: Any) -> None:
        self.maker = maker
        self.provider, self.upstream = provider, upstream
        self.now = start
        self.seq = 0
        self.calls: list[str] = []
        self.id = time.strftime("%Y%m%d-%H%M%S-", time.localtime(start // SECOND)) + f"{maker.number():08x}"
        maker.sessions[name] = self.id
        maker.open[name] = self
        path = maker.logs / session_jsonl.place(upstream, self.id, start)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._write(
            {"type": "session_start", "_meta": self._meta(start), "provider": provider, "upstream": upstream} | about
        )

    def _meta(self, ns: int, call: str = "") -> Entry:
        meta = {"host": self.upstream, "machine": "ann@desk", "session": self.id, "ts": session_jsonl.utc(ns)}
        return meta | ({"request_id": call} if call else {})

    def _write(self, entry: Entry) -> None:
        with self._path.open("ab") as file:
            file.write(session_jsonl.line(dict(sorted(entry.items()))))

    def fork(self, parent: str, seq: int) -> None:
        about = {"parent_session": parent, "from_seq": seq, "reason": "message_history_diverged"}
        self._write({"type": "fork", "_meta": self._meta(self.now)} | about)

    def call(
        self,
        path: str,
        body: Any,
        answer: Any = None,
        *,
        status: int | None = 200,
        events: list[tuple[int, str]] | None = None,
        ttfb: int = 900,
        total: int = 4000,
        after: float = 5.0,
        headers: dict[str, str] | None = None,
        answered: dict[str, str] | None = None,
        ending: str = "complete",
        open: bool = False,
        method: str = "POST",
        **extra: Any,
    ) -> str:
        """One call, and the time after it. `events`: (milliseconds after the head, text of a stream's lines)."""
        self.seq += 1
        id = str(UUID(int=(self.now // 10**6 << 80) | 0x7000 << 64 | 0x8 << 60 | self.maker.number()))
        self.calls.append(id)
        text = "" if body is None else json.dumps(body, ensure_ascii=False)
        given = {"Content-Type": "application/json", "User-Agent": "claude-cli/2.1.203 (external, cli)"}
        sent = {name: [value] for name, value in (given | (headers or {})).items()}
        path, _, query = path.partition("?")
        request = {
            "type": "request",
            "_meta": self._meta(self.now, id),
            "seq": self.seq,
            "method": method,
            "path": path,
            "headers": sent,
            "size": len(text.encode()),
            "body": text,
        }
        request |= {"query": query} if query else {}
        self._write(request)
        if not open:
            self._answer(request, id, answer, status, events, ttfb, total, answered, ending, extra)
        self.now += total * 10**6 + int(after * SECOND)
        return id

    def _answer(
        self,
        request: Entry,
        id: str,
        answer: Any,
        status: int | None,
        events: list[tuple[int, str]] | None,
        ttfb: int,
        total: int,
        answered: dict[str, str] | None,
        ending: str,
        extra: Entry,
    ) -> None:
        kind = "text/event-stream; charset=utf-8" if events is not None else "application/json"
        headers = {name: [value] for name, value in ({"Content-Type": kind} | (answered or {})).items()}
        response: Entry = {
            "type": "response",
            "_meta": self._meta(self.now + total * 10**6, id),
            "seq": self.seq,
            "status": status,
            "headers": headers if status is not None else None,
            "timing": {"ttfb_ms": ttfb, "total_ms": total}
            | ({"request_ms": len(request["body"]) // 2000} if request["body"] and status else {})
            | ({"connect_ms": min(38, ttfb)} if self.seq == 1 and status else {}),
            "ending": ending,
        } | extra
        if status is not None:
            response["connection"] = "reused" if self.seq > 1 else "new"
        if events is not None:
            head = self.now + ttfb * 10**6
            chunks = [
                {"ts": session_jsonl.local(head + ms * 10**6), "delta_ms": ms, "raw": line}
                for ms, text in events
                for line in text.splitlines(keepends=True)
            ]
            response |= {"chunks": chunks, "size": sum(len(chunk["raw"].encode()) for chunk in chunks)}
        elif answer is not None:
            text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
            response |= {"body": text, "size": len(text.encode())}
        else:
            response |= {"size": 0}
        digest = understood.understand(request, response)
        facts = understood.facts(digest)
        price = self.maker.prices.of(request, self.provider, digest) if facts else None
        response |= {"digest": facts} if facts else {}
        response |= {"price": to_entry(price)} if price is not None else {}
        self._write(response)


class Maker:
    def __init__(self, logs: Path, now: int) -> None:
        self.logs = logs
        self.now = now
        self.prices = PriceBook()
        self.sessions: dict[str, str] = {}
        self.open: dict[str, Session] = {}
        self._number = 0

    def number(self) -> int:
        self._number += 1
        return self._number


# -- Anthropic ------------------------------------------------------------------------------------------------------


def client(project: str, branch: str = "main", program: str = "claude") -> Entry:
    root = f"/home/ann/src/{project}"
    return {"program": program, "pid": 48112, "cwd": root, "root": root, "branch": branch, "project": project}


def tools(*changed: str) -> list[Entry]:
    """Definitions of all tools; the description of those named has changed."""
    properties = {"command": {"type": "string", "description": "What to run or to look at"}}
    return [
        {
            "name": name,
            "description": f"{name} does what it says. " * 12 + ("At a given day." if name in changed else ""),
            "input_schema": {"type": "object", "properties": properties, "required": ["command"]},
        }
        for name in TOOLS
    ]


def usage(fresh: int, read: int, write: int, out: int) -> Entry:
    return {
        "input_tokens": fresh,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": write,
        "cache_creation": {"ephemeral_5m_input_tokens": write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": out,
    }


def event(data: Entry) -> str:
    return f"event: {data['type']}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def anthropic_stream(model: str, content: list[Entry], used: Entry, stop: str, total: int, pause: int = 0) -> Any:
    """Events of an answer over `total` milliseconds, with one silence of `pause` in the middle."""
    begun = {"id": "msg_01", "type": "message", "role": "assistant", "content": [], "model": model, "usage": used}
    told = [event({"type": "message_start", "message": begun})]
    for index, block in enumerate(content):
        kind = block["type"]
        empty = {"text": {"text": ""}, "thinking": {"thinking": ""}, "tool_use": {"input": {}}}[kind]
        told.append(event({"type": "content_block_start", "index": index, "content_block": block | empty}))
        whole, field = {
            "text": (block.get("text"), "text"),
            "thinking": (block.get("thinking"), "thinking"),
            "tool_use": (json.dumps(block.get("input")), "partial_json"),
        }[kind]
        delta = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}[kind]
        for start in range(0, len(whole), 40):
            piece = {"type": delta, field: whole[start : start + 40]}
            told.append(event({"type": "content_block_delta", "index": index, "delta": piece}))
        if kind == "thinking":
            signed = {"type": "signature_delta", "signature": "EqQB"}
            told.append(event({"type": "content_block_delta", "index": index, "delta": signed}))
        told.append(event({"type": "content_block_stop", "index": index}))
    ended = {"stop_reason": stop, "stop_sequence": None}
    told.append(event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": used["output_tokens"]}}))
    told.append(event({"type": "message_stop"}))
    step, middle = max(1, (total - pause) // len(told)), len(told) // 2
    return [(number * step + (pause if number > middle else 0), one) for number, one in enumerate(told)]


def text(said: str) -> Entry:
    return {"type": "text", "text": said}


def thinking(said: str) -> Entry:
    return {"type": "thinking", "thinking": said, "signature": "EqQB"}


def use(id: str, name: str, **given: Any) -> Entry:
    return {"type": "tool_use", "id": id, "name": name, "input": given}


def result(id: str, said: Any, *, failed: bool = False) -> Entry:
    return {"type": "tool_result", "tool_use_id": id, "content": said} | ({"is_error": True} if failed else {})


class Claude:
    """A Claude Code conversation: each call sends all that was said before."""

    def __init__(self, session: Session, model: str = "claude-sonnet-4-5", *, plan: bool = True, system: str = SYSTEM):
        self.session, self.model, self.system = session, model, system
        self.said: list[Entry] = []
        self.tools = tools()
        self.size = 21_000  # tokens of what goes in
        self.headers = {"Anthropic-Version": "2023-06-01"}
        if plan:
            self.headers |= {"Anthropic-Beta": "oauth-2025-04-20", "Authorization": "[masked sha256:01234567 len:108]"}
        else:
            self.headers |= {"X-Api-Key": "sk-ant-...mnop"}

    def body(self) -> Entry:
        system = [{"type": "text", "text": self.system, "cache_control": {"type": "ephemeral"}}]
        body = {"model": self.model, "max_tokens": 32000, "stream": True, "system": system}
        return body | {"tools": self.tools, "messages": self.said}

    def ask(
        self, said: Any, content: list[Entry], *, out: int = 300, missed: bool = False, pause: int = 0, **how: Any
    ) -> str:
        """What the user or the tools say, and the answer."""
        self.said = [*self.said, {"role": "user", "content": said}]
        grown = len(json.dumps(said)) // 4 + 20
        read = 0 if missed or len(self.said) == 1 else self.size
        used = usage(4, read, self.size + grown - read - 4, out)
        self.size += grown
        total = how.setdefault("total", 2500 + out * 6)
        ttfb = how.setdefault("ttfb", 1100)
        stop = "tool_use" if any(block["type"] == "tool_use" for block in content) else "end_turn"
        events = anthropic_stream(self.model, content, used, stop, total - ttfb, pause)
        id = self.session.call("/v1/messages?beta=true", self.body(), events=events, headers=self.headers, **how)
        self.said = [*self.said, {"role": "assistant", "content": content}]
        self.size += out
        return id

    def fails(self, said: Any, status: int, kind: str, message: str, **how: Any) -> str:
        """The same is asked again afterwards."""
        body = self.body() | {"messages": [*self.said, {"role": "user", "content": said}]}
        answer = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011CVqd3"}
        how = {"ttfb": 210, "total": 212, "after": 2.0} | how
        return self.session.call("/v1/messages?beta=true", body, answer, status=status, headers=self.headers, **how)


CODE = '''def reconcile(book, cutoff):
    """Every posting lands in exactly one group."""
    groups = {}
    for posting in sorted(book.postings, key=lambda one: (one.day, one.id)):
        groups.setdefault(posting.key, []).append(posting)
    return [Group(key, tuple(found)) for key, found in sorted(groups.items())]
'''
REPORT = f"""The test depended on the **order of a set**. What changed:

1. `reconcile()` sorts by day and id before it groups
2. the cutoff is a parameter, not `datetime.now()`

```python
{CODE}```

| runs | failed before | failed now |
| --- | ---: | ---: |
| 50 | 4 | 0 |

See [the issue](https://example.com/issues/12) and ~~the old note~~. 一切正常 ✅
"""


def ledger(maker: Maker) -> None:
    """A long agent's conversation: tools, a sub-agent, an image, misses of the cache, an overload, a failed tool."""
    start = maker.now - 3 * 3600 * SECOND
    about = {"client_session": "4f6c1a", "client_session_source": "x-claude-code-session-id"}
    session = Session(
        maker, "ledger", "anthropic", "api.anthropic.com", start, **about, client=client("ledger", "fix/flaky")
    )
    agent = Claude(session)
    agent.ask(
        [
            text("<system-reminder>The user opened tests/test_reconcile.py</system-reminder>"),
            text(
                "`tests/test_reconcile.py` fails about one run in twelve, only in CI. Find out why and make it "
                "deterministic. Don't just sort in the test: I want the code itself to be stable."
            ),
        ],
        [
            thinking(
                "Only in CI and about one in twelve suggests hash seed or clock. First read the test, then reproduce it."
            ),
            text("I'll look at the test and reproduce the failure."),
            use("t1", "Grep", pattern="reconcile", path="tests/"),
            use("t2", "Read", file_path="tests/test_reconcile.py", offset=38, limit=22),
        ],
        out=412,
    )
    agent.ask(
        [result("t1", "tests/test_reconcile.py:41:def test_reconcile_groups_match(book):"), result("t2", CODE)],
        [use("t3", "Bash", command="for i in $(seq 20); do pytest -q tests/test_reconcile.py; done")],
    )
    agent.ask(
        [result("t3", "\n".join(f"run {n}: {'FAILED' if n % 7 == 0 else '1 passed'} in 0.{n:02}s" for n in range(60)))],
        [
            use(
                "t4",
                "Task",
                description="Look for hidden ordering",
                prompt="Find sets that are iterated",
                subagent_type="Explore",
            )
        ],
        out=662,
    )
    child = Session(
        maker,
        "ledger-child",
        "anthropic",
        "api.anthropic.com",
        session.now - 4 * SECOND,
        client=client("ledger", "fix/flaky"),
        parent_session=session.id,
        agent="Explore",
        client_session="4f6c1a:agent-1",
        client_session_source="x-claude-code-agent-id",
    )
    helper = Claude(child, "claude-haiku-4-5", system="You explore code and report.")
    helper.ask("Find sets that are iterated", [use("c1", "Grep", pattern="set\\(", path=".")], total=1800)
    helper.ask(
        [result("c1", "reconcile.py:12: for key in set(keys):")], [text("reconcile.py:12 iterates a set.")], total=1500
    )
    session.now = child.now
    agent.ask(
        [result("t4", "reconcile.py:12 iterates a set.")],
        [
            text("That is the cause: a `set` is iterated."),
            use(
                "t5",
                "Edit",
                file_path="reconcile.py",
                old_string="for key in set(keys):",
                new_string="for key in sorted(set(keys)):",
            ),
        ],
        out=1488,
        after=900,
    )
    agent.ask(
        [result("t5", "The file reconcile.py has been updated.")],
        [text("Done. Shall I do the month-end job too?")],
        missed=True,
    )
    agent.fails("Yes, and see this screenshot", 529, "overloaded_error", "Overloaded")
    picture = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    agent.ask(
        [text("Yes, and see this screenshot"), {"type": "image", "source": picture}],
        [thinking("The month-end job."), use("t6", "Bash", command="pytest -q tests/test_month_end.py")],
        pause=2300,
        total=9000,
        out=1873,
    )
    agent.tools = tools("mcp__ledger__balance")
    agent.ask(
        [result("t6", "E   ImportError: cannot import name 'month_end'\nexit code 1", failed=True)],
        [use("t7", "Write", file_path="month_end.py", content=CODE)],
        missed=True,
    )
    agent.ask([result("t7", "File created")], [text(REPORT)], out=611)
    maker_fork = Session(
        maker,
        "ledger-fork",
        "anthropic",
        "api.anthropic.com",
        session.now + 60 * SECOND,
        client=client("ledger", "fix/flaky"),
        parent_session=session.id,
        parent_seq=4,
    )
    maker_fork.fork(session.id, 4)
    other = Claude(maker_fork)
    other.said = agent.said[:8]
    other.ask("Rather use a dict there", [text("Then a dict, which keeps its order.")])


def openai_chat(maker: Maker) -> None:
    session = Session(
        maker,
        "chat",
        "openai",
        "api.openai.com",
        maker.now - 26 * 3600 * SECOND,
        client=client("website", program="python"),
    )
    said: list[Entry] = [
        {"role": "system", "content": "You answer about the weather."},
        {"role": "user", "content": "What is the weather in Graz and in Wien?"},
    ]
    offered = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    calls = [
        {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": city})},
        }
        for city in ("Graz", "Wien")
    ]

    def answer(message: Entry, stop: str, prompt: int, cached: int, out: int) -> Entry:
        details = {
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        return {
            "id": f"chatcmpl-{prompt}",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4.1-mini-2025-04-14",
            "choices": [{"index": 0, "message": {"role": "assistant"} | message, "finish_reason": stop}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out} | details,
        }

    head = {"Authorization": "sk-p...wxyz", "User-Agent": "OpenAI/Python 2.8.0"}
    body = {
        "model": "gpt-4.1-mini",
        "messages": said,
        "tools": offered,
        "temperature": 0.2,
        "seed": 12345678901234567890,
    }
    session.call(
        "/v1/chat/completions",
        body,
        answer({"content": None, "tool_calls": calls}, "tool_calls", 1400, 0, 40),
        headers=head,
    )
    said = [*said, {"role": "assistant", "content": None, "tool_calls": calls}]
    said += [{"role": "tool", "tool_call_id": f"call_{city}", "content": f"{city}: 3 °C"} for city in ("Graz", "Wien")]
    body = body | {"messages": said}
    session.call(
        "/v1/chat/completions", body, answer({"content": "Both have **3 °C**."}, "stop", 1500, 1408, 12), headers=head
    )
    said = [
        *said,
        {"role": "assistant", "content": "Both have **3 °C**."},
        {"role": "user", "content": "And tomorrow?"},
    ]
    pieces = ["Tomorrow ", "it ", "will ", "rain"]
    chunk = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4.1-mini-2025-04-14"}
    events = [
        (
            n * 120,
            f"data: {json.dumps(chunk | {'choices': [{'index': 0, 'delta': {'content': piece}, 'finish_reason': None}]})}\n\n",
        )
        for n, piece in enumerate(pieces)
    ]
    session.call(
        "/v1/chat/completions",
        body | {"messages": said, "stream": True},
        events=events,
        headers=head,
        ending="client_gone",
        error="the client left",
        total=1400,
    )


def openai_responses(maker: Maker) -> None:
    session = Session(
        maker,
        "responses",
        "openai",
        "chatgpt.com",
        maker.now - 50 * 3600 * SECOND,
        client=client("compiler", program="codex"),
    )
    head = {"Chatgpt-Account-Id": "[masked sha256:89abcdef len:36]", "User-Agent": "codex_cli_rs/0.60.0"}

    def answer(id: str, output: list[Entry], prompt: int, cached: int, out: int, reasoning: int) -> Entry:
        used = {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": cached}, "output_tokens": out}
        used |= {"output_tokens_details": {"reasoning_tokens": reasoning}, "total_tokens": prompt + out}
        made = {"id": id, "object": "response", "created_at": 1, "status": "completed", "model": "gpt-5.2-codex"}
        return made | {"output": output, "usage": used}

    def stream(response: Entry, total: int) -> list[tuple[int, str]]:
        told = [
            event(
                {
                    "type": "response.created",
                    "response": response | {"output": [], "status": "in_progress", "usage": None},
                }
            )
        ]
        for index, item in enumerate(response["output"]):
            told.append(
                event({"type": "response.output_item.added", "output_index": index, "item": item | {"content": []}})
            )
            for piece in (part["text"] for part in item.get("content", ())):
                for start in range(0, len(piece), 24):
                    delta = {
                        "type": "response.output_text.delta",
                        "output_index": index,
                        "delta": piece[start : start + 24],
                    }
                    told.append(event(delta | {"item_id": item["id"], "content_index": 0}))
            told.append(event({"type": "response.output_item.done", "output_index": index, "item": item}))
        told.append(event({"type": "response.completed", "response": response}))
        return [(number * total // len(told), one) for number, one in enumerate(told)]

    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "**Looking for the parser**"}],
    }
    shell = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "shell",
        "arguments": '{"command":["ls"]}',
    }
    first = answer("resp_1", [thought, shell], 9000, 0, 320, 256)
    asked: list[Entry] = [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Make the parser accept trailing commas"}],
        }
    ]
    body = {"model": "gpt-5.2-codex", "instructions": "You are Codex.", "input": asked, "stream": True, "store": False}
    path = "/backend-api/codex/responses"
    session.call(path, body, events=stream(first, 3000), headers=head, total=5200)
    given = {"type": "function_call_output", "call_id": "call_1", "output": "Cargo.toml\nsrc\n"}
    said = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "It accepts them now. " * 8}],
    }
    second = answer("resp_2", [said], 9400, 8960, 80, 0)
    session.call(path, body | {"input": [*asked, shell, given]}, events=stream(second, 2000), headers=head, total=3100)


def gemini(maker: Maker) -> None:
    session = Session(
        maker,
        "gemini",
        "gemini",
        "generativelanguage.googleapis.com",
        maker.now - 75 * 3600 * SECOND,
        client=client("notes", program="gemini"),
    )
    parts = [
        {"text": "Summarise these notes"},
        {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(png()).decode()}},
    ]
    body = {"contents": [{"role": "user", "parts": parts}], "generationConfig": {"temperature": 1}}
    used = {
        "promptTokenCount": 2400,
        "cachedContentTokenCount": 2048,
        "candidatesTokenCount": 60,
        "thoughtsTokenCount": 30,
        "totalTokenCount": 2490,
    }
    pieces = [
        {
            "candidates": [
                {"content": {"role": "model", "parts": [{"text": "Three notes, ", "thought": False}]}, "index": 0}
            ]
        },
        {
            "candidates": [
                {
                    "content": {"role": "model", "parts": [{"text": "all about rain."}]},
                    "finishReason": "STOP",
                    "index": 0,
                }
            ],
            "usageMetadata": used,
            "modelVersion": "gemini-2.5-flash",
            "responseId": "r1",
        },
    ]
    events = [(n * 400, f"data: {json.dumps(piece)}\r\n\r\n") for n, piece in enumerate(pieces)]
    head = {"X-Goog-Api-Key": "[masked sha256:11112222 len:39]", "User-Agent": "google-genai-sdk/1.30"}
    session.call(
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", body, events=events, headers=head, total=2200
    )


def others(maker: Maker) -> None:
    """An Ollama chat without a price, a Bedrock conversation, calls that are no conversation, and failures."""
    day = 24 * 3600 * SECOND
    local = Session(
        maker, "ollama", "openai", "127.0.0.1:11434", maker.now - 4 * day, client=client("firmware", program="curl")
    )
    lines = [
        {"model": "llama3.2", "message": {"role": "assistant", "content": word}, "done": False}
        for word in ("Yes", ", it is")
    ]
    lines.append(
        {
            "model": "llama3.2",
            "message": {"role": "assistant", "content": "."},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 26,
            "eval_count": 4,
        }
    )
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "Is this local?"}]}
    local.call(
        "/api/chat",
        body,
        "".join(json.dumps(one) + "\n" for one in lines),
        answered={"Content-Type": "application/x-ndjson"},
    )

    host = "bedrock-runtime.eu-central-1.amazonaws.com"
    bedrock = Session(
        maker, "bedrock", "bedrock", host, maker.now - 5 * day, client=client("pipeline", program="python")
    )
    asked = {
        "messages": [{"role": "user", "content": [{"text": "Which rows are wrong?"}]}],
        "inferenceConfig": {"maxTokens": 100},
    }
    told = {
        "output": {"message": {"role": "assistant", "content": [{"text": "Rows 3 and 9."}]}},
        "stopReason": "end_turn",
    }
    told |= {"usage": {"inputTokens": 800, "outputTokens": 12, "totalTokens": 812}, "metrics": {"latencyMs": 900}}
    bedrock.call("/model/eu.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse", asked, told, transport="bedrock")

    api = Session(
        maker, "plain", "openai", "api.openai.com", maker.now - 6 * day, client=client("api", program="python")
    )
    listed = {"object": "list", "data": [{"id": "gpt-4.1", "object": "model", "created": 1, "owned_by": "openai"}]}
    api.call("/v1/models", None, listed, method="GET")
    vectors = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1, -0.2]}],
        "model": "text-embedding-3-small",
    }
    api.call(
        "/v1/embeddings",
        {"model": "text-embedding-3-small", "input": ["rain"]},
        vectors | {"usage": {"prompt_tokens": 2, "total_tokens": 2}},
    )
    api.call(
        "/v1/chat/completions",
        {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Am I known?"}]},
        {
            "error": {
                "message": "Incorrect API key provided",
                "type": "invalid_request_error",
                "code": "invalid_api_key",
            }
        },
        status=401,
    )
    api.call(
        "/v1/chat/completions",
        {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Anybody there?"}]},
        status=None,
        ending="upstream_failed",
        error="cannot reach api.openai.com: connection refused",
        answered=None,
    )

    plain = Session(
        maker, "spent", "anthropic", "api.anthropic.com", maker.now - 2 * 3600 * SECOND, client=client("website")
    )
    writer = Claude(plain, "claude-opus-4-5", plan=False, system="Write well.")
    writer.ask("Write a haiku about logs", [text("Lines fall like soft rain")], out=24)
    writer.ask("Another", [text("Bytes sleep in the leaves")], out=22, after=420)
    writer.ask("And one more", [text("The disk hums at night")], out=21, missed=True)


def live(maker: Maker) -> None:
    session = Session(
        maker, "live", "anthropic", "api.anthropic.com", maker.now - 20 * SECOND, client=client("compiler")
    )
    agent = Claude(session)
    agent.ask("What does the borrow checker say?", [text("It wants a longer lifetime.")], total=4000)
    agent.said = [*agent.said, {"role": "user", "content": "Then make it longer"}]
    session.call("/v1/messages?beta=true", agent.body(), headers=agent.headers, open=True)


def hostile(maker: Maker) -> None:
    """Every field that somebody else chooses says something that must not happen."""
    bad = "".join(HOSTILE)
    about = {
        "program": bad,
        "pid": 1,
        "cwd": f"/tmp/{HOSTILE[1]}",
        "root": f"/tmp/{HOSTILE[2]}",
        "branch": HOSTILE[3],
        "project": HOSTILE[0],
    }
    session = Session(
        maker,
        "hostile",
        "anthropic",
        "api.anthropic.com",
        maker.now - 30 * 3600 * SECOND,
        client=about,
        agent=HOSTILE[1],
        client_session=HOSTILE[3],
    )
    agent = Claude(session, HOSTILE[0], plan=False, system=bad)
    agent.tools = [{"name": one, "description": one, "input_schema": {"type": one}} for one in HOSTILE]
    picture = {"type": "base64", "media_type": "image/svg+xml", "data": base64.b64encode(HOSTILE[2].encode()).decode()}
    agent.ask(
        [
            text(bad),
            {"type": "image", "source": picture},
            {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/image.png"}},
        ],
        [
            thinking(bad),
            *(text(one) for one in HOSTILE),
            use(HOSTILE[3], HOSTILE[1], **{HOSTILE[0]: HOSTILE[2], "file_path": HOSTILE[1]}),
        ],
        answered={"X-Evil": HOSTILE[0], "Request-Id": HOSTILE[1]},
        error=bad,
    )
    agent.ask([result(HOSTILE[3], bad, failed=True)], [text("```" + HOSTILE[0] + "\n" + bad + "\n```\n\n# " + bad)])
    agent.fails(bad, 400, HOSTILE[0], bad)
    session.call(
        f"/v1/{HOSTILE[1]}?{HOSTILE[0]}={HOSTILE[2]}", {HOSTILE[0]: HOSTILE}, {HOSTILE[1]: HOSTILE}, method=HOSTILE[2]
    )


Scene = Callable[[Maker], None]
SCENES: tuple[Scene, ...] = (ledger, openai_chat, openai_responses, gemini, others, live, hostile)


def record(folder: Path, now: float | None = None, scenes: Iterable[Scene] = SCENES) -> Made:
    """Logs in `folder`/logs and their index in `folder`/index.db. `now`: seconds since 1970, of the last call."""
    logs, index = folder / "logs", folder / "index.db"
    maker = Maker(logs, int((now or time.time()) * SECOND))
    for scene in scenes:
        scene(maker)
    indexer = Indexer(index, logs)
    indexer.catch_up_all()
    indexer.close()
    return Made(logs, index, maker.sessions, {name: tuple(one.calls) for name, one in maker.open.items()})


if __name__ == "__main__":
    made = record(Path(sys.argv[1]))
    print(json.dumps({"logs": str(made.logs), "index": str(made.index), "sessions": made.sessions}, indent=2))
