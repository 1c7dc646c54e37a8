"""Pictures that stand in base64 in recorded bodies: found, measured, and told by their first bytes. Pure.

Whatever a client or a model calls it: only what begins as PNG, JPEG, GIF or WebP is a picture here.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

LARGEST = 32 << 20  # bytes of a picture
# A JSON string that is all base64, with or without what a data URL has before it. Slashes may be escaped.
_BASE64 = re.compile(
    rb'(?<!\\)"(?:data:image\\?/[a-zA-Z0-9.+-]{1,40};base64,)?((?:iVBORw0KGgo|\\?/9j\\?/|R0lGOD|UklGR)[A-Za-z0-9+/=\\]*)"'
)


@dataclass(frozen=True, slots=True)
class Blob:
    """A picture. `width` and `height` are 0 where its head does not tell them."""

    type: str
    data: bytes
    width: int = 0
    height: int = 0

    @property
    def sha256(self) -> str:
        return sha256(self.data).hexdigest()


def pictures(body: bytes) -> Iterator[Blob]:
    """The pictures in a JSON body, or in the events of a stream, in their order."""
    for match in _BASE64.finditer(body):
        try:
            data = base64.b64decode(match[1].replace(b"\\/", b"/") + b"==")
        except ValueError:
            continue
        found = picture(data)
        if found is not None:
            yield found


def picture(data: bytes) -> Blob | None:
    """Told by its first bytes; None for anything else."""
    for type, begins, measure in _KINDS:
        if data.startswith(begins) and len(data) <= LARGEST:
            try:
                return Blob(type, data, *measure(data))
            except (struct.error, IndexError):
                return Blob(type, data)
    return None


def _png(data: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", data, 16)


def _gif(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<HH", data, 6)


def _jpeg(data: bytes) -> tuple[int, int]:
    """From the frame header (ITU-T T.81, B.2.2), the first marker C0 to CF that is no table."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return 0, 0


def _webp(data: bytes) -> tuple[int, int]:
    if data[8:12] != b"WEBP":
        raise IndexError
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    bits = int.from_bytes(data[21:25], "little")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


_KINDS = (
    ("image/png", b"\x89PNG\r\n\x1a\n", _png),
    ("image/jpeg", b"\xff\xd8\xff", _jpeg),
    ("image/gif", b"GIF8", _gif),
    ("image/webp", b"RIFF", _webp),
)
