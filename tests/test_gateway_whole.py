"""Whole gateways as processes, on the databases that teams have: one machine, two of them, their stops and their record."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import stat
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaybed import SECRETS, Gateway, gateways
from tests.gatewaystore import an_empty_url
from tests.redisbed import a_redis

__all__ = ["gateways"]

Json = Any
WORDS = "".join(SENTENCE)
HELLO = {"model": "fast", "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


def eventually(what: Any, seconds: float, told: Any = lambda: "") -> None:
    """Until `what()` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, told()
        time.sleep(0.01)


def furnished(gateway: Gateway, fake: FakeProvider) -> str:
    """An API key, behind which `fast` is a model."""
    gateway.alias("fast", "gpt-4o-mini", gateway.provider("openai", fake.url))
    return gateway.key()


# --- two machines


async def test_two_machines_are_one_gateway(start: Any, command: Any, fake: FakeProvider, tmp_path: Path) -> None:
    """What is made on one holds on the other, revoked keys and changed aliases within a second; limits are of both together."""
    async with an_empty_url("postgresql", tmp_path) as url:
        with a_redis(tmp_path) as redis:
            env = SECRETS | {"DATABASE_URL": url, "REDIS_URL": redis.url, "LLM_PROXY_UPSTREAMS_ALLOW": fake.url}
            await asyncio.to_thread(_two_machines, start, command, fake, tmp_path, env)


def _two_machines(start: Any, command: Any, fake: FakeProvider, tmp_path: Path, env: dict[str, str]) -> None:
    made = command("gateway", "migrate", env=env)
    assert made.returncode == 0 and made.stdout.startswith("0001: "), made
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()
    begun = [Gateway(start("gateway", "--port", "0", env=env | {"HOME": str(home)})) for home in homes]
    one, two = (gateway.wait() for gateway in begun)
    key = furnished(one, fake)
    assert two.want(200, "POST", CHAT, HELLO, key)["choices"][0]["message"]["content"] == WORDS
    session = two.sign_in("admin@example.com")
    assert one.want(200, "GET", "/auth/me", None, session)["email"] == "admin@example.com"

    two.want(200, "PATCH", "/manage/aliases/fast", {"target_model": "gpt-4.1"}, session)
    eventually(lambda: one.want(200, "POST", CHAT, HELLO, key)["model"] == "gpt-4.1", 1.0)

    (listed,) = one.want(200, "GET", "/auth/key", None, session)
    other = one.key(name="other")
    assert two.ask("POST", CHAT, HELLO, key).status == 200
    one.want(204, "DELETE", f"/auth/key/{listed['id']}", None, session)
    eventually(lambda: two.ask("POST", CHAT, HELLO, key).status == 401, 1.0)

    _limits_are_of_both(one, two, fake, session)

    for words in (("gateway", "check"), ("gateway", "rotate-key")):
        done = command(*words, env=env)
        assert done.returncode == 0 and "WRONG" not in done.stdout, done
    assert "postgresql://" in command("gateway", "check", env=env).stdout
    assert command("gateway", "migrate", env=env).stdout == "the store is of this version already\n"
    assert one.ask("POST", CHAT, HELLO, other).status == 200

    pid = _gateway_pid(two)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: two.ask("POST", CHAT, HELLO, other).status == 200, 20.0)
    assert _gateway_pid(two) != pid
    assert [gateway.daemon.stop() for gateway in (one, two)] == [0, 0]


def _limits_are_of_both(one: Gateway, two: Gateway, fake: FakeProvider, admin: str) -> None:
    """Of 60 requests to each exactly as many pass as one user may send."""
    member = two.sign_up("member@example.com")
    two.alias("fast", "gpt-4o-mini", two.provider("openai", fake.url, member), member)
    key = two.key(member)
    id = two.want(200, "GET", "/auth/me", None, member)["id"]
    one.want(200, "PATCH", f"/manage/users/{id}", {"rate_limit_minute": 50}, admin)
    eventually(lambda: two.want(200, "GET", "/auth/me", None, member)["rate_limit_minute"] == 50, 1.0)
    time.sleep(1.0)  # what a process remembers of a caller may be so old; nothing tells when it is not

    def often(gateway: Gateway) -> list[Any]:
        return [gateway.ask("POST", CHAT, HELLO, key) for _ in range(60)]

    with ThreadPoolExecutor(2) as pool:  # one at a time to each: who waits 50 ms for Redis would limit by itself
        answers = [answer for each in pool.map(often, (one, two)) for answer in each]
    told = one.log.read_text() + two.log.read_text()
    assert Counter(answer.status for answer in answers) == {200: 50, 429: 70}, told
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.code for answer in refused} == {"rate_limit_exceeded"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)


def _gateway_pid(gateway: Gateway) -> int:
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            if b"llm_proxy.gateway" in words and parent == gateway.daemon.pid:
                return int(name)
    return 0


# --- from nothing


async def test_from_nothing(start: Any, environ: Any, free_port: int, fake: FakeProvider, tmp_path: Path) -> None:
    """Its own variables hold, a database's URL is what it says with its query, secrets are made once and for their owner alone."""
    async with an_empty_url("postgresql", tmp_path) as url:
        url += "?application_name=of%20the%20team&sslmode=disable"
        env = {"PORT": str(free_port), "DATABASE_URL": url, "RATE_LIMIT_MINUTE": "7"}
        env["LLM_PROXY_UPSTREAMS_ALLOW"] = fake.url
        await asyncio.to_thread(_from_nothing, start, fake, env)


def _from_nothing(start: Any, fake: FakeProvider, env: dict[str, str]) -> None:
    kept = []
    for _ in range(2):
        gateway = Gateway(start("gateway", env=env)).wait()
        assert gateway.port == int(env["PORT"])
        secrets = gateway.log.parent / "secrets.json"
        assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
        kept.append(secrets.read_bytes())
        if len(kept) == 1:
            key = furnished(gateway, fake)
        answer = gateway.ask("POST", CHAT, HELLO, key)
        assert (answer.status, answer.headers["x-ratelimit-limit-requests"]) == (200, "7")
        assert not (gateway.log.parent / "gateway.db").exists()
        assert gateway.daemon.stop() == 0
    assert kept[0] == kept[1] and set(json.loads(kept[0])) == {"jwt_secret", "encryption_key"}
    assert env["DATABASE_URL"].rpartition("@")[0] not in "".join(gateway.daemon.lines) + gateway.log.read_text()


def stream_of(gateway: Gateway, key: str, path: str, body: Json) -> tuple[Any, Any]:
    link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    link.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    return link, link.getresponse()


async def test_a_stop_lets_streams_end(gateways: Any, fake: FakeProvider) -> None:
    """SIGTERM in the middle: what is under way, passed or translated, comes to its own end; the process ends well after it."""

    def play() -> None:
        gateway = gateways(allow=(fake.url,))
        slow = gateway.provider("openai", f"{fake.url}/fake=slow=150")
        gateway.alias("fast", "gpt-4o-mini", slow)
        body = HELLO | {"stream": True, "max_tokens": 100}
        key, begun = gateway.key(), []
        with contextlib.ExitStack() as links:
            for path in (CHAT, "/v1/messages"):
                link, response = stream_of(gateway, key, path, body)
                links.enter_context(contextlib.closing(link))
                begun.append((response, response.read1()))
                assert response.status == 200 and begun[-1][1], path
            gateway.daemon.signal(signal.SIGTERM)
            ends = ("data: [DONE]", '"type":"message_stop"}')
            for (response, first), end in zip(begun, ends, strict=True):
                rest = response.read()
                said = (first + rest).decode()
                assert rest and said.rstrip().endswith(end), said
                assert "fake provider" in said.replace('"}', "") or "provider:" in said
        assert gateway.daemon.wait() == 0

    await asyncio.to_thread(play)


def test_without_its_packages_it_says_what_to_install(start: Any, command: Any, tmp_path: Path) -> None:
    """And nothing is begun; the proxy alone needs none of them."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDING)
    env = {"PYTHONPATH": str(hidden)}
    for words in ((), ("check",), ("migrate",)):
        refused = start("gateway", *words, env=env, isolated=False)
        assert refused.wait() == 1
        told = "".join(refused.lines)
        assert "asyncpg" in told and "sqlalchemy" in told and "extra `gateway`" in told and "Traceback" not in told
    alone = start("--port", "0", env=env, isolated=False)
    assert alone.health()["status"] == "ok"


HIDING = """
import importlib.machinery
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("asyncpg", "sqlalchemy"):
            return None
        return super().find_spec(name, path, target)
import sys
sys.meta_path[:] = [Finder if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
"""


def test_the_plain_daemon_has_a_gateway_where_its_config_says_so(start: Any, environ: Any) -> None:
    """`[gateway] enabled`; its own variables mean nothing there."""
    config = Path(environ["HOME"]) / ".config/llm-proxy/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[gateway]\nenabled = true\n")
    gateway = Gateway(start("--port", "0", env={"DATABASE_URL": "postgresql://of.another.program/db"})).wait()
    assert gateway.admin and (gateway.log.parent / "gateway.db").exists()


async def test_on_all_addresses_only_the_gateway_is_open(gateways: Any, fake: FakeProvider) -> None:
    """Calls without a key, by a provider's path or with a key of a provider's, reach nobody."""

    def play() -> None:
        gateway = gateways("--host", "0.0.0.0", allow=(fake.url,))
        key = furnished(gateway, fake)
        assert gateway.ask("POST", CHAT, HELLO, key).status == 200
        asked = len(fake.requests)
        for target in (CHAT, "/v1/messages", "/v1/embeddings"):
            assert gateway.ask("POST", target, HELLO, "sk-of-a-provider").status == 401
        host = f"127.0.0.1:{fake.port}"
        for target in (f"/openai/{host}{CHAT}", "/v1beta/models/gemini-2.5-pro:generateContent", "/model/m/invoke"):
            assert gateway.ask("POST", target, HELLO, key).status in (401, 403, 404), target
        assert [one.target for one in fake.requests[asked:] if one.body] == []

    await asyncio.to_thread(play)


# --- the record


async def test_every_attempt_is_recorded_with_whose_it_is(
    gateways: Any, command: Any, environ: Any, fake: FakeProvider
) -> None:
    """Also the ones that failed before another answered; usage, `stats` and `view` have them like other calls."""

    def play() -> None:
        config = Path(environ["HOME"]) / ".config/llm-proxy/config.toml"
        config.parent.mkdir(parents=True)  # a host of one's own has no list prices
        config.write_text('[prices."claude-sonnet-4-5"]\ninput = 3\noutput = 15\n')
        gateway = gateways(allow=(fake.url,))
        gateway.daemon.wait_for_recording()
        bad = gateway.provider("openai", f"{fake.url}/fake=status=503")
        good = gateway.provider("anthropic", fake.url)
        chain = [{"provider_key_id": good, "model": "claude-sonnet-4-5"}]
        gateway.alias("fast", "gpt-4o-mini", bad, chain=chain)
        answer = gateway.ask("POST", CHAT, HELLO | {"max_tokens": 10}, gateway.key(name="laptop"))
        assert answer.status == 200, (answer.body, gateway.log.read_text())
        assert int(answer.headers["x-llm-proxy-attempts"]) > 1
        id = answer.headers["x-llm-proxy-request-id"]

        def attempts(entries: list[Json]) -> list[Json]:
            return [one for one in entries if one["type"] == "request" and one.get("gateway", {}).get("request") == id]

        count = int(answer.headers["x-llm-proxy-attempts"])
        entries = gateway.daemon.entries(
            until=lambda found: (
                len(attempts(found)) == count
                and sum(one["type"] == "response" and one.get("price") is not None for one in found)
            )
        )
        requests = sorted(attempts(entries), key=lambda one: one["gateway"]["attempt"])
        assert [int(one["gateway"]["attempt"]) for one in requests] == list(range(1, count + 1))
        assert {(one["gateway"]["user"], one["gateway"]["alias"]) for one in requests} == {
            ("admin@example.com", "fast")
        }
        ids = [one["_meta"]["request_id"] for one in requests]
        responses = {one["_meta"]["request_id"]: one for one in entries if one["type"] == "response"}
        found = [responses[one] for one in ids]
        assert [one["status"] for one in found] == [503] * (count - 1) + [200]
        assert (found[-1]["price"]["usd"] or 0) > 0 and found[-1]["digest"]["usage"]["output"] > 0, found[-1]["price"]

        def sums() -> list[Json]:
            return gateway.want(200, "GET", "/manage/usage", None, gateway.admin)

        eventually(lambda: sum(one["requests"] for one in sums()) == count, 5.0, sums)
        assert sum(one["cost"] or 0 for one in sums()) > 0

        stats = command("stats", "--by", "model", "--json")
        assert stats.returncode == 0 and "claude-sonnet-4-5" in stats.stdout, stats
        view = command("view")
        assert view.returncode == 0, view

    await asyncio.to_thread(play)
