"""The index: what live ingest and a rebuild make of the same logs, what it stands, and what can be asked of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest

from llm_proxy.index import database, text
from llm_proxy.index.ingest import Indexer, RebuildRuns
from llm_proxy.index.lines import Line
from llm_proxy.index.queries import Filter, IndexUnavailable, open_index
from llm_proxy.records import understood
from llm_proxy.sinks import log_reader, session_jsonl
from scripts.make_logs import make

END = 1_795_000_000  # seconds since 1970


@pytest.fixture
def logs(tmp_path):
    root = tmp_path / "logs"
    root.mkdir(mode=0o700)
    return root


@pytest.fixture
def indexer(tmp_path, logs):
    made = Indexer(tmp_path / "index.db", logs)
    yield made
    made.close()


# --- helpers


def rows(path: Path) -> dict[str, list[tuple]]:
    """All that the tables hold, by names instead of numbers that depend on the order of writing."""
    db = database.open_for_reading(path)
    try:
        db.execute("PRAGMA query_only = OFF")
        db.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, words, instance)")
        columns = [row[1] for row in db.execute("PRAGMA table_info(calls)") if row[1] not in ("key", "session")]
        plain = [f"calls.{name}" for name in columns if not name.endswith("_file")]
        queries = {
            "files": "SELECT path, inode, disk_size, cursor, tail, skipped FROM files",
            "sessions": "SELECT * FROM sessions",
            "session_files": "SELECT sessions.id, path FROM session_files JOIN sessions ON sessions.key = session"
            " JOIN files ON files.id = file",
            "calls": f"SELECT sessions.id, asked.path, told.path, {', '.join(plain)} FROM calls"
            " JOIN sessions ON sessions.key = session LEFT JOIN files AS asked ON asked.id = request_file"
            " LEFT JOIN files AS told ON told.id = response_file",
            "gists": "SELECT sessions.id, calls.id, gist FROM gists JOIN calls ON calls.key = call"
            " JOIN sessions ON sessions.key = session",
            "slots": "SELECT * FROM slots",
            "accounts": "SELECT sessions.id, account, a.calls, a.output FROM session_accounts AS a JOIN sessions ON sessions.key = session",
            "models": "SELECT sessions.id, model, session_models.calls FROM session_models"
            " JOIN sessions ON sessions.key = session",
            "texts": "SELECT key, role, unpacked(packed) FROM texts",
            "messages": "SELECT sessions.id, texts.key, calls.id FROM messages"
            " JOIN sessions ON sessions.key = messages.session JOIN texts ON texts.id = messages.text"
            " JOIN calls ON calls.key = messages.call",
            "words": "SELECT term, texts.key, offset FROM terms JOIN texts ON texts.id = doc",
        }
        found = {name: db.execute(query).fetchall() for name, query in queries.items()}
        found["sessions"] = [row[1:] for row in found["sessions"]]
        return {name: sorted(table, key=repr) for name, table in found.items()}
    finally:
        db.close()


def assert_as_rebuilt(indexer: Indexer, tmp_path: Path) -> dict[str, list[tuple]]:
    """The rows of `indexer` are those that a new index makes of the same files."""
    new = Indexer(tmp_path / "other" / "index.db", indexer.root)
    new.rebuild(workers=0)
    new.close()
    live, rebuilt = rows(indexer.path), rows(tmp_path / "other" / "index.db")
    shutil.rmtree(tmp_path / "other")
    for table in rebuilt:
        assert live[table] == rebuilt[table], table
    return live


class Log:
    """A session file that is written as the keeper does."""

    def __init__(self, root: Path, name: str = "20261110-101010-0000000a", provider: str = "anthropic") -> None:
        self.name = name
        self.root = root
        self.file = f"api.test/2026-11-10/{name}.jsonl"
        self.path = root / self.file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.provider = provider
        self.seq = 0
        self.clock = END * 10**9

    def add(self, entry: dict, request_id: str = "") -> Line:
        self.clock += 10**9
        meta = {"session": self.name, "host": "api.test", "ts": session_jsonl.utc(self.clock)}
        if request_id:
            meta["request_id"] = request_id
        return self.raw(session_jsonl.line({"_meta": meta} | entry), {"_meta": meta} | entry)

    def raw(self, data: bytes, entry: dict | None = None) -> Line:
        offset = self.path.stat().st_size if self.path.exists() else 0
        with self.path.open("ab") as file:
            file.write(data)
        return Line(self.file, offset, len(data), entry or {})

    def start(self, **facts) -> Line:
        return self.add({"type": "session_start", "provider": self.provider, "upstream": "api.test"} | facts)

    def request(self, messages: list[tuple[str, str]], call: str, model: str = "claude-x") -> Line:
        self.seq += 1
        content = [{"role": role, "content": words} for role, words in messages]
        body = json.dumps({"model": model, "max_tokens": 10, "messages": content})
        entry = {"type": "request", "seq": self.seq, "method": "POST", "path": "/v1/messages", "headers": {}}
        return self.add(entry | {"body": body, "size": len(body)}, call)

    def response(self, words: str, call: str, *, status: int | None = 200, output: int = 7, **facts) -> Line:
        message = {
            "id": f"msg_{call}",
            "type": "message",
            "role": "assistant",
            "model": "claude-x-1",
            "stop_reason": "end_turn",
            "content": [{"type": "text", "text": words}],
            "usage": {"input_tokens": 5, "output_tokens": output},
        }
        entry = {
            "type": "response",
            "seq": self.seq,
            "status": status,
            "headers": {"Content-Type": ["application/json"]},
        }
        entry |= {"timing": {"ttfb_ms": 10, "total_ms": 20}, "ending": "complete", "body": json.dumps(message)}
        return self.add(entry | facts, call)

    def call(self, said: str, answered: str, call: str, **facts) -> list[Line]:
        return [self.request([("user", said)], call), self.response(answered, call, **facts)]


def found(indexer: Indexer, words: str, **conditions) -> list[tuple[str, str]]:
    with open_index(indexer.path) as index:
        return [(hit.session, hit.call) for hit in index.search(words, Filter(**conditions))]


# --- live and rebuilt


def _lines(root: Path) -> list[Line]:
    """All lines of the logs, files mixed as many clients at a time would."""
    chance = random.Random(5)
    queues = [
        [Line(file, *place, entry) for *place, entry in log_reader.entries(root / file)]
        for file in log_reader.files(root)
    ]
    mixed = []
    while queues:
        queue = chance.choice(queues)
        mixed.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return mixed


def _with_digests(lines: list[Line]) -> list[Line]:
    """As the keeper hands them over: responses with what they mean."""
    requests = {line.entry["_meta"].get("request_id"): line.entry for line in lines if line.entry["type"] == "request"}
    return [
        line._replace(digest=understood.understand(requests[line.entry["_meta"]["request_id"]], line.entry))
        if line.entry["type"] == "response"
        else line
        for line in lines
    ]


@pytest.mark.parametrize("digests", [True, False])
def test_a_rebuild_equals_live_ingest(indexer, logs, tmp_path, digests):
    """Lines taken as they come, in batches of any size, make the rows that the files make when read again."""
    made = make(logs, calls=150, sessions=12, end=END, digests=digests)
    lines = _with_digests(_lines(logs))
    chance = random.Random(1)
    while lines:
        size = chance.randint(1, 40)
        indexer.take(lines[:size])
        del lines[:size]
    live = assert_as_rebuilt(indexer, tmp_path)
    assert len(live["calls"]) == made["calls"] and len(live["sessions"]) == made["sessions"]
    with open_index(indexer.path) as index:
        assert not any(call.open for call in index.calls(Filter()))


def test_a_rebuild_equals_live_ingest_that_was_killed_again_and_again(logs, tmp_path):
    """SIGKILL at any moment: cursors and rows are committed together, so nothing counts twice or not at all."""
    make(logs, calls=150, sessions=12, end=END)
    chance = random.Random(2)
    code = (
        "import sys; from pathlib import Path; from tests.test_index import _lines; "
        "from llm_proxy.index.ingest import Indexer; "
        "root = Path(sys.argv[1]); lines = _lines(root); indexer = Indexer(Path(sys.argv[2]), root); "
        "print('ready', flush=True); "
        "[indexer.take(lines[start : start + 7]) for start in range(int(sys.argv[3]), len(lines), 7)]"
    )
    path = tmp_path / "index.db"
    killed = 0
    for _ in range(12):
        start = str(chance.randrange(0, 250))  # a keeper goes on somewhere: the index finds out where it stands
        process = subprocess.Popen([sys.executable, "-c", code, str(logs), str(path), start], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(chance.random() * 0.1)  # the moment of the kill is the point
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    indexer = Indexer(path, logs)
    assert indexer.catch_up_all()
    assert_as_rebuilt(indexer, tmp_path)
    indexer.close()


def test_reading_files_in_slices_equals_a_rebuild(indexer, logs, tmp_path, monkeypatch):
    """A request and its response may be read in two transactions."""
    monkeypatch.setattr("llm_proxy.index.ingest.SLICE", 20_000)
    make(logs, calls=60, sessions=3, end=END)
    assert indexer.catch_up_all() and indexer.complete
    assert_as_rebuilt(indexer, tmp_path)


def test_what_stands_in_a_second_file_too_is_read_behind_the_first(indexer, logs, tmp_path, monkeypatch):
    """A file that takes several transactions is finished before the next, which may tell of the same calls."""
    monkeypatch.setattr("llm_proxy.index.ingest.SLICE", 20_000)
    make(logs, calls=20, sessions=1, end=END)
    (file,) = logs.glob("*/*/*.jsonl")
    file.with_name("later.jsonl").write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[-4:]))
    assert indexer.catch_up_all()
    assert_as_rebuilt(indexer, tmp_path)


def test_a_request_that_is_told_twice(indexer, logs, tmp_path):
    """What only the first tells is not lost, whether both are read at once or one after the other."""
    log = Log(logs)
    begun, first = log.start(), log.request([("user", "one")], "r1")
    log.raw(session_jsonl.line(first.entry | {"_meta": first.entry["_meta"] | {"ts": "?"}}))
    indexer.take([begun, first])
    assert indexer.catch_up_all()
    live = assert_as_rebuilt(indexer, tmp_path)
    assert [row[3] for row in live["calls"]] == [log.clock]


def test_the_upstream_is_that_of_the_request(indexer, logs, tmp_path):
    """Of a file without a beginning, whose response names none: read with it or after it."""
    log = Log(logs)
    asked, answered = log.request([("user", "one")], "r1"), log.response("uno", "r1", _meta={"request_id": "r1"})
    indexer.take([asked])
    indexer.take([answered])
    assert [row[2] for row in assert_as_rebuilt(indexer, tmp_path)["sessions"]] == ["api.test"]


def test_much_that_is_new_is_a_rebuild(indexer, logs, tmp_path, monkeypatch):
    """Unless who asks wants to be asked: a keeper has calls to settle in between."""
    monkeypatch.setattr("llm_proxy.index.ingest.MUCH", 100_000)
    make(logs, calls=60, sessions=6, end=END)
    asked = []
    assert not indexer.catch_up_all(lambda: bool(asked.append(True)))
    assert asked and not indexer.complete
    rebuilt = []
    monkeypatch.setattr(indexer, "rebuild", lambda: rebuilt.append(Indexer.rebuild(indexer, workers=0)))
    assert indexer.catch_up_all() and rebuilt == [60]
    assert indexer.complete and indexer.catch_up_all() and rebuilt == [60]
    assert_as_rebuilt(indexer, tmp_path)


def test_workers_make_the_same_rows(indexer, logs, tmp_path, monkeypatch):
    """Parsing in processes of their own changes nothing."""
    monkeypatch.setattr("llm_proxy.index.ingest._groups.__defaults__", (100_000,))
    make(logs, calls=200, sessions=20, end=END)
    seen = []
    assert indexer.rebuild(seen.append, workers=2) == 200
    assert seen[-1].bytes == seen[-1].total_bytes > 0 and seen[-1].calls == 200
    assert_as_rebuilt(indexer, tmp_path)


def test_a_rebuild_goes_on_beside_a_keeper(indexer, logs, tmp_path):
    """Whoever has the index open goes on, reading and writing, and sees the new rows."""
    make(logs, calls=40, sessions=4, end=END)
    keeper = Indexer(indexer.path, logs)
    keeper.catch_up_all()
    log = Log(logs)
    keeper.take([log.start()])
    with open_index(indexer.path) as index:
        assert len(index.sessions(Filter())) == 5
        lines = log.call("before", "b", "r1")
        indexer.rebuild(lambda progress: keeper.take(lines), workers=0)
        assert index.stats(Filter())[0].calls == 41
        keeper.take(log.call("after", "a", "r2"))
        assert index.stats(Filter())[0].calls == 42
    assert_as_rebuilt(keeper, tmp_path)
    keeper.close()


def test_one_rebuild_at_a_time(indexer, logs):
    """The second is told, and does nothing."""
    Log(logs).start()
    refused = []

    def again(progress):
        with pytest.raises(RebuildRuns):
            Indexer(indexer.path, logs).rebuild(workers=0)
        refused.append(True)

    indexer.rebuild(again, workers=0)
    assert refused


# --- what files go through


def test_a_call_is_open_until_its_response_stands(indexer, logs, tmp_path):
    """An open call has a row, with what was asked; its response completes it."""
    log = Log(logs)
    indexer.take([log.start(), log.request([("user", "hello")], "r1", model="claude-asked")])
    with open_index(indexer.path) as index:
        (call,) = index.calls(Filter())
        assert call.open and call.model == "claude-asked" and call.status is None and call.total_ms is None
        assert index.sessions(Filter())[0].open == 1
    assert_as_rebuilt(indexer, tmp_path)
    indexer.take([log.response("hi", "r1")])
    with open_index(indexer.path) as index:
        (call,) = index.calls(Filter())
        assert (
            not call.open and call.model == "claude-x-1" and call.usage.output == 7 and call.api == "anthropic.messages"
        )
        assert log_reader.entry_at(logs / call.response.file, *call.response[1:])["type"] == "response"
        assert log_reader.entry_at(logs / call.request.file, *call.request[1:])["seq"] == call.seq == 1
    assert_as_rebuilt(indexer, tmp_path)


def test_text_is_kept_once_however_often_it_is_sent(indexer, logs, tmp_path):
    """A history that is sent again each turn, and in a fork, has each message once; both sessions are found by it."""
    log, fork = Log(logs), Log(logs, "20261110-101010-0000000b")
    said = [("user", "first zebra"), ("assistant", "second"), ("user", "third"), ("assistant", "fourth")]
    lines = [log.start()]
    for turn in (1, 3):
        lines += [log.request(said[:turn], f"r{turn}"), log.response(said[turn][1], f"r{turn}")]
    lines += [
        fork.start(parent_session=log.name, parent_seq=1),
        fork.request(said[:3], "f1"),
        fork.response("else", "f1"),
    ]
    indexer.take(lines)
    live = assert_as_rebuilt(indexer, tmp_path)
    assert sorted(row[2] for row in live["texts"]) == ["else", "first zebra", "fourth", "second", "third"]
    assert len(live["messages"]) == 8
    assert found(indexer, "zebra") == [(log.name, "r1")]
    assert found(indexer, "zebra", session=fork.name) == [(fork.name, "f1")]


@pytest.mark.parametrize("how", ["cut", "deleted", "replaced", "moved"])
@pytest.mark.parametrize("live", [True, False])
def test_what_becomes_of_a_file_becomes_of_its_rows(indexer, logs, tmp_path, how, live):
    """Whatever a user does to a file, the rows are those of the files that are there."""
    log, other = Log(logs), Log(logs, "20261110-101010-0000000b")
    indexer.take([log.start(), *log.call("one", "uno", "r1"), *log.call("two", "dos", "r2")])
    indexer.take([other.start(), *other.call("one", "eins", "o1")])
    data = log.path.read_bytes()
    first = b"".join(data.splitlines(keepends=True)[:3])
    match how:
        case "cut":
            os.truncate(log.path, len(first))
        case "deleted":
            log.path.unlink()
        case "replaced":
            log.path.rename(tmp_path / "old")
            log.path.write_bytes(first)
        case "moved":
            log.path.rename(logs / "api.test" / log.path.name)
    if live:
        indexer.take([log.start(), *log.call("three", "tres", "r3")])
    if not live or how == "moved":
        assert indexer.catch_up_all()
    assert_as_rebuilt(indexer, tmp_path)
    assert bool(found(indexer, "dos")) == (how == "moved")
    assert found(indexer, "eins") == [(other.name, "o1")]
    assert bool(found(indexer, "tres")) == live


def test_a_session_in_two_files_survives_the_loss_of_one(indexer, logs, tmp_path):
    """Rows of a session go with any of its files and come back from those that are left."""
    log = Log(logs)
    indexer.take([log.start(), *log.call("one", "uno", "r1")])
    older = log.path.parent.parent / "2026-11-09" / log.path.name
    older.parent.mkdir()
    shutil.copy(log.path, older)
    log.path.unlink()
    indexer.take([log.start(), *log.call("two", "dos", "r2")])
    indexer.catch_up_all()
    live = assert_as_rebuilt(indexer, tmp_path)
    assert [row[0] for row in live["sessions"]] == [log.name] and len(live["calls"]) == 2
    older.unlink()
    indexer.catch_up_all()
    live = assert_as_rebuilt(indexer, tmp_path)
    assert len(live["calls"]) == 1 and not found(indexer, "uno")


def test_a_compressed_file_keeps_its_rows(indexer, logs, tmp_path):
    """The lines stand at the same places: only the name is another."""
    log = Log(logs)
    indexer.take([log.start(), *log.call("one", "uno", "r1")])
    before = rows(indexer.path)
    packed = log.path.with_name(log.path.name + ".zst")
    packed.write_bytes(log_reader.zstandard().compress(log.path.read_bytes()))
    log.path.unlink()
    assert indexer.catch_up_all()
    after = assert_as_rebuilt(indexer, tmp_path)
    assert before["texts"] == after["texts"] and before["messages"] == after["messages"]
    with open_index(indexer.path) as index:
        (call,) = index.calls(Filter())
        assert call.response.file.endswith(".zst")
        assert log_reader.entry_at(logs / call.response.file, *call.response[1:])["status"] == 200
    indexer.take([log.start(), *log.call("two", "dos", "r2")])  # the session goes on
    indexer.catch_up_all()
    assert_as_rebuilt(indexer, tmp_path)
    assert found(indexer, "uno") and found(indexer, "dos")


def test_odd_lines_are_counted_and_passed_over(indexer, logs, tmp_path):
    """Blank, torn, foreign and absurd lines hold nothing up; a half line at the end waits for its other half."""
    log = Log(logs)
    log.start()
    log.raw(
        b"\n\nno json\n[1]\n\xff\xfe\n" + b'{"type":"request"}\n{"type":"response","status":"x","seq":-1,"_meta":[]}\n'
    )
    huge = {"input": 10**30, "output": -4, "server_tools": {"a b:c": 3, "x": True}}
    log.call(
        "fine", "yes", "r1", digest={"api": "anthropic.messages", "usage": huge}, price={"usd": 1e300, "basis": "list"}
    )
    log.call("fine", "yes", "r2", price={"usd": "NaN", "basis": 7}, timing={"total_ms": 10**40})
    log.raw(
        b'{"_meta":{"session":"\\ud800","ts":"2026-13-45T00:00:00Z"},"type":"session_start","provider":"\\u0000"}\n'
    )
    log.raw(b'{"type":"price","_meta":{"request_id":"r2"},"price":[]}\n')
    for usd in (
        '"1e999999"',
        '"-1e999999"',
        "1e999999",
        '"sNaN"',
        "NaN",
        "-Infinity",
        '"0x10"',
        "null",
        "[]",
        "9" * 400,
    ):
        log.raw(b'{"type":"price","_meta":{"request_id":"r2"},"price":{"basis":"list","usd":%b}}\n' % usd.encode())
    whole = session_jsonl.line({"type": "fork", "_meta": {"session": log.name}, "parent_session": "p", "from_seq": 3})
    log.raw(whole[:20])
    assert indexer.catch_up_all()
    live = assert_as_rebuilt(indexer, tmp_path)
    ((_, _, _, _, _, skipped),) = live["files"]
    assert skipped == 3
    with open_index(indexer.path) as index:
        assert not index.sessions(Filter(session=log.name))[0].forked
        index.stats(Filter(), "day")
        list(index.calls(Filter()))
    log.raw(whole[20:])
    indexer.catch_up_all()
    with open_index(indexer.path) as index:
        session = index.sessions(Filter(session=log.name))[0]
        assert (session.parent, session.parent_seq, session.forked) == ("p", 3, True)
    assert_as_rebuilt(indexer, tmp_path)


def test_gaps_are_no_session(indexer, logs, tmp_path):
    """The file of gaps, directly in the log folder, is handed on as any other and not kept."""
    gap = {"type": "gap", "exchanges": 1, "_meta": {"ts": "2026-11-10T10:00:00Z", "request_id": "g"}}
    data = session_jsonl.line(gap)
    (logs / "recording-gaps.jsonl").write_bytes(data)
    indexer.take([Line("recording-gaps.jsonl", 0, len(data), gap), Log(logs).start()])
    assert len(assert_as_rebuilt(indexer, tmp_path)["files"]) == 1


def test_a_word_that_stands_everywhere_in_a_text(indexer, logs):
    """Is found as soon as any; shown is where the words stand together, at ends of words."""
    log = Log(logs)
    said = "word " * 40_000 + "then two words: word and needle " + "word " * 9_000
    indexer.take([log.start(), *log.call(said, "b", "r1")])
    begin = time.process_time()
    with open_index(indexer.path) as index:
        (hit,) = index.search("needle word", Filter())
    assert time.process_time() - begin < 3
    text = "".join(piece for piece, _ in hit.pieces)
    assert text.startswith("…word ") and text.endswith(" word…") and "then two words: word and needle" in text
    assert {piece for piece, found in hit.pieces if found} == {"word", "needle"} and len(text) < 220


def test_rows_that_nobody_wants_any_more_are_no_error(indexer, logs):
    """Whoever broke off in the midst of them, and has closed the index."""
    indexer.take([(log := Log(logs)).start(), *log.call("a", "b", "r1"), *log.call("c", "d", "r2")])
    with open_index(indexer.path) as index:
        calls = index.calls(Filter())
        next(calls)
    calls.close()


def test_the_last_price_wins(indexer, logs, tmp_path):
    """`reprice` appends; what it says holds, also that a price is not known."""
    log = Log(logs)
    indexer.take([log.start(), *log.call("a", "b", "r1", price={"usd": 0.1, "basis": "list"})])
    log.call("a", "c", "r2", price={"usd": 1.5, "basis": "subscription"})
    indexer.catch_up_all()
    with open_index(indexer.path) as index:
        (total,) = index.stats(Filter())
        assert (total.cost.usd, total.cost.equivalent, total.cost.unpriced) == (Decimal("0.1"), Decimal("1.5"), 0)
    indexer.take([log.add({"type": "price", "seq": 1, "price": {"usd": 0.000000000007, "basis": "override"}}, "r1")])
    indexer.take([log.add({"type": "price", "seq": 2, "price": {"usd": None, "basis": "unpriced"}}, "r2")])
    with open_index(indexer.path) as index:
        (total,) = index.stats(Filter())
        assert (total.cost.usd, total.cost.equivalent, total.cost.unpriced) == (Decimal("7e-12"), 0, 1)
        assert [call.usd for call in index.calls_of(log.name)] == [Decimal("7e-12"), None]
    assert_as_rebuilt(indexer, tmp_path)


def test_usage_in_the_log_goes_before_what_could_be_read_again(indexer, logs, tmp_path):
    """A poll's answer repeats a usage that has been counted: the log says so by leaving it out."""
    log = Log(logs)
    digest = {"api": "anthropic.messages", "model": "m"}
    indexer.take([log.start(), *log.call("a", "b", "r1", digest=digest)])
    with open_index(indexer.path) as index:
        assert next(index.calls(Filter())).usage is None
    assert found(indexer, "b")
    assert_as_rebuilt(indexer, tmp_path)


# --- the file itself


@pytest.mark.parametrize("damage", ["noise", "middle", "newer"])
def test_an_index_of_no_use_is_moved_aside_and_made_again(logs, tmp_path, damage):
    """A damaged index, or one of a newer version, costs nothing but the time to read the logs again."""
    make(logs, calls=60, sessions=6, end=END)
    path = tmp_path / "index.db"
    indexer = Indexer(path, logs)
    indexer.catch_up_all()
    indexer.close()
    if damage == "newer":
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
    else:
        data = bytearray(path.read_bytes())
        start = 0 if damage == "noise" else 3 * 4096
        data[start:-4096] = os.urandom(len(data) - start - 4096)
        path.write_bytes(data)
    indexer = Indexer(path, logs)
    log = Log(logs)
    indexer.take([log.start(), *log.call("one", "uno", "r1")])
    assert not indexer.complete
    assert indexer.catch_up_all() and indexer.complete
    assert_as_rebuilt(indexer, tmp_path)
    assert path.with_name("index.db.aside").exists()
    assert path.stat().st_mode & 0o777 == 0o600
    indexer.close()


def test_the_index_follows_the_log_folder(indexer, logs, tmp_path):
    """Another folder's index becomes this one's."""
    Log(logs).start()
    indexer.catch_up_all()
    other = tmp_path / "other-logs"
    Log(other, "20261110-101010-0000000c").start()
    second = Indexer(indexer.path, other)
    second.catch_up_all()
    assert_as_rebuilt(second, tmp_path)
    second.close()


def test_no_index_is_said_so(tmp_path):
    """An error that names the file, whatever is wrong with it."""
    with pytest.raises(IndexUnavailable, match=r"index\.db"), open_index(tmp_path / "index.db"):
        pass
    assert not (tmp_path / "index.db").exists()
    (tmp_path / "index.db").write_bytes(b"no database at all, " * 1000)
    with pytest.raises(IndexUnavailable, match=r"index\.db"), open_index(tmp_path / "index.db"):
        pass


# --- questions


@pytest.fixture
def asked(indexer, logs):
    """Three sessions: (a) two calls of one project, (b) a failed one of another, (c) one of another provider."""
    a = Log(logs, "20261110-101010-0000000a")
    client = {"program": "claude", "cwd": "/src/alpha/x", "project": "alpha", "root": "/src/alpha", "branch": "main"}
    lines = [a.start(client_session="c0ffee-1", client=client)]
    lines += a.call("The Quick brown fox", "jumps over", "aa11", price={"usd": 0.25, "basis": "list"})
    lines += a.call("lazy dog", "sleeps quickly", "aa22", output=100, price={"usd": 0.5, "basis": "list"})
    b = Log(logs, "20261111-101010-0000000b")
    b.clock += 86_400 * 10**9
    lines += [b.start(agent="explorer", parent_session=a.name, client={"project": "beta"})]
    failed = {"body": '{"type":"error","error":{"type":"overloaded_error","message":"Too much"}}'}
    lines += b.call("quick question", "", "bb11", status=529, **failed)
    c = Log(logs, "20261112-101010-0000000c", provider="openai")
    c.clock += 2 * 86_400 * 10**9
    lines += [c.start(), c.request([("user", "naïve 中文句子 question")], "cc11")]
    lines += [c.response("", "cc11", status=None, ending="client_gone", body="", timing={"ttfb_ms": 0, "total_ms": 90})]
    indexer.take(lines)
    with open_index(indexer.path) as index:
        yield index


def test_sessions(asked):
    """Newest first, with the sums of their calls, where they come from and what they are about."""
    c, b, a = asked.sessions(Filter())
    assert (a.calls, a.errors, a.usage.output, a.cost.usd) == (2, 0, 107, Decimal("0.75"))
    assert (a.program, a.project, a.branch, a.title) == ("claude", "alpha", "main", "The Quick brown fox")
    assert a.models == ("claude-x-1",) and a.client_session == "c0ffee-1" and len(a.files) == 1
    assert (b.parent, b.agent, b.errors, b.project) == (a.id, "explorer", 1, "beta")
    assert (c.provider, c.errors, c.title) == ("openai", 0, "naïve 中文句子 question")
    assert asked.last().id == c.id
    assert [row.id for row in asked.sessions(Filter(), 1)] == [c.id]


FILTERS = [
    (Filter(), "aa11 aa22 bb11 cc11"),
    (Filter(provider="openai"), "cc11"),
    (Filter(project="ALPH"), "aa11 aa22"),
    (Filter(model="X-1"), "aa11 aa22"),
    (Filter(session="20261110"), "aa11 aa22"),
    (Filter(session="c0ffee"), "aa11 aa22"),
    (Filter(status="529"), "bb11"),
    (Filter(status="2xx"), "aa11 aa22"),
    (Filter(status="none"), "cc11"),
    (Filter(errors=True), "bb11"),
    (Filter(since_ns=(END + 86_400) * 10**9), "bb11 cc11"),
    (Filter(until_ns=(END + 86_400) * 10**9), "aa11 aa22"),
    (Filter(project="alpha", errors=True), ""),
    (Filter(project="%"), ""),
]


@pytest.mark.parametrize(("filter", "calls"), FILTERS, ids=lambda value: str(value)[:60])
def test_filters(asked, filter, calls):
    """The same filter chooses the same calls, sessions and sums."""
    chosen = list(asked.calls(filter))
    assert [call.id for call in chosen] == calls.split()
    assert {row.id for row in asked.sessions(filter)} == {call.session for call in chosen}
    assert sum(row.calls for row in asked.stats(filter)) == len(chosen)
    assert [call.id for call in asked.calls(filter, newest_first=True, limit=1)] == calls.split()[-1:]
    assert {hit.session for hit in asked.search("quick", filter)} <= {call.session for call in chosen}


def test_calls(asked):
    """A row tells what happened without the log: what came back, how it ended, what went wrong."""
    fox, dog, overloaded, gone = asked.calls(Filter())
    assert (fox.status, fox.total_ms, fox.ttfb_ms, fox.usd, fox.basis) == (200, 20, 10, Decimal("0.25"), "list")
    assert (fox.method, fox.path, fox.stop_reason, fox.response_id) == ("POST", "/v1/messages", "end_turn", "msg_aa11")
    assert dog.usage.output == 100 and dog.seq == 2
    assert overloaded.failed and (overloaded.error, overloaded.error_type) == ("Too much", "overloaded_error")
    assert not gone.failed and (gone.status, gone.ending, gone.ttfb_ms) == (None, "client_gone", None)
    assert asked.calls_of(fox.session) == [fox, dog]


def test_stats(asked):
    """Sums and percentiles by any of the keys."""
    (total,) = asked.stats(Filter())
    assert (total.calls, total.errors, total.open) == (4, 1, 0)
    assert (total.p50_ms, total.p95_ms, total.p99_ms, total.ttfb_p50_ms) == (20, 90, 90, 10)
    assert (total.usage.output, total.usage.input, total.cost.usd) == (107, 10, Decimal("0.75"))
    assert [(row.key, row.calls) for row in asked.stats(Filter(), "project")] == [("alpha", 2), ("", 1), ("beta", 1)]
    assert {row.key: row.calls for row in asked.stats(Filter(), "provider")} == {"anthropic": 3, "openai": 1}
    assert asked.stats(Filter(), "session")[0].key == "20261110-101010-0000000a"
    assert {row.key for row in asked.stats(Filter(), "model")} == {"claude-x-1", "claude-x"}
    days = asked.stats(Filter(), "day", utc=True)
    assert [(row.key, row.calls) for row in days] == [("2026-11-18", 2), ("2026-11-19", 1), ("2026-11-20", 1)]
    assert asked.stats(Filter(provider="nobody")) == []


def test_days_are_those_of_the_time_zone(asked, monkeypatch):
    """Half-hour zones too."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")  # +05:45
    time.tzset()
    try:
        (midnight,) = [row for row in asked.stats(Filter(), "day") if row.key == "2026-11-18"]
        first = time.localtime(midnight.first_ns // 10**9)
        assert (first.tm_mon, first.tm_mday) == (11, 18)
    finally:
        monkeypatch.undo()
        time.tzset()


WORDS = [
    ("quick", {"aa11", "bb11"}),
    ("quick*", {"aa11", "aa22", "bb11"}),
    ("QUICK -question", {"aa11"}),
    ('"quick brown"', {"aa11"}),
    ('"brown quick"', set()),
    ("naive", {"cc11"}),
    ("文句", {"cc11"}),
    ("句文", set()),
    ('"', set()),
    ("-fox", set()),
    ("NEAR(fox OR AND NOT", set()),
    ("fox:", {"aa11"}),
    ("text:fox", set()),
    ("a\x00b\udcff", set()),
]


@pytest.mark.parametrize(("words", "calls"), WORDS)
def test_search(asked, words, calls):
    """All words, phrases, beginnings; without what has a minus; whatever is typed, no error."""
    assert {hit.call for hit in asked.search(words, Filter())} == calls


def test_hits_show_the_words(asked):
    """Marked where they stand, whatever signs the text has, and without control characters."""
    (hit,) = asked.search("brown fox", Filter())
    assert hit.pieces == (("The Quick ", False), ("brown", True), (" ", False), ("fox", True)) and hit.role == "user"
    (hit,) = asked.search("中文", Filter())
    assert "".join(piece for piece, _ in hit.pieces) == "naïve 中文句子 question"
    assert "".join(piece for piece, marked in hit.pieces if marked) == "中文"


def test_search_is_ranked_and_bounded(indexer, logs):
    """Where the words are most of the text comes first; no more than asked for."""
    log = Log(logs)
    lines = [log.start()]
    for number in range(30):
        lines += log.call("needle " + "hay " * number, f"answer {number}", f"r{number}")
    indexer.take(lines)
    with open_index(indexer.path) as index:
        hits = index.search("needle", Filter(), limit=5)
    assert [hit.call for hit in hits] == [f"r{number}" for number in range(5)]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_find(asked):
    """By the beginning of any id that a person may have at hand."""
    assert [row.id for row in asked.find("aa")] == ["aa22", "aa11"]
    assert [row.id for row in asked.find("20261112")] == ["20261112-101010-0000000c"]
    assert [row.id for row in asked.find("c0ff")] == ["20261110-101010-0000000a"]
    assert asked.find("") == [] and asked.find("zz") == []


def test_base64_is_not_searched():
    """A picture in a tool's result is no word; neither is it in the way of the words around it."""
    assert text.prepared(["before " + "QUJD" * 500 + " after"]) == "before … after"
    assert len(text.prepared(["word " * 10**6])) <= text.LONGEST
    assert text.unpacked(text.packed("long " * 1000)) == "long " * 1000
