"""Sinks beside the session logs: each call once, in order, whatever becomes of one sink or of a process."""

import csv
import gzip
import json
import os
import shutil
import signal
import sqlite3
import textwrap
import time
from contextlib import closing
from pathlib import Path

import anthropic
import pytest

from llm_proxy.lanes.appending import Appender
from llm_proxy.sinks.outbox import TABLE, Outbox


def ask(daemon, provider, *questions, stream=False):
    """A call each."""
    client = anthropic.Anthropic(
        base_url=f"{daemon.url}/anthropic/127.0.0.1:{provider.port}",
        api_key="sk-ant-api03-0123456789abcdef",
        max_retries=0,
    )
    with client:
        for question in questions:
            said = [{"role": "user", "content": question}]
            how = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": said}
            if stream:
                with client.messages.stream(**how) as answer:
                    answer.get_final_text()
            else:
                client.messages.create(**how)


def until(true, told, limit=60):
    deadline = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)
    return found


def states(daemon):
    try:
        return json.loads((daemon.state / "sinks.json").read_text())["sinks"]
    except (OSError, ValueError):
        return {}


def passed(daemon, name, count):
    until(lambda: states(daemon).get(name, {}).get("passed", 0) >= count, lambda: states(daemon))


def running(daemon, *names):
    """The sinks begin with what comes from now on: wait until they have."""
    until(lambda: set(names) <= set(states(daemon)), lambda: [states(daemon), *daemon.lines])


def configured(environ, text):
    path = Path(environ["HOME"], "config.toml")
    path.write_text(textwrap.dedent(text))
    return str(path)


def lines(path):
    return path.read_text().splitlines()


def test_each_sink_has_every_call_once_and_in_order(start, environ, provider):
    """Session logs, daily recordings, CSV and dataset tell the same calls."""
    names = ["sessions", "daily", "csv", "dataset"]
    daemon = start("--port", "0", "--config", configured(environ, f"sinks = {names}\n[csv]\nheader = true\n"))
    running(daemon, "daily", "csv", "dataset")
    questions = [f"question, number {number}" for number in range(5)]
    ask(daemon, provider, *questions)
    ask(daemon, provider, "a stream", stream=True)
    for name in ("daily", "csv", "dataset"):
        passed(daemon, name, 6)
    assert daemon.stop() == 0
    ids = [
        entry["_meta"]["request_id"]
        for entry in daemon.entries(until=lambda found: sum(one.get("type") == "response" for one in found) == 6)
        if entry.get("type") == "response"
    ]
    daily = [json.loads(line) for path in sorted(daemon.logs.glob("recordings-*.jsonl")) for line in lines(path)]
    assert sorted(one["id"] for one in daily) == sorted(ids)
    assert [one["request"]["body"]["messages"][0]["content"] for one in daily] == [*questions, "a stream"]
    assert daily[-1]["response"]["streaming"]
    with (daemon.logs / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(row["request"])["messages"][0]["content"] for row in rows] == [*questions, "a stream"]
    assert rows[0]["method"] == "POST"
    assert rows[0]["url"] == f"http://127.0.0.1:{provider.port}/v1/messages"
    folder = Path(environ["HOME"], ".llm-provider-dataset")
    (file,) = folder.glob("session_claude-sonnet-4-6/session_claude-sonnet-4-6_*_*.jsonl")
    records = [json.loads(line) for line in lines(file)]
    assert [one["request_body"]["messages"][0]["content"] for one in records] == [*questions, "a stream"]
    assert records[0]["tokens_used"]["total_tokens"] == (
        records[0]["tokens_used"]["prompt_tokens"] + records[0]["tokens_used"]["completion_tokens"]
    )
    (pieces,) = (folder / "streams").glob("session_claude-sonnet-4-6_*.jsonl")
    told = [json.loads(line) for line in lines(pieces)]
    assert {one["id"] for one in told} == {records[-1]["id"]}
    assert "message_stop" in "".join(one["chunk"] for one in told)
    for path in (file, pieces, daemon.logs / "log.csv"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_lane_that_starts_before_its_keeper_begins_at_the_first_call(tmp_path):
    """Where no file, or no table, is there yet, nothing has been settled: a new sink misses no call that comes meanwhile."""
    path = tmp_path / "sessions.db"
    outbox = Outbox(path)
    assert outbox.last() == 0
    with closing(sqlite3.connect(path)) as keeper:
        keeper.execute("CREATE TABLE sessions (id TEXT)")
        assert outbox.last() == 0
        keeper.executescript(TABLE)
        assert outbox.last() == 0
        keeper.execute("INSERT INTO outbox VALUES (7, x'00', 'response', '', '', 0, 0)")
        keeper.commit()
        assert outbox.last() == 7


def test_one_that_is_broken_holds_up_nobody_and_goes_on_where_it_was(start, environ, provider):
    """A CSV that cannot be written: the daily sink goes on, the status says why, and nothing is missing afterwards."""
    blocked = Path(environ["HOME"], "out")
    blocked.write_text("a file where a folder should be")
    text = f'sinks = ["sessions", "daily", "csv"]\n[csv]\nfile = "{blocked}/log.csv"\n'
    daemon = start("--port", "0", "--config", configured(environ, text))
    running(daemon, "daily", "csv")
    ask(daemon, provider, *"abc")
    passed(daemon, "daily", 3)
    state = until(lambda: (one := states(daemon)["csv"])["last_error"] and one, lambda: states(daemon))
    assert state["state"] == "retrying"
    assert str(blocked) in state["last_error"]
    assert state["passed"] == 0
    blocked.unlink()
    passed(daemon, "csv", 3)
    assert states(daemon)["csv"]["state"] == "ok"
    assert len(lines(blocked / "log.csv")) == 3


def test_nothing_is_lost_or_doubled_when_the_lanes_are_killed(start, environ, provider):
    """SIGKILL between writing and committing, again and again: every call stands once."""
    daemon = start("--port", "0", "--config", configured(environ, 'sinks = ["sessions", "daily", "csv"]\n'))
    running(daemon, "daily", "csv")
    pids = [0]

    def another():
        pid = json.loads((daemon.state / "sinks.json").read_text())["pid"]
        return pid if pid not in pids else None

    for round in range(4):
        ask(daemon, provider, *(f"{round}-{number}" for number in range(6)))
        pids.append(until(another, lambda: pids))
        os.kill(pids[-1], signal.SIGKILL)
        ask(daemon, provider, f"{round}-last")
    wanted = [f"{round}-{number}" for round in range(4) for number in (*range(6), "last")]

    def told():
        files = sorted(daemon.logs.glob("recordings-*.jsonl"))
        return [json.loads(line)["request"]["body"]["messages"][0]["content"] for file in files for line in lines(file)]

    until(lambda: len(told()) >= len(wanted), lambda: (told(), states(daemon)))
    assert told() == wanted
    until(lambda: len(lines(daemon.logs / "log.csv")) >= len(wanted), lambda: states(daemon))
    assert len(lines(daemon.logs / "log.csv")) == len(wanted)


def test_a_sink_goes_on_where_it_was_after_a_restart(start, environ, provider):
    """What was recorded while a sink refused is passed on by the next daemon."""
    blocked = Path(environ["HOME"], "out")
    blocked.write_text("in the way")
    path = configured(environ, f'sinks = ["sessions", "csv"]\n[csv]\nfile = "{blocked}/log.csv"\n')
    first = start("--port", "0", "--config", path)
    running(first, "csv")
    ask(first, provider, "one", "two")
    until(lambda: states(first)["csv"]["last_error"], lambda: states(first))
    first.kill()
    blocked.unlink()
    second = start("--port", "0", "--config", path)
    ask(second, provider, "three")

    def told():
        with (blocked / "log.csv").open(newline="") as file:
            return [json.loads(row[2])["messages"][0]["content"] for row in csv.reader(file)]

    # the first daemon's lanes may have had their last try behind the unlink
    until(lambda: (blocked / "log.csv").exists() and len(told()) >= 3, lambda: states(second))
    assert told() == ["one", "two", "three"]


def test_a_file_that_was_moved_away_is_begun_anew(start, environ, provider):
    """Rotated by somebody else, with its header again; cells that a spreadsheet would compute are defused."""
    text = 'sinks = ["sessions", "csv"]\n[csv]\nheader = true\ndefuse = true\ncolumns = ["model", "status", "tokens", "request"]\n'
    daemon = start("--port", "0", "--config", configured(environ, text))
    running(daemon, "csv")
    path = daemon.logs / "log.csv"
    ask(daemon, provider, "first")
    passed(daemon, "csv", 1)
    path.rename(path.with_name("old.csv"))
    ask(daemon, provider, "second")
    passed(daemon, "csv", 2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert rows[0]["status"] == "200"
    assert rows[0]["model"].startswith("claude")
    assert "second" in rows[0]["request"]


OWN = '''
class Mine:
    """Writes a line per call, and cannot take some."""

    def __init__(self, folder, options):
        self.path = options["path"]

    def write(self, calls):
        if any("poison" in call.digest.asked.messages[-1].text for call in calls):
            raise ValueError("I cannot take this")
        with open(self.path, "a") as file:
            file.writelines(f"{call.row.id} {call.row.model} {call.row.usage.total}\\n" for call in calls)

    def close(self):
        with open(self.path, "a") as file:
            file.write("closed\\n")
'''


def test_a_sink_of_ones_own_is_a_class_and_an_entry_point(start, environ, provider, tmp_path):
    """Two methods; a call it cannot take is tried, parked and told, and those behind it come."""
    site = tmp_path / "site"
    (site / "mine-1.dist-info").mkdir(parents=True)
    (site / "mine.py").write_text(OWN)
    (site / "mine-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (site / "mine-1.dist-info/entry_points.txt").write_text("[llm_proxy.sinks]\nmine = mine:Mine\n")
    out = tmp_path / "mine.txt"
    path = configured(environ, f'sinks = ["sessions", "mine", "absent"]\n[sink.mine]\npath = "{out}"\n')
    daemon = start("--port", "0", "--config", path, env={"PYTHONPATH": str(site)}, isolated=False)
    running(daemon, "mine", "absent")
    assert "there are sessions, csv, daily, dataset" in states(daemon)["absent"]["last_error"]
    ask(daemon, provider, "one", "poison", "three")
    passed(daemon, "mine", 2)
    state = states(daemon)["mine"]
    assert state["parked"] == 1
    assert "I cannot take this" in state["last_error"]
    (parked,) = lines(daemon.state / "parked/mine.jsonl")
    assert json.loads(parked)["file"]
    assert daemon.stop() == 0
    told = lines(out)
    assert [line.split()[1] for line in told[:-1]] == ["claude-sonnet-4-6"] * 2
    assert told[-1] == "closed"


def test_what_stands_already_is_not_written_again(tmp_path):
    """Killed between the write and the commit, at any byte of it."""
    path = tmp_path / "log"
    whole = b"one\ntwo\nthree\n"
    for cut in range(len(whole) + 1):
        shutil.rmtree(tmp_path)
        before = Appender()
        before.append(path, b"zero\n")
        committed = dict(before.ledger)
        with path.open("ab") as file:
            file.write(whole[:cut])
        after = Appender()
        after.resume(committed)
        after.append(path, whole)
        assert path.read_bytes() == b"zero\n" + whole, cut


@pytest.mark.parametrize("before", [b"", b"zero\n", b"one\n", b"zero\none\nthr"])
def test_a_first_write_is_not_repeated_either(tmp_path, before):
    """A lane that was killed amid its very first write to a file: nothing of that file was committed."""
    path = tmp_path / "log"
    whole = b"one\ntwo\nthree\n"
    for cut in range(len(whole) + 1):
        path.write_bytes(before + b"\n" * bool(cut and before and not before.endswith(b"\n")) + whole[:cut])
        begun = Appender()
        begun.resume({})
        after = Appender()
        after.resume(dict(begun.ledger))
        after.append(path, whole)
        wanted = before + b"\n" * (not before.endswith(b"\n") and bool(before)) + whole
        if before == b"one\n" and cut == 0:  # cannot be told from a first line that was written
            wanted = whole
        assert path.read_bytes() == wanted, (before, cut)
        after.append(path, b"one\n")
        assert path.read_bytes() == wanted + b"one\n"


def test_a_lane_that_begins_takes_no_line_for_its_own(tmp_path):
    """It has written nothing yet, whatever the file ends with."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    begins = Appender()
    begins.resume({})
    begins.append(path, b"one\n")
    assert path.read_bytes() == b"one\none\n"


def test_what_others_added_stays(tmp_path):
    """A file somebody saved anew meanwhile: our lines come behind, on lines of their own."""
    path = tmp_path / "log"
    before = Appender()
    before.append(path, b"zero\n")
    committed = dict(before.ledger)
    path.write_bytes(b"zero\nadded by hand")
    after = Appender()
    after.resume(committed)
    after.append(path, b"one\n")
    assert path.read_bytes() == b"zero\nadded by hand\none\n"


def test_compressed_records_rotate_by_size(start, environ, provider):
    """`compress`, `rotate` and `max_size` of the dataset do what they say."""
    text = 'sinks = ["sessions", "dataset"]\n[dataset]\ncompress = true\nrotate = "size"\nmax_size = 1000\n'
    daemon = start("--port", "0", "--config", configured(environ, text))
    running(daemon, "dataset")
    ask(daemon, provider, *(f"question {number} " + os.urandom(300).hex() for number in range(4)))
    passed(daemon, "dataset", 4)
    folder = Path(environ["HOME"], ".llm-provider-dataset/session_claude-sonnet-4-6")
    files = sorted(folder.glob("*.jsonl.gz"))
    assert len(files) >= 2
    records = [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
    asked = [one["request_body"]["messages"][0]["content"].split()[1] for one in records]
    assert sorted(asked) == ["0", "1", "2", "3"]
