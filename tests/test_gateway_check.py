"""What `gateway check` and `gateway migrate` find out about a store, its secrets and Redis, and that looking changes nothing."""

import contextlib
import os
import socket
import sqlite3
import stat
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, text, update

from llm_proxy.gateway.options import Secrets
from llm_proxy.gateway.sealing import Sealer, guard
from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.checking import check, migrate
from llm_proxy.gateway.store.database import StoreUnusable
from tests.gatewaystore import DIALECTS, add_user, an_empty_url
from tests.postgresbed import PASSWORD, SERVER
from tests.redisbed import a_redis


def secrets(url, key="the encryption key", **more):
    return Secrets("jwt", key, url, **more)


def wrong(findings):
    return [(finding.what, finding.remedy) for finding in findings if not finding.ok]


def said(findings):
    return "\n".join(f"{finding.ok} {finding.what}" for finding in findings)


async def provider_key(store, sealer, base_url):
    user = await add_user(store, f"{base_url}@example.org")
    async with store.writing() as connection:
        row = {"user_id": user, "provider": "openai", "encrypted_key": "", "key_version": 1, "key_id": sealer.key_id}
        row["base_url"] = base_url
        table = schema.provider_keys
        key = (await connection.execute(insert(table).values(row).returning(table.c.id))).scalar_one()
        sealed = sealer.seal("sk-1", row=key, user=user)
        await connection.execute(update(table).where(table.c.id == key).values(encrypted_key=sealed.text))
    return key


@contextlib.contextmanager
def listening():
    """The URL of somebody who takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as link:
        yield f"http://127.0.0.1:{link.getsockname()[1]}"


async def migrated_to(store, version, *, oldest):
    async with store.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
        await connection.execute(update(schema.facts).where(schema.facts.c.name == "oldest").values(value=oldest))


async def whole(store):
    async with store.reading() as connection:
        return {name: (await connection.execute(select(table))).all() for name, table in schema.metadata.tables.items()}


async def test_a_good_store_is_found_good_and_left_as_it_is(store, store_url):
    """Each thing is named, and no row is written."""
    sealer = Sealer(secrets(store_url))
    await guard(store, sealer)
    with listening() as url:
        await provider_key(store, sealer, url)
        before = await whole(store)
        findings = await check(secrets(store_url), "/nowhere")
    assert wrong(findings) == []
    for words in (
        "answers: ",
        "version, 0002",
        "machines that serve now: none",
        "hosts that can be reached: all (1)",
        "encryption key is the store's",
        "provider keys that can be read: all (1)",
        "be written to",
    ):
        assert words in said(findings)
    assert ("database's clock" in said(findings)) is (store.dialect == "postgresql")
    assert PASSWORD not in said(findings) and await whole(store) == before


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_store_that_is_not_there_yet_is_no_fault(dialect, tmp_path):
    """Checked before the first start it is not made; `migrate` makes it, and says so once."""
    async with an_empty_url(dialect, tmp_path) as url:
        findings = await check(secrets(url), str(tmp_path))
        assert wrong(findings) == [] and "the first start makes" in said(findings)
        assert not (tmp_path / "new").exists()
        assert [line.partition(":")[0] for line in await migrate(url, str(tmp_path))] == ["0001", "0002"]
        assert await migrate(url, str(tmp_path)) == []
        assert "belongs to no encryption key yet" in said(await check(secrets(url), str(tmp_path)))


async def test_a_wrong_encryption_key_is_found(store, store_url):
    """By the canary, and the provider keys are not said to be readable."""
    await guard(store, Sealer(secrets(store_url)))
    ((what, remedy),) = wrong(await check(secrets(store_url, "another"), "/nowhere"))
    assert "another encryption key" in what and "ENCRYPTION_KEY" in remedy


async def test_provider_keys_that_cannot_be_read_are_named(store, store_url):
    """One that was moved to another row opens no more."""
    sealer = Sealer(secrets(store_url))
    await guard(store, sealer)
    with listening() as url:
        key = await provider_key(store, sealer, url)
        async with store.writing() as connection:
            await connection.execute(update(schema.provider_keys).values(id=key + 1))
        ((what, _),) = wrong(await check(secrets(store_url), "/nowhere"))
    assert what == f"1 of 1 provider keys cannot be read: {key + 1}"


@pytest.mark.parametrize(("version", "words"), [("0000", "gateway migrate"), ("9001", "upgrade llm-proxy")])
async def test_another_version_is_found(store, store_url, version, words):
    """An older store is to be migrated, a newer one needs a newer program."""
    await migrated_to(store, version, oldest=version)
    ((what, remedy),) = wrong(await check(secrets(store_url), "/nowhere"))
    assert version in what and words in remedy


async def test_a_newer_store_that_this_program_stands_is_good(store, store_url):
    """One that was migrated by adding only says from which version on programs may serve from it."""
    await migrated_to(store, "9001", oldest="0002")
    findings = await check(secrets(store_url), "/nowhere")
    assert wrong(findings) == [] and "version 9001, of a newer program" in said(findings)
    assert await migrate(store_url, "/nowhere") == []


async def test_hosts_that_cannot_be_reached_are_named_with_their_keys(store, store_url, monkeypatch):
    """Once each; and so is the way out that HTTPS_PROXY names."""
    sealer = Sealer(secrets(store_url))
    await guard(store, sealer)
    with listening() as good, listening() as way_out:
        nobody = f"https://127.0.0.1:{closed_port()}"
        for url in (good, nobody, f"{nobody}/v1"):
            await provider_key(store, sealer, url)
        ((what, remedy),) = wrong(await check(secrets(store_url), "/nowhere"))
        assert what.startswith(f"{nobody} cannot be reached: ") and "connect" in what
        assert remedy == "correct the base URL of provider key 2, 3, or let this machine reach it"
        for name in ("NO_PROXY", "no_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", way_out)
        assert wrong(await check(secrets(store_url), "/nowhere")) == []
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
        ((what, _),) = wrong(await check(secrets(store_url), "/nowhere"))
        assert "the proxy that HTTPS_PROXY names: " in what


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as link:
        return link.getsockname()[1]


async def test_limits_that_nobody_shares_are_found(store, store_url, tmp_path):
    """Several processes, or machines that served a moment ago, count each by itself without Redis."""
    ((what, remedy),) = wrong(await check(secrets(store_url), "/nowhere", workers=3))
    assert what == "3 processes serve here, and each counts limits by itself" and "REDIS_URL" in remedy
    async with store.writing() as connection:
        for name, age in (("one", 1), ("two", 1), ("gone", 3600)):
            row = {"id": name, "name": name, "version": "7", "address": ""}
            row["seen_at"] = schema.now() - timedelta(seconds=age)
            await connection.execute(insert(schema.machines).values(row))
    ((what, remedy),) = wrong(await check(secrets(store_url), "/nowhere"))
    assert what.endswith(": one (7), two (7)") and remedy == "set REDIS_URL"
    with a_redis(tmp_path) as redis:
        findings = await check(secrets(store_url, redis_url=redis.url), "/nowhere", workers=3)
    assert wrong(findings) == [] and "machines that serve now: one (7), two (7)" in said(findings)


async def test_a_store_that_takes_no_writes_is_found(tmp_path):
    """A standby, and a disk that is full: here a limit on the file's pages."""
    from tests.gatewaystore import migrated

    name = await SERVER.create(await migrated("postgresql"))
    await SERVER.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        ((what, _),) = wrong(await check(secrets(SERVER.url(name)), "/nowhere"))
    finally:
        await SERVER.drop(name)
    assert "nothing can be written" in what and "read-only" in what


async def test_clocks_that_differ_are_found(store, store_url, monkeypatch):
    """Ours set back by a minute."""
    if store.dialect == "sqlite":
        assert "database's clock" not in said(await check(secrets(store_url), "/nowhere"))
        return
    true = schema.now
    monkeypatch.setattr(schema, "now", lambda: true() - timedelta(minutes=1))
    ((what, remedy),) = wrong(await check(secrets(store_url), "/nowhere"))
    assert what in {"the database's clock and ours differ by 60.0 s", "the database's clock and ours differ by 59.9 s"}
    assert "NTP" in remedy


async def test_a_file_that_others_may_read_is_found(tmp_path):
    """With what to do about it."""
    await migrate("", str(tmp_path))
    assert wrong(await check(secrets(""), str(tmp_path))) == []
    os.chmod(tmp_path / "gateway.db", 0o644)
    ((what, remedy),) = wrong(await check(secrets(""), str(tmp_path)))
    assert "mode is 644" in what and remedy == f"chmod 600 {tmp_path}/gateway.db*"
    assert stat.S_IMODE((tmp_path / "gateway.db").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2@127.0.0.1:1/db", "mysql://u:hunter2@h/db", "postgresql://u:hunter2#@h/db"]
)
async def test_a_store_that_cannot_be_reached_is_one_finding(url):
    """It says which, and not the password."""
    findings = await check(secrets(url), "/nowhere")
    assert len(findings) == len(wrong(findings)) == 1
    assert "hunter2" not in said(findings) and "DATABASE_URL" in findings[0].remedy


async def test_redis_is_found_there_or_not(tmp_path):
    """It answers, refuses a password, is not there, or its URL cannot be read; nothing says the password."""
    with a_redis(tmp_path) as redis:
        good = (await check(secrets("", redis_url=redis.url), str(tmp_path)))[-1]
        refused = (await check(secrets("", redis_url=redis.url.replace("pass-word", "hunter2")), str(tmp_path)))[-1]
        redis.freeze()
        hangs = (await check(secrets("", redis_url=redis.url), str(tmp_path)))[-1]
        redis.thaw()
    gone = (await check(secrets("", redis_url=redis.url), str(tmp_path)))[-1]
    unread = (await check(secrets("", redis_url="rediss:/hunter2"), str(tmp_path)))[-1]
    assert good.ok and good.what == f"Redis at redis://127.0.0.1:{redis.port}/0 answers"
    for finding in (refused, hangs, gone, unread):
        assert not finding.ok and "hunter2" not in finding.what and "pass-word" not in finding.what
    assert "no answer in time" in hangs.what


async def test_migrating_a_strangers_database_is_refused(tmp_path):
    """Before anything in it is changed."""
    with contextlib.closing(sqlite3.connect(tmp_path / "gateway.db")) as link:
        link.execute("CREATE TABLE request_logs (id INTEGER)")
    with pytest.raises(StoreUnusable, match="another program"):
        await migrate("", str(tmp_path))
