"""POSTs bodies to one URL, one after the other: TLS, proxies of the environment, and an end to every wait.

The connection is kept only while one body follows another. Redirects are not followed: what is sent is the record of
somebody's work, and goes to nobody but who was named. Leaves out what bodies hold and what answers mean.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

LIMIT = 30.0  # seconds for a whole exchange
CONNECT_LIMIT = 10.0
_KEPT = 1.0  # seconds; a server may close an idle connection at the moment at which it is used again
_MOST = 4096  # bytes of an answer that are read
_LONGEST_WAIT = 600.0  # seconds that an answer may ask for


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `after` is how many seconds it asks to be left alone, 0 where it does not say."""

    status: int
    text: str
    after: float


@dataclass(slots=True)
class Poster:
    """Where and how. `url` without credentials; `ca_file` instead of the system's certificates, where it names one."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    ca_file: str = ""
    limit: float = LIMIT
    _link: HTTPConnection | None = field(default=None, init=False, repr=False)
    _used: float = field(default=0.0, init=False, repr=False)
    _target: str = field(default="", init=False, repr=False)
    _more: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Raises OSError where no answer came."""
        if time.monotonic() - self._used > _KEPT:
            self.close()
        link = self._link or self._connected()
        late = threading.Event()
        timer = threading.Timer(self.limit, _cut, (link, late))
        timer.daemon = True
        timer.start()
        try:
            link.request("POST", self._target, body, {**self.headers, **self._more, **headers})
            with link.getresponse() as response:
                answer = Answer(response.status, _text(response), retry_after(response.headers.get("Retry-After", "")))
                if response.read(1):  # more than anybody reads: the connection is good for nothing else
                    self.close()
        except (OSError, HTTPException) as error:
            self.close()
            if late.is_set():
                raise TimeoutError(f"{self._place}: no answer within {self.limit:g} s") from error
            raise OSError(f"{self._place}: no answer: {_reason(error)}") from error
        finally:
            timer.cancel()
        self._used = time.monotonic()
        return answer

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    @property
    def _place(self) -> str:
        """For people: host and port."""
        return urlsplit(self.url).netloc

    def _connected(self) -> HTTPConnection:
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port
        secure = parts.scheme == "https"
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._more = {}
        proxy = None if _is_here(host) or proxy_bypass(host) else getproxies().get(parts.scheme)
        timeout = min(CONNECT_LIMIT, self.limit)
        link: HTTPConnection
        if proxy:
            by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            end = by.hostname or "", by.port or 80
            link = (
                HTTPSConnection(*end, timeout=timeout, context=self._context())
                if secure
                else HTTPConnection(*end, timeout=timeout)
            )
            if secure:
                link.set_tunnel(host, port or 443, _proxy_credentials(by.username, by.password))
            else:
                self._target = f"http://{parts.netloc}{self._target}"
                self._more = _proxy_credentials(by.username, by.password)
        elif secure:
            link = HTTPSConnection(host, port or 443, timeout=timeout, context=self._context())
        else:
            link = HTTPConnection(host, port or 80, timeout=timeout)
        try:
            link.connect()
        except (OSError, HTTPException) as error:
            link.close()
            raise OSError(f"{self._place} cannot be reached: {_reason(error)}") from error
        link.sock.settimeout(self.limit)
        self._link = link
        return link

    def _context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ValueError) as error:
            raise OSError(f"{self.ca_file} cannot be used as a file of certificates: {error}") from error


def _cut(link: HTTPConnection, late: threading.Event) -> None:
    late.set()
    try:
        link.sock.shutdown(socket.SHUT_RDWR)
    except (OSError, AttributeError):  # it is over
        pass


def _reason(error: OSError | HTTPException) -> str:
    """Not what came instead of an answer: it may repeat our credentials."""
    if not isinstance(error, OSError):
        return "what came is not HTTP"
    return (error.strerror or str(error) or type(error).__name__)[:300]


def _text(response: HTTPResponse) -> str:
    return response.read(_MOST).decode("utf-8", "replace").strip()


def retry_after(said: str) -> float:
    """Seconds, of a `Retry-After`: seconds or a date (RFC 9110 §10.2.3); 0 for what is neither."""
    if said.strip().isdecimal():
        seconds = float(said)
    else:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), _LONGEST_WAIT)


def _is_here(host: str) -> bool:
    """This machine's own addresses are no proxy's business."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxy_credentials(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    return {"Proxy-Authorization": basic(unquote(user), unquote(password or ""))}


def basic(user: str, password: str) -> str:
    """RFC 7617."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
