"""Real clients as processes through a daemon: Claude Code, Codex, node, curl, urllib. What they did is on disk.

Claude Code and Codex come from npm, pinned, into `.cache/clients`; where that cannot be, their tests are skipped.
They get dummy keys, a home of their own and the fake provider; nothing they send is kept in this repository.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.fakeprovider.http1 import END_OF_HEAD
from tests.test_sdk import is_told_as_it_was, recorded

ROOT = Path(__file__).parent.parent
CLIENTS = ROOT / ".cache/clients"
# On an old node, npm would silently take an older Claude Code: only the version that was asked for will do.
VERSIONS = {"@anthropic-ai/claude-code": "2.1.329", "@openai/codex": "0.169.0"}
PROGRAMS = {"claude": "@anthropic-ai/claude-code", "codex": "@openai/codex"}
TIMEOUT = 60
TEXT = "".join(SENTENCE).strip()


def _installed(package: str) -> str:
    try:
        return str(json.loads((CLIENTS / "node_modules" / package / "package.json").read_text())["version"])
    except OSError:
        return ""


@pytest.fixture(scope="session")
def client() -> Callable[[str], Path]:
    """The program of a client, installed if it has to be. Skips where npm cannot give it."""
    tried: dict[str, str] = {}

    def install(package: str) -> str:
        """Why it cannot be had; empty if it can."""
        version = VERSIONS[package]
        if _installed(package) == version:
            return ""
        if not shutil.which("npm") or not shutil.which("node"):
            return "no npm or no node here"
        CLIENTS.mkdir(parents=True, exist_ok=True)
        wanted = [f"{name}@{number}" for name, number in VERSIONS.items()]
        options = ["--no-audit", "--no-fund", "--no-save", "--dangerously-allow-all-scripts", "--prefix", str(CLIENTS)]
        try:
            done = subprocess.run(
                ["npm", "install", *options, *wanted], capture_output=True, text=True, timeout=300, cwd=CLIENTS
            )
        except subprocess.TimeoutExpired:
            return "npm install took more than 300 s"
        return "" if _installed(package) == version else f"npm cannot give {package}@{version}: {done.stderr[-300:]}"

    def program(name: str) -> Path:
        package = PROGRAMS[name]
        if package not in tried:
            tried[package] = install(package)
        if tried[package]:
            pytest.skip(tried[package])
        return CLIENTS / "node_modules/.bin" / name

    return program


async def run(*arguments: str | Path, env: dict[str, str], cwd: Path, status: int = 0) -> str:
    """A client's standard output, once it has ended with that status."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env=env,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), TIMEOUT)
    except TimeoutError:
        process.kill()
        out, errors = await process.communicate()
        raise AssertionError(f"{arguments[0]} hangs: {out!r} {errors!r}") from None
    assert process.returncode == status, (out, errors)
    return out.decode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of a client, with nothing in it."""
    folder = tmp_path / "client"
    (folder / ".codex").mkdir(parents=True)
    return folder


@pytest.fixture
def service(start: Any) -> Any:
    """A daemon as installed, recording."""
    daemon = start("--service")
    daemon.wait_for_recording()
    return daemon


def base_url(command: Any, name: str, provider: str, fake_port: int) -> str:
    """What a shell has in that variable after `eval "$(llm-proxy --env)"`, with the fake provider for the real one."""
    exports = command("--env").stdout
    shell = subprocess.run(
        ["sh", "-c", f'eval "$1"; printf %s "${name}"', "sh", exports], capture_output=True, text=True, check=True
    )
    assert provider in shell.stdout
    return shell.stdout.replace(provider, f"127.0.0.1:{fake_port}")


def claude_environment(home: Path, url: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "IS_SANDBOX": "1",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "sk-ant-dummy-0000000000000000",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }


@pytest.mark.parametrize(
    ("more", "turns"),
    [
        (["hi"], 1),
        (['call Bash {"command":"echo ran-$((40+2))","description":"count"}', "--allowedTools", "Bash"], 2),
    ],
    ids=["a word", "a tool loop"],
)
async def test_claude_code(
    client: Any, service: Any, command: Any, fake: FakeProvider, home: Path, more: list[str], turns: int
) -> None:
    """`claude -p`: it gets its answer, and every call it made is on disk, in one session that has Claude Code's own id."""
    program = client("claude")
    url = base_url(command, "ANTHROPIC_BASE_URL", "api.anthropic.com", fake.port)
    out = await run(program, "-p", *more, "--output-format", "json", env=claude_environment(home, url), cwd=home)
    answer = json.loads(out)
    assert answer["result"].strip() == TEXT
    assert len(fake.requests) == turns
    found = await recorded(service, turns)
    for number, (request, response) in enumerate(found):
        assert request["path"] == "/v1/messages" and request["query"] == "beta=true"
        is_told_as_it_was(request, response, fake.requests[number], fake.responses[number])
        assert (request["seq"], response["ending"]) == (number + 1, "complete")
        assert "dummy" not in json.dumps(request["headers"])
    if turns == 2:
        assert "ran-42" in found[1][0]["body"], "the tool's result went out with the second call"
    first = only_session(service)
    assert (first["client_session"], first["client_session_source"]) == (
        answer["session_id"],
        "x-claude-code-session-id",
    )


async def test_claude_code_is_told_of_an_error(
    client: Any, service: Any, command: Any, fake: FakeProvider, home: Path
) -> None:
    """A 400 of the provider reaches its user, and the record says 400, not failure."""
    program = client("claude")
    url = base_url(command, "ANTHROPIC_BASE_URL", "api.anthropic.com", fake.port)
    env = claude_environment(home, url) | {"ANTHROPIC_CUSTOM_HEADERS": "X-Fake: status=400"}
    out = await run(program, "-p", "hi", env=env, cwd=home, status=1)
    assert "The fake provider was told to fail." in out
    for _, response in await recorded(service, len(fake.requests)):
        assert (response["status"], response["ending"]) == (400, "complete")


def only_session(daemon: Any) -> dict[str, Any]:
    (file,) = daemon.logs.rglob("*.jsonl")
    first: dict[str, Any] = json.loads(file.read_text().splitlines()[0])
    return first


@contextlib.asynccontextmanager
async def without_websockets(port: int) -> AsyncIterator[int]:
    """Before `port`, a server that answers every upgrade with 426 and passes everything else on."""

    kept: list[asyncio.StreamWriter] = []  # open for as long as the proxy wants
    serving: list[asyncio.Future[list[None]]] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):  # Codex hangs up at the last event
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(END_OF_HEAD)
        if b"\nupgrade:" in head.lower():
            writer.write(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()
            return
        behind, before = await asyncio.open_connection("127.0.0.1", port)
        kept.append(before)
        before.write(head)
        serving.append(asyncio.gather(carry(reader, before), carry(behind, writer)))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for before in kept:
            before.close()
        await asyncio.gather(*serving)


def codex_arguments(url: str, own_provider: bool) -> list[str]:
    options = {"openai_base_url": f'"{url}"'}
    if own_provider:
        provider = f'{{name="own",base_url="{url}",wire_api="responses",env_key="CODEX_API_KEY"}}'
        options = {"model_providers.own": provider, "model_provider": '"own"'}
    return [word for name, value in options.items() for word in ("-c", f"{name}={value}")]


@pytest.mark.parametrize("way", ["websocket", "426, then events", "events"])
async def test_codex(client: Any, service: Any, command: Any, fake: FakeProvider, home: Path, way: str) -> None:
    """`codex exec` over a WebSocket, over one that is refused, and over events: one session, all messages on disk."""
    program = client("codex")
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home / ".codex")}
    env |= {"CODEX_API_KEY": "sk-dummy-0000000000000000", "IS_SANDBOX": "1"}
    async with without_websockets(fake.port) as refusing:
        port = refusing if way.startswith("426") else fake.port
        url = base_url(command, "OPENAI_BASE_URL", "api.openai.com", port)
        arguments = codex_arguments(url, own_provider=way == "events")
        out = await run(program, "exec", "--skip-git-repo-check", *arguments, "hi", env=env, cwd=home)
        assert TEXT in out
        if way == "websocket":
            await fake.wait_for(lambda: not fake.counts.open_connections)
    refused = 1 if way.startswith("426") else 0
    found = await recorded(service, len(fake.requests) + refused)
    for _, response in found[:refused]:
        assert (response["status"], response["ending"]) == (426, "complete")
    for (request, response), seen, reply in zip(found[refused:], fake.requests, fake.responses, strict=True):
        assert request["path"] == "/v1/responses"
        assert response["ending"] == "complete", response
        assert "dummy" not in json.dumps(request["headers"])
        if way != "websocket":
            is_told_as_it_was(request, response, seen, reply)
            continue
        messages = response["websocket"]["messages"]
        assert [
            message["raw"] for message in messages if message["from"] == "client" and message["type"] == "text"
        ] == (seen.messages)
        types = [
            json.loads(message["raw"])["type"]
            for message in messages
            if message["from"] == "server" and message["type"] == "text"
        ]
        assert types.count("response.completed") == len(seen.messages)
        assert "response.output_text.delta" in types
    session = fake.requests[0].header("session-id")
    first = only_session(service)
    assert (first["client_session"], first["client_session_source"]) == (session, "session-id")


# --- plain clients ----------------------------------------------------------------------------------------------------

NODE = """
const [url, body] = process.argv.slice(1);
const answer = await fetch(url, {method: "POST", body, headers: {"content-type": "application/json"}});
for await (const piece of answer.body) process.stdout.write(piece);
"""
URLLIB = """
import sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
    while piece := answer.read1(): sys.stdout.buffer.write(piece)
"""
JSON = ["-H", "Content-Type: application/json", "-d"]
PLAIN: dict[str, Callable[[str, str], list[str]]] = {
    "curl": lambda url, body: ["curl", "-sSN", *JSON, body, url],
    "curl, HTTP/1.0": lambda url, body: ["curl", "-sSN", "--http1.0", *JSON, body, url],
    "curl, chunked": lambda url, body: ["curl", "-sSN", "-H", "Transfer-Encoding: chunked", *JSON, body, url],
    "curl, 100-continue": lambda url, body: ["curl", "-sSN", "-H", "Expect: 100-continue", *JSON, body, url],
    "node": lambda url, body: ["node", "--input-type=module", "-e", NODE, url, body],
    "urllib": lambda url, body: [sys.executable, "-c", URLLIB, url, body],
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("stream", [True, False])
async def test_plain_clients(daemon: Any, fake: FakeProvider, home: Path, name: str, stream: bool) -> None:
    """Whatever speaks HTTP gets what the provider sent, and it is on disk."""
    body = json.dumps({"model": "m", "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "ü"}]})
    words = PLAIN[name](f"{daemon.url}/anthropic/127.0.0.1:{fake.port}/v1/messages?beta=true", body)
    if not shutil.which(words[0]):
        pytest.skip(f"no {words[0]} here")
    out = await run(*words, env={"PATH": os.environ["PATH"], "HOME": str(home)}, cwd=home)
    ((request, response),) = await recorded(daemon, 1)
    assert fake.requests[0].body == body.encode()
    is_told_as_it_was(request, response, fake.requests[0], fake.responses[0])
    told = "".join(chunk["raw"] for chunk in response["chunks"]) if stream else response["body"]
    assert out == told
    assert response["ending"] == "complete"
    assert response.get("interim", []) == ([100] if "continue" in name else [])
