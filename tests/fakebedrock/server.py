"""The fake Bedrock: a listening socket, a thread per connection, and the book of what came.

Clients that block can stand in the same test. What happens is told by `FakeBedrock.plan`, since a signed request cannot
carry it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from tests.fakebedrock import replies
from tests.fakebedrock.sigv4 import Account, Refused, verify
from tests.fakeprovider.http1 import END_OF_HEAD, Head, body_of, parse_head

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
_CALL = re.compile(r"/model/([^/]+)/(invoke|invoke-with-response-stream|converse|converse-stream|count-tokens)")
_LISTING = re.compile(r"/(inference-profiles|foundation-models)")
_STREAMS = ("invoke-with-response-stream", "converse-stream")
EVENTSTREAM = "application/vnd.amazon.eventstream"
_PIECE = 256 << 10


@dataclass(slots=True)
class Plan:
    """What a call meets. `frames` instead of the model's own; a frame each `pause` seconds (of a body, a quarter of a megabyte), or one each
    time that `gate` is released. The stream is cut `cut` bytes after the beginning (by a reset, or the end of the chunks where `ends`).
    `status`: an error instead of an answer. `body`: instead of the answer's JSON. `words`: how many texts are streamed.
    """

    frames: Iterable[bytes] | None = None
    pause: float = 0.0
    gate: threading.Semaphore | None = None
    cut: int | None = None
    ends: bool = False
    status: int = 200
    error: str = "ThrottlingException"
    message: str = "Too many requests, please wait before trying again."
    body: bytes | None = None
    words: int = len(replies.WORDS)


@dataclass(slots=True)
class Seen:
    """A request that came. `key` signed it, or `refused` says why that was not believed. `sent` is the body that went
    back, without its chunks; `gone`: whoever asked left before its end."""

    head: Head
    body: bytes
    key: str = ""
    refused: Refused | None = None
    sent: bytearray = field(default_factory=bytearray)
    gone: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> str:
        return self.head.path

    def get(self, name: str) -> str:
        return self.head.get(name.encode())


class _Cut(Exception):
    """The script ends the stream here."""


class FakeBedrock:
    """Bedrock on a free port of 127.0.0.1; use it with `with`. `requests` grows in the order in which they came."""

    def __init__(self, account: Account | None = None, port: int = 0) -> None:
        self.account = account or Account({KEY: (SECRET, "")})
        self.plan = Plan()
        self.requests: list[Seen] = []
        self._news = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self._open: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeBedrock:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # accept() is only woken by this
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in tuple(self._open):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        with self._news:
            assert self._news.wait_for(lambda: not self._open, 10), "a connection goes on"

    def wait_for(self, condition: Callable[[], object], timeout: float = 30.0) -> None:
        """Until it is true; it is looked at whenever a request comes or is over."""
        with self._news:
            assert self._news.wait_for(condition, timeout), [one.head.raw for one in self.requests]

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        try:
            held = bytearray()
            while (seen := _request(link, held)) is not None:
                self._answer(link, seen)
                if not seen.head.keep_alive:
                    return
        except (OSError, _Cut):
            pass
        finally:
            link.close()
            with self._news:
                self._open.discard(link)
                self._news.notify_all()

    def _answer(self, link: socket.socket, seen: Seen) -> None:
        head = seen.head
        try:
            seen.key = verify(self.account, head.method, head.target, head.headers, seen.body)
        except Refused as why:
            seen.refused = why
        with self._news:
            self.requests.append(seen)
            self._news.notify_all()
        try:
            self._reply(link, seen)
        except OSError:
            seen.gone = True
            raise
        finally:
            seen.over.set()
            with self._news:
                self._news.notify_all()

    def _reply(self, link: socket.socket, seen: Seen) -> None:
        plan, path = self.plan, seen.path
        call, listing = _CALL.fullmatch(path), _LISTING.fullmatch(path)
        if seen.refused is not None:
            return _error(link, seen, 403, seen.refused.kind, seen.refused.message)
        if listing is not None:
            region = self.account.region
            told = replies.profiles(region) if listing[1] == "inference-profiles" else replies.models(region)
            return _whole(link, seen, 200, json.dumps(told).encode())
        if call is None or seen.head.method != "POST":
            return _error(link, seen, 404, "UnknownOperationException", f"no such operation: {path}")
        if plan.status != 200:
            return _error(link, seen, plan.status, plan.error, plan.message)
        model, operation = unquote(call[1]), call[2]
        if operation in _STREAMS:
            return _stream(link, seen, plan, self._frames(model, operation))
        said = {"invoke": lambda: replies.invoked(model), "converse": replies.conversed}.get(
            operation, lambda: {"inputTokens": replies.INPUT}
        )
        body = json.dumps(said()).encode() if plan.body is None else plan.body
        return _whole(link, seen, 200, body, pause=plan.pause)

    def _frames(self, model: str, operation: str) -> Iterable[bytes]:
        if self.plan.frames is not None:
            return self.plan.frames
        if operation == "converse-stream":
            return replies.converse_stream(self.plan.words)
        return replies.invoke_stream(model, self.plan.words)


def _request(link: socket.socket, held: bytearray) -> Seen | None:
    """The next request with its body; None where the client has left. Raises OSError."""
    while (end := held.find(END_OF_HEAD)) < 0:
        data = link.recv(1 << 18)
        if not data:
            return None
        held += data
    head = parse_head(bytes(held[: end + 4]))
    del held[: end + 4]
    if head.expects_continue:
        link.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body, reader = bytearray(), body_of(head)
    while not reader.done:
        if not held:
            data = link.recv(1 << 18)
            if not data:
                return None
            held += data
        payload, taken = reader.feed(bytes(held))
        body += payload
        del held[:taken]
    return Seen(head, bytes(body))


def _lines(status: int, fields: dict[str, str]) -> bytes:
    common = {"Date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()), "x-amzn-RequestId": "3a1b-fake"}
    lines = [
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}",
        *(f"{n}: {v}" for n, v in (common | fields).items()),
    ]
    return "\r\n".join(lines).encode() + END_OF_HEAD


def _whole(
    link: socket.socket, seen: Seen, status: int, body: bytes, more: dict[str, str] | None = None, pause: float = 0.0
) -> None:
    counts = {"X-Amzn-Bedrock-Input-Token-Count": str(replies.INPUT)} if status == 200 else {}
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body))} | counts | (more or {})
    link.sendall(_lines(status, fields))
    for start in range(0, len(body), _PIECE):
        time.sleep(pause)
        seen.sent += body[start : start + _PIECE]
        link.sendall(body[start : start + _PIECE])


def _error(link: socket.socket, seen: Seen, status: int, kind: str, message: str) -> None:
    body = json.dumps({"message": message}).encode()
    _whole(link, seen, status, body, {"x-amzn-ErrorType": f"{kind}:http://internal.amazon.com/coral/"})


def _stream(link: socket.socket, seen: Seen, plan: Plan, frames: Iterable[bytes]) -> None:
    fields = {
        "Content-Type": EVENTSTREAM,
        "Transfer-Encoding": "chunked",
        "X-Amzn-Bedrock-Content-Type": "application/json",
    }
    link.sendall(_lines(200, fields))
    for number, frame in enumerate(_cut(frames, plan.cut)):
        if plan.gate is not None:
            _released(link, plan.gate)
        elif plan.pause and number:
            time.sleep(plan.pause)
        seen.sent += frame
        link.sendall(b"%x\r\n%b\r\n" % (len(frame), frame))
    if plan.cut is not None and not plan.ends:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A reset overtakes what was sent before it.
        _drain(link)
        raise _Cut
    link.sendall(b"0\r\n\r\n")


def _cut(frames: Iterable[bytes], at: int | None) -> Iterator[bytes]:
    """The frames, or their first `at` bytes."""
    left = at
    for frame in frames:
        if left is None:
            yield frame
            continue
        if piece := frame[:left]:
            yield piece
        left -= len(piece)
        if not left:
            return


def _released(link: socket.socket, gate: threading.Semaphore) -> None:
    """Until the test lets the next frame go. Raises OSError where the client has left meanwhile."""
    while not gate.acquire(timeout=0.05):
        link.setblocking(False)
        try:
            if not link.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError("the client has left")
        except BlockingIOError:
            pass
        finally:
            link.setblocking(True)


def _drain(link: socket.socket) -> None:
    """Until the peer's kernel has all that was sent (Linux: SIOCOUTQ)."""
    import fcntl
    import termios

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = struct.unpack("i", fcntl.ioctl(link, termios.TIOCOUTQ, b"\0" * 4))[0]
        if not left:
            return
        time.sleep(0.002)
