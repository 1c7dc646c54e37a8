"""Rows that the store could not be given, in a file of ours until it can: JSON lines, 0600, of a bounded size.

Several processes may share the file, as while one follows another: each step holds its lock, and its first line says
which filling it is, so that none goes on reading in another one. A row may come twice, after a crash; whoever puts it
into the store does so by its id. Leaves out what rows are. All of it blocks, so it is for a thread.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

MOST: Final = 64 << 20  # bytes; about 150,000 rows
_BLOCK: Final = 1 << 18  # bytes read at once; no row is as long
_NAME: Final = 32  # characters of the first line
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode

Row = dict[str, Any]


class Spool:
    """The file at `path`, which need not exist. Raises OSError where it cannot be used."""

    def __init__(self, path: Path, most: int = MOST) -> None:
        self._path = path
        self._most = most
        self._name = b""
        self._read = 0  # how far we have read in the filling of that name, its first line included
        self._next = 0

    def holds_something(self) -> bool:
        try:
            return self._path.stat().st_size > 0
        except FileNotFoundError:
            return False

    def add(self, rows: Sequence[Row]) -> int:
        """How many of them found room; none does that comes after one which did not."""
        with self._locked(os.O_CREAT | os.O_APPEND) as fd:
            size = os.fstat(fd).st_size
            data = bytearray()
            if size == 0:
                data += secrets.token_hex(_NAME // 2).encode() + b"\n"
            elif os.pread(fd, 1, size - 1) != b"\n":  # a crash cut a line off: it must not spoil the next one
                data += b"\n"
            count = 0
            for row in rows:
                line = _encode(row) + b"\n"
                if size + len(data) + len(line) > self._most:
                    break
                data += line
                count += 1
            try:
                while data:
                    del data[: os.write(fd, data)]
            except OSError:
                os.ftruncate(fd, size)
                raise
            return count

    def some(self) -> tuple[list[Row], int]:
        """The next rows, and how many lines among them are none; nothing at all where all have been read."""
        with self._locked() as fd:
            name = os.pread(fd, _NAME + 1, 0)
            if name != self._name:
                self._name, self._read = name, (name.find(b"\n") + 1) or len(name)
            block = os.pread(fd, _BLOCK, self._read)
            block = block[: block.rfind(b"\n") + 1] or block
            self._next = self._read + len(block)
            rows: list[Row] = []
            lines = block.split(b"\n")
            for line in filter(None, lines):
                try:
                    rows.append(_decode(line))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
            return rows, len(lines) - lines.count(b"") - len(rows)

    def done(self) -> None:
        """What `some` gave need not come again."""
        with self._locked() as fd:
            if os.pread(fd, _NAME + 1, 0) != self._name:
                return
            self._read = self._next
            if os.fstat(fd).st_size <= self._read:
                os.ftruncate(fd, 0)

    @contextmanager
    def _locked(self, flags: int = 0) -> Iterator[int]:
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)
