"""Agents' frameworks and Claude Code through a gateway as people start it, to every provider.

LangChain and pydantic-ai run loops of tools, stream, and ask for JSON of a shape; Claude Code's requests pass or are
translated. Leaves out the official SDKs by themselves (`test_gateway_calls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.fakebedrock import FakeBedrock, frames, replies
from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaybed import Gateway, a_gateway
from tests.gatewaycalls import AWS, MODELS
from tests.test_clients import claude_environment, client, home, run

__all__ = ["client", "home"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = Any

PROVIDERS = ("openai", "anthropic", "gemini", "bedrock")
SYSTEM = "You are brief."
CITY = {"city": "Zürich"}
CALL = f"call weather {json.dumps(CITY, ensure_ascii=False)}"
WORDS = dict.fromkeys(PROVIDERS, "".join(SENTENCE)) | {"bedrock": replies.TEXT}


class City(BaseModel):
    """Where somebody is."""

    city: str


class Team:
    """A gateway with a key, and an alias for each provider: `claude-sonnet-4-5-openai`, and `…-openai-json` for one that answers with a City."""

    def __init__(self, gateway: Gateway, fake: FakeProvider, bedrock: FakeBedrock) -> None:
        self.gateway, self.fake, self.bedrock = gateway, fake, bedrock
        self.key = gateway.key()
        says = f"/fake=say={json.dumps(CITY).encode().hex()}"
        for provider in PROVIDERS:
            secret = {"api_key": AWS, "region": "us-west-2"} if provider == "bedrock" else {}
            base = bedrock.url if provider == "bedrock" else fake.url
            for more, path in (("", ""), ("-json", "" if provider == "bedrock" else says)):
                made = gateway.provider(provider, base + path, label=f"{provider}{more}", **secret)
                gateway.alias(self.name(provider) + more, MODELS[provider], made)

    @staticmethod
    def name(provider: str) -> str:
        """Frameworks tell by a model's name what it can do."""
        return f"claude-sonnet-4-5-{provider}"

    @contextlib.contextmanager
    def bedrock_says(self, name: str = "", text: str = "") -> Iterator[None]:
        """Bedrock calls this tool with a City, or says this text; `as_usual` ends that."""
        self.bedrock.plan.body, self.bedrock.plan.frames = called(name) if name else told(text)
        try:
            yield
        finally:
            self.as_usual()

    def as_usual(self) -> None:
        self.bedrock.plan.body = self.bedrock.plan.frames = None

    def sent(self, provider: str) -> list[Json]:
        """The bodies that came to the provider, and no more of them afterwards."""
        seen: Any = self.bedrock.requests if provider == "bedrock" else self.fake.requests
        bodies = [json.loads(one.body) for one in seen if one.body]  # others ask for the list of models
        assert all(self.key.encode() not in one.body for one in seen)
        seen.clear()
        return bodies


AT = {"contentBlockIndex": 0}


def whole(content: Json, stop: str) -> bytes:
    message = {"role": "assistant", "content": [content]}
    return json.dumps(replies.conversed() | {"output": {"message": message}, "stopReason": stop}).encode()


def called(name: str) -> tuple[bytes, list[bytes]]:
    """Bedrock's call of a tool, whole and as frames."""
    use = {"toolUseId": "tooluse_1", "name": name}
    *_, last = replies.converse_stream()
    return whole({"toolUse": use | {"input": CITY}}, "tool_use"), [
        frames.event("messageStart", {"role": "assistant"}),
        frames.event("contentBlockStart", AT | {"start": {"toolUse": use}}),
        *(frames.event("contentBlockDelta", AT | {"delta": {"toolUse": {"input": one}}}) for one in json.dumps(CITY)),
        frames.event("contentBlockStop", AT),
        frames.event("messageStop", {"stopReason": "tool_use"}),
        last,
    ]


def told(text: str) -> tuple[bytes, list[bytes]]:
    first, *_, stop, end, last = replies.converse_stream()
    deltas = [frames.event("contentBlockDelta", AT | {"delta": {"text": one}}) for one in text]
    return whole({"text": text}, "end_turn"), [first, *deltas, stop, end, last]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def team_of_all(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Team]:
    """One for all of this module, as a team's members share theirs."""
    async with FakeProvider() as fake:
        with (
            FakeBedrock() as bedrock,
            a_gateway(tmp_path_factory.mktemp("team"), allow=(fake.url, bedrock.url)) as gateway,
        ):
            yield await asyncio.to_thread(lambda: Team(gateway.wait(), fake, bedrock))


@pytest.fixture
def team(team_of_all: Team) -> Team:
    """Its providers have been asked nothing yet."""
    team_of_all.as_usual()
    team_of_all.fake.requests.clear()
    team_of_all.bedrock.requests.clear()
    return team_of_all


# --- LangChain


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_langchain(team: Team, responses: bool) -> None:
    """A loop of a tool, whole and streamed, and a City by a tool and by a schema, of each provider."""

    @tool
    def weather(city: str) -> str:
        """Tells the weather."""
        return f"sunny in {city}"

    for provider in PROVIDERS:
        options: Json = {"base_url": f"{team.gateway.url}/v1", "api_key": team.key, "max_retries": 0, "timeout": 20}
        options |= {"use_responses_api": responses, "stream_usage": True}
        model = ChatOpenAI(model=team.name(provider), **options)
        bound = model.bind_tools([weather])
        for streams in (False, True):

            async def ask(turns: list[Json], bound: Any = bound, streams: bool = streams) -> Any:
                if not streams:
                    return await bound.ainvoke(turns)
                first, *rest = [one async for one in bound.astream(turns)]
                for one in rest:
                    first += one
                return first

            turns = [SystemMessage(SYSTEM), HumanMessage(CALL)]
            with team.bedrock_says("weather"):
                first = await ask(turns)
            (call,) = first.tool_calls
            assert (call["name"], call["args"]) == ("weather", CITY), provider
            turns += [first, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
            last = await ask(turns)
            assert last.text == WORDS[provider] and not last.tool_calls, provider
            assert min(last.usage_metadata["input_tokens"], last.usage_metadata["output_tokens"]) > 0
            bodies = [json.dumps(body, ensure_ascii=False) for body in team.sent(provider)]
            assert ["sunny in Zürich" in body for body in bodies] == [False, True], provider
            assert all(SYSTEM in body for body in bodies)
        with team.bedrock_says("City"):
            assert await model.with_structured_output(City, method="function_calling").ainvoke(CALL) == City(**CITY)
        shaped = ChatOpenAI(model=f"{team.name(provider)}-json", **options).with_structured_output(City)
        with team.bedrock_says(text=json.dumps(CITY)):
            assert await shaped.ainvoke("where?") == City(**CITY)
        assert all("city" in json.dumps(body) for body in team.sent(provider))


# --- pydantic-ai


def chat(team: Team, name: str, made: contextlib.AsyncExitStack) -> Any:
    sdk = openai.AsyncOpenAI(base_url=f"{team.gateway.url}/v1", api_key=team.key, max_retries=0, timeout=20)
    made.push_async_callback(sdk.close)
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=sdk))


def responses(team: Team, name: str, made: contextlib.AsyncExitStack) -> Any:
    sdk = openai.AsyncOpenAI(base_url=f"{team.gateway.url}/v1", api_key=team.key, max_retries=0, timeout=20)
    made.push_async_callback(sdk.close)
    return OpenAIResponsesModel(name, provider=OpenAIProvider(openai_client=sdk))


def messages(team: Team, name: str, made: contextlib.AsyncExitStack) -> Any:
    sdk = anthropic.AsyncAnthropic(base_url=team.gateway.url, api_key=team.key, max_retries=0, timeout=20)
    made.push_async_callback(sdk.close)
    return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=sdk))


@pytest.mark.parametrize("speaking", [chat, responses, messages])
async def test_pydantic_ai(team: Team, speaking: Any) -> None:
    """An agent's loop with a tool, whole and streamed, and its output of a type, by a tool and by a schema."""

    def weather(city: str) -> str:
        """Tells the weather."""
        team.as_usual()
        return f"sunny in {city}"

    pieces: list[str] = []

    async def heard(_: Any, events: Any) -> None:
        async for event in events:
            if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                pieces.append(event.part.content)
            elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                pieces.append(event.delta.content_delta)

    for provider in PROVIDERS:
        async with contextlib.AsyncExitStack() as made:
            model = speaking(team, team.name(provider), made)
            agent = Agent(model, instructions=SYSTEM, tools=[weather])
            with team.bedrock_says("weather"):
                result = await agent.run(CALL)
            assert result.output == WORDS[provider], provider
            assert result.usage.requests == 2 and result.usage.output_tokens > 0
            with team.bedrock_says("weather"):
                result = await agent.run(CALL, event_stream_handler=heard)
            assert result.output == WORDS[provider] and len(pieces) > 3, provider
            assert "".join(pieces).endswith(result.output), provider
            pieces.clear()
            bodies = [json.dumps(body, ensure_ascii=False) for body in team.sent(provider)]
            assert ["sunny in Zürich" in body for body in bodies] == [False, True] * 2, provider
            with team.bedrock_says("final_result"):
                assert (await Agent(model, output_type=City).run("where?")).output == City(city="Zürich")
            shaped = speaking(team, f"{team.name(provider)}-json", made)
            with team.bedrock_says(text=json.dumps(CITY)):
                assert (await Agent(shaped, output_type=NativeOutput(City)).run("where?")).output == City(**CITY)
            assert all("city" in json.dumps(body) for body in team.sent(provider))


# --- Claude Code

SESSION = "11111111-2222-4333-8444-555555555555"
BETAS = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,effort-2025-11-24"
HEADERS = {
    "User-Agent": "claude-cli/2.1.329 (external, sdk-cli)",
    "X-Claude-Code-Session-Id": SESSION,
    "X-Stainless-Lang": "js",
    "X-Stainless-Retry-Count": "0",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": BETAS,
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "Content-Type": "application/json",
}
EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
THOUGHT = {"type": "thinking", "thinking": "They want a list.", "signature": "c2lnbmVk"}
CALLED = {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"command": "ls"}}
CAME = {"type": "tool_result", "tool_use_id": "toolu_01", "content": "a.py", "is_error": False} | EPHEMERAL
USER = json.dumps({"device_id": "ab" * 32, "account_uuid": "", "session_id": SESSION})
TURN = {
    "model": "",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>be tidy</system-reminder>"}]},
        {"role": "system", "content": "The user's shell is bash."},
        {"role": "user", "content": [{"type": "text", "text": "list"} | EPHEMERAL]},
        {"role": "assistant", "content": [THOUGHT, CALLED]},
        {"role": "user", "content": [CAME, {"type": "text", "text": "go on, 世界"}]},
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329.3c4; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
    "tools": [
        {"name": "Bash", "description": "runs", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}, "eager_input_streaming": True},
        {"name": "Read", "description": "reads", "input_schema": {"type": "object", "properties": {}}} | EPHEMERAL,
    ],
    "metadata": {"user_id": USER},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "stream": True,
}  # fmt: skip
TITLE = {
    "model": "",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "list"}]}],
    "system": [{"type": "text", "text": "Write a title."}],
    "tools": [],
    "metadata": {"user_id": USER},
    "max_tokens": 32000,
    "output_config": {
        "format": {"type": "json_schema", "schema": {"type": "object", "properties": {"title": {"type": "string"}}}}
    },
    "temperature": 1,
    "stream": True,
}


def as_written(body: Json, model: str) -> bytes:
    """With spaces and escapes of its own, so that writing it anew would be seen."""
    return json.dumps(body | {"model": model}, indent=1).encode()


@pytest.mark.parametrize("body", [TURN, TITLE], ids=["a turn", "a title"])
async def test_claude_codes_requests_pass_to_anthropic(team: Team, body: Json) -> None:
    """Byte for byte but for the model; versions and betas and the session go on, its key does not."""
    for auth in ({"x-api-key": team.key}, {"Authorization": f"Bearer {team.key}"}):
        sent = as_written(body, team.name("anthropic"))
        answer = await asyncio.to_thread(
            team.gateway.ask, "POST", "/v1/messages?beta=true", sent, headers=HEADERS | auth
        )
        assert answer.status == 200 and answer.body.rstrip().endswith(b'"type":"message_stop"}')
        assert answer.headers["request-id"].startswith("req_") and "x-llm-proxy-dropped" not in answer.headers
    counted = {name: body[name] for name in ("model", "messages", "system", "tools")}
    count = as_written(counted, team.name("anthropic"))
    told = await asyncio.to_thread(
        team.gateway.ask, "POST", "/v1/messages/count_tokens?beta=true", count, headers=HEADERS | auth
    )
    assert told.status == 200 and told.json["input_tokens"] > 0
    seen = [one for one in team.fake.requests if one.body]
    assert [one.body for one in seen] == [as_written(body, MODELS["anthropic"])] * 2 + [
        as_written(counted, MODELS["anthropic"])
    ]
    for one in seen:
        assert one.target.split("?")[0] in ("/v1/messages", "/v1/messages/count_tokens")
        assert (one.header("anthropic-beta"), one.header("anthropic-version")) == (BETAS, "2023-06-01")
        assert one.header("x-claude-code-session-id") == SESSION
        assert team.key.encode() not in one.raw_head and b"llmp_" not in one.raw_head


@pytest.mark.parametrize("provider", ["openai", "gemini", "bedrock"])
async def test_claude_codes_requests_are_translated(team: Team, provider: str) -> None:
    """Nothing of what it always sends is refused: systems, thoughts, tools and their results arrive, and the SDK takes the stream."""
    sdk = anthropic.AsyncAnthropic(base_url=team.gateway.url, api_key=team.key, max_retries=0, timeout=20)
    own = {name: value for name, value in HEADERS.items() if name != "Content-Type"}
    async with sdk:
        for body in (TURN, TITLE):
            asked: Json = {name: value for name, value in body.items() if name not in ("model", "stream")}
            asked["extra_body"] = {"temperature": asked.pop("temperature")} if "temperature" in asked else {}
            async with sdk.beta.messages.stream(model=team.name(provider), **asked, extra_headers=own) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                message = await stream.get_final_message()
            assert (text, message.stop_reason) == (WORDS[provider], "end_turn")
            assert message.usage.output_tokens > 0
            estimate = await sdk.beta.messages.count_tokens(
                model=team.name(provider), messages=asked["messages"], tools=asked["tools"], extra_headers=own
            )
            assert estimate.input_tokens > 0
    turn, title = [json.dumps(one, ensure_ascii=False) for one in team.sent(provider)]
    for words in ("be tidy", "bash", "You are an agent.", "a.py", "go on, 世界", '"Read"', "ls"):
        assert words in turn, words
    assert "Write a title." in title and "title" in title and USER not in turn


async def test_what_claude_code_looks_for_first(team: Team) -> None:
    """Its warm-up and its list of models, by its own header; a probe is answered in no time, with whatever status."""
    for target in ("/", "/api/hello"):
        assert (await asyncio.to_thread(team.gateway.ask, "HEAD", target)).status < 500
    told = await asyncio.to_thread(
        team.gateway.want, 200, "GET", "/v1/models?limit=1000", None, team.key, {"anthropic-version": "2023-06-01"}
    )
    assert team.name("gemini") in {one["id"] for one in told["data"]} and told["has_more"] is False


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
async def test_claude_code_itself(team: Team, client: Any, home: Path, provider: str) -> None:
    """`claude -p` with a model by its alias: a loop with its own tool, its answer, and all of it one team's calls."""
    program = client("claude")
    env = claude_environment(home, team.gateway.url)
    env |= {"ANTHROPIC_API_KEY": team.key, "ANTHROPIC_MODEL": team.name(provider)}
    env["ANTHROPIC_SMALL_FAST_MODEL"] = team.name(provider)
    asked = 'call Bash {"command":"echo ran-$((40+2))","description":"count"}'
    out = await run(program, "-p", asked, "--allowedTools", "Bash", "--output-format", "json", env=env, cwd=home)
    assert json.loads(out)["result"].strip() == WORDS[provider].strip()
    bodies = [json.dumps(body) for body in team.sent(provider)]
    assert len(bodies) == 2 and "ran-42" in bodies[1] and "ran-42" not in bodies[0]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_codex_itself(team: Team, client: Any, home: Path, provider: str) -> None:
    """`codex exec` with the gateway as its provider gets its answer; elsewhere than at OpenAI its groups of tools are left out."""
    program = client("codex")
    settings = {
        "model": team.name(provider),
        "model_provider": "team",
        "model_providers.team.name": "team",
        "model_providers.team.base_url": f"{team.gateway.url}/v1",
        "model_providers.team.wire_api": "responses",
        "model_providers.team.env_key": "TEAM_KEY",
        "model_providers.team.http_headers.x-llm-proxy-drop": "true",
    }
    more = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TEAM_KEY": team.key}
    out = await run(program, "exec", "--skip-git-repo-check", *more, "hi", env=env, cwd=home)
    assert WORDS[provider].strip() in out
