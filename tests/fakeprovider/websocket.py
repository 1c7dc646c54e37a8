"""The server's side of WebSockets (RFC 6455) with permessage-deflate (RFC 7692), and the Responses API over them.

Bytes in, steps out; the server owns the connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fakeprovider import responses
from tests.fakeprovider.answers import dumps
from tests.fakeprovider.delivery import End, Step
from tests.fakeprovider.faults import Plan
from tests.fakeprovider.http1 import Head
from tests.fakeprovider.routes import call_from
from tests.fakeprovider.seen import SeenRequest

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
TAIL = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.1: left off each compressed message
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN, COMPRESSED = 0x80, 0x40
PROTOCOL_ERROR = 1002


class BadFrame(Exception):
    """The peer broke RFC 6455."""


@dataclass(frozen=True, slots=True)
class Deflate:
    """What was agreed on for permessage-deflate: the field to answer with, and our window in bits."""

    field: str
    window: int
    keep_context: bool


def agree(offers: str) -> Deflate | None:
    """The first usable offer of permessage-deflate, taken as offered."""
    for offer in offers.split(","):
        name, *rest = (part.strip() for part in offer.split(";"))
        parameters = {key.strip(): value.strip().strip('"') for key, _, value in (part.partition("=") for part in rest)}
        window = int(parameters.get("server_max_window_bits") or 15)
        if name != "permessage-deflate" or window < 9:  # zlib cannot do 8
            continue
        taken: list[str] = [
            key for key in ("server_no_context_takeover", "client_no_context_takeover") if key in parameters
        ]
        if "server_max_window_bits" in parameters:
            taken.append(f"server_max_window_bits={window}")
        return Deflate("; ".join([name, *taken]), window, "server_no_context_takeover" not in parameters)
    return None


def handshake(head: Head, deflate: Deflate | None) -> bytes:
    """The 101 that accepts the upgrade (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(head.get(b"sec-websocket-key").encode() + GUID).digest()
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest),
    ]
    if deflate:
        lines.append(b"Sec-WebSocket-Extensions: " + deflate.field.encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


def frame(opcode: int, payload: bytes, flags: int = FIN) -> bytes:
    """One frame, unmasked as a server's are."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", flags | opcode, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", flags | opcode, 126, size) + payload
    return struct.pack("!BBQ", flags | opcode, 127, size) + payload


class Session:
    """One upgraded connection: `feed` takes what arrives and gives the steps to play."""

    def __init__(self, head: Head, seen: SeenRequest, plan: Plan, deflate: Deflate | None) -> None:
        self._head, self._seen, self._plan, self._deflate = head, seen, plan, deflate
        self._held = bytearray()
        self._message = bytearray()
        self._opcode = 0
        self._compressed = False
        self._inflater = zlib.decompressobj(-15)
        self._deflater = zlib.compressobj(wbits=-(deflate.window if deflate else 15))
        self.closing = False  # the next steps are the last ones; nothing that waits needs to be sent

    def feed(self, data: bytes) -> Iterator[Iterator[Step]]:
        """One sequence of steps for each frame that wants an answer; what arrived is read at once, answered lazily."""
        self._held += data
        try:
            for first, payload in self._frames():
                yield self._take(first, payload)
        except (BadFrame, zlib.error, UnicodeDecodeError):
            yield self._close(struct.pack("!H", PROTOCOL_ERROR))

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """Whole frames, unmasked; the first byte stands for opcode and flags."""
        held = self._held
        while len(held) >= 2:
            size, at = held[1] & 0x7F, 2
            if size >= 126:
                width = 2 if size == 126 else 8
                if len(held) < at + width:
                    return
                size, at = int.from_bytes(held[at : at + width], "big"), at + width
            if not held[1] & 0x80:
                raise BadFrame("a client's frame is masked")  # RFC 6455 §5.1
            if len(held) < at + 4 + size:
                return
            mask, payload = bytes(held[at : at + 4]), bytes(held[at + 4 : at + 4 + size])
            first = held[0]
            del held[: at + 4 + size]
            yield first, _unmasked(payload, mask)

    def _take(self, first: int, payload: bytes) -> Iterator[Step]:
        opcode = first & 0x0F
        if opcode == CLOSE:
            return self._close(payload[:2])
        if opcode == PING:
            return iter([frame(PONG, payload)])
        if opcode not in (TEXT, BINARY, CONTINUATION, PONG):
            raise BadFrame(f"opcode {opcode}")
        if opcode == PONG:
            return iter(())
        if opcode != CONTINUATION:
            self._opcode, self._compressed = opcode, bool(first & COMPRESSED)
            self._message.clear()
        self._message += payload
        return self._answer(self._whole()) if first & FIN else iter(())

    def _close(self, reason: bytes) -> Iterator[Step]:
        self.closing = True
        return iter([frame(CLOSE, reason), End.FIN])

    def _whole(self) -> str | bytes:
        data = bytes(self._message)
        if self._compressed:
            # A client that does not take over its context only refers back less far: one inflater reads both.
            data = self._inflater.decompress(data + TAIL)
        message = data.decode() if self._opcode == TEXT else data
        self._seen.messages.append(message)
        return message

    def _answer(self, message: str | bytes) -> Iterator[Step]:
        """`response.create` is answered with the events of the Responses API; anything else comes back as it is."""
        if "echo" in self._plan:
            yield from self._send(message)
            return
        try:
            body = json.loads(message)
            if body["type"] != "response.create":
                raise ValueError(f"{body['type']} is not response.create")
        except (ValueError, TypeError, KeyError) as exc:
            failure = {"type": "invalid_request_error", "code": "bad_message", "message": str(exc), "param": None}
            yield from self._send(dumps({"type": "error", "status": 400, "error": failure}))
            return
        # Of both faults the number counts messages here.
        end = End.FIN if "cut" in self._plan else End.RESET
        limit = self._plan.get("cut") or self._plan.get("reset") or (-1, "")
        for number, event in enumerate(responses.events(call_from(self._head, body, len(message), self._plan))):
            if number == limit[0]:
                yield end
            if "slow" in self._plan:
                yield self._plan["slow"]
            yield from self._send(dumps(event))

    def _send(self, message: str | bytes) -> Iterator[Step]:
        opcode, data, flags = (TEXT, message.encode(), 0) if isinstance(message, str) else (BINARY, message, 0)
        if self._deflate:
            flags = COMPRESSED
            data = (self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
            if not self._deflate.keep_context:
                self._deflater = zlib.compressobj(wbits=-self._deflate.window)
        size = self._plan.get("fragments") or max(1, len(data))
        for at in range(0, max(1, len(data)), size):
            yield frame(opcode, data[at : at + size], flags | (FIN if at + size >= len(data) else 0))
            if at + size < len(data):
                yield frame(PING, b"still here")
            opcode, flags = CONTINUATION, 0


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
