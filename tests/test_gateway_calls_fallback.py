"""When another target is tried and when not, what the caller hears of it, and what is noted."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakeprovider.answers import SENTENCE
from tests.gatewaycalls import Calls, calling, calls

__all__ = ["calls"]

WORDS = "".join(SENTENCE)
HELLO = [{"role": "user", "content": "hello"}]
PATHS = {"chat": "/v1/chat/completions", "anthropic": "/v1/messages"}


def body(api: str, model: str = "fast", **more: Any) -> dict[str, Any]:
    limit = {"max_tokens": 300} if api == "anthropic" else {}
    return {"model": model, "messages": HELLO} | limit | more


# Both kinds of first target: one that is passed through to, and one that is translated to.
FIRST = pytest.mark.parametrize("first", ["openai", "anthropic"])
EITHER = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
BEFORE = ("status=408", "status=409", "status=429", "status=500", "status=503", "status=529", "reset=head", "garbage")


@FIRST
@EITHER
async def test_each_failure_before_the_first_word_moves_on(calls: Calls, first: str, stream: bool) -> None:
    """At once, and the caller gets the other provider's answer; each attempt is noted with its status."""
    causes = (*BEFORE, *(("error-event=1", "cut=1", "bytes=") if stream else ("cut=20b",)))
    for number, cause in enumerate(causes):
        await calls.chained(f"fast-{number}", (first, cause), ("gemini", ""))
    answers = await asyncio.gather(
        *(calls.ask(PATHS["chat"], body("chat", f"fast-{number}", stream=stream)) for number in range(len(causes)))
    )
    for cause, answer in zip(causes, answers, strict=True):
        assert (answer.status, answer.headers["x-llm-proxy-attempts"]) == (200, "2"), cause
        assert answer.headers["x-llm-proxy-model"] == "gemini/gemini-2.5-pro"
        assert b"provider" in answer.body
    rows = await calls.attempts()
    assert [(row.attempt, row.ending) for row in rows] == [(1, "upstream_failed"), (2, "complete")] * len(causes)
    assert {row.error == "" for row in rows if row.attempt == 1} == {False}
    assert {row.status_code for row in rows if row.attempt == 1} >= {408, 409, 429, 500, 503, 529, None}


@FIRST
async def test_who_cannot_be_reached_is_passed_over(tmp_path: Path, first: str) -> None:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    async with calling(tmp_path, also=(nowhere,)) as calls:
        key = await calls.provider(first, base=nowhere)
        other = await calls.provider("gemini")
        chain = [{"provider_key_id": other, "model": "gemini-2.5-pro", "rank": 1, "weight": 1}]
        await calls.alias("fast", key, chain=chain)
        answer = await calls.ask(PATHS["chat"], body("chat"))
        assert (answer.status, answer.headers["x-llm-proxy-attempts"]) == (200, "2")
        rows = await calls.attempts()
    assert [(row.status_code, row.ending) for row in rows] == [(None, "upstream_failed"), (200, "complete")]
    assert "refused" in rows[0].error


@pytest.mark.parametrize("cause", ["hang", "hang=head", "delay=60000"])
@FIRST
async def test_who_says_nothing_in_time_is_passed_over(tmp_path: Path, first: str, cause: str) -> None:
    """Headers alone are no word of the model."""
    async with calling(tmp_path, first_token_timeout=0.4) as calls:
        await calls.chained("fast", (first, cause), ("gemini", ""))
        answer = await calls.ask(PATHS["chat"], body("chat", stream=True))
        assert (answer.status, answer.headers["x-llm-proxy-attempts"]) == (200, "2")
        assert [row.ending for row in await calls.attempts()] == ["timed_out", "complete"]
        await calls.fake.wait_for(lambda: calls.fake.connections[0].closed)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
@FIRST
@EITHER
async def test_what_another_provider_would_refuse_too_stays(
    calls: Calls, first: str, stream: bool, status: int
) -> None:
    """A bad request is told at once; a key that the provider refuses is the gateway's trouble, and said to be."""
    await calls.chained("fast", (first, f"status={status}"), ("gemini", ""))
    answer = await calls.ask(PATHS["chat"], body("chat", stream=stream))
    assert answer.headers["x-llm-proxy-attempts"] == "1"
    assert answer.status == (502 if status in (401, 403) else status)
    if status in (401, 403):
        assert f"refused the gateway's provider key 'our {first}'" in answer.json["error"]["message"]
    assert [row.status_code for row in await calls.attempts()] == [status]


# Where an answer is translated, `chunk-truncated` comes behind the end that it has told, which is all that it needs.
BEHIND = [
    *(
        (first, api, cause)
        for first in ("openai", "anthropic")
        for api in PATHS
        for cause in ("error-event=6", "cut=6")
    ),
    ("openai", "chat", "chunk-truncated"),
    ("anthropic", "anthropic", "chunk-truncated"),
]


@pytest.mark.parametrize(("first", "api", "cause"), BEHIND)
async def test_behind_the_first_word_nobody_else_answers(calls: Calls, first: str, api: str, cause: str) -> None:
    """The error comes in the caller's dialect, no end is written, and the connection is broken off."""
    await calls.chained("fast", (first, f"{cause};slow=5"), ("gemini", ""))
    headers = {"Authorization": f"Bearer {calls.key}"}
    got = bytearray()
    async with calls.http.post(calls.url + PATHS[api], json=body(api, stream=True), headers=headers) as response:
        assert (response.status, response.headers["x-llm-proxy-attempts"]) == (200, "1")
        with pytest.raises(aiohttp.ClientPayloadError):
            async for piece in response.content.iter_any():
                got += piece
    assert b"Hello" in got
    last = bytes(got).strip().split(b"\n\n")[-1]
    told = json.loads(last[last.index(b"{") :])
    assert told["error"]["message"]
    assert last.startswith(b"event: error\n" if api == "anthropic" else b"data: {")
    assert b"[DONE]" not in got
    assert b"message_stop" not in got
    (row,) = await calls.attempts()
    assert (row.attempt, row.ending, row.provider_used) == (1, "upstream_failed", first)
    assert row.first_token_milliseconds is not None


async def test_the_last_error_is_told_where_all_fail(calls: Calls) -> None:
    """In the caller's dialect, with how long to wait, after every target had its turn."""
    await calls.chained("fast", ("openai", "status=500"), ("gemini", "status=429"), ("anthropic", "status=529"))
    for api in PATHS:
        answer = await calls.ask(PATHS[api], body(api))
        assert answer.headers["x-llm-proxy-attempts"] == "3"
        assert answer.status == (529 if api == "anthropic" else 503)
        assert answer.json["error"]["type"] == ("overloaded_error" if api == "anthropic" else "server_error")


async def test_who_fails_again_and_again_is_left_alone(calls: Calls) -> None:
    """Its breaker opens: the next request goes to the other one first; with no other, it is told when to come again."""
    await calls.chained("fast", ("openai", "status=500"), ("gemini", ""))
    for _ in range(5):
        await calls.ask(PATHS["chat"], body("chat"))
    answer = await calls.ask(PATHS["chat"], body("chat"))
    assert (answer.status, answer.headers["x-llm-proxy-attempts"]) == (200, "1")
    assert answer.headers["x-llm-proxy-model"] == "gemini/gemini-2.5-pro"
    await calls.chained("alone", ("openai", "status=500"))
    for _ in range(2):
        await calls.ask(PATHS["chat"], body("chat", "alone"))
    answer = await calls.ask(PATHS["anthropic"], body("anthropic", "alone"))
    assert (answer.status, answer.headers["x-llm-proxy-error"]) == (503, "providers_resting")
    assert 1 <= int(answer.headers["Retry-After"]) <= 10
    assert answer.json["error"]["type"] == "overloaded_error"


async def test_a_target_that_cannot_be_asked_is_passed_over_once_another_has_failed(calls: Calls) -> None:
    """Where it is the first the caller hears of it; he never hears of it in the place of a failure."""
    asked = body("chat", logit_bias={"50256": -100})
    await calls.chained("first", ("anthropic", ""), ("openai", ""))
    answer = await calls.ask(PATHS["chat"], asked | {"model": "first"})
    assert (answer.status, answer.json["error"]["param"]) == (400, "logit_bias")
    await calls.chained("second", ("openai", "status=503"), ("anthropic", ""))
    answer = await calls.ask(PATHS["chat"], asked | {"model": "second"})
    assert answer.status == 503
