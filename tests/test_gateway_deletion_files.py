"""What sinks have written into files of this machine is deleted with a user's conversations, and nothing else is."""

import csv
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from llm_proxy.keeper.options import Options
from llm_proxy.lanes import csv_log
from llm_proxy.lanes.csv_log import CsvLog
from llm_proxy.lanes.cursors import Cursors
from llm_proxy.lanes.deleting import Deletions, Gone
from llm_proxy.lanes.lane import Lane
from llm_proxy.lanes.options import TABLES
from llm_proxy.lanes.options import Options as Lanes
from llm_proxy.service import passing
from llm_proxy.settings import Settings
from llm_proxy.sinks.outbox import Outbox
from tests.journals import WALL, Call
from tests.test_gateway_deletion import ANN, BOB, SECOND, ask, by, said, write
from tests.test_gateway_privacy_record import found, wait
from tests.test_keeper import Place

KILLS = int(os.environ.get("KEEPER_KILLS", "4"))
SINKS = ("daily", "csv", "dataset")
ID = ["id", "method", "request", "response"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "asked").mkdir()
    options = Options(
        index=str(tmp_path / "state/index.db"),
        projects=False,
        posts=True,
        deletions=str(tmp_path / "asked"),
        deleting_sinks=SINKS,
        rules_stand=0.2,
    )
    return Place(tmp_path, options)


def start(place, **tables):
    files = place.folder / "files"
    told = {"daily": {"folder": str(files)}, "csv": {"file": str(files / "log.csv"), "header": True, "columns": ID}}
    told |= {"dataset": {"folder": str(files / "dataset")}}
    sinks = tuple((name, told[name] | tables.get(name, {})) for name in SINKS)
    given = Lanes(str(place.state), str(place.logs), sinks, deletions=str(place.folder / "asked"))
    place.state.mkdir(exist_ok=True)
    variables = os.environ | {TABLES: given.variables()[TABLES]}
    command = [sys.executable, "-m", "llm_proxy.lanes", given.to_json()]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=variables, bufsize=0)


def standing(place):
    with suppress(OSError, ValueError):
        return json.loads((place.state / "sinks.json").read_text())["sinks"]
    return {}


@contextmanager
def lanes(place, **tables):
    process = start(place, **tables)
    try:
        process.stdin.write(b".")
        wait(lambda: standing(place).keys() == set(SINKS))
        yield process
    finally:
        process.communicate(timeout=30)


def passed(place, process, count):
    def all_have():
        process.stdin.write(b".")  # as the daemon does
        return all(standing(place).get(name, {}).get("passed") == count for name in SINKS)

    wait(all_have)


def files(place):
    return {path: path.read_bytes() for path in (place.folder / "files").rglob("*") if path.is_file()}


def hits(place, word):
    return [path.name for path, data in files(place).items() if word.encode() in unpacked(path, data)]


def unpacked(path, data):
    return gzip.decompress(data) if path.suffix == ".gz" else data


def streamed(serial, account, words, **more):
    events = [{"type": "message_start", "message": {"id": f"msg_{serial}", "model": "claude-sonnet-4-5"}}]
    events += [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": words}}]
    data = b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events)
    chunk = f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n"
    return Call(
        serial,
        why="gateway",
        request=json.dumps({"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": words}]}).encode(),
        request_headers=by(account),
        headers=("Content-Type: text/event-stream", "Transfer-Encoding: chunked"),
        pieces=[(5, chunk)],
        **more,
    )


@pytest.mark.parametrize("compress", [False, True])
def test_lines_of_theirs_go_from_each_file_and_all_others_stay_as_they_are(place, compress):
    """Recordings, CSV, dataset, pieces of streams; calls begun later stay; then each sink goes on with its files."""
    with lanes(place, dataset={"compress": compress}) as process:
        ours = [said(1, ANN, "canary"), streamed(2, ANN, "canary"), said(3, ANN, "kept", wall=WALL + 9 * SECOND)]
        write(place, said(51, BOB, "robin"), *ours, streamed(52, BOB, "robin"))
        passed(place, process, 5)
        assert len(hits(place, "canary")) == len(hits(place, "robin")) == 4
        before = records(place)
        report = answered(place, ask(place, ANN, WALL + 5 * SECOND))
        assert (report["conversations"], report["left"]) == (2, "")
        assert hits(place, "canary") == [] and found(place, "canary") == []
        after = records(place)
        for path, kept in after.items():
            assert kept == [
                one for one in before[path] if "canary" not in one and not ids(ours[:2]) & set(one.split('"'))
            ]
            assert path.stat().st_mode & 0o777 == 0o600
        assert len(hits(place, "kept")) == 3 and len(hits(place, "robin")) == 4
        write(place, said(53, BOB, "wren"))
        passed(place, process, 6)
        assert len(hits(place, "wren")) == 3 and list(place.folder.glob("files/**/.new-*")) == []
        assert {path.suffix for path in (place.folder / "asked").iterdir()} == {".ask", ".done", ".json", ""}


def answered(place, done):
    with place.running():
        wait(done.exists)
    return json.loads(done.read_text())


def ids(calls):
    return {str(call.id) for call in calls}


def records(place):
    """Lines, of the CSV rows."""
    return {
        path: list(map(repr, csv.reader(io.StringIO(text)))) if path.suffix == ".csv" else text.splitlines()
        for path, text in ((path, unpacked(path, data).decode()) for path, data in files(place).items())
    }


def test_lines_whose_session_logs_have_gone_go_by_what_they_say_themselves(place):
    """Retention may have been quicker with the log; of rows in a CSV without ids the answer says that they stay."""
    with lanes(place, csv={"columns": ["method", "request"], "header": False}) as process:
        write(place, said(1, ANN, "canary"), streamed(2, ANN, "canary"), said(51, BOB, "robin"))
        passed(place, process, 3)
        for path in place.files():
            path.unlink()
        left = answered(place, ask(place, ANN))["left"]
        assert left == f"{place.folder / 'files/log.csv'}: rows without the column id"
        assert hits(place, "canary") == ["log.csv"] and len(hits(place, "robin")) == 3


def test_nothing_is_answered_before_all_sinks_are_rid_of_it(place):
    """A sink that is not there now is waited for, and does it when it is; one that cannot write tells, and tries again."""
    with lanes(place) as process:
        write(place, said(1, ANN, "canary"), said(51, BOB, "robin"))
        passed(place, process, 2)
    done = ask(place, ANN)
    with place.running():
        wait(done.with_suffix(".logs").exists)
        assert found(place, "canary") == [f"files/{name}: canary" for name in sorted(["log.csv", *both(place)])]
    blocked = place.folder / "files/.new-log.csv"
    blocked.mkdir()
    with place.running(), lanes(place):
        wait(lambda: standing(place)["csv"]["state"] == "retrying" and not hits(place, "canary")[1:])
        assert not done.exists() and hits(place, "canary") == ["log.csv"]
        blocked.rmdir()
        wait(done.exists)
    assert found(place, "canary") == [] and len(hits(place, "robin")) == 3


def both(place):
    folder = place.folder / "files"
    return [str(path.relative_to(folder)) for path in folder.rglob("*.jsonl")]


def test_killed_anywhere_it_is_done_in_the_end(place):
    """Lanes are killed at random moments of it; what others said is there, once."""
    with lanes(place) as process:
        calls = [said(n, (ANN, BOB)[n % 2], ("canary", "robin")[n % 2], session=f"s{n % 7}") for n in range(1, 121)]
        write(place, *calls)
        passed(place, process, 120)
    done = ask(place, ANN)
    rng = random.Random(7)
    with place.running():
        wait(done.with_suffix(".logs").exists)
        for _ in range(KILLS):
            process = start(place)
            time.sleep(0.2 + rng.random() * 0.4)  # the moment at which it is killed is the point
            process.send_signal(signal.SIGKILL)
            process.communicate()
        with lanes(place):
            wait(done.exists)
    assert hits(place, "canary") == [] and list(place.folder.glob("files/**/.new-*")) == []
    rows = (place.folder / "files/log.csv").read_text().splitlines()
    (daily,) = place.folder.glob("files/recordings-*.jsonl")
    ids = sorted(str(call.id) for call in calls if call.serial % 2)
    assert sorted(row.partition(",")[0] for row in rows[1:]) == ids
    assert sorted(json.loads(line)["id"] for line in daily.read_text().splitlines()) == ids


def test_a_row_is_told_by_its_own_cells_and_not_by_what_is_said_in_them(tmp_path):
    """Line ends, quotes and whole rows stand in bodies of others."""
    mine, other = "018f0000-0000-7000-8000-000000000001", "018f0000-0000-7000-8000-000000000002"
    path = tmp_path / "log.csv"
    quoting = f'{other},POST,"said ""x"" {mine}\n,{mine},POST,""y""","z"\n'
    path.write_text(f'id,method\n{mine},POST,"line\n""two""","a"\n{quoting}{mine},GET,"",""\n')
    sink = CsvLog(tmp_path, {"file": str(path), "header": True, "columns": ["id", "method"]})
    assert sink.forget(Gone({}, {mine})) == ""
    assert path.read_text() == "id,method\n" + quoting


def test_rows_behind_a_quote_that_nobody_closes_stay_and_are_named(tmp_path, monkeypatch):
    """They would be one row with the ids of many; so would one be that has no end in sight."""
    ids = [f"018f0000-0000-7000-8000-{n:012}" for n in range(4)]
    path = tmp_path / "log.csv"
    rows = [f'{id},"said"\n' for id in ids]
    path.write_text("".join([*rows[:2], f'{ids[2]},"said\n', rows[3]]))
    before = path.read_bytes()
    sink = CsvLog(tmp_path, {"columns": ["id", "request"]})
    for id in (ids[0], ids[3]):
        assert sink.forget(Gone({}, {id})) == f"{path} cannot be read as CSV"
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    path.write_text("".join([*rows[:2], f'{ids[2]},"said\n" \n', rows[3]]))
    assert sink.forget(Gone({}, {ids[0]})) == "" and path.read_text().startswith(rows[1])
    monkeypatch.setattr(csv_log, "LONGEST_LINE", 45)
    assert sink.forget(Gone({}, {ids[1]})) == f"{path} cannot be read as CSV" and path.read_text().startswith(rows[1])


class Own:
    """A sink as others write them."""

    def write(self, calls):
        return None

    def forget(self, gone):
        raise AssertionError("asked, and nobody waits for the answer")

    def close(self):
        return None


def test_a_sink_of_ones_own_is_not_asked_since_nobody_waits_for_it(place):
    """The answer names it among what stays; its lane goes on."""
    settings = Settings(sinks=("sessions", "daily", "mine"), own_sinks=(("mine", ()),))
    assert passing.deleting(settings) == ("daily",) and passing.sent(settings) == ("sink of your own: mine",)
    folder = place.folder / "asked"
    ask(place, ANN)
    (folder / "1a2b3c4d-1.logs").write_text(json.dumps({"at": 0, "conversations": 0, "left": ""}))
    place.state.mkdir()
    outbox, cursors = Outbox(place.state / "sessions.db"), Cursors(place.state / "sinks.db")
    mine = Lane("mine", Own(), outbox, cursors, place.folder / "parked", deletions=Deletions(str(folder), "mine"))
    assert mine._forget(0) is None and not (folder / "1a2b3c4d-1.mine@").exists()


def test_a_file_is_replaced_under_the_lock_that_who_appends_takes(tmp_path):
    """Two daemons may write the same file: a line that comes meanwhile is in the new one."""
    one, two = CsvLog(tmp_path, {"columns": ["id"]}), CsvLog(tmp_path, {"columns": ["id"]})
    path = tmp_path / "log.csv"
    ids = [f"018f0000-0000-7000-8000-{n:012}" for n in range(200)]
    one.append(path, "".join(f"{id}\n" for id in ids).encode())
    import threading

    go = threading.Event()

    def append():
        go.wait()
        for n in range(300):
            two.append(path, b"018f0000-0000-7000-9000-%012d\n" % n)

    thread = threading.Thread(target=append)
    thread.start()
    go.set()
    for id in ids[:60]:
        one.forget(Gone({}, {id}))
    thread.join()
    rows = path.read_text().splitlines()
    assert sum("-9000-" in row for row in rows) == 300 and sum("-8000-" in row for row in rows) == 140
