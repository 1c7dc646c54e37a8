"""Adds entries about calls that were settled long ago, beside the keepers that are running.

Who holds the transaction may write the log files; and a file's settled size grows with what is added to it, so that a
keeper takes it for what it is. Leaves out what is added.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from llm_proxy.keeper.store import Seat, Session, Store, Written
from llm_proxy.sinks.log_files import LogFile, Logs
from llm_proxy.sinks.log_reader import COMPRESSED, PLAIN


class Appender:
    """Open for the log folder `root`. Raises OSError, sqlite3.Error, StoreDamaged."""

    def __init__(self, database: Path, root: Path) -> None:
        self._store = Store(database, "")
        self._logs = Logs(root, keep_open=8)

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._logs.sync()
        finally:
            self._logs.close()
            self._store.close()

    def append(self, file: str, lines: bytes) -> bool:
        """Whole lines to the end of a session's file, relative to the folder; False: it is not there any more.

        What is added to a compressed file stands in a plain one beside it, as if its session had gone on.
        """
        plain = file.removesuffix(COMPRESSED).removesuffix(PLAIN) + PLAIN
        root = self._logs.root
        with self._store.transaction():
            if not (root / file).exists() and not (root / plain).exists():
                return False
            session = self._session(plain)
            opened = self._logs.file(plain)
            # One that was cut, or begun anew, stays so for its keeper.
            grows = session is not None and opened.size >= session.size
            if session is not None and opened.size > session.size:
                self._adopt(session, opened)
            opened.append(lines if opened.ends_whole() else b"\n" + lines)
            if session is not None and grows:
                session.size = opened.size
                self._store.save([session])
        return True

    def _session(self, file: str) -> Session | None:
        """None for one that is complete: no keeper will look at its file again."""
        session = self._store.by_id(file.rpartition("/")[2].removesuffix(PLAIN))
        return (
            session
            if session is not None and (session.key.logs, session.file) == (str(self._logs.root), file)
            else None
        )

    def _adopt(self, session: Session, file: LogFile) -> None:
        """Lines that a killed keeper wrote and did not settle: its successor must find them behind the grown size."""
        found = [Written(known.id, known.type, Seat(session.id, known.seq)) for known in file.known_after(session.size)]
        session.last_seq = max([session.last_seq, *(one.seat.seq for one in found)])
        self._store.remember_written(found)
