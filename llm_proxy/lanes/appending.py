"""Files that sinks add lines to, without losing or repeating one when a process is killed.

How far a file was when the cursor was committed stands in the sink's ledger. After a crash, lines beyond that which
are the very ones to be written are not written again. A file that was moved, cut, or opened and saved by somebody
else meanwhile is just gone on with. Where lines have to go, the rest takes the file's place. Leaves out what lines say.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from llm_proxy.sinks.deletions import sync_folder

PACKED = ".gz"  # how the name of a file ends in which each line is packed by itself
Records = Callable[[IO[bytes]], Iterable[bytes]]  # a file's lines, or what it has instead; joined they are the file
_BEGUN = "begun"  # in a ledger: its lane has written, or may have been killed while it did
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOR_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Unreadable(Exception):
    """A file is not what its sink writes. The message says what it cannot be read as."""


class Appender:
    """Appends to files by name. `ledger`: path -> [inode, size] as last committed, with what is new since."""

    def __init__(self) -> None:
        self.ledger: dict[str, Any] = {}
        self._unsure: set[str] = set()
        self._known: set[str] | None = None  # written to since; None where no file can be one of a run before

    def resume(self, ledger: dict[str, Any]) -> None:
        """As it was when the cursor was committed; empty for a lane that begins."""
        self.ledger = dict(ledger) | {_BEGUN: True}
        self._unsure = {name for name in ledger if name.startswith("/")}
        self._known = set(self._unsure) if _BEGUN in ledger else None

    def append(self, path: Path, data: bytes, head: bytes = b"", *, lines: bool = True) -> None:
        """All of `data`, or after OSError nothing of it; `head` comes first in a file that is new or empty.

        Of `lines`, the first begins on a line of its own, whatever others have left at the end of the file.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = _locked(path, _FLAGS)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{path} is no regular file")
            size = found.st_size
            stands = self._stands(fd, path, found, data)
            if not size:
                data = head + data
            elif stands:
                data = data[stands:]
            elif lines and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data
            _write(fd, data, size)
            self.ledger.pop(str(path), None)  # the last written to stands last
            self.ledger[str(path)] = [found.st_ino, size + len(data)]
            self._unsure.discard(str(path))
            if self._known is not None:
                self._known.add(str(path))
        finally:
            os.close(fd)

    def take_out(self, path: Path, gone: Callable[[bytes], object], records: Records = iter) -> str:
        """Of a file, all records that are `gone`, at once or not at all; without one it stays as it is. Raises OSError.

        A file of which nothing is left goes. Gives in words why nothing can be taken out of this one, "" where it can.
        """
        draft = path.with_name(f".new-{path.name}")
        try:
            fd = _locked(path, _FOR_READING)
        except FileNotFoundError:
            return ""
        try:
            draft.unlink(missing_ok=True)  # somebody was killed
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return f"{path} is no regular file"
            if not any(map(gone, records_of(path, records))):
                return ""
            kept = (record for record in records_of(path, records) if not gone(record))
            size, inode = _write_beside(draft, kept, found)
            self.ledger.pop(str(path), None)
            if size:
                draft.replace(path)
                self.ledger[str(path)] = [inode, size]
            else:
                path.unlink()
                draft.unlink()
            sync_folder(path.parent)
            return ""
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            return f"{path} cannot be read: {error}"
        except Unreadable as error:
            draft.unlink(missing_ok=True)
            return f"{path} cannot be read {error}"
        finally:
            os.close(fd)

    def remember_last(self, keep: int = 64) -> None:
        """Only the last files written to are remembered."""
        for path in [name for name in self.ledger if name.startswith("/")][:-keep]:
            del self.ledger[path]

    def _stands(self, fd: int, path: Path, found: os.stat_result, data: bytes) -> int:
        """How many bytes of `data` stand in the file already: written, and killed before that was committed."""
        if self._known is not None and str(path) not in self._known:
            return _at_end(fd, found.st_size, data)
        if str(path) not in self._unsure:
            return 0
        inode, size = self.ledger[str(path)]
        if inode != found.st_ino or found.st_size <= size:
            return 0
        beyond = os.pread(fd, len(data) + 1, size)
        return len(beyond) if data.startswith(beyond) else 0


def _locked(path: Path, flags: int) -> int:
    """The file of that name, which nobody puts another in the place of while it is open here. Raises OSError."""
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            found = path.lstat()
            if (found.st_dev, found.st_ino) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino):
                return fd
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                os.close(fd)
                raise
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def records_of(path: Path, records: Records = iter) -> Iterator[bytes]:
    """Raises OSError, EOFError, zlib.error."""
    with gzip.open(path) if path.name.endswith(PACKED) else path.open("rb") as file:
        yield from records(file)  # type: ignore[arg-type]


def _write_beside(draft: Path, kept: Iterable[bytes], like: os.stat_result) -> tuple[int, int]:
    """Size and inode of what is on the disk now, with mode and time of another file."""
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as out:
        for record in kept:
            out.write(gzip.compress(record, mtime=0) if draft.name.endswith(PACKED) else record)
        out.flush()
        os.fchmod(out.fileno(), stat.S_IMODE(like.st_mode))
        os.utime(out.fileno(), ns=(like.st_atime_ns, like.st_mtime_ns))
        os.fsync(out.fileno())
        found = os.fstat(out.fileno())
    return found.st_size, found.st_ino


def _at_end(fd: int, size: int, data: bytes) -> int:
    """How much of the beginning of `data` the file ends with, from the beginning of a line on.

    For a file whose first lines of ours were never committed: nobody knows where they begin.
    """
    begins = max(0, size - len(data) - 1)  # with the end of the line before, if there is one
    tail = os.pread(fd, size - begins, begins)
    at = tail.find(b"\n") + 1 or len(tail) if begins else 0
    while at < len(tail):
        if data.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(b"\n", at) + 1 or len(tail)
    return 0


def _write(fd: int, data: bytes, size: int) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        os.ftruncate(fd, size)
        raise
