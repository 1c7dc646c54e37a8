"""What is written is what the official SDKs know: requests are valid by their types, answers and chunks parse strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import boto3
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from botocore.validate import ParamValidator
from google.genai import types as google
from hypothesis import given, settings
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Begin,
    Event,
    Failure,
    PartBegin,
    PartEnd,
    Piece,
    Refusal,
    Reply,
    Signed,
    Stop,
    Text,
    Thinking,
    Tool,
    ToolCall,
)
from llm_proxy.gateway.translate.errors import Kind
from llm_proxy.gateway.translate.losses import Losses
from tests.conversations import asks, replies, streams, told
from tests.test_translate_losses import VARIATIONS

REQUESTS: dict[str, Any] = {
    "anthropic": MessageCreateParamsNonStreaming,
    "chat": CompletionCreateParamsNonStreaming,
    "responses": ResponseCreateParamsNonStreaming,
}
ANSWERS: dict[str, Any] = {"anthropic": Message, "chat": ChatCompletion, "responses": Response}
PIECES: dict[str, Any] = {
    "anthropic": RawMessageStreamEvent,
    "chat": ChatCompletionChunk,
    "responses": ResponseStreamEvent,
}
OPENLY = pytest.mark.parametrize("api", sorted(REQUESTS))
EVERY = pytest.mark.parametrize("api", sorted(APIS))


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def lists(value: Any) -> Any:
    """As JSON gives it: the SDKs' types take any iterable, which validates late."""
    return json.loads(json.dumps(value, default=list))


def check_request(api: str, body: Any) -> None:
    """Raises where the SDK's types (or Amazon's own description of its service) do not have it so."""
    if api in REQUESTS:
        force(adapter(REQUESTS[api]).validate_python(body, strict=True))
    elif api == "gemini":
        google.GenerateContentConfig.model_validate(body.get("generationConfig", {}), strict=False)
        for content in [*body["contents"], *([body["systemInstruction"]] if "systemInstruction" in body else [])]:
            google.Content.model_validate(content)
        for tool in body.get("tools", []):
            google.Tool.model_validate(tool)
        google.ToolConfig.model_validate(body.get("toolConfig", {}))
        known = {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "serviceTier"}
        assert set(body) <= known
    else:
        check_converse(body)


def force(value: Any) -> None:
    """Reads through what pydantic checks only when it is read."""
    if isinstance(value, dict):
        for one in value.values():
            force(one)
    elif not isinstance(value, str | bytes) and isinstance(value, Iterable):
        for one in value:
            force(one)


@cache
def bedrock() -> Any:
    return boto3.client("bedrock-runtime", "us-east-1", aws_access_key_id="x", aws_secret_access_key="x")


def check_converse(body: Any) -> None:
    model = bedrock().meta.service_model.operation_model("Converse")
    report = ParamValidator().validate(body | {"modelId": "m"}, model.input_shape)
    assert not report.has_errors(), report.generate_report()


@EVERY
@given(ask=asks())
@settings(max_examples=25, deadline=None)
def test_requests_are_valid_by_the_sdks_types(api: str, ask: Ask) -> None:
    """Whatever all APIs can ask, the provider's own SDK could have written."""
    check_request(api, APIS[api].write_request(ask, Losses("nobody")))


@EVERY
@pytest.mark.parametrize("name", VARIATIONS)
def test_requests_with_all_that_there_is_are_valid(api: str, name: str) -> None:
    """So is what has no counterpart elsewhere, as far as it is carried."""
    check_request(api, APIS[api].write_request(VARIATIONS[name](api), Losses("nobody", refuse=False)))


TOOLS = (Tool("weather", "tells it", {"type": "object", "properties": {}}), Tool("patch", free=True))
FULL = Reply(
    "id-1",
    "model-1",
    (
        Thinking("why", "c2ln", origin="anthropic"),
        Thinking("", sealed="c2VhbA==", origin="anthropic"),
        Thinking("because", "ZW5j", origin="openai", id="rs_1"),
        Text("words"),
        Refusal("no"),
        ToolCall("call_1", "weather", '{"city":"Bern"}', signature="c2ln", origin="gemini"),
        ToolCall("call_2", "patch", "any text", free=True),
    ),
    Stop.TOOL,
    created=1,
    logprobs={
        "content": [{"token": "w", "logprob": -0.5, "bytes": [119], "top_logprobs": []}],
        "refusal": None,
    },
    tier="default",
)


def check_answer(api: str, body: Any, kind: Any) -> None:
    if api in REQUESTS:
        adapter(kind).validate_python(body)
    elif api == "gemini":
        google.GenerateContentResponse.model_validate(body)
    else:
        shape = bedrock().meta.service_model.operation_model("Converse").output_shape
        report = ParamValidator().validate(body, shape)
        assert not report.has_errors(), report.generate_report()


@EVERY
@given(reply=replies())
@settings(max_examples=25, deadline=None)
def test_answers_are_what_the_sdks_parse(api: str, reply: Reply) -> None:
    """Strictly: an SDK takes nearly anything and breaks later."""
    check_answer(api, APIS[api].write_reply(reply, Ask("m", (), TOOLS), created=1), ANSWERS.get(api))


@EVERY
@pytest.mark.parametrize("stop", list(Stop))
def test_answers_with_all_that_there_is_are_what_the_sdks_parse(api: str, stop: Stop) -> None:
    """Signed thoughts of three makers, a refusal, a signed call, a free one; every way to end."""
    body = APIS[api].write_reply(replace(FULL, stop=stop), Ask("m", (), TOOLS), created=1)
    check_answer(api, lists(body), ANSWERS.get(api))


@OPENLY
@given(events=streams(interleaved=True))
@settings(max_examples=25, deadline=None)
def test_pieces_of_streams_are_what_the_sdks_parse(api: str, events: list[Event]) -> None:
    """Every event by its own type, with all fields that the type must have."""
    for _, data in told(APIS[api], events):
        adapter(PIECES[api]).validate_python(data)


def as_events(reply: Reply) -> Iterable[Event]:
    yield Begin(reply.id, reply.model, tier=reply.tier)
    for index, part in enumerate(reply.parts):
        match part:
            case ToolCall():
                yield PartBegin(index, replace(part, arguments=""))
                yield Piece(index, part.arguments)
            case Thinking() if part.sealed:
                yield PartBegin(index, part)
            case Thinking():
                yield PartBegin(index, replace(part, text="", signature=""))
                yield Piece(index, part.text)
                yield Signed(index, part.signature, part.origin)
            case Text() | Refusal():
                yield PartBegin(index, replace(part, text=""))
                yield Piece(index, part.text, reply.logprobs if isinstance(part, Text) else None)
        yield PartEnd(index)
    yield Failure(Kind.OVERLOADED, "too many")


@OPENLY
def test_pieces_of_full_streams_are_what_the_sdks_parse(api: str) -> None:
    """Signatures, sealed thoughts, refusals, logprobs, and a provider that breaks off."""
    parts = FULL.parts[:-1] if api == "chat" else FULL.parts  # the SDK's chunks do not know calls of free tools
    *pieces, (_, broken) = told(APIS[api], as_events(replace(FULL, parts=parts)), Ask("m", (), TOOLS, usage=True))
    for _, data in pieces:
        adapter(PIECES[api]).validate_python(data)
    assert "too many" in json.dumps(broken)


def test_the_check_itself_finds_what_is_wrong() -> None:
    """Each of the validators used here rejects a body with one wrong field."""
    wrong: dict[str, Callable[[Any], Any]] = {
        "anthropic": lambda body: body | {"max_tokens": "many"},
        "chat": lambda body: body | {"messages": [{"role": "nobody", "content": "x"}]},
        "responses": lambda body: body | {"input": [{"role": "nobody", "content": 1}]},
        "gemini": lambda body: body | {"contents": [{"role": "user", "parts": [{"txt": "x"}]}]},
        "bedrock": lambda body: body | {"inferenceConfig": {"maxTokens": "many"}},
    }
    for api, spoil in wrong.items():
        body = APIS[api].write_request(VARIATIONS["JSON after a schema"](api), Losses("nobody"))
        with pytest.raises((ValueError, AssertionError)):
            check_request(api, spoil(body))
