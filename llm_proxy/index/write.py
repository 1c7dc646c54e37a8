"""Facts into the index's tables, within a transaction that its caller holds. Leaves out where facts come from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, NamedTuple

from llm_proxy.index.rows import COLUMNS, SESSION_COLUMNS, CallFact, Fact, SessionFact, Spoken

# Texts remembered of sessions, so that a history that comes again costs no query.
REMEMBERED = 200_000

_PLACES = ("request_file", "request_offset", "request_length", "response_file", "response_offset", "response_length")
_CALL = ("id", "session", *COLUMNS, *_PLACES)


def _upsert(table: str, columns: Iterable[str], unique: Iterable[str]) -> str:
    """What is told now replaces what was told before; what is not told stays."""
    columns, unique = list(columns), list(unique)
    told = ", ".join(f"{name} = coalesce(excluded.{name}, {name})" for name in columns if name not in unique)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT ({', '.join(unique)}) DO UPDATE SET {told} RETURNING key"
    )


_PUT_CALL = _upsert("calls", _CALL, ("id", "session"))
_PUT_SESSION = _upsert("sessions", ("id", *SESSION_COLUMNS), ("id",))
_PUT_BOUNDS = """
    UPDATE sessions SET started = min(coalesce(started, :first), :first), last = max(coalesce(last, :last), :last),
        title = coalesce(title, :title), upstream = coalesce(upstream, :upstream) WHERE key = :key
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


class _Bounds:
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
        self._known: dict[str, set[bytes]] = {}
        self._remembered = 0

    def forget(self) -> None:
        """The tables may hold something else than they did."""
        self._sessions.clear()
        self._known.clear()
        self._remembered = 0

    # -- what is there

    def known(self, session: str, key: bytes) -> bool:
        """Whether the session has this text. From now on it has: the caller writes it."""
        keys = self._known.get(session)
        if keys is None:
            keys = self._known[session] = self._keys(session)
            self._remembered += len(keys)
        if key in keys:
            return True
        keys.add(key)
        self._remembered += 1
        if self._remembered > REMEMBERED:
            self.forget()
        return False

    def _keys(self, session: str) -> set[bytes]:
        query = """
            SELECT texts.key FROM sessions JOIN messages ON messages.session = sessions.key
            JOIN texts ON texts.id = messages.text WHERE sessions.id = ?
        """
        return {key for (key,) in self._db.execute(query, (session,))}

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
        touched: dict[int, _Bounds] = {}
        ended = 0
        for fact in facts:
            if isinstance(fact, CallFact):
                self._call(file, fact, touched)
                ended += fact.response is not None
            elif isinstance(fact, SessionFact):
                self._session(fact, touched)
        for key, bounds in touched.items():
            self._db.execute("INSERT OR IGNORE INTO session_files VALUES (?, ?)", (key, file))
            values = {"first": bounds.first, "last": bounds.last, "title": bounds.title, "upstream": bounds.upstream}
            self._db.execute(_PUT_BOUNDS, values | {"key": key})
        return ended

    def _session(self, fact: SessionFact, touched: dict[int, _Bounds]) -> None:
        values = (fact.session, *map(fact.columns.get, SESSION_COLUMNS))
        ((key,),) = self._db.execute(_PUT_SESSION, values).fetchall()
        self._sessions[fact.session] = key
        touched.setdefault(key, _Bounds()).widen(fact.at)

    def _call(self, file: int, fact: CallFact, touched: dict[int, _Bounds]) -> None:
        session = self._session_key(fact.session)
        bounds = touched.get(session)
        if bounds is None:
            bounds = touched[session] = _Bounds()
        columns = fact.columns
        bounds.widen(columns.get("started"))
        bounds.widen(columns.get("ended"))
        bounds.title = bounds.title or fact.title or None
        bounds.upstream = bounds.upstream or fact.upstream or None
        places: list[int | None] = []
        for place in (fact.request, fact.response):
            places += (file, *place) if place else (None, None, None)
        values: list[Any] = [fact.id, session, *map(columns.get, COLUMNS), *places]
        ((key,),) = self._db.execute(_PUT_CALL, values).fetchall()
        for spoken in fact.spoken:
            self._db.execute("INSERT OR IGNORE INTO messages VALUES (?, ?, ?)", (session, self._text(spoken), key))

    def _session_key(self, session: str) -> int:
        key = self._sessions.get(session)
        if key is None:
            ((key,),) = self._db.execute(_PUT_SESSION, (session, *[None] * len(SESSION_COLUMNS))).fetchall()
            self._sessions[session] = key
        return key

    def _text(self, spoken: Spoken) -> int:
        db = self._db
        new = db.execute(
            "INSERT INTO texts (key, role, packed) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING RETURNING id",
            (spoken.key, spoken.role, spoken.packed),
        ).fetchall()
        if new:
            db.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (new[0][0], spoken.text))
            return int(new[0][0])
        return int(db.execute("SELECT id FROM texts WHERE key = ?", (spoken.key,)).fetchone()[0])

    # -- files

    def file(self, path: str) -> FileRow | None:
        row = self._db.execute("SELECT * FROM files WHERE path = ?", (path,)).fetchone()
        return FileRow(*row) if row else None

    def files(self) -> dict[str, FileRow]:
        return {row[1]: FileRow(*row) for row in self._db.execute("SELECT * FROM files")}

    def put_file(self, row: FileRow) -> FileRow:
        """`id` 0 for a new one."""
        query = """
            INSERT INTO files VALUES (nullif(?, 0), ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
            path = excluded.path, inode = excluded.inode, disk_size = excluded.disk_size, cursor = excluded.cursor,
            tail = excluded.tail, skipped = excluded.skipped RETURNING id
        """
        ((id_,),) = self._db.execute(query, row).fetchall()
        return row._replace(id=id_)

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
        db.executemany(
            "UPDATE files SET disk_size = 0, cursor = 0, tail = x'', skipped = 0 WHERE path = ?",
            [(one,) for one in others],
        )
        self.forget()
        return list(others)

    def _drop_session(self, key: int) -> None:
        db = self._db
        texts = [text for (text,) in db.execute("SELECT text FROM messages WHERE session = ?", (key,))]
        for table in ("messages", "calls", "session_files"):
            db.execute(f"DELETE FROM {table} WHERE session = ?", (key,))
        db.execute("DELETE FROM sessions WHERE key = ?", (key,))
        for text in texts:
            if db.execute("SELECT 1 FROM messages WHERE text = ? LIMIT 1", (text,)).fetchone():
                continue
            # The search index forgets a text when it is told the text.
            db.execute(
                "INSERT INTO words (words, rowid, text) SELECT 'delete', id, text FROM spoken WHERE id = ?", (text,)
            )
            db.execute("DELETE FROM texts WHERE id = ?", (text,))
