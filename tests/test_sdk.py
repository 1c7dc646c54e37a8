"""The official SDKs through a real daemon: same results, same bytes on both sides, and every call on disk as it was."""

from __future__ import annotations

import asyncio
import gzip
import json
import operator
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import anthropic
import brotli
import httptools
import httpx2
import openai
import pytest
from backports import zstd
from pydantic import BaseModel

from tests.fakeprovider import FakeProvider, SeenRequest, SeenResponse
from tests.wiretap import Wiretap

Entry = dict[str, Any]

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
ASK = [{"role": "user", "content": 'please call weather {"city":"Zürich","days":[1,2,3]}'}]
SAY = [{"role": "user", "content": "hi, grüß dich 👋"}]
CLAUDE: Entry = {"model": "claude-opus-4-8", "max_tokens": 2000, "messages": SAY}
CLAUDE_TOOL = CLAUDE | {"messages": ASK, "tools": [{"name": "weather", "input_schema": WEATHER}]}
CHAT: Entry = {"model": "gpt-5.2", "messages": SAY}
CHAT_TOOL = CHAT | {
    "messages": ASK,
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}],
}
RESPONSE: Entry = {"model": "gpt-5.2", "input": "hi, grüß dich 👋"}
RESPONSE_TOOL = RESPONSE | {
    "input": ASK,
    "tools": [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}],
}
STREAM = {"stream": True}


@dataclass(frozen=True, slots=True)
class Case:
    """One call of an SDK: `method` on the client, its arguments, and what the fake provider is to do."""

    method: str
    arguments: Entry
    fake: str = ""


CASES = {
    "anthropic": (
        Case("messages.create", CLAUDE),
        Case("messages.create", CLAUDE | STREAM),
        Case("messages.create", CLAUDE | STREAM | {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "one-byte"),
        Case("messages.create", CLAUDE_TOOL),
        Case("messages.create", CLAUDE_TOOL | STREAM),
        Case("messages.count_tokens", {"model": "claude-opus-4-8", "messages": SAY}),
        Case("messages.create", CLAUDE, "gzip"),
        Case("messages.create", CLAUDE | STREAM, "gzip"),
        Case("messages.create", CLAUDE | STREAM, "zstd"),
        Case("models.list", {}),
        Case("models.retrieve", {"model_id": "claude-x"}),
        Case("messages.create", CLAUDE | STREAM, "error-event=2"),
        Case("messages.create", CLAUDE | STREAM, "chunk-truncated"),
        Case("messages.create", CLAUDE | STREAM, "cut=3"),
        Case("messages.create", CLAUDE, "cut=20b"),
    ),
    "openai": (
        Case("chat.completions.create", CHAT),
        Case("chat.completions.create", CHAT | STREAM | {"stream_options": {"include_usage": True}}),
        Case("chat.completions.create", CHAT_TOOL),
        Case("chat.completions.create", CHAT_TOOL | STREAM),
        Case("embeddings.create", {"model": "text-embedding-3-small", "input": ["a", "b"]}),
        Case("models.list", {}),
        Case("responses.create", RESPONSE),
        Case("responses.create", RESPONSE | STREAM, "one-byte"),
        Case("responses.create", RESPONSE_TOOL),
        Case("responses.create", RESPONSE_TOOL | STREAM),
        Case("chat.completions.create", CHAT, "deflate"),
        Case("chat.completions.create", CHAT | STREAM, "br"),
        Case("responses.create", RESPONSE | STREAM, "trailers"),
        Case("chat.completions.create", CHAT, "close"),
        Case("chat.completions.create", CHAT | STREAM, "error-event=2"),
        Case("responses.create", RESPONSE | STREAM, "reset=900"),
        Case("chat.completions.create", CHAT | STREAM, "cut=3"),
    ),
}
SDKS = {
    ("anthropic", "sync"): anthropic.Anthropic,
    ("anthropic", "async"): anthropic.AsyncAnthropic,
    ("openai", "sync"): openai.OpenAI,
    ("openai", "async"): openai.AsyncOpenAI,
}
BASE = {"anthropic": "", "openai": "/v1"}
ERRORS = (anthropic.AnthropicError, openai.OpenAIError, httpx2.HTTPError)


# --- calls ------------------------------------------------------------------------------------------------------------


def outcome(value: object) -> Any:
    """A result or an error as plain data; ids are made fresh for every call, so their numbers are taken out."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif isinstance(value, Exception):
        facts = {name: getattr(value, name, None) for name in ("status_code", "code", "type", "body", "message")}
        # A broken stream reaches the client as a reset, so that it cannot look like an end, however it broke.
        kind = httpx2.TransportError if isinstance(value, httpx2.TransportError) else type(value)
        value = {"raised": kind.__name__, **facts}
    elif isinstance(value, list):
        value = [outcome(item) for item in value]
    return json.loads(re.sub(r"\d{22}", "#", json.dumps(value, default=str)))


def call_sync(client: Any, number: int, case: Case) -> Any:
    method = operator.attrgetter(case.method)(client)
    got: list[Any] = []
    try:
        result = method(**case.arguments, extra_headers=asked(number, case))
        if "stream" not in case.arguments:
            return outcome(result)
        with result:
            for event in result:
                got.append(event)
    except ERRORS as error:
        got.append(error)
    return outcome(got)


async def call_async(client: Any, number: int, case: Case) -> Any:
    method = operator.attrgetter(case.method)(client)
    got: list[Any] = []
    try:
        result = await method(**case.arguments, extra_headers=asked(number, case))
        if "stream" not in case.arguments:
            return outcome(result)
        async with result:
            async for event in result:
                got.append(event)
    except ERRORS as error:
        got.append(error)
    return outcome(got)


def asked(number: int, case: Case) -> dict[str, str]:
    return {"X-Case": str(number), "X-Session-ID": "sdk-test"} | ({"X-Fake": case.fake} if case.fake else {})


async def calls(sdk: str, mode: str, url: str, cases: tuple[Case, ...], **options: Any) -> list[Any]:
    """What the SDK makes of all cases, one after the other."""
    options = {"base_url": url + BASE[sdk], "api_key": "k", "max_retries": 0} | options
    make = SDKS[sdk, mode]
    if mode == "async":
        async with make(**options) as client:  # type: ignore[attr-defined]
            return [await call_async(client, number, case) for number, case in enumerate(cases)]

    def all_of_them() -> list[Any]:
        with make(**options) as client:  # type: ignore[attr-defined]
            return [call_sync(client, number, case) for number, case in enumerate(cases)]

    return await asyncio.to_thread(all_of_them)


# --- what was on the wire ---------------------------------------------------------------------------------------------


def without(head: bytes, *names: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in names)


def as_it_should_arrive(head: bytes, prefix: str, fake: FakeProvider) -> bytes:
    """The client's head with the two changes a proxy has to make: the target is the upstream's, and so is Host."""
    line, rest = without(head, b"connection").split(b"\r\n", 1)
    line = line.replace(b" " + prefix.encode(), b" ", 1)
    return line + b"\r\n" + re.sub(rb"(?im)^(host:).*$", rb"\1 127.0.0.1:%d\r" % fake.port, rest, count=1)


def same_bytes(tap: Wiretap, fake: FakeProvider, prefix: str) -> None:
    """Request for request and response for response: what left the one side arrived at the other."""
    arrived = {case_of(seen): (seen, reply) for seen, reply in zip(fake.requests, fake.responses, strict=True)}
    count = 0
    for connection in tap.connections:
        expected = b""
        for head, body in connection.requests():
            seen, reply = arrived[header_of(head, b"x-case")]
            assert as_it_should_arrive(head, prefix, fake) == seen.raw_head
            assert body == seen.raw_body
            answer, blank, rest = reply.raw.partition(b"\r\n\r\n")
            expected += without(answer, b"connection") + blank + rest
            count += 1
        assert bytes(connection.from_server) == expected
    assert count == len(fake.requests)


def header_of(head: bytes, name: bytes) -> bytes:
    return next(line.split(b": ", 1)[1] for line in head.split(b"\r\n") if line.lower().startswith(name + b":"))


def case_of(seen: SeenRequest) -> bytes:
    return header_of(seen.raw_head, b"x-case")


class Answer:
    """A response as llhttp reads it: `payload` is without framing, `text` without content coding, as far as it came."""

    def __init__(self, raw: bytes) -> None:
        self.payload = b""
        self.coding = ""
        self.trailers: dict[str, list[str]] = {}
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(raw)
        self.status = parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-encoding":
            self.coding = value.decode()

    def on_body(self, body: bytes) -> None:
        self.payload += body

    @property
    def text(self) -> str:
        return DECODERS[self.coding](self.payload).decode()


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": zstd.decompress,
}


# --- what is on disk --------------------------------------------------------------------------------------------------


async def recorded(daemon: Any, count: int) -> list[tuple[Entry, Entry]]:
    """(request entry, response entry) of `count` calls, in the order they were made."""

    def settled(entries: list[Entry]) -> bool:
        return sum(entry["type"] == "response" for entry in entries) >= count

    entries = await asyncio.to_thread(daemon.entries, 20, settled)
    pairs: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry["type"] != "session_start":
            assert pairs.setdefault(entry["_meta"]["request_id"], {}).setdefault(entry["type"], entry) is entry
    assert len(pairs) == count
    return sorted(
        ((pair["request"], pair["response"]) for pair in pairs.values()), key=lambda pair: pair[0]["_meta"]["ts"]
    )


def moment(text: str) -> datetime:
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


def is_told_as_it_was(request: Entry, response: Entry, seen: SeenRequest, reply: SeenResponse) -> None:
    """One call's two entries against what the provider saw and sent."""
    answer = Answer(reply.raw)
    assert request["method"] == seen.method
    assert request["path"] + ("?" + request["query"] if "query" in request else "") == seen.target
    assert (request["body"], request["size"]) == (seen.body.decode(), seen.size)
    assert response["status"] == answer.status
    assert response["size"] == len(answer.payload)
    assert response.get("content_encoding", "") == answer.coding
    assert response["headers"]["Content-Type"]
    if "chunks" in response:
        chunks = response["chunks"]
        assert "".join(chunk["raw"] for chunk in chunks) == answer.text
        assert all(chunk["raw"].count("\n") == 1 for chunk in chunks[:-1])
        times = [moment(chunk["ts"]) for chunk in chunks]
        deltas = [chunk["delta_ms"] for chunk in chunks]
        assert times == sorted(times) and deltas == sorted(deltas)
        assert deltas[-1] <= response["timing"]["total_ms"]
        assert times[-1] <= moment(response["_meta"]["ts"])
    else:
        assert response["body"] == answer.text
    timing = response["timing"]
    assert 0 <= timing["ttfb_ms"] <= timing["total_ms"]
    span = moment(response["_meta"]["ts"]) - moment(request["_meta"]["ts"])
    assert abs(span - timedelta(milliseconds=timing["total_ms"])) < timedelta(milliseconds=2)


BROKEN = ("cut", "reset", "chunk-truncated")


@pytest.mark.parametrize(("sdk", "mode"), SDKS)
async def test_an_sdk_sees_the_same_and_all_of_it_is_on_disk(
    start: Any, fake: FakeProvider, sdk: str, mode: str
) -> None:
    """Results as without the proxy, bytes equal on both sides, two true entries per call, in one session, numbered."""
    cases = CASES[sdk]
    direct = await calls(sdk, mode, fake.url, cases)
    fake.requests.clear()
    fake.responses.clear()
    daemon = start("--port", "0")
    prefix = f"/{sdk}/127.0.0.1:{fake.port}"
    async with Wiretap(daemon.port) as tap:
        through = await calls(sdk, mode, f"http://127.0.0.1:{tap.port}{prefix}", cases)
        for case, one, other in zip(cases, direct, through, strict=True):
            assert one == other, case
        same_bytes(tap, fake, prefix)
    found = await recorded(daemon, len(cases))
    for number, (case, (request, response)) in enumerate(zip(cases, found, strict=True)):
        seen, reply = fake.requests[number], fake.responses[number]
        assert request["headers"]["X-Case"] == [str(number)]
        is_told_as_it_was(request, response, seen, reply)
        assert (request["seq"], response["seq"]) == (number + 1, number + 1)
        broken = case.fake.startswith(BROKEN)
        assert response["ending"] == ("upstream_failed" if broken else "complete"), case
        assert bool(response.get("error")) == broken
    assert len({request["_meta"]["session"] for request, _ in found}) == 1
