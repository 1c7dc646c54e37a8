"""What programs are told of a target that gave no answer: a stable code in both dialects, and words to act on."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from llm_proxy.gateway.store.schema import provider_keys
from tests.gatewaycalls import Answer, Calls, calling, calls
from tests.test_gateway_calls_fallback import PATHS, body

__all__ = ["calls"]

PAGE = (Path(__file__).parent.parent / "docs/gateway-api.md").read_text()


def coded(answer: Answer, status: int, code: str) -> str:
    """Its words, where status and code are these; Anthropic's shape has no place for the code but the header."""
    assert (answer.status, answer.headers.get("x-llm-proxy-error")) == (status, code), answer
    error = answer.json["error"]
    assert error.get("code", code) == code and f"`{code}`" in PAGE
    return str(error["message"])


@pytest.mark.parametrize("api", PATHS)
async def test_a_provider_that_is_not_there(tmp_path: Path, free_port: int, api: str) -> None:
    """`provider_unreachable`, with the provider and why."""
    base = f"http://127.0.0.1:{free_port}"
    async with calling(tmp_path, also=(base,)) as calls:
        await calls.alias("fast", await calls.provider("openai", base=base))
        words = coded(await calls.ask(PATHS[api], body(api)), 502, "provider_unreachable")
    assert words.startswith("openai cannot be reached: ") and str(free_port) in words


async def test_a_provider_that_is_no_longer_allowed(calls: Calls) -> None:
    """`provider_not_allowed`, with the file, the variable and the restart that it takes."""
    await calls.alias("fast", await calls.provider("openai", base="http://127.0.0.1:9"))
    words = coded(await calls.ask(PATHS["chat"], body("chat")), 502, "provider_not_allowed")
    for remedy in ("~/.config/llm-proxy/config.toml", "LLM_PROXY_UPSTREAMS_ALLOW=http://127.0.0.1:9", "restart"):
        assert remedy in words


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("api", PATHS)
async def test_a_key_that_the_provider_refuses(calls: Calls, api: str, status: int) -> None:
    """`provider_key_refused`, with the provider key's label and id."""
    key = await calls.provider("openai", f"status={status}")
    await calls.alias("fast", key)
    words = coded(await calls.ask(PATHS[api], body(api)), 502, "provider_key_refused")
    assert f"'our openai' (id {key})" in words and "your own key is good" in words


@pytest.mark.parametrize("api", PATHS)
async def test_a_key_that_cannot_be_read(calls: Calls, api: str) -> None:
    """`provider_key_unreadable`, with label, id and what to do, and no table's name."""
    key = await calls.provider("anthropic")
    await calls.alias("fast", key)
    async with calls.site.store.writing() as connection:
        await connection.execute(update(provider_keys).where(provider_keys.c.id == key).values(encrypted_key=""))
        await calls.site.store.changed(connection)
    words = coded(await calls.ask(PATHS[api], body(api)), 502, "provider_key_unreadable")
    assert f"'our anthropic' (id {key})" in words and f"PATCH /manage/providers/{key}" in words
    assert "provider_keys" not in words


@pytest.mark.parametrize("cause", ["cut=20b", "reset=head"])
async def test_a_provider_that_breaks_off(calls: Calls, cause: str) -> None:
    """Behind its head `provider_broke_off`, before it `provider_unreachable`."""
    await calls.alias("fast", await calls.provider("openai", cause))
    code = "provider_broke_off" if cause == "cut=20b" else "provider_unreachable"
    coded(await calls.ask(PATHS["chat"], body("chat")), 502, code)


async def test_a_provider_that_is_silent(tmp_path: Path) -> None:
    """`provider_timeout`."""
    async with calling(tmp_path, first_token_timeout=0.3) as calls:
        await calls.alias("fast", await calls.provider("openai", "hang=head"))
        coded(await calls.ask(PATHS["chat"], body("chat", stream=True)), 504, "provider_timeout")


async def test_a_providers_own_error_has_no_code_of_ours(calls: Calls) -> None:
    """What a provider says of the request is its own."""
    await calls.alias("fast", await calls.provider("openai", "status=400"))
    answer = await calls.ask(PATHS["chat"], body("chat"))
    assert answer.status == 400 and "x-llm-proxy-error" not in answer.headers
