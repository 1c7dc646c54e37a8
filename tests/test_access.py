"""Web pages cannot use the proxy, whatever they try; programs can, whatever they send."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import shutil
import urllib.request

import anthropic
import openai
import pytest

from tests.rig import Message, Rig, StartRig

WEBVIEW = "vscode-webview://1abc"
# {port} is the proxy's own.
ORIGINS = {
    None: True,
    "http://127.0.0.1:{port}": True,
    "HTTP://127.0.0.1:{port}": True,
    "https://127.0.0.1:{port}": False,
    "https://evil.example": False,
    "null": False,
    "http://127.0.0.1.evil.com": False,
    "http://127.0.0.1.evil.com:{port}": False,
    "http://localhost.evil.com:{port}": False,
    "http://127.evil.com": False,
    "http://localhost:1": False,
    "http://localhost:{port}": False,  # another site than the one that Host names
    "http://127.0.0.1": False,
    "http://127.0.0.1:{port}.evil.com": False,
    "http://evil.com#http://127.0.0.1:{port}": False,
    WEBVIEW: False,
}
SITES = {
    None: True,
    "none": True,
    "same-origin": True,
    "same-site": False,
    "cross-site": False,
    "None": False,
    "": False,
}
METHODS = {
    "GET": "",
    "POST": "Content-Length: 2\r\nContent-Type: text/plain\r\n",
    "OPTIONS": "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-api-key\r\n",
    "GET ws": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
}
ROUTES = ("/openai/127.0.0.1:{upstream}/v1/responses", "/v1/messages", "/health", "/health/sinks", "/metrics")


async def ask(rig: Rig, route: str, method: str = "GET", host: str = "127.0.0.1:{port}", fields: str = "") -> Message:
    """One request on a connection of its own."""
    name, more = method.split(" ")[0], METHODS[method]
    lines = f"{name} {route} HTTP/1.1\r\nHost: {host}\r\n{more}{fields}\r\n{'{}' if 'Length' in more else ''}"
    wire = rig.client()
    await wire.send(lines.format("{}", port=rig.port, upstream=rig.fake.port).encode("latin-1"))
    head = await wire.until(b"\r\n\r\n")
    upgraded = head.startswith(b"HTTP/1.1 101")
    message = Message(head, b"", b"", [], True) if upgraded else await wire.message()
    wire.close()
    return message


def refused(answer: Message, word: str) -> bool:
    """Whether it is our 403, with JSON that names what was wrong."""
    if answer.status != 403:
        return False
    body = json.loads(answer.payload)
    assert answer.get(b"x-llm-proxy-error") == b"not_allowed"
    assert body["error"]["code"] == "not_allowed" and word in body["error"]["message"], body
    return True


@pytest.mark.parametrize("route", ROUTES)
async def test_no_page_of_another_site_is_served(rigs: StartRig, route: str) -> None:
    """Every mix of Origin, Sec-Fetch-Site and method: refused ones reach no upstream, and CORS is never granted."""
    rig = await rigs(environment={"HTTPS_PROXY": "http://127.0.0.1:9"})  # so that bare paths stay in the house
    wrong = []
    for (origin, good_origin), (site, good_site), method in itertools.product(ORIGINS.items(), SITES.items(), METHODS):
        fields = "" if origin is None else f"Origin: {origin}\r\n"
        fields += "" if site is None else f"Sec-Fetch-Site: {site}\r\n"
        before = rig.fake.counts.requests
        answer = await ask(rig, route, method, fields=fields)
        served = good_origin and good_site
        hits = rig.fake.counts.requests - before
        if (
            refused(answer, "Sec-Fetch-Site" if good_origin else "Origin") is served
            or hits != (served and "upstream" in route)
            or b"access-control-" in answer.head.lower()
        ):
            wrong.append((origin, site, method, answer.head, hits))
    assert not wrong, wrong[:3]


async def test_a_listed_origin_is_served(rigs: StartRig) -> None:
    """A webview is another site by its nature: naming it in the settings is enough; its neighbours stay out."""
    rig = await rigs(origins=(WEBVIEW,))
    asked = {WEBVIEW: 1, WEBVIEW.upper(): 1, f"{WEBVIEW}d": 0, "vscode-webview://": 0}
    for site, method, (origin, served) in itertools.product(SITES, METHODS, asked.items()):
        fields = "" if site is None else f"Sec-Fetch-Site: {site}\r\n"
        before = rig.fake.counts.requests
        answer = await ask(rig, ROUTES[0], method, fields=f"{fields}Origin: {origin}\r\n")
        assert refused(answer, "Origin") is not bool(served), (origin, site, method, answer.head)
        assert rig.fake.counts.requests - before == served


async def test_one_good_field_does_not_outweigh_a_bad_one(rigs: StartRig) -> None:
    """Two Origins or two Sec-Fetch-Sites, in either order: the worse one counts."""
    rig = await rigs(origins=(WEBVIEW,))
    own = "Origin: http://127.0.0.1:{port}\r\n"
    for fields in (
        own + "Origin: https://evil.example\r\n",
        "Origin: https://evil.example\r\n" + own,
        f"Origin: {WEBVIEW}\r\nOrigin: null\r\n",
        "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Site: none\r\n",
        "Sec-Fetch-Site: cross-site\r\n" + own,
    ):
        assert (await ask(rig, ROUTES[0], fields=fields)).status == 403, fields
    assert rig.fake.counts.requests == 0


BAD_HOSTS = (
    "evil.com",
    "evil.com:{port}",
    "a.evil.com:{port}",
    "127.0.0.1.nip.io:{port}",
    "127.0.0.1:{port}@evil.com",
    "evil.com@127.0.0.1:{port}",
    "localhost.:{port}",
    "localhost.evil.com",
    "foo.localhost:{port}",
    "127.1:{port}",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.0.0.01",
    "0.0.0.0:{port}",
    "[::]:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "[::ffff:7f00:1]",
    "[::1%25lo]",
    "[::1%lo]:{port}",
    "[::1",
    "::1",
    "a@b",
    "localhost/../x",
    "localhost?x",
    "localhost:{port}x",
    "localhost:",
    "localhost:0",
    "localhost:99999",
    "localhost, evil.com",
    "127.0.0.1:{port} evil.com",
    "192.168.1.5:{port}",
    "\xff",
    "xn--localhost-",
    "proxy.example.org",
)
GOOD_HOSTS = (
    "localhost",
    "LOCALHOST:{port}",
    "localhost:1",
    "127.0.0.1",
    "127.0.0.1:{port}",
    "127.0.0.2:5",
    "[::1]:{port}",
    "[::1]",
)


@pytest.mark.parametrize("route", [ROUTES[0], "/health"])
async def test_only_names_of_this_machine_are_good_hosts(rig: Rig, route: str) -> None:
    """A page that re-points its own name at us shows in Host, and is not served."""
    for host in BAD_HOSTS:
        assert refused(await ask(rig, route, host=host), "Host"), host
    assert rig.fake.counts.requests == 0
    for host in GOOD_HOSTS:
        assert (await ask(rig, route, host=host)).status in (200, 404), host
    assert rig.fake.counts.requests == (len(GOOD_HOSTS) if "upstream" in route else 0)


async def test_a_listed_host_is_good(rigs: StartRig) -> None:
    """`proxy.lan` with any port, `other.lan:8000` with that one, and nothing near them."""
    rig = await rigs(hosts=("proxy.lan", "other.lan:8000"))
    for host, good in {
        "proxy.lan": True,
        "Proxy.LAN:99": True,
        "other.lan:8000": True,
        "other.lan": False,
        "other.lan:8001": False,
        "x.proxy.lan": False,
        "proxy.lan.evil.com": False,
    }.items():
        assert refused(await ask(rig, "/health", host=host), "Host") is not good, host


@pytest.mark.parametrize(
    "head",
    [
        "GET {route} HTTP/1.1\r\n\r\n",
        "GET {route} HTTP/1.1\r\nHost:\r\n\r\n",
        "GET {route} HTTP/1.0\r\n\r\n",
        "GET {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nhost: evil.com\r\n\r\n",
        "GET http://evil.com{route} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET http://x@127.0.0.1{route} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET http://{route} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET https://127.0.0.1{route} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "CONNECT 127.0.0.1:{upstream} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
)
async def test_requests_that_do_not_say_their_host_are_not_served(rig: Rig, head: str) -> None:
    """None, an empty one, two, or another one in the request line."""
    wire = rig.client()
    route = ROUTES[0].format(upstream=rig.fake.port)
    await wire.send(head.format(route=route, upstream=rig.fake.port).encode())
    assert (await wire.message()).status in (400, 403, 405)
    assert rig.fake.counts.requests == 0


async def test_the_refusal_is_logged_at_most_once_a_second(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A page that tries in a loop does not fill the log; all are counted."""
    for _ in range(20):
        await ask(rig, "/health", host="evil.com")
    assert 1 <= len([one for one in caplog.records if "refused a request" in one.message]) <= 3
    assert rig.core.metrics.answers["not_allowed"] == 20


# -- programs ------------------------------------------------------------------------------------------------------


async def _run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode().strip()


async def test_curl_is_served(rig: Rig) -> None:
    """By address and by name."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{rig.port}/openai/127.0.0.1:{rig.fake.port}/v1/models"
        assert await _run("curl", "-4", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", url) == "200"


async def test_node_is_served(rig: Rig) -> None:
    """Its fetch sends Sec-Fetch-Mode as a browser does, but is none."""
    if shutil.which("node") is None:
        pytest.skip("no node here")
    url = f"http://127.0.0.1:{rig.port}/openai/127.0.0.1:{rig.fake.port}/v1/models"
    assert await _run("node", "-e", f"fetch({url!r}).then(answer => console.log(answer.status))") == "200"
    assert rig.fake.requests[-1].header("sec-fetch-mode") == "cors"


async def test_python_is_served(rig: Rig) -> None:
    """http.client and urllib."""
    path = f"/openai/127.0.0.1:{rig.fake.port}/v1/models"

    def plain() -> int:
        link = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=5)
        try:
            link.request("GET", path)
            return link.getresponse().status
        finally:
            link.close()

    def lib() -> int:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{rig.port}{path}", timeout=5) as answer:
            return int(answer.status)

    assert [await asyncio.to_thread(plain), await asyncio.to_thread(lib)] == [200, 200]


async def test_the_sdks_are_served(rig: Rig) -> None:
    """The official ones, as a user configures them."""
    base = f"http://127.0.0.1:{rig.port}"
    async with anthropic.AsyncAnthropic(
        api_key="k", base_url=f"{base}/anthropic/127.0.0.1:{rig.fake.port}", max_retries=0
    ) as client:
        message = await client.messages.create(
            model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        )
        assert message.content
    async with openai.AsyncOpenAI(
        api_key="k", base_url=f"{base}/openai/127.0.0.1:{rig.fake.port}/v1", max_retries=0
    ) as other:
        answer = await other.responses.create(model="gpt-x", input="hi")
        assert answer.output_text
