"""What the fake provider saw and sent: requests, responses and connections, byte for byte.

These grow while they happen, so a test can look at a request that never becomes complete. Nothing beyond the
server's `limit` of each message is kept; sizes count everything.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class SeenRequest:
    """One request. `size` is the payload's length in bytes, kept or not; `plan` is what `X-Fake` asked for.

    After an upgrade `raw_body` holds all bytes behind the head and `messages` the WebSocket messages in them.
    """

    raw_head: bytes
    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    connection: int
    plan: dict[str, object]
    limit: int
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    messages: list[str | bytes] = field(default_factory=list)
    size: int = 0
    complete: bool = False
    _payload: bytearray = field(default_factory=bytearray)
    _wire: bytearray = field(default_factory=bytearray)
    _hash: hashlib._Hash | None = None

    @property
    def body(self) -> bytes:
        """The payload: chunk framing off, content coding still on."""
        return bytes(self._payload)

    @property
    def raw_body(self) -> bytes:
        """The body as it came over the wire, chunk framing and trailers included."""
        return bytes(self._wire)

    @property
    def sha256(self) -> str:
        """Of the whole payload where the request asked for `upload-sink`, else of what was kept."""
        return (self._hash or hashlib.sha256(self._payload)).hexdigest()

    def header(self, name: str) -> str | None:
        """The first field of that name, whatever its case."""
        wanted = name.lower().encode("latin-1")
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), None)

    def hash_payload(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, payload: bytes, wire: bytes) -> None:
        self.size += len(payload)
        if self._hash is not None:
            self._hash.update(payload)
        if len(self._payload) < self.limit:
            self._payload += payload[: self.limit - len(self._payload)]
        if len(self._wire) < self.limit:
            self._wire += wire[: self.limit - len(self._wire)]


@dataclass(slots=True, eq=False)
class SeenResponse:
    """What was sent in answer to `request`: interim heads, head, body, whatever came behind. `size` counts all of it.

    `complete` is False for as long as the answer goes on, and for good if a fault or the client broke it off.
    """

    request: SeenRequest
    connection: int
    limit: int
    size: int = 0
    complete: bool = False
    _wire: bytearray = field(default_factory=bytearray)

    @property
    def raw(self) -> bytes:
        return bytes(self._wire)

    def add(self, wire: bytes) -> None:
        self.size += len(wire)
        if len(self._wire) < self.limit:
            self._wire += wire[: self.limit - len(self._wire)]


@dataclass(slots=True, eq=False)
class SeenConnection:
    """One connection. Times are the event loop's, in seconds.

    `closed_by` is "none" (still open), "fin" or "rst" (the client's), or "ours".
    """

    number: int
    opened: float
    closed: float | None = None
    closed_by: str = "none"
    requests: int = 0


@dataclass(slots=True)
class Counts:
    """Kept in every mode, also where nothing else is."""

    connections: int = 0
    open_connections: int = 0
    requests: int = 0
    responses: int = 0
    payload_bytes: int = 0
    sent_bytes: int = 0
