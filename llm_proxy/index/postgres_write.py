"""Fills the shared index with one machine's log files, by the same way from lines to rows as the machine's own.

How far each file is read stands in PostgreSQL itself, committed with the rows: where it is away, the files are read on
from there when it is back. One machine writes at a time. Leaves out its tables (`postgres_sql`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_proxy.index import postgres_sql
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.postgres import Connection, Unreachable
from llm_proxy.index.postgres_sql import SCHEMA
from llm_proxy.index.rows import Spoken
from llm_proxy.index.write import FileRow, Writer

_LOCK = 0x6C6C6D5F70726F78  # "llm_prox": whoever has it writes

_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class SharedWriter(Writer):
    """Rows of one machine. What is told of files goes by their names below its log folder."""

    def __init__(self, db: Any, machine: str) -> None:
        super().__init__(db)
        self._machine = f"{machine}/"

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
        found = {path.removeprefix(self._machine): row for path, row in super().files().items() if self._is_ours(path)}
        return {path: row._replace(path=path) for path, row in found.items()}

    def put_file(self, row: FileRow) -> FileRow:
        return super().put_file(row._replace(path=self._machine + row.path))._replace(path=row.path)

    def drop_file(self, row: FileRow) -> list[str]:
        """Files of other machines that go with it are read again by those."""
        others = super().drop_file(row)
        self._db.execute("UPDATE removals SET number = number + 1")
        return [path.removeprefix(self._machine) for path in others if self._is_ours(path)]

    def comes_late(self, row: FileRow) -> bool:
        return super().comes_late(row._replace(path=self._machine + row.path))

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._machine)


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
    """The shared index at `url`, filled from the log files of `machine`. Raises OSError; can be called again after."""

    def __init__(self, url: str, machine: str, logs_root: Path) -> None:
        if not _MACHINE.fullmatch(machine):
            raise ValueError(f"a machine's name is letters, digits, '.', '_' and '-', 64 at most, not {machine[:80]!r}")
        self._url = url
        self._machine = machine
        self._link: Connection | None = None
        self._removals = -1
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
            f"INSERT INTO machines VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET {told}",
            (self._machine, address, secret, int(now)),
        )

    def _open(self) -> None:
        """Connects when first needed."""

    def _look_after(self) -> None:
        if self._link is not None and not self._link.is_closed:
            return
        self.close()
        link = Connection(self._url)
        try:
            _make(link)
        except BaseException:
            link.close()
            raise
        self._link = link
        self._writer = SharedWriter(_Database(link), self._machine)
        self._removals = -1

    @contextmanager
    def _transaction(self) -> Iterator[Writer]:
        self._look_after()
        link = self._link
        assert link is not None
        try:
            link.run("BEGIN")
            link.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
            ((removals,),) = link.execute("SELECT number FROM removals")
            if removals != self._removals:
                self._writer.forget()
                self._removals = removals
            yield self._writer
            link.run("COMMIT")
        except BaseException:
            self._writer.forget()
            with suppress(Unreachable):
                link.run("ROLLBACK")
            raise


def _make(link: Connection) -> None:
    """The schema, where nobody has made it."""
    if _is_made(link):
        return
    link.run("BEGIN")
    try:
        link.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
        if not _is_made(link):
            link.run(f"CREATE SCHEMA {SCHEMA}")
            for statement in postgres_sql.schema():
                link.run(statement)
        link.run("COMMIT")
    except BaseException:
        with suppress(Unreachable):
            link.run("ROLLBACK")
        raise


def _is_made(link: Connection) -> bool:
    return bool(link.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (SCHEMA,)))
