"""The gateway's store for a test, on SQLite and on a real PostgreSQL: migrated once, copied for each test.

`store` and `store_url` are fixtures of every test (`conftest`), so what is heavy is imported by whoever uses them.
"""

import atexit
import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest

from tests.postgresbed import SERVER

DIALECTS = ("sqlite", "postgresql")

_templates = {}


async def migrated(dialect):
    """What a store of this process is copied from: an SQLite file, or the name of a database."""
    if dialect not in _templates:
        if dialect == "sqlite":
            folder = tempfile.mkdtemp(prefix="gateway-store-")
            atexit.register(shutil.rmtree, folder)
            path = Path(folder) / "migrated.db"
            await _migrate(f"sqlite:///{path}")
            with contextlib.closing(sqlite3.connect(path)) as link:
                link.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            _templates[dialect] = path
        else:
            name = await SERVER.create(name="migrated")
            await _migrate(SERVER.url(name))
            _templates[dialect] = name
    return _templates[dialect]


async def _migrate(url):
    async with opened(url):
        pass


@contextlib.asynccontextmanager
async def a_store_url(dialect, folder):
    """The URL of a migrated store that nobody else has, in `folder` if it is a file."""
    template = await migrated(dialect)
    if dialect == "sqlite":
        path = Path(folder) / "gateway.db"
        shutil.copy(template, path)
        path.chmod(0o600)
        yield f"sqlite:///{path}"
        return
    name = await SERVER.create(template)
    try:
        yield SERVER.url(name)
    finally:
        await SERVER.drop(name)


@contextlib.asynccontextmanager
async def an_empty_url(dialect, folder):
    """As `a_store_url`, of a store that is not there yet: no file, or a database without tables."""
    if dialect == "sqlite":
        yield f"sqlite:///{Path(folder) / 'new' / 'gateway.db'}"
        return
    name = await SERVER.create()
    try:
        yield SERVER.url(name)
    finally:
        await SERVER.drop(name)


@contextlib.asynccontextmanager
async def opened(url, state="/nowhere"):
    """A `Store`."""
    from llm_proxy.gateway.store.database import Store

    store = Store(url, str(state))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=DIALECTS)
async def store_url(request, tmp_path):
    """The URL of a migrated, empty store, of each kind."""
    async with a_store_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture
async def store(store_url, tmp_path):
    """An open `Store`, migrated and empty, of each kind."""
    async with opened(store_url, tmp_path) as made:
        yield made


async def add_user(store, email, role="member", **more):
    """A user's id; nobody can sign in as him, his password's hash is none."""
    from sqlalchemy import insert

    from llm_proxy.gateway.store import schema

    values = {"email": email, "role": role, "password_hash": "!", **more}
    async with store.writing() as connection:
        made = await connection.execute(insert(schema.users).values(**values).returning(schema.users.c.id))
        return made.scalar_one()
