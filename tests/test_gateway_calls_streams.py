"""What passes, byte for byte; streams under load, for slow readers, and for those who leave."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import aiohttp
import pytest

from tests.fakeprovider import SeenResponse
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaycalls import MODELS, SECRET, Calls, calls

__all__ = ["calls"]

HELLO = [{"role": "user", "content": "hello"}]
# As no JSON library writes it; the model's name stands last, and once more below.
ODD = (
    b'\n{ "messages" : [ {"role":"user", "content":"gr\\u00fc\xc3\x9f \\ud83d\\udc4b \\"model\\":1"} ],\r\n'
    b'  "max_tokens":1e2,"x":[1.0,{"model":"fast"}],%b "temperature":1.000 , "model" :\t"fast"}\n'
)
PASSING = [
    ("/v1/chat/completions", "openai"),
    ("/v1/chat/completions", "openai-compatible"),
    ("/v1/responses", "openai"),
    ("/v1/messages", "anthropic"),
    ("/v1/messages/count_tokens", "anthropic"),
    ("/v1/embeddings", "openai"),
]


def payload(response: SeenResponse) -> bytes:
    """Of an answer the fake sent: what was within its framing."""
    head, _, wire = response.raw.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return wire
    pieces = []
    while wire:
        size, _, wire = wire.partition(b"\r\n")
        pieces.append(wire[: int(size, 16)])
        wire = wire[int(size, 16) + 2 :]
    return b"".join(pieces)


@pytest.mark.parametrize(("path", "provider"), PASSING)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_needs_no_translation_passes_byte_for_byte(
    calls: Calls, path: str, provider: str, stream: bool
) -> None:
    """Both ways; the model's name and the key are another, and no word of the caller's own head goes on."""
    counted = b'"stream_options":{"include_usage":true},' if "chat" in path else b""
    model = "text-embedding-3-small" if "embeddings" in path else MODELS[provider]
    await calls.alias("fast", await calls.provider(provider), model)
    sent = ODD % (b'"stream":true,' + counted if stream else b"")
    headers = {"X-Secret": "mine", "Cookie": "mine", "anthropic-beta": "odd-1", "OpenAI-Organization": "mine"}
    answer = await calls.ask(path, sent, headers)
    assert answer.status == 200
    (seen,) = calls.fake.requests
    assert seen.body == sent.replace(b':\t"fast"', b':\t"%b"' % model.encode())
    assert answer.body == payload(calls.fake.responses[0])
    assert b"mine" not in seen.raw_head
    assert calls.key.encode() not in seen.raw_head
    assert SECRET.encode() in seen.raw_head
    assert (seen.header("anthropic-beta") == "odd-1") == ("messages" in path)
    assert not [name for name in answer.headers if "ratelimit" in name.lower() or "organization" in name.lower()]


async def test_counts_that_nobody_asked_for_are_taken_out_again(calls: Calls) -> None:
    """They are asked for in the gateway's own call, which then knows them."""
    await calls.alias("fast", await calls.provider("openai", "one-byte"))
    sent = b'{"model":"fast","stream":true,"messages":[{"role":"user","content":"hello"}]}'
    answer = await calls.ask("/v1/chat/completions", sent)
    (seen,) = calls.fake.requests
    assert seen.body == sent.replace(b'"fast"', b'"gpt-4o"').replace(
        b"{", b'{"stream_options":{"include_usage":true},', 1
    )
    told = payload(calls.fake.responses[0])
    counts = re.compile(rb'data: [^\n]*"choices":\[\][^\n]*\n\n')
    assert len(counts.findall(told)) == 1
    assert answer.body == counts.sub(b"", told)
    (row,) = await calls.attempts()
    assert (row.output_tokens, row.cache_read_tokens) == (len(SENTENCE), 11)
    options = {"stream_options": {"include_obfuscation": False}}
    answer = await calls.ask("/v1/chat/completions", json.loads(sent) | options)
    assert json.loads(calls.fake.requests[1].body)["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }
    assert counts.search(answer.body) is None


async def test_an_alias_parameters_lie_over_the_callers(calls: Calls) -> None:
    """By the names of what is spoken; null takes one away."""
    given = {"temperature": 0.1, "max_tokens": 7, "top_p": None}
    await calls.alias("fast", await calls.provider("openai"), parameters=given)
    asked = {"model": "fast", "temperature": 1.5, "top_p": 0.5, "max_output_tokens": 99, "input": "hello"}
    await calls.ask("/v1/responses", asked)
    assert json.loads(calls.fake.requests[0].body) == {
        "model": "gpt-4o",
        "temperature": 0.1,
        "max_output_tokens": 7,
        "input": "hello",
    }


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
async def test_who_leaves_stops_the_provider(calls: Calls, provider: str) -> None:
    """At once, before and behind the first word; what was used until then is noted."""
    await calls.alias("slow", await calls.provider(provider, "delay=60000"))
    await calls.alias("endless", await calls.provider(provider, "endless;slow=5"))
    asked = {"model": "slow", "messages": HELLO, "stream": True}
    headers = {"Authorization": f"Bearer {calls.key}"}
    link = calls.http.post(calls.url + "/v1/chat/completions", json=asked, headers=headers)
    waiting = asyncio.ensure_future(link.__aenter__())
    await calls.fake.wait_for(lambda: calls.fake.requests and calls.fake.requests[0].complete)
    waiting.cancel()
    await calls.fake.wait_for(lambda: calls.fake.connections[0].closed)
    async with calls.http.post(
        calls.url + "/v1/chat/completions", json=asked | {"model": "endless"}, headers=headers
    ) as response:
        await response.content.readuntil(b"Hello")
        response.close()
    await calls.fake.wait_for(lambda: calls.fake.connections[1].closed)
    async with asyncio.timeout(30):
        while len(rows := await calls.attempts()) < 2:
            await asyncio.sleep(0.01)
    assert [row.ending for row in rows] == ["client_gone", "client_gone"]
    assert rows[0].output_tokens == 0
    assert min(rows[1].input_tokens, rows[1].output_tokens) > 0  # told by the provider or not


@pytest.mark.parametrize("provider", ["openai", "gemini"])
async def test_a_slow_reader_holds_the_provider_up(calls: Calls, provider: str) -> None:
    """Nothing piles up in between."""
    await calls.alias("fast", await calls.provider(provider, "endless"))
    asked = {"model": "fast", "messages": HELLO, "stream": True}
    headers = {"Authorization": f"Bearer {calls.key}"}
    async with calls.http.post(calls.url + "/v1/chat/completions", json=asked, headers=headers) as response:
        await response.content.readuntil(b"Hello")
        sent = -1
        async with asyncio.timeout(20):
            while sent != (sent := calls.fake.responses[0].size):  # it goes on until every buffer is full
                await asyncio.sleep(0.3)
        assert sent < 16 << 20
        for _ in range(100):
            await response.content.readany()
        response.close()


async def test_five_hundred_translated_streams_lose_nothing(calls: Calls) -> None:
    """Each gets its own words, all at once, and each is noted."""
    count = 500
    names = ["anthropic", "gemini", "openai"]
    for name in names:
        await calls.alias(name, await calls.provider(name, "words=10;slow=20"))
    headers = {"Authorization": f"Bearer {calls.key}"}
    words = "".join(SENTENCE[number % len(SENTENCE)] for number in range(10))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def stream(number: int) -> None:
            asked: dict[str, Any] = {"model": names[number % 3], "messages": HELLO, "stream": True, "max_tokens": 99}
            async with http.post(calls.url + "/v1/messages", json=asked, headers=headers) as response:
                assert response.status == 200
                told = await response.read()
            events = [json.loads(line[6:]) for line in told.decode().splitlines() if line.startswith("data: ")]
            said = [event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"]
            assert "".join(said) == words
            assert events[-1]["type"] == "message_stop"

        await asyncio.gather(*(stream(number) for number in range(count)))
    rows = await calls.attempts()
    assert {row.ending for row in rows} == {"complete"}
    assert len({row.request_id for row in rows}) == count
