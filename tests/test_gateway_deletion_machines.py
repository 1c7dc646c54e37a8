"""A user's conversations are deleted by every machine, whenever it comes to it, and each says what it has done."""

import asyncio
import json
import socket
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import insert, select, update

from llm_proxy.gateway.machine import Machine
from llm_proxy.gateway.manage import deletions
from llm_proxy.gateway.options import Options
from llm_proxy.gateway.routes import Ask
from llm_proxy.gateway.store import schema
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaybed import a_gateway
from tests.gatewaystore import opened
from tests.test_gateway_usage import attempt, caller, note

WORDS = "".join(SENTENCE)
CHAT = "/v1/chat/completions"


def told(folder, **more):
    return Options("", "", str(folder), version="9.9", public_url="https://gw.example", logs="/logs", **more)


async def rows(store, table):
    async with store.reading() as connection:
        return (await connection.execute(select(table))).all()


async def asked(store, user, before=None):
    moment = schema.now()
    values = {"account": store.account(user), "user_id": user, "requested_by": user, "before": before or moment}
    async with store.writing() as connection:
        made = insert(schema.deletions).values(values).returning(schema.deletions.c.id)
        number = await connection.scalar(made)
        await store.changed(connection)
    return number


def answer(folder, name, **report):
    """As the keeper does."""
    (folder / "deletions" / f"{name}.done").write_text(json.dumps({"at": time.time(), "left": "", **report}))


async def test_a_machine_is_the_same_over_restarts_and_says_that_it_lives(store, tmp_path):
    """Its id lies in its folder, made once however many processes begin at once; the row has what others need."""
    first = Machine(store, told(tmp_path))
    assert Machine(store, told(tmp_path)).id == first.id != Machine(store, told(tmp_path / "other")).id
    await first.beat()
    (row,) = await rows(store, schema.machines)
    await first.beat()
    (again,) = await rows(store, schema.machines)
    assert (row.id, row.version, row.address) == (first.id, "9.9", "https://gw.example")
    assert row.seen_at < again.seen_at <= schema.now()
    (tmp_path / "machine").write_text("not an id")
    with pytest.raises(OSError, match="must hold 16 to 64 hexadecimal digits"):
        Machine(store, told(tmp_path))


async def test_the_keeper_is_asked_until_it_has_answered_and_what_it_says_is_reported_once(store, tmp_path):
    """A question that was lost is asked again; an answer is taken once, by however many processes."""
    one, two = Machine(store, told(tmp_path)), Machine(store, told(tmp_path))
    assert not await one.hand_over() and not (tmp_path / "deletions").exists()
    before = datetime(2026, 1, 31, 12, 0, 0, 250_001, tzinfo=UTC)
    number = await asked(store, 17, before)
    assert await one.hand_over()
    name = f"{store.account(17).partition('.')[0]}-{number}"
    (path,) = (tmp_path / "deletions").iterdir()
    ns = int(before.timestamp()) * 10**9 + 250_001_000
    asks = {"id": name, "account": store.account(17), "before": ns, "logs": "/logs"}
    assert json.loads(path.read_text()) == asks
    path.write_text(json.dumps(asks | {"logs": "/moved"}))
    assert await two.hand_over() and json.loads(path.read_text()) == asks
    assert path.name == f"{name}.ask" and path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    assert await two.hand_over() and path.exists()
    path.with_suffix(".done").write_text("no report")
    assert await two.hand_over() and not path.with_suffix(".done").exists()
    answer(tmp_path, name, conversations=3, left="Loki")
    assert await asyncio.gather(one.hand_over(), two.hand_over()) == [False, False]
    (report,) = await rows(store, schema.deletion_reports)
    assert (report.deletion_id, report.machine, report.conversations, report.left) == (number, one.id, 3, "Loki")
    (noted,) = await rows(store, schema.audit_log)
    assert (noted.action, noted.object, noted.user_id) == ("conversations.deleted", f"deletion:{number}", None)
    assert not list((tmp_path / "deletions").iterdir()) and not await one.hand_over()


class Slow(Machine):
    """Meanwhile the other process hands over what was asked for since."""

    other: Machine

    async def _report(self, *told):
        await super()._report(*told)
        await asked(self._store, 18)
        assert await self.other.hand_over()


async def test_what_another_process_has_handed_over_meanwhile_stays(store, tmp_path):
    """The keeper may be at it: only files are taken away that were there before it was asked what is reported."""
    slow = Slow(store, told(tmp_path))
    slow.other = Machine(store, told(tmp_path))
    name = f"{store.account(17).partition('.')[0]}-{await asked(store, 17)}"
    assert await slow.hand_over()
    answer(tmp_path, name, conversations=1)
    await slow.hand_over()
    (path,) = await files(tmp_path / "deletions")
    assert path.name != f"{name}.ask"


async def test_a_machine_that_was_away_does_it_when_it_is_back(store, store_url, tmp_path):
    """And one that hears of it does so at once, by the store's counter, without looking all the time."""
    away = Machine(store, told(tmp_path / "away"))
    async with opened(store_url, tmp_path) as second:
        here = Machine(second, told(tmp_path / "here"))
        tasks = [asyncio.create_task(one) for one in (here.run(), second.watch())]
        await until(lambda: rows(store, schema.machines))
        number = await asked(store, 17)
        name = f"{store.account(17).partition('.')[0]}-{number}"
        await until(lambda: files(tmp_path / "here/deletions"))
        answer(tmp_path / "here", name, conversations=1)
        await until(lambda: rows(store, schema.deletion_reports))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await away.hand_over()
    answer(tmp_path / "away", name, conversations=0)
    assert not await away.hand_over()
    assert {one.machine for one in await rows(store, schema.deletion_reports)} == {here.id, away.id}


async def files(folder):
    return folder.exists() and list(folder.glob("*.ask"))


async def until(what, limit=20.0):
    async with asyncio.timeout(limit):
        while not await what():
            await asyncio.sleep(0.02)


async def test_until_now_is_by_the_stores_clock(store):
    """Machines' clocks may differ; PostgreSQL is asked for its own."""
    from llm_proxy.gateway.manage.deletions import _clock

    async with store.writing() as connection:
        before, found, after = schema.now(), await _clock(connection), schema.now()
        assert before - timedelta(milliseconds=1) <= found <= after + timedelta(milliseconds=1)
        if store.dialect == "postgresql":
            (theirs,) = (await connection.exec_driver_sql("SELECT clock_timestamp()")).one()
            assert found < theirs and theirs != await _clock(connection)


# --- words of errors


async def test_the_words_of_errors_go_with_the_conversations(store, tmp_path):
    """Of calls begun before: those in the usage log, what is written later, and what another process wrote meanwhile."""
    theirs = {"caller": caller(17), "ending": "upstream_failed", "error": "bad prompt: canary"}
    before = attempt("r1", **theirs), attempt("r2", **theirs | {"caller": caller(18)})
    await note(store, *before, attempt("r3", at=schema.now() + timedelta(hours=1), **theirs))
    async with store.writing() as connection:
        ask = Ask(SimpleNamespace(store=store), caller(17), {}, {}, None, "")
        number = await deletions.order(ask, connection, 17)
    await note(store, attempt("r4", **theirs))
    assert [bool(row.error) for row in await logged(store)] == [False, True, True, False]

    async with store.writing() as connection:
        await connection.execute(update(schema.request_logs).values(error="canary"))
    machine = Machine(store, told(tmp_path))
    assert await machine.hand_over()
    answer(tmp_path, f"{store.account(17).partition('.')[0]}-{number}", conversations=1)
    assert not await machine.hand_over()
    assert [bool(row.error) for row in await logged(store)] == [False, True, True, False]


async def logged(store):
    return sorted(await rows(store, schema.request_logs), key=lambda row: row.id)


# --- a whole gateway


async def test_a_user_and_an_administrator_have_conversations_deleted(fake, tmp_path):
    """Asked for by HTTP, done by the keeper, told by machine; what others said stays, and every step is in the audit log."""
    await asyncio.to_thread(_whole, fake, tmp_path)


def _whole(fake, home):
    with a_gateway(home, allow=(fake.url,)) as gateway:
        gateway.wait()
        gateway.alias("fast", "gpt-4o-mini", gateway.provider("openai", fake.url, shared=True), shared=True)
        ann, bob = gateway.member("ann@example.com"), gateway.sign_up("bob@example.com")
        ids = {
            name: gateway.want(200, "GET", "/auth/me", None, who)["id"] for name, who in (("ann", ann), ("bob", bob))
        }
        for name, who in (("ann", ann), ("bob", bob)):
            _say(gateway, who, f"canary of {name}")
        gateway.daemon.entries(until=lambda found: sum("digest" in one for one in found) == 2)
        _who_may(gateway, ann, ids)

        made = gateway.want(202, "DELETE", "/manage/me/conversations", None, ann)
        assert (made["user_id"], made["requested_by"], made["done"]) == (ids["ann"], ids["ann"], False)
        done = _done(gateway, ann, made["id"])
        (part,) = done["machines"]
        assert (part["state"], part["conversations"], part["left"], part["name"]) == ("done", 1, "", "")
        assert all(one["name"] == "" for one in made["machines"])
        (seen,) = gateway.want(200, "GET", "/manage/deletions", None, gateway.admin)
        assert seen["machines"][0]["name"] == socket.gethostname()
        assert _hits(home, b"canary of ann") == [] and _hits(home, b"canary of bob")
        assert gateway.want(200, "GET", "/manage/deletions", None, bob) == []

        _say(gateway, ann, "canary of later")
        gateway.daemon.entries(until=lambda found: sum("digest" in one for one in found) == 2)
        early = {"before": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}
        path = f"/manage/users/{ids['ann']}/conversations"
        assert gateway.ask("DELETE", path, {"before": "2026-01-01T00:00:00"}, gateway.admin).code == "invalid_request"
        second = gateway.want(202, "DELETE", path, early, gateway.admin)
        _gone_for_good(gateway, home, gateway.sign_up("eve@example.com"))
        assert _done(gateway, gateway.admin, second["id"])["machines"][0]["conversations"] == 0
        assert _hits(home, b"canary of later")

        gateway.want(204, "DELETE", f"/manage/users/{ids['bob']}", None, gateway.admin)
        assert len(gateway.want(200, "GET", "/manage/deletions", None, gateway.admin)) == 3
        assert _hits(home, b"canary of bob")
        gateway.want(204, "DELETE", f"/manage/users/{ids['ann']}?conversations=true", None, gateway.admin)
        third = gateway.want(200, "GET", "/manage/deletions", None, gateway.admin)[0]
        last = gateway.want(202, "DELETE", f"/manage/users/{ids['bob']}/conversations", None, gateway.admin)
        assert _done(gateway, gateway.admin, third["id"])["user_id"] == ids["ann"]
        _done(gateway, gateway.admin, last["id"])
        assert _hits(home, b"canary of") == []
        actions = [
            one["action"] for one in gateway.want(200, "GET", "/manage/audit?limit=100", None, gateway.admin)["acts"]
        ]
        assert actions.count("conversations.delete") == actions.count("conversations.deleted") == 5
        assert gateway.daemon.stop() == 0
    assert _hits(home, b"canary of") == []


def _gone_for_good(gateway, home, eve):
    """A machine that is away holds up deletions until it is forgotten; one that serves cannot be."""
    (here,) = gateway.want(200, "GET", "/manage/machines", None, gateway.admin)
    assert (here["state"], here["address"]) == ("serving", "") and here["version"] and here["name"]
    refused = gateway.ask("DELETE", f"/manage/machines/{here['id']}", None, gateway.admin)
    assert (refused.status, refused.code) == (409, "machine_serves")
    with closing(sqlite3.connect(next(home.rglob("gateway.db")), timeout=20)) as db, db:
        seen = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
        db.execute("INSERT INTO machines VALUES ('ab', 'gone', '1', '', ?)", (seen,))
    made = gateway.want(202, "DELETE", "/manage/me/conversations", None, eve)
    _until_done(gateway, eve, made["id"], here["id"])
    assert gateway.want(200, "GET", "/manage/deletions", None, eve)[0]["done"] is False
    assert [one["state"] for one in gateway.want(200, "GET", "/manage/machines", None, gateway.admin)] == [
        "away",
        "serving",
    ]
    assert gateway.ask("DELETE", "/manage/machines/ab", None, eve).status == 403
    gateway.want(204, "DELETE", "/manage/machines/ab", None, gateway.admin)
    assert gateway.ask("DELETE", "/manage/machines/ab", None, gateway.admin).status == 404
    assert gateway.want(200, "GET", "/manage/deletions", None, eve)[0]["done"] is True
    noted = gateway.want(200, "GET", "/manage/audit?action=machine.delete", None, gateway.admin)["acts"]
    assert [(one["object"], one["detail"]["name"]) for one in noted] == [("machine:ab", "gone")]


def _until_done(gateway, session, number, machine):
    deadline = time.monotonic() + 60
    while True:
        (found,) = (one for one in gateway.want(200, "GET", "/manage/deletions", None, session) if one["id"] == number)
        if any(part["state"] == "done" for part in found["machines"] if part["machine"] == machine):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def _who_may(gateway, member, ids):
    """Nobody but an administrator others', and nobody whom nobody knows."""
    path = f"/manage/users/{ids['bob']}/conversations"
    assert gateway.ask("DELETE", path, None, member).status == 403
    assert gateway.ask("DELETE", "/manage/users/999/conversations", None, gateway.admin).status == 404
    assert gateway.ask("DELETE", "/manage/me/conversations", None, gateway.key(member)).status == 403
    assert gateway.ask("DELETE", "/manage/me/conversations").status == 401
    assert gateway.ask("DELETE", f"/manage/users/{ids['bob']}?conversations=maybe", None, gateway.admin).status == 400
    assert gateway.want(200, "GET", "/manage/deletions", None, gateway.admin) == []


def _say(gateway, session, words):
    asked = {"model": "fast", "messages": [{"role": "user", "content": words}]}
    gateway.want(200, "POST", CHAT, asked, gateway.key(session))


def _done(gateway, session, number):
    deadline = time.monotonic() + 60
    while True:
        found = gateway.want(200, "GET", "/manage/deletions", None, session)
        (one,) = (one for one in found if one["id"] == number)
        if one["done"]:
            return one
        assert time.monotonic() < deadline, one
        time.sleep(0.05)


def _hits(home, words):
    """Files that hold them; a journal's segment is freed a little later, when nothing has come for a while."""
    found = [path for path in home.rglob("*") if path.is_file() and "/journal" not in str(path)]
    return [path for path in found if words in path.read_bytes()]
