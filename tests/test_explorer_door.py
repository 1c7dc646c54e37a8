"""`/llm-proxy/…` on the proxy's port: carried to the explorer's socket, unrecorded, live, and in nobody's way."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time

import pytest
import pytest_asyncio
from aiohttp import web

from llm_proxy import unix
from llm_proxy.proxy import explorer
from llm_proxy.proxy.authority import parse_base
from llm_proxy.proxy.explorer import Explorer
from tests.rig import Wire


class Site:
    """A stand-in for the explorer's process: says what it was asked, and streams."""

    def __init__(self, path):
        self.path = str(path)
        self.starts = 0
        self.requests = []
        self.next_event = asyncio.Event()
        self.left = asyncio.Event()
        self._runner = None

    @property
    def config(self):
        return Explorer(unix.address(self.path)[0], self.start)

    def start(self):
        self.starts += 1

    async def serve(self):
        app = web.Application()
        app.router.add_get("/llm-proxy/events", self._events)
        app.router.add_route("*", "/{any:.*}", self._echo)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.SockSite(self._runner, unix.bind(self.path)).start()

    async def close(self):
        if self._runner is not None:
            await self._runner.cleanup()

    async def _echo(self, request):
        self.requests.append(request)
        return web.json_response(
            {"target": request.raw_path, "host": request.host, "cookie": request.headers.get("Cookie")}
        )

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


@pytest_asyncio.fixture
async def site(tmp_path):
    made = Site(tmp_path / "x.sock")
    yield made
    await made.close()


def get(target="/llm-proxy/", *more, method="GET", host="127.0.0.1:1"):
    return "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *more, "", "")).encode()


async def ask(rig, *args, **kwargs):
    client = rig.client()
    await client.send(get(*args, **kwargs))
    return await client.message(to_head=kwargs.get("method") == "HEAD")


async def test_it_is_carried_and_leaves_no_trace(rigs, site):
    """Target, host and cookie arrive as they were; no journal, no counter and no memory of heads knows of it."""
    await site.serve()
    rig = await rigs(explorer=site.config)
    answer = await ask(rig, "/llm-proxy/a%2Fb?q=%20x&token=t", "Cookie: a=b; c=d", host="LOCALHOST:8080")
    assert answer.status == 200 and answer.complete
    assert json.loads(answer.payload) == {
        "target": "/llm-proxy/a%2Fb?q=%20x&token=t",
        "host": "LOCALHOST:8080",
        "cookie": "a=b; c=d",
    }
    head = await ask(rig, "/llm-proxy/", method="HEAD")
    assert head.status == 200 and not head.payload
    assert await rig.exchanges() == []
    metrics = (await ask(rig, "/metrics")).payload.decode()
    assert "llm_proxy_exchanges_total{" not in metrics and "llm_proxy_upstream_connects_total 0" in metrics
    assert "llm_proxy_record_lost_exchanges_total 0" in metrics
    assert not rig.core.requests._known and not rig.core.relays


async def test_connections_are_kept_on_both_sides(rigs, site):
    """A page and what it loads come over one connection; behind it an exchange of another kind is recorded as ever."""
    await site.serve()
    rig = await rigs(explorer=site.config)
    client = rig.client()
    for number in range(3):
        await client.send(get(f"/llm-proxy/{number}"))
        assert json.loads((await client.message()).payload)["target"] == f"/llm-proxy/{number}"
    assert len({request.transport for request in site.requests}) == 1
    await client.send(rig.request(b"{}"))
    assert (await client.message()).complete
    assert (await rig.recorded()).opening.head.startswith(b"POST /v1/messages ")


async def test_streams_come_at_once_and_may_be_silent(rigs, site):
    """Each event is out before the next is written, and silence longer than every idle limit cuts nothing."""
    await site.serve()
    rig = await rigs(explorer=site.config, idle_timeout=0.3, header_timeout=0.3, client_idle_timeout=0.3)
    client = rig.client()
    await client.send(get("/llm-proxy/events"))
    for number in range(3):
        await client.until(b"data: %d\n\n" % number)
        site.next_event.set()
    await asyncio.sleep(2.2)  # two sweeps with every limit passed: nothing is to be awaited but nothing
    site.next_event.set()
    await client.until(b"data: 4\n\n")
    assert client.ended == "open"


async def test_a_visitor_who_leaves_ends_the_stream(rigs, site):
    """The explorer hears of it at once, although nothing is to be sent."""
    await site.serve()
    rig = await rigs(explorer=site.config)
    client = rig.client()
    await client.send(get("/llm-proxy/events"))
    await client.until(b"data: 0\n\n")
    assert rig.proxy.explorer.open == 1
    client.close()
    async with asyncio.timeout(30):
        await site.left.wait()
    assert rig.proxy.explorer.open == 0


async def test_the_first_visit_starts_it_and_waits(rigs, site):
    """The process needs a moment; the first page comes all the same."""
    rig = await rigs(explorer=site.config)
    client = rig.client()
    await client.send(get())
    await rig.until(lambda: site.starts)
    await asyncio.sleep(0.2)
    assert not client.received
    await site.serve()
    assert (await client.message()).status == 200


async def test_while_it_is_not_there_a_page_says_so(rigs, site, monkeypatch):
    """503, when to come again, and a page that does so by itself; a script gets JSON. Then it comes."""
    monkeypatch.setattr(explorer, "START_PATIENCE", 0.1)
    rig = await rigs(explorer=site.config)
    client = rig.client()
    await client.send(get())
    answer = await client.message()
    assert answer.status == 503 and answer.get(b"retry-after") == b"1"
    assert answer.get(b"refresh") == b"1" and b"starting" in answer.payload
    assert b"unsafe-inline" not in answer.head and b"default-src 'none'" in answer.get(b"content-security-policy")
    told = await ask(rig, "/llm-proxy/api/sessions")
    assert told.status == 503 and json.loads(told.payload)["error"]["code"] == "explorer_starting"
    await site.serve()
    await client.send(get())
    assert (await client.message()).status == 200


async def test_where_there_is_none_it_says_why(rigs):
    """Safe mode carries calls and nothing else."""
    rig = await rigs(explorer=Explorer(unavailable="safe mode <b>"))
    answer = await ask(rig)
    assert answer.status == 503 and b"Safe mode &lt;b&gt;." in answer.payload and not answer.get(b"refresh")
    assert (await ask(await rigs())).status == 404


@pytest.mark.parametrize(
    ("target", "accept", "taken"),
    [
        ("/", "text/html,application/xhtml+xml", True),
        ("/", "*/*", False),
        ("/llm-proxy", "*/*", True),
        ("/llm-proxy?x", "*/*", True),
        ("/llm-proxyx/", "*/*", False),
        ("/LLM-PROXY/", "*/*", False),
        ("/v1/models/llm-proxy/", "*/*", False),
    ],
)
async def test_what_is_the_explorers(rigs, site, target, accept, taken):
    """Its own paths, and a browser's `/`; nothing of the providers'."""
    await site.serve()
    rig = await rigs(explorer=site.config, bases={"openai": parse_base("http://127.0.0.1:1")})
    client = rig.client()
    await client.send(get(target, f"Accept: {accept}"))
    answer = await client.message()
    assert bool(site.requests) is taken
    if taken:
        assert json.loads(answer.payload)["target"] == target
    else:
        assert answer.status == (502 if target.startswith("/v1") else 404), answer.payload


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"])
async def test_only_safe_methods_pass(rigs, site, method):
    """405 with what is allowed; the explorer hears nothing."""
    await site.serve()
    rig = await rigs(explorer=site.config)
    answer = await ask(rig, method=method)
    assert answer.status == 405 and answer.get(b"allow") == b"GET, HEAD" and not site.requests


@pytest.mark.parametrize(
    ("more", "host"),
    [
        (("Sec-Fetch-Site: cross-site",), "127.0.0.1:1"),
        (("Sec-Fetch-Site: same-site",), "127.0.0.1:1"),
        (("Origin: https://evil.example",), "127.0.0.1:1"),
        (("Origin: null",), "127.0.0.1:1"),
        (("Origin: http://127.0.0.1:2",), "127.0.0.1:1"),
        ((), "evil.example"),
        ((), "127.0.0.1.evil.example:1"),
    ],
)
async def test_other_sites_get_a_page_without_data(rigs, site, more, host):
    """Refused before it is carried, event streams too; what a person sees is a page that says why."""
    await site.serve()
    rig = await rigs(explorer=site.config)
    for target in ("/llm-proxy/sessions/x", "/llm-proxy/events"):
        answer = await ask(rig, target, *more, host=host)
        assert answer.status == 403 and answer.get(b"content-type").startswith(b"text/html")
    assert not site.requests and not site.left.is_set()


async def test_a_live_page_holds_up_no_stop(rigs, site):
    """The drain does not wait for it, and it is broken off, so that the browser connects again."""
    await site.serve()
    rig = await rigs(explorer=site.config)
    client = rig.client()
    await client.send(get("/llm-proxy/events"))
    await client.until(b"data: 0\n\n")
    began = time.monotonic()
    assert await rig.proxy.drain(10) == 0
    await rig.proxy.close()
    assert time.monotonic() - began < 5  # a wide guard: the drain may take 10 s
    await client.to_the_end()
    assert client.ended == "rst"


async def test_an_explorer_that_breaks_is_told_and_forgotten(rigs, tmp_path):
    """A connection that ends before the answer gives a page that asks again; nothing else notices."""
    path = str(tmp_path / "x.sock")
    server = await asyncio.start_unix_server(lambda reading, writing: writing.close(), path)
    rig = await rigs(explorer=Explorer(path))
    answer = await ask(rig)
    assert answer.status == 502 and answer.get(b"refresh") == b"1"
    server.close()
    assert rig.core.metrics.faults == 0 and (await rig.exchange(b"{}")).complete


_KNOCK = """
import os, socket, sys
"".encode("idna")  # imported now: the interpreter may lie where the other user cannot read
os.setuid(int(sys.argv[2]))
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
link.sendall(b"GET /llm-proxy/ HTTP/1.1\\r\\nHost: 127.0.0.1:1\\r\\nConnection: close\\r\\n\\r\\n")
print(link.makefile("rb").readline().decode())
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux, and root to be somebody else")
async def test_another_user_of_this_machine_is_turned_away(rigs, site):
    """Whatever session he may have come by: a cookie for 127.0.0.1 goes to every port there."""
    await site.serve()
    rig = await rigs(explorer=site.config)

    def knock(user):
        command = [sys.executable, "-I", "-c", _KNOCK, str(rig.port), str(user)]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    assert " 403 " in await asyncio.to_thread(knock, 65534)
    assert not site.requests
    assert " 200 " in await asyncio.to_thread(knock, 0)


async def test_a_state_folder_with_a_long_path(rigs, tmp_path):
    """The address of a Unix socket has room for 107 bytes; a home may be longer."""
    folder = tmp_path / ("long" * 30) / "state"
    folder.mkdir(parents=True)
    site = Site(folder / "explorer-8080.sock")
    await site.serve()
    rig = await rigs(explorer=site.config)
    assert (await ask(rig)).status == 200
    assert (folder / "explorer-8080.sock").stat().st_mode & 0o777 == 0o600
    await site.close()
    with pytest.raises(unix.PathTooLong):
        unix.address(site.path, proc="/nonexistent")


async def test_a_flood_of_bytes_waits_for_who_reads(rigs, tmp_path):
    """A page of 30 MB to a visitor who reads nothing stays in the explorer's socket, not in our memory."""
    sent = 0

    async def pour(reading, writing):
        nonlocal sent
        await reading.readuntil(b"\r\n\r\n")
        writing.write(b"HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(300):
                writing.write(bytes(100_000))
                await writing.drain()
                sent += 100_000
        writing.close()

    path = str(tmp_path / "x.sock")
    server = await asyncio.start_unix_server(pour, path)
    rig = await rigs(explorer=Explorer(path))
    client = rig.client(receive_buffer=4096)
    await client.send(get())
    await client.until(b"\r\n\r\n")
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 8_000_000
    answer = await client.message()
    assert len(answer.payload) == 30_000_000 and isinstance(client, Wire)
    server.close()
