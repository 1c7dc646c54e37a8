"""The keeper's side of the journal: frames in order, exactly once, from any remembered position on.

Knows segments and blocks, not exchanges. A torn last block of a dead run is passed over; a damaged block is counted
and passed over; a block that stands twice (see `segments`) is given once.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from llm_proxy.journal import segments
from llm_proxy.journal.frames import HEADER_SIZE, Frame, scan
from llm_proxy.journal.segments import SEGMENT_HEADER, Block

OPEN_SEGMENTS = 8


class Position(NamedTuple):
    """A place in the journal: a segment's number and the offset of a frame or block in it."""

    segment: int
    offset: int


class Batch(NamedTuple):
    """Frames of one run (its id in hex), in order. The next batch begins at `end`."""

    run: str
    start: Position
    frames: list[Frame]
    end: Position


def position_of(frame: Frame) -> Position:
    """Where a frame begins, to start reading at it again."""
    return Position(frame.segment, frame.offset - HEADER_SIZE)


class Reader:
    """Reads a journal folder that somebody else may be writing."""

    @property
    def run(self) -> str:
        """Whose frames come next, its id in hex."""
        return self._run.hex()

    def __init__(self, folder: Path, start: Position | None = None) -> None:
        self.folder = folder
        self.damaged = 0
        self.position = start or Position(0, 0)
        self._run = b""
        self._place = 0  # how far the run's stream of frames has been given
        self._files: OrderedDict[int, int] = OrderedDict()
        self._settle_in()

    def _settle_in(self) -> None:
        """Find the block that holds the start position, to know the place in the stream."""
        number, offset = self.position
        there = segments.numbers(self.folder)
        if number not in there:
            later = [other for other in there if other > number]
            self.position = Position(later[0] if later else number, 0)
            return
        fd = self._open(number)
        head = segments.read_head(os.pread(fd, SEGMENT_HEADER.size, 0))
        if head is None:
            return
        self._run = head.run
        for block in segments.blocks(fd, os.fstat(fd).st_size):
            if block.start > offset:
                break
            self._place = block.place + min(block.length, max(0, offset - block.start))
            self.position = Position(number, block.end if offset >= block.end else block.offset)

    def read(self, most: int = 1 << 20) -> Batch | None:
        """The next frames, about `most` bytes of them (at least one block); None when there is nothing new yet."""
        while True:
            number, offset = self.position
            try:
                fd = self._open(number)
            except FileNotFoundError:
                if not self._advance():
                    return None
                continue
            if offset < SEGMENT_HEADER.size:
                head = segments.read_head(os.pread(fd, SEGMENT_HEADER.size, 0))
                if head is None:
                    if not self._advance():
                        return None
                    continue
                if head.run != self._run:
                    self._run, self._place = head.run, 0
                offset = SEGMENT_HEADER.size
                self.position = Position(number, offset)
            start = self.position
            frames = self._read_blocks(fd, number, offset, most)
            if frames:
                return Batch(self._run.hex(), start, frames, self.position)
            if self.position.offset == offset and not self._advance():
                return None

    def _read_blocks(self, fd: int, number: int, offset: int, most: int) -> list[Frame]:
        size = os.fstat(fd).st_size
        frames: list[Frame] = []
        taken = 0
        while taken < most and (block := segments.block_at(fd, offset)) is not None and block.end <= size:
            taken += block.length
            offset = block.end
            frames += self._frames(fd, number, block)
        self.position = Position(number, offset)
        return frames

    def _frames(self, fd: int, number: int, block: Block) -> list[Frame]:
        data = os.pread(fd, block.length, block.start)
        if zlib.crc32(data) != block.crc:
            self.damaged += 1
            return []
        known = max(0, self._place - block.place)
        if known >= block.length:
            return []
        self._place = block.place + block.length
        return list(scan(data[known:] if known else data, number, block.start + known))

    def _advance(self) -> bool:
        """Go on to the next segment, if there is one: only then is the current one finished."""
        number, _ = self.position
        later = [other for other in segments.numbers(self.folder) if other > number]
        if not later:
            return False
        # The writer moves on only after its last append, so one more look settles whether anything came meanwhile.
        try:
            fd = self._open(number)
            block = segments.block_at(fd, max(self.position.offset, SEGMENT_HEADER.size))
            if block is not None and block.end <= os.fstat(fd).st_size:
                return True
            if block is not None or os.fstat(fd).st_size > max(self.position.offset, SEGMENT_HEADER.size):
                self.damaged += 1
        except FileNotFoundError:
            pass
        self.position = Position(later[0], 0)
        return True

    def fetch(self, segment: int, offset: int, length: int) -> bytes:
        """A payload once more. Raises OSError where the segment is gone."""
        return os.pread(self._open(segment), length, offset)

    def lag(self) -> int:
        """Bytes of segments not read yet."""
        number, offset = self.position
        size = 0
        for other in segments.numbers(self.folder):
            if other >= number:
                try:
                    size += segments.path_of(self.folder, other).stat().st_size
                except FileNotFoundError:
                    continue
        return max(0, size - offset)

    def forget(self, before: Position) -> int:
        """Delete segments wholly before a position, never the newest. Returns how many went."""
        gone = [number for number in segments.numbers(self.folder)[:-1] if number < before.segment]
        for number in gone:
            segments.path_of(self.folder, number).unlink(missing_ok=True)
            if (fd := self._files.pop(number, None)) is not None:
                os.close(fd)
        return len(gone)

    def forget_all(self) -> None:
        """Delete every segment: all of them are settled, and the caller holds the writer lock."""
        self.close()
        for number in segments.numbers(self.folder):
            segments.path_of(self.folder, number).unlink(missing_ok=True)

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _open(self, number: int) -> int:
        fd = self._files.get(number)
        if fd is None:
            fd = os.open(segments.path_of(self.folder, number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._files[number] = fd
            if len(self._files) > OPEN_SEGMENTS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(number)
        return fd
