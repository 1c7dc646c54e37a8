"""Whether a gateway could serve from this store with these secrets, found out without changing anything; and migrating.

Leaves out saying it (the command line).
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
import time
from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy import func, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway.base_urls import BadBaseUrl, base_of
from llm_proxy.gateway.facts import Provider
from llm_proxy.gateway.limiting.shared import PATIENCE
from llm_proxy.gateway.sealing import CANARY, Sealer, Unreadable, WrongKey
from llm_proxy.gateway.store import database, reaching, schema
from llm_proxy.gateway.store.address import Address, StoreUnusable, address
from llm_proxy.gateway.store.database import VERSION, StoreAway
from llm_proxy.gateway.store.findings import Finding

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from llm_proxy.gateway.options import Secrets

SKEW = 2.0  # seconds that our clock and the database's may differ: sessions and limits go by them
_REDIS = 3.0  # seconds for its answer
_PINGS = 3  # the quickest counts: the first one also connects
_NAMED = 10  # provider keys that are named one by one
_SERVING = timedelta(minutes=1)  # since a machine that serves was last seen: it says so every ten seconds


async def migrate(url: str, state: str) -> list[str]:
    """What was done, a line for each step; none for a store that is up to date. Raises StoreAway, StoreUnusable."""
    return await database.migrate(address(url, state))


async def check(
    secrets: Secrets, state: str, *, bases: Iterable[tuple[str, str]] = (), workers: int = 1
) -> list[Finding]:
    """Everything that is found, good or not, in the order in which a start would meet it.

    `bases` are the operator's own addresses of providers, `workers` the processes of this machine.
    """
    found = [finding async for finding in _store(secrets, state, tuple(bases))]
    if secrets.redis_url:
        found.append(await _redis(secrets.redis_url))
    elif workers > 1:
        words = f"{workers} processes serve here, and each counts limits by itself"
        found.append(Finding(False, words, "set REDIS_URL, or gateway.workers to 1"))
    return found


async def _store(secrets: Secrets, state: str, bases: tuple[tuple[str, str], ...]) -> AsyncIterator[Finding]:
    try:
        where = address(secrets.database_url, state)
        if where.path is not None and not where.path.exists():
            yield Finding(True, f"the store at {where.told} is not there yet: the first start makes it")
            return
        async with database.looked_at(where) as connection:
            yield Finding(True, f"the store at {where.told} answers: {await _server(connection)}")
            if (opened := _open_to_others(where)) is not None:
                yield opened
            if where.path is None:
                yield await _clock(connection)
            version = await connection.run_sync(database.version_of)
            stood = version is not None and await connection.run_sync(database.stands, version)
            yield _version(version, stood=stood)
            if version == VERSION or stood:
                wanted = await _addresses(connection, bases)
                yield await _machines(connection, alone=not secrets.redis_url)
                async for finding in _contents(connection, secrets):
                    yield finding
            else:
                wanted = {}
        async for finding in reaching.reached(wanted):
            yield finding
    except StoreUnusable as error:
        yield Finding(False, str(error), "correct DATABASE_URL, or what it names")
    except StoreAway as error:
        yield Finding(False, str(error), "start the database, or correct DATABASE_URL")


async def _contents(connection: AsyncConnection, secrets: Secrets) -> AsyncIterator[Finding]:
    try:
        sealer = Sealer(secrets)
        canary = await connection.scalar(select(schema.facts.c.value).where(schema.facts.c.name == CANARY))
        if canary is None:
            yield Finding(True, "the store belongs to no encryption key yet: the first start binds it to this one")
        else:
            sealer.check_canary(canary)
            yield Finding(True, "the encryption key is the store's")
        yield await _provider_keys(connection, sealer)
    except WrongKey as error:
        yield Finding(False, str(error), "set ENCRYPTION_KEY to the one the store was written with")
    yield await _writable(connection)


def _open_to_others(where: Address) -> Finding | None:
    if where.path is None or not stat.S_IMODE(where.path.stat().st_mode) & 0o077:
        return None
    mode = stat.S_IMODE(where.path.stat().st_mode)
    return Finding(False, f"others may open {where.path} (its mode is {mode:o})", f"chmod 600 {where.path}*")


async def _server(connection: AsyncConnection) -> str:
    if connection.dialect.name == "sqlite":
        return f"SQLite {await connection.scalar(select(func.sqlite_version()))}"
    return f"PostgreSQL {await connection.scalar(select(func.current_setting('server_version')))}"


def _version(version: str | None, *, stood: bool) -> Finding:
    if stood:
        words = f"its tables are of version {version}, of a newer program; this one ({VERSION}) may serve from them"
        return Finding(True, words)
    if version == VERSION:
        return Finding(True, f"its tables are of this program's version, {VERSION}")
    if version is None:
        return Finding(True, "it has no tables of the gateway yet: the first start makes them")
    if version < VERSION:
        return Finding(
            False,
            f"its tables are of version {version}, this program's are of {VERSION}",
            "llm-proxy gateway migrate; the next start does it too",
        )
    return Finding(False, f"its tables are of version {version}, which this program does not know", "upgrade llm-proxy")


async def _clock(connection: AsyncConnection) -> Finding:
    before = schema.now()
    theirs: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    after = schema.now()
    # Whatever the way took, its clock was read between our two looks at ours.
    apart = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    return Finding(
        apart <= SKEW,
        f"the database's clock and ours differ by {apart:.1f} s",
        "" if apart <= SKEW else "set both by NTP: sessions, limits and usage go by them",
    )


async def _provider_keys(connection: AsyncConnection, sealer: Sealer) -> Finding:
    keys = schema.provider_keys
    rows = (await connection.execute(select(keys).order_by(keys.c.id))).all()
    unreadable = [row for row in rows if not _opens(sealer, row.encrypted_key, row.id, row.user_id, row.key_version)]
    if not unreadable:
        return Finding(True, f"provider keys that can be read: all ({len(rows)})")
    named = ", ".join(str(row.id) for row in unreadable[:_NAMED]) + (", …" if len(unreadable) > _NAMED else "")
    return Finding(
        False,
        f"{len(unreadable)} of {len(rows)} provider keys cannot be read: {named}",
        "give the encryption key they were written with in OLD_ENCRYPTION_KEYS, or enter them anew",
    )


def _opens(sealer: Sealer, text: str, row: int, user: int, version: int) -> bool:
    try:
        sealer.unsealed(text, row=row, user=user, version=version)
    except Unreadable:
        return False
    return True


async def _machines(connection: AsyncConnection, *, alone: bool) -> Finding:
    machines = schema.machines
    recent = select(machines).where(machines.c.seen_at > schema.now() - _SERVING).order_by(machines.c.name)
    rows = (await connection.execute(recent)).all()
    told = ", ".join(f"{row.name} ({row.version})" for row in rows) or "none"
    if alone and len(rows) > 1:
        return Finding(False, f"several machines serve, and each counts limits by itself: {told}", "set REDIS_URL")
    return Finding(True, f"machines that serve now: {told}")


async def _addresses(
    connection: AsyncConnection, bases: tuple[tuple[str, str], ...]
) -> dict[tuple[str, str], list[int]]:
    """(scheme, host[:port]) of every provider that a key is for, and the keys' numbers."""
    keys = schema.provider_keys
    found: dict[tuple[str, str], list[int]] = {}
    for row in (await connection.execute(select(keys).order_by(keys.c.id))).all():
        with contextlib.suppress(BadBaseUrl, KeyError, ValueError):  # of such a key every call says so
            base = base_of(Provider(row.provider), row.base_url, row.region, bases)
            found.setdefault((base.scheme, base.authority), []).append(row.id)
    return found


async def _writable(connection: AsyncConnection) -> Finding:
    try:
        await connection.execute(insert(schema.facts).values(name="check", value=""))  # and taken back
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", error)).split("\n", 1)[0].rpartition(">: ")[2]
        return Finding(False, f"nothing can be written to it: {said}", "let its user write, and see to its disk")
    return Finding(True, "it can be written to")


async def _redis(url: str) -> Finding:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    try:
        told = _told(url)
        async with asyncio.timeout(_REDIS), Redis.from_url(url) as redis:
            took = min([await _ping(redis) for _ in range(_PINGS)])
    except (RedisError, OSError, TimeoutError) as error:
        said = str(error).split("\n", 1)[0] or "no answer in time"
        return Finding(False, f"Redis at {told}: {said}", "start it, or correct REDIS_URL; until then limits are local")
    except ValueError:  # its words may hold the password
        return Finding(False, "REDIS_URL cannot be read", "write it redis://[:PASSWORD@]HOST[:PORT][/NUMBER]")
    if took > PATIENCE:
        words = (
            f"Redis at {told} takes {took * 1000:.0f} ms to answer, and a call waits {PATIENCE * 1000:.0f} ms for it"
        )
        return Finding(False, words, "bring it nearer; until then each machine counts limits by itself")
    return Finding(True, f"Redis at {told} answers")


async def _ping(redis: Redis) -> float:
    """The seconds it took."""
    began = time.monotonic()
    await redis.ping()
    return time.monotonic() - began


def _told(url: str) -> str:
    """Without the password. Raises ValueError."""
    parts = urlsplit(url)
    if not parts.netloc and parts.scheme != "unix":
        raise ValueError
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
