"""The official SDKs through a real daemon: same results, same bytes on both sides, and every call on disk as it was."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import operator
import re
import time
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
from tests.logpage import untold
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
    """(request entry, response entry) of `count` calls, in the order they were made; no field is one the page omits."""

    def settled(entries: list[Entry]) -> bool:
        return sum(entry["type"] == "response" for entry in entries) >= count

    entries = await asyncio.to_thread(daemon.entries, 20, settled)
    pairs: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        assert untold(entry) == []
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


# --- errors, times, broken calls --------------------------------------------------------------------------------------

FAILURES = {
    400: ("BadRequestError", 1),
    401: ("AuthenticationError", 1),
    429: ("RateLimitError", 2),
    500: ("InternalServerError", 2),
    529: ("OverloadedError", 2),
}


@pytest.mark.parametrize("sdk", ["anthropic", "openai"])
async def test_errors_reach_the_sdk_and_its_retries_are_its_own(daemon: Any, fake: FakeProvider, sdk: str) -> None:
    """The SDK raises what it would raise without us, tries again as often, and each try is a call on disk."""
    url = f"{daemon.url}/{sdk}/127.0.0.1:{fake.port}"
    method, arguments = ("messages.create", CLAUDE) if sdk == "anthropic" else ("responses.create", RESPONSE)
    cases = [(Case(method, arguments, f"status={status}"),) for status in FAILURES]
    direct = await asyncio.gather(*(calls(sdk, "async", fake.url, case, max_retries=1) for case in cases))
    fake.requests.clear()
    through = await asyncio.gather(*(calls(sdk, "async", url, case, max_retries=1) for case in cases))
    assert through == direct
    tries = [seen.plan["status"] for seen in fake.requests]
    expected = {status: count for status, (_, count) in FAILURES.items()}
    assert {status: tries.count(status) for status in FAILURES} == expected
    found = await recorded(daemon, len(tries))
    assert sorted(response["status"] for _, response in found) == sorted(tries)
    for request, response in found:
        assert response["ending"] == "complete" and "error" not in response
        assert request["headers"]["X-Fake"] == [f"status={response['status']}"]
        assert json.loads(response["body"])["error"]["message"] == "The fake provider was told to fail."
        if response["status"] in (429, 529):
            assert response["headers"]["Retry-After"] == ["1"]
    names = {one[0][0]["raised"] for one in through}
    assert {"BadRequestError", "RateLimitError", "InternalServerError"} <= names


async def test_recorded_times_are_the_streams_own(daemon: Any) -> None:
    """
    Each event's time lies between its leaving the provider and its coming to the client, TTFB and total around them.
    """
    event = b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    sent: list[float] = []
    received: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for pause, data in (
            (0.15, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"),
            *[(0.05, event)] * 8,
        ):
            await asyncio.sleep(pause)  # the provider thinks
            sent.append(time.time())
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"{daemon.url}/openai/127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            begun = time.time()
            async with await client.chat.completions.create(**CHAT, **STREAM) as stream:
                received.append(time.time())
                async for _ in stream:
                    received.append(time.time())
    ((request, response),) = await recorded(daemon, 1)
    slack = 0.02  # milliseconds are cut off, clocks are slewed, and a busy machine reads two of them apart
    start = moment(request["_meta"]["ts"]).timestamp()
    assert begun - slack <= start <= sent[0] + slack
    timing = response["timing"]
    assert sent[0] - slack <= start + timing["ttfb_ms"] / 1000 <= received[0] + slack
    times = [moment(chunk["ts"]).timestamp() for chunk in response["chunks"] if chunk["raw"].startswith("data:")]
    assert len(times) == len(received) - 1 == 8
    for left, told, came in zip(sent[1:], times, received[1:], strict=True):
        assert left - slack <= told <= came + slack
    head = start + timing["ttfb_ms"] / 1000
    for told, chunk in zip(times, response["chunks"][::2], strict=True):
        assert abs(told - head - chunk["delta_ms"] / 1000) <= 2 * slack
    assert start + timing["total_ms"] / 1000 >= sent[-1] - slack
    assert moment(response["_meta"]["ts"]).timestamp() - start - timing["total_ms"] / 1000 <= slack


async def test_a_timeout_of_the_sdk_is_a_client_that_left(daemon: Any, fake: FakeProvider) -> None:
    """No answer, or half a one: the SDK raises its timeout, the upstream is left at once, the record says how far it was."""
    cases = (Case("messages.create", CLAUDE, "hang=now"), Case("messages.create", CLAUDE, "hang=head"))
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}"
    raised = await calls("anthropic", "async", url, cases, timeout=1.0)
    assert [one[0]["raised"] if isinstance(one, list) else one["raised"] for one in raised] == ["APITimeoutError"] * 2
    await fake.wait_for(lambda: not fake.counts.open_connections)
    (_, silent), (_, half) = await recorded(daemon, 2)
    assert (silent["status"], silent["headers"], silent["ending"]) == (None, None, "client_gone")
    assert (half["status"], half["body"], half["ending"]) == (200, "", "client_gone")
    assert half["headers"]["Content-Type"] == ["application/json"]
    assert 200 <= silent["timing"]["total_ms"] < 10_000 and silent["timing"]["ttfb_ms"] == 0


async def test_a_client_that_leaves_a_stream_stops_the_upstream(daemon: Any, fake: FakeProvider) -> None:
    """A stream without an end is left after three events: no more tokens are spent, and what came is on disk."""
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}"
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        asked_for: Any = {"extra_headers": {"X-Fake": "endless;slow=20"}}
        async with await client.messages.create(**CLAUDE, **STREAM, **asked_for) as stream:
            events = aiter(stream)
            got = [(await anext(events)).type for _ in range(5)]
    await fake.wait_for(lambda: not fake.counts.open_connections)
    ((_, response),) = await recorded(daemon, 1)
    assert response["ending"] == "client_gone" and "wire_ending" not in response
    told = "".join(chunk["raw"] for chunk in response["chunks"])
    sent = Answer(fake.responses[0].raw)
    assert sent.text.startswith(told)
    names = [line[7:] for line in told.splitlines() if line.startswith("event: ")]
    assert [name for name in names if name != "ping"][:5] == got


async def test_leaving_after_the_last_event_is_no_failure(daemon: Any) -> None:
    """The SDK hangs up at `[DONE]` while the upstream keeps the response open: complete, and the wire's ending beside it."""
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n')
        writer.write(b"data: [DONE]\n\n")
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"{daemon.url}/openai/127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            async with await client.chat.completions.create(**CHAT, **STREAM) as stream:
                assert len([chunk async for chunk in stream]) == 1
            await asyncio.wait_for(closed.wait(), 10)
    ((_, response),) = await recorded(daemon, 1)
    assert (response["ending"], response["wire_ending"], response["status"]) == ("complete", "client_gone", 200)
    assert response["ended_by_close"] is True
    assert response["chunks"][-2]["raw"] == "data: [DONE]\n"


@pytest.mark.parametrize(
    ("host", "ending", "answered", "raised"),
    [
        ("10.1.2.3", "refused", 403, openai.PermissionDeniedError),
        ("127.0.0.1:{closed}", "upstream_failed", 502, openai.InternalServerError),
        ("nobody.invalid", "upstream_failed", 502, openai.InternalServerError),
    ],
)
async def test_what_we_answer_ourselves_the_sdk_understands(
    daemon: Any, free_port: int, host: str, ending: str, answered: int, raised: type[Exception]
) -> None:
    """An upstream that may not be called, is not there, has no address: an API error with a reason, and a record."""
    host = host.format(closed=free_port)
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/openai/{host}/v1", api_key="k", max_retries=0) as client:
        with pytest.raises(raised) as caught:
            await client.responses.create(**RESPONSE)
    error: Any = caught.value
    assert host.partition(":")[0] in error.body["message"]
    assert answered != 403 or f"{host} is not a public address" in error.body["message"]
    ((request, response),) = await recorded(daemon, 1)
    assert request["_meta"]["host"] == host
    assert (response["status"], response["answered"], response["ending"]) == (None, answered, ending)
    assert response["error"]


# --- WebSocket --------------------------------------------------------------------------------------------------------


LINK: Any = {"websocket_connection_options": {"compression": "deflate"}}


def talk_sync(client: openai.OpenAI, headers: dict[str, str]) -> list[str]:
    """A prewarm and a turn, as Codex has them; the types of all events."""
    types = []
    with client.responses.connect(extra_headers=headers, **LINK) as link:
        for extra in ({"generate": False}, {}):
            link.send({"type": "response.create", **RESPONSE, **extra})  # type: ignore[arg-type,misc]
            while not types or types[-1] != "response.completed":
                types.append(link.recv().type)
            types.append("")
    return types


async def talk_async(client: openai.AsyncOpenAI, headers: dict[str, str]) -> list[str]:
    types = []
    async with client.responses.connect(extra_headers=headers, **LINK) as link:
        for extra in ({"generate": False}, {}):
            await link.send({"type": "response.create", **RESPONSE, **extra})  # type: ignore[arg-type,misc]
            while not types or types[-1] != "response.completed":
                types.append((await link.recv()).type)
            types.append("")
    return types


async def talk(mode: str, url: str, headers: dict[str, str]) -> list[str]:
    if mode == "sync":
        with openai.OpenAI(base_url=url, api_key="k") as client:
            return await asyncio.to_thread(talk_sync, client, headers)
    async with openai.AsyncOpenAI(base_url=url, api_key="k") as client:
        return await talk_async(client, headers)


@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")  # the SDK's
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("wish", ["slow=5", "slow=5;fragments=40"])
async def test_responses_over_a_websocket(daemon: Any, fake: FakeProvider, mode: str, wish: str) -> None:
    """The SDK's WebSocket: same events, same bytes, and each message of both sides on disk as text, with its time."""
    headers = {"X-Case": "0", "X-Fake": wish, "X-Session-ID": "ws"}
    direct = await talk(mode, f"{fake.url}/v1", headers)
    await fake.wait_for(lambda: not fake.counts.open_connections)
    fake.requests.clear()
    fake.responses.clear()
    prefix = f"/openai/127.0.0.1:{fake.port}"
    async with Wiretap(daemon.port) as tap:
        assert await talk(mode, f"http://127.0.0.1:{tap.port}{prefix}/v1", headers) == direct
        await fake.wait_for(lambda: not fake.counts.open_connections)
        (seen,), (reply,), (tapped,) = fake.requests, fake.responses, tap.connections
        ((head, body),) = tapped.requests()
        assert without(as_it_should_arrive(head, prefix, fake)) == without(seen.raw_head, b"connection")
        assert body == seen.raw_body
        assert bytes(tapped.from_server) == reply.raw
    ((request, response),) = await recorded(daemon, 1)
    assert (request["method"], request["path"], request["body"]) == ("GET", "/v1/responses", "")
    assert (response["status"], response["ending"]) == (101, "complete")
    assert "permessage-deflate" in response["headers"]["Sec-Websocket-Extensions"][0]
    told = response["websocket"]
    assert (told["client_size"], told["server_size"]) == (len(body), len(reply.raw.partition(b"\r\n\r\n")[2]))
    texts = {"client": [], "server": []}  # type: dict[str, list[str]]
    kinds = set()
    for message in told["messages"]:
        kinds.add((message["from"], message["type"]))
        if message["type"] == "text":
            texts[message["from"]].append(message["raw"])
    assert texts["client"] == seen.messages
    assert [json.loads(text)["type"] for text in texts["server"]] == [name for name in direct if name]
    assert (("server", "ping") in kinds) == ("fragments" in wish)
    assert kinds >= {("client", "close"), ("server", "close")}
    assert [message["code"] for message in told["messages"] if message["type"] == "close"] == [1000, 1000]
    times = [moment(message["ts"]) for message in told["messages"]]
    assert times == sorted(times)
    turns = [number for number, message in enumerate(told["messages"]) if message["from"] == "client"]
    assert turns[0] == 0, "the first message is the client's"
    assert response["timing"]["total_ms"] >= 5 * len(texts["server"])
    starts = json.loads(
        (daemon.logs / request["_meta"]["host"]).rglob("*.jsonl").__next__().read_text().splitlines()[0]
    )
    assert (starts["client_session"], starts["client_session_source"]) == ("ws", "x-session-id")


# --- sessions ---------------------------------------------------------------------------------------------------------

ID = "0198c1de-7f00-7a44-9d3c-2b1f6f0a7c11"
DEVICE = "ab" * 32
MESSAGE, ANSWER = "messages.create", "responses.create"
# How a client names its conversation: SDK, method, arguments beyond the usual; then what is found, and where.
SESSIONS = {
    "Claude Code's header": (
        ("anthropic", MESSAGE, {"extra_headers": {"X-Claude-Code-Session-Id": ID}}),
        (ID, "x-claude-code-session-id"),
    ),
    "user_id, JSON": (
        ("anthropic", MESSAGE, {"metadata": {"user_id": json.dumps({"device_id": DEVICE, "session_id": ID})}}),
        (ID, "metadata.user_id"),
    ),
    "user_id, older form": (
        ("anthropic", MESSAGE, {"metadata": {"user_id": f"user_{DEVICE}_account__session_{ID}"}}),
        (ID, "metadata.user_id"),
    ),
    "X-Session-ID": (("anthropic", MESSAGE, {"extra_headers": {"X-Session-ID": "mine"}}), ("mine", "x-session-id")),
    "Codex's session-id": (
        ("openai", ANSWER, {"extra_headers": {"session-id": ID, "thread-id": "other"}, "prompt_cache_key": "third"}),
        (ID, "session-id"),
    ),
    "Codex's session_id": (("openai", ANSWER, {"extra_headers": {"session_id": ID}}), (ID, "session_id")),
    "Codex's thread-id": (("openai", ANSWER, {"extra_headers": {"thread-id": ID}}), (ID, "thread-id")),
    "conversation": (("openai", ANSWER, {"conversation": "conv_1"}), ("conv_1", "conversation")),
    "conversation, an object": (("openai", ANSWER, {"conversation": {"id": "conv_2"}}), ("conv_2", "conversation")),
    "metadata.session_id": (
        ("openai", "chat.completions.create", {"metadata": {"session_id": "s-7"}}),
        ("s-7", "metadata.session_id"),
    ),
    "prompt_cache_key": (("openai", ANSWER, {"prompt_cache_key": ID}), (ID, "prompt_cache_key")),
    "no id": (("anthropic", MESSAGE, {}), None),
}
USUAL = {MESSAGE: CLAUDE, ANSWER: RESPONSE, "chat.completions.create": CHAT}


@pytest.mark.parametrize("how", SESSIONS)
async def test_calls_with_the_same_id_are_one_session(start: Any, fake: FakeProvider, how: str) -> None:
    """Two calls, a restart, a third call: one file, numbered on; without an id each conversation is a file of its own."""
    (sdk, method, more), expected = SESSIONS[how]
    for times in (2, 1):
        daemon = start("--port", "0")
        base = f"{daemon.url}/{sdk}/127.0.0.1:{fake.port}{BASE[sdk]}"
        async with SDKS[sdk, "async"](base_url=base, api_key="k", max_retries=0) as client:  # type: ignore[attr-defined]
            for _ in range(times):
                await operator.attrgetter(method)(client)(**USUAL[method], **more)
        assert await asyncio.to_thread(daemon.stop) == 0
    found = await recorded(daemon, 3)
    files = sorted(daemon.logs.rglob("*.jsonl"))
    firsts = [json.loads(file.read_text().splitlines()[0]) for file in files]
    hints = [(first.get("client_session"), first.get("client_session_source")) for first in firsts]
    if expected:
        assert hints == [expected]
        assert [request["seq"] for request, _ in found] == [1, 2, 3]
    else:
        assert hints == [(None, None)] * 3
        assert [request["seq"] for request, _ in found] == [1, 1, 1]
    for file in files:
        assert file.relative_to(daemon.logs).parts[0] == f"127.0.0.1:{fake.port}"
        assert file.stat().st_mode & 0o777 == 0o600
        assert {
            folder.stat().st_mode & 0o777 for folder in file.parents if daemon.logs in (folder, *folder.parents)
        } == {0o700}


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_compressed_request_bodies_are_told_as_text(daemon: Any, fake: FakeProvider, coding: str) -> None:
    """As Codex sends them with a ChatGPT login: forwarded compressed, on disk readable, and the session in them is found."""
    text = json.dumps(RESPONSE | {"prompt_cache_key": ID}).encode()
    coder = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstd.compress}[coding]
    body = coder(text)
    async with httpx2.AsyncClient() as client:
        answer = await client.post(
            f"{daemon.url}/openai/127.0.0.1:{fake.port}/backend-api/codex/responses",
            content=body,
            headers={"Content-Encoding": coding, "Content-Type": "application/json"},
        )
    assert answer.status_code == 200 and fake.requests[0].raw_body == body
    ((request, response),) = await recorded(daemon, 1)
    assert (request["body"], request["content_encoding"], request["size"]) == (text.decode(), coding, len(body))
    assert response["body"] == answer.text
    (file,) = daemon.logs.rglob("*.jsonl")
    assert json.loads(file.read_text().splitlines()[0])["client_session"] == ID


async def test_binary_both_ways_is_base64(daemon: Any, fake: FakeProvider) -> None:
    """A file in a multipart request and bytes in the answer stand in the log bit for bit."""
    sound = bytes(range(256)) * 4
    url = f"{daemon.url}/openai/127.0.0.1:{fake.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        answer = await client.audio.speech.create(
            model="tts-1", voice="alloy", input="hi", extra_headers={"X-Fake": f"bytes={sound.hex()}"}
        )
        assert answer.content == sound
        with pytest.raises(openai.BadRequestError):  # the fake provider reads JSON only
            await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound))
    (_, spoken), (heard, _) = await recorded(daemon, 2)
    assert (spoken["body_encoding"], base64.b64decode(spoken["body"])) == ("base64", sound)
    assert heard["body_encoding"] == "base64" and base64.b64decode(heard["body"]) == fake.requests[1].body
    assert sound in fake.requests[1].body


async def test_damaged_and_long_bodies_say_so(start: Any, fake: FakeProvider) -> None:
    """Beyond the limit a body is carried whole and kept in part, with its size and SHA-256; bad gzip stands as it came."""
    daemon = start("--port", "0", env={"LLM_PROXY_RECORD_BODY_LIMIT": "4096"})
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}"
    long = CLAUDE | {"messages": [{"role": "user", "content": "ä" * 9000}]}
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        message = await client.messages.create(**long, extra_headers={"X-Fake": "words=3000"})
        assert len(message.content[0].text) > 9000
        with pytest.raises(ERRORS):
            await client.messages.create(**CLAUDE, extra_headers={"X-Fake": "bad-gzip"})
    (asked_long, answered_long), (_, damaged) = await recorded(daemon, 2)
    for entry, whole in ((asked_long, fake.requests[0].body), (answered_long, Answer(fake.responses[0].raw).payload)):
        kept = base64.b64decode(entry["body"]) if "body_encoding" in entry else entry["body"].encode()
        assert whole.startswith(kept) and len(kept) == 4096
        assert (entry["truncated"], entry["size"]) == ("limit", len(whole))
        assert entry["sha256"] == hashlib.sha256(whole).hexdigest()
    assert damaged["decode_error"] and damaged["size"] == len(Answer(fake.responses[1].raw).payload)
