"""What log files go through, told of the shared index: the tests of a machine's own index, over PostgreSQL."""

from __future__ import annotations

import os
import random
from contextlib import closing, contextmanager

import pytest

from llm_proxy.index.postgres import Connection, open_shared
from llm_proxy.index.postgres_write import SharedIndexer
from llm_proxy.index.queries import Filter, IndexUnavailable
from llm_proxy.index.sums import SUMS
from tests import test_index
from tests.sharedbed import shared
from tests.test_index import (
    logs,
    test_a_call_is_open_until_its_response_stands,
    test_a_compressed_file_keeps_its_rows,
    test_odd_lines_are_counted_and_passed_over,
    test_rows_that_nobody_wants_any_more_are_no_error,
    test_the_last_price_wins,
    test_usage_in_the_log_goes_before_what_could_be_read_again,
)

__all__ = [
    "logs",
    "shared",
    "test_a_call_is_open_until_its_response_stands",
    "test_a_compressed_file_keeps_its_rows",
    "test_odd_lines_are_counted_and_passed_over",
    "test_rows_that_nobody_wants_any_more_are_no_error",
    "test_the_last_price_wins",
    "test_usage_in_the_log_goes_before_what_could_be_read_again",
]
MACHINE = "here"
# Columns by which parts of conversations are joined.
OF_PARTS = ("part", "part_seq", "agent_id", "parent_part", "parent_part_seq")
_own_rows, _own_open = test_index.rows, test_index.open_index


def columns_of(link, table):
    query = "SELECT attname::text FROM pg_attribute WHERE attrelid = ?::text::regclass AND attnum > 0 ORDER BY attnum"
    return [name for (name,) in link.execute(query, (table,)) if name not in OF_PARTS]


def rows(link):
    """As `test_index.rows` tells a machine's own index, but for words, which are searched in another way."""
    columns = columns_of(link, "calls")
    plain = [f"calls.{name}" for name in columns if name not in ("key", "session") and not name.endswith("_file")]
    file = f"substr(%s.path, {len(MACHINE) + 2})"
    queries = {
        "files": f"SELECT {file % 'files'}, inode, disk_size, cursor, tail, skipped FROM files",
        "sessions": f"SELECT {', '.join(columns_of(link, 'sessions'))} FROM sessions",
        "session_files": f"SELECT sessions.id, {file % 'files'} FROM session_files"
        " JOIN sessions ON sessions.key = session JOIN files ON files.id = file",
        "calls": f"SELECT sessions.id, {file % 'asked'}, {file % 'told'}, {', '.join(plain)} FROM calls"
        " JOIN sessions ON sessions.key = session LEFT JOIN files AS asked ON asked.id = request_file"
        " LEFT JOIN files AS told ON told.id = response_file",
        "gists": "SELECT sessions.id, calls.id, gist FROM gists JOIN calls ON calls.key = call"
        " JOIN sessions ON sessions.key = session",
        "slots": "SELECT * FROM slots",
        "accounts": "SELECT sessions.id, account, a.calls, a.output FROM session_accounts AS a"
        " JOIN sessions ON sessions.key = session",
        "models": "SELECT sessions.id, model, session_models.calls FROM session_models"
        " JOIN sessions ON sessions.key = session",
        "texts": "SELECT key, role, packed FROM texts",
        "messages": "SELECT sessions.id, texts.key, calls.id FROM messages"
        " JOIN sessions ON sessions.key = messages.session JOIN texts ON texts.id = messages.text"
        " JOIN calls ON calls.key = messages.call",
    }
    found = {name: [tuple(row) for row in link.execute(query)] for name, query in queries.items()}
    found["sessions"] = [row[1:] for row in found["sessions"]]
    return {name: sorted(table, key=repr) for name, table in found.items()}


@pytest.fixture
def indexer(shared, logs, monkeypatch):
    """The shared one, in the place of a machine's own, for tests that know nothing of it."""
    made = SharedIndexer(shared, MACHINE, logs)
    made.path = shared

    def told(path):
        found = _own_rows(path) if path != shared else asked(rows)
        found.pop("words", None)
        return {name: [_without_nul(row) for row in table] for name, table in found.items()}

    def asked(question):
        with closing(Connection(shared)) as link:
            return question(link)

    @contextmanager
    def opened(path):
        with open_shared(path) if path == shared else _own_open(path) as index:
            yield index

    monkeypatch.setattr(test_index, "rows", told)
    monkeypatch.setattr(test_index, "open_index", opened)
    # Names of files begin with the machine's: a test that reads one finds it so too.
    os.symlink(logs, logs / MACHINE)
    yield made
    made.close()


def _without_nul(row):
    return tuple(value.replace("\0", "") if isinstance(value, str) else value for value in row)


def test_a_file_that_goes_takes_its_rows_along(indexer, logs, tmp_path):
    """And those of its sessions' other files come again; sums and words go with them."""
    first, second = test_index.Log(logs, "20261110-101010-0000000a"), test_index.Log(logs, "20261110-101010-0000000b")
    indexer.take([first.start(), *first.call("gone soon", "a", "r1")])
    indexer.take([second.start(), *second.call("stays", "b", "r2")])
    assert test_index.found(indexer, "soon")
    first.path.unlink()
    indexer.fill()
    live = test_index.assert_as_rebuilt(indexer, tmp_path)
    assert len(live["calls"]) == 1 and not test_index.found(indexer, "soon") and test_index.found(indexer, "stays")
    second.path.write_bytes(second.path.read_bytes().replace(b"stays", b"other"))
    os.truncate(second.path, 0)
    indexer.fill()
    assert not test_index.assert_as_rebuilt(indexer, tmp_path)["calls"]


LIMITED = """
    CREATE FUNCTION limited() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '54000', MESSAGE = 'too large for an index'; END $$;
    CREATE TRIGGER limited BEFORE INSERT ON calls FOR EACH ROW WHEN (new.id = 'large') EXECUTE FUNCTION limited()
"""


def test_what_postgresql_refuses_holds_nothing_up(indexer, logs):
    """An id with a NUL in it is taken without; what is too large for an index is passed over, and counted."""
    indexer.fill()
    with closing(Connection(indexer.path)) as link:
        link.run(LIMITED)
    log = test_index.Log(logs)
    log.start()
    log.call("first", "yes", "r1")
    log.call("with a nul", "yes", "a\0b")
    log.call("refused", "yes", "large")
    log.call("last", "yes", "r2")
    other = test_index.Log(logs, "20261110-101010-0000000c")
    long = ["".join(map(chr, random.Random(seed).choices(range(0x4E00, 0x9FFF), k=1024))) for seed in range(2)]
    other.start(client={"project": long[0], "program": long[1]})
    other.call("its session is odd", "yes", "r3")
    indexer.fill()
    with open_shared(indexer.path) as index:
        assert {call.id for call in index.calls(Filter())} == {"r1", "ab", "r2", "r3"}
        assert not index.search("refused", Filter()) and index.search("odd", Filter())
    with closing(Connection(indexer.path)) as link:
        assert [found for (found,) in link.execute("SELECT skipped FROM files ORDER BY path")] == [1, 1]
    log.call("after", "yes", "r4")
    indexer.fill()
    with open_shared(indexer.path) as index:
        assert index.search("after", Filter())


def test_machines_write_beside_each_other(shared, tmp_path):
    """Rows, sums and texts of four that fill the index at once are those of all their files."""
    import threading

    from scripts.make_logs import make

    indexers, errors = [], []
    for number in range(4):
        folder = tmp_path / f"m{number}"
        make(folder, calls=30, sessions=5, seed=number, end=test_index.END)
        for file in list(folder.rglob("*.jsonl")):  # ids are given out by number: they are the machine's own
            file.write_bytes(file.read_bytes().replace(file.stem.encode(), f"{file.stem[:-2]}{number}f".encode()))
            file.rename(file.with_name(f"{file.stem[:-2]}{number}f{file.stem[-1]}.jsonl"))
        indexers.append(SharedIndexer(shared, f"m{number}", folder))

    def fill(indexer):
        try:
            indexer.fill()
        except BaseException as error:
            errors.append(error)
        finally:
            indexer.close()

    threads = [threading.Thread(target=fill, args=(one,)) for one in indexers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    with closing(Connection(shared)) as link:
        assert {name for (name,) in link.execute("SELECT DISTINCT machine FROM files")} == {f"m{n}" for n in range(4)}
        ((calls,),) = link.execute("SELECT count(*) FROM calls")
        assert calls == 120
        kept = ", ".join(f"sum({name})" for name in SUMS)
        added = ", ".join(f"sum({of.format('calls')})" for of in SUMS.values())
        ((*sessions,),) = link.execute(f"SELECT {kept} FROM sessions")
        ((*slots,),) = link.execute(f"SELECT {kept} FROM slots")
        ((*there,),) = link.execute(f"SELECT {added} FROM calls")
        assert sessions == slots == there
        assert link.execute("SELECT key FROM texts GROUP BY key HAVING count(*) > 1") == []


def test_each_version_has_tables_of_its_own(shared, logs):
    """A machine of another version neither reads nor changes ours: an upgrade goes machine by machine."""
    log = test_index.Log(logs)
    with closing(SharedIndexer(shared, MACHINE, logs)) as indexer:
        indexer.take([log.start(), *log.call("one", "uno", "r1")])
    with closing(Connection(shared)) as link:
        from llm_proxy.index.postgres_sql import SCHEMA

        link.run(f"ALTER SCHEMA {SCHEMA} RENAME TO llm_proxy_index_999")
    with pytest.raises(IndexUnavailable), open_shared(shared) as index:
        index.last()
    with closing(SharedIndexer(shared, MACHINE, logs)) as indexer:
        indexer.fill()
    with open_shared(shared) as index:
        assert index.last().calls == 1
