"""The ring: a small shared mapping that frames are copied into before the bytes they describe are forwarded.

A copy into a shared mapping outlives the process, so SIGKILL loses nothing; no system call is made on the way. One
writer (the event loop) moves `head`, one reader (the drain thread) moves `tail`; both are totals of bytes ever
written, their place in the ring is the remainder. The payload is written first and `head` published last, so what
lies between tail and head is always whole frames. Frames never wrap: a PAD frame fills up to the ring's end.
Leaves out who drains it and where to (`writer`).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

from llm_proxy.journal.frames import HEADER, HEADER_SIZE, Kind

MAGIC = b"LLMRING1"
PAGE = 4096  # the control page before the data
_CONTROL = struct.Struct("<8sQ16s")  # magic, size of the data area, run id
_HEAD, _TAIL = 8, 16  # indexes of the two totals, in 8-byte words of the control page: on cache lines of their own
# Part of the ring kept for frames without bodies: who called whom is recorded even where bodies no longer fit.
RESERVE = 8  # as a divisor of its size


class RingUnusable(Exception):
    """The mapping cannot be made, or the file is not one of ours."""


class Ring:
    """A mapped ring file. `put` is the writer's, `drain` the reader's."""

    __slots__ = ("_head", "_map", "_view", "_words", "path", "reserve", "run", "size", "tail")

    def __init__(self, mapping: mmap.mmap, path: Path) -> None:
        magic, size, run = _CONTROL.unpack_from(mapping)
        if magic != MAGIC or size != len(mapping) - PAGE:
            raise RingUnusable(f"{path} is not a ring file")
        self._map = mapping
        self._view = memoryview(mapping)[PAGE:]
        self._words = memoryview(mapping)[:PAGE].cast("Q")
        self.path = path
        self.size = size
        self.run: bytes = run
        self.reserve = size // RESERVE
        self._head = self._words[_HEAD]
        self.tail = self._words[_TAIL]
        if not 0 <= self._head - self.tail <= size:
            raise RingUnusable(f"{path} holds impossible offsets")

    @classmethod
    def create(cls, path: Path, size: int, run: bytes) -> Ring:
        """A fresh ring file in place of any other; its blocks are allocated now, so that writing cannot fail later.

        Raises OSError.
        """
        cls.discard_draft(path)
        draft = _draft(path)
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _allocate(fd, PAGE + size)
            mapping = mmap.mmap(fd, PAGE + size)
            _CONTROL.pack_into(mapping, 0, MAGIC, size, run)
            draft.replace(path)
        finally:
            os.close(fd)
        return cls(mapping, path)

    @staticmethod
    def discard_draft(path: Path) -> None:
        """Delete what a process killed in `create` has left."""
        _draft(path).unlink(missing_ok=True)

    @classmethod
    def attach(cls, path: Path) -> Ring:
        """Map what an earlier process left. Raises FileNotFoundError, RingUnusable."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            facts = os.fstat(fd)
            if facts.st_uid != os.geteuid() or facts.st_size <= PAGE:
                raise RingUnusable(f"{path} is not a ring file of ours")
            return cls(mmap.mmap(fd, facts.st_size), path)
        finally:
            os.close(fd)

    def put(self, frames: bytes, payload: bytes = b"", after: bytes = b"", spare: int = 0) -> int:
        """Copy whole frames in and publish them. Returns the bytes now waiting to be drained; 0: they do not fit.

        `frames` are packed frames, the last one's payload perhaps apart in `payload` (so that a large body is copied
        once), `after` more packed frames. `spare` bytes are to stay free.
        """
        split = len(frames)
        end = split + len(payload)
        need = end + len(after)
        head = self._head
        size = self.size
        place = head % size
        room = size - place
        wasted = room if need > room else 0
        used: int = head + wasted + need - self._words[_TAIL]
        if used > size - spare:
            return 0
        view = self._view
        if wasted:
            if room >= HEADER_SIZE:
                HEADER.pack_into(view, place, room - HEADER_SIZE, Kind.PAD, 0, 0, 0, 0)
            head += room
            place = 0
        view[place : place + split] = frames
        if payload:
            view[place + split : place + end] = payload
        if after:
            view[place + end : place + need] = after
        self._head = self._words[_HEAD] = head + need
        return used

    @property
    def backlog(self) -> int:
        """Bytes not drained yet."""
        return self._words[_HEAD] - self._words[_TAIL]

    def drain(self, keep: Callable[[memoryview, int], None]) -> int:
        """Hand the next block to `keep(block, place)` and release it; returns the bytes moved, 0 when there is none.

        A block is whole frames in one piece: up to the published head, or up to the ring's end. `place` is where it
        begins in the run's stream. What `keep` raises leaves the block in the ring.
        """
        length = self._waiting()
        if length:
            place = self.tail % self.size
            with self._view[place : place + length] as block:
                keep(block, self.tail)
            self._release(length)
        return length

    def _waiting(self) -> int:
        """Length of the next block: up to the published head, or up to the ring's end."""
        waiting = self.backlog
        room = self.size - self.tail % self.size
        if waiting >= room and room < HEADER_SIZE:  # a gap too small for a PAD frame
            self._release(room)
            return self._waiting()
        length: int = min(waiting, room)
        return length

    def _release(self, length: int) -> None:
        self.tail += length
        self._words[_TAIL] = self.tail

    def discard(self) -> None:
        """Unmap and delete: everything in it is kept elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._view.release()
        self._words.release()
        self._map.close()


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            os.write(fd, zeros[: size - start])
