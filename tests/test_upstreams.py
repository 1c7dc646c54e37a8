"""Which upstreams may be reached, and how connections to them are made: names, addresses, loops, TLS, forward proxies."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.proxy.authority import Allowed, BadAuthority, Denied, check_address, parse_authority
from llm_proxy.proxy.dialler import DialFailed, Dialler, SockAddr, proxy_for
from llm_proxy.proxy.router import Route, Router
from llm_proxy.proxy.server import Proxy, ProxyConfig
from llm_proxy.wire.head import parse_request
from tests.rig import Message, Rig, StartRig, Wire

# -- the one spelling of a host ------------------------------------------------------------------------------------

GOOD = {
    "api.openai.com": ("api.openai.com", None),
    "API.OpenAI.com": ("api.openai.com", None),
    "api.openai.com:443": ("api.openai.com", 443),
    "h:1": ("h", 1),
    "h:65535": ("h", 65535),
    "localhost": ("localhost", None),
    "my_gpu-1.lan": ("my_gpu-1.lan", None),
    "xn--mnchen-3ya.de": ("xn--mnchen-3ya.de", None),
    "3com.com": ("3com.com", None),
    "1.2.3.com": ("1.2.3.com", None),
    "0xff.com": ("0xff.com", None),
    "1.2.3.4": ("1.2.3.4", None),
    "127.0.0.1:8080": ("127.0.0.1", 8080),
    "[::1]": ("::1", None),
    "[::1]:8080": ("::1", 8080),
    "[2001:DB8::A]:1": ("2001:db8::a", 1),
    "[::ffff:127.0.0.1]": ("::ffff:127.0.0.1", None),
    "a" * 63 + ".com": ("a" * 63 + ".com", None),
    ".".join(["a" * 49] * 5) + ".x": (".".join(["a" * 49] * 5) + ".x", None),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_host_is_read(text: str) -> None:
    """Lower-case, with its port; what it prints as reads the same again."""
    found = parse_authority(text)
    assert (found.host, found.port) == GOOD[text]
    assert parse_authority(str(found)) == found


BAD = (
    "", ":", ":80", ".", "..", "-", "a..b", ".a", "a.", "api.openai.com.", "localhost.", "-a", "a-", "a-.b", "_a", " a", "a ", "a b",
    "a\tb", "a\r\nb", "a\0b", "a/b", "a?b", "a#b", "a\\b", "a;b", "a,b", "a%b", "%61", "a%2eb", "a%00", "a@b", "@b", "a@", "a:b@c",
    "api.openai.com@127.0.0.1", "api.openai.com%40127.0.0.1", "a:80@b:80", "http://a", "//a", "*.a", "a*", "a'b", 'a"b', "a<b", "a|b",
    "a" * 64, "a" * 64 + ".com", ".".join(["a"] * 127) + ".a", "a" * 254,
    "127.1", "127.0.1", "127", "0", "1.2.3", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "0177.0.0.1", "017700000001",
    "127.0.0.01", "127.0.0.001", "1.2.3.4.5", "256.1.1.1", "1.2.3.256", "1.2.3.-1", "1.2.3.+4", "4294967295", "0x", "a.0x", "a.1", "a.0x1f",
    "127.0.0.1.", "127。0。0。1", "127．0．0．1", "１２７.0.0.1", "①.com", "münchen.de", "ßharp.de", "a\u200db", "ａ.com", "ℂ.com", "a\u3002b",
    "h:0", "h:00", "h:080", "h:65536", "h:99999", "h:100000", "h:+443", "h:-1", "h: 80", "h:80 ", "h:", "h:０443", "h:٤٤٣", "h:4_4", "h:0x50", "h:1:2",
    "h:80/", "[", "]", "[]", "[]:80", "[::1", "::1", "::1]:80", "[::1]80", "[::1]:", "[::1]:0", "[::1]:x", "[::1]]", "[[::1]]", "[::1%lo]",
    "[::1%25lo]", "[fe80::1%eth0]:80", "[1.2.3.4]", "[a]", "[::g]", "[1::2::3]", "[::1.2.3]", "[::01.2.3.4]", "[v1.x]", "[ ::1]", "[12345::]", "a[::1]",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_any_other_spelling_is_refused(text: str) -> None:
    """Userinfo, escapes, numbers that some resolvers read as addresses, look-alike characters, odd ports."""
    with pytest.raises(BadAuthority):
        parse_authority(text)


@given(
    st.one_of(
        st.text(alphabet="aZ0179.:-_[]xXf@%/\\?# \t。０①", max_size=24),
        st.text(max_size=12),
        st.from_regex(r"\A(?:[0-9a-fx]{1,4}\.){0,4}[0-9a-fx]{0,4}(?::[0-9]{0,6})?\Z"),
        st.ip_addresses().map(str),
        st.ip_addresses(v=6).map(lambda address: f"[{address}]:1"),
    )
)
@settings(max_examples=1500, deadline=None)
def test_what_is_accepted_everybody_reads_alike(text: str) -> None:
    """urllib, ipaddress and the C library see the host, the port and the address that we see."""
    try:
        found = parse_authority(text)
    except BadAuthority:
        return
    parts = urlsplit(f"//{text}/")
    assert (parts.hostname, parts.port) == (found.host, found.port)
    assert parts.username is None and parts.path == "/" and found.host.isascii()
    if found.address is not None:
        assert ipaddress.ip_address(found.host) == found.address
        return
    with pytest.raises(OSError):
        socket.inet_aton(found.host)
    assert found.host.encode("idna").decode() == found.host


# -- the policy for addresses --------------------------------------------------------------------------------------

PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00::1",
    "2001:4860::8888",
)
INSIDE = (
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.170", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::7f00:1", "::127.0.0.1", "::10.0.0.1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:1.1.1.1", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::1.1.1.1", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:10::1",
    "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::a9fe:a9fe", "fec0::1", "ff02::1", "::2",
)  # fmt: skip
LOOPBACK = ("127.0.0.1", "127.0.0.53", "127.255.255.255", "::1")


def test_only_public_addresses_are_upstreams() -> None:
    """Private, link-local, metadata and translated addresses are denied, by name and as written, with the way to allow them."""
    for text in PUBLIC:
        check_address(ipaddress.ip_address(text), parse_authority("h.example"))
    for text in (*INSIDE, *LOOPBACK):
        with pytest.raises(Denied, match=r'allow = \["https://h\.example:8"\]'):
            check_address(ipaddress.ip_address(text), parse_authority("h.example:8"))
    for text in INSIDE:
        written = parse_authority(f"[{text}]" if ":" in text else text)
        with pytest.raises(Denied, match="not a public address"):
            check_address(ipaddress.ip_address(text), written)


def test_loopback_is_for_hosts_that_are_written_so() -> None:
    """`localhost` and loopback literals may be reached; a mapped one is none."""
    for named in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:5", "[::1]"):
        for text in LOOPBACK:
            check_address(ipaddress.ip_address(text), parse_authority(named))
    for named in ("[::ffff:127.0.0.1]", "localhost.evil.com", "evil.localhost", "[::]", "0.0.0.0"):
        assert not parse_authority(named).is_loopback


# -- dialling ------------------------------------------------------------------------------------------------------

Resolve = Callable[[str, int], Iterable[SockAddr]]
NAME = "provider.test"


def route_to(authority: str, *allow: str) -> Route:
    """The route of a call to a host."""
    head = parse_request(f"GET /openai/{authority}/v1/models HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return Router(allow=Allowed(allow)).route(head, head.target)


def at(*addresses: str) -> Resolve:
    """A name service that gives these addresses for every name."""

    def resolve(host: str, port: int) -> list[SockAddr]:
        return [
            (socket.AF_INET6, (address, port, 0, 0)) if ":" in address else (socket.AF_INET, (address, port))
            for address in addresses
        ]

    return resolve


class Diallers:
    """Makes diallers and closes them, with what they have opened."""

    def __init__(self) -> None:
        self._diallers: list[Dialler] = []
        self._opened: list[Any] = []

    def __call__(self, resolve: Resolve | None = None, *, timeout: float = 5.0, **environment: str) -> Dialler:
        dialler = Dialler(connect_timeout=timeout, environment=environment, resolve=resolve)
        self._diallers.append(dialler)
        dial = dialler.dial

        async def dial_and_remember(route: Route) -> Any:
            connection = await dial(route)
            self._opened.append(connection)
            return connection

        dialler.dial = dial_and_remember  # type: ignore[method-assign]
        return dialler

    async def close(self) -> None:
        for connection in self._opened:
            connection.break_off()
        for dialler in self._diallers:
            dialler.close()
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def diallers(rigs: StartRig) -> AsyncIterator[Diallers]:
    """On both loops, since `rigs` is."""
    made = Diallers()
    yield made
    await made.close()


async def failure(dialler: Dialler, route: Route) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        await dialler.dial(route)
    return caught.value


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", port: int = 0, backlog: int = 16) -> Any:
    with socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=backlog
    ) as sock:
        sock.setblocking(False)
        yield sock


@contextlib.contextmanager
def silent(host: str) -> Any:
    """A port whose kernel queue is full: connection attempts hang."""
    with listening(host, backlog=0) as sock, contextlib.ExitStack() as stack:
        for _ in range(64):
            link = stack.enter_context(socket.socket(sock.family))
            link.settimeout(0.2)
            try:
                link.connect(sock.getsockname())
            except TimeoutError:
                yield sock
                return
        raise AssertionError("the queue is never full")


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["10.0.0.1"], ["169.254.169.254"], ["1.1.1.1", "127.0.0.1"], ["127.0.0.1", "1.1.1.1"], ["::ffff:127.0.0.1"], ["fe80::1%lo"]],
)  # fmt: skip
async def test_a_name_that_leads_inside_is_denied(diallers: Diallers, addresses: list[str]) -> None:
    """One bad answer among good ones is enough, and nothing is connected to."""
    with listening() as sock:
        port = sock.getsockname()[1]
        error = await failure(diallers(at(*addresses)), route_to(f"{NAME}:{port}"))
        assert error.refused and error.code == "upstream_not_allowed" and NAME in error.message
        with pytest.raises(BlockingIOError):
            sock.accept()


async def test_a_listed_name_may_lead_anywhere_with_its_scheme(diallers: Diallers) -> None:
    """The operator's list outranks the policy; a name is looked up once and that answer is connected to."""
    with listening() as sock:
        port, asked = sock.getsockname()[1], []

        def resolve(host: str, port: int) -> Iterable[SockAddr]:
            asked.append(host)
            return at("127.0.0.1" if len(asked) == 1 else "192.0.2.1")(host, port)

        connection = await diallers(resolve).dial(route_to(f"{NAME}:{port}", f"http://{NAME}:{port}"))
        assert asked == [NAME] and connection.transport.get_extra_info("peername")[:2] == ("127.0.0.1", port)


async def test_the_other_family_is_tried_when_the_first_is_dead(diallers: Diallers) -> None:
    """IPv6 refused or silent, IPv4 alive: connected well before the limit, and what is left over is closed."""
    with listening() as alive, silent("::1") as hanging:
        port = alive.getsockname()[1]
        for dead in ("::1", "hang"):
            addresses = [(socket.AF_INET6, ("::1", hanging.getsockname()[1] if dead == "hang" else port, 0, 0)), *at("127.0.0.1")(NAME, port)]  # fmt: skip
            began = time.monotonic()
            connection = await diallers(lambda host, port, found=addresses: found).dial(
                route_to(f"{NAME}:{port}", f"http://{NAME}:{port}")
            )
            assert connection.transport.get_extra_info("peername")[0] == "127.0.0.1"
            assert time.monotonic() - began < 1.5


async def test_families_take_turns(diallers: Diallers) -> None:
    """Several dead addresses of the first family do not stand before the other one."""
    with listening() as alive, silent("::1") as hanging:
        port = alive.getsockname()[1]
        dead = [(socket.AF_INET6, ("::1", hanging.getsockname()[1], 0, number)) for number in (0, 1)]
        began = time.monotonic()
        await diallers(lambda host, port: [*dead, *at("127.0.0.1")(host, port)]).dial(
            route_to(f"{NAME}:{port}", f"http://{NAME}:{port}")
        )
        assert time.monotonic() - began < 0.45  # the second in line, a quarter of a second later


async def test_every_way_to_fail_has_a_name(diallers: Diallers) -> None:
    """Refused, silent, unknown, without an address."""
    with listening() as sock:
        port = sock.getsockname()[1]
    error = await failure(diallers(), route_to(f"127.0.0.1:{port}"))
    assert error.code == "connect_failed" and "Connection refused" in error.message and not error.timed_out

    with silent("127.0.0.1") as hanging:
        began = time.monotonic()
        error = await failure(diallers(timeout=0.4), route_to(f"127.0.0.1:{hanging.getsockname()[1]}"))
        assert error.code == "connect_timeout" and error.timed_out and 0.3 < time.monotonic() - began < 2

    def unknown(host: str, port: int) -> Iterable[SockAddr]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error = await failure(diallers(unknown), route_to(NAME))
    assert error.code == "dns_failed" and "not known" in error.message
    error = await failure(diallers(at()), route_to(NAME))
    assert error.code == "connect_failed" and "no address" in error.message


async def test_a_name_is_looked_up_once_for_all_who_wait(diallers: Diallers) -> None:
    """Twenty calls at once, one look-up; the next call after them looks again."""
    asked, go = [], threading.Event()
    with listening(backlog=64) as sock:
        port = sock.getsockname()[1]

        def resolve(host: str, port: int) -> Iterable[SockAddr]:
            asked.append(host)
            assert go.wait(5)
            return at("127.0.0.1")(host, port)

        dialler, route = diallers(resolve), route_to(f"{NAME}:{port}", f"http://{NAME}:{port}")
        waiting = [asyncio.create_task(dialler.dial(route)) for _ in range(20)]
        gone = asyncio.create_task(dialler.dial(route))
        await asyncio.sleep(0)
        gone.cancel()  # one that leaves does not take the look-up with it
        go.set()
        assert len(await asyncio.gather(*waiting)) == 20 and asked == [NAME]
        await dialler.dial(route)
        assert len(asked) == 2


async def test_dead_names_do_not_delay_a_good_one(diallers: Diallers) -> None:
    """A hundred look-ups hang; the next one does not."""
    stop = threading.Event()
    with listening() as sock:
        port = sock.getsockname()[1]

        def resolve(host: str, port: int) -> Iterable[SockAddr]:
            if host.startswith("dead"):
                stop.wait(20)
            return at("127.0.0.1")(host, port)

        dialler = diallers(resolve, timeout=10)
        dead = [asyncio.create_task(dialler.dial(route_to(f"dead{number}.test"))) for number in range(100)]
        await asyncio.sleep(0)
        began = time.monotonic()
        await dialler.dial(route_to(f"{NAME}:{port}", f"http://{NAME}:{port}"))
        assert time.monotonic() - began < 5  # a wide guard: the dead ones take 10 s
        for task in dead:
            task.cancel()
        stop.set()
        await asyncio.gather(*dead, return_exceptions=True)


async def test_a_connection_that_comes_too_late_is_kept_for_the_next(rig: Rig) -> None:
    """The client has left while we dialled: the upstream sees no request, the next client takes the connection."""
    go = threading.Event()

    def resolve(host: str, port: int) -> Iterable[SockAddr]:
        assert go.wait(5)
        return at("127.0.0.1")(host, port)

    rig.core.dialler = Dialler(connect_timeout=5, environment={}, resolve=resolve)
    client = rig.client()
    request = rig.request(fake="fixed=10").replace(b"/127.0.0.1:", b"/localhost:")
    await client.send(request)
    await rig.until(lambda: rig.core.relays)
    client.reset()
    await rig.until(lambda: not rig.core.relays)
    go.set()
    await rig.until(lambda: len(rig.core.pool) == 1)
    assert rig.fake.counts.requests == 0
    late = rig.client()
    await late.send(request)
    assert (await late.message()).status == 200
    assert (rig.fake.counts.requests, rig.fake.counts.connections) == (1, 1)


# -- loops ---------------------------------------------------------------------------------------------------------


async def test_our_own_port_is_no_upstream(rigs: StartRig) -> None:
    """By any name, listed or not, over one hop or more: refused at the first step, no request goes round."""
    with contextlib.ExitStack() as stack:
        four = stack.enter_context(listening())
        port = four.getsockname()[1]
        six = stack.enter_context(listening("::1", port))
        proxy = Proxy(ProxyConfig(allow=(f"http://localhost:{port}",)), None)
        await proxy.listen([four, six])
        try:
            own = [f"/openai/{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]", "LOCALHOST")]
            for path in (*own, own[0] + own[1], own[1] * 3, own[0] * 1000):
                for _ in range(2):
                    wire = Wire.to(port)
                    await wire.send(f"GET {path}/v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                    answer = await wire.message()
                    assert answer.status == 403 and b"this proxy itself" in answer.payload, answer
                    wire.close()
            assert proxy.core.metrics.connects == 0
        finally:
            await proxy.close()


# -- TLS -----------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority in a folder, made with the openssl command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.certificate = folder, folder / "ca.pem"
        self._key = folder / "ca.key"
        extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
        self._openssl(
            "req", "-x509", *self._fresh(self._key), "-out", self.certificate, "-subj", "/CN=Test CA", "-days", "2", *extensions
        )  # fmt: skip

    def server(self, name: str, alternative: str, *, days: int = 2, signed: bool = True) -> ssl.SSLContext:
        """A server's context with a certificate for `alternative`, expired where `days` is negative."""
        key, request, certificate = (self.folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        self._openssl(
            "req", *self._fresh(key), "-out", request, "-subj", "/CN=x", "-addext", f"subjectAltName={alternative}"
        )
        signer = ["-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"] if signed else ["-signkey", key]
        copied = ["-copy_extensions", "copy", "-days", str(days)]
        self._openssl("x509", "-req", "-in", request, *signer, *copied, "-out", certificate)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        return context

    def _fresh(self, key: Path) -> list[Any]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]

    def _openssl(self, *arguments: Any) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@contextlib.asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[str], list[bytes]]]:
    """Port, the names asked for by SNI, the bytes that arrived inside; answers every request with 200."""
    names: list[str] = []
    inside: list[bytes] = []

    def note(_: Any, name: str | None, __: Any) -> None:
        names.append(name or "")

    context.sni_callback = note

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            inside.append(data)
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], names, inside
    finally:
        server.close()


async def call(rig: Rig, authority: str) -> Message:
    """A call with a key, through the proxy."""
    wire = rig.client()
    await wire.send(
        f"GET /openai/{authority}/v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: sk-secret\r\n\r\n".encode()
    )
    return await wire.message()


def lead(rig: Rig, *addresses: str, timeout: float = 5.0, **environment: str) -> None:
    """Let every name mean these addresses."""
    own = rig.core.dialler.own_ports
    rig.core.dialler = Dialler(connect_timeout=timeout, environment=environment, resolve=at(*addresses), own_ports=own)


async def test_tls_is_verified_and_names_the_host(
    rigs: StartRig, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a good certificate the call passes, and the name asked for is the host of the path."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    async with tls_server(authority.server("good", f"DNS:{NAME},IP:127.0.0.1")) as (port, names, inside):
        rig = await rigs(allow=(f"https://{NAME}:{port}", f"https://127.0.0.1:{port}"))
        lead(rig, "127.0.0.1")
        assert (await call(rig, f"{NAME.upper()}:{port}")).status == 200
        assert names == [NAME] and b"GET /v1/models HTTP/1.1\r\nHost: " + f"{NAME}:{port}".encode() in inside[0]
        assert (await call(rig, f"127.0.0.1:{port}")).status == 200
        assert len(rig.core.pool) == 2


FLAWS = {
    "expired": (("expired", f"DNS:{NAME}", -1, True), "expired"),
    "wrong host": (("wrong", "DNS:other.test", 2, True), "ostname mismatch"),
    "self-signed": (("self", f"DNS:{NAME}", 2, False), "self-signed certificate"),
}


@pytest.mark.parametrize("flaw", FLAWS)
async def test_a_bad_certificate_is_never_accepted(
    rigs: StartRig, authority: Authority, monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    """502 with the exact reason; not one byte of the request leaves, with TLS or without."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    (name, alternative, days, signed), reason = FLAWS[flaw]
    context = authority.server(name, alternative, days=days, signed=signed)
    async with tls_server(context) as (port, names, inside):
        rig = await rigs(allow=(f"https://{NAME}:{port}",))
        lead(rig, "127.0.0.1")
        answer = await call(rig, f"{NAME}:{port}")
        body = json.loads(answer.payload)["error"]
        assert (answer.status, body["code"]) == (502, "tls_failed") and reason in body["message"], body
        assert len(names) == 1 and not inside, "one attempt, nothing sent"


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("reset", 502, "tls_failed"),
        ("fin", 502, "tls_failed"),
        ("plain", 502, "tls_failed"),
        ("hang", 504, "connect_timeout"),
    ],
)
async def test_a_handshake_that_fails_is_no_reason_to_do_without(
    rigs: StartRig, how: str, status: int, code: str
) -> None:
    """Reset, closed, answered without TLS, or never answered: an error that says so, and no second try in clear."""
    rig = await rigs()
    upstream = rig.upstream()
    rig = await rigs(allow=(f"https://{NAME}:{upstream.port}",))
    lead(rig, "127.0.0.1", timeout=1.0)
    calling = asyncio.create_task(call(rig, f"{NAME}:{upstream.port}"))
    server = await upstream.accept()
    hello = await server.receive()
    assert hello[:1] == b"\x16" and b"sk-secret" not in hello
    if how == "reset":
        server.reset()
    elif how == "fin":
        server.close()
    elif how == "plain":
        await server.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    answer = await calling
    body = json.loads(answer.payload)["error"]
    assert (answer.status, body["code"]) == (status, code) and NAME in body["message"], body
    assert how in ("plain", "hang") or "the handshake was broken off (" in body["message"]
    upstream.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        upstream.socket.accept()


# -- forward proxies -----------------------------------------------------------------------------------------------


class ConnectProxy:
    """A forward proxy that tunnels, or does what `mode` says. `heads` is what it was asked."""

    def __init__(self, mode: str = "tunnel", target: int = 0) -> None:
        self.mode, self.target, self.heads, self.port = mode, target, [], 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ConnectProxy:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        self._run(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._socket)
            self._run(self._serve(Wire(sock)))

    async def _serve(self, wire: Wire) -> None:
        try:
            self.heads.append((await wire.until(b"\r\n\r\n")).decode())
            if self.mode == "refuse":
                await wire.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno!")
            elif self.mode == "close":
                return
            elif self.mode == "garbage":
                await wire.send(b"SSH-2.0-x\r\n\r\n")
            elif self.mode == "endless":
                await wire.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000)
            elif self.mode == "hang":
                await wire.receive()
            else:
                await self._tunnel(wire)
        finally:
            wire.close()

    async def _tunnel(self, wire: Wire) -> None:
        other = Wire.to(self.target)
        try:
            await wire.send(b"HTTP/1.1 200 Connection established\r\nX-Via: a\r\n\r\n")

            async def pump(source: Wire, sink: Wire) -> None:
                while data := await source.receive():
                    await sink.send(data)

            await asyncio.gather(pump(wire, other), pump(other, wire))
        finally:
            other.close()


@pytest.mark.parametrize("userinfo", ["", "me:p%40ss@"])
async def test_a_forward_proxy_is_used_for_https(
    rigs: StartRig, authority: Authority, monkeypatch: pytest.MonkeyPatch, userinfo: str
) -> None:
    """CONNECT with the name, TLS inside with the provider itself, credentials to the forward proxy alone; http and loopback go directly."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    context = authority.server("tunnelled", f"DNS:{NAME},IP:127.0.0.1")
    async with tls_server(context) as (port, names, inside), ConnectProxy(target=port) as proxy:
        rig = await rigs(allow=(f"https://127.0.0.1:{port}",))
        lead(rig, "127.0.0.1", HTTPS_PROXY=f"http://{userinfo}localhost:{proxy.port}")
        assert (await call(rig, NAME)).status == 200  # unlisted: the forward proxy resolves it
        first, *fields = proxy.heads[0].rstrip("\r\n").split("\r\n")
        assert first == f"CONNECT {NAME}:443 HTTP/1.1" and fields[0] == f"Host: {NAME}:443"
        assert fields[1:] == (["Proxy-Authorization: Basic bWU6cEBzcw=="] if userinfo else [])
        assert names == [NAME] and b"Proxy-Auth" not in inside[0] and "sk-secret" not in proxy.heads[0]
        assert (await call(rig, f"127.0.0.1:{rig.fake.port}")).status == 200
        assert (await call(rig, f"127.0.0.1:{port}")).status == 200
        assert len(proxy.heads) == 1


@pytest.mark.parametrize(
    ("mode", "status", "code", "word"),
    [
        ("refuse", 502, "proxy_failed", "407 Proxy Authentication Required"),
        ("close", 502, "proxy_failed", "broke off"),
        ("garbage", 502, "proxy_failed", "refused the tunnel"),
        ("endless", 502, "proxy_failed", "broke off"),
        ("hang", 504, "connect_timeout", "did not answer"),
    ],
)
async def test_a_forward_proxy_that_fails_is_not_gone_around(
    rigs: StartRig, mode: str, status: int, code: str, word: str
) -> None:
    """The error names it; its password appears nowhere; the upstream is not dialled directly."""
    rig = await rigs()
    upstream = rig.upstream()
    async with ConnectProxy(mode) as proxy:
        rig = await rigs(allow=(f"https://{NAME}:{upstream.port}",))
        lead(rig, "127.0.0.1", timeout=0.7, HTTPS_PROXY=f"http://me:hunter2@127.0.0.1:{proxy.port}")
        answer = await call(rig, f"{NAME}:{upstream.port}")
        body = json.loads(answer.payload)["error"]
        assert (answer.status, body["code"]) == (status, code) and word in body["message"], body
        assert b"hunter2" not in answer.payload
    with pytest.raises(BlockingIOError):
        upstream.socket.accept()


async def test_a_forward_proxy_is_no_way_inside(diallers: Diallers) -> None:
    """Addresses written in the path are judged before they are handed to a forward proxy; we are not one ourselves."""
    dialler = diallers(at("127.0.0.1"), HTTPS_PROXY="http://127.0.0.1:9")
    assert (await failure(dialler, route_to("169.254.169.254"))).refused
    with listening() as sock:
        dialler = diallers(HTTPS_PROXY=f"http://127.0.0.1:{sock.getsockname()[1]}")
        dialler.own_ports = frozenset([sock.getsockname()[1]])
        assert "this proxy itself" in (await failure(dialler, route_to(NAME))).message


PROXY = "http://proxy.lan:3128"
EXCEPTIONS = {
    "": False,
    "*": True,
    NAME: True,
    "PROVIDER.test": True,
    f".{NAME}": True,
    "test": True,
    ".test": True,
    "*.test": True,
    "other.test,test": True,
    " a , test ": True,
    f"{NAME}:443": True,
    f"{NAME}:8443": False,
    ".test:443": True,
    "rovider.test": False,
    "est": False,
    f"x.{NAME}": False,
    "10.0.0.0/8": False,
    ",,": False,
}


@pytest.mark.parametrize("no_proxy", EXCEPTIONS)
def test_no_proxy_takes_hosts_out(no_proxy: str) -> None:
    """Names with their subdomains, ports, and `*`, in either case of the variable."""
    for variable in ("NO_PROXY", "no_proxy"):
        found = proxy_for(NAME, 443, {"HTTPS_PROXY": PROXY, variable: no_proxy})
        assert (found is None) is EXCEPTIONS[no_proxy]


def test_the_proxy_variables_are_read_as_everywhere() -> None:
    """Addresses and networks, both cases of the names, ALL_PROXY, missing scheme; HTTP_PROXY is another one's."""
    for host, no_proxy, direct in (
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "[fd00::1]", True),
        ("fd00::1", "[fd00::1]:443", True),
    ):
        assert (proxy_for(host, 443, {"https_proxy": PROXY, "no_proxy": no_proxy}) is None) is direct, (host, no_proxy)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        found = proxy_for(NAME, 443, {name: "proxy.lan:3128"})
        assert found is not None and (found.host, found.port, found.authorization) == ("proxy.lan", 3128, "")
    assert proxy_for(NAME, 443, {"HTTP_PROXY": PROXY, "http_proxy": PROXY}) is None
    assert proxy_for(NAME, 443, {"https_proxy": "", "HTTPS_PROXY": ""}) is None
    for url in (
        "socks5://proxy.lan:1080",
        "https://proxy.lan",
        "http://",
        "http://[::1",
        "http://proxy.lan:x",
        "http://h:99999",
    ):
        with pytest.raises(DialFailed) as caught:
            proxy_for(NAME, 443, {"HTTPS_PROXY": url})
        assert caught.value.code == "bad_proxy"
