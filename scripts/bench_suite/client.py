"""What is sent, and a client on a bare socket that adds as little as possible to what it measures."""

from __future__ import annotations

import itertools
import socket
import time

from bench_suite.contestants import Contestant

SESSIONS = 16
ANSWER = 2000  # bytes of the answer's body

# 18 fields, as a call of the official Python SDK has them; X-Fake is how the answer is asked for.
_HEAD = """\
POST {prefix}{path} HTTP/1.1\r
Host: 127.0.0.1:{port}\r
Accept-Encoding: gzip, deflate\r
Connection: keep-alive\r
Accept: application/json\r
Content-Type: application/json\r
User-Agent: Anthropic/Python 0.75.0\r
X-Stainless-Lang: python\r
X-Stainless-Package-Version: 0.75.0\r
X-Stainless-OS: Linux\r
X-Stainless-Arch: x64\r
X-Stainless-Runtime: CPython\r
X-Stainless-Runtime-Version: 3.11.7\r
X-Api-Key: sk-ant-api03-{key}\r
X-Stainless-Async: false\r
anthropic-version: 2023-06-01\r
X-Claude-Code-Session-Id: 5f0c3a52-0000-4000-8000-{session:012d}\r
X-Fake: {fake}\r
Content-Length: {length}\r
{extra}\r
"""
_serial = itertools.count()


def request(
    to: Contestant, size: int, *, session: int = 0, fake: str = f"fixed={ANSWER}", fresh: bool = False
) -> bytes:
    """A call with a body of `size` bytes. With `fresh` its head has a field that no other call's has."""
    frame = b'{"model":"claude-sonnet-4-5","max_tokens":1024,"messages":[{"role":"user","content":"%b"}]}'
    body = frame % (b"x" * (size - len(frame) + 2))
    return head(to, len(body), session=session, fake=fake, fresh=fresh) + body


def head(
    to: Contestant, length: int, *, session: int = 0, fake: str = "", fresh: bool = False, path: str = "/v1/messages"
) -> bytes:
    extra = f"X-Client-Request-Id: {next(_serial):032x}\r\n" if fresh else ""
    text = _HEAD.format(
        prefix=to.prefix, path=path, port=to.port, key="k" * 95, session=session, fake=fake, length=length, extra=extra
    )
    return text.encode()


class Client:
    """One connection, one call at a time, answers of one length."""

    def __init__(self, to: Contestant) -> None:
        self.to = to
        self._link = socket.create_connection(("127.0.0.1", to.port), timeout=30)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._length = 0  # of a whole answer, once known
        self._room = bytearray(1 << 16)

    def call(self, message: bytes) -> int:
        """Send, read the whole answer; the time it took in ns. Raises OSError."""
        link, room = self._link, self._room
        begun = time.perf_counter_ns()
        link.sendall(message)
        got = link.recv_into(room)
        length = self._length or self._learn(got)
        while got < length:
            more = link.recv_into(room)
            if not more:
                raise ConnectionError(f"{self.to.name} closed the connection after {got} of {length} bytes")
            got += more
        return time.perf_counter_ns() - begun

    def close(self) -> None:
        self._link.close()

    def _learn(self, got: int) -> int:
        """The length of every answer, from the first one's head."""
        start, separator, _ = bytes(self._room[:got]).partition(b"\r\n\r\n")
        if not separator or not start.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"{self.to.name} answered {start[:200]!r}")
        fields = dict(line.lower().split(b": ", 1) for line in start.split(b"\r\n")[1:])
        self._length = len(start) + 4 + int(fields[b"content-length"])
        return self._length
