"""What is noted and not yet written, in files of memory: what a process that is killed leaves behind for the next one.

In memory, because whoever notes waits for nothing and a disk may stall; where there is none of it nothing is kept. Each
process has two files and holds their locks while it lives, so whose lock is free are left behind. Leaves out what a
line says. `add` and `done` are for an event loop, the rest is for a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from typing import Final

PLACE: Final = Path("/dev/shm")
MOST: Final = 4 << 20  # bytes of a file; what comes beyond is in the process alone
_TURN: Final = 256 << 10  # bytes after which the other file has its turn
_CREATED: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_OPENED: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def name_of(state: str) -> str:
    """How the files of all processes with this folder begin."""
    return f"llm-proxy-usage-{os.geteuid()}-{sha256(os.fsencode(state)).hexdigest()[:16]}-"


class Noted:
    """One process' files. Lines are done with in the order in which they came. Raises OSError where there are none."""

    def __init__(self, state: str, place: Path = PLACE) -> None:
        self._files = [_File(place, name_of(state)), _File(place, name_of(state))]
        self._added = self._done = 0
        self._older: int | None = None  # what the other file has is done with when so many are

    def add(self, line: bytes) -> None:
        """Never fails: what finds no room is not kept, and counts all the same."""
        self._added += 1
        self._files[0].add(line)

    def done(self, count: int) -> None:
        """So many lines more need not be kept."""
        self._done += count
        current, other = self._files
        if self._older is not None and self._done >= self._older:
            other.clear()
            self._older = None
        if self._done >= self._added:
            current.clear()
        elif self._older is None and current.size > _TURN:
            self._files.reverse()
            self._older = self._added

    def close(self) -> None:
        """What is not done with stays for the next."""
        for file in self._files:
            file.close(keep=self._done < self._added)


class _File:
    def __init__(self, place: Path, name: str) -> None:
        token = secrets.token_hex(8)
        self._path = place / f"{name}{token}"
        self.size = 0
        new = place / f".{name}{token}"  # under its name only with its lock: nobody must take it for left behind
        self._fd = os.open(new, _CREATED, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        new.rename(self._path)

    def add(self, line: bytes) -> None:
        if self.size + len(line) > MOST:
            return
        try:
            if os.write(self._fd, line) == len(line):
                self.size += len(line)
                return
        except OSError:
            pass
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.size)

    def clear(self) -> None:
        if self.size:
            self.size = 0
            os.ftruncate(self._fd, 0)

    def close(self, keep: bool) -> None:
        if not keep or not self.size:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def left_behind(state: str, place: Path = PLACE) -> Generator[list[bytes], None, None]:
    """The lines of each file whose process is gone; it is deleted when the next is asked for. Raises OSError."""
    for path in sorted(place.glob(f"{name_of(state)}*")):
        try:
            fd = os.open(path, _OPENED)
        except OSError:  # another has deleted it, or it is none of ours
            continue
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            with open(fd, "rb", closefd=False) as file:
                yield file.read(MOST).splitlines()
            path.unlink(missing_ok=True)
        finally:
            os.close(fd)
