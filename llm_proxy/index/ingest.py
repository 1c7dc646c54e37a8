"""Brings the index up to date with the log files. Live and rebuild are the same path from lines to rows.

Each file has a cursor, committed together with the rows of the lines before it: whatever is killed, no line counts
twice or not at all. A file that was cut, replaced or taken away loses its rows, and with them those of its sessions,
whose other files are then read again: the files of one session are read in the order of their names.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

from llm_proxy.index import database
from llm_proxy.index.database import Unusable
from llm_proxy.index.lines import Entry, Line
from llm_proxy.index.rows import Fact, Known, Unpaired, facts
from llm_proxy.index.write import FileRow, Writer
from llm_proxy.sinks import log_reader
from llm_proxy.sinks.log_reader import COMPRESSED, PLAIN

TAIL = 64  # bytes before the cursor by which a file is known again
SLICE = 16 << 20  # bytes of lines read in one transaction
TASK = 4 << 20  # bytes of files that are read at once
MUCH = 64 << 20  # bytes of files from which on processes of their own are worth the while

T = TypeVar("T")


class RebuildRuns(Exception):
    """Another process is rebuilding this index; it will be as good as ours."""


class Progress(NamedTuple):
    """How far a rebuild has come: bytes of log files as they lie on disk, and calls found."""

    bytes: int
    total_bytes: int
    calls: int


class _Found(NamedTuple):
    """A file as it is on disk now."""

    inode: int
    size: int


class Indexer:
    """The index at `path` of the log files below `logs_root`. Raises sqlite3.Error, OSError; can be called again after.

    Any number of processes may take lines: each transaction looks first where the index stands. What is damaged is
    begun anew; until `complete`, files are missing in it, and `catch_up_all` should be called.
    """

    def __init__(self, path: Path, logs_root: Path) -> None:
        self.root = logs_root.absolute()
        self.path = path
        self.complete = False
        self._open()

    def close(self) -> None:
        self._db.close()

    # -- live

    def take(self, lines: Sequence[Line]) -> None:
        """Lines just written, those of a file in order. Where the index is not at a line's offset the file is read."""
        by_file: dict[str, list[Line]] = {}
        for line in lines:
            if "/" in line.file:  # what lies in the log folder itself is no session's
                by_file.setdefault(line.file, []).append(line)
        for file in self._insist(lambda: self._take(by_file)):
            self.catch_up(file)

    def _take(self, by_file: dict[str, list[Line]]) -> list[str]:
        """Gives the files that were not as expected."""
        stale = []
        with self._transaction() as writer:
            for file, lines in by_file.items():
                row, found = writer.file(file), _look(f"{self.root}/{file}")
                if row is None and found is not None:
                    row = FileRow(0, file, found.inode, 0, 0, b"", 0)
                if row is None or found is None or found.inode != row.inode or not _follow(lines, row.cursor):
                    stale.append(file)
                    continue
                end = lines[-1].offset + lines[-1].length
                new = not row.id
                row = writer.put_file(row._replace(cursor=end, tail=_tail(self.root / file, end)))
                writer.apply(row.id, self._facts(writer, lines))
                if new and writer.comes_late(row):
                    stale += [file, *writer.drop_file(row)]
        return sorted(stale, key=log_reader.order)

    # -- catching up

    def catch_up(self, file: str) -> None:
        """What has become of one file: it grew, is another, was compressed or gone; and of its session's next part."""
        plain = file.removesuffix(COMPRESSED).removesuffix(PLAIN)
        self._bring([plain + COMPRESSED, plain + PLAIN])

    def catch_up_all(self, go_on: Callable[[], bool] | None = None) -> bool:
        """Every file, also those that are gone. Gives whether it came to the end before `go_on` said no.

        Who does not want to be asked is spared the wait where there is much, and nothing known: that is a rebuild.
        """
        known = self._insist(self._known)
        stale = self._stale(known)
        if go_on is None and not known and sum(size for _, size in stale) > MUCH:
            with suppress(RebuildRuns):
                self.rebuild()
                return True
        for group in _groups(stale):
            if go_on is not None and not go_on():
                return False
            self._bring(group)
        self.complete = True
        return True

    def _stale(self, known: dict[str, FileRow]) -> list[tuple[str, int]]:
        """(file, bytes to read) of those that are not as they were. Gone ones first: they may have been compressed."""
        present = dict.fromkeys(log_reader.files(self.root))
        stale = []
        for file in [*(one for one in known if one not in present), *present]:
            row, found = known.get(file), _look(f"{self.root}/{file}")
            if row is None or found is None or not _nothing_new(row, found):
                stale.append((file, found.size - (row.cursor if row else 0) if found else 0))
        return stale

    def _known(self) -> dict[str, FileRow]:
        self._look_after()
        with database.told():
            return self._writer.files()

    def _bring(self, files: list[str]) -> None:
        while files:
            # Once more: what is too long for one transaction, and files whose rows went with another's.
            files = sorted(set(self._insist(partial(self._catch_up, files))), key=log_reader.order)

    def _catch_up(self, files: list[str]) -> list[str]:
        """One transaction's worth; gives what is left."""
        with self._transaction() as writer:
            for place, file in enumerate(files, start=1):
                if again := self._step(writer, file):
                    return [*again, *files[place:]]
        return []

    def _step(self, writer: Writer, file: str) -> list[str]:
        """Gives the files that are to be looked at next: this one again, or others of its sessions."""
        row, found = writer.file(file), _look(f"{self.root}/{file}")
        others: list[str] = []
        if row is not None and not (found is not None and self._is_same(row, found)):
            if found is None and self._was_compressed(writer, row):
                return []
            others, row = writer.drop_file(row), None
        if found is None or (row is not None and _nothing_new(row, found)):
            return others
        new = row is None
        row = writer.put_file(row or FileRow(0, file, found.inode, 0, 0, b"", 0))
        more = self._read(writer, row, found)
        if new and writer.comes_late(row):
            return [*others, file, *writer.drop_file(row)]
        return [*others, file] if more else others

    def _is_same(self, row: FileRow, found: _Found) -> bool:
        if found.inode != row.inode:
            return False
        if row.path.endswith(COMPRESSED):
            return found.size == row.disk_size or not row.disk_size
        if found.size <= row.cursor:
            return found.size == row.cursor
        return _tail(self.root / row.path, row.cursor) == row.tail

    def _was_compressed(self, writer: Writer, row: FileRow) -> bool:
        """Compressed, a file has the same lines at the same places: only its name is another."""
        file = row.path.removesuffix(PLAIN) + COMPRESSED
        path = f"{self.root}/{file}"
        found = _look(path)
        if not row.path.endswith(PLAIN) or found is None or writer.file(file) is not None:
            return False
        try:
            if _tail(path, row.cursor) != row.tail or log_reader.data_at(path, row.cursor, 1):
                return False
        except OSError:
            return False
        writer.put_file(row._replace(path=file, inode=found.inode, disk_size=found.size))
        return True

    def _read(self, writer: Writer, row: FileRow, found: _Found) -> bool:
        """A slice of a file's new lines. Gives whether there is more; what cannot be read is passed over."""
        reading = _Reading(self.root, row.path, row.cursor)
        limit = SLICE if row.path.endswith(PLAIN) else None
        writer.apply(row.id, self._facts(writer, reading.lines(limit)))
        writer.put_file(reading.seen(row, found))
        return reading.more

    def _facts(self, writer: Writer, lines: Iterable[Line]) -> Iterator[Fact]:
        def request_of(session: str, call: str) -> Entry | None:
            place = writer.request_place(session, call)
            if place is None:
                return None
            try:
                return log_reader.entry_at(self.root / place[0], place[1], place[2])
            except (OSError, ValueError):
                return None

        return facts(lines, writer.known, request_of)

    # -- rebuilding

    def rebuild(self, progress: Callable[[Progress], None] | None = None, workers: int | None = None) -> int:
        """All rows anew from the log files; until that is done the old ones serve. Gives the number of calls.

        `workers` are processes beside this one; by default as many as there are cores, none for little work.
        Raises RebuildRuns.
        """
        with database.locked(self.path.with_name(f"{self.path.name}.rebuild"), wait=False) as ours:
            if not ours:
                raise RebuildRuns(f"{self.path} is being rebuilt by another process")
            draft = self.path.with_name(f"{self.path.name}.new")
            draft.unlink(missing_ok=True)
            db = database.open_draft(draft)
            try:
                calls = self._build(db, progress, workers)
                self._insist(lambda: self._replace_by(db))
            finally:
                db.close()
                draft.unlink(missing_ok=True)
        self.catch_up_all(lambda: True)
        return calls

    def _build(self, db: sqlite3.Connection, progress: Callable[[Progress], None] | None, workers: int | None) -> int:
        writer = Writer(db)
        sizes = {file: found.size for file in log_reader.files(self.root) if (found := _look(f"{self.root}/{file}"))}
        total = sum(sizes.values())
        done = calls = 0
        db.execute("BEGIN")
        for group in _read_all(self.root, sizes, _workers(workers, total)):
            for one in group:
                row = writer.put_file(one.row)
                calls += writer.apply(row.id, self._paired(writer, one.facts))
                done += sizes[row.path]
            if progress is not None:
                progress(Progress(done, total, calls))
        db.execute("COMMIT")
        database.finish_draft(db)
        return calls

    def _paired(self, writer: Writer, given: Iterable[Fact]) -> Iterator[Fact]:
        for fact in given:
            if isinstance(fact, Unpaired):
                yield from self._facts(writer, [fact.line])
            else:
                yield fact

    def _replace_by(self, db: sqlite3.Connection) -> None:
        """In one transaction, so that whoever has the index open goes on with the new rows."""
        self._look_after()
        self._writer.forget()
        with database.told():
            db.backup(self._db)
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- the database

    def _open(self) -> None:
        try:
            self._db = database.open_for_writing(self.path)
        except Unusable:
            database.move_aside(self.path, database.identity_of(self.path))
            self._db = database.open_for_writing(self.path)
        self._identity = database.identity_of(self.path)
        self._writer = Writer(self._db)
        self._version = -1

    def _look_after(self) -> None:
        """Another process may have moved a damaged index aside."""
        if database.identity_of(self.path) != self._identity:
            self._db.close()
            self.complete = False
            self._open()

    @contextmanager
    def _transaction(self) -> Iterator[Writer]:
        self._look_after()
        db = self._db
        with database.told():
            db.execute("BEGIN IMMEDIATE")
            try:
                (version,) = db.execute("PRAGMA data_version").fetchone()
                if version != self._version:
                    self._writer.forget()
                    self._version = version
                yield self._writer
                db.execute("COMMIT")
            except BaseException:
                self._writer.forget()
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _insist(self, action: Callable[[], T]) -> T:
        """A damaged index is begun anew, once."""
        try:
            return action()
        except Unusable:
            database.move_aside(self.path, self._identity)
            self._look_after()
            return action()


# --- files


class _Reading:
    """Lines of one file as they are read, and how far that came."""

    def __init__(self, root: Path, file: str, start: int) -> None:
        self._path, self._file = root / file, file
        self._start = self.end = start
        self.skipped = 0
        self.more = False

    def lines(self, limit: int | None = None) -> Iterator[Line]:
        try:
            for offset, length, entry in log_reader.entries(self._path, self._start, self._skip):
                self.end = offset + length
                yield Line(self._file, offset, length, entry)
                if limit is not None and self.end - self._start >= limit:
                    self.more = True
                    return
        except OSError:  # damaged, or taken away meanwhile: what could be read counts
            return

    def _skip(self, offset: int, length: int) -> None:
        self.end = offset + length
        self.skipped += 1

    def seen(self, row: FileRow, found: _Found) -> FileRow:
        try:
            tail = _tail(self._path, self.end)
        except OSError:
            tail = b""
        size = found.size if self._file.endswith(COMPRESSED) else 0
        return row._replace(disk_size=size, cursor=self.end, tail=tail, skipped=row.skipped + self.skipped)


def _look(path: str) -> _Found | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return _Found(found.st_ino, found.st_size) if stat.S_ISREG(found.st_mode) else None


def _nothing_new(row: FileRow, found: _Found) -> bool:
    size = row.disk_size if row.path.endswith(COMPRESSED) else row.cursor
    return found.inode == row.inode and found.size == size


def _follow(lines: Sequence[Line], offset: int) -> bool:
    for line in lines:
        if line.offset != offset:
            return False
        offset += line.length
    return True


def _tail(path: Path | str, end: int) -> bytes:
    start = max(0, end - TAIL)
    return blake2b(log_reader.data_at(path, start, end - start), digest_size=8).digest() if end else b""


# --- reading everything, in processes of their own


class _FileFacts(NamedTuple):
    row: FileRow
    facts: list[Fact]


def _workers(wanted: int | None, total: int) -> int:
    if wanted is not None:
        return wanted
    return min(8, os.cpu_count() or 1) if total > MUCH else 0


def _read_all(root: Path, sizes: dict[str, int], workers: int) -> Iterator[list[_FileFacts]]:
    """Facts of all files, in order."""
    tasks = [(root, files) for files in _groups(sizes.items())]
    if not workers:
        yield from map(_read_files, tasks)
        return
    with get_context("spawn").Pool(workers) as pool:
        # Few ahead of the writer: what is read waits in memory.
        ahead = [pool.apply_async(_read_files, (task,)) for task in islice(tasks, 2 * workers + 2)]
        rest = iter(tasks[len(ahead) :])
        while ahead:
            yield ahead.pop(0).get()
            ahead += [pool.apply_async(_read_files, (task,)) for task in islice(rest, 1)]


def _groups(files: Iterable[tuple[str, int]], limit: int = TASK) -> Iterator[list[str]]:
    """Files in their order, so many at a time that they are about `limit` bytes long together."""
    group: list[str] = []
    total = 0
    for file, size in files:
        group.append(file)
        total += size
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def _read_files(task: tuple[Path, list[str]]) -> list[_FileFacts]:
    root, files = task
    return [one for file in files if (one := _read_file(root, file)) is not None]


def _read_file(root: Path, file: str) -> _FileFacts | None:
    found = _look(f"{root}/{file}")
    if found is None:
        return None
    reading = _Reading(root, file, 0)
    given = list(facts(reading.lines(), Known(), None))
    return _FileFacts(reading.seen(FileRow(0, file, found.inode, 0, 0, b"", 0), found), given)
