"""HTTP/1.1 as the fake provider reads it: heads and body framing, kept as they came.

Lenient on purpose: it must show what arrived, not judge it. Leaves out answering (`delivery`).
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEAD = 1 << 20
END_OF_HEAD = b"\r\n\r\n"


class BadRequest(Exception):
    """The bytes cannot be read as an HTTP/1 request; what arrived so far is kept."""


@dataclass(frozen=True, slots=True)
class Head:
    """A request head. `length` is Content-Length (0 without one); field values are stripped of outer blanks only."""

    raw: bytes
    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    length: int
    chunked: bool
    expects_continue: bool
    keep_alive: bool
    upgrade: str

    @property
    def path(self) -> str:
        return self.origin.partition("?")[0]

    @property
    def query(self) -> str:
        return self.origin.partition("?")[2]

    @property
    def origin(self) -> str:
        """The target in origin form: of the absolute form only path and query (RFC 9112 §3.2.2)."""
        if not self.target.lower().startswith(("http://", "https://")):
            return self.target
        slash = self.target.find("/", self.target.index("//") + 2)
        return self.target[slash:] if slash > 0 else "/"

    def get(self, name: bytes) -> str:
        """All fields of that (lower-case) name, joined by commas."""
        return ",".join(value.decode("latin-1") for key, value in self.headers if key.lower() == name)


def parse_head(raw: bytes) -> Head:
    """Read a head that ends with its empty line. Raises BadRequest."""
    line, *rest = raw[: -len(END_OF_HEAD)].split(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise BadRequest(f"not a request line: {line[:80]!r}")
    headers = fields(rest)
    known: dict[bytes, bytes] = {}
    for name, value in headers:
        known[name.lower()] = known[name.lower()] + b"," + value if name.lower() in known else value
    connection = known.get(b"connection", b"").lower()
    length = known.get(b"content-length", b"0")
    if not length.isdigit():
        raise BadRequest(f"not a Content-Length: {length[:80]!r}")
    return Head(
        raw=raw,
        method=words[0].decode("latin-1"),
        target=words[1].decode("latin-1"),
        headers=headers,
        length=int(length),
        chunked=b"chunked" in known.get(b"transfer-encoding", b"").lower(),
        expects_continue=known.get(b"expect", b"").lower() == b"100-continue",
        keep_alive=b"close" not in connection and (words[2] != b"HTTP/1.0" or b"keep-alive" in connection),
        upgrade=known.get(b"upgrade", b"").decode("latin-1").lower() if b"upgrade" in connection else "",
    )


def fields(lines: list[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Field lines as (name, value). Raises BadRequest for one without a colon."""
    found = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadRequest(f"not a field line: {line[:80]!r}")
        found.append((name, value.strip(b" \t")))
    return tuple(found)


class Sized:
    """A body of Content-Length bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length
        self.trailers: tuple[tuple[bytes, bytes], ...] = ()

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Payload in `data`, and how many bytes of it belong to this body."""
        taken = data[: self._left]
        self._left -= len(taken)
        self.done = not self._left
        return taken, len(taken)


class Chunked:
    """A body in chunks (RFC 9112 §7.1)."""

    def __init__(self) -> None:
        self._held = b""  # the start of a line whose end has not arrived
        self._left = 0  # of the chunk at hand, with the line end behind it
        self._lines: list[bytes] | None = None  # of the trailer section, once it has begun
        self.done = False
        self.trailers: tuple[tuple[bytes, bytes], ...] = ()

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Payload in `data`, and how many bytes of it belong to this body. Raises BadRequest."""
        payload, at = bytearray(), 0
        while at < len(data) and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                payload += piece[: max(0, self._left - 2)]
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._held += data[at:]
                return bytes(payload), len(data)
            self._take_line((self._held + data[at:end]).removesuffix(b"\r"))
            self._held = b""
            at = end + 1
        return bytes(payload), at

    def _take_line(self, line: bytes) -> None:
        if self._lines is None:
            try:
                size = int(line.partition(b";")[0].strip(), 16)
            except ValueError as exc:
                raise BadRequest(f"not a chunk size: {line[:80]!r}") from exc
            if size:
                self._left = size + 2
            else:
                self._lines = []
        elif line:
            self._lines.append(line)
        else:
            self.trailers = fields(self._lines)
            self.done = True


def body_of(head: Head) -> Sized | Chunked:
    return Chunked() if head.chunked else Sized(head.length)
