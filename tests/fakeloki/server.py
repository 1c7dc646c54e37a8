"""The HTTP side: a server in threads that answers as Loki does, or fails, hangs, dawdles or dies when it is told to."""

from __future__ import annotations

import base64
import hmac
import json
import re
import socket
import ssl
import threading
import time
import zlib
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakeloki.store import Entry, Limits, Refused, Store

PUSH = "/loki/api/v1/push"
QUERY = "/loki/api/v1/query_range"
_LARGEST = 64 << 20  # bytes of a push, unpacked


@dataclass(frozen=True, slots=True)
class Seen:
    """One push as it came. `status` is what it was answered, None where nothing was; `at` is monotonic seconds."""

    path: str
    headers: dict[str, str]  # lower-case names
    size: int  # of the body as sent
    entries: int  # that were in it; 0 where nobody looked
    status: int | None
    at: float


@dataclass
class FakeLoki:
    """Use as a context manager. All switches may be set at any time.

    `fail`: status for each push that nothing is kept of, with `retry_after` and `fail_body`; `fail_next`: how many are
    failed before it is well again, None for all. `hang`: no answer at all until it is taken back. `slow`: seconds
    before a push is read on. `late`: seconds between keeping a push and answering it. `user`, `password` or `bearer`:
    what a push must bring. `multi_tenant`: X-Scope-OrgID must be there. `tls`: a context with a certificate.
    """

    port: int = 0
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    limits: Limits = field(default_factory=Limits)
    user: str = ""
    password: str = ""
    bearer: str = ""
    multi_tenant: bool = False
    fail: int = 0
    fail_next: int | None = None
    fail_body: str = "ingestion rate limit exceeded"
    retry_after: str = ""
    slow: float = 0.0
    late: float = 0.0
    ready: bool = True
    pushes: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store(self.limits)
        self._well = threading.Event()
        self._well.set()
        self._news = threading.Condition()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FakeLoki:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- switches

    def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        assert self._server is None, "it is open"
        self._server = _Server((self.host, self.port), self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake loki", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Dead: the port is closed, open connections are reset. What is kept stays."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        server.reset_all()
        if self._thread is not None:
            self._thread.join()

    @property
    def hang(self) -> bool:
        return not self._well.is_set()

    @hang.setter
    def hang(self, value: bool) -> None:
        (self._well.clear if value else self._well.set)()

    # -- what it has

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{PUSH}"

    def entries(self, tenant: str | None = None, **labels: str) -> list[Entry]:
        """Kept entries whose stream has these labels, oldest first."""
        return self.store.entries(tenant, **labels)

    @property
    def accepted(self) -> int:
        return self.store.accepted

    @property
    def duplicates(self) -> int:
        return self.store.duplicates

    @property
    def refused(self) -> int:
        """Entries that broke a rule."""
        return self.store.refused

    def wait(self, entries: int = 0, pushes: int = 0, timeout: float = 20.0) -> None:
        """Until so many entries are kept and so many pushes have come. Raises TimeoutError."""
        with self._news:
            there = self._news.wait_for(
                lambda: self.store.count() >= entries and len(self.pushes) >= pushes, timeout=timeout
            )
        if not there:
            last = self.pushes[-1] if self.pushes else None
            raise TimeoutError(f"{self.store.count()} entries of {entries}, {len(self.pushes)} pushes; last {last}")

    # -- for the handler

    def told(self, seen: Seen) -> None:
        with self._news:
            self.pushes.append(seen)
            self._news.notify_all()

    def failing(self) -> int:
        """The status with which this push is to fail, 0 for none."""
        with self._news:
            if not self.fail or self.fail_next == 0:
                return 0
            if self.fail_next is not None:
                self.fail_next -= 1
            return self.fail

    def wait_until_well(self) -> None:
        self._well.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], loki: FakeLoki) -> None:
        self.loki = loki
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a client that is slow at TLS holds up nobody."""
        try:
            if self.loki.tls is not None:
                request.settimeout(_Handler.timeout)
                request = self.loki.tls.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError):  # it does not trust us, or went away
            self.shutdown_request(request)
            return
        self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes in the middle of an answer is its own business."""

    def reset_all(self) -> None:
        for one in list(self._open):
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        loki, target = self.server.loki, urlsplit(self.path)
        if target.path == "/ready":
            self._answer(200 if loki.ready else 503, "ready\n" if loki.ready else "Ingester not ready\n")
        elif target.path == "/fake/counts":
            counts = {name: getattr(loki, name) for name in ("accepted", "duplicates", "refused")}
            self._answer(200, json.dumps(counts | {"pushes": len(loki.pushes)}), "application/json")
        elif target.path == QUERY:
            self._query({name: values[-1] for name, values in parse_qs(target.query).items()})
        else:
            self._answer(404, "404 page not found\n")

    def do_POST(self) -> None:
        loki, at = self.server.loki, time.monotonic()
        if loki.slow:
            time.sleep(loki.slow)  # a server that dawdles is what is being tested
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self.close_connection = True
            self._answer(411, "a push says how long it is\n")
            return
        body = self.rfile.read(int(length))
        if urlsplit(self.path).path != PUSH:
            self._answer(404, "404 page not found\n")
            return
        status, entries, words = self._outcome(body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        # Noted before it is answered, so that whoever has the answer finds it among the pushes.
        loki.told(Seen(self.path, headers, len(body), entries, status, at))
        if status is None:
            loki.wait_until_well()
            self.close_connection = True
        else:
            self._answer(status, f"{words}\n" if words else "")

    # -- pushes

    def _outcome(self, body: bytes) -> tuple[int | None, int, str]:
        """Status, entries and words of the answer; no status where there is to be none."""
        loki = self.server.loki
        if loki.hang:
            return None, 0, ""
        failing = loki.failing()
        if failing:
            return failing, 0, loki.fail_body
        status, entries, words = self._taken(body)
        if loki.late:
            time.sleep(loki.late)
        return status, entries, words

    def _taken(self, body: bytes) -> tuple[int, int, str]:
        loki = self.server.loki
        refusal = self._not_let_in()
        if refusal:
            return 401, 0, refusal
        try:
            entries, troubles = loki.store.push(self._tenant, _unpacked(self.headers, body))
        except Refused as error:
            return 400, 0, str(error)
        if not troubles:
            return 204, entries, ""
        shown = troubles[:10]
        return 400, entries, "\n".join([*shown, f"total ignored: {len(troubles)} out of {entries}"])

    def _not_let_in(self) -> str:
        loki, given = self.server.loki, self.headers.get("Authorization", "")
        if loki.user or loki.password:
            wanted = "Basic " + base64.b64encode(f"{loki.user}:{loki.password}".encode()).decode()
        else:
            wanted = f"Bearer {loki.bearer}" if loki.bearer else ""
        if wanted and not hmac.compare_digest(wanted.encode(), given.encode()):
            return "Unauthorized"
        return "no org id" if loki.multi_tenant and not self.headers.get("X-Scope-OrgID") else ""

    @property
    def _tenant(self) -> str:
        """Without tenants everything is that of one, whatever a push says."""
        return self.headers["X-Scope-OrgID"] if self.server.loki.multi_tenant else "fake"

    # -- queries

    def _query(self, asked: dict[str, str]) -> None:
        loki = self.server.loki
        refusal = self._not_let_in()
        if refusal:
            self._answer(401, refusal + "\n")
            return
        try:
            found = _found(loki.store, self._tenant, asked)
        except ValueError as error:
            self._answer(400, f"parse error : {error}\n")
            return
        streams: dict[tuple[tuple[str, str], ...], list[list[str]]] = {}
        for entry in found:
            names = tuple(sorted({**dict(entry.labels), **dict(entry.metadata)}.items()))
            streams.setdefault(names, []).append([str(entry.ts_ns), entry.text])
        result = [{"stream": dict(names), "values": values} for names, values in streams.items()]
        told = {"status": "success", "data": {"resultType": "streams", "result": result}}
        self._answer(200, json.dumps(told), "application/json")

    def _answer(self, status: int, words: str, kind: str = "text/plain; charset=utf-8") -> None:
        loki, data = self.server.loki, words.encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="loki"')
        if status in (429, 503) and loki.retry_after:
            self.send_header("Retry-After", loki.retry_after)
        self.end_headers()
        self.wfile.write(data)


def _unpacked(headers: Message, body: bytes) -> bytes:
    """Raises Refused."""
    kind = headers.get_content_type() if "Content-Type" in headers else ""
    if kind != "application/json":  # anything else is taken for protobuf
        raise Refused("snappy: corrupt input")
    coding = headers.get("Content-Encoding", "")
    if not coding:
        return body
    # Loki's deflate is the bare format (RFC 1951), without the frame of RFC 1950 that HTTP means.
    bits = {"gzip": 31, "deflate": -15}.get(coding)
    if bits is None:
        raise Refused(f"Content-Encoding {coding!r} not supported")
    decoder = zlib.decompressobj(bits)
    try:
        data = decoder.decompress(body, _LARGEST)
    except zlib.error as error:
        raise Refused(f"{coding}: {error}") from error
    if not decoder.eof:
        raise Refused(f"{coding}: unexpected EOF")
    return data


_SELECTOR = re.compile(r"\s*\{([^}]*)\}((?:\s*\|\s*\w+\s*!?=\s*\"[^\"]*\")*)\s*")
_MATCH = re.compile(r"\s*(\w+)\s*(!?=)\s*\"([^\"]*)\"\s*")


def _found(store: Store, tenant: str, asked: dict[str, str]) -> list[Entry]:
    """The entries, newest first unless `direction` is forward. Raises ValueError where the query is of another form."""
    query = _SELECTOR.fullmatch(asked.get("query", ""))
    if query is None:
        raise ValueError('a query is {label="value", ...} | name="value" | ...')
    selector = [_matcher(one) for one in query[1].split(",") if one.strip()]
    filters = [_matcher(one) for one in query[2].split("|") if one.strip()]
    if not selector:
        raise ValueError("queries require at least one matcher")
    start, end = int(asked.get("start", 0)), int(asked.get("end", 1 << 63))
    found = [
        entry
        for entry in store.entries(tenant)
        if start <= entry.ts_ns < end
        and all((dict(entry.labels).get(name, "") == value) is equal for name, equal, value in selector)
        and all((entry.told(name) == value) is equal for name, equal, value in filters)
    ]
    backward = asked.get("direction", "backward") == "backward"
    return (found[::-1] if backward else found)[: int(asked.get("limit", 100))]


def _matcher(said: str) -> tuple[str, bool, str]:
    match = _MATCH.fullmatch(said)
    if match is None:
        raise ValueError(f"no matcher: {said.strip()}")
    return match[1], match[2] == "=", match[3]
