"""Segment files: the journal's append-only store. One segment belongs to one run of the proxy.

A file is a 48-byte header and blocks; a block is a 24-byte header (length, CRC-32, its place in the run's stream of
frames) and whole frames. The place lets a reader pass over what was written twice: once by the drain, and once more
by the recovery of a ring whose last release was lost with the process.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SEGMENT_HEADER = struct.Struct("<8s16sQqq")  # magic, run id, number, wall ns, monotonic ns at creation
BLOCK_HEADER = struct.Struct("<4sIIIQ")  # magic, length, CRC-32, (zero), place in the run's stream
SEGMENT_MAGIC = b"LLMSEG1\n"
BLOCK_MAGIC = b"BLK1"
# No block is larger than a ring may be; a longer one is damage, not data.
MAX_BLOCK = 1 << 30


class SegmentHead(NamedTuple):
    """Who wrote a segment, and when by both clocks (nanoseconds)."""

    run: bytes
    number: int
    wall_ns: int
    monotonic_ns: int


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.seg"


def numbers(folder: Path) -> list[int]:
    """The segments there are, oldest first."""
    with os.scandir(folder) as entries:
        stems = (entry.name[:-4] for entry in entries if entry.name.endswith(".seg"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())


def total_size(folder: Path) -> int:
    """Bytes of all segments."""
    size = 0
    for number in numbers(folder):
        try:
            size += path_of(folder, number).stat().st_size
        except FileNotFoundError:  # the keeper has just settled it
            continue
    return size


class SegmentWriter:
    """Appends blocks to one segment. After an OSError the segment is left for good: open another."""

    def __init__(self, folder: Path, head: SegmentHead) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self.number = head.number
        self.fd = os.open(path_of(folder, head.number), flags, 0o600)
        self.size = 0
        try:
            self._write([memoryview(SEGMENT_HEADER.pack(SEGMENT_MAGIC, *head))])
        except OSError:
            os.close(self.fd)
            path_of(folder, head.number).unlink(missing_ok=True)
            raise

    def append(self, block: memoryview, place: int) -> None:
        """Write a block of whole frames; all of it or, after OSError, nothing of it."""
        head = BLOCK_HEADER.pack(BLOCK_MAGIC, len(block), zlib.crc32(block), 0, place)
        self._write([memoryview(head), block])

    def _write(self, parts: list[memoryview]) -> None:
        size = sum(map(len, parts))
        try:
            while parts:
                written = os.writev(self.fd, parts)
                while parts and written >= len(parts[0]):
                    written -= len(parts.pop(0))
                if written:
                    parts[0] = parts[0][written:]
        except OSError:
            try:
                os.ftruncate(self.fd, self.size)
            except OSError:  # then the block's CRC tells the reader
                pass
            raise
        self.size += size

    def sync(self) -> None:
        os.fdatasync(self.fd) if hasattr(os, "fdatasync") else os.fsync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def read_head(data: bytes) -> SegmentHead | None:
    """The header at the start of a segment; None where it is no segment of ours or not whole yet."""
    if len(data) < SEGMENT_HEADER.size:
        return None
    magic, *facts = SEGMENT_HEADER.unpack_from(data)
    return SegmentHead(*facts) if magic == SEGMENT_MAGIC else None


class Block(NamedTuple):
    """A block header as found at `offset` of a segment; its frames follow it."""

    offset: int
    length: int
    crc: int
    place: int

    @property
    def start(self) -> int:
        return self.offset + BLOCK_HEADER.size

    @property
    def end(self) -> int:
        return self.start + self.length


def block_at(fd: int, offset: int) -> Block | None:
    """The block header at an offset; None where there is none (yet), or only damage."""
    head = os.pread(fd, BLOCK_HEADER.size, offset)
    if len(head) < BLOCK_HEADER.size:
        return None
    magic, length, crc, _, place = BLOCK_HEADER.unpack(head)
    return Block(offset, length, crc, place) if magic == BLOCK_MAGIC and length <= MAX_BLOCK else None


def blocks(fd: int, size: int) -> Iterator[Block]:
    """The headers of all blocks that lie whole within the first `size` bytes."""
    offset = SEGMENT_HEADER.size
    while (block := block_at(fd, offset)) is not None and block.end <= size:
        yield block
        offset = block.end
