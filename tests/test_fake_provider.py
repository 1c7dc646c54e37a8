"""The fake provider is worth testing against: the official SDKs accept all it says, it breaks as asked, it keeps every byte."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import anthropic
import brotli
import httptools
import openai
import pytest
import websockets
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from backports import zstd
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter, ValidationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.fakeprovider import FAULTS, FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.fakeprovider.certificate import CERTIFICATE, KEY, tls_context

ROOT = Path(__file__).parents[1]
TEXT = "".join(SENTENCE)
TIMEOUT = 10

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
ASK = 'please call weather {"city":"Bern"}'
USER = {"role": "user", "content": "hi"}


# --- a client that hides nothing -------------------------------------------------------------------------------------


@dataclass
class Reply:
    """A response as llhttp reads it, and how its connection ended ("fin", "rst", or "open" if it did not)."""

    raw: bytes
    end: str
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


def parsed(raw: bytes, end: str = "open") -> Reply:
    reply = Reply(raw, end)

    class Events:
        def on_header(self, name: bytes, value: bytes) -> None:
            reply.headers.append((name.decode("latin-1"), value.decode("latin-1")))

        def on_headers_complete(self) -> None:
            reply.status = parser.get_status_code()

        def on_body(self, body: bytes) -> None:
            reply.body += body

        def on_message_complete(self) -> None:
            reply.complete = reply.status >= 200
            if not reply.complete:
                reply.headers.clear()

    parser = httptools.HttpResponseParser(Events())
    with contextlib.suppress(httptools.HttpParserError):
        parser.feed_data(raw)
    return reply


class Client:
    """One TCP connection, read without any buffer of its own, so that data before a reset is not lost."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self.received = b""
        self.ended = "open"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def receive(self) -> bool:
        """Whatever comes next; False when the connection has ended."""
        try:
            async with asyncio.timeout(TIMEOUT):
                data = await self._loop.sock_recv(self._socket, 1 << 20)
        except (ConnectionResetError, BrokenPipeError):
            self.ended = "rst"
            return False
        self.received += data
        if not data:
            self.ended = "fin"
        return bool(data)

    async def until(self, marker: bytes) -> bytes:
        while marker not in self.received:
            assert await self.receive(), f"{marker!r} did not come, but {self.received!r}, then {self.ended}"
        return self.received

    async def to_the_end(self) -> Reply:
        while self.ended == "open":
            await self.receive()
        return parsed(self.received, self.ended)

    async def response(self) -> Reply:
        """One whole response, or what came before the connection ended."""
        while not (reply := parsed(self.received)).complete and await self.receive():
            pass
        if self.ended != "open" or reply.header("connection") == "close":
            return await self.to_the_end()
        return reply


def request(
    target: str = "/v1/messages", body: object = None, *, fake: str = "", method: str = "POST", more: str = ""
) -> bytes:
    payload = body if isinstance(body, bytes) else json.dumps(body if body is not None else PLAIN).encode()
    if method in ("GET", "HEAD"):
        payload = b""
    head = f"{method} {target} HTTP/1.1\r\nHost: fake\r\nContent-Length: {len(payload)}\r\n{more}"
    head += f"X-Fake: {fake}\r\n" if fake else ""
    return head.encode() + b"\r\n" + payload


PLAIN = {"model": "claude-opus-4-8", "max_tokens": 9, "messages": [USER]}
STREAM = PLAIN | {"stream": True}


async def ask(port: int, *args: Any, **kwargs: Any) -> Reply:
    with Client(port) as client:
        await client.send(request(*args, **kwargs))
        return await client.response()


def events_of(body: bytes) -> list[Any]:
    """The data of all server-sent events, as JSON."""
    blocks = body.decode().replace("\r\n", "\n").removesuffix("\n\n").split("\n\n")
    data = [line[6:] for block in blocks for line in block.split("\n") if line.startswith("data: ")]
    return [json.loads(text) for text in data if text != "[DONE]"]


@contextlib.contextmanager
def process(*options: str) -> Iterator[int]:
    """The fake provider as a process; gives its port, and sees it stop in good order."""
    command = [sys.executable, "-m", "tests.fakeprovider", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline().removeprefix("PORT "))
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(TIMEOUT) == 0


@pytest.fixture(scope="module", params=[(), ("--uvloop",)], ids=["asyncio", "uvloop"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    with process(*request.param) as number:
        yield number


# --- shapes ----------------------------------------------------------------------------------------------------------


adapter = lru_cache(TypeAdapter)


def strict(kind: Any, value: Any) -> Any:
    """`value` as the SDK's type: nothing required is missing, and nothing is there that the SDK does not know."""
    model = adapter(kind).validate_python(value)
    _no_strangers(model)
    return model


UNLISTED = {"store"}  # the real API sends it, the SDK passes it on without declaring it


def _no_strangers(value: Any) -> None:
    if isinstance(value, BaseModel):
        strangers = set(value.model_extra or ()) - UNLISTED
        assert not strangers, f"{type(value).__name__} has no {strangers}"
        for name in type(value).model_fields:
            _no_strangers(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            _no_strangers(item)


MESSAGES_TOOL = {"name": "weather", "input_schema": WEATHER}
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
RESPONSES_TOOL = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}
CHAT = {"model": "gpt-5.2", "messages": [USER]}
RESPONSES = {"model": "gpt-5.2", "input": "hi"}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}

DOCUMENTS: dict[str, tuple[str, Any, Any]] = {
    "message": ("/v1/messages", PLAIN, Message),
    "message with thinking": ("/v1/messages?beta=true", PLAIN | THINKING, Message),
    "message with tool": ("/messages", PLAIN | {"tools": [MESSAGES_TOOL], "tool_choice": {"type": "any"}}, Message),
    "count_tokens": ("/v1/messages/count_tokens", PLAIN, MessageTokensCount),
    "chat": ("/v1/chat/completions", CHAT, ChatCompletion),
    "chat with tool": (
        "/v1/chat/completions",
        CHAT | {"tools": [CHAT_TOOL], "tool_choice": "required"},
        ChatCompletion,
    ),
    "embeddings": ("/v1/embeddings", {"model": "e", "input": ["a", "b"]}, CreateEmbeddingResponse),
    "response": ("/v1/responses", RESPONSES, Response),
    "response with tool": (
        "/v1/responses",
        RESPONSES | {"tools": [RESPONSES_TOOL], "tool_choice": "required"},
        Response,
    ),
    "response with reasoning": ("/v1/responses", RESPONSES | {"reasoning": {"effort": "low"}}, Response),
    "codex": ("/backend-api/codex/responses", RESPONSES, Response),
}

STREAMS: dict[str, tuple[str, Any, Any]] = {
    "messages": ("/v1/messages", STREAM, RawMessageStreamEvent),
    "messages with everything": (
        "/v1/messages",
        STREAM | THINKING | {"tools": [MESSAGES_TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
        RawMessageStreamEvent,
    ),
    "chat": ("/v1/chat/completions", CHAT | {"stream": True}, ChatCompletionChunk),
    "chat with usage": (
        "/v1/chat/completions",
        CHAT | {"stream": True, "stream_options": {"include_usage": True}},
        ChatCompletionChunk,
    ),
    "chat with tool": (
        "/v1/chat/completions",
        CHAT
        | {"stream": True, "tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ChatCompletionChunk,
    ),
    "responses": ("/v1/responses", RESPONSES | {"stream": True}, ResponseStreamEvent),
    "responses with everything": (
        "/responses",
        RESPONSES
        | {"stream": True, "reasoning": {"effort": "low"}, "tools": [RESPONSES_TOOL], "tool_choice": "required"},
        ResponseStreamEvent,
    ),
    "responses with reasoning": (
        "/v1/responses",
        RESPONSES | {"stream": True, "reasoning": {"effort": "low"}},
        ResponseStreamEvent,
    ),
    "codex": ("/backend-api/codex/responses", RESPONSES | {"stream": True}, ResponseStreamEvent),
}


@pytest.mark.parametrize("case", DOCUMENTS)
async def test_documents_have_the_sdks_shape(fake: FakeProvider, case: str) -> None:
    """Every plain answer is what the provider's SDK declares: nothing missing, nothing unknown."""
    target, body, kind = DOCUMENTS[case]
    reply = await ask(fake.port, target, body)
    assert (reply.status, reply.complete) == (200, True)
    strict(kind, json.loads(reply.body))


@pytest.mark.parametrize("case", STREAMS)
async def test_events_have_the_sdks_shape(fake: FakeProvider, case: str) -> None:
    """Every event of every stream is what the provider's SDK declares."""
    target, body, kind = STREAMS[case]
    reply = await ask(fake.port, target, body)
    assert reply.header("content-type").startswith("text/event-stream")
    events = [event for event in events_of(reply.body) if event.get("type") != "ping"]
    assert len(events) > 5
    for event in events:
        strict(kind, event)
    if "sequence_number" in events[0]:
        assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.parametrize("case", ["messages", "chat", "responses"])
async def test_the_shape_test_can_fail(fake: FakeProvider, case: str) -> None:
    """An event that lacks one required field, or has an unknown one, is not accepted."""
    target, body, kind = STREAMS[case]
    first = events_of((await ask(fake.port, target, body)).body)[0]
    inner = first.get("message") or first.get("response") or first
    for name in ("id", "model"):
        value = inner.pop(name)
        with pytest.raises(ValidationError):
            strict(kind, first)
        inner[name] = value
    strict(kind, first)
    inner["modle"] = "x"
    with pytest.raises(AssertionError, match="modle"):
        strict(kind, first)


async def test_gemini_has_its_documented_shape(fake: FakeProvider) -> None:
    """generateContent, both kinds of stream and a function call look alike and carry usage."""
    contents = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    model = "/v1beta/models/gemini-3.1-pro-preview"
    whole = json.loads((await ask(fake.port, f"{model}:generateContent", contents)).body)
    sse = events_of((await ask(fake.port, f"{model}:streamGenerateContent?alt=sse", contents)).body)
    array = json.loads((await ask(fake.port, "/v1/models/g:streamGenerateContent", contents)).body)
    for chunks in ([whole], sse, array):
        said = "".join(part["text"] for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"])
        assert said == TEXT
        assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
        usage = chunks[-1]["usageMetadata"]
        counted = usage["promptTokenCount"] + usage["candidatesTokenCount"] + usage["thoughtsTokenCount"]
        assert usage["totalTokenCount"] == counted
    assert whole["modelVersion"] == sse[0]["modelVersion"] == "gemini-3.1-pro-preview"
    tools = {
        "tools": [{"functionDeclarations": [{"name": "weather"}]}],
        "contents": [{"role": "user", "parts": [{"text": ASK}]}],
    }
    called = json.loads((await ask(fake.port, f"{model}:generateContent", tools)).body)
    assert called["candidates"][0]["content"]["parts"] == [
        {"functionCall": {"name": "weather", "args": {"city": "Bern"}}}
    ]


# --- the official SDKs -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def claude(fake: FakeProvider) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=fake.url, api_key="k", max_retries=0) as client:
        yield client


@contextlib.asynccontextmanager
async def gpt(fake: FakeProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="k", max_retries=0) as client:
        yield client


async def test_anthropic_sdk(fake: FakeProvider) -> None:
    """Plain, streamed, counted, listed: the SDK gets the same words each way."""
    async with claude(fake) as client:
        plain = await client.messages.create(**PLAIN)  # type: ignore[call-overload]
        assert plain.content[0].text == TEXT
        async with client.messages.stream(**PLAIN, **THINKING) as stream:  # type: ignore[arg-type]
            final = await stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text"]
        assert final.content[1].text == TEXT
        assert final.usage.output_tokens > plain.usage.output_tokens == len(SENTENCE)
        assert (await client.messages.count_tokens(model="m", messages=[USER])).input_tokens > 0  # type: ignore[list-item]
        for model in (await client.models.list()).data:
            strict(ModelInfo, model.model_dump())
        assert (await client.models.retrieve("claude-x")).id == "claude-x"


async def test_anthropic_tool_loop(fake: FakeProvider) -> None:
    """A streamed tool call arrives in pieces and whole; its result is answered with text."""
    async with claude(fake) as client:
        turns: list[Any] = [{"role": "user", "content": ASK}]
        common: Any = {"model": "claude-opus-4-8", "max_tokens": 99, "tools": [MESSAGES_TOOL]}
        async with client.messages.stream(messages=turns, **common) as stream:
            message = await stream.get_final_message()
        assert message.stop_reason == "tool_use"
        call = message.content[-1]
        assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Bern"})
        turns += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]},
        ]
        assert (await client.messages.create(messages=turns, **common)).stop_reason == "end_turn"


async def test_openai_sdk_chat(fake: FakeProvider) -> None:
    """Chat completions: plain, streamed with usage, tools in pieces, embeddings, models."""
    async with gpt(fake) as client:
        chat: Any = client.chat.completions
        assert (await chat.create(**CHAT)).choices[0].message.content == TEXT
        chunks = [c async for c in await chat.create(**CHAT, stream=True, stream_options={"include_usage": True})]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
        assert chunks[-1].usage.completion_tokens == len(SENTENCE)
        assert all(c.usage is None for c in chunks[:-1])
        asking: Any = {"model": "gpt-5.2", "messages": [{"role": "user", "content": ASK}], "tools": [CHAT_TOOL]}
        calls = [c.choices[0].delta.tool_calls async for c in await chat.create(**asking, stream=True)]
        pieces = [call[0].function for call in calls if call]
        assert pieces[0].name == "weather"
        assert json.loads("".join(piece.arguments for piece in pieces)) == {"city": "Bern"}
        assert (await chat.create(**asking)).choices[0].finish_reason == "tool_calls"
        assert (await client.embeddings.create(model="e", input=["a", "b"])).data[1].embedding == [0.25, -0.5, 0.125]
        for model in (await client.models.list()).data:
            strict(Model, model.model_dump())


async def test_openai_sdk_responses(fake: FakeProvider) -> None:
    """Responses: plain, streamed, a function call, and the same events over a WebSocket."""
    async with gpt(fake) as client:
        assert (await client.responses.create(model="m", input="hi")).output_text == TEXT
        streamed = [event.type async for event in await client.responses.create(model="m", input="hi", stream=True)]
        tools: Any = [RESPONSES_TOOL]
        called = await client.responses.create(model="m", input=ASK, tools=tools)
        assert json.loads(called.output[-1].arguments) == {"city": "Bern"}  # type: ignore[union-attr]
        async with client.responses.connect() as connection:
            for extra, expected in (({"generate": False}, 3), ({}, len(streamed))):
                await connection.send({"type": "response.create", "model": "m", "input": "hi", **extra})  # type: ignore[arg-type]
                types: list[str] = []
                while not types or types[-1] != "response.completed":
                    types.append((await connection.recv()).type)
                assert len(types) == expected
            assert types == streamed
    await fake.wait_for(lambda: fake.responses[-1].complete)
    assert [json.loads(message)["type"] for message in fake.requests[-1].messages] == ["response.create"] * 2


def test_the_sync_sdks_too() -> None:
    """The synchronous clients, against the fake provider as a process."""
    with process() as port:
        url = f"http://127.0.0.1:{port}"
        with (
            anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client,
            client.messages.stream(**PLAIN) as stream,  # type: ignore[arg-type]
        ):
            assert "".join(stream.text_stream) == TEXT
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as other:
            assert other.responses.create(model="m", input="hi").output_text == TEXT


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit_error"), (500, "api_error"), (529, "overloaded_error")])
async def test_errors_as_anthropic_sends_them(fake: FakeProvider, status: int, kind: str) -> None:
    """The SDK raises the error of that status and finds type, request id and retry-after."""
    async with claude(fake) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**PLAIN, extra_headers={"X-Fake": f"status={status}"})  # type: ignore[call-overload]
    error = caught.value
    assert (error.status_code, error.body["error"]["type"]) == (status, kind)  # type: ignore[index]
    assert error.request_id
    assert error.response.headers.get("retry-after") == ("1" if status in (429, 529) else None)


async def test_errors_as_openai_sends_them(fake: FakeProvider) -> None:
    """Asked for in the query, in the shape of the path's provider."""
    async with gpt(fake) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**CHAT, extra_query={"fake": "status=429"})  # type: ignore[call-overload]
    assert caught.value.code == "rate_limit_exceeded"


async def test_an_error_inside_a_stream(fake: FakeProvider) -> None:
    """The stream's status is 200; its third event is the error, and the SDKs raise it."""
    extra: Any = {"extra_headers": {"X-Fake": "error-event=2"}}
    async with claude(fake) as client, gpt(fake) as other:
        with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
            async for _ in await client.messages.create(**STREAM, **extra):  # type: ignore[call-overload]
                pass
        with pytest.raises(openai.APIError, match="told to fail"):
            async for _ in await other.chat.completions.create(**CHAT, stream=True, **extra):  # type: ignore[call-overload]
                pass
    assert all(reply.complete for reply in fake.responses)


async def test_a_retrying_sdk_recovers(fake: FakeProvider) -> None:
    """A connection reset before the answer is tried again by the SDK, and both tries are on the book."""
    async with anthropic.AsyncAnthropic(base_url=fake.url, api_key="k", max_retries=1) as client:
        with pytest.raises(anthropic.APIConnectionError):
            await client.messages.create(**PLAIN, extra_headers={"X-Fake": "reset=head"})  # type: ignore[call-overload]
    assert [(seen.complete, reply.raw) for seen, reply in zip(fake.requests, fake.responses, strict=True)] == [
        (True, b"")
    ] * 2


# --- faults, on both event loops -------------------------------------------------------------------------------------


def has(
    *, status: int = 200, end: str = "open", complete: bool = True, body: bytes | None = None
) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        assert (reply.status, reply.end, reply.complete) == (status, end, complete)
        if body is not None:
            assert reply.body == body

    return check


def events(count: int, end: str) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        assert reply.body.count(b"\n\n") == count
        assert (reply.status, reply.complete, reply.end) == (200, False, end)

    return check


def coded(name: str, decode: Callable[[bytes], bytes]) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        assert reply.header("content-encoding") == name
        strict(Message, json.loads(decode(reply.body)))

    return check


def damaged(reply: Reply) -> None:
    assert reply.header("content-encoding") == "gzip"
    with pytest.raises((zlib.error, EOFError, gzip.BadGzipFile)):
        gzip.decompress(reply.body)


def shorter_than_promised(reply: Reply) -> None:
    assert int(reply.header("content-length")) == len(reply.body) + 7
    assert (reply.end, reply.complete) == ("fin", False)


def longer_than_promised(reply: Reply) -> None:
    assert reply.complete
    assert len(reply.raw.partition(b"\r\n\r\n")[2]) == len(reply.body) + 7


def with_trailers(reply: Reply) -> None:
    assert reply.raw.endswith(b"\r\n0\r\nX-Fake-Trailer: t1\r\nServer-Timing: total;dur=1\r\n\r\n")
    assert "X-Fake-Trailer" in reply.header("trailer")


def half_a_chunk(reply: Reply) -> None:
    size, _, data = reply.raw.partition(b"\r\n\r\n")[2].rpartition(b"\r\n")
    assert int(size.rpartition(b"\r\n")[2], 16) > len(data) > 10
    assert (reply.end, reply.complete) == ("fin", False)


def head_of_20000(reply: Reply) -> None:
    assert len(reply.raw.partition(b"\r\n\r\n")[0]) + 4 == 20_000


def one_byte_chunks(reply: Reply) -> None:
    assert reply.body == b"c" * 300
    assert reply.raw.count(b'\r\n1;n="1;2"\r\nc') == 300


def first(start: bytes, check: Callable[[Reply], None]) -> Callable[[Reply], None]:
    """The raw response starts so, and what comes behind fits."""

    def both(reply: Reply) -> None:
        assert reply.raw.startswith(start)
        check(reply)

    return both


def redirected(reply: Reply) -> None:
    assert (reply.status, reply.header("location")) == (307, "/v1/elsewhere?from=fake")


def version_10(reply: Reply) -> None:
    assert reply.raw.startswith(b"HTTP/1.0 200 OK\r\n")
    assert reply.end == "fin"
    strict(Message, json.loads(reply.raw.partition(b"\r\n\r\n")[2]))


def until_close(reply: Reply) -> None:
    assert not reply.header("content-length") + reply.header("transfer-encoding")
    assert reply.end == "fin"
    assert reply.body.endswith(b'data: {"type":"message_stop"}\n\n')


def evil_behind(reply: Reply) -> None:
    assert reply.complete
    assert reply.raw.endswith(b"}HTTP/1.1 200 EVIL\r\nContent-Length: 4\r\n\r\nevil")


def no_http(reply: Reply) -> None:
    assert (reply.status, reply.end) == (0, "fin")
    assert reply.raw


def padded(reply: Reply) -> None:
    assert len([name for name, _ in reply.headers if name == "x-SAME"]) == 100
    assert reply.complete


def nothing_at_all(reply: Reply) -> None:
    assert (reply.raw, reply.end) == (b"", "rst")


def said(count: int) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        assert len(json.loads(reply.body)["content"][0]["text"]) > count
        assert json.loads(reply.body)["usage"]["output_tokens"] == count

    return check


def text_is(reply: Reply, text: str) -> None:
    assert json.loads(reply.body)["content"][0]["text"] == text


# (what is asked for, of which request, what comes)
CASES: list[tuple[str, Any, Callable[[Reply], None]]] = [
    ("cut=3", STREAM, events(3, "fin")),
    ("cut=0", STREAM, events(0, "fin")),
    ("cut=100b", STREAM, lambda reply: (events(0, "fin")(reply), has(end="fin", complete=False)(reply))[0]),
    ("cut=40", PLAIN, lambda reply: shorter(reply, 40, "fin")),
    ("reset=40", PLAIN, lambda reply: shorter(reply, 40, "rst")),
    ("reset=head", PLAIN, nothing_at_all),
    ("slow=1; cut=3", STREAM, events(3, "fin")),
    ("status=529", PLAIN, has(status=529)),
    ("huge=200000", PLAIN, has(body=(b"0123456789abcdef" * 12_500))),
    ("huge=0", PLAIN, has(body=b"")),
    ("chunk-truncated", PLAIN, half_a_chunk),
    ("chunk-truncated", STREAM, half_a_chunk),
    ("wrong-length=+7", PLAIN, shorter_than_promised),
    ("wrong-length=7", STREAM, shorter_than_promised),
    ("wrong-length=-7", PLAIN, longer_than_promised),
    ("extra", PLAIN, evil_behind),
    (
        "interim=102,103",
        PLAIN,
        first(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink:", has()),
    ),
    ("continue", PLAIN, first(b"HTTP/1.1 100 Continue\r\n\r\n", has())),
    (
        "close-after-continue",
        PLAIN,
        first(b"HTTP/1.1 100 Continue\r\n\r\n", has(status=100, end="fin", complete=False)),
    ),
    ("garbage", PLAIN, no_http),
    ("gzip", PLAIN, coded("gzip", gzip.decompress)),
    ("deflate", PLAIN, coded("deflate", zlib.decompress)),
    ("br", PLAIN, coded("br", brotli.decompress)),
    ("zstd", PLAIN, coded("zstd", zstd.decompress)),
    ("bad-gzip", PLAIN, damaged),
    ("trailers", PLAIN, with_trailers),
    ("close", STREAM, until_close),
    ("http10", PLAIN, version_10),
    ("head-size=20000", PLAIN, head_of_20000),
    ("head-fields=200", PLAIN, padded),
    ("one-byte", PLAIN, has()),
    ("redirect=307", PLAIN, redirected),
    ("no-body=204", PLAIN, has(status=204, body=b"")),
    ("no-body=304", PLAIN, has(status=304, body=b"")),
    ("bytes=00ff0d0a", PLAIN, has(body=b"\x00\xff\r\n")),
    ("bytes=41; type=text/event-stream", PLAIN, lambda reply: has(body=b"A")(reply)),
    ("chunks=300", PLAIN, one_byte_chunks),
    ("words=500", PLAIN, said(500)),
    ("say=c3bc", PLAIN, lambda reply: text_is(reply, "ü")),
    ("delay=20", PLAIN, has()),
    ("fixed=2000", PLAIN, lambda reply: shaped(reply, 2000)),
    ("fixed=100000", PLAIN, lambda reply: shaped(reply, 100_000)),
    ("fixed", b"this is no JSON", lambda reply: strict(Message, json.loads(reply.body))),
    ("no-such-fault", PLAIN, has(status=400, end="fin")),
    ("slow=fast", PLAIN, has(status=400, end="fin")),
]


def shorter(reply: Reply, size: int, end: str) -> None:
    assert len(reply.body) == size < int(reply.header("content-length"))
    assert (reply.end, reply.complete) == (end, False)


def shaped(reply: Reply, size: int) -> None:
    assert len(reply.body) == size
    strict(Message, json.loads(reply.body))


@pytest.mark.parametrize(("wish", "body", "check"), CASES, ids=[f"{wish} {i}" for i, (wish, _, _) in enumerate(CASES)])
async def test_faults(port: int, wish: str, body: Any, check: Callable[[Reply], None]) -> None:
    """Every fault puts on the wire what its name says, on both event loops, and the server goes on serving."""
    check(await ask(port, body=body, fake=wish))
    has()(await ask(port))


def test_every_fault_has_a_case() -> None:
    """A fault without a test is a fault nobody knows to work."""
    source = Path(__file__).read_text()
    assert [name for name in FAULTS if not re.search(rf'(["?]|fake=|; ){name}["=;]', source)] == []


async def test_hang(port: int) -> None:
    """Nothing comes, or nothing behind the head, for as long as one looks; another connection is served meanwhile."""
    with Client(port) as silent, Client(port) as half:
        await silent.send(request(fake="hang"))
        await half.send(request(fake="hang=head"))
        assert (await half.until(b"\r\n\r\n")).endswith(b"\r\n\r\n")
        has()(await ask(port))
        await silent.send(request())
        await half.send(request())
        for client in (silent, half):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.receive()


async def test_a_hanging_answer_is_not_complete(fake: FakeProvider) -> None:
    """It is on the book with the bytes of its head, however long they take to leave, and open."""
    with Client(fake.port) as client:
        await client.send(request(fake="hang=head; head-size=9000000"))
        while len(client.received) < 9_000_000:
            await client.receive()
        has()(await ask(fake.port))
        assert (fake.responses[0].raw, fake.responses[0].complete) == (client.received, False)


async def test_endless(port: int) -> None:
    """A stream flows far beyond any buffer, until the client goes; others are served meanwhile."""
    with Client(port) as client:
        await client.send(request(body=STREAM, fake="endless"))
        size = 0
        while size < 10_000_000:
            assert await client.receive()
            size, client.received = size + len(client.received), b""
        has()(await ask(port))


@pytest.mark.parametrize("how", ["early=413", "no-continue=417"])
async def test_an_answer_before_the_body(port: int, how: str) -> None:
    """The final status comes while the body is still owed, then FIN; nothing more is read."""
    with Client(port) as client:
        head = b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n"
        await client.send(head + b"Expect: 100-continue\r\nX-Fake: " + how.encode() + b"\r\n\r\nsome")
        reply = await client.to_the_end()
        with pytest.raises((TimeoutError, ConnectionError)):
            async with asyncio.timeout(0.5):
                await client.send(bytes(16 << 20))
    assert (reply.status, reply.end, reply.complete) == (int(how[-3:]), "fin", True)
    assert b"100 Continue" not in reply.raw


async def test_expect(port: int) -> None:
    """100 comes before the body is sent, the answer after it."""
    whole = request(more="Expect: 100-continue\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    with Client(port) as client:
        await client.send(head + b"\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.received = b""
        await client.send(body)
        has()(await client.response())


@pytest.mark.parametrize(("how", "end"), [("reset", "rst"), ("fin", "fin"), ("idle", "fin")])
async def test_die_on_reuse(port: int, how: str, end: str) -> None:
    """The first request of a connection is answered, the second one meets its end (`idle`: comes too late)."""
    with Client(port) as client:
        await client.send(request(fake=f"die-on-reuse={how}"))
        await client.response()
        client.received = b""
        if how != "idle":
            await client.send(request())
        reply = await client.to_the_end()
    assert (reply.raw, reply.end) == (b"", end)


async def test_echo_and_upload_sink(port: int) -> None:
    """The request comes back byte for byte, chunk extensions and trailers included; a large one as size and digest."""
    raw = b"POST /x?fake=echo HTTP/1.1\r\nhOsT: h\r\nX-Odd:  a \r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"3;a=b\r\nabc\r\n02\r\nde\r\n0\r\nX-T: t\r\n\r\n"
    with Client(port) as client:
        for piece in range(0, len(raw), 5):
            await client.send(raw[piece : piece + 5])
        assert (await client.response()).body == raw
    payload = os.urandom(3_000_000)
    reply = await ask(port, body=payload, fake="upload-sink")
    assert json.loads(reply.body) == {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


async def test_pipelined_requests_and_head(port: int) -> None:
    """Requests sent in one piece are answered in order; HEAD gets the head of GET and no body."""
    with Client(port) as client:
        await client.send(request() + request("/v1/models", method="HEAD") + request(fake="status=500"))
        raw = await client.until(b"told to fail")
    first, second, third = raw.split(b"HTTP/1.1 ")[1:]
    assert [part[:3] for part in (first, second, third)] == [b"200", b"200", b"500"]
    assert second.endswith(b"\r\n\r\n")
    assert b"\r\nContent-Length: 0" not in second


async def test_compressed_request_bodies_are_understood(port: int) -> None:
    """A body coded with zstd, gzip, br or deflate is read like a plain one."""
    plain = json.dumps(PLAIN).encode()
    coders = {"zstd": zstd.compress, "gzip": gzip.compress, "br": brotli.compress, "deflate": zlib.compress}
    for name, code in coders.items():
        has()(await ask(port, body=code(plain), more=f"Content-Encoding: {name}\r\n"))
    has(status=400)(await ask(port, body=b"no zstd", more="Content-Encoding: zstd\r\n"))


# --- WebSockets ------------------------------------------------------------------------------------------------------

CREATE = json.dumps({"type": "response.create", "model": "m", "input": "hi", "padding": "x" * 70_000})


def upgrade(port: int, wish: str = "", **options: Any) -> websockets.connect:
    headers = {"X-Fake": wish} if wish else {}
    return websockets.connect(f"ws://127.0.0.1:{port}/v1/responses", additional_headers=headers, **options)


async def types_of(client: websockets.ClientConnection) -> list[str]:
    types: list[str] = []
    while not types or types[-1] != "response.completed":
        types.append(strict(ResponseStreamEvent, json.loads(await client.recv())).type)
    return types


@pytest.mark.parametrize("wish", ["", "fragments=7", "slow=1"])
@pytest.mark.parametrize("compression", ["deflate", None])
async def test_websocket_answers(port: int, compression: str | None, wish: str) -> None:
    """With and without compression, in whole messages and in fragments with pings between: the same events, twice."""
    async with upgrade(port, wish, compression=compression) as client:
        extensions = client.response.headers.get("Sec-WebSocket-Extensions") or ""  # type: ignore[union-attr]
        assert extensions.startswith("permessage-deflate" if compression else "")
        await client.send(CREATE)
        first = await types_of(client)
        await client.send([CREATE[:10], CREATE[10:]])
        assert await types_of(client) == first
        await (await client.ping(b"there?"))
        await client.send("no JSON")
        assert json.loads(await client.recv())["type"] == "error"


@pytest.mark.parametrize(
    "taken",
    [
        {"server_no_context_takeover": True},
        {"server_max_window_bits": 9},
        {"server_no_context_takeover": True, "server_max_window_bits": 9},
        {"client_no_context_takeover": True},
    ],
)
async def test_websocket_compression_as_agreed(port: int, taken: dict[str, Any]) -> None:
    """Windows and takeover are as the client offered them; large messages come back as they were sent."""
    extensions = [ClientPerMessageDeflateFactory(**taken)]
    async with upgrade(port, "echo", extensions=extensions, compression=None) as client:
        assert next(iter(taken)) in client.response.headers["Sec-WebSocket-Extensions"]  # type: ignore[union-attr]
        far = os.urandom(4000).hex() * 2  # repeats beyond the smallest window
        for message in ("", "a", far, far, "Grüße " * 30_000, os.urandom(70_000), b""):
            await client.send(message)
            assert await client.recv() == message


async def test_websocket_faults(port: int) -> None:
    """Refused, cut or reset after some messages, closed while an endless answer flows."""
    with pytest.raises(websockets.InvalidStatus, match="426"):
        async with upgrade(port, "status=426"):
            pass
    for wish in ("cut=2", "reset=2"):
        async with upgrade(port, wish) as client:
            await client.send(CREATE)
            assert [json.loads(await client.recv())["sequence_number"] for _ in range(2)] == [0, 1]
            with pytest.raises(websockets.ConnectionClosedError):
                await client.recv()
            assert client.close_code == 1006
    async with upgrade(port, "endless; slow=1") as client:
        await client.send(CREATE)
        for _ in range(50):
            await client.recv()
    assert client.close_code == 1000


async def test_websocket_bytes_are_kept(fake: FakeProvider) -> None:
    """Both directions behind the heads are on the book as they crossed the wire, and the client's messages decoded."""
    async with upgrade(fake.port) as client:
        await client.send(CREATE)
        await types_of(client)
    await fake.wait_for(lambda: fake.connections[0].closed)
    seen, answer = fake.requests[0], fake.responses[0]
    assert seen.messages == [CREATE]
    assert seen.raw_body[0] == 0xC1  # FIN, compressed, text
    assert answer.raw.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert answer.raw.endswith(b"\x88\x02\x03\xe8")
    assert answer.complete


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--uvloop",)], ids=["asyncio", "uvloop"])
async def test_tls(options: tuple[str, ...]) -> None:
    """Behind TLS: a whole answer, a stream that is cut, and a reset without a farewell."""
    trust = ssl.create_default_context(cafile=str(CERTIFICATE))
    with process("--tls", str(CERTIFICATE), str(KEY), *options) as port:
        for wish, body, end in (("close", PLAIN, b'"standard"}}'), ("cut=2", STREAM, b"}\n\n\r\n")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
            writer.write(request(body=body, fake=wish))
            async with asyncio.timeout(TIMEOUT):
                assert (await reader.read()).endswith(end)
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        writer.write(request(fake="reset=head"))
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(TIMEOUT):
                await reader.read()


async def test_tls_in_process() -> None:
    """The book holds the decrypted bytes."""
    trust = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with FakeProvider(tls=tls_context()) as fake:
        reader, writer = await asyncio.open_connection("127.0.0.1", fake.port, ssl=trust)
        writer.write(request(fake="close"))
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert fake.responses[0].raw == received
    assert fake.requests[0].body == json.dumps(PLAIN).encode()


# --- the book --------------------------------------------------------------------------------------------------------


async def test_requests_and_responses_are_kept_byte_for_byte(fake: FakeProvider) -> None:
    """Heads, framing, trailers and answers are on the book as they crossed the wire."""
    head = b"POST /v1/messages?beta=true&x=%2f HTTP/1.1\r\nhOsT: h\r\nX-A:1\r\nx-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    payload = json.dumps(STREAM).encode()
    body = b"%x;why=not\r\n%b\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(payload), payload)
    with Client(fake.port) as client:
        await client.send(head + body)
        reply = await client.response()
    seen = fake.requests[0]
    assert (seen.raw_head, seen.raw_body, seen.body, seen.size) == (head, body, payload, len(payload))
    assert (seen.method, seen.target) == ("POST", "/v1/messages?beta=true&x=%2f")
    assert seen.headers[:3] == [(b"hOsT", b"h"), (b"X-A", b"1"), (b"x-a", b"2")]
    assert (seen.trailers, seen.complete, seen.connection) == ([(b"X-Sum", b"1")], True, 1)
    assert fake.responses[0].raw == reply.raw
    assert fake.responses[0].complete
    assert fake.counts.sent_bytes == len(reply.raw)


async def test_the_end_of_a_connection_is_kept(fake: FakeProvider) -> None:
    """Whether the client left with FIN or RST, in mid-stream or in mid-upload, or the fake ended it."""
    with Client(fake.port) as client:
        await client.send(request(body=STREAM, fake="endless; slow=1"))
        await client.until(b"data")
        assert fake.connections[0].closed_by == "none"
        client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await fake.wait_for(lambda: fake.connections[0].closed)
    with Client(fake.port) as client:
        await client.send(request()[:-5])
        await fake.wait_for(lambda: fake.counts.requests == 2)
    await fake.wait_for(lambda: fake.connections[1].closed)
    await ask(fake.port, fake="cut=1")
    await fake.wait_for(lambda: fake.connections[2].closed)
    assert [connection.closed_by for connection in fake.connections] == ["rst", "fin", "ours"]
    assert [seen.complete for seen in fake.requests] == [True, False, True]
    assert not any(reply.complete for reply in fake.responses)


@pytest.mark.parametrize(
    ("wish", "complete"),
    [
        ("close", True),
        ("http10", True),
        ("early=413", True),
        ("cut=3", False),
        ("wrong-length=7", False),
        ("reset=3", False),
    ],
)
async def test_an_answer_is_complete_or_broken_off(fake: FakeProvider, wish: str, complete: bool) -> None:
    """An answer that ends with its connection is complete, one that a fault broke off is not."""
    await ask(fake.port, fake=wish)
    await fake.wait_for(lambda: fake.connections[0].closed)
    assert fake.responses[0].complete is complete
    assert fake.counts.responses == complete


async def test_wait_for_wakes_on_events_only(fake: FakeProvider) -> None:
    """It returns as soon as the condition holds, gives up after its time, and hands over the condition's own error."""
    waiting = asyncio.create_task(fake.wait_for(lambda: fake.responses and fake.responses[0].complete))
    await ask(fake.port)
    await waiting
    with pytest.raises(TimeoutError):
        await fake.wait_for(lambda: False, timeout=0.01)
    broken = asyncio.create_task(fake.wait_for(lambda: fake.counts.requests > 1 and 1 / 0))
    await asyncio.sleep(0)
    has()(await ask(fake.port))
    with pytest.raises(ZeroDivisionError):
        await broken


async def test_nothing_is_kept_in_bounded_mode() -> None:
    """With `keep` off there are counters and no lists, and a limit bounds what is kept of a message otherwise."""
    async with FakeProvider(keep=False) as fake:
        for _ in range(3):
            has()(await ask(fake.port, fake="fixed=2000"))
        assert (fake.requests, fake.responses, fake.connections) == ([], [], [])
        counts = json.loads((await ask(fake.port, "/fake/counts", method="GET")).body)
        assert (counts["requests"], counts["responses"]) == (4, 3)
        assert counts["payload_bytes"] == 3 * len(json.dumps(PLAIN))
    async with FakeProvider(limit=1000) as fake:
        await ask(fake.port, body=b"x" * 5000, fake="huge=70000")
        assert (len(fake.requests[0].body), fake.requests[0].size) == (1000, 5000)
        assert len(fake.responses[0].raw) == 1000 < 70_000 < fake.responses[0].size
