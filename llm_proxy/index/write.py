"""Facts into the index's tables, within a transaction that its caller holds. Leaves out where facts come from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from llm_proxy.index.rows import COLUMNS, SESSION_COLUMNS, CallFact, Fact, Known, SessionFact, Spoken
from llm_proxy.sinks import log_reader

_PLACES = ("request_file", "request_offset", "request_length", "response_file", "response_offset", "response_length")
_SESSION = ("id", *SESSION_COLUMNS)
CALL = ("id", "session", *COLUMNS, *_PLACES)


def inserting(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def updating(table: str, columns: Sequence[str]) -> str:
    """What is told now replaces what was told before; what is not told stays."""
    told = (f"{name} = coalesce(?{number}, {name})" for number, name in enumerate(columns, start=1))
    return f"UPDATE {table} SET {', '.join(told)} WHERE key = ?{len(columns) + 1}"


# Not one upsert with RETURNING: that takes several times as long.
_INSERT_CALL, _UPDATE_CALL = inserting("calls", CALL), updating("calls", CALL)
_INSERT_SESSION, _UPDATE_SESSION = inserting("sessions", _SESSION), updating("sessions", _SESSION)
_PUT_BOUNDS = """
    UPDATE sessions SET started = min(coalesce(started, :first), coalesce(:first, started)),
        last = max(coalesce(last, :last), coalesce(:last, last)), title = coalesce(title, :title),
        upstream = coalesce(upstream, :upstream) WHERE key = :key
"""


class FileRow(NamedTuple):
    """A file as the index knows it. Bytes before `cursor` (of the lines, decompressed) are indexed."""

    id: int
    path: str
    inode: int
    disk_size: int
    cursor: int
    tail: bytes  # a hash of the bytes just before the cursor
    skipped: int


_FILE = ", ".join(FileRow._fields)


class Bounds:
    """What the facts of a batch say of a session together."""

    __slots__ = ("first", "last", "title", "upstream")

    def __init__(self) -> None:
        self.first: int | None = None
        self.last: int | None = None
        self.title: str | None = None
        self.upstream: str | None = None

    def widen(self, at: int | None) -> None:
        if at is not None:
            self.first = at if self.first is None else min(self.first, at)
            self.last = at if self.last is None else max(self.last, at)


class Writer:
    """The one place where rows are written and removed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._sessions: dict[str, int] = {}
        self.known = Known(self._keys)

    def forget(self) -> None:
        """The tables may hold something else than they did."""
        self._sessions.clear()
        self.known.forget()

    # -- what is there

    def _keys(self, session: str) -> Iterator[bytes]:
        query = """
            SELECT texts.key FROM sessions JOIN messages ON messages.session = sessions.key
            JOIN texts ON texts.id = messages.text WHERE sessions.id = ?
        """
        return (key for (key,) in self._db.execute(query, (session,)))

    def request_place(self, session: str, call: str) -> tuple[str, int, int] | None:
        """(file, offset, length) of a call's request entry."""
        query = """
            SELECT files.path, request_offset, request_length FROM calls JOIN sessions ON sessions.key = calls.session
            JOIN files ON files.id = request_file WHERE calls.id = ? AND sessions.id = ?
        """
        found: tuple[str, int, int] | None = self._db.execute(query, (call, session)).fetchone()
        return found

    # -- facts

    def apply(self, file: int, facts: Iterable[Fact]) -> int:
        """Write what a file's lines say. Gives the number of calls that ended."""
        touched: dict[int, Bounds] = {}
        ended = 0
        for fact in facts:
            if isinstance(fact, CallFact):
                self._call(file, fact, touched)
                ended += fact.response is not None
            elif isinstance(fact, SessionFact):
                self._session(fact, touched)
        for key, bounds in touched.items():
            self._bounds(file, key, bounds)
        return ended

    def _bounds(self, file: int, key: int, bounds: Bounds) -> None:
        self._db.execute("INSERT INTO session_files VALUES (?, ?) ON CONFLICT DO NOTHING", (key, file))
        values = {"first": bounds.first, "last": bounds.last, "title": bounds.title, "upstream": bounds.upstream}
        self._db.execute(_PUT_BOUNDS, values | {"key": key})

    def _session(self, fact: SessionFact, touched: dict[int, Bounds]) -> None:
        key = self._session_key(fact.session)
        values = (None, *map(fact.columns.get, SESSION_COLUMNS), key)
        self._db.execute(_UPDATE_SESSION, values)
        touched.setdefault(key, Bounds()).widen(fact.at)

    def _call(self, file: int, fact: CallFact, touched: dict[int, Bounds]) -> None:
        session = self._session_key(fact.session)
        bounds = touched.get(session)
        if bounds is None:
            bounds = touched[session] = Bounds()
        columns = fact.columns
        bounds.widen(columns.get("started"))
        bounds.widen(columns.get("ended"))
        bounds.title = bounds.title or fact.title or None
        bounds.upstream = bounds.upstream or fact.upstream or None
        places: list[int | None] = []
        for place in (fact.request, fact.response):
            places += (file, *place) if place else (None, None, None)
        key = self._put_call(fact.id, session, [*map(columns.get, COLUMNS), *places])
        if fact.gist:
            # What an answered call adds is more than what was known while it was open.
            told = "(call) DO UPDATE SET gist = excluded.gist" if fact.response else "DO NOTHING"
            self._db.execute(f"INSERT INTO gists VALUES (?, ?) ON CONFLICT {told}", (key, fact.gist))
        for spoken in fact.spoken:
            message = (session, self._text(spoken), key)
            self._db.execute("INSERT INTO messages VALUES (?, ?, ?) ON CONFLICT DO NOTHING", message)

    def _put_call(self, call: str, session: int, told: list[Any]) -> int:
        found = self._db.execute("SELECT key FROM calls WHERE id = ? AND session = ?", (call, session)).fetchone()
        if found is None:
            return self._new(_INSERT_CALL, (call, session, *told))
        self._db.execute(_UPDATE_CALL, (call, session, *told, found[0]))
        return int(found[0])

    def _session_key(self, session: str) -> int:
        key = self._sessions.get(session)
        if key is None:
            found = self._db.execute("SELECT key FROM sessions WHERE id = ?", (session,)).fetchone()
            key = found[0] if found else self._new(_INSERT_SESSION, (session, *[None] * len(SESSION_COLUMNS)))
            self._sessions[session] = key
        return key

    def _text(self, spoken: Spoken) -> int:
        found = self._db.execute("SELECT id FROM texts WHERE key = ?", (spoken.key,)).fetchone()
        if found is not None:
            return int(found[0])
        values = (spoken.key, spoken.role, spoken.packed)
        text = self._new("INSERT INTO texts (key, role, packed) VALUES (?, ?, ?)", values)
        self._db.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (text, spoken.text))
        return text

    def _new(self, insert: str, values: Sequence[Any]) -> int:
        """The key of a new row."""
        key = self._db.execute(insert, values).lastrowid
        assert key is not None
        return key

    # -- files

    def file(self, path: str) -> FileRow | None:
        row = self._db.execute(f"SELECT {_FILE} FROM files WHERE path = ?", (path,)).fetchone()
        return FileRow(*row) if row else None

    def files(self) -> dict[str, FileRow]:
        return {row[1]: FileRow._make(row) for row in self._db.execute(f"SELECT {_FILE} FROM files")}

    def put_file(self, row: FileRow) -> FileRow:
        """`id` 0 for a new one."""
        if not row.id:
            return row._replace(id=self._new(inserting("files", FileRow._fields[1:]), row[1:]))
        told = "path = ?2, inode = ?3, disk_size = ?4, cursor = ?5, tail = ?6, skipped = ?7"
        self._db.execute(f"UPDATE files SET {told} WHERE id = ?1", row)
        return row

    def drop_file(self, row: FileRow) -> list[str]:
        """Remove a file and all of its sessions. Gives their other files, which are to be read again from the start."""
        db = self._db
        sessions = [key for (key,) in db.execute("SELECT session FROM session_files WHERE file = ?", (row.id,))]
        others: dict[str, None] = {}
        for session in sessions:
            query = "SELECT path FROM files JOIN session_files ON file = id WHERE session = ? AND id != ?"
            others |= dict.fromkeys(path for (path,) in db.execute(query, (session, row.id)))
            self._drop_session(session)
        db.execute("DELETE FROM files WHERE id = ?", (row.id,))
        self._begin_again(others)
        self.forget()
        return list(others)

    def _begin_again(self, paths: Iterable[str]) -> None:
        for path in paths:
            query = "UPDATE files SET disk_size = 0, cursor = 0, tail = ?, skipped = 0 WHERE path = ?"
            self._db.execute(query, (b"", path))

    def comes_late(self, row: FileRow) -> bool:
        """Whether a file holds sessions of which files are indexed that stand behind it in order."""
        query = """
            SELECT DISTINCT path FROM session_files AS mine JOIN session_files AS others USING (session)
            JOIN files ON id = others.file WHERE mine.file = ?
        """
        place = log_reader.order(row.path)
        return any(log_reader.order(path) > place for (path,) in self._db.execute(query, (row.id,)))

    def _drop_session(self, key: int) -> None:
        db = self._db
        texts = [text for (text,) in db.execute("SELECT text FROM messages WHERE session = ?", (key,))]
        db.execute("DELETE FROM gists WHERE call IN (SELECT key FROM calls WHERE session = ?)", (key,))
        for table in ("messages", "calls", "session_files"):
            db.execute(f"DELETE FROM {table} WHERE session = ?", (key,))
        db.execute("DELETE FROM sessions WHERE key = ?", (key,))
        self._drop_texts(texts)

    def _drop_texts(self, texts: Iterable[int]) -> None:
        """Those that nobody says any more."""
        db = self._db
        for text in texts:
            if db.execute("SELECT 1 FROM messages WHERE text = ? LIMIT 1", (text,)).fetchone():
                continue
            self._forget_words(text)
            db.execute("DELETE FROM texts WHERE id = ?", (text,))

    def _forget_words(self, text: int) -> None:
        # The search index forgets a text when it is told the text.
        query = "INSERT INTO words (words, rowid, text) SELECT 'delete', id, text FROM spoken WHERE id = ?"
        self._db.execute(query, (text,))
