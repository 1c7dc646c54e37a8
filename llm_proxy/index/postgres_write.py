"""Fills the shared index with one machine's log files, by the same way from lines to rows as the machine's own.

How far each file is read stands in PostgreSQL itself, committed with the rows: where it is away, the files are read on
from there when it is back. One machine writes at a time. Leaves out its tables (`postgres_sql`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llm_proxy.dialects.hints import agent_id
from llm_proxy.index import postgres_sql
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.lines import Line
from llm_proxy.index.postgres import Connection, Refused, Unreachable
from llm_proxy.index.postgres_join import Joiner
from llm_proxy.index.postgres_sql import SCHEMA, SCHEMAS
from llm_proxy.index.rows import CallFact, Fact, SessionFact, Spoken
from llm_proxy.index.write import CALL, Bounds, FileRow, Writer, inserting, updating
from llm_proxy.sinks import log_reader

_LOCK = 0x6C6C6D5F70726F78  # "llm_prox": whoever has it writes

_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


T = TypeVar("T")

_PART = (*CALL, "part", "part_seq")
_INSERT_CALL, _UPDATE_CALL = inserting("calls", _PART), updating("calls", _PART)
_SEQ = CALL.index("seq") - 2  # behind the call's id and session

_OUR_PARTS = """
    SELECT DISTINCT part FROM calls JOIN files ON files.id = coalesce(request_file, response_file)
    WHERE session = :session AND machine = :machine
"""
_OTHER_PARTS = "SELECT 1 FROM calls WHERE session = :session AND part != ALL(CAST(:parts AS text[])) LIMIT 1"
_OTHER_FILES = "SELECT path FROM files JOIN session_files ON file = id WHERE session = :session AND id != :file"
_CALLS = "SELECT key FROM calls WHERE session = :session AND part = ANY(CAST(:parts AS text[]))"
_WITHOUT_PARTS = (
    f"DELETE FROM messages WHERE call IN ({_CALLS})",
    f"DELETE FROM gists WHERE call IN ({_CALLS})",
    f"DELETE FROM calls WHERE key IN ({_CALLS})",
    "DELETE FROM parts WHERE session = :session AND id = ANY(CAST(:parts AS text[]))",
)
_WITHOUT_FILES = """
    DELETE FROM session_files WHERE session = :session AND file IN (SELECT id FROM files WHERE machine = :machine)
"""


class SharedWriter(Writer):
    """Rows of one machine. What is told of files goes by their names below its log folder.

    `careful`: what PostgreSQL refuses is passed over and counted in `refused`, by file, instead of raised. That takes a
    savepoint for each fact.
    """

    def __init__(self, db: Any, machine: str) -> None:
        super().__init__(db)
        self._machine = f"{machine}/"
        self._joiner = Joiner(db)
        self._part = ""
        self._agents: dict[str, str] = {}  # by part, until they are written
        self.careful = False
        self.refused: Counter[int] = Counter()
        self._file = 0

    def _passed_over(self, action: Callable[[], T]) -> T | None:
        """None, where it was refused."""
        if not self.careful:
            return action()
        self._db.execute("SAVEPOINT fact")
        done = None
        try:
            done = action()
        except Refused:
            self._db.execute("ROLLBACK TO SAVEPOINT fact")
            self.forget()
            self.refused[self._file] += 1
        self._db.execute("RELEASE SAVEPOINT fact")
        return done

    def apply(self, file: int, facts: Iterable[Fact]) -> int:
        taken: dict[str, list[CallFact]] = {}

        def noted() -> Iterator[Fact]:
            for fact in facts:
                if isinstance(fact, CallFact):
                    taken.setdefault(fact.session, []).append(fact)
                elif isinstance(fact, SessionFact):
                    taken.setdefault(fact.session, [])
                yield fact

        self._file = file
        ended = super().apply(file, noted())
        sessions: set[int] = set()
        for part, calls in taken.items():
            sessions |= self._passed_over(partial(self._note, part, calls)) or set()
        if self._passed_over(partial(self._joiner.settle, sessions)):
            self._gone()
        return ended

    def _note(self, part: str, calls: list[CallFact]) -> set[int]:
        key = self._session_key(part)
        if agent := self._agents.pop(part, ""):
            query = "UPDATE sessions SET agent_id = ? WHERE key = ? AND agent IS NOT NULL AND agent_id IS NULL"
            self._db.execute(query, (agent, key))
        return self._joiner.note(key, calls)

    def _bounds(self, file: int, key: int, bounds: Bounds) -> None:
        self._passed_over(partial(super()._bounds, file, key, bounds))

    def heard(self, lines: Iterable[Line]) -> Iterator[Line]:
        """The same lines; what their requests say of a client's agents is kept for their sessions."""
        for line in lines:
            if line.entry.get("type") == "request" and (agent := agent_id("", _headers(line))):
                self._agents[_part_of(line)] = agent
            yield line

    def _session(self, fact: SessionFact, touched: Any) -> None:
        if self._passed_over(partial(self._session_key, fact.session)) is not None:
            self._passed_over(partial(self._put_session, fact, touched))

    def _put_session(self, fact: SessionFact, touched: Any) -> None:
        """What it came from goes by the id of its whole conversation, and by a number in that."""
        parent, seq = fact.columns.get("parent"), fact.columns.get("parent_seq")
        if parent:
            found = self._db.execute(
                "SELECT s.id, calls.seq FROM parts JOIN sessions AS s ON s.key = parts.session"
                " LEFT JOIN calls ON calls.session = s.key AND calls.part = parts.id AND calls.part_seq = ?"
                " WHERE parts.id = ?",
                (seq, parent),
            ).fetchone()
            if found is not None:
                told = {"parent": found[0]} | ({"parent_seq": found[1]} if found[1] is not None else {})
                fact = fact._replace(columns=fact.columns | told)
        super()._session(fact, touched)
        if parent:
            self._db.execute(
                "UPDATE sessions SET parent_part = ?, parent_part_seq = coalesce(?, parent_part_seq) WHERE key = ?",
                (parent, seq, self._session_key(fact.session)),
            )

    def _call(self, file: int, fact: CallFact, touched: Any) -> None:
        self._part = fact.session
        if self._passed_over(partial(self._session_key, fact.session)) is not None:
            self._passed_over(partial(super()._call, file, fact, touched))

    def _put_call(self, call: str, session: int, told: list[Any]) -> int:
        values = (call, session, *told, self._part, told[_SEQ])
        found = self._db.execute("SELECT key FROM calls WHERE id = ? AND session = ?", (call, session)).fetchone()
        if found is None:
            return self._new(_INSERT_CALL, values)
        self._db.execute(_UPDATE_CALL, (*values, found[0]))
        return int(found[0])

    def _session_key(self, session: str) -> int:
        key = self._sessions.get(session)
        if key is None:
            found = self._db.execute("SELECT session FROM parts WHERE id = ?", (session,)).fetchone()
            key = found[0] if found else self._new_part(session)
            self._sessions[session] = key
        return int(key)

    def _new_part(self, part: str) -> int:
        key = self._new("INSERT INTO sessions (id) VALUES (?)", (part,))
        self._db.execute("INSERT INTO parts VALUES (?, ?)", (part, key))
        return key

    def _gone(self) -> None:
        """Rows are not where they were: nobody may remember them."""
        self._db.execute("UPDATE removals SET number = number + 1")
        self.forget()

    def _new(self, insert: str, values: Sequence[Any]) -> int:
        key = "id" if insert.startswith(("INSERT INTO files", "INSERT INTO texts")) else "key"
        ((number,),) = self._db.execute(f"{insert} RETURNING {key}", values).fetchall()
        return int(number)

    def _text(self, spoken: Spoken) -> int:
        values = (spoken.key, spoken.role, spoken.text, postgres_sql.tsvector(spoken.text))
        found = self._db.execute("SELECT id FROM texts WHERE key = ?", (spoken.key,)).fetchone()
        if found is not None:
            return int(found[0])
        return self._new("INSERT INTO texts (key, role, packed, vector) VALUES (?, ?, ?, ?::tsvector)", values)

    def _forget_words(self, text: int) -> None:
        """They stand in the text's own row."""

    def request_place(self, session: str, call: str) -> tuple[str, int, int] | None:
        found = super().request_place(session, call)
        if found is None or not found[0].startswith(self._machine):
            return None
        return found[0].removeprefix(self._machine), *found[1:]

    def file(self, path: str) -> FileRow | None:
        row = super().file(self._machine + path)
        return row and row._replace(path=path)

    def files(self) -> dict[str, FileRow]:
        query = f"SELECT {', '.join(FileRow._fields)} FROM files WHERE machine = ?"
        rows = map(FileRow._make, self._db.execute(query, (self._machine.removesuffix("/"),)))
        found = {row.path.removeprefix(self._machine): row for row in rows}
        return {path: row._replace(path=path) for path, row in found.items()}

    def put_file(self, row: FileRow) -> FileRow:
        return super().put_file(row._replace(path=self._machine + row.path))._replace(path=row.path)

    def drop_file(self, row: FileRow) -> list[str]:
        """What other machines have recorded of the same conversations stays. Of all other files of these, gives ours.

        The others are read again by their machines, for what they repeat of what has gone.
        """
        query = "SELECT session FROM session_files WHERE file = ?"
        others: list[str] = []
        for (session,) in self._db.execute(query, (row.id,)):
            others += self._drop_parts(session, row.id)
        others += super().drop_file(row)
        self._gone()
        return [path.removeprefix(self._machine) for path in others if self._is_ours(path)]

    def _drop_parts(self, session: int, file: int) -> list[str]:
        """Take our parts out of a conversation of several machines. Gives its files but `file`, to be read again."""
        db, ours = self._db, {"session": session, "machine": self._machine.removesuffix("/"), "file": file}
        parts = [part for (part,) in db.execute(_OUR_PARTS, ours)]
        asked = {"session": session, "parts": parts}
        if not parts or not db.execute(_OTHER_PARTS, asked).fetchone():
            return []
        others = [path for (path,) in db.execute(_OTHER_FILES, ours)]
        texts = [text for (text,) in db.execute(f"SELECT DISTINCT text FROM messages WHERE call IN ({_CALLS})", asked)]
        for statement in _WITHOUT_PARTS:
            db.execute(statement, asked)
        db.execute(_WITHOUT_FILES, ours)
        self._drop_texts(texts)
        self._joiner.renew(session)
        self._begin_again(others)
        return others

    def comes_late(self, row: FileRow) -> bool:
        """Only files of the same part follow one another."""
        query = """
            SELECT DISTINCT path FROM session_files AS mine JOIN session_files AS others USING (session)
            JOIN files ON id = others.file WHERE mine.file = ?
        """
        place = log_reader.order(row.path)
        found = [path for (path,) in self._db.execute(query, (row.id,))]
        paths = [path.removeprefix(self._machine) for path in found if self._is_ours(path)]
        return any(found > place for found in map(log_reader.order, paths) if found[2] == place[2])

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._machine)


def _part_of(line: Line) -> str:
    meta = line.entry.get("_meta")
    return str(meta.get("session") or "") if isinstance(meta, dict) else ""


def _headers(line: Line) -> dict[str, str]:
    headers = line.entry.get("headers")
    if not isinstance(headers, dict):
        return {}
    return {name.lower(): str(said[0]) for name, said in headers.items() if isinstance(said, list) and said}


class _Cursor:
    """What sqlite3 gives, of rows that are all there."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[Any]:
        return self._rows


class _Database:
    """A connection as `Writer` uses one."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    def execute(self, sql: str, values: Any = ()) -> _Cursor:
        return _Cursor(self._link.execute(sql, values))


class SharedIndexer(Indexer):
    """The shared index at `url`, filled from the log files of `machine`. Raises OSError; can be called again after.

    By its `id` a machine is known again that has another name now; with "" it is not looked for.
    """

    def __init__(self, url: str, machine: str, logs_root: Path, id: str = "") -> None:
        if not _MACHINE.fullmatch(machine):
            raise ValueError(f"a machine's name is letters, digits, '.', '_' and '-', 64 at most, not {machine[:80]!r}")
        self._url = url
        self._machine = machine
        self._id = id
        self._link: Connection | None = None
        self._removals = -1
        self._careful = False
        super().__init__(Path("shared"), logs_root)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def fill(self) -> None:
        """All files, as they are now."""
        self.catch_up_all(lambda: True)

    def announce(self, address: str, secret: str, now: float) -> None:
        """Where other machines may ask for what this one has recorded, and what they have to bring."""
        told = "address = excluded.address, secret = excluded.secret, seen_at = excluded.seen_at"
        self._look_after()
        assert self._link is not None
        self._link.execute(
            f"INSERT INTO machines VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET {told}",
            (self._machine, address, secret, int(now), self._id),
        )

    def _facts(self, writer: Writer, lines: Iterable[Line]) -> Iterator[Fact]:
        assert isinstance(writer, SharedWriter)
        return super()._facts(writer, writer.heard(lines))

    def _open(self) -> None:
        """Connects when first needed."""

    def _look_after(self) -> None:
        if self._link is not None and not self._link.is_closed:
            return
        self.close()
        link = Connection(self._url)
        try:
            _make(link)
            if self._id:
                with _locked(link):
                    self._take_name(link)
        except BaseException:
            link.close()
            raise
        self._link = link
        self._writer = SharedWriter(_Database(link), self._machine)
        self._removals = -1

    def _take_name(self, link: Connection) -> None:
        """What this machine has recorded goes by its new name, and two machines never by the same."""
        owner = link.execute("SELECT id FROM machines WHERE name = ? AND id NOT IN ('', ?)", (self._machine, self._id))
        if owner:
            raise Unreachable(
                f"another machine is called {self._machine!r} in the shared index: set index.machine to a name of its"
                f" own, or, where that one is gone, llm-proxy reindex --forget-machine {self._machine}"
            )
        for (old,) in link.execute("SELECT name FROM machines WHERE id = ? AND name != ?", (self._id, self._machine)):
            path = "? || substr(path, ?)"
            link.execute(f"UPDATE files SET path = {path} WHERE machine = ?", (self._machine, len(old) + 1, old))
            link.execute("DELETE FROM machines WHERE name = ?", (old,))
        link.execute(
            "INSERT INTO machines VALUES (?, '', '', 0, ?) ON CONFLICT (name) DO UPDATE SET id = excluded.id",
            (self._machine, self._id),
        )

    def _insist(self, action: Callable[[], T]) -> T:
        """Once more and with care, where PostgreSQL refuses something: that holds nothing else up."""
        with suppress(Refused):
            return action()
        self._careful = True
        try:
            return action()
        except Refused as error:
            raise Unreachable(f"the shared index refuses what is recorded: {error}") from error
        finally:
            self._careful = False

    @contextmanager
    def _transaction(self) -> Iterator[Writer]:
        self._look_after()
        link, writer = self._link, self._writer
        assert link is not None and isinstance(writer, SharedWriter)
        writer.careful = self._careful
        writer.refused.clear()
        try:
            with _locked(link):
                ((removals,),) = link.execute("SELECT number FROM removals")
                if removals != self._removals:
                    writer.forget()
                    self._removals = removals
                yield writer
                for file, lines in writer.refused.items():
                    link.execute("UPDATE files SET skipped = skipped + ? WHERE id = ?", (lines, file))
        except BaseException:
            writer.forget()
            raise


@contextmanager
def _locked(link: Connection) -> Iterator[None]:
    """A transaction beside which nobody writes."""
    link.run("BEGIN")
    try:
        link.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
        yield
        link.run("COMMIT")
    except BaseException:
        with suppress(Unreachable):
            link.run("ROLLBACK")
        raise


def _make(link: Connection) -> None:
    """The schema, where nobody has made it."""
    if _is_made(link):
        return
    with _locked(link):
        if not _is_made(link):
            link.run(f"CREATE SCHEMA {SCHEMA}")
            for statement in postgres_sql.schema():
                link.run(statement)


def _is_made(link: Connection) -> bool:
    return bool(link.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (SCHEMA,)))


# --- what is left behind

LIVES = 900  # seconds after which a machine that has not been seen may be gone for good


class StillThere(ValueError):
    """What is to be forgotten is not gone."""


def forget_machine(url: str, machine: str, now: float) -> int:
    """Take a machine that is gone for good out of the shared index. Gives its number of files there.

    Raises Unreachable, StillThere; ValueError where there is no such machine.
    """
    with closing(Connection(url)) as link:
        _make(link)
        with _locked(link):
            seen = link.execute("SELECT seen_at FROM machines WHERE name = ?", (machine,))
            files = link.execute("SELECT count(*) FROM files WHERE machine = ?", (machine,))[0][0]
            if not seen and not files:
                raise ValueError(f"the shared index knows no machine {machine!r}")
            if seen and now - seen[0][0] < LIVES:
                raise StillThere(f"{machine} was there {max(0, int(now - seen[0][0]))} seconds ago")
            writer = SharedWriter(_Database(link), machine)
            for row in writer.files().values():
                writer.drop_file(row)
            link.execute("DELETE FROM machines WHERE name = ?", (machine,))
    return int(files)


def forget_versions(url: str) -> list[str]:
    """Drop the schemas of older versions than this one. Gives their names. Raises Unreachable."""
    with closing(Connection(url)) as link:
        names = [name for (name,) in link.execute("SELECT nspname::text FROM pg_namespace ORDER BY 1")]
        old = [name for name in names if (place := _version(name)) is not None and place < (_version(SCHEMA) or ())]
        for name in old:
            link.run(f"DROP SCHEMA {name} CASCADE")
    return old


def _version(schema: str) -> tuple[int, ...] | None:
    match = re.fullmatch(rf"{SCHEMAS}(\d+)(?:_(\d+))?", schema, re.ASCII)
    return (int(match[1]), int(match[2] or 0)) if match is not None else None
