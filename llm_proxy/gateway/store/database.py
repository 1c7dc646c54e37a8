"""The store, opened: one SQLite file of ours, or a PostgreSQL that any number of machines share.

Reading and writing go by connections in transactions. What everybody must know of at once moves a counter in the
store, which every process watches: what is remembered of the store is forgotten when it moves. Leaves out the tables
(`schema`), how they come to be (`migrations`) and every query.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import Any

from sqlalchemy import event, exc, func, inspect, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.schema import Table
from sqlalchemy.util import await_only

from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.address import Address, StoreUnusable, address

__all__ = ["VERSION", "Store", "StoreAway", "StoreUnusable"]

log = logging.getLogger("llm_proxy.gateway")

VERSION = "0002"  # the newest migration's

WATCH = 0.4  # seconds between two looks at the counter
_ACQUIRE = 5.0  # seconds until a connection is there and answers; more if the URL's connect_timeout says so
_STATEMENT = 10.0  # seconds a statement may take
_BUSY = 5_000  # milliseconds SQLite waits for another process' writing
_CONNECTIONS = 5

# What a database says when it is there and will not serve us now, and what nobody but an operator changes.
# https://www.postgresql.org/docs/current/errcodes-appendix.html: classes, then single states.
_AWAY = ("08", "53", "55", "57", "58", "25006", "40001", "40P01")
_REFUSED = ("28", "3D000", "42501", "42704")
_SQLITE_AWAY = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PROTOCOL}
)
_SQLITE_REFUSED = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
_NO_FILE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)

Forget = Callable[[], None]


class StoreAway(Exception):
    """The store cannot be asked just now. What was being written is not in it; the same may be tried again."""


class Store:
    """One for a process. An empty URL means an SQLite file in the folder `state`."""

    def __init__(self, url: str, state: str) -> None:
        self._address = address(url, state)
        self._engine: AsyncEngine | None = None
        self._writers: AsyncEngine | None = None
        # SQLite has one writer at a time. Ours wait here and not in threads.
        self._turn = asyncio.Lock() if self._address.is_sqlite else None
        self._changing: set[AsyncConnection] = set()
        self._forget: list[Forget] = []
        self._count = -1
        self.generation = 0
        self.seen_at = time.monotonic()  # when the store was last there
        self.fits = True  # whether this program may serve from its tables
        self._name = ""

    @property
    def told(self) -> str:
        """Its URL without the password."""
        return self._address.told

    @property
    def dialect(self) -> str:
        return "sqlite" if self._address.is_sqlite else "postgresql"

    async def open(self) -> None:
        """Migrates it where it is older. Raises StoreAway, StoreUnusable; may be called again then."""
        self._engine = engine(self._address)
        self._writers = self._engine.execution_options(sqlite_begin="IMMEDIATE")
        try:
            with _at_the_start(self.told):
                async with self.reading() as connection:
                    version = await connection.run_sync(version_of)
                    stood = version is not None and await connection.run_sync(stands, version)
                if version != VERSION and not stood:
                    await migrate(self._address)
            self._count = await self._counted()
            async with self.reading() as connection:
                named = select(schema.facts.c.value).where(schema.facts.c.name == "store")
                self._name = await connection.scalar(named) or ""
        except BaseException:
            await self.close()
            raise

    def account(self, user_id: int) -> str:
        """Whose a record is for good, among those of every store: `1a2b3c4d.17`."""
        return f"{self._name}.{user_id}"

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = self._writers = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose view of the store is of one moment on SQLite, of each statement's on PostgreSQL.

        Raises StoreAway, also for what happens to the connection inside.
        """
        assert self._engine is not None, "the store is not open"
        with _translated(self.told):
            async with self._connected(self._engine) as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end, rolled back by any exception.

        Raises StoreAway: then it is not written; only a connection that is lost while it commits leaves that open.
        """
        assert self._writers is not None, "the store is not open"
        count = None
        async with self._turn or nullcontext():
            with _translated(self.told):
                async with self._connected(self._writers) as connection, connection.begin():
                    try:
                        yield connection
                        if connection in self._changing:
                            count = await self._moved(connection)
                    finally:
                        self._changing.discard(connection)
        if count is not None:
            self._seen(count)

    async def changed(self, connection: AsyncConnection) -> None:
        """What this transaction writes, every process must know of at once: ours right after the commit, others half a
        second later. The counter moves last, so that its row is not locked for long."""
        self._changing.add(connection)

    def on_change(self, forget: Forget) -> None:
        """`forget` is called when something changed.

        Who remembers what he reads looks at `generation` before: has it moved since, what he read may be old already.
        """
        self._forget.append(forget)

    def off_change(self, forget: Forget) -> None:
        """It is called no more."""
        self._forget.remove(forget)

    async def watch(self) -> None:
        """Notices what other processes changed. Never ends."""
        away = False
        while True:
            await asyncio.sleep(WATCH)
            try:
                count = await self._counted()
            except StoreAway as error:
                if not away:
                    log.warning("%s", error)
                away = True
                continue
            if away:
                log.warning("the store at %s is back", self.told)
            away = False
            if count != self._count:
                self._seen(count)

    async def alone(self, connection: AsyncConnection, name: str) -> None:
        """Until this transaction ends no other one, of any machine, is past here for the same name."""
        if self.dialect == "postgresql":
            await connection.execute(select(func.pg_advisory_xact_lock(_CLASS, zlib.crc32(name.encode()) - 2**31)))

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
        return sqlite.insert(table) if self.dialect == "sqlite" else postgresql.insert(table)

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(max(_ACQUIRE, self._address.connect_timeout)):
                connection = await stack.enter_async_context(engine.connect())
            yield connection

    async def _counted(self) -> int:
        async with self.reading() as connection:
            count, oldest = (await connection.execute(_LOOK)).one()
        self.seen_at = time.monotonic()
        fits = (oldest or VERSION) <= VERSION
        if self.fits and not fits:
            log.error(
                "the store at %s has been changed for programs from version %s on: upgrade this", self.told, oldest
            )
        self.fits = fits
        return int(count or 0)

    async def _moved(self, connection: AsyncConnection) -> int:
        moved = update(schema.changes).values(count=schema.changes.c.count + 1).returning(schema.changes.c.count)
        return int((await connection.execute(moved)).scalar_one())

    def _seen(self, count: int) -> None:
        self._count = count
        self.generation += 1
        for forget in self._forget:
            forget()


_OLDEST = select(schema.facts.c.value).where(schema.facts.c.name == "oldest")  # the version whose program stands it
_LOOK = select(select(schema.changes.c.count).scalar_subquery(), _OLDEST.scalar_subquery())
_CLASS = 0x6C6C6D70  # of our advisory locks: other programs may have theirs in the same database


def engine(address: Address, *, migrating: bool = False) -> AsyncEngine:
    """A migrating one has one connection, no limit for its statements, and on SQLite the file to itself."""
    if address.path is not None:
        return _sqlite(address, migrating)
    return _postgresql(address, migrating)


def version_of(connection: Connection) -> str | None:
    """The version its tables are of; None where there are none of ours yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def stands(connection: Connection, version: str) -> bool:
    """Whether this program can serve from the tables of a newer one, which says so itself."""
    if version <= VERSION or not inspect(connection).has_table(schema.facts.name):
        return False
    oldest = connection.scalar(_OLDEST)
    return oldest is not None and oldest <= VERSION


@asynccontextmanager
async def looked_at(address: Address) -> AsyncIterator[AsyncConnection]:
    """A connection to a store as it is, migrated or not; what is written here is taken back.

    Raises StoreAway, StoreUnusable.
    """
    single = engine(address)
    try:
        with _at_the_start(address.told), _translated(address.told):
            async with asyncio.timeout(address.connect_timeout + _STATEMENT), single.connect() as connection:
                yield connection
    finally:
        await single.dispose()


async def migrate(address: Address) -> list[str]:
    """Bring its tables up to date, whoever else begins to at the same time. What was done, for people.

    Raises StoreAway, StoreUnusable.
    """
    from llm_proxy.gateway.store.migrations.running import run

    single = engine(address, migrating=True).execution_options(sqlite_begin="EXCLUSIVE")
    try:
        with _at_the_start(address.told), _translated(address.told):
            async with single.connect() as connection, connection.begin():
                if not address.is_sqlite:
                    await connection.execute(select(func.pg_advisory_xact_lock(_CLASS, 0)))
                return await connection.run_sync(run, address.told)
    finally:
        await single.dispose()


def _sqlite(address: Address, migrating: bool) -> AsyncEngine:
    from llm_proxy.gateway.store.sqlite_thread import connection as connect

    assert address.path is not None
    path = address.path
    pool: dict[str, Any] = (
        {"poolclass": NullPool} if migrating else {"pool_size": _CONNECTIONS, "pool_timeout": _ACQUIRE}
    )
    how = {"async_creator_fn": connect}
    made = create_async_engine(f"sqlite+aiosqlite:///{path}", hide_parameters=True, connect_args=how, **pool)

    @event.listens_for(made.sync_engine, "do_connect")
    def prepare(*_: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Its -wal and -shm take the same mode. Only where it is new: closing a descriptor of a file gives up all locks
        # that this process has on it (POSIX), and the next to leave would take the living -wal along.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @event.listens_for(made.sync_engine, "connect")
    def settle(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        # A step that makes a table anew drops the old one, which must not take other tables' rows along.
        keys = "OFF" if migrating else "ON"
        for pragma in (f"busy_timeout={_BUSY * (12 if migrating else 1)}", "journal_mode=WAL", f"foreign_keys={keys}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @event.listens_for(made.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        how = connection.get_execution_options().get("sqlite_begin", "")
        connection.exec_driver_sql(f"BEGIN {how}")

    @event.listens_for(made.sync_engine, "invalidate")
    def end(connection: DBAPIConnection, *_: Any) -> None:
        """A task cancelled at a statement leaves the statement open, which keeps a closed connection's lock."""
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await_only(asyncio.shield(connection.driver_connection.rollback()))

    return made


def _postgresql(address: Address, migrating: bool) -> AsyncEngine:
    import asyncpg  # type: ignore[import-untyped]

    async def connect(**_: Any) -> Any:
        return await asyncpg.connect(
            address.dsn,
            timeout=address.connect_timeout,
            command_timeout=None if migrating else _STATEMENT,
            server_settings={"application_name": "llm-proxy"},
        )

    pool: dict[str, Any] = (
        {"poolclass": NullPool}
        if migrating
        else {"pool_size": _CONNECTIONS, "max_overflow": _CONNECTIONS, "pool_timeout": _ACQUIRE, "pool_pre_ping": True}
    )
    return create_async_engine("postgresql+asyncpg://", async_creator=connect, hide_parameters=True, **pool)


@contextmanager
def _translated(told: str) -> Iterator[None]:
    """What a driver says of a store that is away. Raises StoreAway."""
    try:
        yield
    except (exc.DBAPIError, exc.TimeoutError, TimeoutError, OSError) as error:
        if isinstance(error, exc.DBAPIError) and not _serves_not(error):
            raise
        raise StoreAway(f"the store at {told} cannot be reached: {_reason(error)}") from error
    except Exception as error:
        if not _state(error).startswith((*_AWAY, *_REFUSED)):
            raise
        raise StoreAway(f"the store at {told} cannot be reached: {_reason(error)}") from error


@contextmanager
def _at_the_start(told: str) -> Iterator[None]:
    """While nothing has gone right yet, what an operator must put right is told apart. Raises StoreUnusable."""
    try:
        yield
    except StoreAway as error:
        if not _is_refused(error.__cause__):
            raise
        raise StoreUnusable(f"the store at {told} cannot be used: {_reason(error.__cause__)}") from error
    except ValueError as error:  # a parameter of the URL, to asyncpg
        raise StoreUnusable(f"the store at {told} cannot be used: {error}") from error


def _serves_not(error: exc.DBAPIError) -> bool:
    return (
        error.connection_invalidated
        or isinstance(error, exc.InterfaceError)
        or _state(error).startswith((*_AWAY, *_REFUSED))
        or _code(error) in _SQLITE_AWAY | _SQLITE_REFUSED
    )


def _is_refused(error: BaseException | None) -> bool:
    driver = getattr(getattr(error, "orig", error), "driver_exception", error)
    return (
        _state(error).startswith(_REFUSED)
        or _code(error) in _SQLITE_REFUSED
        or isinstance(driver, (*_NO_FILE, ValueError))  # a ValueError is about a parameter of the URL
    )


def _state(error: BaseException | None) -> str:
    """PostgreSQL's SQLSTATE, "-" for none."""
    return str(getattr(getattr(error, "orig", error), "sqlstate", None) or "-")


def _code(error: BaseException | None) -> int:
    """SQLite's primary result code, 0 for none."""
    return int(getattr(getattr(error, "orig", error), "sqlite_errorcode", 0)) & 0xFF


def _reason(error: BaseException | None) -> str:
    """In one line, without the statement."""
    if isinstance(error, TimeoutError | exc.TimeoutError):
        return "no answer in time"
    said = str(getattr(error, "orig", error)).split("\n", 1)[0]
    return said.rpartition(">: ")[2] or type(error).__name__
