"""Event-stream frames, packed from the format's description: lengths, their CRC, headers, payload, CRC of all."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any
from zlib import crc32

JSON = "application/json"
PADDING = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def frame(payload: bytes, headers: dict[str, str]) -> bytes:
    """One frame whose headers are all strings."""
    packed = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(packed) + len(payload), len(packed))
    body = prelude + struct.pack(">I", crc32(prelude)) + packed + payload
    return body + struct.pack(">I", crc32(body))


def event(kind: str, fields: Any) -> bytes:
    data = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return frame(data, {":event-type": kind, ":content-type": JSON, ":message-type": "event"})


def chunk(fields: Any) -> bytes:
    """A model's own event, as InvokeModelWithResponseStream wraps it."""
    said = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return event("chunk", {"bytes": base64.b64encode(said).decode(), "p": PADDING[: 1 + len(said) % 60]})


def exception(kind: str, message: str) -> bytes:
    """`kind` as the service's model spells it: throttlingException."""
    data = json.dumps({"message": message}).encode()
    return frame(data, {":exception-type": kind, ":content-type": JSON, ":message-type": "exception"})


def error(code: str, message: str) -> bytes:
    """A failure that is in no model; all is in the headers."""
    return frame(b"", {":error-code": code, ":error-message": message, ":message-type": "error"})


def damaged(whole: bytes, at: int = -6) -> bytes:
    """The frame with one bit wrong, by default in its payload."""
    spoiled = bytearray(whole)
    spoiled[at] ^= 1
    return bytes(spoiled)
