"""The gateway's store, on a real SQLite and a real PostgreSQL: migrated once, written whole, watched, and told when away."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiosqlite
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from llm_proxy.gateway.facts import Caller, Role
from llm_proxy.gateway.routes import Ask
from llm_proxy.gateway.store import audit, database, schema
from llm_proxy.gateway.store.address import address
from llm_proxy.gateway.store.database import VERSION, Store, StoreAway, StoreUnusable
from llm_proxy.gateway.store.migrations import running
from tests.gatewaystore import DIALECTS, add_user, an_empty_url, opened
from tests.postgresbed import PASSWORD, SERVER


@pytest.fixture(params=DIALECTS)
async def empty_url(request, tmp_path):
    async with an_empty_url(request.param, tmp_path) as url:
        yield url


async def count(store, table):
    async with store.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(table))


async def emails(store):
    async with store.reading() as connection:
        return list(await connection.scalars(select(schema.users.c.email).order_by(schema.users.c.id)))


# -- how it comes to be


async def test_migrations_make_the_tables_of_the_schema(store):
    """What the steps have made is what `schema` says: columns, types, indexes, constraints."""

    def differences(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, schema.metadata)

    async with store.reading() as connection:
        assert await connection.run_sync(differences) == []


def test_the_version_is_that_of_the_newest_step():
    """One line of steps, and the code names its end."""
    assert running.directory().get_heads() == [VERSION]


async def test_a_difference_would_be_seen(store):
    """The comparison that finds nothing finds what there is."""
    async with store.writing() as connection:
        await connection.execute(text("DROP INDEX ix_request_logs_created_at"))
        await connection.execute(text("ALTER TABLE users ADD COLUMN shoe_size INTEGER"))

    def differences(connection):
        return {change[0] for change in compare_metadata(MigrationContext.configure(connection), schema.metadata)}

    async with store.reading() as connection:
        assert await connection.run_sync(differences) == {"add_index", "remove_column"}


_OPEN = """
import asyncio, sys
from llm_proxy.gateway.store.database import Store
async def main():
    print("here", flush=True)
    sys.stdin.readline()
    store = Store(sys.argv[1], "/nowhere")
    await store.open()
    await store.close()
asyncio.run(main())
"""


def _process(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _at_once(code, url, count):
    """Run it in so many processes, which wait for each other; what each of them complains of."""
    processes = [_process(code, url) for _ in range(count)]
    assert [process.stdout.readline() for process in processes] == ["here\n"] * count
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=120)[1] for process in processes]


async def test_machines_that_start_at_once_migrate_once(empty_url):
    """Three processes open an empty store at the same moment: each finds it good, and its first rows are there once."""
    assert _at_once(_OPEN, empty_url, 3) == [""] * 3
    async with opened(empty_url) as store:
        assert await count(store, schema.changes) == 1


async def test_what_migrating_did_is_told_once(empty_url, tmp_path):
    """A step is told when it is made, and a second time there is none."""
    where = address(empty_url, str(tmp_path))
    assert (await database.migrate(where))[0] == "0001: The first tables."
    assert await database.migrate(where) == []


async def test_the_store_of_a_newer_version_is_refused(store_url, store):
    """An old program must not write into tables it does not know."""
    async with store.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9001'"))
    async with opened(store_url) as old:  # what only adds, it stands: the store says so
        assert old.fits
        async with store.writing() as connection:
            await connection.execute(text("UPDATE facts SET value = '9001' WHERE name = 'oldest'"))
        watch = asyncio.create_task(old.watch())
        async with asyncio.timeout(30):
            while old.fits:
                await asyncio.sleep(0.01)
        await _ended(watch)
    with pytest.raises(StoreUnusable, match=r"version 9001.*knows versions up to 0002"):
        async with opened(store_url):
            pass


async def test_another_programs_tables_are_left_alone(empty_url, tmp_path):
    """A database with a `users` of its own is refused whole: nothing is added to it."""
    single = database.engine(address(empty_url, str(tmp_path)))
    async with single.connect() as connection, connection.begin():
        await connection.execute(text("CREATE TABLE users (id INTEGER PRIMARY KEY)"))
    with pytest.raises(StoreUnusable, match=r"tables of another program \(users\)"):
        async with opened(empty_url):
            pass
    async with single.connect() as connection:
        assert await connection.run_sync(database.version_of) is None
    await single.dispose()


async def test_a_step_that_fails_leaves_nothing(empty_url, tmp_path, monkeypatch):
    """Steps land whole: after a failure behind the last statement there is no table."""

    def fail(*_):
        raise RuntimeError("the power is gone")

    where = address(empty_url, str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(running, "_check_foreign_keys", fail)
        with pytest.raises(RuntimeError, match="the power is gone"):
            await database.migrate(where)
    assert (await database.migrate(where))[0] == "0001: The first tables."


async def test_the_default_store_is_a_file_for_its_owner_alone(tmp_path):
    """Without a URL it is gateway.db in the state folder; file, log and index are 0600, whatever the umask."""
    before = os.umask(0)
    try:
        async with opened("", tmp_path / "state") as store:
            await add_user(store, "ada@example.org")
            found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    finally:
        os.umask(before)
    assert found == {"gateway.db": 0o600, "gateway.db-wal": 0o600, "gateway.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_who_looks_at_the_file_and_leaves_takes_nothing_along(tmp_path):
    """A backup or another command of ours opens the living file and closes it again: what is written behind it is still
    seen by the next, and there after a restart.
    """
    look = "import sqlite3, sys; at = sqlite3.connect(sys.argv[1]); print(at.execute(sys.argv[2]).fetchone()[0]); at.close()"

    async def looked():
        command = [sys.executable, "-I", "-c", look, str(tmp_path / "gateway.db"), "SELECT count(*) FROM users"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=60)
        return int(done.stdout)

    async with opened("", tmp_path) as store:
        await asyncio.gather(*(count(store, schema.users) for _ in range(4)))  # each on a connection of its own
        for number in range(1, 4):
            await add_user(store, f"user{number}@example.org")
            assert await looked() == number
        assert (tmp_path / "gateway.db-wal").exists()
    async with opened("", tmp_path) as store:
        assert await count(store, schema.users) == 3


# -- reading and writing


async def test_a_transaction_is_written_whole_or_not_at_all(store):
    """An exception inside takes back what was written before it."""
    with pytest.raises(RuntimeError):
        async with store.writing() as connection:
            await connection.execute(insert(schema.users).values(email="a", password_hash="!", role="member"))
            raise RuntimeError
    assert await emails(store) == []


async def test_a_cancelled_transaction_is_taken_back(store):
    """A client that leaves in the middle of a write leaves nothing behind, and nothing locked."""
    for attempt in range(10):
        inside = asyncio.Event()

        async def write(inside=inside, attempt=attempt):
            async with store.writing() as connection:
                await connection.execute(insert(schema.users).values(email="x", password_hash="!", role="member"))
                inside.set()
                for _ in range(1000 * (attempt + 1)):
                    await connection.execute(select(func.count()).select_from(schema.users))

        task = asyncio.create_task(write())
        async with asyncio.timeout(30):
            await inside.wait()
        await asyncio.sleep(0.001 * attempt)  # somewhere within a statement
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await add_user(store, "y")
    assert await emails(store) == ["y"]


async def test_writers_take_turns(store):
    """Forty tasks that each read a number and write the next one: none is lost, nobody is refused."""
    async with store.writing() as connection:
        await connection.execute(insert(schema.facts).values(name="n", value="0"))

    async def step():
        async with store.writing() as connection:
            await store.alone(connection, "n")
            value = int(await connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == "n")))
            await connection.execute(
                update(schema.facts).where(schema.facts.c.name == "n").values(value=str(value + 1))
            )

    # Not more at once than wait for a connection within its time.
    for _ in range(4):
        await asyncio.gather(*(step() for _ in range(10)))
    async with store.reading() as connection:
        assert await connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == "n")) == "40"


_STEPS = """
import asyncio, sys
from sqlalchemy import select, update
from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.database import Store
async def main():
    store = Store(sys.argv[1], "/nowhere")
    await store.open()
    print("here", flush=True)
    sys.stdin.readline()
    for _ in range(40):
        async with store.writing() as connection:
            await store.alone(connection, "n")
            value = int(await connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == "n")))
            raised = update(schema.facts).where(schema.facts.c.name == "n").values(value=str(value + 1))
            await connection.execute(raised)
    await store.close()
asyncio.run(main())
"""


async def test_processes_take_turns(store, store_url):
    """Two processes that each read a number and write the next one forty times over: none is lost."""
    async with store.writing() as connection:
        await connection.execute(insert(schema.facts).values(name="n", value="0"))
    assert _at_once(_STEPS, store_url, 2) == [""] * 2
    async with store.reading() as connection:
        assert await connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == "n")) == "80"


async def test_what_hangs_on_a_user_goes_with_him(store):
    """Foreign keys hold, on SQLite too."""
    user = await add_user(store, "a")
    async with store.writing() as connection:
        row = {"user_id": user, "name": "n", "prefix": "p", "key_hash": "h", "scopes": ["models"]}
        await connection.execute(insert(schema.api_keys).values(row))
        await connection.execute(delete(schema.users).where(schema.users.c.id == user))
    assert await count(store, schema.api_keys) == 0
    with pytest.raises(IntegrityError):
        async with store.writing() as connection:
            await connection.execute(insert(schema.api_keys).values(row))


async def test_an_id_is_never_given_out_twice(store):
    """Who comes after somebody deleted does not find his usage, which stays by the id."""
    first = await add_user(store, "a")
    async with store.writing() as connection:
        await connection.execute(delete(schema.users))
    assert await add_user(store, "b") > first


async def test_an_insert_leaves_alone_what_is_there(store):
    """The same statement on both stores."""
    for value in ("old", "new"):
        async with store.writing() as connection:
            row = store.insert(schema.facts).values(name="n", value=value)
            await connection.execute(row.on_conflict_do_nothing())
    async with store.reading() as connection:
        assert await connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == "n")) == "old"


async def test_an_act_and_its_note_are_one(store):
    """An act that is taken back leaves no note; one that is done names who did what, from where."""
    caller = Caller(7, "ada@example.org", Role.ADMIN, frozenset(), session_id="s")
    ask = Ask(site=None, caller=caller, params={}, query={}, body=None, address="192.0.2.1")
    for fails in (True, False):
        with contextlib.suppress(RuntimeError):
            async with store.writing() as connection:
                await audit.note(connection, ask, "alias.delete", "alias:17", name="fast")
                if fails:
                    raise RuntimeError
    async with store.writing() as connection:
        await audit.note(connection, None, "key.rotate")
    async with store.reading() as connection:
        rows = (await connection.execute(select(schema.audit_log).order_by(schema.audit_log.c.id))).all()
    assert [(row.user_id, row.action, row.object, row.detail, row.address) for row in rows] == [
        (7, "alias.delete", "alias:17", {"name": "fast"}, "192.0.2.1"),
        (None, "key.rotate", "", {}, ""),
    ]


# -- changes


async def test_a_change_is_known_at_once_where_it_was_made(store):
    """Callbacks come after the commit and before the writer goes on; a change taken back is none."""
    seen = []
    store.on_change(lambda: seen.append(store.generation))
    async with store.writing() as connection:
        await store.changed(connection)
        assert seen == []
    assert seen == [1]
    with pytest.raises(RuntimeError):
        async with store.writing() as connection:
            await store.changed(connection)
            raise RuntimeError
    await add_user(store, "no change")
    assert seen == [1] and store.generation == 1


_CHANGE = """
import asyncio, sys, time
from llm_proxy.gateway.store.database import Store
async def main():
    store = Store(sys.argv[1], "/nowhere")
    await store.open()
    for line in sys.stdin:
        async with store.writing() as connection:
            await store.changed(connection)
        print(time.monotonic(), flush=True)
    await store.close()
asyncio.run(main())
"""


async def _ended(*watches):
    """Before their store is closed."""
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)


async def test_a_change_is_known_to_other_processes(store, store_url):
    """What another process writes, this one forgets soon, every time (within a second, where there is time for it)."""
    told = asyncio.Event()
    store.on_change(told.set)
    watch = asyncio.create_task(store.watch())
    other = _process(_CHANGE, store_url)
    try:
        for _ in range(3):
            told.clear()
            other.stdin.write("change\n")
            other.stdin.flush()
            at = float(await asyncio.to_thread(other.stdout.readline))
            async with asyncio.timeout(30):
                await told.wait()
            assert time.monotonic() - at <= 5.0
    finally:
        await _ended(watch)
        _, said = other.communicate(timeout=60)
    assert said == ""


async def test_two_stores_of_one_process_tell_each_other(store, store_url):
    """A change in either reaches the other, and the one that made it is told once."""
    async with opened(store_url) as second:
        told = {"first": asyncio.Event(), "second": asyncio.Event()}
        store.on_change(told["first"].set)
        second.on_change(told["second"].set)
        watches = [asyncio.create_task(one.watch()) for one in (store, second)]
        for writer, other in ((store, "second"), (second, "first")):
            for event in told.values():
                event.clear()
            async with writer.writing() as connection:
                await writer.changed(connection)
            async with asyncio.timeout(30):
                await told[other].wait()
        await _ended(*watches)
        assert (store.generation, second.generation) == (2, 2)


# -- away


@pytest.fixture
async def database_name():
    """Of a fresh database of PostgreSQL with the store in it."""
    from tests.gatewaystore import migrated

    name = await SERVER.create(await migrated("postgresql"))
    yield name
    await SERVER.drop(name)


async def _stopped(name):
    """The server's processes that serve one database, and the one that takes new connections, stop for a while."""
    link = await SERVER.connect("postgres")
    pids = [row[0] for row in await link.fetch("SELECT pid FROM pg_stat_activity WHERE datname = $1", name)]
    await link.close()
    return [*pids, SERVER.pid]


async def test_a_postgresql_that_hangs_is_away_until_it_goes_on(database_name, monkeypatch):
    """Nobody waits longer than the limits say, and afterwards the same store serves."""
    monkeypatch.setattr(database, "_ACQUIRE", 1.0)
    async with opened(SERVER.url(database_name, connect_timeout="1")) as store:
        assert await emails(store) == []
        stopped = await _stopped(database_name)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(StoreAway, match="no answer in time"):
                await emails(store)
            assert time.monotonic() - began < 6
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        await add_user(store, "a")
        assert await emails(store) == ["a"]


async def test_a_statement_that_hangs_is_given_up(database_name, monkeypatch):
    """A lock that is never released holds nobody for ever."""
    monkeypatch.setattr(database, "_STATEMENT", 0.3)
    link = await SERVER.connect(database_name)
    async with opened(SERVER.url(database_name)) as store:
        async with link.transaction():
            await link.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreAway, match="no answer in time"):
                await add_user(store, "a")
        await link.close()
        assert await add_user(store, "b")
        assert await emails(store) == ["b"]


async def test_lost_connections_are_made_anew(database_name):
    """A server that throws everybody out is away for whoever was at it, and for nobody who comes afterwards."""
    async with opened(SERVER.url(database_name)) as store:
        throw = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database_name}'"
        with pytest.raises(StoreAway) as caught:
            async with store.writing() as connection:
                await connection.execute(select(schema.users))
                await SERVER.execute(throw)
                await connection.execute(select(schema.users))
        assert PASSWORD not in str(caught.value)
        assert await emails(store) == []
        await SERVER.execute(throw)
        assert await emails(store) == []


async def test_a_standby_takes_no_writes(database_name):
    """A read-only server is read, and says of a write that it is away."""
    await SERVER.execute(f'ALTER DATABASE "{database_name}" SET default_transaction_read_only = on')
    async with opened(SERVER.url(database_name)) as store:
        assert await emails(store) == []
        with pytest.raises(StoreAway, match="read-only"):
            await add_user(store, "a")


async def test_the_watch_outlives_an_absence(database_name, monkeypatch, caplog):
    """A change made while we were away is known when we are back; going and coming are said once each."""
    monkeypatch.setattr(database, "WATCH", 0.02)
    async with opened(SERVER.url(database_name)) as store:
        told = asyncio.Event()
        store.on_change(told.set)
        watch = asyncio.create_task(store.watch())
        away = f"""
            ALTER DATABASE "{database_name}" ALLOW_CONNECTIONS false;
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database_name}'"""
        link = await SERVER.connect("postgres")
        for statement in away.split(";"):
            await link.execute(statement)
        async with asyncio.timeout(30):
            while not caplog.records:
                await asyncio.sleep(0.02)
        await link.execute(f'ALTER DATABASE "{database_name}" ALLOW_CONNECTIONS true')
        await link.close()
        other = await SERVER.connect(database_name)
        await other.execute("UPDATE changes SET count = count + 1")
        await other.close()
        async with asyncio.timeout(30):
            await told.wait()
        await _ended(watch)
    assert ["cannot be reached" in caplog.messages[0], caplog.messages[1].endswith("is back")] == [True, True]
    assert len(caplog.messages) == 2 and PASSWORD not in caplog.text


UNREACHABLE = {
    "no server": (StoreAway, lambda url: "postgresql://u:hunter2@127.0.0.1:1/db"),
    "no such host": (StoreAway, lambda url: "postgresql://u:hunter2@nowhere.invalid/db"),
    "wrong password": (StoreUnusable, lambda url: url.replace("p%40ss", "hunter2")),
    "no such database": (StoreUnusable, lambda url: url + "_not"),
    "bad sslmode": (StoreUnusable, lambda url: url + "?sslmode=hunter2"),
    "unknown parameter": (StoreUnusable, lambda url: url + "?shoe_size=46"),
    "password not encoded": (StoreUnusable, lambda url: "postgresql://u:hunter2#x@localhost/db"),
}


@pytest.mark.parametrize("case", UNREACHABLE)
async def test_what_an_operator_must_put_right_is_told_apart(case, database_name):
    """Waiting helps against a server that is down, not against a wrong URL; neither says the password."""
    kind, change = UNREACHABLE[case]
    with pytest.raises(kind) as caught:
        async with opened(change(SERVER.url(database_name))):
            pass
    assert "hunter2" not in str(caught.value) or case == "bad sslmode"
    assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


async def test_sslmode_of_the_url_holds(database_name):
    """Asked to do without TLS it does, asked for TLS that the server has not it refuses."""
    async with opened(SERVER.url(database_name, sslmode="disable", application_name="mine")) as store:
        async with store.reading() as connection:
            name = await connection.scalar(text("SELECT current_database()"))
        assert name == database_name
    with pytest.raises((StoreAway, StoreUnusable)):
        async with opened(SERVER.url(database_name, sslmode="require")):
            pass


async def test_an_sqlite_that_somebody_else_writes_is_away(tmp_path, monkeypatch):
    """Waited for a while, then said; what was read meanwhile was read."""
    monkeypatch.setattr(database, "_BUSY", 200)
    async with opened("", tmp_path) as store:
        with contextlib.closing(sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await emails(store) == []
            with pytest.raises(StoreAway, match="database is locked"):
                await add_user(store, "a")
            other.execute("ROLLBACK")
        await add_user(store, "a")


@pytest.mark.parametrize("case", ["no database", "a folder", "below a file"])
async def test_a_file_that_is_no_store_is_refused(case, tmp_path):
    """What lies at the path is named, and left as it is."""
    path = tmp_path / "gateway.db"
    if case == "a folder":
        path.mkdir()
    else:
        path.write_text("To whom it may concern: this is a letter and no database at all. " * 9)
    with pytest.raises(StoreUnusable, match=r"gateway\.db"):
        async with opened(f"sqlite:///{path / 'x.db' if case == 'below a file' else path}"):
            pass
    assert path.is_dir() or path.read_text().startswith("To whom")


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_a_connection_that_comes_to_nothing_leaves_no_thread_to_a_closed_loop(how, tmp_path, monkeypatch):
    """However slow the thread is: the loop ends behind it."""
    begun, died, opens, stop = threading.Event(), [], sqlite3.connect, aiosqlite.Connection.stop

    def heard_connect(*args, **kwargs):
        begun.set()
        return opens(*args, **kwargs)

    def slow_stop(connection):
        connection._tx.put_nowait((None, lambda: time.sleep(0.3)))
        return stop(connection)

    monkeypatch.setattr(sqlite3, "connect", heard_connect)
    monkeypatch.setattr(aiosqlite.Connection, "stop", slow_stop)
    monkeypatch.setattr(threading, "excepthook", died.append)

    async def comes_to_nothing():
        if how == "fails":
            (tmp_path / "gateway.db").mkdir()
        opening = asyncio.create_task(Store("", str(tmp_path)).open())
        await asyncio.sleep(0)
        begun.wait(30)
        if how == "is cancelled":
            opening.cancel()
        with pytest.raises(StoreUnusable if how == "fails" else asyncio.CancelledError):
            await opening

    asyncio.run(comes_to_nothing())
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            thread.join(30)
    assert begun.is_set() and died == []


# -- URLs

URLS = {
    "postgres://u@h/db": ("postgresql://u@h/db", "postgresql://u@h/db"),
    "postgresql+asyncpg://u:p@h:1/db": ("postgresql://u:p@h:1/db", "postgresql://u@h:1/db"),
    "postgresql://u:p%40@h/d?sslmode=disable": ("postgresql://u:p%40@h/d?sslmode=disable", "postgresql://u@h/d"),
    "postgresql://u:p@h/tokens?sslmode=require&channel_binding=require&connect_timeout=7": (
        "postgresql://u:p@h/tokens?sslmode=require",
        "postgresql://u@h/tokens",
    ),
    "postgresql://u:p@a:1,b:2/db?target_session_attrs=any": (
        "postgresql://u:p@a:1,b:2/db?target_session_attrs=any",
        "postgresql://u@a:1,b:2/db",
    ),
    "postgresql:///db?host=/run/postgresql": ("postgresql:///db?host=%2Frun%2Fpostgresql", "postgresql:///db"),
    "postgresql://u:p@h/db?options=-c%20search_path%3Dx": (
        "postgresql://u:p@h/db?options=-c%20search_path%3Dx",
        "postgresql://u@h/db",
    ),
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_reaches_the_driver_as_it_was_written(url):
    """User, password, hosts, database and parameters stay; what asyncpg does not know is left out or translated."""
    found = address(url, "/nowhere")
    assert (found.dsn, found.told) == URLS[url]
    assert found.connect_timeout == (7 if "connect_timeout" in url else 5)
    assert "p%40" not in repr(found) and ":p@" not in repr(found)


BAD_URLS = [
    "mysql://h/db",
    "gateway.db",
    "sqlite://gateway.db",
    "sqlite:///gateway.db",
    "sqlite:////a?mode=ro",
    "sqlite://",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_is_none_of_ours_is_refused_by_rule(url):
    """The words say what is accepted."""
    with pytest.raises(StoreUnusable, match="database URL"):
        address(url, "/nowhere")


# -- the tests' own server


def test_the_tests_server_ends_with_whoever_started_it():
    """Killed, a process of tests leaves neither a server nor its folder behind."""
    code = (
        "import asyncio, sys, time\n"
        "from tests.postgresbed import SERVER\n"
        "SERVER.start()\n"
        "print(SERVER.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).parent.parent
    bed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    with bed:
        pid = int(bed.stdout.readline())
        folder = os.readlink(f"/proc/{pid}/cwd")
        bed.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
