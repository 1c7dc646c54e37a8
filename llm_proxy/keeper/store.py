"""What the keeper must remember between two lives: sessions, how far each file is settled, how far the journal is read.

One SQLite file, shared by the keepers of all journals; a transaction is also the right to write the log files. It
holds no content: without it, conversations begin new files and nothing else is lost. Leaves out what is decided with
it (`sessions`, `settle`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from llm_proxy.journal.reader import Position
from llm_proxy.sinks import outbox

BUSY_TIMEOUT = 30.0  # seconds
# A conversation that is taken up again later than this many seconds begins a new file: by its own id, by its messages.
REMEMBERED = 400 * 86_400
TURNS_REMEMBERED = 30 * 86_400
MOST_TURNS = 500_000


class StoreDamaged(Exception):
    """The database cannot be read, or is a newer program's. It holds nothing that the log files do not tell; start a
    new one."""


class Key(NamedTuple):
    """What makes two calls one session: same logs, same provider and upstream, same `client`."""

    logs: str
    provider: str
    upstream: str
    # "id:SESSION" the client's own, "agent:SESSION AGENT" a sub-agent's in it, "call:ID" of the call it begins with,
    # "day:DATE" calls that are no conversation; behind it " user:WHOSE" where the gateway called for somebody
    client: str


@dataclass(slots=True)
class Session:
    """A session and its file; `size` is how much of the file is settled. Mutable: it grows with each entry."""

    id: str
    key: Key
    source: str  # what the client's own id was found in
    file: str  # relative to the log folder
    size: int
    last_seq: int
    last_activity: int  # seconds since 1970
    parent: str = ""  # id of the session it came from
    parent_seq: int = 0  # of a fork: the last call that both have in common
    agent: str = ""  # what kind of sub-agent it is
    process: str = ""  # what is known of the process that began it, as JSON

    @property
    def client_session(self) -> str:
        kind, _, client = self.key.client.partition(":")
        return client.partition(" ")[0] if kind in ("id", "agent") else ""


@dataclass(slots=True)
class Turn:
    """A call that a later one may refer to: by the messages up to its answer, by its answer's id, or as a failed one.

    `who` and `process` tell clients apart. `at` is when it ended, `continued` when the first call that builds upon it
    was answered (0: not yet), in nanoseconds since 1970; `counted`: its usage stands in the log. Mutable: these two.
    """

    key: bytes
    session: str
    seq: int
    who: bytes
    process: int
    at: int
    continued: int = 0
    counted: bool = False

    def continued_before(self, ns: int) -> bool:
        return 0 < self.continued <= ns


class Seat(NamedTuple):
    """Where the entries of one exchange stand."""

    session: str
    seq: int


class Written(NamedTuple):
    """An entry that stands in a file although its exchange is not settled: its keeper was killed in between."""

    exchange: UUID
    type: str
    seat: Seat


MIGRATIONS = (
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY, logs TEXT NOT NULL, provider TEXT NOT NULL, upstream TEXT NOT NULL, client TEXT NOT NULL,
        source TEXT NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL, last_seq INTEGER NOT NULL,
        last_activity INTEGER NOT NULL, UNIQUE (logs, provider, upstream, client)
    ) WITHOUT ROWID;
    CREATE TABLE journals (
        folder TEXT PRIMARY KEY, run TEXT NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE in_flight (
        exchange BLOB PRIMARY KEY, journal TEXT NOT NULL, session TEXT NOT NULL, seq INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE settled (
        journal TEXT NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL, exchange BLOB NOT NULL,
        PRIMARY KEY (journal, segment, offset)
    ) WITHOUT ROWID;
    CREATE TABLE written (
        exchange BLOB NOT NULL, type TEXT NOT NULL, session TEXT NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (exchange, type)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE sessions ADD COLUMN parent TEXT NOT NULL DEFAULT '';
    ALTER TABLE sessions ADD COLUMN parent_seq INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sessions ADD COLUMN agent TEXT NOT NULL DEFAULT '';
    ALTER TABLE sessions ADD COLUMN process TEXT NOT NULL DEFAULT '';
    CREATE TABLE turns (
        key BLOB NOT NULL, session TEXT NOT NULL, seq INTEGER NOT NULL, who BLOB NOT NULL, process INTEGER NOT NULL,
        at INTEGER NOT NULL, continued INTEGER NOT NULL, counted INTEGER NOT NULL, PRIMARY KEY (key, session)
    ) WITHOUT ROWID;
    CREATE INDEX turns_by_time ON turns (at);
    """,
    outbox.TABLE,
    outbox.LANES,
)

_SESSION = """
    SELECT id, logs, provider, upstream, client, source, file, size, last_seq, last_activity, parent, parent_seq, agent,
        process
    FROM sessions
"""
# What SQLite takes in one statement is more.
_KEYS_AT_ONCE = 500


@contextmanager
def _told() -> Iterator[None]:
    """SQLite says "damaged" in two codes; everything else may be better at the next attempt."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreDamaged(f"the session database is damaged: {error}") from error
        raise


class Store:
    """The open database of one keeper. Raises sqlite3.Error, OSError, StoreDamaged."""

    def __init__(self, path: Path, journal: str) -> None:
        self.path = path
        self._journal = journal
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its sidecar files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)  # noqa: PTH101
        self._identity = path.stat().st_ino
        self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            with _told():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.execute("PRAGMA secure_delete = ON")
                self._migrate()
                self._version = self._data_version()
                self.purge()
                self._settled_rows = self._count_settled()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def move_aside(self) -> None:
        """Make room for a new database; the damaged one stays beside it."""
        self._db.close()
        _move_aside(self.path, self._identity)

    @contextmanager
    def transaction(self) -> Iterator[bool]:
        """All or nothing, and nobody else meanwhile. Gives whether another keeper has written since the last one."""
        with _told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                version = self._data_version()
                changed, self._version = version != self._version, version
                yield changed
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def make_durable(self) -> None:
        """What is committed outlives a power cut."""
        with _told():
            self._db.execute("PRAGMA synchronous = FULL")
            try:
                # The write-ahead log is synced by the next commit that writes.
                self._db.execute("UPDATE journals SET folder = folder WHERE folder = ?", (self._journal,))
            finally:
                self._db.execute("PRAGMA synchronous = NORMAL")

    # -- sessions

    @_told()
    def by_key(self, key: Key) -> Session | None:
        where = " WHERE logs = ? AND provider = ? AND upstream = ? AND client = ?"
        return _session(self._db.execute(_SESSION + where, key).fetchone())

    @_told()
    def by_id(self, session: str) -> Session | None:
        return _session(self._db.execute(_SESSION + " WHERE id = ?", (session,)).fetchone())

    def add(self, session: Session) -> None:
        """Raises sqlite3.IntegrityError where the id is taken."""
        row = (
            session.id,
            *session.key,
            session.source,
            session.file,
            session.size,
            session.last_seq,
            session.last_activity,
            session.parent,
            session.parent_seq,
            session.agent,
            session.process,
        )
        self._db.execute(f"INSERT INTO sessions VALUES ({', '.join('?' * len(row))})", row)

    def save(self, sessions: Iterable[Session]) -> None:
        self._db.executemany(
            "UPDATE sessions SET size = ?, last_seq = ?, last_activity = ? WHERE id = ?",
            [(one.size, one.last_seq, one.last_activity, one.id) for one in sessions],
        )

    def drop(self, sessions: Iterable[str]) -> None:
        """Sessions that nothing will be added to any more."""
        self._db.executemany("DELETE FROM sessions WHERE id = ?", [(one,) for one in sessions])

    # -- turns

    @_told()
    def turns(self, keys: Sequence[bytes]) -> list[Turn]:
        """All that is known of these keys, in no order."""
        found = []
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[start : start + _KEYS_AT_ONCE]
            query = f"SELECT * FROM turns WHERE key IN ({', '.join('?' * len(some))})"
            found += [
                Turn(key, session, seq, who, process, at, continued, bool(counted))
                for key, session, seq, who, process, at, continued, counted in self._db.execute(query, some)
            ]
        return found

    def save_turns(self, turns: Iterable[Turn]) -> None:
        rows = [
            (one.key, one.session, one.seq, one.who, one.process, one.at, one.continued, one.counted) for one in turns
        ]
        self._db.executemany("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def drop_turns(self, turns: Iterable[Turn]) -> None:
        query = "DELETE FROM turns WHERE key = ? AND session = ?"
        self._db.executemany(query, [(one.key, one.session) for one in turns])

    @_told()
    def busy(self, logs: str) -> set[str]:
        """Files of a log folder that an open call will be written to, or a lane has not passed on yet."""
        query = """
            SELECT file FROM sessions WHERE logs = :logs AND id IN (SELECT session FROM in_flight)
            UNION SELECT file FROM outbox WHERE logs = :logs
        """
        return {file for (file,) in self._db.execute(query, {"logs": logs})}

    # -- entries that stand in files already

    @_told()
    def written(self) -> dict[tuple[UUID, str], Seat]:
        rows = self._db.execute("SELECT exchange, type, session, seq FROM written")
        return {(UUID(bytes=exchange), kind): Seat(session, seq) for exchange, kind, session, seq in rows}

    def remember_written(self, found: Iterable[Written]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?)",
            [(one.exchange.bytes, one.type, *one.seat) for one in found],
        )

    def forget_written(self, exchanges: Iterable[UUID]) -> None:
        self._db.executemany("DELETE FROM written WHERE exchange = ?", [(one.bytes,) for one in exchanges])

    # -- the journal

    @_told()
    def checkpoint(self) -> tuple[str, Position] | None:
        """The run and the position where reading begins."""
        row = self._db.execute(
            "SELECT run, segment, offset FROM journals WHERE folder = ?", (self._journal,)
        ).fetchone()
        return (row[0], Position(row[1], row[2])) if row else None

    def set_checkpoint(self, run: str, position: Position) -> None:
        self._db.execute("INSERT OR REPLACE INTO journals VALUES (?, ?, ?, ?)", (self._journal, run, *position))
        if self._settled_rows:
            query = "DELETE FROM settled WHERE journal = ? AND (segment, offset) < (?, ?)"
            self._db.execute(query, (self._journal, *position))
            self._settled_rows = self._count_settled()

    @_told()
    def settled(self) -> set[UUID]:
        """Exchanges beyond the checkpoint that are in the log files."""
        rows = self._db.execute("SELECT exchange FROM settled WHERE journal = ?", (self._journal,))
        return {UUID(bytes=exchange) for (exchange,) in rows}

    def settle(self, exchanges: Iterable[tuple[Position, UUID]]) -> None:
        rows = [(self._journal, *position, exchange.bytes) for position, exchange in exchanges]
        if rows:
            self._db.executemany("INSERT OR REPLACE INTO settled VALUES (?, ?, ?, ?)", rows)
            self._settled_rows += len(rows)

    @_told()
    def in_flight(self) -> dict[UUID, Seat]:
        """Exchanges whose request is in the log files and whose response is not."""
        rows = self._db.execute("SELECT exchange, session, seq FROM in_flight WHERE journal = ?", (self._journal,))
        return {UUID(bytes=exchange): Seat(session, seq) for exchange, session, seq in rows}

    def take_off(self, exchanges: Iterable[tuple[UUID, Seat]]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?, ?)",
            [(exchange.bytes, self._journal, *seat) for exchange, seat in exchanges],
        )

    def land(self, exchanges: Iterable[UUID]) -> None:
        self._db.executemany("DELETE FROM in_flight WHERE exchange = ?", [(one.bytes,) for one in exchanges])

    def post(self, lines: Iterable[outbox.Posted]) -> None:
        """Lines that lanes are to pass on."""
        self._db.executemany(outbox.POST, lines)

    def move_posts(self, logs: str, file: str, moved: Mapping[int, int]) -> None:
        """Lines of a file stand elsewhere in it now (before, now)."""
        rows = self._db.execute("SELECT id, offset FROM outbox WHERE logs = ? AND file = ?", (logs, file)).fetchall()
        changed = [(moved[at], number) for number, at in rows if at in moved]
        self._db.executemany("UPDATE outbox SET offset = ? WHERE id = ?", changed)

    # -- what is deleted

    def forget_calls(self, calls: Iterable[UUID]) -> None:
        """As if they had never been."""
        ids = [(one.bytes,) for one in calls]
        for table, column in (("in_flight", "exchange"), ("written", "exchange"), ("outbox", "call")):
            self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)

    def forget_turns(self, session: str, seqs: Iterable[int]) -> None:
        self._db.executemany("DELETE FROM turns WHERE session = ? AND seq = ?", [(session, seq) for seq in seqs])

    def drop_whole(self, session: str) -> None:
        """A session, and all by which a call could be known to belong to it."""
        self.drop([session])
        self._db.execute("DELETE FROM turns WHERE session = ?", (session,))
        self._db.execute("DELETE FROM in_flight WHERE session = ?", (session,))

    @_told()
    def scrub(self) -> None:
        """What was deleted is in the file no more either."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- the file itself

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            (applied,) = self._db.execute("PRAGMA user_version").fetchone()
            if applied > len(MIGRATIONS):  # after a rollback; what its tables hold by then is not known
                raise StoreDamaged(f"the session database is of version {applied}, newer than {len(MIGRATIONS)}")
            for number, script in enumerate(MIGRATIONS[applied:], start=applied + 1):
                for statement in script.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def purge(self) -> None:
        """Forget what nobody will come back to. Raises sqlite3.Error, StoreDamaged."""
        now = int(time.time())
        with _told():
            query = """
                DELETE FROM sessions
                WHERE last_activity < iif(client LIKE 'call:%', ?, ?) AND id NOT IN (SELECT session FROM in_flight)
            """
            self._db.execute(query, (now - TURNS_REMEMBERED, now - REMEMBERED))
            self._db.execute("DELETE FROM turns WHERE at < ?", ((now - TURNS_REMEMBERED) * 1_000_000_000,))
            oldest = "SELECT at FROM turns ORDER BY at DESC LIMIT 1 OFFSET ?"
            self._db.execute(f"DELETE FROM turns WHERE at <= ({oldest})", (MOST_TURNS,))

    def _data_version(self) -> int:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _count_settled(self) -> int:
        query = "SELECT count(*) FROM settled WHERE journal = ?"
        return int(self._db.execute(query, (self._journal,)).fetchone()[0])


def open_store(path: Path, journal: str) -> tuple[Store, str]:
    """The store, and why another had to be moved aside for it, if one had to."""
    try:
        return Store(path, journal), ""
    except StoreDamaged as error:
        _move_aside(path, path.stat().st_ino)
        return Store(path, journal), str(error)


def _session(row: tuple[Any, ...] | None) -> Session | None:
    if row is None:
        return None
    return Session(row[0], Key(*row[1:5]), *row[5:])


def _move_aside(path: Path, identity: int) -> None:
    """Rename a damaged database, unless another keeper has done it meanwhile."""
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if path.stat().st_ino != identity:
                return
        except FileNotFoundError:
            return
        stamp = time.time_ns()
        for suffix in ("-wal", "-shm", ""):
            sidecar = path.with_name(path.name + suffix)
            if sidecar.exists():
                sidecar.rename(path.with_name(f"{path.name}.damaged-{stamp}{suffix}"))
    finally:
        os.close(lock)
