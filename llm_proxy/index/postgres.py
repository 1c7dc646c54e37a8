"""The shared index: the rows of all machines in one PostgreSQL, asked by the same questions as a machine's own index.

Leaves out its tables (`postgres_sql`) and who fills it (`postgres_write`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from llm_proxy.index import postgres_sql
from llm_proxy.index.bodies import Address
from llm_proxy.index.postgres_sql import SCHEMA
from llm_proxy.index.queries import Index, IndexUnavailable, TookTooLong
from llm_proxy.index.viewer import EVERYTHING, METADATA, REDACTED, Viewer, views

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import asyncpg  # type: ignore[import-untyped]

CONNECTING, ANSWERING = 5.0, 30.0  # seconds
# Who waits for a page waits no longer before it is said that PostgreSQL is away.
_READER_CONNECTING, _STILL_THERE = 3.0, 1.0  # seconds
_ROWS = 500  # read at once
_MOST_IDLE = 8  # connections
# One that hangs in the middle of a transaction must not keep the others from writing.
_SETTINGS = {"search_path": f"{SCHEMA},pg_catalog", "idle_in_transaction_session_timeout": "30000"}

T = TypeVar("T")


class Unreachable(OSError):
    """PostgreSQL does not answer, or refuses. What it is to hold stands in the log files."""


class Refused(ValueError):
    """A statement's values are none that PostgreSQL takes: it would refuse them each time."""


class Connection:
    """One connection, asked synchronously: a loop of its own runs while it is asked. One thread at a time.

    Questions are in SQLite's SQL (`postgres_sql.translated`). Raises Unreachable, Refused; TookTooLong behind
    `stop_at`.
    """

    def __init__(self, url: str, patience: float = CONNECTING) -> None:
        """`patience`: seconds for it to answer at all."""
        self.deadline: float | None = None
        self._patience = patience
        self._loop = asyncio.new_event_loop()
        try:
            self._link = self._connected(url)
        except BaseException:
            self._loop.close()
            raise

    def _connected(self, url: str) -> asyncpg.Connection[Any]:
        import asyncpg

        async def connect() -> asyncpg.Connection[Any]:
            link = await asyncpg.connect(url, timeout=self._patience, server_settings=_SETTINGS)
            # Sums of whole numbers, or of none.
            await link.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=_number, format="text")
            return link

        with _told():
            return self._loop.run_until_complete(asyncio.wait_for(connect(), 2 * self._patience))

    def close(self) -> None:
        with suppress(Exception):
            self._loop.run_until_complete(asyncio.wait_for(self._link.close(timeout=1), 2))
        self.drop()

    def drop(self) -> None:
        """Without a word to one that may not answer."""
        self._link.terminate()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    @property
    def is_closed(self) -> bool:
        return bool(self._link.is_closed())

    @property
    def is_busy(self) -> bool:
        """Closed, or in the midst of a question's rows."""
        return self.is_closed or bool(self._link.is_in_transaction())

    def run(self, statements: str) -> None:
        """Several statements of PostgreSQL's own."""
        self._do(lambda seconds: self._link.execute(statements, timeout=seconds))

    def execute(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Any]:
        """All rows."""
        asked = postgres_sql.translated(sql)
        return self._do(lambda seconds: self._link.fetch(asked.sql, *asked.arguments(values), timeout=seconds))

    def rows(self, sql: str, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Rows; those of a search as they are needed, because there may be many, and most are not looked at."""
        if "MATCH" not in sql:
            yield from map(tuple, self.execute(sql, values))
            return
        asked = postgres_sql.translated(sql)
        arguments = asked.arguments(values)
        transaction = self._link.transaction(readonly=True)
        self._do(lambda _: transaction.start())
        try:
            cursor = self._do(lambda seconds: self._cursor(asked.sql, arguments, seconds))
            while found := self._do(lambda seconds: cursor.fetch(_ROWS, timeout=seconds)):
                yield from map(tuple, found)
                if len(found) < _ROWS:
                    break
        finally:
            with suppress(Unreachable, Refused, TookTooLong):
                self._do(lambda _: transaction.rollback(), always=True)

    async def _cursor(self, sql: str, arguments: list[Any], seconds: float) -> Any:
        return await self._link.cursor(sql, *arguments, timeout=seconds)

    def _do(self, action: Callable[[float], Coroutine[Any, Any, T]], *, always: bool = False) -> T:
        seconds = ANSWERING
        if self.deadline is not None and not always:
            seconds = min(seconds, self.deadline - time.monotonic())
            if seconds <= 0:
                raise TookTooLong
        with _told(late=self.deadline is not None), _refused():
            return self._loop.run_until_complete(asyncio.wait_for(action(seconds), seconds + 1))


def _number(said: str) -> int | float:
    return int(said) if said.lstrip("-").isdigit() else float(said)


@contextmanager
def _told(*, late: bool = False) -> Iterator[None]:
    """The driver's errors in our words."""
    import asyncpg

    try:
        yield
    except TimeoutError as error:
        if late:
            raise TookTooLong from error
        raise Unreachable(f"the shared index does not answer: {error or 'it took too long'}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise Unreachable(f"the shared index cannot be used: {error}") from error


@contextmanager
def _refused() -> Iterator[None]:
    import asyncpg

    try:
        yield
    except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
        raise Refused(str(error)) from error
    except asyncpg.InterfaceError as error:
        if isinstance(error, ValueError):  # what the driver finds out itself
            raise Refused(str(error)) from error
        raise


class SharedIndex(Index):
    """All machines' rows. Names of files begin with their machine's."""

    def __init__(self, link: Connection, viewer: Viewer = EVERYTHING) -> None:
        self.viewer = viewer
        self._link = link

    def stop_at(self, deadline: float | None) -> None:
        self._link.deadline = deadline

    def marked(self, asked: str, found: int) -> str:
        ((words,),) = self._rows("SELECT packed FROM texts WHERE id = :text", {"text": found})
        return postgres_sql.marked(asked, words)

    def _rows(self, query: str, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._link.rows(query, values)
        except (Unreachable, Refused) as error:
            raise IndexUnavailable(str(error)) from error


@contextmanager
def open_shared(url: str, viewer: Viewer = EVERYTHING) -> Iterator[SharedIndex]:
    """The shared index for reading, as far as the viewer sees it. Raises IndexUnavailable."""
    pool = Pool(url)
    try:
        with pool.open(viewer) as index:
            yield index
    finally:
        pool.close()


class Pool:
    """Connections for reading, kept for the next question of the same viewer. For any number of threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[tuple[Viewer, Connection]] = []
        self._lock = threading.Lock()

    @contextmanager
    def open(self, viewer: Viewer = EVERYTHING) -> Iterator[SharedIndex]:
        """Raises IndexUnavailable."""
        seen = _narrowed(viewer)
        try:
            link = self._taken(seen) or _opened(self._url, seen)
        except Unreachable as error:
            raise IndexUnavailable(str(error)) from error
        try:
            yield SharedIndex(link, seen)
        except (IndexUnavailable, TookTooLong):
            link.drop()
            raise
        except Exception:  # of who asked: nothing is wrong with the connection
            if link.is_busy:
                link.close()
            else:
                self._give_back(seen, link)
            raise
        except BaseException:
            link.close()
            raise
        self._give_back(seen, link)

    def answers(self) -> bool:
        """Whether a new question would be answered now."""
        try:
            Connection(self._url, _READER_CONNECTING).close()
        except Unreachable:
            return False
        return True

    def addresses(self) -> dict[str, Address]:
        """Where the machines that fill it are asked. Raises IndexUnavailable."""
        with self.open() as index:
            index.stop_at(time.monotonic() + _READER_CONNECTING)
            rows = index.rows("SELECT name, address, secret FROM machines", {})
            return {name: Address(address, secret) for name, address, secret in rows}

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, link in idle:
            link.close()

    def _taken(self, viewer: Viewer) -> Connection | None:
        """One that still answers: PostgreSQL may have been restarted since."""
        while True:
            with self._lock:
                at = next((at for at, (whose, _) in enumerate(self._idle) if whose == viewer), None)
                if at is None:
                    return None
                _, link = self._idle.pop(at)
            try:
                link.deadline = time.monotonic() + _STILL_THERE
                link.execute("SELECT 1")
            except TookTooLong as error:
                link.drop()
                raise Unreachable("the shared index does not answer") from error
            except Unreachable:
                link.drop()
            else:
                link.deadline = None
                return link

    def _give_back(self, viewer: Viewer, link: Connection) -> None:
        link.deadline = None
        with self._lock:
            self._idle.append((viewer, link))
            last = self._idle.pop(0)[1] if len(self._idle) > _MOST_IDLE else None
        if last is not None:
            last.close()


def _narrowed(viewer: Viewer) -> Viewer:
    """PostgreSQL has no redaction of ours: who would see others' calls redacted sees that there were any."""
    return replace(viewer, others=METADATA) if viewer.others == REDACTED else viewer


def _opened(url: str, viewer: Viewer) -> Connection:
    link = Connection(url, _READER_CONNECTING)
    try:
        for view in views(viewer, SCHEMA):
            link.run(view)
    except BaseException:
        link.close()
        raise
    return link
