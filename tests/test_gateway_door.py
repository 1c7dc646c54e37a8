"""The gateway's paths on the proxy's port: carried to its socket with every method, and nobody else's business."""

import asyncio
import contextlib
import json
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from aiohttp import web

from llm_proxy import unix
from llm_proxy.gateway.session_tokens import SessionTokens
from llm_proxy.proxy.authority import parse_base
from llm_proxy.proxy.gateway import Gateway
from llm_proxy.proxy.remote import Remote
from tests.gatewaydoor import old_token
from tests.rig import Wire


class Team:
    """A stand-in for the gateway's process: says what it was asked, reads uploads, and streams."""

    def __init__(self, path):
        self.path = str(path)
        self.config = Gateway(self.path)
        self.requests = []
        self.next_event = asyncio.Event()
        self.left = asyncio.Event()
        self._runner = None

    async def serve(self):
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/manage/events", self._events)
        app.router.add_route("*", "/{any:.*}", self._echo)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.SockSite(self._runner, unix.bind(self.path), backlog=unix.BACKLOG).start()

    async def close(self):
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _echo(self, request):
        self.requests.append(request)
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
        told = {"method": request.method, "target": request.raw_path, "host": request.host, "size": size}
        told["fields"] = {name.lower(): request.headers.getall(name) for name in request.headers}
        return web.json_response(told)

    async def _events(self, request):
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        try:
            for number in range(100):
                await stream.write(b"data: %d\n\n" % number)
                await self.next_event.wait()
                self.next_event.clear()
        finally:
            self.left.set()
        return stream


@pytest_asyncio.fixture
async def team(tmp_path):
    made = Team(tmp_path / "g.sock")
    yield made
    await made.close()


def asked(target, *more, method="GET", host="127.0.0.1:1", body=b""):
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *more]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


async def ask(rig, *args, client=None, **kwargs):
    client = client or rig.client()
    await client.send(asked(*args, **kwargs))
    return await client.message(to_head=kwargs.get("method") == "HEAD")


CALLS = ("chat/completions", "completions", "responses", "embeddings", "messages", "messages/count_tokens")


@pytest.mark.parametrize(
    ("method", "target", "taken"),
    [
        *(("POST", f"{before}/{call}", True) for call in CALLS for before in ("", "/v1")),
        ("POST", "/v1/messages?beta=true", True),
        ("GET", "/v1/models", True),
        ("GET", "/models", True),
        ("GET", "/v1/models/us.anthropic.claude%2Fx:0", True),
        ("POST", "/auth/signup", True),
        ("DELETE", "/auth/key/7", True),
        ("PATCH", "/manage/aliases/3?x=1", True),
        ("PUT", "/manage", True),
        ("GET", "/openapi.json", True),
        ("GET", "/health/gateway", True),
        ("GET", "/health/live", True),
        ("GET", "/health/ready?now", True),
        ("GET", "/v1/messages/batches", False),
        ("POST", "/v1/responses/resp_1/cancel", False),
        ("POST", "/v1/models/gemini-2.5-pro:generateContent", False),
        ("DELETE", "/v1/models/ft:x", False),
        ("POST", "/v1beta/models/x:generateContent", False),
        ("POST", "/v1/chat/completionsx", False),
        ("GET", "/authx/key", False),
        ("GET", "/%61uth/key", False),
        ("GET", "//auth/key", False),
        ("GET", "/openapi.jsonx", False),
        ("GET", "/health/gateway/x", False),
        ("GET", "/health/readyx", False),
    ],
)
async def test_what_is_the_gateways(rigs, team, method, target, taken):
    """Its API with every method, target as it came; the providers' other paths go where they went without it."""
    await team.serve()
    nowhere = parse_base("http://127.0.0.1:1")
    rig = await rigs(gateway=team.config, bases=dict.fromkeys(("openai", "anthropic", "gemini"), nowhere))
    answer = await ask(rig, target, method=method, body=b"{}" if method in ("POST", "PATCH", "PUT") else b"")
    assert bool(team.requests) is taken
    if taken:
        told = json.loads(answer.payload)
        assert (told["method"], told["target"], told["host"]) == (method, target, "127.0.0.1:1")
    else:
        assert answer.status in (404, 502) and answer.get(b"x-llm-proxy-error"), answer


async def test_our_own_paths_stay_ours(rigs, team):
    """`/health`, `/metrics` and provider paths are what they were."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    assert json.loads((await ask(rig, "/health")).payload)["app"] == "llm-proxy"
    assert (await rig.exchange(b"{}")).complete
    assert not team.requests and len(await rig.exchanges(1)) == 1


async def test_it_leaves_no_trace_but_a_count_of_its_own(rigs, team):
    """No journal and no exchange knows of it; requests are counted by ending and status."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    for _ in range(3):
        assert (await ask(rig, "/v1/messages", "x-api-key: llmp_a", method="POST", body=b"{}")).status == 200
    assert await rig.exchanges() == [] and not rig.core.relays
    metrics = (await ask(rig, "/metrics")).payload.decode()
    assert 'llm_proxy_gateway_requests_total{api="anthropic",ending="complete",status="200"} 3' in metrics
    assert "llm_proxy_gateway_open 0" in metrics
    assert "llm_proxy_exchanges_total{" not in metrics and "llm_proxy_upstream_connects_total 0" in metrics
    assert "llm_proxy_record_lost_exchanges_total 0" in metrics


async def test_a_like_head_is_looked_up_and_carries_its_own_length(rigs, team):
    """A client's second call costs one look-up; a third from elsewhere finds the same."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    client = rig.client()
    for size in (1, 22, 333):
        answer = await ask(rig, "/v1/responses", method="POST", body=b"x" * size, client=client)
        assert json.loads(answer.payload)["size"] == size
    await ask(rig, "/v1/responses", method="POST", body=b"xxxx")
    assert len(rig.core.requests._known) == 1
    assert len({request.transport for request in team.requests}) == 1


FORGED = ("X-LLM-Proxy-Peer: 10.0.0.1", "x-llm-proxy-peer: 10.0.0.2", "X-LLM-PROXY-SCHEME: https")


@pytest.mark.parametrize("more", [(), FORGED, (*FORGED, "Connection: x-llm-proxy-peer, x-llm-proxy-scheme")])
async def test_who_called_cannot_be_forged(rigs, team, more):
    """The address is the connection's, whatever a client claims, also where it wants our own field dropped."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    for _ in range(2):  # looked up the second time
        more_of_it = (*more, "X-LLM-Proxy-Token: t", "X-Forwarded-For: 1.2.3.4")
        told = json.loads((await ask(rig, "/auth/login", *more_of_it, method="POST", body=b"{}")).payload)
        assert told["fields"]["x-llm-proxy-peer"] == ["127.0.0.1"]
        assert told["fields"]["x-llm-proxy-scheme"] == ["http"]
        assert told["fields"]["x-forwarded-for"] == ["1.2.3.4"] and "x-llm-proxy-token" not in told["fields"]


async def test_each_connection_has_its_own_address(rigs, team):
    """Two clients with the very same head: what is remembered of the first is not told of the second."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
        with socket.create_connection(("127.0.0.1", rig.port), 5, (address, 0)) as link:
            wire = Wire(link)
            assert json.loads((await ask(rig, "/v1/models", client=wire)).payload)["fields"]["x-llm-proxy-peer"] == [
                address
            ]


# --- who may come


PAGES = [
    ("Origin: https://evil.example",),
    ("Origin: null",),
    ("Origin: http://127.0.0.1:2",),
    ("Sec-Fetch-Site: cross-site",),
]


@pytest.mark.parametrize("more", PAGES)
@pytest.mark.parametrize("target", ["/auth/signup", "/manage/providers"])
async def test_other_sites_pages_neither_sign_up_nor_manage(rigs, team, target, more):
    """403 before anything is carried; a listed page passes."""
    await team.serve()
    rig = await rigs(gateway=team.config, origins=("https://team.example",))
    answer = await ask(rig, target, *more, method="POST", body=b"{}")
    assert answer.status == 403 and answer.get(b"x-llm-proxy-error") == b"not_allowed" and not team.requests
    listed = ("Origin: https://team.example", "Sec-Fetch-Site: cross-site")
    assert (await ask(rig, target, *listed, method="POST", body=b"{}")).status == 200


async def test_a_name_that_is_pointed_at_us_does_not_sign_up(rigs, team):
    """DNS rebinding: for the browser the page and we are one site, and its Origin is that very Host."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    page = ("Origin: http://evil.example", "Sec-Fetch-Site: same-origin")
    answer = await ask(rig, "/auth/signup", *page, host="evil.example", method="POST", body=b"{}")
    assert answer.status == 403 and not team.requests
    page = (f"Origin: http://127.0.0.1:{rig.port}",)
    answer = await ask(rig, "/auth/signup", *page, host=f"127.0.0.1:{rig.port}", method="POST", body=b"{}")
    assert answer.status == 200


@pytest.mark.parametrize("target", ["/v1/models", "/auth/me", "/manage/usage", "/openapi.json", "/health/gateway"])
async def test_behind_a_load_balancer_any_name_is_good(rigs, team, target):
    """The gateway's paths accept every Host; everything else keeps its rules."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    answer = await ask(rig, target, host="llm.team.example")
    assert json.loads(answer.payload)["host"] == "llm.team.example"
    for other in ("/health", "/v1/messages/batches", "/anthropic/api.anthropic.com/v1/models"):
        assert (await ask(rig, other, host="llm.team.example")).status == 403


async def test_a_key_is_what_a_page_lacks(rigs, team):
    """Calls bring a key that no browser adds by itself, so pages may call too."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    answer = await ask(rig, "/v1/chat/completions", *PAGES[0], method="POST", body=b"{}", host="x.example")
    assert answer.status == 200


async def test_other_machines_reach_the_gateway_and_nothing_else(rigs, team):
    """Where the port is open to them: its paths ask for themselves, the rest for a token or not at all."""
    await team.serve()
    for remote in (None, Remote("a-token", asked=True)):
        rig = await rigs(gateway=team.config, remote_routes=remote is not None, remote=remote)
        assert (await ask(rig, "/v1/models", host="10.1.2.3:8080")).status == 200
        other = await ask(rig, "/v1/messages/batches", host="127.0.0.1:1")
        assert other.status == (404 if remote is None else 403)
        assert len(team.requests) == 1
        team.requests.clear()


_TOKENS = SessionTokens("the secret of all sessions, for tests")
_SESSION = _TOKENS.access(7, "a-session", datetime.now(UTC))
_RENEWAL = _TOKENS.refresh(7, "a-session", datetime.now(UTC), datetime.now(UTC) + timedelta(days=30))


@pytest.mark.parametrize(
    "key",
    [
        *("Authorization: Bearer llmp_abc", "Authorization: bearer  llmp_abc", "x-api-key: llmp_abc", "?key=llmp_abc"),
        *(f"Authorization: Bearer {_SESSION}", f"x-api-key: {_SESSION}", f"Authorization: Bearer {_RENEWAL}"),
        *(f"Authorization: Bearer {old_token()}", f"?key={_SESSION}"),
    ],
    ids=["key", "another bearer", "x-api-key", "query", "session", "session's x-api-key", "renewal", "old", "in query"],
)
@pytest.mark.parametrize("target", ["/v1/messages/batches", "/anthropic/127.0.0.1:{}/v1/files", "/v1beta/models"])
async def test_a_key_of_ours_goes_to_no_provider(rigs, team, target, key):
    """A client of the gateway that asks for more than it serves hears so; its key stays here."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    target = target.format(rig.fake.port)
    answer = await ask(rig, target + key) if key.startswith("?") else await ask(rig, target, key)
    assert answer.status == 404 and answer.get(b"x-llm-proxy-error") == b"not_served"
    assert not rig.fake.requests and await rig.exchanges() == []
    theirs = await ask(
        rig, f"/anthropic/127.0.0.1:{rig.fake.port}/v1/messages", "x-api-key: sk-x", method="POST", body=b"{}"
    )
    assert theirs.get(b"x-llm-proxy-error") == b"" and rig.fake.requests


@pytest.mark.parametrize("key", ["Authorization: Bearer llmp_abc", "x-api-key: llmp_abc"])
async def test_where_there_is_no_gateway_its_keys_still_go_to_no_provider(rigs, key):
    """As in safe mode. Another machine's gateway, which is named, may well be called through us."""
    rig = await rigs()
    for target in ("/v1/messages", "/v1/chat/completions", "/openai/api.openai.com/v1/responses"):
        answer = await ask(rig, target, key, method="POST", body=b"{}")
        assert answer.status == 404 and answer.get(b"x-llm-proxy-error") == b"not_served"
    theirs = await ask(rig, f"/anthropic/127.0.0.1:{rig.fake.port}/v1/messages", key, method="POST", body=b"{}")
    assert theirs.get(b"x-llm-proxy-error") == b"" and len(rig.fake.requests) == 1


# --- bodies, streams, ends


async def test_streams_come_at_once_and_who_leaves_ends_them(rigs, team):
    """Each event is out before the next is written, and a client that goes is told at once."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    client = rig.client()
    await client.send(asked("/manage/events"))
    for number in range(3):
        await client.until(b"data: %d\n\n" % number)
        team.next_event.set()
    await client.until(b"data: 3\n\n")
    assert rig.proxy.gateway.open == 1
    client.close()
    async with asyncio.timeout(30):
        await team.left.wait()
    await rig.until(lambda: rig.proxy.gateway.open == 0)


async def test_an_upload_waits_for_who_reads_it(rigs, tmp_path):
    """30 MB to a gateway that reads nothing stay with the client, then arrive whole; answers the same way back."""
    reading_on, path = asyncio.Event(), str(tmp_path / "g.sock")
    sizes = []

    async def slow(reading, writing):
        await reading.readuntil(b"\r\n\r\n")
        await reading_on.wait()
        sizes.append(len(await reading.readexactly(30_000_000)))
        writing.write(b"HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n" + bytes(30_000_000))
        with contextlib.suppress(ConnectionError):
            await writing.drain()
        writing.close()

    server = await asyncio.start_unix_server(slow, path)
    rig = await rigs(gateway=Gateway(path))
    client = rig.client()
    sent = 0

    async def upload():
        nonlocal sent
        await client.send(asked("/v1/embeddings", "Content-Length: 30000000", method="POST"))
        for _ in range(300):
            await client.send(bytes(100_000))
            sent += 100_000

    uploading = asyncio.create_task(upload())
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.2)
    assert sent < 15_000_000
    reading_on.set()
    await uploading
    answer = await client.message()
    assert sizes == [30_000_000] and len(answer.payload) == 30_000_000
    server.close()


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/chat/completions", "/auth/me"])
async def test_while_it_is_dead_callers_hear_when_to_come_again(rigs, team, target):
    """503 with Retry-After in the shape that Anthropic's and OpenAI's clients both read, traffic of others goes on, and once it lives it is served."""
    rig = await rigs(gateway=replace(team.config, patience=0.5))
    client = rig.client()
    answer = await ask(rig, target, method="POST", body=b"{}", client=client)
    assert answer.status == 503 and answer.get(b"retry-after") == b"1"
    assert answer.get(b"x-llm-proxy-error") == b"gateway_down"
    told = json.loads(answer.payload)
    assert told["error"]["code"] == "gateway_down" and told["error"]["type"] == "api_error" and told["type"] == "error"
    assert (await rig.exchange(b"{}")).complete
    await team.serve()
    assert (await ask(rig, target, method="POST", body=b"{}", client=client)).status == 200
    await team.close()
    assert (await ask(rig, target, method="POST", body=b"{}", client=client)).status == 503
    assert rig.core.metrics.faults == 0


async def test_a_full_queue_is_no_death(rigs, tmp_path):
    """More connections at once than the gateway's queue has places for: they wait, and each is served."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.bind(str(tmp_path / "g.sock"))
    link.listen(2)
    link.setblocking(False)
    rig = await rigs(gateway=Gateway(str(tmp_path / "g.sock")))
    asking = [asyncio.create_task(ask(rig, "/v1/models")) for _ in range(30)]
    await rig.until(lambda: rig.proxy.gateway.open == 30)

    async def answer(reading, writing):
        await reading.readuntil(b"\r\n\r\n")
        writing.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writing.drain()
        writing.close()

    server = await asyncio.start_unix_server(answer, sock=link)
    assert {one.status for one in await asyncio.gather(*asking)} == {200}
    server.close()


async def test_a_stop_waits_for_its_streams(rigs, team):
    """They are drained like recorded calls: to their end where they come to it, and cut at the limit."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    client = rig.client()
    await client.send(asked("/manage/events"))
    await client.until(b"data: 0\n\n")
    draining = asyncio.create_task(rig.proxy.drain(20))
    for number in range(1, 100):
        team.next_event.set()
        await client.until(b"data: %d\n\n" % number)
        assert not draining.done()
    team.next_event.set()
    answer = await client.message()
    assert answer.complete and answer.payload.endswith(b"data: 99\n\n")
    async with asyncio.timeout(15):
        assert await draining == 0


async def test_before_a_stop_each_answer_is_its_connections_last(rigs, team):
    """A balancer that keeps connections is told so, by an answer of the gateway like by any other."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    client = rig.client()
    for ends in (False, True):
        await client.send(asked("/health/ready"))
        answer = await client.message()
        assert (b"\r\nconnection: close\r\n" in answer.head.lower()) is ends, answer.head
        rig.proxy.end_connections()
    await client.to_the_end()
    assert client.ended == "fin"


async def test_a_stop_cuts_them_at_its_limit(rigs, team):
    """A stream without an end is broken off, which looks like no end; nothing waits any longer."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    client = rig.client()
    await client.send(asked("/manage/events"))
    await client.until(b"data: 0\n\n")
    began = time.monotonic()
    assert await rig.proxy.drain(0.3) == 1
    assert 0.25 < time.monotonic() - began < 5
    await client.to_the_end()
    assert client.ended == "rst"


async def test_silence_has_the_limits_of_all(rigs, tmp_path):
    """A gateway that never answers costs its caller no more time than a provider would."""
    path = str(tmp_path / "g.sock")

    async def mute(reading, writing):
        with contextlib.suppress(ConnectionError):
            await reading.read()
        writing.close()

    server = await asyncio.start_unix_server(mute, path)
    rig = await rigs(gateway=Gateway(path), header_timeout=0.3)
    answer = await ask(rig, "/v1/models")
    assert answer.status == 504 and answer.get(b"x-llm-proxy-error") == b"upstream_timeout"
    server.close()
