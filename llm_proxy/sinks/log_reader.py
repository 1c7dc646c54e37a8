"""Session files read back, plain `.jsonl` and compressed `.jsonl.zst` alike.

A place in a file is an offset into its lines, compressed or not. Nothing here writes, and no line is too odd to be
passed over: it is counted by whoever asks. Leaves out what entries mean.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import msgspec

Entry = dict[str, Any]

PLAIN = ".jsonl"
COMPRESSED = ".jsonl.zst"
# Longer lines are passed over: our own stay below this (two bodies of 64 MB in base64, escaped at worst).
LONGEST_LINE = 1 << 30
# The longest window that a file compressed by us needs, and what reading one may cost in memory.
WINDOW_LOG = 27

_decode = msgspec.json.decode
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_AT_ONCE = 1 << 20


def files(root: Path | str) -> Iterator[str]:
    """Session files below the log folder, relative to it, in an order in which the parts of a session follow another.

    Files directly in `root` and names that begin with a dot are none. Links are not followed, folders that cannot be
    read are passed over.
    """
    for top in _folders(root):
        yield from _session_files(root, top)
        for day in _folders(f"{root}/{top}"):
            yield from _session_files(root, f"{top}/{day}")


def order(file: str) -> tuple[str, str, str, bool]:
    """By what `files` sorts. What was compressed is the older part of a session that went on."""
    folder, _, name = file.rpartition("/")
    top, _, day = folder.partition("/")
    return top, day, name.removesuffix(COMPRESSED).removesuffix(PLAIN), name.endswith(PLAIN)


def entries(
    path: Path | str, start: int = 0, skipped: Callable[[int, int], None] | None = None
) -> Iterator[tuple[int, int, Entry]]:
    """(offset, length with the line's end, entry) of each entry from offset `start` on. Raises OSError.

    A last line without its end counts where it is whole. Lines that are no JSON object are told to `skipped` (offset,
    length), except for a last one without its end, which may be still being written. Empty lines are nothing.
    """
    with opened(path) as file:
        offset = start
        file.seek(start)
        while line := file.readline(LONGEST_LINE):
            length = len(line)
            entry = entry_of(line)
            if entry is not None:
                yield offset, length, entry
            elif skipped is not None and line.endswith(b"\n") and not line.isspace():
                skipped(offset, length)
            offset += length


def entry_at(path: Path | str, offset: int, length: int) -> Entry:
    """The entry at a place known from `entries`. Raises OSError, and ValueError where no entry stands there."""
    with opened(path) as file:
        file.seek(offset)
        entry = entry_of(file.read(length))
    if entry is None:
        raise ValueError(f"{path} holds no entry at {offset}")
    return entry


def data_at(path: Path | str, offset: int, length: int) -> bytes:
    """Bytes of the lines as they stand, less where the file ends before. Raises OSError."""
    with opened(path) as file:
        file.seek(offset)
        return file.read(length)


@contextmanager
def opened(path: Path | str) -> Iterator[IO[bytes]]:
    """The file's lines, decompressed. A damaged compressed file raises OSError as any unreadable file does.

    A file that has been compressed since its name was learnt is found too.
    """
    path = str(path)
    try:
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        if not path.endswith(PLAIN):
            raise
        path = path.removesuffix(PLAIN) + COMPRESSED
        fd = os.open(path, _FLAGS)
    with os.fdopen(fd, "rb", buffering=_AT_ONCE) as raw:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no regular file")
        if not path.endswith(COMPRESSED):
            yield raw
            return
        zstd = zstandard()
        options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
        try:
            with io.BufferedReader(zstd.ZstdFile(raw, options=options), _AT_ONCE) as plain:
                yield plain
        except (zstd.ZstdError, EOFError) as error:
            raise OSError(f"{path} is damaged: {error}") from error


def zstandard() -> Any:
    """The zstd module of this Python, imported when first needed."""
    return import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def entry_of(line: bytes) -> Entry | None:
    """The entry that a line is; None where it is none."""
    try:
        entry = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        entry = _tolerant(line)
    except RecursionError:
        return None
    return entry if isinstance(entry, dict) else None


def _tolerant(line: bytes) -> Any:
    """Other programs' lines: lone surrogates, which nobody could write again and become `?`, and NaN."""
    try:
        told = json.loads(line)
        return json.loads(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _folders(path: Path | str) -> list[str]:
    return sorted(one.name for one in _listing(path) if one.is_dir(follow_symlinks=False))


def _session_files(root: Path | str, folder: str) -> list[str]:
    found = (
        f"{folder}/{one.name}"
        for one in _listing(f"{root}/{folder}")
        if one.name.endswith((PLAIN, COMPRESSED)) and one.name[0] != "." and one.is_file(follow_symlinks=False)
    )
    return sorted(found, key=order)


def _listing(path: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return list(found)
    except OSError:
        return []
