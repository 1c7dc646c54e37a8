"""The explorer opens for its user alone: each test is an attack, tried on it directly and through the proxy."""

import asyncio
import contextlib
import json
import os
import re
import socket
import time
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from llm_proxy import unix
from llm_proxy.explorer import guard
from llm_proxy.explorer.guard import Keys
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.serving import serve
from llm_proxy.explorer.site import application
from llm_proxy.index.ingest import Indexer
from llm_proxy.proxy.explorer import Explorer
from llm_proxy.web import safety
from tests.rig import Rig, Wire

PAGE = "/llm-proxy/"
JSON = "/llm-proxy/api/sessions"
CANARY = "a word that stands in the record"


class House:
    """An explorer, reached by itself or through a proxy. `ask` gives (status, headers with lower-case names, body)."""

    def __init__(self, state, port, host):
        self.state = state
        self.port = port
        self.host = host
        self.secret = guard.new_secret(state)

    @property
    def keys(self):
        return Keys(self.secret)

    def cookie(self, value=None):
        return f"Cookie: {self.keys.cookie}={self.keys.session(time.time()) if value is None else value}"

    def token(self, lasts=60.0):
        return guard.new_token(self.state, time.time(), lasts)

    async def ask(self, target, *more, method="GET", host=None):
        wire = Wire.to(self.port)
        lines = (f"{method} {target} HTTP/1.1", f"Host: {host or self.host}", *more, "Connection: close", "", "")
        await wire.send("\r\n".join(lines).encode("utf-8", "surrogateescape"))
        message = await wire.message(to_head=method == "HEAD")
        wire.close()
        lines = message.head.decode().split("\r\n")[1:-2]
        return (
            message.status,
            {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)},
            message.payload.decode(),
        )


@pytest.fixture
def options(tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    logs = tmp_path / "logs"
    logs.mkdir()
    Indexer(tmp_path / "index.db", logs).close()
    return Options(index=str(tmp_path / "index.db"), logs=str(logs), state=str(state), hosts=("llm.home.example",))


@pytest_asyncio.fixture(params=["alone", "through the proxy"])
async def house(request, options, tmp_path):
    path = str(tmp_path / "x.sock")
    app, stop = application(options), asyncio.Event()
    app.router.add_get("/llm-proxy/canary", _canary)
    app.router.add_get("/llm-proxy/events", _events)
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "alone":
            link = socket.create_server(("127.0.0.1", 0))
            port = link.getsockname()[1]
        else:
            link = unix.bind(path)
            config = {"explorer": Explorer(path), "hosts": options.hosts}
            port = (await stack.enter_async_context(Rig(tmp_path / "journal", None, 1 << 20, config))).port
        serving = asyncio.create_task(serve(app, [link], stop))
        yield House(Path(options.state), port, f"127.0.0.1:{port}")
        stop.set()
        await serving


async def _canary(request):
    return web.Response(text=CANARY)


async def _events(request):
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    await stream.write(f"data: {CANARY}\n\n".encode())
    await asyncio.sleep(60)
    return stream


async def test_the_user_gets_in_by_each_of_three_ways(house):
    """Secret, token, session: without one of them nothing would be shown below either."""
    assert (await house.ask("/llm-proxy/canary", f"Authorization: Bearer {house.secret}"))[2] == CANARY
    assert (await house.ask("/llm-proxy/canary", house.cookie()))[2] == CANARY
    status, headers, body = await house.ask(f"/llm-proxy/canary?token={house.token()}&a=%2F%26")
    assert (status, headers["location"], body) == (303, "/llm-proxy/canary?a=/%26", "")
    cookie, *rules = headers["set-cookie"].split("; ")
    assert sorted(rules) == ["HttpOnly", f"Max-Age={guard.SESSION}", "Path=/llm-proxy", "SameSite=Strict"]
    assert (await house.ask("/llm-proxy/canary", f"Cookie: {cookie}"))[2] == CANARY


async def test_a_token_works_once(house):
    """Whoever reads it in a list of processes or in a history later has nothing."""
    token = house.token()
    assert (await house.ask(f"{PAGE}?token={token}"))[0] == 303
    status, headers, body = await house.ask(f"{PAGE}?token={token}")
    assert status == 401 and "set-cookie" not in headers and "llm-proxy explore" in body
    assert not (house.state / guard.TOKEN).exists()


async def test_of_many_who_use_a_token_at_once_one_gets_in(house):
    """The file's removal decides."""
    target = f"{PAGE}?token={house.token()}"
    answers = await asyncio.gather(*(house.ask(target) for _ in range(20)))
    assert sorted(status for status, _, _ in answers) == [303] + [401] * 19


async def test_tokens_expire_and_are_replaced(house):
    """A minute later it is worthless; a new one ends the one before."""
    assert (await house.ask(f"{PAGE}?token={house.token(lasts=-1)}"))[0] == 401
    first, second = house.token(), house.token()
    assert (await house.ask(f"{PAGE}?token={first}"))[0] == 401
    assert (await house.ask(f"{PAGE}?token={second}"))[0] == 303


@pytest.mark.parametrize("token", ["", "x", "..%2Fsecret", "%00", "%ff", "é", "a" * 3000, "{digest}", "{secret}"])
async def test_a_wrong_token_opens_nothing_and_uses_none_up(house, token):
    """What stands in the file is a digest: it opens nothing either, nor does the secret in an address."""
    right = house.token()
    digest = (house.state / guard.TOKEN).read_text().split()[0]
    assert right not in (house.state / guard.TOKEN).read_text()
    status, headers, _ = await house.ask(f"{PAGE}?token={token.format(digest=digest, secret=house.secret)}")
    assert status in (400, 401) and "set-cookie" not in headers
    assert (await house.ask(f"{PAGE}?token={right}"))[0] == 303


async def test_looking_ahead_does_not_use_a_token_up(house):
    """Browsers prefetch, link checkers send HEAD."""
    token = house.token()
    for method, more in (("HEAD", ()), ("GET", ("Sec-Purpose: prefetch;prerender",)), ("GET", ("Purpose: prefetch",))):
        assert (await house.ask(f"{PAGE}?token={token}", *more, method=method))[0] == 401
    assert (await house.ask(f"{PAGE}?token={token}"))[0] == 303


async def test_a_token_in_an_address_leads_nowhere_else(house):
    """The address without the token stays on this host, whatever its path."""
    for target in ("//evil.example/?token={}", "/llm-proxy/..//evil.example?token={}", "/?token={}"):
        status, headers, _ = await house.ask(target.format(house.token()))
        assert status in (303, 307, 400, 404) and headers.get("location", PAGE).startswith("/llm-proxy/")


def _cookies(house):
    now, keys, other = time.time(), house.keys, Keys("0" * 64)
    good = keys.session(now)
    until, nonce, sign = good.split(".")
    return {
        "empty": "",
        "expired": keys.session(now - guard.SESSION - 1),
        "of another secret": other.session(now),
        "later end, same signature": f"{int(until) + 1}.{nonce}.{sign}",
        "other nonce": f"{until}.{nonce[::-1]}x.{sign}",
        "no signature": f"{until}.{nonce}",
        "signature alone": sign,
        "cut signature": good[:-1],
        "longer signature": good + "0",
        "capitals": good.upper(),
        "the secret": house.secret,
        "not ASCII": "é" * 20,
        "dots": "...",
        "huge": "9" * 4000 + "." + sign,
    }


async def test_forged_and_expired_sessions_open_nothing(house):
    """Only what we signed, unchanged and in time."""
    for name, value in _cookies(house).items():
        status, headers, body = await house.ask("/llm-proxy/canary", house.cookie(value))
        assert status == 401 and CANARY not in body and "set-cookie" not in headers, name
    foreign = Keys("0" * 64)
    status, _, _ = await house.ask("/llm-proxy/canary", f"Cookie: {foreign.cookie}={house.keys.session(time.time())}")
    assert status == 401


async def test_a_cookie_set_by_another_port_keeps_nobody_out(house):
    """Cookies do not know ports: what somebody else has set under our name stands beside ours."""
    good = house.cookie()
    for line in (f"{good}; {good[8:-3]}xxx", f"Cookie: {house.keys.cookie}=; other=1; {good[8:]}"):
        assert (await house.ask("/llm-proxy/canary", line))[2] == CANARY


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Bearer {wrong}", "Bearer {short}", "Basic {right}", "{right}", "Bearer é{right}"]
)
async def test_a_wrong_secret_opens_nothing(house, header):
    """Also beside a good session: whoever sends a credential is judged by it."""
    right = house.secret
    sent = header.format(right=right, wrong=right[::-1], short=right[:-1])
    for more in ((), (house.cookie(),)):
        status, headers, body = await house.ask(JSON, f"Authorization: {sent}", *more)
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert json.loads(body)["error"] and house.secret not in body


async def test_without_the_secret_all_sessions_end(house):
    """Deleting or replacing it is how a user takes all sessions back."""
    cookie = house.cookie()
    assert (await house.ask("/llm-proxy/canary", cookie))[0] == 200
    (house.state / "secret").unlink()
    assert (await house.ask("/llm-proxy/canary", cookie))[0] == 401
    assert (await house.ask(f"{PAGE}?token={house.token()}"))[0] == 401
    guard.new_secret(house.state)
    assert (await house.ask("/llm-proxy/canary", cookie))[0] == 401


@pytest.mark.parametrize("name", ["secret", guard.TOKEN])
async def test_files_that_are_not_ours_alone_count_for_nothing(house, name):
    """Readable by others, a link, a folder, a FIFO: who can write or read them could let anybody in."""
    file = house.state / name
    for spoil in (
        lambda: file.chmod(0o644),
        lambda: (file.rename(house.state / "moved"), file.symlink_to(house.state / "moved")),
        lambda: (file.unlink(), file.mkdir()),
        lambda: (file.unlink(), os.mkfifo(file, 0o600)),
        lambda: file.write_text("0" * 5000),
        lambda: file.write_bytes(b"\xff" * 64),
    ):
        house.secret = guard.new_secret(house.state)
        token = house.token()
        spoil()
        bearer = await house.ask(JSON, f"Authorization: Bearer {house.secret}")
        entered = await house.ask(f"{PAGE}?token={token}")
        assert (entered if name == guard.TOKEN else bearer)[0] == 401
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink()


@pytest.mark.parametrize(
    "target", [PAGE, "/llm-proxy/canary", "/llm-proxy/events", "/llm-proxy/nothing", JSON, "/llm-proxy/api/nothing"]
)
async def test_a_stranger_learns_nothing(house, target):
    """The same answer whether there is such a page or not, and nothing of the record in it."""
    status, headers, body = await house.ask(target)
    assert status == 401 and CANARY not in body and headers["cache-control"] == "no-store"
    if "/api/" in target:
        assert set(json.loads(body)) == {"error", "message"} and "llm-proxy explore" in body
    else:
        assert "<code>llm-proxy explore</code>" in body and str(house.state) not in body
    status, _, body = await house.ask("/nothing/of/ours?x=/llm-proxy/")
    assert status in (401, 404) and CANARY not in body


@pytest.mark.parametrize(
    "more",
    [
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Sec-Fetch-Site: none, cross-site",
        "Sec-Fetch-Site: ",
        "Origin: null",
        "Origin: http://evil.example",
        "Origin: http://127.0.0.1:1",
        "Origin: http://localhost:{port}",
        "Origin: {good}\r\nOrigin: http://evil.example",
    ],
)
async def test_pages_of_other_sites_get_nothing(house, more):
    """With the user's own session, as a browser would send it; event streams, images and scripts alike."""
    line = more.format(port=house.port, good=f"http://{house.host}")
    for target in (
        "/llm-proxy/canary",
        "/llm-proxy/events",
        "/llm-proxy/static/app.js",
        "/",
        f"{PAGE}?token={house.token()}",
    ):
        status, headers, body = await house.ask(target, line, house.cookie())
        assert status == 403 and CANARY not in body and "set-cookie" not in headers and "location" not in headers
    assert (house.state / guard.TOKEN).exists()


@pytest.mark.parametrize("more", ["Sec-Fetch-Site: none", "Sec-Fetch-Site: same-origin", "Origin: http://{host}"])
async def test_our_own_pages_get_everything(house, more):
    """What a browser says of an address that was typed, and of our own links and scripts."""
    assert (await house.ask("/llm-proxy/canary", more.format(host=house.host), house.cookie()))[2] == CANARY


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1@evil.example",
        "10.0.0.1",
        "0.0.0.0:{port}",
        "[::]:{port}",
        "[::ffff:127.0.0.1]",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "127.0.0.1:x",
        "other.llm.home.example",
    ],
)
async def test_names_of_others_are_not_served(house, host):
    """DNS rebinding: the browser takes evil.example for us, and only Host tells."""
    for target in ("/llm-proxy/canary", "/llm-proxy/events", f"{PAGE}?token={house.token()}"):
        status, headers, body = await house.ask(target, house.cookie(), host=host.format(port=house.port))
        assert status in (400, 403) and CANARY not in body and "set-cookie" not in headers


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:{port}",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]:{port}",
        "llm.home.example",
        "llm.home.example:444",
    ],
)
async def test_names_of_this_machine_are(house, host):
    """Any loopback name with any port, and what the configuration lists."""
    assert (await house.ask("/llm-proxy/canary", house.cookie(), host=host.format(port=house.port)))[2] == CANARY


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed(house, method):
    """Whoever sends it."""
    status, headers, _ = await house.ask("/llm-proxy/canary", house.cookie(), method=method)
    assert status == 405 and headers["allow"] == "GET, HEAD"


async def test_every_answer_says_what_browsers_must_keep_to(house):
    """Data, pages, errors, redirects, streams, files: a strict policy, no framing, no sniffing, no referrer, no cache."""
    for target in (
        "/llm-proxy/canary",
        "/llm-proxy/nothing",
        PAGE + "?n=x",
        JSON,
        "/",
        f"{PAGE}?token={house.token()}",
        "/llm-proxy/static/app.js",
    ):
        for more in ((house.cookie(),), ()):
            _, headers, _ = await house.ask(target, "Accept: text/html", *more)
            assert headers.items() >= {k.lower(): v for k, v in safety.HEADERS.items()}.items(), target
            static = "/static/" in target
            assert headers["cache-control"] == ("public, max-age=31536000, immutable" if static else "no-store")
            assert "access-control-allow-origin" not in headers
    assert "unsafe" not in safety.CSP and "default-src 'none'" in safety.CSP


async def test_no_token_and_no_secret_in_any_page(house, caplog):
    """Not in what is answered, and not in what is logged."""
    token = house.token()
    answers = [await house.ask(f"{target}?token={token}x") for target in (PAGE, JSON, "/llm-proxy/nothing")]
    answers.append(await house.ask(f"{PAGE}?token={token}"))
    for _, headers, body in answers:
        told = body + headers.get("location", "")
        assert token not in told and house.secret not in told
    assert token not in caplog.text and house.secret not in caplog.text


async def test_another_users_program_is_turned_away(options):
    """Stand-alone nobody else looks who connects; a session is a cookie for all ports of 127.0.0.1."""
    link, stop = socket.create_server(("127.0.0.1", 0)), asyncio.Event()
    serving = asyncio.create_task(serve(application(options, stranger=lambda link: True), [link], stop))
    port = link.getsockname()[1]
    house = House(Path(options.state), port, f"127.0.0.1:{port}")
    status, _, body = await house.ask(PAGE, house.cookie())
    assert status == 403 and "Another user" in body
    stop.set()
    await serving


def test_the_page_of_a_stranger_needs_no_session(options):
    """Its own style and icon are all it loads."""
    page = (Path(guard.__file__).parent / "templates/door.html").read_text()
    assert re.findall(r"static\('([^']+)'\)", page) == ["icon.svg", "style.css"] and "<script" not in page
