"""The real providers, for whoever has keys: `pytest -m live`. Small calls through a real daemon; they cost a few tokens.

Keys come from the environment or from `~/.amplifier/keys.env`. In a run that doesn't ask for `live` all of it is skipped.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.logpage import untold

pytestmark = pytest.mark.live

KEYS_FILE = Path("~/.amplifier/keys.env").expanduser()
SAY = "Answer with the single word: pong"
CLAUDE = os.environ.get("LIVE_ANTHROPIC_MODEL", "claude-haiku-4-5")
GPT = os.environ.get("LIVE_OPENAI_MODEL", "gpt-5-mini")


def keys_in(text: str) -> dict[str, str]:
    """Assignments as a shell would read them: `export` and quotes are optional."""
    found = re.findall(r"""^[ \t]*(?:export[ \t]+)?(\w+)=(["']?)(.*?)\2[ \t]*$""", text, re.MULTILINE)
    return {name: value for name, _, value in found}


@pytest.fixture
def key(request: pytest.FixtureRequest) -> Any:
    """The key of a variable; skips where there is none, or where live calls were not asked for."""

    def find(name: str) -> str:
        if "live" not in request.config.getoption("markexpr"):
            pytest.skip("talks to the real providers: only with -m live")
        value = os.environ.get(name) or keys_in(KEYS_FILE.read_text() if KEYS_FILE.exists() else "").get(name)
        if not value:
            pytest.skip(f"{name} is neither in the environment nor in {KEYS_FILE}")
        return value

    return find


async def pairs(daemon: Any, count: int) -> list[list[dict[str, Any]]]:
    """Request and response entry of each call, in order; every field of them documented."""
    entries = await asyncio.to_thread(
        daemon.entries, 20, lambda entries: sum(entry["type"] == "response" for entry in entries) >= count
    )
    assert [name for entry in entries for name in untold(entry)] == []
    calls: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["type"] != "session_start":
            calls.setdefault(entry["_meta"]["request_id"], []).append(entry)
    assert len(calls) == count
    return [calls[number] for number in sorted(calls)]


def is_complete(response: dict[str, Any], key: str) -> None:
    assert (response["status"], response["ending"]) == (200, "complete"), response
    assert key not in str(response)
    assert 0 < response["timing"]["ttfb_ms"] <= response["timing"]["total_ms"]


async def test_anthropic(daemon: Any, key: Any) -> None:
    """Counted, plain and streamed; text, usage and stream stand in the record."""
    secret = key("ANTHROPIC_API_KEY")
    said: Any = {"model": CLAUDE, "messages": [{"role": "user", "content": SAY}]}
    async with anthropic.AsyncAnthropic(base_url=f"{daemon.url}/anthropic/api.anthropic.com", api_key=secret) as client:
        assert (await client.messages.count_tokens(**said)).input_tokens > 0
        plain = await client.messages.create(**said, max_tokens=20)
        async with client.messages.stream(**said, max_tokens=20) as stream:
            streamed = await stream.get_final_message()
    _, (_, one), (_, other) = await pairs(daemon, 3)
    is_complete(one, secret)
    assert plain.id in one["body"]
    is_complete(other, secret)
    told = "".join(chunk["raw"] for chunk in other["chunks"])
    assert streamed.id in told and told.rstrip().rpartition("event: ")[2].startswith("message_stop")


async def test_openai(daemon: Any, key: Any) -> None:
    """Chat and responses, plain and streamed, and the Responses API over a WebSocket."""
    secret = key("OPENAI_API_KEY")
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/openai/api.openai.com/v1", api_key=secret) as client:
        said: Any = [{"role": "user", "content": SAY}]
        plain = await client.chat.completions.create(model=GPT, messages=said)
        async with await client.responses.create(model=GPT, input=SAY, stream=True) as stream:
            events = [event.type async for event in stream]
        async with client.responses.connect() as link:
            await link.send({"type": "response.create", "model": GPT, "input": SAY})  # type: ignore[arg-type]
            while (event := (await link.recv()).type) != "response.completed":
                assert not event.startswith(("error", "response.failed"))
    assert events[-1] == "response.completed"
    (_, one), (_, other), (_, talk) = await pairs(daemon, 3)
    is_complete(one, secret)
    assert plain.id in one["body"]
    is_complete(other, secret)
    assert "event: response.completed\n" in [chunk["raw"] for chunk in other["chunks"]]
    assert talk["status"] == 101 and talk["ending"] == "complete"
    assert any('"response.completed"' in message.get("raw", "") for message in talk["websocket"]["messages"])


async def test_gemini(daemon: Any, key: Any) -> None:
    """Models, with the key in a header and in the query: it stands in neither place of the record."""
    secret = key("GEMINI_API_KEY")
    url = f"{daemon.url}/gemini/generativelanguage.googleapis.com/v1beta/models"
    async with httpx2.AsyncClient(timeout=60) as client:
        for arguments in ({"headers": {"x-goog-api-key": secret}}, {"params": {"key": secret}}):
            assert (await client.get(url, **arguments)).status_code == 200  # type: ignore[arg-type]
    for request, response in await pairs(daemon, 2):
        is_complete(response, secret)
        assert secret not in str(request)


@pytest.mark.parametrize("line", ["A=1", "export A=1", "A='1'", '  export A="1" '])
def test_keys_are_read_as_a_shell_reads_them(line: str) -> None:
    """Needs no key; it runs with the others so that a wrong file is not taken for a missing one."""
    assert keys_in(f"# keys\n{line}\nB=\n") == {"A": "1", "B": ""}
