"""Sums kept by triggers: whatever comes, changes or goes, they are what the calls come to."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from llm_proxy.index import database, sums
from llm_proxy.index.ingest import Indexer
from scripts.make_logs import make

END = 1_795_000_000
_ALL = ", ".join(f"coalesce(sum({of.format('calls')}), 0)" for of in sums.SUMS.values())


@pytest.fixture
def db(tmp_path):
    make(tmp_path / "logs", calls=120, sessions=12, end=END)
    indexer = Indexer(tmp_path / "index.db", tmp_path / "logs")
    indexer.catch_up_all()
    indexer.close()
    opened = database.open_for_writing(tmp_path / "index.db")
    yield opened
    opened.close()


def assert_sums(db: sqlite3.Connection) -> None:
    columns = ", ".join(sums.SUMS)
    kept = db.execute(f"SELECT key, {columns} FROM sessions ORDER BY 1").fetchall()
    added = f"SELECT sessions.key, {_ALL.replace('sum(1)', 'count(calls.key)')} FROM sessions"
    added += " LEFT JOIN calls ON calls.session = sessions.key GROUP BY 1 ORDER BY 1"
    calls = {row[0]: row for row in db.execute(added)}
    assert [row for row in kept if row[1]] == [calls[row[0]] for row in kept if row[1]]
    assert all(not any(row[1:]) for row in kept if not row[1])
    slots = (
        f"SELECT coalesce(started / {sums.QUARTER}, -1), coalesce(model, ''), coalesce(account, ''), {_ALL} FROM calls"
    )
    added = f"{slots} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    assert db.execute("SELECT * FROM slots ORDER BY 1, 2, 3").fetchall() == db.execute(added).fetchall()
    shares = f"SELECT session, account, {_ALL} FROM calls WHERE account IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2"
    kept = db.execute("SELECT * FROM session_accounts ORDER BY 1, 2").fetchall()
    assert kept == db.execute(shares).fetchall()
    models = "SELECT session, model, count(*) FROM calls WHERE model != '' GROUP BY 1, 2 ORDER BY 1, 2"
    assert db.execute("SELECT * FROM session_models ORDER BY 1, 2").fetchall() == db.execute(models).fetchall()


def test_sums_follow_every_change_of_a_call(db):
    """A price told later, another model, a call that is answered, one that goes: nothing is left over or missing."""
    assert_sums(db)
    chance = random.Random(3)
    keys = [key for (key,) in db.execute("SELECT key FROM calls")]
    values = {
        "model": ("", None, "a", "b"),
        "started": (None, END * 10**9, 5),
        "usd": (None, 0, 10**18, 7),
        "basis": (None, "list", "override", "subscription", "unpriced"),
        "output": (None, 0, 1 << 53),
        "failed": (None, 0, 1),
        "partial": (None, 0, 1),
        "ending": (None, "client_gone", "complete"),
        "response_file": (None, 1),
        "account": (None, "1a2b3c4d.1", "1a2b3c4d.2"),
    }
    for _ in range(500):
        column = chance.choice(list(values))
        db.execute(f"UPDATE calls SET {column} = ? WHERE key = ?", (chance.choice(values[column]), chance.choice(keys)))
    assert_sums(db)
    db.execute(f"DELETE FROM calls WHERE key IN ({', '.join(map(str, chance.sample(keys, 60)))})")
    assert_sums(db)
    db.execute("DELETE FROM calls")
    assert db.execute("SELECT count(*) FROM slots").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM session_models").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM session_accounts").fetchone() == (0,)
    assert_sums(db)


@pytest.mark.parametrize("version", [2, 3])
def test_an_index_made_before_there_were_sums_gets_them(tmp_path: Path, monkeypatch, version):
    """The files are read again, so that its calls are counted once, and told of every account."""
    make(tmp_path / "logs", calls=60, sessions=6, end=END)
    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", database.MIGRATIONS[:version])
        db = database.open_for_writing(tmp_path / "index.db")
    db.execute("INSERT INTO sessions (id) VALUES ('old')")
    db.execute("INSERT INTO calls (session, id, model) VALUES (1, 'old', 'm')")
    db.execute("INSERT INTO gists VALUES (1, '{}')")
    if version == 3:  # as that version had them
        db.execute("CREATE TABLE slots (slot, model, calls, PRIMARY KEY (slot, model))")
        db.execute("CREATE TRIGGER call_comes AFTER INSERT ON calls BEGIN INSERT INTO slots VALUES (1, 'm', 1); END")
    db.close()
    indexer = Indexer(tmp_path / "index.db", tmp_path / "logs")
    indexer.catch_up_all()
    indexer.close()
    db = database.open_for_writing(tmp_path / "index.db")
    assert db.execute("SELECT sum(calls) FROM sessions").fetchone() == (60,)
    assert db.execute("SELECT count(*) FROM gists JOIN calls ON calls.key = call").fetchone() == (60,)
    assert_sums(db)
    db.execute("UPDATE calls SET model = 'another' WHERE key % 3 = 0")
    assert_sums(db)
    db.close()


def test_an_upgrade_takes_all_calls_out_at_once(tmp_path: Path, monkeypatch):
    """No trigger runs for each of what may be a million calls, and afterwards all of them are there."""
    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", database.MIGRATIONS[:3])
        db = database.open_for_writing(tmp_path / "index.db")
    made = "INSERT INTO calls (session, id, model) VALUES (1, ?, 'm')"
    db.executemany(made, [(str(number),) for number in range(20)])
    assert db.execute("SELECT calls FROM session_models").fetchall() == [(20,)]
    ran: list[str] = []
    db.set_trace_callback(ran.append)
    database.migrate(db)
    db.set_trace_callback(None)
    assert len([one for one in ran if "DELETE FROM calls" in one]) == 1  # told again for each trigger that it runs
    assert db.execute("SELECT count(*) FROM session_models").fetchone() == (0,)
    new = database.open_for_writing(tmp_path / "new.db")
    triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY 1"
    assert db.execute(triggers).fetchall() == new.execute(triggers).fetchall() != []
    db.close()
    new.close()


@pytest.mark.parametrize("order", sums.ORDERS)
def test_each_order_is_read_from_its_index(db, order):
    """No sort of all sessions for a page of fifty."""
    query = f"SELECT key FROM sessions ORDER BY {sums.ORDERS[order]} DESC, id DESC LIMIT 50"
    plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert f"sessions_in_order_of_{order}" in plan
    assert "TEMP B-TREE" not in plan
