"""The proxy's side of the journal: one ring, one thread that drains it into segments, recovery after a crash.

The event loop only ever copies into the ring. Everything that can block (writes, `fdatasync`, counting the folder's
size) happens in two threads here. When the disk stalls or is full, the ring fills, body frames are dropped and
counted, and traffic goes on. Leaves out what frames mean (`frames`) and who reads them (`reader`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_proxy.journal import segments
from llm_proxy.journal.ring import Ring, RingUnusable
from llm_proxy.journal.segments import SegmentHead, SegmentWriter

SEGMENT_SIZE = 64 << 20
# How long the thread lets frames gather before it looks again: few wake-ups, and a ring that never gets far behind.
GATHER = 0.02
IDLE = 5.0  # seconds without a frame after which a segment is closed, full or not
RETRY = 0.25  # seconds between attempts on a disk that refuses
SYNC_EVERY = 1.0  # seconds: what a power cut may cost


class JournalBusy(Exception):
    """Another process is writing this journal."""


@dataclass(frozen=True, slots=True)
class JournalState:
    """How recording stands: `recording` is ok, degraded (bodies are dropped) or stopped (nothing gets to disk)."""

    recording: str
    reason: str
    backlog: int  # bytes in the ring
    segments: int  # bytes in segment files


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the right to write this journal. Raises JournalBusy, OSError."""
    fd = _lock(folder)
    try:
        yield
    finally:
        os.close(fd)


def _lock(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise JournalBusy(f"another process writes the journal in {folder}") from error
        raise
    return fd


def recover(folder: Path) -> int:
    """Move what a dead writer left in its ring into a segment of its run; returns the bytes moved.

    The caller holds the writer lock. A ring that is gone, damaged or not ours is left alone: there is nothing to be had
    from it. Raises OSError where it may be had at another attempt.
    """
    try:
        path = Path((folder / "ring").read_text())
        Ring.discard_draft(path)
        ring = Ring.attach(path)
    except (FileNotFoundError, PermissionError, ValueError, RingUnusable):
        return 0
    try:
        moved = 0
        if ring.backlog:
            segment = SegmentWriter(folder, _next_head(folder, ring.run))
            try:
                while length := ring.drain(segment.append):
                    moved += length
                segment.sync()
            finally:
                segment.close()
    except OSError:
        ring.close()
        raise
    ring.discard()
    return moved


def has_ring(folder: Path) -> bool:
    """Whether a writer has not come to its end: its ring is still there."""
    try:
        return Path((folder / "ring").read_text()).exists()
    except (OSError, ValueError):
        return False


def _next_head(folder: Path, run: bytes) -> SegmentHead:
    number = max(segments.numbers(folder), default=0) + 1
    return SegmentHead(run, number, time.time_ns(), time.monotonic_ns())


def _ring_places(folder: Path) -> Iterator[Path]:
    """Memory first: a page of a file on disk may have to wait for a write-back that stalls."""
    name = f"llm-proxy-{os.geteuid()}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.ring"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    for place in ("/dev/shm", runtime):
        if place.startswith("/") and os.access(place, os.W_OK):
            yield Path(place, name)
    yield folder / "journal.ring"


def _create_ring(folder: Path, size: int, run: bytes) -> Ring:
    trouble: OSError | None = None
    for path in _ring_places(folder):
        # The pointer first: killed in between, nobody would find the ring to delete it.
        pointer = folder / "ring.new"
        pointer.write_text(str(path))
        pointer.chmod(0o600)
        pointer.replace(folder / "ring")
        try:
            return Ring.create(path, size, run)
        except OSError as error:
            trouble = error
    assert trouble is not None
    raise trouble


class Journal:
    """An open journal. The loop uses `ring` and `wake`; the rest is the threads' business."""

    def __init__(self, folder: Path, lock: int, ring: Ring, segment: SegmentWriter, cap: int) -> None:
        self.folder = folder
        self.ring = ring
        self.cap = cap
        # Only whole segments are given back, so a small journal needs small ones to recover from its cap.
        self.segment_size = min(SEGMENT_SIZE, cap // 8)
        self.bodies = True  # False: the journal has reached its cap, only heads and endings are taken
        self.asleep = False  # the thread waits for the doorbell
        self.alarm = ring.size // 4  # waiting bytes at which the thread is woken before its time
        self.on_drained: Callable[[], None] | None = None
        self._lock = lock
        self._segment = segment
        self._retired: list[SegmentWriter] = []  # full ones, to be synced and closed by the sync thread
        self._broken: str = ""
        self._size = segments.total_size(folder)
        self._sized_at = time.monotonic()
        self._stop = threading.Event()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._dirty = threading.Event()
        self._threads = [
            threading.Thread(target=self._drain_loop, name="journal-drain", daemon=True),
            threading.Thread(target=self._sync_loop, name="journal-sync", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(cls, folder: Path, *, ring_size: int, cap: int) -> Journal:
        """Take the folder over, recover what the last writer left, and start. Raises JournalBusy, OSError."""
        lock = _lock(folder)
        try:
            recover(folder)
            run = secrets.token_bytes(16)
            ring = _create_ring(folder, ring_size, run)
            try:
                segment = SegmentWriter(folder, _next_head(folder, run))
            except OSError:
                ring.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return cls(folder, lock, ring, segment, cap)

    def state(self) -> JournalState:
        backlog = self.ring.backlog
        if self._broken:
            return JournalState("stopped", self._broken, backlog, self._size)
        if not self.bodies:
            reason = f"the journal holds more than {self.cap} bytes that are not in the log files yet"
            return JournalState("degraded", reason, backlog, self._size)
        return JournalState("ok", "", backlog, self._size)

    def wake(self) -> None:
        """Ring the doorbell: the thread drains now. Cheap and safe to call at any time from the loop."""
        self.asleep = False
        try:
            self._bell.release()
        except RuntimeError:  # it has been rung and not been answered yet
            pass

    def close(self) -> None:
        """Drain everything, sync, let go. A ring that cannot be drained stays for the next start."""
        self._stop.set()
        self._dirty.set()
        self.wake()
        for thread in self._threads:
            thread.join(timeout=5)
        last = [*self._retired, self._segment]
        if not self.ring.backlog:
            try:
                for segment in last:
                    segment.sync()
            except OSError:
                pass
            self.ring.discard()
        for segment in last:
            segment.close()
        os.close(self._lock)

    def _drain_loop(self) -> None:
        quiet = 0
        while True:
            moved = self._drain()
            if self._stop.is_set():
                return
            if self._broken:
                self._bell.acquire(timeout=RETRY)
                continue
            quiet = 0 if moved else quiet + 1
            if quiet < 50:
                self._bell.acquire(timeout=GATHER)
                continue
            # `asleep` first, then one more look: the loop rings if it sees `asleep` after its own frame is in.
            self.asleep = True
            if not self.ring.backlog and not self._bell.acquire(timeout=IDLE):
                self._turn_page()
            self.asleep = False
            quiet = 0

    def _turn_page(self) -> None:
        """Nothing has come for a while: what is settled need not lie here until a segment is full.

        The log files have secrets taken out of bodies; the journal has the bodies as they came.
        """
        if self._segment.size <= segments.SEGMENT_HEADER.size:
            return
        try:
            self._next_segment()
        except OSError:  # the next frame will find out
            return
        if self.on_drained is not None:
            self.on_drained()

    def _drain(self) -> int:
        moved, trouble = 0, self._broken
        try:
            if trouble:
                self._next_segment()
            while self.ring.backlog:
                if self._segment.size >= self.segment_size:
                    self._next_segment()
                moved += self.ring.drain(self._segment.append)
            if self._broken is trouble:  # not before it has taken something: a full disk still makes empty files
                self._broken = ""
        except OSError as error:
            self._broken = f"cannot write the journal in {self.folder}: {error.strerror or error}"
        self._size += moved
        self._watch_size()
        if moved:
            self._dirty.set()
            if self.on_drained is not None:
                self.on_drained()
        return moved

    def _next_segment(self) -> None:
        segment = SegmentWriter(self.folder, _next_head(self.folder, self.ring.run))
        old, self._segment = self._segment, segment
        if old.size <= segments.SEGMENT_HEADER.size:  # it never took a block
            old.close()
            segments.path_of(self.folder, old.number).unlink(missing_ok=True)
        else:
            self._retired.append(old)
            self._dirty.set()

    def _watch_size(self) -> None:
        now = time.monotonic()
        if now - self._sized_at < 1 and self._size < self.cap:
            return
        if now - self._sized_at < 0.2:
            return
        self._sized_at = now
        try:
            self._size = segments.total_size(self.folder)
        except OSError:  # the folder is gone; writing will say so
            return
        self.bodies = self._size < self.cap

    def _sync_loop(self) -> None:
        while True:
            self._dirty.wait()
            self._dirty.clear()
            if self._stop.is_set():
                return
            current = self._segment
            retired, self._retired = self._retired, []
            try:
                for segment in retired:
                    segment.sync()
                if current not in retired:
                    current.sync()
            except OSError as error:
                # After a failed sync the kernel may call these pages clean: nothing more goes into this segment.
                self._broken = f"cannot sync the journal in {self.folder}: {error.strerror or error}"
            for segment in retired:
                segment.close()
            self._stop.wait(SYNC_EVERY)
