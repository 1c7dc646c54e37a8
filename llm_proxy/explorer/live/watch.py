"""All calls in flight, from the journal as it grows. Reads only: the keeper, who deletes what is settled, never waits.

Begins with what the journal still holds (an open call holds its own frames there), goes on from its end. Files that go,
damaged blocks, a new run and a folder made anew are part of life. Leaves out who watches (`hub`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from llm_proxy.explorer.live.call import Call, Manner, Seen, Words
from llm_proxy.journal import segments
from llm_proxy.journal.frames import Frame, Kind, unpack_open
from llm_proxy.journal.reader import Batch, Position, Reader

BACK = 512 << 20  # bytes of the journal that are looked through for calls that are open already
BEHIND = 128 << 20  # bytes; further behind, watching begins anew at the present end
MOST_CALLS = 200  # followed at a time; further ones are counted
STEP = 1 << 20  # bytes read in one go


@dataclass(frozen=True, slots=True)
class Change:
    """What one step has brought for one call. `opened`: it is new; `seen.phase` tells whether it is over."""

    seen: Seen
    words: tuple[Words, ...] = ()
    opened: bool = False


class Watch:
    """Follows the journal in `folder`. `beyond` are open calls that are too many to be followed; with a new
    `generation` what was known before no longer holds."""

    def __init__(self, folder: Path, manner: Manner) -> None:
        self.generation = 0
        self._folder = folder
        self._manner = manner
        self._lock = Lock()
        self._reader: Reader | None = None
        self._run = ""
        self._calls: dict[int, Call] = {}  # by serial, in the order they began
        self._beyond: set[int] = set()
        self._untold: list[Change] = []

    @property
    def beyond(self) -> int:
        return len(self._beyond)

    def look(self) -> list[Seen]:
        """What is in flight now. Whoever follows is told what this has read."""
        with self._lock:
            if self._reader is None:
                return self._glance()
            for _ in range(BEHIND // STEP):
                changes = self._step()
                if changes is None:
                    break
                self._untold += changes
            return [call.seen for call in self._calls.values()]

    def step(self) -> list[Change] | None:
        """Read on, about a megabyte; None where there is nothing new."""
        with self._lock:
            untold, self._untold = self._untold, []
            changes = self._step()
        return untold + (changes or []) if untold or changes is not None else None

    def forget(self) -> None:
        """Nobody watches any more: the next look begins anew."""
        with self._lock:
            self._begin_anew()

    close = forget

    # -- reading

    def _glance(self) -> list[Seen]:
        """Nobody follows: nothing is kept open, lest a file that the keeper deletes keeps its place on the disk."""
        once = Watch(self._folder, self._manner)
        once.step()
        seen = [call.seen for call in once._calls.values()]
        once.close()
        self._beyond = once._beyond
        return seen

    def _step(self) -> list[Change] | None:
        try:
            if self._reader is None:
                self._reader, open_calls = _begin(self._folder)
                return self._replay(open_calls)
            if self._replaced() or self._reader.lag() > BEHIND:
                self._begin_anew()
                return self._step() or []
            batch = self._reader.read(STEP)
        except OSError:  # the folder is not there (yet), or a file went between two looks
            return None
        return None if batch is None else self._take(batch)

    def _replay(self, batches: Iterator[Batch]) -> list[Change]:
        """The calls that are open already, as if they had just begun."""
        for batch in batches:
            self._take(batch)
        return [Change(call.seen, tuple(call.said()), opened=True) for call in self._calls.values()]

    def _replaced(self) -> bool:
        """Whether the folder was emptied and filled anew with lower numbers, as a daemon does that starts again."""
        assert self._reader is not None
        numbers = segments.numbers(self._folder)
        return bool(numbers) and numbers[-1] < self._reader.position.segment

    def _begin_anew(self) -> None:
        """What goes on is found again."""
        self._forget()
        self._calls.clear()
        self._beyond.clear()
        self._untold.clear()
        self.generation += 1

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _all_over(self) -> list[Change]:
        """What is not known to go on."""
        changes = []
        for call in self._calls.values():
            call.interrupt()
            changes.append(Change(call.seen, tuple(call.said())))
        self._calls.clear()
        self._beyond.clear()
        return changes

    # -- frames

    def _take(self, batch: Batch) -> list[Change]:
        changes: list[Change] = []
        if batch.run != self._run:
            changes += self._all_over()
            self._run = batch.run
        opened: set[int] = set()
        touched: dict[int, Call] = {}
        for frame in batch.frames:
            if frame.kind == Kind.OPEN:
                if self._open(frame):
                    opened.add(frame.serial)
                    touched[frame.serial] = self._calls[frame.serial]
                continue
            call = self._calls.get(frame.serial)
            if call is not None:
                call.take(frame)
                touched[frame.serial] = call
            elif frame.kind == Kind.END:
                self._beyond.discard(frame.serial)
        for serial, call in touched.items():
            changes.append(Change(call.seen, tuple(call.said()), serial in opened))
            if call.over:
                del self._calls[serial]
        return changes

    def _open(self, frame: Frame) -> bool:
        if len(self._calls) >= MOST_CALLS:
            self._beyond.add(frame.serial)
            return False
        try:
            opening = unpack_open(frame.payload)
        except (struct.error, ValueError):  # nothing can be said of a call without it
            return False
        call = Call(frame, opening, self._manner)
        if call.hidden:
            return False
        self._calls[frame.serial] = call
        return True


def _begin(folder: Path) -> tuple[Reader, Iterator[Batch]]:
    """A reader at the present end, and the frames so far of the calls that are open there. Raises OSError."""
    start = Position(_oldest(folder), 0)
    reader = Reader(folder, start)
    run = ""
    open_calls: set[int] = set()
    while batch := reader.read(STEP):
        if batch.run != run:
            run = batch.run
            open_calls.clear()
        for frame in batch.frames:
            if frame.kind == Kind.OPEN:
                open_calls.add(frame.serial)
            elif frame.kind == Kind.END:
                open_calls.discard(frame.serial)
    return reader, _again(folder, start, reader.position, run, open_calls)


def _again(folder: Path, start: Position, end: Position, run: str, wanted: set[int]) -> Iterator[Batch]:
    if not wanted:
        return
    with closing(Reader(folder, start)) as reader:
        while reader.position < end and (batch := reader.read(STEP)):
            if batch.run == run:
                frames = [
                    frame
                    for frame in batch.frames
                    if frame.serial in wanted and Position(frame.segment, frame.offset) < end
                ]
                yield batch._replace(frames=frames)


def _oldest(folder: Path) -> int:
    """The first segment to look through."""
    size, oldest = 0, 0
    for number in reversed(segments.numbers(folder)):
        try:
            size += segments.path_of(folder, number).stat().st_size
        except FileNotFoundError:  # settled in this moment
            continue
        if size > BACK and oldest:
            break
        oldest = number
    return oldest
