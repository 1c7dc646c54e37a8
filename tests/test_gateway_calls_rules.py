"""What is refused and how it is said, what is left out, token counts, embeddings, old completions, lists of models."""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.dialects.reading import read_value
from llm_proxy.gateway.calls.arriving import MOST, Arrived
from llm_proxy.gateway.calls.ids import request_id
from llm_proxy.gateway.calls.parameters import laid_over
from llm_proxy.gateway.calls.passing_events import WholeEvents, WithoutCounts
from llm_proxy.gateway.calls.running import shown
from llm_proxy.gateway.refusals import Refusal
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaycalls import Calls, calling, calls
from tests.rig import Wire

__all__ = ["calls"]

WORDS = "".join(SENTENCE)
HELLO = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": "fast", "messages": HELLO}
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/completions")

# What comes -> status, code, and the field that is named.
BAD = [
    (b"", 400, "invalid_json", None),
    (b"{", 400, "invalid_json", None),
    (b"[]", 400, "invalid_request", None),
    (b"nonsense", 400, "invalid_json", None),
    (b'{"messages":[]}', 400, "invalid_request", "model"),
    (b'{"model":7}', 400, "invalid_request", "model"),
    (b'{"model":" "}', 400, "invalid_request", "model"),
    (b'{"model":"x","stream":"yes"}', 400, "invalid_request", "stream"),
    (b'{"model":"nobody-knows-it"}', 404, "model_not_found", "model"),
    (b'{"model":"fast","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json", None),
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_bad_request_is_refused_in_the_callers_dialect(calls: Calls, path: str) -> None:
    """Naming the field; nothing is sent anywhere, and it is noted."""
    await calls.alias("fast", await calls.provider("openai"))
    for body, status, code, field in BAD:
        answer = await calls.ask(path, body)
        error = answer.json["error"]
        assert (answer.status, answer.headers["x-llm-proxy-error"]) == (status, code), body[:40]
        assert error["message"]
        id = answer.headers["x-llm-proxy-request-id"]
        if "messages" in path:
            assert answer.json["type"] == "error"
            assert answer.json["request_id"] == answer.headers["request-id"] == id
        else:
            assert (error["code"], error["param"]) == (code, field)
            assert answer.headers["x-request-id"] == id
    assert calls.fake.requests == []
    rows = await calls.attempts()
    noted = sorted((row.attempt, row.status_code, row.ending) for row in rows)  # within a millisecond ids are random
    assert noted == sorted((0, status, "refused") for _, status, *_ in BAD)


async def test_a_body_has_a_limit(calls: Calls) -> None:
    """Told or found out."""

    async def endless() -> Any:
        for _ in range((MOST >> 20) + 1):
            yield b" " * (1 << 20)

    headers = {"Authorization": f"Bearer {calls.key}"}
    with contextlib.suppress(aiohttp.ClientError):  # the answer comes while it still writes
        url = calls.url + "/v1/messages"
        async with aiohttp.ClientSession() as http, http.post(url, data=endless(), headers=headers) as response:
            assert (response.status, (await response.json())["error"]["type"]) == (413, "request_too_large")
    wire = Wire.to(calls.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {calls.key}\r\n"
    await wire.send(f"{head}Content-Length: {MOST + 1}\r\n\r\n".encode())
    answer = await wire.message()
    assert (answer.status, json.loads(answer.payload)["error"]["code"]) == (413, "request_too_large")
    wire.socket.close()
    assert [row.status_code for row in await calls.attempts()] == [413, 413]


async def test_a_body_may_be_coded(calls: Calls) -> None:
    """What it grows to counts; what is no such coding is the caller's fault."""
    await calls.alias("fast", await calls.provider("openai"))
    coded = {"Content-Encoding": "gzip"}
    body = json.dumps(CHAT).encode()
    assert (await calls.ask(PATHS[0], gzip.compress(body), coded)).status == 200
    assert json.loads(calls.fake.requests[0].body)["messages"] == HELLO
    answer = await calls.ask(PATHS[0], gzip.compress(b" " * (2 * MOST)), coded)
    assert (answer.status, answer.headers["x-llm-proxy-error"]) == (413, "request_too_large")
    answer = await calls.ask(PATHS[0], body, coded)
    assert (answer.status, answer.headers["x-llm-proxy-error"]) == (400, "invalid_body")


async def test_keys_open_what_their_scope_says(calls: Calls) -> None:
    """In the dialect of the path."""
    key = await calls.new_key(calls.user, ("usage",))
    answer = await calls.ask("/v1/messages", CHAT, {"Authorization": f"Bearer {key}"})
    assert (answer.status, answer.json["error"]["type"]) == (403, "permission_error")
    answer = await calls.ask("/v1/chat/completions", CHAT, {"Authorization": "Bearer llmp_nobody"})
    assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error")


async def test_limits_are_told_with_every_answer(tmp_path: Path) -> None:
    """And a refusal says when to come again; the provider's own limits are nobody's business."""
    async with calling(tmp_path, rate_limit_minute=2) as calls:
        await calls.alias("fast", await calls.provider("anthropic"))
        body = CHAT | {"max_tokens": 9}
        left = [(await calls.ask("/v1/messages", body)).headers["x-ratelimit-remaining-requests"] for _ in range(2)]
        assert left == ["1", "0"]
        answer = await calls.ask("/v1/messages", body)
        assert (answer.status, answer.json["error"]["type"]) == (429, "rate_limit_error")
        assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert [row.ending for row in await calls.attempts()] == ["complete", "complete", "refused"]


# --- what cannot be said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [False, True])
async def test_what_cannot_be_carried_is_refused_or_left_out(tmp_path: Path, default: bool) -> None:
    """As the caller says, else as the operator; with a header that lists it."""
    async with calling(tmp_path, drop=default) as calls:
        await calls.alias("fast", await calls.provider("anthropic"))
        asked = CHAT | {"logit_bias": {"1": 5}, "odd\r\nX-Evil: é": 1}
        for told, drops in (("true", True), ("false", False), (None, default)):
            answer = await calls.ask(PATHS[0], asked, {} if told is None else {"x-llm-proxy-drop": told})
            assert answer.status == (200 if drops else 400)
            if drops:
                assert answer.headers["x-llm-proxy-dropped"] == "logit_bias, odd%0D%0AX-Evil:%20%C3%A9"
                assert "X-Evil" not in answer.headers
            else:
                assert answer.json["error"]["param"] in asked
        answer = await calls.ask(PATHS[0], asked, {"x-llm-proxy-drop": "perhaps"})
        assert (answer.status, answer.json["error"]["param"]) == (400, "x-llm-proxy-drop")


async def test_what_openai_keeps_for_a_caller_is_elsewhere_unknown(calls: Calls) -> None:
    """By name; its own models get it."""
    await calls.alias("claude", await calls.provider("anthropic"))
    await calls.alias("gpt", await calls.provider("openai"))
    asked = {"input": "hello", "previous_response_id": "resp_1"}
    answer = await calls.ask("/v1/responses", asked | {"model": "claude"})
    assert (answer.status, answer.json["error"]["param"]) == (400, "previous_response_id")
    assert (await calls.ask("/v1/responses", asked | {"model": "gpt"})).status == 200


# --- the smaller routes -----------------------------------------------------------------------------------------------


async def test_tokens_are_counted_by_anthropic_or_estimated(calls: Calls) -> None:
    """Which of them, a header tells; an alias' parameters are no part of the question."""
    for provider in ("anthropic", "openai", "gemini"):
        await calls.alias(provider, await calls.provider(provider), parameters={"temperature": 1})
        answer = await calls.ask("/v1/messages/count_tokens", CHAT | {"model": provider})
        assert answer.status == 200
        assert answer.json["input_tokens"] > 0
        assert answer.headers.get("x-llm-proxy-estimated") == (None if provider == "anthropic" else "true")
    (seen,) = calls.fake.requests
    assert "temperature" not in json.loads(seen.body)


async def test_embeddings_of_gemini_arrive_as_openais(calls: Calls) -> None:
    """Through OpenAI's SDK, which asks for base64; other providers make none, and that is said."""
    told = json.dumps({"embeddings": [{"values": [0.5, -1]}, {"values": [2, 3.25]}]}).encode().hex()
    await calls.alias("embed", await calls.provider("gemini", f"bytes={told}"), "gemini-embedding-001")
    await calls.alias("claude", await calls.provider("anthropic"))
    async with openai.AsyncOpenAI(api_key=calls.key, base_url=calls.url + "/v1", max_retries=0) as sdk:
        made = await sdk.embeddings.create(model="embed", input=["a", "b"], dimensions=2)
        assert [one.embedding for one in made.data] == [[0.5, -1.0], [2.0, 3.25]]
        with pytest.raises(openai.BadRequestError, match="cannot make embeddings"):
            await sdk.embeddings.create(model="claude", input="a")
    (seen,) = calls.fake.requests
    assert seen.target.endswith("/v1beta/models/gemini-embedding-001:batchEmbedContents")
    part = {"model": "models/gemini-embedding-001", "outputDimensionality": 2}
    assert json.loads(seen.body)["requests"] == [part | {"content": {"parts": [{"text": text}]}} for text in "ab"]
    plain = {"model": "embed", "input": "a", "encoding_format": "float"}
    assert (await calls.ask("/v1/embeddings", plain)).json["data"][0]["embedding"] == [0.5, -1]
    for wrong in ([[1, 2]], [], ["a"] * 101, None):
        answer = await calls.ask("/v1/embeddings", plain | {"input": wrong})
        assert (answer.status, answer.json["error"]["param"]) == (400, "input")
    packed = (await calls.ask("/v1/embeddings", plain | {"encoding_format": "base64"})).json["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -1.0)


async def test_old_completions_are_answered_by_models_that_chat(calls: Calls) -> None:
    """Whole and streamed, through OpenAI's SDK."""
    await calls.alias("claude", await calls.provider("anthropic"))
    async with openai.AsyncOpenAI(api_key=calls.key, base_url=calls.url + "/v1", max_retries=0) as sdk:
        made = await sdk.completions.create(model="claude", prompt="hello", max_tokens=50, stop="X")
        assert (made.choices[0].text, made.choices[0].finish_reason, made.object) == (WORDS, "stop", "text_completion")
        assert made.usage is not None and made.usage.completion_tokens > 0
        stream = await sdk.completions.create(
            model="claude", prompt=["hello"], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(one.text for chunk in chunks for one in chunk.choices) == WORDS
        assert [one.finish_reason for chunk in chunks for one in chunk.choices][-1] == "stop"
        assert chunks[-1].usage is not None
        for more in ({"prompt": ["a", "b"]}, {"echo": True}, {"best_of": 3}, {"suffix": "x"}, {"logprobs": 2}):
            with pytest.raises(openai.BadRequestError) as raised:
                await sdk.completions.create(**{"model": "claude", "prompt": "a"} | more)  # type: ignore[call-overload]
            assert raised.value.param == next(iter(more))
    sent = json.loads(calls.fake.requests[0].body)
    assert (sent["max_tokens"], sent["stop_sequences"]) == (50, ["X"])
    assert json.loads(calls.fake.requests[1].body)["max_tokens"] == 16


async def test_old_completions_pass_to_who_makes_them(calls: Calls) -> None:
    """Byte for byte, streamed too."""
    chunk = (
        b'data: {"id":"c","object":"text_completion","choices":[{"text":"hi","index":0,"finish_reason":"stop"}]}\n\n'
    )
    told = chunk + b"data: [DONE]\n\n"
    await calls.alias("old", await calls.provider("openai-compatible", f"bytes={told.hex()}"))
    sent = b'{"prompt":"a", "model":"old","stream":true}'
    answer = await calls.ask("/v1/completions", sent)
    assert (answer.status, answer.body) == (200, told)
    assert calls.fake.requests[0].body == sent.replace(b"old", b"llama-3")


async def test_models_are_listed_for_both_sdks(calls: Calls) -> None:
    """Aliases first, then what is known of the providers; one by its name, HEAD too, and nobody else's."""
    from sqlalchemy import insert

    from llm_proxy.gateway.store import schema
    from tests.gatewaystore import add_user

    key = await calls.provider("openai")
    other = await add_user(calls.site.store, "other@example.com")
    foreign = await calls.provider("anthropic", user_id=other)
    async with calls.site.store.writing() as connection:
        rows = [{"provider_key_id": key, "model_id": f"ft:gpt/{number:02}"} for number in range(30)]
        rows.append({"provider_key_id": foreign, "model_id": "claude-of-others"})
        await connection.execute(insert(schema.provider_models), rows)
        await calls.site.store.changed(connection)
    await calls.alias("smart/one", key)
    names = ["smart/one", *(f"ft:gpt/{number:02}" for number in range(30))]
    async with openai.AsyncOpenAI(api_key=calls.key, base_url=calls.url + "/v1", max_retries=0) as sdk:
        assert [model.id async for model in sdk.models.list()] == names
        assert (await sdk.models.retrieve("smart/one")).owned_by == "llm-proxy"
        assert (await sdk.models.retrieve("ft:gpt/07")).owned_by == "openai"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("claude-of-others")
    async with anthropic.AsyncAnthropic(api_key=calls.key, base_url=calls.url, max_retries=0) as claude:
        assert [model.id async for model in claude.models.list()] == names  # page after page
        assert [model.id async for model in claude.models.list(limit=7)] == names
        assert (await claude.models.retrieve("ft:gpt/07")).display_name == "ft:gpt/07"
        with pytest.raises(anthropic.NotFoundError):
            await claude.models.retrieve("nothing")
        with pytest.raises(anthropic.BadRequestError):
            await claude.models.list(limit=0)
    for path in ("/v1/models", "/models", "/v1/models/smart%2Fone"):
        answer = await calls.ask(path, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")


GIVEN = {"max_tokens": 7, "stop": "X", "seed": 1, "reasoning_effort": "low", "top_p": None, "user": "u", "own": True}
LAID: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "chat": (
        {"max_completion_tokens": 99, "top_p": 1, "n": 2},
        {"max_tokens": 7, "stop": "X", "seed": 1, "reasoning_effort": "low", "user": "u", "own": True, "n": 2},
    ),
    "responses": (
        {"max_output_tokens": 99, "top_p": 1, "reasoning": {"summary": "auto", "effort": "high"}},
        {"max_output_tokens": 7, "reasoning": {"summary": "auto", "effort": "low"}, "user": "u", "own": True},
    ),
    "anthropic": (
        {"max_tokens": 99, "top_p": 1},
        {
            "max_tokens": 7,
            "stop_sequences": ["X"],
            "output_config": {"effort": "low"},
            "metadata": {"user_id": "u"},
            "own": True,
        },
    ),
    "completions": (
        {"max_tokens": 9},
        {"max_tokens": 7, "stop": "X", "seed": 1, "reasoning_effort": "low", "user": "u", "own": True},
    ),
}


@pytest.mark.parametrize("api", sorted(LAID))
def test_an_alias_parameters_are_said_in_the_callers_words(api: str) -> None:
    """What his API has no word for is left out; the request itself stays as it was."""
    body, expected = LAID[api]
    before = json.dumps(body)
    assert laid_over(api, body, GIVEN) == expected
    assert json.dumps(body) == before


# --- pure -------------------------------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=20).filter(str.strip)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("fast") | st.just('"model"'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text().filter(lambda name: name not in ("stream", "stream_options")), values), names, names)
def test_only_the_models_name_is_another(body: dict[str, Any], asked: str, model: str) -> None:
    """Whatever else the body says, and however it is written."""
    for ascii_only in (True, False):
        sent = json.dumps(body | {"model": asked}, ensure_ascii=ascii_only).encode("utf-8", "replace")
        arrived = Arrived(sent)
        told = read_value(arrived.as_sent("chat", model, {}))
        assert told == read_value(sent) | {"model": model}
        counted = read_value(arrived.as_sent("chat", model, {}, counted=True))
        assert counted == told | {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\u006dodel":"fast","a":{"model":"fast"}}',
        b'{"model":"slow","model":"fast"}',
        b'{"a":"\\"model\\":\\"x\\"","model":"f\\u0061st"}',
    ],
)
def test_a_model_named_oddly_is_still_the_one_at_the_top(body: bytes) -> None:
    """No other name reaches the provider than the one that was looked at."""
    arrived = Arrived(body)
    assert arrived.model == "fast"
    assert json.loads(arrived.as_sent("chat", "gpt", {}))["model"] == "gpt"


def test_a_model_with_a_name_too_long_is_refused() -> None:
    """Nobody has one."""
    with pytest.raises(Refusal) as raised:
        Arrived(b'{"model":"%b","a":{"model":1}}' % (b"x" * 2000)).as_sent("chat", "gpt", {})
    assert raised.value.param == "model"


COUNTS = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
STREAM = (
    b'data: {"choices":[{"a":1}],"usage":null}\n\n: ping\r\n\r\ndata: {"choices":[{}]}\n\n'
    + COUNTS
    + b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_pass_whole_however_they_are_cut(cuts: list[int]) -> None:
    """And the counts go, nothing else."""
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(places)]
    whole, without = WholeEvents(), WithoutCounts()
    given = [whole.feed(piece) for piece in pieces]
    assert b"".join(given) + whole.finish() == STREAM
    assert all(not one or one.endswith((b"\n\n", b"\r\n\r\n")) for one in given)
    assert b"".join([*map(without.feed, pieces), without.finish()]) == STREAM.replace(COUNTS, b"")


def test_an_event_without_an_end_does_not_pile_up() -> None:
    """What is beyond the limit goes on."""
    events = WholeEvents()
    assert len(b"".join(events.feed(b"x" * 65536) for _ in range(100))) >= 99 * 65536 - (1 << 20)


def test_request_ids_sort_by_time() -> None:
    """And are those of RFC 9562."""
    import time
    import uuid

    ids = []
    for _ in range(5):
        ids.append(request_id())
        time.sleep(0.002)  # the clock of ids counts milliseconds
    assert ids == sorted(ids)
    assert len(set(ids)) == 5
    assert all(uuid.UUID(id.removeprefix("req_")).version == 7 for id in ids)


@given(st.text())
def test_no_word_of_a_callers_breaks_out_of_a_header(text: str) -> None:
    """Line ends, commas and the rest are encoded."""
    assert shown(text).isascii()
    assert not set(shown(text)) & set("\r\n\0, \t")
