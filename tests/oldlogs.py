"""Writers of other programs' logs, as these write them: made anew from what is known of the formats."""

import gzip
import json
import uuid
from datetime import UTC, datetime, timedelta

START = datetime(2026, 2, 3, 10, 0, 0, 123456, UTC)
MACHINE = "ann@desk"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlc2lnbmF0dXJl"


def moment(seconds=0.0):
    """As Go writes it: zeros at the end left out."""
    text = (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return text + "Z"


def question(*turns, model="claude-sonnet-4-6", **more):
    """A Messages request: user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return {"max_tokens": 100, "messages": messages, "model": model} | more


def answer(text, model="claude-sonnet-4-6", id="msg_1"):
    return {
        "content": [{"text": text, "type": "text"}],
        "id": id,
        "model": model,
        "role": "assistant",
        "stop_reason": "end_turn",
        "type": "message",
        "usage": {"input_tokens": 12, "output_tokens": 5},
    }


def events(text):
    """The events of a streamed answer, (name, data) each."""
    started = answer("", id="msg_2") | {"content": [], "stop_reason": None}
    yield "message_start", {"type": "message_start", "message": started}
    yield (
        "content_block_start",
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    )
    for word in text.split(" "):
        delta = {"type": "text_delta", "text": word if text.startswith(word) else f" {word}"}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    ended = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
    yield "message_delta", {"type": "message_delta"} | ended
    yield "message_stop", {"type": "message_stop"}


def sse(text):
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events(text))


def append(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else go(line) + b"\n")


def go(value):
    """As Go's encoding/json writes a map."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode()


class Reference:
    """One session file of the reference program, in one of its eras (0 to 4)."""

    def __init__(
        self, logs, era, *, name="20260203-100000-0a1b2c3d", upstream="api.anthropic.com", provider="anthropic"
    ):
        self.era, self.name, self.upstream, self.provider = era, name, upstream, provider
        folder = logs / provider if era == 0 else logs / upstream / "2026-02-03"
        self.path = folder / f"{name}.jsonl"
        self.seq = 0

    def entry(self, kind, at, request_id=None, **fields):
        made = {"type": kind} | fields
        if self.era < 2:
            return made | {"ts": moment(at)}
        meta = {"ts": moment(at), "machine": MACHINE, "host": self.upstream, "session": self.name}
        if self.era >= 3 and request_id:
            meta["request_id"] = request_id
        return made | {"_meta": meta}

    def start(self, at=0.0):
        append(self.path, self.entry("session_start", at, provider=self.provider, upstream=self.upstream))
        return self

    def call(self, body, reply, at=0.0, *, path="/v1/messages", headers=None, reply_headers=None, status=200):
        """`reply`: an object, a text for a stream, or None where nothing was written. Gives the call's id."""
        self.seq += 1
        id = str(uuid.uuid4())
        text = body if isinstance(body, str) else json.dumps(body)
        sent = {"Content-Length": [str(len(text.encode()))], "X-Api-Key": ["sk-ant-...mnop"]} | (headers or {})
        self.request = self.entry(
            "request", at, id, seq=self.seq, method="POST", path=path, headers=sent, body=text, size=len(text.encode())
        )
        append(self.path, self.request)
        if reply is None:
            return id
        common = {"seq": self.seq, "status": status, "headers": reply_headers or {"Content-Type": ["application/json"]}}
        if isinstance(reply, dict):
            said = json.dumps(reply)
            about = {"body": said, "size": len(said), "timing": {"ttfb_ms": 300, "total_ms": 450}}
        else:
            lines = reply if isinstance(reply, list) else sse(reply).splitlines(keepends=True)
            chunks = [
                {"ts": moment(at + 0.35 + place / 100), "delta_ms": 50 + place * 10, "raw": line}
                for place, line in enumerate(lines)
            ]
            about = {"chunks": chunks, "size": 0, "timing": {"ttfb_ms": 50, "total_ms": 900}}
            common["headers"] = reply_headers or {"Content-Type": ["text/event-stream; charset=utf-8"]}
        append(self.path, self.entry("response", at + 0.9, id, **common, **about))
        return id


def taco(body, reply, at=0.0, *, spelling="code", id=None, **more):
    """A recording. `spelling`: of the times, as Taco's code or its README has them."""
    streaming = isinstance(reply, str) and reply.startswith("event:")
    media = "text/event-stream" if streaming else "application/json"
    times = {"started_at": moment(at), "completed_at": moment(at + 0.5), "duration_ms": 500}
    if spelling != "code":
        times = {"startTime": moment(at), "endTime": moment(at + 0.5), "durationMs": 500}
    recording = {
        "id": id or str(uuid.uuid4()),
        "provider": "claude",
        "request": {
            "method": "POST",
            "path": "/v1/messages",
            "headers": {"Content-Type": ["application/json"], "X-Api-Key": ["sk-ant-api03-abcdefghijklmnop"]},
            "body": body,
        },
        "response": {"status": 200, "headers": {"Content-Type": [media]}, "body": reply, "streaming": streaming},
        "timing": times,
    }
    return recording | ({"timestamp": moment(at)} if spelling == "code" else {}) | more


def claude_trace(body, reply, at=0.0):
    seconds = (START + timedelta(seconds=at)).timestamp()
    request = {
        "timestamp": seconds,
        "method": "POST",
        "url": "https://api.anthropic.com/v1/messages?beta=true",
        "headers": {"authorization": "Bearer sk...wxyz", "user-agent": "claude-cli/1.0", "cookie": "session=live-one"},
        "body": body,
    }
    if reply is None:
        return {"request": request, "response": None, "note": "ORPHANED_REQUEST", "logged_at": moment(at + 3)}
    streamed = isinstance(reply, str)
    media = "text/event-stream; charset=utf-8" if streamed else "application/json"
    response = {
        "timestamp": seconds + 0.25,
        "status_code": 200,
        "headers": {"content-type": media, "content-encoding": "gzip"},
    }
    response |= {"body_raw": reply} if streamed else {"body": reply}
    return {"request": request, "response": response, "logged_at": moment(at + 1)}


def proxy_llm(id, endpoint, body, reply, at=0.0, **more):
    record = {
        "id": id,
        "timestamp": moment(at),
        "session_id": "session_qwen",
        "endpoint": endpoint,
        "method": "POST",
        "model": "qwen",
        "provider": "qwen",
        "request_body": body,
        "status_code": 200,
        "response_body": reply,
        "stream": False,
        "duration": "42.277466ms",
    }
    return {name: value for name, value in (record | more).items() if value is not None or name == "request_body"}


def gzipped(path, *lines):
    """Each line a member of its own, as proxy-llm writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for line in lines:
            file.write(gzip.compress(json.dumps(line).encode() + b"\n"))
