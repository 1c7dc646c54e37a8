"""The index's SQLite file: its tables, how it is opened, and what becomes of one that is of no use.

Everything in it comes from the log files, so one that is damaged or newer than this program is moved aside and made
again. Leaves out what rows mean (`rows`) and who asks (`queries`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_proxy.dialects.digest import TOKEN_CLASSES
from llm_proxy.index import sums, text

BUSY_TIMEOUT = 30.0  # seconds
# Bytes of new words that FTS5 holds in memory before it writes them: its default, and for all words at once.
_WORDS, _DRAFT_WORDS = 1 << 20, 32 << 20

_READ_ALL_AGAIN = """
    INSERT INTO words (words) VALUES ('delete-all');
    DELETE FROM texts;
    DELETE FROM messages;
    DELETE FROM calls;
    DELETE FROM session_files;
    DELETE FROM sessions;
    DELETE FROM files
"""

# Sums over `calls` are kept by triggers (`sums`). Times are nanoseconds since 1970, `usd` picodollars, `ttfb` and
# `total` milliseconds. Texts are kept once, however many sessions (`messages`) hold them.
MIGRATIONS = (
    f"""
    CREATE TABLE files (
        id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, inode INTEGER NOT NULL, disk_size INTEGER NOT NULL,
        cursor INTEGER NOT NULL, tail BLOB NOT NULL, skipped INTEGER NOT NULL
    );
    CREATE TABLE sessions (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, provider TEXT, upstream TEXT, client_session TEXT,
        parent TEXT, parent_seq INTEGER, forked INTEGER, agent TEXT, program TEXT, cwd TEXT, project TEXT, root TEXT,
        branch TEXT, title TEXT, started INTEGER, last INTEGER
    );
    CREATE INDEX sessions_by_last ON sessions (last);
    CREATE INDEX sessions_by_client ON sessions (client_session) WHERE client_session IS NOT NULL;
    CREATE TABLE session_files (
        session INTEGER NOT NULL, file INTEGER NOT NULL, PRIMARY KEY (session, file)
    ) WITHOUT ROWID;
    CREATE INDEX session_files_by_file ON session_files (file);
    CREATE TABLE calls (
        key INTEGER PRIMARY KEY, session INTEGER NOT NULL, started INTEGER, ended INTEGER, seq INTEGER,
        ttfb INTEGER, total INTEGER, status INTEGER, failed INTEGER, partial INTEGER,
        {", ".join(f"{name} INTEGER" for name in TOKEN_CLASSES)}, usd INTEGER, basis TEXT, model TEXT, api TEXT,
        server_tools TEXT, method TEXT, path TEXT, ending TEXT, stop_reason TEXT, service_tier TEXT, response_id TEXT,
        error_type TEXT, error TEXT, id TEXT NOT NULL,
        request_file INTEGER, request_offset INTEGER, request_length INTEGER,
        response_file INTEGER, response_offset INTEGER, response_length INTEGER
    );
    CREATE UNIQUE INDEX calls_by_id ON calls (id, session);
    CREATE INDEX calls_by_session ON calls (session, seq);
    CREATE INDEX calls_by_time ON calls (started);
    CREATE TABLE texts (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, role TEXT NOT NULL, packed NOT NULL);
    CREATE TABLE messages (
        session INTEGER NOT NULL, text INTEGER NOT NULL, call INTEGER NOT NULL, PRIMARY KEY (session, text)
    ) WITHOUT ROWID;
    CREATE INDEX messages_by_text ON messages (text);
    CREATE VIEW spoken AS SELECT id, unpacked(packed) AS text FROM texts;
    CREATE VIRTUAL TABLE words USING fts5(
        text, content = 'spoken', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
    );
    """,
    # Told of every call, so all files are read again.
    """
    CREATE TABLE gists (call INTEGER PRIMARY KEY, gist TEXT NOT NULL);
    CREATE INDEX sessions_by_parent ON sessions (parent) WHERE parent IS NOT NULL;
    """
    + _READ_ALL_AGAIN,
    sums.MIGRATION,
    # Told of every call of the gateway, so all files are read again.
    f"{sums.BY_ACCOUNT}; DELETE FROM gists; {_READ_ALL_AGAIN}; {sums.BY_ACCOUNT_KEPT}",
)


class Unusable(Exception):
    """The file is damaged, no database, or of a newer version. It can be moved aside."""


@contextmanager
def told() -> Iterator[None]:
    """SQLite says "damaged" in two codes, a wrecked search index in the first; the rest may be better another time."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Unusable(f"the index is damaged: {error}") from error
        raise


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The index with all its tables, made where it is missing. Raises Unusable, sqlite3.Error, OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its sidecar files the mode of the database.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    os.chmod(path, 0o600)  # noqa: PTH101
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        with told():
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 4000")  # pages; each time the disk is waited for
            prepare(db)
            migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def open_for_reading(path: Path, views: Iterable[str] = ()) -> sqlite3.Connection:
    """`views` are made before its tables (`viewer`). Raises Unusable, sqlite3.Error, also where there is none."""
    # Not mode=ro: who reads first after a restart has to make the files that readers and writers share.
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        with told():
            prepare(db)
            for view in views:
                db.execute(view)
            db.execute("PRAGMA query_only = ON")
            version = _version(db)
        if version != len(MIGRATIONS):
            raise Unusable(f"the index is of version {version}, not {len(MIGRATIONS)}")
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection) -> None:
    """What every connection needs to read texts."""
    db.create_function("unpacked", 1, text.unpacked, deterministic=True)
    db.execute("PRAGMA trusted_schema = ON")  # the view that unpacks is our own
    db.execute("PRAGMA cache_size = -32768")


def migrate(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        applied = _version(db)
        if applied > len(MIGRATIONS):
            raise Unusable(f"the index is of version {applied}, newer than this program's {len(MIGRATIONS)}")
        for number, script in enumerate(MIGRATIONS[applied:], start=applied + 1):
            for statement in _statements(script):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """A trigger holds semicolons of its own."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


@contextmanager
def locked(lock: Path, *, wait: bool) -> Iterator[bool]:
    """The right to something, one process at a time. Without `wait`, whether it could be had."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def move_aside(path: Path, identity: int) -> None:
    """Make room for a new index, unless another process has done it meanwhile. The last old one is kept."""
    with locked(path.with_name(f"{path.name}.lock"), wait=True):
        if identity_of(path) != identity:
            return
        for suffix in ("-wal", "-shm", ""):
            sidecar = path.with_name(path.name + suffix)
            if sidecar.exists():
                sidecar.replace(path.with_name(f"{path.name}.aside{suffix}"))


def identity_of(path: Path) -> int:
    """0 where there is no file."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def open_draft(path: Path) -> sqlite3.Connection:
    """A new index that nobody else sees: not safe from crashes, and quick. Raises sqlite3.Error, OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        prepare(db)
        migrate(db)
        db.execute("INSERT INTO words (words, rank) VALUES ('hashsize', ?)", (_DRAFT_WORDS,))
    except BaseException:
        db.close()
        raise
    return db


def finish_draft(db: sqlite3.Connection) -> None:
    """Ready to replace another."""
    db.execute("INSERT INTO words (words) VALUES ('optimize')")
    db.execute("INSERT INTO words (words, rank) VALUES ('hashsize', ?)", (_WORDS,))
