"""The folder of log files: appends whole lines or nothing, follows no link, notices when a file is taken away.

Knows of a line only what is needed after a crash: which half of which exchange it is. Leaves out what lines say
(`session_jsonl`).
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import msgspec

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_READ_AT_ONCE = 1 << 20


# Types of entries that are written once per exchange; others, such as prices, may stand between them.
_ONCE = frozenset({"request", "response", "gap"})


class Known(NamedTuple):
    """An entry found in a file: which half of which exchange, with which number, and where it stands."""

    id: UUID
    type: str
    seq: int
    offset: int = 0
    length: int = 0


class _Meta(msgspec.Struct):
    request_id: str = ""


class _Found(msgspec.Struct):
    type: str
    meta: _Meta = msgspec.field(name="_meta", default_factory=_Meta)
    seq: int = 0


_read_found = msgspec.json.Decoder(_Found).decode


class LogFile:
    """An open file that only grows, by whole lines. `size` is where the next one goes."""

    __slots__ = ("_identity", "dirty", "fd", "path", "size")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is no regular file")
        self.size = found.st_size
        self._identity = (found.st_dev, found.st_ino)
        self.dirty = False

    def append(self, data: bytes) -> None:
        """All of it in one write or, after OSError, nothing of it."""
        self.dirty = True
        try:
            written = os.write(self.fd, data)
            while written < len(data):  # a full disk takes a part of it: the next attempt says why
                written += os.write(self.fd, memoryview(data)[written:])
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(data)

    def in_place(self) -> bool:
        """Whether the path still leads to this file, and nobody has cut or grown it."""
        try:
            found = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_dev, found.st_ino) == self._identity and found.st_size == self.size

    def known_after(self, start: int) -> Iterator[Known]:
        """The entries that stand beyond `start`; afterwards a torn last line has been cut off."""
        rest = b""
        begins, offset = start, start
        while data := os.pread(self.fd, _READ_AT_ONCE, offset):
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                length = len(line) + 1
                yield from _known(line, begins, length)
                begins += length
        if rest:
            self.size = begins
            os.ftruncate(self.fd, self.size)

    def ends_whole(self) -> bool:
        """Whether the next line would begin on a line of its own."""
        return not self.size or os.pread(self.fd, 1, self.size - 1) == b"\n"


def _known(data: bytes, offset: int, length: int) -> Iterator[Known]:
    try:
        found = _read_found(data)
        if found.type in _ONCE:
            yield Known(UUID(found.meta.request_id), found.type, found.seq, offset, length)
    except (msgspec.MsgspecError, ValueError):  # a session_start, or no entry of ours
        return


class Logs:
    """The folder of all session files, with the last used ones kept open."""

    def __init__(self, root: Path, keep_open: int = 128) -> None:
        self.root = root
        self._keep_open = keep_open
        self._files: OrderedDict[str, LogFile] = OrderedDict()
        self._folders: set[Path] = set()  # with new names in them that are not on disk yet
        self._closed_dirty = False

    def file(self, path: str) -> LogFile:
        """The file at a path relative to the folder, made where it is missing. Raises OSError, also for a link."""
        file = self._files.get(path)
        if file is not None and file.in_place():
            self._files.move_to_end(path)
            return file
        self._drop(path)
        file = self._files[path] = self._open(path)
        if len(self._files) > self._keep_open:
            self._drop(next(iter(self._files)))
        return file

    def sync(self) -> None:
        """All that was written is on disk when this returns. Raises OSError."""
        dirty = [file for file in self._files.values() if file.dirty]
        if self._closed_dirty:  # more files than are kept open: one call for all of them
            os.sync()
        else:
            for file in dirty:
                os.fdatasync(file.fd) if hasattr(os, "fdatasync") else os.fsync(file.fd)
            for folder in self._folders:
                _sync_folder(folder)
        for file in dirty:
            file.dirty = False
        self._folders.clear()
        self._closed_dirty = False

    def close(self) -> None:
        for path in list(self._files):
            self._drop(path)

    def _drop(self, path: str) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            self._closed_dirty |= file.dirty
            os.close(file.fd)

    def _open(self, path: str) -> LogFile:
        *folders, name = path.split("/")
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        where = self.root
        above = os.open(where, _FOLDER)
        try:
            for folder in folders:
                try:
                    os.mkdir(folder, 0o700, dir_fd=above)
                    self._folders.add(where)
                except FileExistsError:
                    pass
                where = where / folder
                below = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
                os.close(above)
                above = below
            fd = os.open(name, _FILE, 0o600, dir_fd=above)
        except OSError as error:
            error.filename = str(where / name)
            raise
        finally:
            os.close(above)
        try:
            file = LogFile(where / name, fd)
        except OSError:
            os.close(fd)
            raise
        if not file.size:
            self._folders.add(where)
        return file


def _sync_folder(folder: Path) -> None:
    try:
        fd = os.open(folder, _FOLDER)
    except FileNotFoundError:  # taken away since
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
