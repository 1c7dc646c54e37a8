"""What an API cannot say is refused by its name in the caller's request, or left out and told; nothing just vanishes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Choice,
    Effort,
    Given,
    Media,
    Option,
    Part,
    Refusal,
    Role,
    Shape,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from llm_proxy.gateway.translate.losses import CannotSay, Losses
from tests.conversations import PIXEL

EVERY = pytest.mark.parametrize("api", sorted(APIS))
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CALL = ToolCall("call_1", "weather", '{"city":"Bern"}', at="messages[1].tool_calls[0]")
RESULT = ToolResult("call_1", (Text("rain"),), "weather", at="messages[2]")
MODELS = {
    "anthropic": "claude-sonnet-4-5",
    "chat": "gpt-5",
    "responses": "gpt-5",
    "gemini": "gemini-3-pro",
    "bedrock": "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
}


def asked(api: str, *parts: Part, said: tuple[Part, ...] = (Text("hm"), CALL), results: Part = RESULT) -> Ask:
    turns = (
        Turn(Role.USER, (Text("hello"), *parts), at="messages[0]"),
        Turn(Role.ASSISTANT, said, at="messages[1]"),
        Turn(Role.USER, (results,), at="messages[2]"),
    )
    tool = Tool("weather", "tells it", SCHEMA, at="tools[0]")
    return Ask(MODELS[api], turns, (tool,), options={Option.MAX_TOKENS: Given(9999, "max_tokens")})


def at(part: Part) -> Part:
    return replace(part, at="messages[0].content[1]")


VARIATIONS = {
    "a picture by its bytes": lambda api: asked(api, at(Media("image", "image/png", PIXEL))),
    "a picture by its url": lambda api: asked(api, at(Media("image", url="https://host.example/a.png"))),
    "a picture in a store": lambda api: asked(api, at(Media("image", file_id="file-1"))),
    "a picture in detail": lambda api: asked(api, at(Media("image", "image/png", PIXEL, detail="high"))),
    "a document by its bytes": lambda api: asked(api, at(Media("document", "application/pdf", "JVBERi0=", name="a"))),
    "a document by its url": lambda api: asked(api, at(Media("document", url="https://host.example/a.pdf"))),
    "a document that is text": lambda api: asked(api, at(Media("document", text="all of it", name="a"))),
    "a document in a store": lambda api: asked(api, at(Media("document", file_id="file-1"))),
    "a document that is text, by its bytes": lambda api: asked(api, at(Media("document", "text/plain", "YWxs"))),
    "sound": lambda api: asked(api, at(Media("audio", "audio/wav", "UklGRg=="))),
    "a text that is cached": lambda api: asked(api, at(Text("long", cache="1h"))),
    "a speaker's name": lambda api: replace(
        asked(api), turns=tuple(replace(turn, name="ann") for turn in asked(api).turns)
    ),
    "the system in the middle": lambda api: replace(
        asked(api), turns=(*asked(api).turns, Turn(Role.SYSTEM, (Text("be brief"),), at="messages[3]"))
    ),
    "a refusal": lambda api: asked(api, said=(Text("hm"), Refusal("no"), CALL)),
    "a thought that is signed": lambda api: asked(
        api, said=(Text("hm"), Thinking("why", "c2ln", origin="anthropic", at="messages[1].content[0]"), CALL)
    ),
    "a thought that nobody signed": lambda api: asked(
        api, said=(Text("hm"), Thinking("why", at="messages[1].reasoning_content"), CALL)
    ),
    "a call that is cached": lambda api: asked(api, said=(Text("hm"), replace(CALL, cache="5m"))),
    "a result that failed": lambda api: asked(api, results=replace(RESULT, failed=True)),
    "a result that is cached": lambda api: asked(api, results=replace(RESULT, cache="5m")),
    "a result with a picture": lambda api: asked(
        api, results=replace(RESULT, parts=(Text("see"), Media("image", "image/png", PIXEL)))
    ),
    "a tool that is strict": lambda api: replace(
        asked(api), tools=(replace(asked(api).tools[0], strict=True),)
    ),
    "a tool that is cached": lambda api: replace(asked(api), tools=(replace(asked(api).tools[0], cache="5m"),)),
    "a tool that takes text": lambda api: replace(
        asked(api), tools=(*asked(api).tools, Tool("patch", "mends", free=True, at="tools[1]"))
    ),
    "a tool with a grammar": lambda api: replace(
        asked(api),
        tools=(
            *asked(api).tools,
            Tool("patch", free=True, grammar={"syntax": "lark", "definition": "start: /a/"}, at="tools[1]"),
        ),
    ),
    "no tool may be called": lambda api: replace(asked(api), choice=Choice("none", at="tool_choice")),
    "a tool must be called": lambda api: replace(asked(api), choice=Choice("any", at="tool_choice")),
    "this tool must be called": lambda api: replace(asked(api), choice=Choice("one", "weather", "tool_choice")),
    "JSON": lambda api: replace(asked(api), shape=Shape(at="response_format")),
    "JSON after a schema": lambda api: replace(asked(api), shape=Shape(SCHEMA, "answer", at="response_format")),
    "much thinking": lambda api: replace(asked(api), effort=Effort("high", at="reasoning_effort")),
    "no thinking": lambda api: replace(asked(api), effort=Effort("none", off=True, at="reasoning_effort")),
    "thinking by budget": lambda api: replace(asked(api), effort=Effort(budget=2000, at="thinking")),
}  # fmt: skip
OPTIONS = {
    Option.TEMPERATURE: 1.5,
    Option.TOP_P: 0.5,
    Option.TOP_K: 40,
    Option.STOP: ["END"],
    Option.SEED: 7,
    Option.COUNT: 2,
    Option.FREQUENCY_PENALTY: 0.5,
    Option.PRESENCE_PENALTY: 0.5,
    Option.LOGPROBS: True,
    Option.TOP_LOGPROBS: 3,
    Option.PARALLEL_TOOLS: False,
    Option.USER: "u-1",
    Option.TIER: "flex",
    Option.VERBOSITY: "low",
    Option.METADATA: {"a": "b"},
    Option.CACHE_KEY: "k",
    Option.STORE: True,
}
VARIATIONS |= {
    f"option {name}": lambda api, name=name, value=value: replace(  # type: ignore[misc]
        asked(api), options={**asked(api).options, name: Given(value, name)}
    )
    for name, value in OPTIONS.items()
}


@EVERY
@pytest.mark.parametrize("name", VARIATIONS)
def test_nothing_just_vanishes(api: str, name: str) -> None:
    """Each thing that the form between the APIs can hold is in the body, or named among what was left out."""
    ask, plain = VARIATIONS[name](api), asked(api)
    losses = Losses(APIS[api].name, refuse=False)
    body = APIS[api].write_request(ask, losses)
    usual = APIS[api].write_request(plain, Losses("nobody"))
    assert body != usual or losses.dropped, name
    try:
        refused = APIS[api].write_request(ask, Losses(APIS[api].name))
    except CannotSay as lost:
        assert lost.field in losses.dropped
        assert str(lost).startswith(f"{lost.field}: cannot be said to {APIS[api].name}")
    else:
        assert refused == body


REFUSED = {
    ("anthropic", "option seed"): "seed",
    ("anthropic", "option n"): "n",
    ("anthropic", "option temperature"): "temperature",
    ("anthropic", "option logprobs"): "logprobs",
    ("anthropic", "JSON"): "response_format",
    ("anthropic", "sound"): "messages[0].content[1]",
    ("anthropic", "a picture in a store"): "messages[0].content[1]",
    ("chat", "option top_k"): "top_k",
    ("chat", "a document by its url"): "messages[0].content[1]",
    ("responses", "option stop"): "stop",
    ("responses", "option seed"): "seed",
    ("responses", "sound"): "messages[0].content[1]",
    ("gemini", "option parallel_tool_calls"): "parallel_tool_calls",
    ("gemini", "option n"): "n",
    ("bedrock", "a picture by its url"): "messages[0].content[1]",
    ("bedrock", "option seed"): "seed",
    ("bedrock", "JSON"): "response_format",
    ("bedrock", "no tool may be called"): "tool_choice",
}


@pytest.mark.parametrize(("api", "name"), REFUSED)
def test_what_changes_the_answer_is_refused_by_name(api: str, name: str) -> None:
    """The caller reads the field's own name in the error; the same name is told where dropping is allowed."""
    field = REFUSED[api, name]
    with pytest.raises(CannotSay) as refused:
        APIS[api].write_request(VARIATIONS[name](api), Losses("nobody"))
    assert refused.value.field == field
    losses = Losses("nobody", refuse=False)
    APIS[api].write_request(VARIATIONS[name](api), losses)
    assert field in losses.dropped


@EVERY
def test_what_says_nothing_is_nowhere_missed(api: str) -> None:
    """One answer, no penalty, no logprobs, calls at once: that is what every API does."""
    usual = {Option.COUNT: 1, Option.FREQUENCY_PENALTY: 0, Option.PRESENCE_PENALTY: 0, Option.LOGPROBS: False,
             Option.PARALLEL_TOOLS: True, Option.STORE: False}  # fmt: skip
    options = {**asked(api).options, **{name: Given(value, name) for name, value in usual.items()}}
    losses = Losses(APIS[api].name)
    APIS[api].write_request(replace(asked(api), options=options), losses)
    assert set(losses.dropped) <= {Option.STORE}
