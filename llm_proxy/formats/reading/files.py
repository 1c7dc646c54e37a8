"""Finds calls in files of unknown origin: which files, which format each is in, where in it the calls stand.

Two passes: `Catalogue` looks through everything and holds only where calls are; then they are read one by one, in the
order in which they were made, so that conversations find together however they are scattered. Leaves out formats.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol
from uuid import UUID

import msgspec

from llm_proxy.formats.reading import claude_trace, proxy_llm, sessions, taco
from llm_proxy.formats.reading.foreign import Foreign, Found, OwnLog, Part, Place, Unreadable, decoded

SUFFIXES = (".jsonl", ".jsonl.gz")
OWN_COMPRESSED = ".jsonl.zst"
LONGEST_LINE = 256 << 20
# Bytes that a compressed file may come to, and lines that are looked at to tell a format.
LARGEST = 8 << 30
_LOOKED_AT = 50


class Format(Protocol):
    """What each format's module offers."""

    NAME: str

    def recognises(self, line: dict[str, Any]) -> bool: ...

    def find(self, path: str, lines: Iterable[tuple[Place, bytes]]) -> Iterator[Found | Part | Unreadable]: ...

    def read(self, found: Found, lines: list[bytes]) -> Foreign: ...


FORMATS: tuple[Format, ...] = (sessions, taco, claude_trace, proxy_llm)


class Skipped(NamedTuple):
    """Why something was left out, how often, and where that was first."""

    why: str
    times: int
    first: str


@dataclass(slots=True)
class Omissions:
    """Counts of what was left out."""

    _counts: Counter[str] = field(default_factory=Counter)
    _first: dict[str, str] = field(default_factory=dict)

    def add(self, why: str, where: str) -> None:
        self._counts[why] += 1
        self._first.setdefault(why, where)

    def all(self) -> list[Skipped]:
        """The most frequent first."""
        return [Skipped(why, count, self._first[why]) for why, count in self._counts.most_common()]


class Catalogue:
    """Where calls stand in files. `files` counts those of each format; what was left out is in `no_files`, `no_calls`.

    Compressed files are unpacked into the folder `scratch` (made where it is missing): every line can be found again.
    """

    def __init__(self, scratch: Path) -> None:
        self.files: Counter[str] = Counter()
        self.no_files, self.no_calls = Omissions(), Omissions()
        self.copies = 0  # of calls that stand elsewhere too
        self._scratch = scratch
        self._calls: dict[UUID, tuple[Format, Found]] = {}
        self._parts: dict[str, list[Place]] = {}
        self._named: dict[str, str] = {}  # unpacked path -> path

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, path: str) -> None:
        """Look through one file. Never raises for what stands in it, or for a file that cannot be read."""
        try:
            plain = self._unpacked(path)
            form = _format(plain)
            if form is None:
                self.no_files.add("no format that is known here", path)
            else:
                self._take(form, path, plain)
        except OwnLog:
            self.no_files.add("llm-proxy wrote it itself: copy it to the same place below the log folder", path)
        except (OSError, EOFError, zlib.error) as error:
            self.no_files.add(f"cannot be read: {getattr(error, 'strerror', None) or error}", path)

    def _take(self, form: Format, path: str, plain: str) -> None:
        calls: list[Found] = []
        parts: list[Part] = []
        for one in form.find(path, numbered(plain, lambda: self.no_calls.add("longer than any line may be", path))):
            if isinstance(one, Unreadable):
                self.no_calls.add(str(one), path)
            elif isinstance(one, Part):
                parts.append(one)
            else:
                calls.append(one)
        self.files[form.NAME] += 1
        for part in parts:
            self._parts.setdefault(part.key, []).append(part.line)
        for call in calls:
            known = self._calls.get(call.id)
            self.copies += known is not None
            if known is None or (call.answered and not known[1].answered):
                self._calls[call.id] = form, call

    def _unpacked(self, path: str) -> str:
        if path.endswith(OWN_COMPRESSED):
            raise OwnLog
        if not path.endswith(".gz"):
            return path
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        target = str(self._scratch / str(len(self._named)))
        with opened(path) as packed, gzip.open(packed) as lines, open(target, "xb") as plain:  # noqa: PTH123
            left = LARGEST
            while data := lines.read(1 << 20):
                left -= len(data)
                if left < 0:
                    raise OSError(f"unpacked it is larger than {LARGEST >> 30} GB")
                plain.write(data)
        self._named[target] = path
        return target

    # -- reading

    def found(self) -> list[tuple[Format, Found]]:
        """All calls, those of one machine together, in the order they began."""
        calls = [(form, self._with_parts(found)) for form, found in self._calls.values()]
        return sorted(calls, key=lambda call: (call[1].machine, call[1].started))

    def _with_parts(self, found: Found) -> Found:
        parts = self._parts.get(found.key, ()) if found.key else ()
        return found._replace(lines=(*found.lines, *parts))

    def read(self, form: Format, found: Found) -> Foreign | None:
        """The call; None, and it is counted, where its lines tell none."""
        try:
            return form.read(found, [line_at(place) for place in found.lines])
        except Unreadable as error:
            why = str(error)
        except OSError as error:
            why = f"cannot be read any more: {error.strerror or error}"
        path = found.lines[0].path
        self.no_calls.add(why, self._named.get(path, path))
        return None


def files(path: Path) -> Iterator[str]:
    """The file itself, or all log files below a folder by their names; links in it are not followed."""
    if not path.is_dir():
        yield str(path)
        return
    for folder, below, names in os.walk(path):
        below.sort()
        for name in sorted(names):
            if name.endswith((*SUFFIXES, OWN_COMPRESSED)):
                yield os.path.join(folder, name)  # noqa: PTH118


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A regular file, for reading. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb", buffering=1 << 20) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("it is no regular file")
        yield file


def numbered(path: str, too_long: Callable[[], None]) -> Iterator[tuple[Place, bytes]]:
    """The lines of a file that are not empty, with their places; `too_long` is told of what is none. Raises OSError."""
    offset = 0
    with opened(path) as file:
        while line := file.readline(LONGEST_LINE):
            length = len(line)
            if length == LONGEST_LINE and not line.endswith(b"\n"):
                too_long()
                while line and not line.endswith(b"\n"):
                    line = file.readline(1 << 20)
                    length += len(line)
            elif not line.isspace():
                yield Place(path, offset, length), line
            offset += length


def line_at(place: Place) -> bytes:
    """Raises OSError."""
    with opened(place.path) as file:
        file.seek(place.offset)
        return file.read(place.length)


_ANY = msgspec.json.Decoder(dict[str, Any])


def _format(path: str) -> Format | None:
    """By the first line that one of them recognises."""
    for number, (_, line) in enumerate(numbered(path, lambda: None)):
        if number == _LOOKED_AT:
            break
        try:
            told = decoded(_ANY, line)
        except Unreadable:
            continue
        for form in FORMATS:
            if form.recognises(told):
                return form
    return None
