"""On an address that others can reach, who brings the token is served and nobody else; no upstream and no record has the token."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from llm_proxy.proxy.authority import parse_base
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.remote import Remote
from llm_proxy.proxy.target import Target
from tests.recorded import Provider
from tests.rig import OK, Message, Rig, StartRig

TOKEN = "a-token-of-24-characters"
FIELD = f"X-LLM-Proxy-Token: {TOKEN}\r\n"
BEARER = f"Authorization: Bearer {TOKEN}\r\n"
KEY = "sk-ant-api03-the-providers-own-key"


async def ask(rig: Rig, target: str, fields: str = "", host: str = "127.0.0.1:1") -> Message:
    """One GET on a connection of its own."""
    wire = rig.client()
    await wire.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode("latin-1"))
    message = await wire.message()
    wire.close()
    return message


def why(answer: Message) -> str:
    return str(json.loads(answer.payload)["error"]["message"])


async def test_nothing_is_carried_or_shown_without_the_token(rigs: StartRig) -> None:
    """Provider paths, bare paths, the figures: 403 with what to do; only /health is everybody's."""
    rig = await rigs(remote=Remote(TOKEN, asked=True))
    route = f"/anthropic/127.0.0.1:{rig.fake.port}/v1/models"
    for target in (route, "/v1/models", "/metrics", "/llm-proxy/metrics", "/metrics?x", "/secret//v1/models"):
        for fields in ("", "X-LLM-Proxy-Token: \r\n", f"X-LLM-Proxy-Token: {TOKEN[:-1]}\r\n", f"X-Other: {TOKEN}\r\n"):
            answer = await ask(rig, target, fields)
            assert answer.status in (403, 404), (target, fields, answer.head)
            assert answer.status == 404 or b"X-LLM-Proxy-Token" in answer.payload
    assert (await ask(rig, f"/secret/{TOKEN}x{route}")).status == 403
    assert rig.fake.counts.requests == 0
    assert (await ask(rig, "/health")).status == 200
    assert (await ask(rig, "/metrics", BEARER)).status == 200


@pytest.mark.parametrize(
    ("before", "fields"),
    [("", FIELD), ("", BEARER), ("", f"x-api-key: {TOKEN}\r\n"), (f"/secret/{TOKEN}", "")],
    ids=["field", "bearer", "x-api-key", "path"],
)
@pytest.mark.parametrize("asked", [True, False])
async def test_the_token_is_for_us_alone(rigs: StartRig, before: str, fields: str, asked: bool) -> None:
    """Brought in any of four ways it opens, and neither upstream nor journal has it; the provider's key passes."""
    rig = await rigs(remote=Remote(TOKEN, asked=asked))
    upstream = rig.upstream()
    key = "" if "x-api-key" in fields else f"x-api-key: {KEY}\r\n"
    client = rig.client()
    server = None
    for _ in range(2):  # the second time the head is known
        target = f"{before}/anthropic/127.0.0.1:{upstream.port}/v1/messages?a=1"
        await client.send(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}{key}X-Own: 1\r\n\r\n".encode())
        server = server or await upstream.accept()
        seen = await server.message()
        assert (
            seen.head
            == f"GET /v1/messages?a=1 HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n{key}X-Own: 1\r\n\r\n".encode()
        )
        await server.send(OK)
        assert (await client.message()).payload == b"ok"
    await rig.exchanges(2)
    journal = b"".join(file.read_bytes() for file in Path(rig.journal.folder).iterdir() if file.is_file())
    assert b"X-Own" in journal and TOKEN.encode() not in journal and b"/secret" not in journal


async def test_who_has_the_token_may_call_us_by_any_name(rigs: StartRig) -> None:
    """Other containers know us by a name of their own; a page that re-points its name at us has no token."""
    rig = await rigs(remote=Remote(TOKEN, asked=True))
    route = f"/anthropic/127.0.0.1:{rig.fake.port}/v1/models"
    assert (await ask(rig, route, FIELD, host="llm-proxy:8080")).status == 200
    assert (await ask(rig, "/metrics", BEARER, host="llm-proxy:8080")).status == 200
    assert (await ask(rig, route, host="llm-proxy:8080")).status == 403
    assert "Host" in why(await ask(rig, "/health", host="llm-proxy:8080"))
    for field in ("Origin: http://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n"):
        assert (await ask(rig, route, FIELD + field)).status == 403
    assert rig.fake.counts.requests == 1


async def test_a_single_target_asks_for_it_too(rigs: StartRig) -> None:
    """Also where it adds no field of ours; the token reaches no upstream."""
    rig = await rigs()
    upstream = rig.upstream()
    base = parse_base(f"http://127.0.0.1:{upstream.port}/v1")
    served = await rigs(target=Target(base, guard=Guard((TOKEN,), required=True)), remote=Remote(TOKEN, asked=True))
    assert (await ask(served, "/models")).status == 403
    assert (await ask(served, "/llm-proxy/metrics")).status == 403
    for before, fields in ((f"/secret/{TOKEN}", ""), ("", FIELD)):
        client = served.client()
        await client.send(f"GET {before}/models HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n".encode())
        server = await upstream.accept()
        assert (
            await server.message()
        ).head == f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode()
        await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        assert (await client.message()).payload == b"ok"


# -- real daemons ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    started = Provider()
    yield started
    started.stop()


def status(port: int, target: str, **fields: str) -> int:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        link.request("GET", target, headers={name.replace("_", "-"): value for name, value in fields.items()})
        return link.getresponse().status
    finally:
        link.close()


def test_a_daemon_on_every_address_says_what_is_missing(start: Any, provider: Provider) -> None:
    """Without a token it starts, refuses, and tells both the log and the caller how to go on."""
    daemon = start("--port", "0", "--host", "0.0.0.0")
    daemon.wait_for_line("there is no token: calls are refused. Set listen.token .LLM_PROXY_LISTEN_TOKEN")
    assert status(daemon.port, f"/anthropic/127.0.0.1:{provider.port}/v1/models") == 404
    assert status(daemon.port, "/health") == 200
    for fields in ({}, {"X_LLM_Proxy_Token": ""}, {"Authorization": "Bearer "}, {"x_api_key": ""}):
        assert status(daemon.port, "/metrics", **fields) == 403
    assert status(daemon.port, "/secret//metrics") == 404


@pytest.mark.parametrize(
    ("settings", "without", "with_token"),
    [
        ({}, 403, 200),
        ({"LLM_PROXY_LISTEN_REMOTE_ROUTES": "true"}, 200, 200),
        ({"LLM_PROXY_HOST": "127.0.0.1"}, 200, 200),
    ],
    ids=["asked", "open to all", "loopback"],
)
def test_settings_decide_who_is_asked(
    start: Any, provider: Provider, settings: dict[str, str], without: int, with_token: int
) -> None:
    """`listen.token` opens an address others can reach; `remote_routes` does for all; on loopback nobody is asked."""
    daemon = start("--port", "0", env={"LLM_PROXY_HOST": "0.0.0.0", "LLM_PROXY_LISTEN_TOKEN": TOKEN} | settings)
    route = f"/anthropic/127.0.0.1:{provider.port}/v1/models"
    assert status(daemon.port, route) == without
    assert status(daemon.port, route, X_LLM_Proxy_Token=TOKEN) == with_token
    assert status(daemon.port, "/metrics") == without


def test_an_sdk_brings_it_in_a_field_or_in_its_base_url(start: Any, provider: Provider) -> None:
    """As docs/container.md tells; the record has neither the token nor its path."""
    daemon = start("--port", "0", "--host", "0.0.0.0", env={"LLM_PROXY_LISTEN_TOKEN": TOKEN})
    route = f"anthropic/127.0.0.1:{provider.port}"
    for base, fields in (
        (f"{daemon.url}/{route}", {"X-LLM-Proxy-Token": TOKEN}),
        (f"{daemon.url}/secret/{TOKEN}/{route}", {}),
    ):
        with anthropic.Anthropic(api_key=KEY, base_url=base, default_headers=fields, max_retries=0) as client:
            answer = client.messages.create(
                model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
            )
            assert answer.content
    daemon.entries(until=lambda entries: sum(one["type"] == "response" for one in entries) == 2)
    assert subprocess.run(["grep", "-r", TOKEN, str(daemon.home)]).returncode == 1


# -- process 1 -------------------------------------------------------------------------------------------------------

_BURYING = """
import asyncio, os, subprocess, sys
from llm_proxy.service import orphans

async def main():
    chore = asyncio.create_task(orphans.bury(0.05))
    own = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
    middle = subprocess.run(["sh", "-c", "sleep 0.1 & echo $!"], stdout=subprocess.PIPE, text=True)
    assert os.path.exists("/proc/" + middle.stdout.strip())
    while os.path.exists("/proc/" + middle.stdout.strip()):
        await asyncio.sleep(0.02)
    just = subprocess.Popen(["sh", "-c", "exit 8"])
    os.waitid(os.P_PID, just.pid, os.WEXITED | os.WNOWAIT)
    chore.cancel()
    assert orphans.look(0) == just.pid
    print(os.getpid(), await own.wait(), just.wait())

asyncio.run(asyncio.wait_for(main(), 20))
"""


def test_process_1_buries_orphans_and_leaves_its_own_children_alone() -> None:
    """What lost its parent does not stay as a zombie; the exit status of our own child is still ours to read."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", _BURYING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
    assert (done.stdout, done.stderr) == ("1 7 8\n", ""), done.stderr
    assert done.returncode not in (-signal.SIGKILL, 1)
