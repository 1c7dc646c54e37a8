"""Whole and streamed answers of the fake providers, who speak as the real ones do, mean the same in every API."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import Ask, Text, Thinking, ToolCall
from llm_proxy.gateway.translate.losses import Losses
from tests.conversations import whole
from tests.fakebedrock import replies as bedrock
from tests.fakeprovider import chat, gemini, messages, responses
from tests.fakeprovider.answers import SENTENCE, THOUGHTS, Call
from tests.translated import events

ASKED = {
    "model": "alias",
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    "stream_options": {"include_usage": True},
}
CALLED = ASKED | {"messages": [{"role": "user", "content": 'call weather {"city": "Bern"}'}]}
THINKING = ASKED | {"reasoning_effort": "high"}
PROVIDERS: dict[str, tuple[str, Any, Any]] = {
    "anthropic": ("claude-sonnet-4-5", messages.messages, messages.messages),
    "chat": ("gpt-5", chat.completions, chat.completions),
    "responses": ("gpt-5", responses.responses, responses.responses),
    "gemini": ("gemini-3-pro", gemini.generate, gemini.stream_generate),
}
EVERY = pytest.mark.parametrize("api", sorted(PROVIDERS))


def answers(api: str, asked: dict[str, Any]) -> tuple[Any, list[Any]]:
    """What the provider says to a chat request: whole, and as pieces of a stream."""
    model, plainly, streaming = PROVIDERS[api]
    losses = Losses(api, refuse=False)
    ask = replace(APIS["chat"].read_request(asked, losses), model=model)
    told = [APIS[api].write_request(replace(ask, stream=stream), losses) for stream in (False, True)]
    path = f"/v1beta/models/{model}:streamGenerateContent?alt=sse"
    plain, streamed = (Call(path, body, 100, None, must_stream=False) for body in told)
    body = json.loads(b"".join(plainly(plain).pieces))
    lines = b"".join(streaming(streamed).pieces).decode().splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return body, [json.loads(one) for one in data if one != "[DONE]"]


def plain(parts: Any) -> list[Any]:
    """Without what differs from one answer to the next."""
    kept: list[Any] = []
    for part in parts:
        match part:
            case ToolCall():
                kept.append((part.name, json.loads(part.arguments)))
            case Thinking() | Text():
                kept.append((type(part), part.text))
    return kept


@EVERY
def test_words_come_whole_and_streamed(api: str) -> None:
    """And with the same counts."""
    body, pieces = answers(api, ASKED)
    reply = APIS[api].read_reply(body)
    *parts, stop, usage = whole(events(api, pieces))
    assert plain(reply.parts) == plain(parts) == [(Text, "".join(SENTENCE))]
    assert (reply.stop, reply.usage.prompt > 0, usage.output > 0) == (stop, True, True)


@EVERY
def test_calls_come_whole_and_streamed(api: str) -> None:
    """Each with its arguments."""
    body, pieces = answers(api, CALLED)
    reply = APIS[api].read_reply(body)
    *parts, stop, _ = whole(events(api, pieces))
    assert plain(reply.parts) == plain(parts)
    assert plain(reply.parts)[-1] == ("weather", {"city": "Bern"})
    assert reply.stop == stop == "tool"


@EVERY
def test_thoughts_come_whole_and_streamed(api: str) -> None:
    """Where they are told: chat completions of OpenAI's own models keep them back."""
    body, pieces = answers(api, THINKING | ({"model": "x"} if api == "chat" else {}))
    said = plain(APIS[api].read_reply(body).parts)
    *parts, _, _ = whole(events(api, pieces))
    assert said == plain(parts)
    thoughts = [one for one in said if one[0] is Thinking]
    if api in ("anthropic", "gemini"):
        assert thoughts == [(Thinking, "".join(THOUGHTS))]


@pytest.mark.parametrize("caller", sorted(APIS))
@EVERY
def test_every_caller_gets_every_provider(api: str, caller: str) -> None:
    """The same words, whoever speaks and whoever listens."""
    reply = APIS[api].read_reply(answers(api, ASKED)[0])
    back = APIS[caller].read_reply(APIS[caller].write_reply(reply, Ask("m", ()), 1), id=reply.id, model=reply.model)
    assert plain(back.parts) == plain(reply.parts)
    assert back.usage.total == reply.usage.total


def test_bedrocks_answer_is_understood() -> None:
    """As the fake Bedrock gives it."""
    reply = APIS["bedrock"].read_reply(bedrock.conversed(), id="id-1", model="m")
    assert plain(reply.parts)[0][1]
    assert reply.usage.total > 0
