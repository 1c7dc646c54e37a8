"""Client settings as the gateway's page shows them are what the clients take: pasted, they work."""

from __future__ import annotations

import ast
import asyncio
import html
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import pytest_asyncio

from llm_proxy.gateway.screens.snippets import PLACEHOLDER, SNIPPETS, Ways
from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaybed import a_gateway
from tests.gatewayscreens import ADMIN, Screens

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "smart one's"  # which every language writes in another way
HOSTILE = Ways("http://h/'$(touch x)'", "k\"'\\`$(id)\n\x1b${x}", "m</script>'\"{url}<key>\u2028")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shown(tmp_path_factory):
    """The page's texts by their ids, with a key of the reader's own in place."""
    async with FakeProvider() as fake:
        with a_gateway(tmp_path_factory.mktemp("team"), allow=(fake.url,)) as gateway:
            yield await asyncio.to_thread(_shown, gateway.wait(), fake)


def _shown(gateway, fake):
    screens = Screens(gateway)
    gateway.alias(MODEL, "gpt-4o", gateway.provider("openai", fake.url))
    page = screens.person(ADMIN).get("/clients").body.decode()
    texts = re.findall(r'<pre id="s-([\w-]+)".*?<code>(.*?)</code>', page, re.DOTALL)
    key = gateway.key()
    return {id: html.unescape(text).replace(PLACEHOLDER, key) for id, text in texts} | {"key": key, "url": gateway.url}


async def test_the_page_shows_all_of_them(shown):
    """Each once, with the gateway's own address and the caller's first alias."""
    assert set(shown) == {one.id for one in SNIPPETS} | {"key", "url"}
    for one in SNIPPETS:
        assert shown[one.id].strip() and "<model>" not in shown[one.id], one.id


async def _run(*command, **environment):
    known = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, env=known | environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("id", ["openai-python", "anthropic-python"])
async def test_sdks_of_python_get_an_answer(shown, id):
    """By the program as it stands there."""
    assert await _run(sys.executable, "-c", shown[id]) == "".join(SENTENCE) + "\n"


async def test_curl_gets_an_answer(shown):
    """By the command as it stands there."""
    told = json.loads(await _run("sh", "-c", shown["curl"].replace("curl", "curl -sS", 1)))
    assert told["choices"][0]["message"]["content"] == "".join(SENTENCE)


@pytest.mark.parametrize("id", ["environment", "claude-code-shell", "codex-key"])
async def test_shells_set_the_variables(shown, id):
    """To what clients need, the key and the model to the letter."""
    said = await _run("sh", "-c", f"{shown[id]}\nenv -0", ANTHROPIC_API_KEY="sk-of-mine")
    variables = dict(one.partition("=")[::2] for one in said.split("\0") if one)
    wanted = {
        "environment": {"OPENAI_BASE_URL": f"{shown['url']}/v1", "OPENAI_API_KEY": shown["key"]},
        "claude-code-shell": {
            "ANTHROPIC_BASE_URL": shown["url"],
            "ANTHROPIC_AUTH_TOKEN": shown["key"],
            "ANTHROPIC_MODEL": MODEL,
        },
        "codex-key": {"LLM_PROXY_KEY": shown["key"]},
    }[id]
    assert variables.items() >= wanted.items()
    assert ("ANTHROPIC_API_KEY" in variables) == (id != "claude-code-shell"), "it would be sent instead"


async def test_files_of_settings_can_be_read(shown):
    """Claude Code's JSON and Codex' TOML."""
    told = json.loads(shown["claude-code"])["env"]
    assert told["ANTHROPIC_BASE_URL"] == shown["url"] and told["ANTHROPIC_AUTH_TOKEN"] == shown["key"]
    assert told["ANTHROPIC_MODEL"] == MODEL
    codex = tomllib.loads(shown["codex"])
    assert codex["model"] == MODEL and codex["model_provider"] in codex["model_providers"]
    provider = codex["model_providers"]["gateway"]
    assert provider["base_url"] == f"{shown['url']}/v1" and provider["wire_api"] == "responses"
    assert provider["env_key"] in shown["codex-key"]


@pytest.mark.parametrize("one", SNIPPETS, ids=lambda one: one.id)
async def test_nothing_gets_out_of_its_string(one, tmp_path):
    """Whatever an alias or an address is: nothing of it is run, and it comes through to the letter."""
    text = one.write(HOSTILE)
    if one.id == "claude-code":
        assert json.loads(text)["env"]["ANTHROPIC_MODEL"] == HOSTILE.model
    elif one.id == "codex":
        assert tomllib.loads(text)["model"] == HOSTILE.model
    elif one.id.endswith("python"):
        strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        assert {HOSTILE.model, HOSTILE.key} <= set(strings)
    elif one.id.endswith("js"):
        written = [json.loads(one) for one in re.findall(r'(?:model|authToken|apiKey): ("(?:[^"\\\n]|\\.)*")', text)]
        assert set(written) == {HOSTILE.model, HOSTILE.key}
    else:
        stub = tmp_path / "curl"
        stub.write_text('#!/bin/sh\nfor one; do printf "%s\\0" "$one"; done\n')
        stub.chmod(0o700)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", f"{text}\nenv -0"],
            capture_output=True,
            text=True,
            timeout=20,
            cwd=tmp_path,
            env={"PATH": path},
        )
        assert HOSTILE.key in done.stdout and not (tmp_path / "x").exists() and not done.stderr
