"""The official SDKs of OpenAI and Anthropic through a whole gateway, to every provider: the same words for everybody.

One table: what a client speaks × whose model answers × what is asked, each whole and streamed, by both kinds of SDK.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import operator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

from tests.fakebedrock import frames, replies
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaycalls import MODELS, PROVIDERS, Calls, calls

__all__ = ["calls"]

Json = Any

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CITY = {"city": "Zürich"}
CALL = f"call weather {json.dumps(CITY, ensure_ascii=False)}"
SYSTEM = "You are brief."
WORDS = "".join(SENTENCE)


@dataclass
class Said:
    """What an SDK made of an answer."""

    text: str
    calls: list[tuple[str, Json]]
    stop: str
    model: str
    spent: tuple[int, int]


# --- what each client asks, by `words`, `tools`, `image` and `turns` -------------------------------------------------


def chat(asked: str) -> dict[str, Json]:
    tool = {"type": "function", "function": {"name": "weather", "description": "tells it", "parameters": SCHEMA}}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    system = {"role": "system", "content": SYSTEM}
    called = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(CITY)}}
    return {
        "words": {"messages": [system, {"role": "user", "content": "hello"}], "temperature": 0.5},
        "image": {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}]},
        "tools": {"messages": [system, {"role": "user", "content": CALL}], "tools": [tool]},
        "turns": {
            "messages": [
                {"role": "user", "content": CALL},
                {"role": "assistant", "content": None, "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            ],
            "tools": [tool],
            "tool_choice": "auto",
        },
    }[asked] | {"max_completion_tokens": 500}


def responses(asked: str) -> dict[str, Json]:
    tool = {"type": "function", "name": "weather", "description": "tells it", "parameters": SCHEMA, "strict": False}
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"}
    called = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": json.dumps(CITY)}
    shown = [{"role": "user", "content": [{"type": "input_text", "text": "what?"}, image]}]
    return {
        "words": {"input": "hello", "instructions": SYSTEM, "temperature": 0.5},
        "image": {"input": shown},
        "tools": {"input": [{"role": "user", "content": CALL}], "instructions": SYSTEM, "tools": [tool]},
        "turns": {
            "input": [
                {"role": "user", "content": CALL},
                called,
                {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            ],
            "tools": [tool],
        },
    }[asked] | {"max_output_tokens": 500, "store": False}


def messages(asked: str) -> dict[str, Json]:
    tool = {"name": "weather", "description": "tells it", "input_schema": SCHEMA}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
    return {
        "words": {"messages": [{"role": "user", "content": "hello"}], "system": SYSTEM, "stop_sequences": ["END"]},
        "image": {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}]},
        "tools": {"messages": [{"role": "user", "content": CALL}], "system": SYSTEM, "tools": [tool]},
        "turns": {
            "messages": [
                {"role": "user", "content": CALL},
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": CITY}],
                },
                {"role": "user", "content": [result]},
            ],
            "tools": [tool],
        },
    }[asked] | {"max_tokens": 500}


# --- what each client's SDK makes of the answer ----------------------------------------------------------------------


def of_chat(told: Json) -> Said:
    choice = told.choices[0]
    made = [(one.function.name, json.loads(one.function.arguments)) for one in choice.message.tool_calls or []]
    spent = told.usage.prompt_tokens, told.usage.completion_tokens
    return Said(choice.message.content or "", made, choice.finish_reason, told.model, spent)


def of_chunks(told: list[Json]) -> Said:
    text, stop, spent = "", "", (0, 0)
    made: dict[int, list[str]] = {}
    for chunk in told:
        if chunk.usage:
            spent = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices:
            text += choice.delta.content or ""
            stop = choice.finish_reason or stop
            for call in choice.delta.tool_calls or []:
                one = made.setdefault(call.index, ["", ""])
                one[0] += call.function.name or ""
                one[1] += call.function.arguments or ""
    return Said(text, [(name, json.loads(given)) for name, given in made.values()], stop, told[0].model, spent)


def of_response(told: Json) -> Said:
    made = [(one.name, json.loads(one.arguments)) for one in told.output if one.type == "function_call"]
    return Said(told.output_text, made, told.status, told.model, (told.usage.input_tokens, told.usage.output_tokens))


def of_response_events(told: list[Json]) -> Said:
    said = of_response(told[-1].response)
    assert said.text == "".join(one.delta for one in told if one.type == "response.output_text.delta")
    assert [one.sequence_number for one in told] == list(range(len(told)))
    return said


def of_message(told: Json) -> Said:
    made = [(one.name, one.input) for one in told.content if one.type == "tool_use"]
    text = "".join(one.text for one in told.content if one.type == "text")
    usage = told.usage
    went_in = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return Said(text, made, told.stop_reason, told.model, (went_in, usage.output_tokens))


def of_message_events(told: list[Json]) -> Said:
    """As the SDK's own accumulation does it."""
    blocks: dict[int, list[str]] = {}
    kinds: dict[int, Json] = {}
    stop, usage = "", None
    for event in told:
        match event.type:
            case "content_block_start":
                kinds[event.index], blocks[event.index] = event.content_block, []
            case "content_block_delta":
                delta = event.delta
                blocks[event.index].append(getattr(delta, "text", "") or getattr(delta, "partial_json", ""))
            case "message_delta":
                stop, usage = event.delta.stop_reason, event.usage
    assert told[0].type == "message_start"
    assert told[-1].type == "message_stop"
    assert usage is not None
    joined = {index: "".join(pieces) for index, pieces in blocks.items()}
    text = "".join(joined[index] for index, kind in kinds.items() if kind.type == "text")
    made = [(kind.name, json.loads(joined[index])) for index, kind in kinds.items() if kind.type == "tool_use"]
    went_in = usage.input_tokens or told[0].message.usage.input_tokens
    went_in += usage.cache_read_input_tokens or 0
    return Said(text, made, stop, told[0].message.model, (went_in, usage.output_tokens))


CLIENTS: dict[str, Json] = {
    "chat": (chat, of_chat, of_chunks, ("stop", "tool_calls")),
    "responses": (responses, of_response, of_response_events, ("completed", "completed")),
    "anthropic": (messages, of_message, of_message_events, ("end_turn", "tool_use")),
}
# What an API's own provider answers passes as it is, its model's name too.
PASSES = {
    ("chat", "openai"),
    ("chat", "openai-compatible"),
    ("responses", "openai"),
    ("anthropic", "anthropic"),
}


SDKS = {
    ("anthropic", True): anthropic.Anthropic,
    ("anthropic", False): anthropic.AsyncAnthropic,
    ("openai", True): openai.OpenAI,
    ("openai", False): openai.AsyncOpenAI,
}
METHODS = {"chat": "chat.completions.create", "responses": "responses.create", "anthropic": "messages.create"}


def sdk(client: str, calls: Calls, *, sync: bool) -> Any:
    name = "anthropic" if client == "anthropic" else "openai"
    base = calls.url if client == "anthropic" else calls.url + "/v1"
    return SDKS[name, sync](api_key=calls.key, base_url=base, max_retries=0, timeout=20)


async def told(client: str, made: Any, sync: bool, asked: dict[str, Json]) -> Any:
    """The whole answer, or the list of a stream's events, of an SDK's client."""
    create = operator.attrgetter(METHODS[client])(made)
    if sync:
        return await asyncio.to_thread(lambda: list(create(**asked)) if asked.get("stream") else create(**asked))
    answer = await create(**asked)
    return [event async for event in answer] if asked.get("stream") else answer


def bedrocks_call() -> tuple[bytes, list[bytes]]:
    """What the fake Bedrock says where a tool is to be called: whole, and as frames."""
    use = {"toolUseId": "tooluse_1", "name": "weather"}
    message = {"role": "assistant", "content": [{"toolUse": use | {"input": CITY}}]}
    whole = replies.conversed() | {"output": {"message": message}, "stopReason": "tool_use"}
    at = {"contentBlockIndex": 0}
    given = json.dumps(CITY)
    pieces = [frames.event("contentBlockDelta", at | {"delta": {"toolUse": {"input": one}}}) for one in given]
    *_, metadata = replies.converse_stream()
    return json.dumps(whole).encode(), [
        frames.event("messageStart", {"role": "assistant"}),
        frames.event("contentBlockStart", at | {"start": {"toolUse": use}}),
        *pieces,
        frames.event("contentBlockStop", at),
        frames.event("messageStop", {"stopReason": "tool_use"}),
        metadata,
    ]


@pytest.mark.parametrize("asked", ["words", "tools", "turns", "image"])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", sorted(CLIENTS))
async def test_every_client_talks_to_every_provider(calls: Calls, client: str, provider: str, asked: str) -> None:
    """Text, tools, results of tools, pictures, ends, counts and the model's name, whole and streamed."""
    ask, of_whole, of_events, (ended, called) = CLIENTS[client]
    await calls.alias("fast", await calls.provider(provider))
    if provider == "bedrock" and asked == "tools":
        calls.bedrock.plan.body, calls.bedrock.plan.frames = bedrocks_call()
    with sdk(client, calls, sync=True) as blocking:
        async with sdk(client, calls, sync=False) as waiting:
            for stream, made in itertools.product((False, True), (blocking, waiting)):
                body = ask(asked) | {"model": "fast"} | ({"stream": True} if stream else {})
                if stream and client == "chat":
                    body["stream_options"] = {"include_usage": True}
                said = (of_events if stream else of_whole)(await told(client, made, made is blocking, body))
                if asked == "tools":
                    assert (said.calls, said.stop) == ([("weather", CITY)], called)
                else:
                    words = replies.TEXT if provider == "bedrock" else WORDS
                    assert (said.text, said.calls, said.stop) == (words, [], ended)
                assert said.model == (MODELS[provider] if (client, provider) in PASSES else "fast")
                assert min(said.spent) > 0
    sent = calls.bedrock.requests if provider == "bedrock" else calls.fake.requests
    assert len(sent) == 4
    for one in sent:
        assert (PIXEL.encode() in one.body) == (asked == "image")
        assert (b"sunny" in one.body) == (asked == "turns")
        assert calls.key.encode() not in one.body
    rows = await calls.attempts()
    assert [(row.api, row.alias_used, row.provider_used, row.status_code, row.ending) for row in rows] == [
        (client, "fast", provider, 200, "complete")
    ] * 4
    assert all(row.input_tokens > 0 and row.output_tokens > 0 for row in rows)
    assert sum(row.first_token_milliseconds is not None for row in rows) == 4


# Models that are best spoken to in another API than their provider's usual one: the path that is called.
OTHERWISE = [
    ("anthropic", "openai", "gpt-5", "/chat/completions"),  # it is asked to stop at a text: responses cannot say that
    ("responses", "openai-compatible", "gpt-5", "/chat/completions"),
    ("chat", "openai", "gpt-5", "/chat/completions"),
    ("anthropic", "bedrock", "us.anthropic.claude-haiku-4-5-20251001-v1:0", "/invoke"),
    ("chat", "bedrock", "us.anthropic.claude-haiku-4-5-20251001-v1:0", "/converse"),
]


@pytest.mark.parametrize(("client", "provider", "model", "path"), OTHERWISE)
async def test_a_model_is_spoken_to_in_the_api_that_suits_it(
    calls: Calls, client: str, provider: str, model: str, path: str
) -> None:
    """Whole and streamed, and its tokens are known."""
    ask, of_whole, of_events, (ended, _) = CLIENTS[client]
    await calls.alias("fast", await calls.provider(provider), model)
    async with sdk(client, calls, sync=False) as made:
        for stream in (False, True):
            body = ask("words") | {"model": "fast"} | ({"stream": True} if stream else {})
            said = (of_events if stream else of_whole)(await told(client, made, False, body))
            assert (said.text, said.stop) == (replies.TEXT if provider == "bedrock" else WORDS, ended)
    seen = [one.head.path for one in calls.bedrock.requests] or [one.target for one in calls.fake.requests]
    assert all(path in one for one in seen)
    assert [(row.ending, row.input_tokens > 0, row.output_tokens > 0) for row in await calls.attempts()] == [
        ("complete", True, True)
    ] * 2


async def test_thinking_models_of_openai_are_asked_for_responses(calls: Calls) -> None:
    """Only there they keep their thoughts from one turn to the next."""
    await calls.alias("fast", await calls.provider("openai"), "gpt-5")
    for asked in ("tools", "turns", "image"):
        assert (await calls.ask("/v1/messages", messages(asked) | {"model": "fast"})).status == 200
    assert {one.target for one in calls.fake.requests} == {"/v1/responses"}


# --- errors ----------------------------------------------------------------------------------------------------------

# What a provider answers -> what both SDKs raise, with which status. His keys' troubles are not the caller's.
ERRORS = {
    400: ("BadRequestError", 400),
    401: ("InternalServerError", 502),
    403: ("InternalServerError", 502),
    404: ("NotFoundError", 404),
    429: ("RateLimitError", 429),
    500: ("InternalServerError", 500),
    529: ("", 0),  # Anthropic's SDK has a class of its own for it, elsewhere it is 503
}
AMAZONS = {400: "ValidationException", 401: "UnrecognizedClientException", 429: "ThrottlingException"}


@pytest.mark.parametrize("client", sorted(CLIENTS))
async def test_every_error_arrives_in_the_clients_words(calls: Calls, client: str) -> None:
    """With the SDK's own class, a status, and our request's id; whoever answered. All at once, for most are tried again."""
    ask = CLIENTS[client][0]
    errors = anthropic if client == "anthropic" else openai

    async def fails(made: Any, provider: str, status: int, stream: bool) -> None:
        name, expected = ERRORS[status]
        with pytest.raises(errors.APIStatusError) as raised:
            await told(client, made, False, ask("words") | {"model": f"{provider}-{status}", "stream": stream})
        error = raised.value
        assert error.status_code == (expected or error.status_code), provider
        assert not name or type(error).__name__ == name, provider
        assert error.request_id == error.response.headers["x-llm-proxy-request-id"]
        assert error.request_id.startswith("req_")
        attempts = int(error.response.headers["x-llm-proxy-attempts"])
        assert (attempts > 1) == (status in (429, 500, 529)), (provider, status)

    async def all_fail(made: Any, provider: str) -> None:
        asked = [(made, provider, status, stream) for status in ERRORS for stream in (False, True)]
        await asyncio.gather(*(fails(*one) for one in asked))

    async def amazons_fail(made: Any) -> None:
        for status, error in AMAZONS.items():
            calls.bedrock.plan.status, calls.bedrock.plan.error = status, error
            await asyncio.gather(*(fails(made, "bedrock", status, stream) for stream in (False, True)))

    for provider in PROVIDERS:
        for status in AMAZONS if provider == "bedrock" else ERRORS:
            faults = "" if provider == "bedrock" else f"status={status}"
            await calls.alias(f"{provider}-{status}", await calls.provider(provider, faults))
    async with sdk(client, calls, sync=False) as made:
        others = [provider for provider in PROVIDERS if provider != "bedrock"]
        await asyncio.gather(amazons_fail(made), *(all_fail(made, provider) for provider in others))
