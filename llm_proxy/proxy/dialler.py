"""Opening upstream connections: resolve once, judge every address, race them, then TLS or a CONNECT tunnel.

The only place of the data plane that awaits. A name is looked up once and the judged addresses are the ones
connected to, so it cannot mean another host a moment later.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlsplit

from llm_proxy.proxy.authority import Authority, Denied, check_address
from llm_proxy.proxy.router import PoolKey, Route
from llm_proxy.proxy.tls import start_tls
from llm_proxy.proxy.upstream import UpstreamConnection

STAGGER = 0.25  # seconds between attempts on one name's addresses (RFC 8305 §5)
RESOLVER_THREADS = 256  # started as needed; a dead name server may hold each for half a minute, others must not wait


class DialFailed(Exception):
    """No connection. `code` names what happened; `timed_out` whether a limit of ours ended the attempt."""

    def __init__(self, code: str, message: str, *, timed_out: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.timed_out = timed_out
        self.refused = refused


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """A forward proxy that https upstreams are reached through by CONNECT."""

    host: str
    port: int
    authorization: str  # a whole field line with its line end, or empty


def proxy_for(host: str, port: int, environment: Mapping[str, str]) -> HttpProxy | None:
    """The forward proxy for an https host by HTTPS_PROXY (or ALL_PROXY) and NO_PROXY, both cases. Raises DialFailed."""

    def get(name: str) -> str:
        return environment.get(name.lower()) or environment.get(name) or ""

    url = get("HTTPS_PROXY") or get("ALL_PROXY")
    if not url or _excepted(host, port, get("NO_PROXY")):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        name, its_port = parts.hostname, parts.port or 80
    except ValueError:
        raise DialFailed("bad_proxy", "HTTPS_PROXY must be http://host:port") from None
    if parts.scheme != "http" or not name:
        raise DialFailed("bad_proxy", f"HTTPS_PROXY must be http://host:port, got scheme {parts.scheme!r}")
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"
    return HttpProxy(name, its_port, authorization)


def _excepted(host: str, port: int, no_proxy: str) -> bool:
    """NO_PROXY: `*`, names (with their subdomains), leading dots, a port behind a name, addresses and networks."""
    for raw in no_proxy.split(","):
        entry = raw.strip().lower()
        if not entry:
            continue
        name = entry.removesuffix(f":{port}").strip("[]").lstrip("*").lstrip(".") or "*"
        if entry == "*" or host == name or host.endswith(f".{name}"):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False


class Dialler:
    """Makes `UpstreamConnection`s. `own_ports` are where this process listens: never dialled."""

    def __init__(
        self,
        *,
        connect_timeout: float,
        environment: Mapping[str, str],
        own_ports: Iterable[int] = (),
        tls: Callable[[], ssl.SSLContext] | None = None,
        resolve: Callable[[str, int], Iterable[SockAddr]] | None = None,
    ) -> None:
        self._timeout = connect_timeout
        self._environment = environment
        self._make_tls = tls or _default_tls
        self._system = resolve or system_addresses
        self._tls: asyncio.Future[ssl.SSLContext] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._lookups: dict[tuple[str, int], asyncio.Task[list[SockAddr]]] = {}
        self.own_ports = frozenset(own_ports)

    async def dial(self, route: Route) -> UpstreamConnection:
        """A fresh connection for a route. Raises DialFailed."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._dial(route)
        except TimeoutError:
            message = f"{route.authority} did not answer within {self._timeout:g} s"
            raise DialFailed("connect_timeout", message, timed_out=True) from None
        except Denied as error:
            raise DialFailed("upstream_not_allowed", str(error), refused=True) from None
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            raise DialFailed("tls_failed", f"TLS with {route.authority} failed: {reason}") from error
        except socket.gaierror as error:
            raise DialFailed("dns_failed", f"{route.authority} could not be resolved: {error.strerror}") from error
        except OSError as error:
            raise DialFailed("connect_failed", f"cannot connect to {route.authority}: {_in_words(error)}") from error

    async def _dial(self, route: Route) -> UpstreamConnection:
        key = route.key
        direct = key.scheme == "http" or route.authority.is_loopback  # another machine's loopback is never meant
        via = None if direct else proxy_for(key.host, key.port, self._environment)
        if via is not None:
            if route.authority.address is not None and not route.listed:
                check_address(route.authority.address, route.authority)
            return await self._through(via, key)
        sock = await self._connect(await self._addresses(key.host, key.port, None if route.listed else route.authority))
        if key.scheme == "http":
            return await self._adopt(key, sock, None)
        return await self._adopt(key, sock, await self._tls_context())

    async def _adopt(self, key: PoolKey, sock: socket.socket, tls: ssl.SSLContext | None) -> UpstreamConnection:
        connection = UpstreamConnection(key)
        try:
            if tls is None:
                await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)
            else:
                await start_tls(sock, connection, tls, key.host)
        except ConnectionError as error:
            sock.close()
            words = f"TLS with {key.host} failed: the handshake was broken off ({_in_words(error)})"
            raise DialFailed("tls_failed", words) from error
        except BaseException:
            sock.close()
            raise
        return connection

    async def _through(self, via: HttpProxy, key: PoolKey) -> UpstreamConnection:
        """A tunnel: CONNECT, its answer's head, then TLS inside."""
        loop = asyncio.get_running_loop()
        sock = await self._connect(await self._addresses(via.host, via.port, None))
        try:
            host = f"[{key.host}]" if ":" in key.host else key.host
            line = f"{host}:{key.port}"
            await loop.sock_sendall(
                sock, f"CONNECT {line} HTTP/1.1\r\nHost: {line}\r\n{via.authorization}\r\n".encode("latin-1")
            )
            head = b""
            # Byte by byte at the end, so that nothing behind the head is swallowed: TLS begins there.
            while not head.endswith(b"\r\n\r\n"):
                byte = await loop.sock_recv(sock, 1)
                if not byte or len(head) > 16_384:
                    raise DialFailed("proxy_failed", f"the proxy {via.host}:{via.port} broke off during CONNECT")
                head += byte
            status = head.split(b" ", 2)[1:2]
            if not status or not status[0].startswith(b"2"):
                first = head.partition(b"\r\n")[0].decode("latin-1")
                raise DialFailed("proxy_failed", f"the proxy {via.host}:{via.port} refused the tunnel: {first}")
        except BaseException:
            sock.close()
            raise
        return await self._adopt(key, sock, await self._tls_context())

    async def _addresses(self, host: str, port: int, judge: Authority | None) -> list[SockAddr]:
        """All addresses of a name, each judged where the host is not listed. Raises Denied, socket.gaierror."""
        found = await self._lookup(host, port)
        if judge is not None:
            for _, sockaddr in found:
                check_address(ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]), judge)
        return found

    async def _lookup(self, host: str, port: int) -> list[SockAddr]:
        """One look-up at a time per name, however many wait for it."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            if address.version == 6:
                return [(socket.AF_INET6, (host, port, 0, 0))]
            return [(socket.AF_INET, (host, port))]
        task = self._lookups.get((host, port))
        if task is None:
            task = asyncio.create_task(self._resolve(host, port))
            self._lookups[host, port] = task
            task.add_done_callback(lambda _: self._lookups.pop((host, port), None))
        return await asyncio.shield(task)

    async def _resolve(self, host: str, port: int) -> list[SockAddr]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")
        loop = asyncio.get_running_loop()
        return _interleaved(list(await loop.run_in_executor(self._threads, self._system, host, port)))

    async def _connect(self, addresses: list[SockAddr]) -> socket.socket:
        """Race the addresses, each starting a little after the one before or when that one failed (RFC 8305)."""
        waiting = list(reversed(addresses))
        running: set[asyncio.Task[socket.socket]] = set()
        trouble: OSError | None = None
        try:
            while waiting or running:
                if waiting:
                    running.add(asyncio.create_task(self._try(*waiting.pop())))
                done, running = await asyncio.wait(
                    running, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                connected = [task.result() for task in done if task.exception() is None]
                for other in connected[1:]:
                    other.close()
                if connected:
                    return connected[0]
                for error in filter(None, (task.exception() for task in done)):
                    if not isinstance(error, OSError):
                        raise error
                    trouble = error
            raise trouble or OSError("the name has no address")
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_close_result)

    async def _try(self, family: int, sockaddr: _Address) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, sockaddr)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._refuse_ourselves(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _refuse_ourselves(self, sock: socket.socket) -> None:
        """A connection to this machine at our own port is a request that would go round for ever."""
        there, here = sock.getpeername(), sock.getsockname()
        if there[1] in self.own_ports and there[0] == here[0]:
            raise Denied(f"{there[0]}:{there[1]} is this proxy itself")

    async def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            # Loading the system's certificates takes tens of milliseconds: not on the loop.
            self._tls = asyncio.get_running_loop().run_in_executor(None, self._make_tls)
        try:
            return await asyncio.shield(self._tls)
        except Exception:
            self._tls = None
            raise

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


_Address = tuple[str | int, ...]
SockAddr = tuple[int, _Address]  # family and what `connect` takes


def system_addresses(host: str, port: int) -> list[SockAddr]:
    """What the system's resolver says of a name, which may take it half a minute. Raises socket.gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(int(family), cast(_Address, sockaddr)) for family, _, _, _, sockaddr in found]


def _interleaved(addresses: list[SockAddr]) -> list[SockAddr]:
    """Families in turn, beginning with the system's first choice, without duplicates (RFC 8305 §4)."""
    unique = list(dict.fromkeys(addresses))
    if not unique:
        return []
    first = [address for address in unique if address[0] == unique[0][0]]
    second = [address for address in unique if address[0] != unique[0][0]]
    mixed = [address for pair in zip(first, second, strict=False) for address in pair]
    return mixed + first[len(second) :] + second[len(first) :]


def _in_words(error: OSError) -> str:
    """The system's words: the event loops' own are `Connect call failed`, or none at all."""
    return os.strerror(error.errno) if error.errno else str(error) or "closed by the other side"


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
