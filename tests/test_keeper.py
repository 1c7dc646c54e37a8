"""The keeper turns a journal into log files exactly once, whatever is killed, full, or in the way."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import pytest

from llm_proxy.journal import segments
from llm_proxy.journal.frames import Kind, pack
from llm_proxy.journal.reader import Reader
from llm_proxy.journal.writer import writer_lock
from llm_proxy.keeper.assemble import Assembler
from llm_proxy.keeper.assemble import Call as Entered
from llm_proxy.keeper.options import Options
from llm_proxy.keeper.places import Item
from llm_proxy.keeper.settle import Recorder, Tally
from llm_proxy.keeper.store import Store, StoreDamaged
from llm_proxy.keeper.telling import Teller
from llm_proxy.records.exchange import Ending
from llm_proxy.sinks.log_files import Logs
from tests.journals import WALL, Call, Journal

ROOT = os.geteuid() == 0
KILLS = int(os.environ.get("KEEPER_KILLS", "25"))
PER_KILL = 300  # calls that are written between two


class Place:
    """A throw-away set of folders and the keepers working in it."""

    def __init__(self, folder: Path, options: Options | None = None) -> None:
        self.folder = folder
        self.options = options
        self.journal = folder / "journal"
        self.logs = folder / "logs"
        self.state = folder / "state"

    def start(self, journal: Path | None = None, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        arguments: list[str | Path] = ["--journal", journal or self.journal, "--logs", self.logs, "--state", self.state]
        if self.options is not None:
            arguments += ["--options", self.options.to_json()]
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "llm_proxy.keeper", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @contextmanager
    def running(self, journal: Path | None = None, prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
        keeper = self.start(journal, prefix)
        try:
            yield keeper
        finally:
            finish(keeper)

    def settle(self) -> None:
        """One whole life of a keeper whose proxy is gone."""
        keeper = self.start()
        said = finish(keeper)
        assert keeper.returncode == 0 and said == b"", said

    def snapshot(self) -> dict[str, object]:
        try:
            facts = json.loads((self.journal / "keeper.json").read_bytes())
        except FileNotFoundError:
            return {}
        assert isinstance(facts, dict)
        return facts

    def files(self) -> list[Path]:
        return sorted(self.logs.rglob("*.jsonl"))

    def entries(self) -> list[dict[str, object]]:
        """Every line of every file; each must be whole and valid."""
        found = []
        for path in self.files():
            data = whole(path)
            found += [json.loads(line) for line in data.split(b"\n")[:-1]]
        return found

    def told(self) -> Counter[tuple[str, str]]:
        """How often each half of each exchange is told."""
        return Counter(
            (entry["_meta"]["request_id"], entry["type"])  # type: ignore[index]
            for entry in self.entries()
            if entry["type"] in ("request", "response")
        )

    def assert_told_once(self, calls: list[Call]) -> None:
        assert self.told() == {(str(call.id), half): 1 for call in calls for half in ("request", "response")}
        numbers = Counter(
            (entry["_meta"]["session"], entry["seq"], entry["type"])  # type: ignore[index]
            for entry in self.entries()
            if "seq" in entry
        )
        assert set(numbers.values()) <= {1}


def whole(path: Path) -> bytes:
    """A log. A write under way is seen page by page, so that a line may be whole only at the next look."""
    deadline = time.monotonic() + 5
    while (data := path.read_bytes()) and not data.endswith(b"\n"):
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
    return data


def finish(keeper: subprocess.Popen[bytes]) -> bytes:
    said, _ = keeper.communicate(timeout=60)
    return said


def until(true: Callable[[], object], limit: float = 20) -> None:
    """Other processes' files send no events."""
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def fill(journal: Path, calls: list[Call], together: int = 7, segment_size: int = 1 << 20) -> None:
    run = Journal(journal, segment_size)
    for start in range(0, len(calls), together):
        run.add(*(frame for call in calls[start : start + together] for frame in call.frames))
    run.close()


# --- what is written -----------------------------------------------------------------------------------------------


def test_calls_become_session_files(place: Place) -> None:
    """Each conversation is one file in its upstream's folder: its start, then each call's two halves, numbered."""
    calls = [Call(number, session=f"s{number % 2}") for number in range(1, 7)]
    fill(place.journal, calls)
    place.settle()
    place.assert_told_once(calls)
    assert len(place.files()) == 2
    for path in place.files():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["type"] for line in lines] == ["session_start", *["request", "response"] * 3]
        assert [line.get("seq") for line in lines] == [None, 1, 1, 2, 2, 3, 3]
        assert lines[0]["client_session"] in ("s0", "s1") and lines[0]["provider"] == "anthropic"
        assert path.parent.parent == place.logs / "api.anthropic.com"
        assert {line["_meta"]["session"] for line in lines} == {path.stem}
    snapshot = place.snapshot()
    assert (snapshot["state"], snapshot["exchanges"], snapshot["entries"]) == ("stopped", 6, 14)
    assert snapshot["lag_bytes"] == 0 and snapshot["errors"] == 0


def test_calls_without_an_id(place: Place) -> None:
    """A conversation nobody named stays alone; listing models all day long makes one file."""
    calls = [Call(1), Call(2), *(Call(n, method="GET", target="/v1/models", request=b"") for n in (3, 4, 5))]
    fill(place.journal, calls)
    place.settle()
    place.assert_told_once(calls)
    assert sorted(path.read_bytes().count(b"\n") for path in place.files()) == [3, 3, 7]


def test_the_same_id_elsewhere_is_another_session(place: Place) -> None:
    """Ids are the client's affair with one provider at one upstream."""
    calls = [
        Call(1, session="same"),
        Call(2, session="same", upstream="proxy.example:8443"),
        Call(3, session="same", upstream="[::1]:9000"),
    ]
    fill(place.journal, calls)
    place.settle()
    assert sorted(path.parent.parent.name for path in place.files()) == [
        "[::1]:9000",
        "api.anthropic.com",
        "proxy.example:8443",
    ]


def test_upstream_names_never_leave_the_log_folder(place: Place) -> None:
    """Whatever stands in the authority, the file lies below the log folder, private."""
    names = ["..", ".", "../../x", "a/b", "", "a\nb", "-x", "x" * 300, "CON\u202e", "a b", "/etc", "~", "é.com"]
    calls = [Call(number, session="s", upstream=name) for number, name in enumerate(names, 1)]
    fill(place.journal, calls)
    old = os.umask(0)
    try:
        place.settle()
    finally:
        os.umask(old)
    place.assert_told_once(calls)
    assert {path.parent.parent.parent for path in place.files()} == {place.logs}
    assert all(path.parent.parent.name.startswith("_invalid-") for path in place.files())
    written = [place.logs, *place.logs.rglob("*"), *place.state.rglob("*"), place.journal / "keeper.json"]
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in written}
    assert modes == {(True, 0o700), (False, 0o600)}
    assert {path.name for path in place.folder.iterdir()} == {"journal", "logs", "state"}


def test_gaps_are_told(place: Place) -> None:
    """What could not be recorded is a line of its own, once."""
    run = Journal(place.journal)
    run.add(Call(1).open, pack(Kind.GAP, 0, 0, 5, f"1 2 3 {WALL} {WALL + 10**9}".encode()))
    for _ in range(2):
        place.settle()
    (line,) = (place.logs / "recording-gaps.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["exchanges"], entry["frames"], entry["bytes"]) == (1, 2, 3)
    assert entry["from"] < entry["to"]
    run.close()


# --- calls that are open -------------------------------------------------------------------------------------------


def test_an_open_call_shows_its_request(place: Place) -> None:
    """Its response comes under the same number later; what is settled of the journal goes meanwhile."""
    call, late = Call(1, session="s"), Call(2, session="s")
    run = Journal(place.journal)
    with writer_lock(place.journal), place.running() as keeper:
        run.add(call.open, call.request)
        wake(keeper)
        until(lambda: place.told() == {(str(call.id), "request"): 1})
        run.add(*late.frames)
        wake(keeper)
        until(lambda: sum(place.told().values()) == 3)
        run.add(call.head, *call.response, call.end)
        wake(keeper)
        until(lambda: sum(place.told().values()) == 4)
        place.assert_told_once([call, late])
        keeper.terminate()
    assert keeper.returncode == 0
    run.close()


def wake(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    keeper.stdin.write(b"\n")
    keeper.stdin.flush()


def test_a_killed_proxy_leaves_interrupted_calls(place: Place) -> None:
    """With all that had arrived: at the end of the pipe, or when the next proxy's run begins."""
    stream = [(110, b"data: one\n\n"), (150, b"data: tw")]
    calls = [Call(n, session="s", headers=["Content-Type: text/event-stream"], pieces=stream) for n in (1, 2)]
    run = Journal(place.journal)
    run.add(calls[0].open, calls[0].request, calls[0].head, *calls[0].response)
    run.close()
    run = Journal(place.journal)
    run.add(calls[1].open, calls[1].request, calls[1].head, *calls[1].response)
    run.close()
    place.settle()
    place.assert_told_once(calls)
    answers = [entry for entry in place.entries() if entry["type"] == "response"]
    assert [answer["ending"] for answer in answers] == ["interrupted"] * 2
    for answer in answers:
        chunks = answer["chunks"]
        assert isinstance(chunks, list)
        assert [(chunk["raw"], chunk["delta_ms"]) for chunk in chunks] == [
            ("data: one\n", 10),
            ("\n", 10),
            ("data: tw", 50),
        ]
    assert place.snapshot()["interrupted"] == 2
    place.settle()
    place.assert_told_once(calls)


def test_while_another_proxy_writes_its_calls_stay_open(place: Place) -> None:
    """The end of the pipe alone does not mean that the calls are over: the writer's lock decides."""
    call = Call(1, session="s")
    run = Journal(place.journal)
    run.add(call.open, call.request)
    with writer_lock(place.journal):
        place.settle()
    assert place.told() == {(str(call.id), "request"): 1}
    run.add(call.head, *call.response, call.end)
    place.settle()
    place.assert_told_once([call])
    assert [entry["ending"] for entry in place.entries() if "ending" in entry] == ["complete"]
    run.close()


# --- lives after lives ---------------------------------------------------------------------------------------------


def test_a_restart_continues_sessions(place: Place) -> None:
    """Same client id, same file, next number."""
    for first in (1, 4):
        fill(place.journal, [Call(number, session="s") for number in range(first, first + 3)])
        place.settle()
    (path,) = place.files()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["seq"] for line in lines if line["type"] == "request"] == [1, 2, 3, 4, 5, 6]
    assert [line["type"] for line in lines].count("session_start") == 1


def test_settled_segments_go(place: Place) -> None:
    """The journal is empty when everything is in the log files and nobody writes it any more."""
    calls = [Call(number, session="s", request=b"x" * 5000) for number in range(1, 60)]
    fill(place.journal, calls, segment_size=20_000)
    assert len(segments.numbers(place.journal)) > 5
    place.settle()
    assert segments.numbers(place.journal) == []
    place.assert_told_once(calls)


@pytest.mark.parametrize("segment_size", [20_000, 1 << 20])
def test_an_emptied_journal_begins_anew(place: Place, segment_size: int) -> None:
    """Somebody removed the journal: its segments count from 1 again, and nothing is passed over."""
    calls = [Call(number, session="s", request=b"x" * 5000) for number in range(1, 20)]
    fill(place.journal, calls, segment_size=segment_size)
    place.settle()
    shutil.rmtree(place.journal)
    more = [Call(1, session="s")]
    fill(place.journal, more)
    place.settle()
    place.assert_told_once([*calls, *more])


def mixed(amount: int) -> list[Call]:
    """Sessions, single calls and listings, some larger than what is held in memory."""
    chance = random.Random(7)
    calls = []
    for serial in range(1, amount + 1):
        kind = chance.random()
        if kind < 0.8:
            calls.append(Call(serial, session=f"s{chance.randrange(5)}", answer=b"y" * chance.randrange(300)))
        elif kind < 0.9:
            calls.append(Call(serial))
        elif kind < 0.99:
            calls.append(Call(serial, method="GET", target="/v1/models", request=b""))
        else:
            calls.append(Call(serial, session="big", answer=b"z" * 300_000))
    return calls


def interleaved(journal: Path, calls: list[Call]) -> Iterator[int]:
    """A journal in which calls overlap: each ends some blocks after it began, the first one last. Written as asked for."""
    run = Journal(journal)
    waiting: list[Call] = []
    chance = random.Random(11)
    for number, call in enumerate(calls):
        waiting.append(call)
        run.add(call.open, call.request)
        if len(waiting) > 20:
            done = waiting.pop(chance.randrange(1, len(waiting)))
            run.add(done.head, *done.response, done.end)
        yield number
    for call in reversed(waiting):
        run.add(call.head, *call.response, call.end)
    run.close()


def test_killed_at_any_moment_everything_is_told_once(place: Place) -> None:
    """KEEPER_KILLS SIGKILLs at random moments of a replay; every exchange is in the files once, none is torn."""
    calls = mixed((KILLS + 6) * PER_KILL)
    growing = interleaved(place.journal, calls)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(KILLS):
        before = size_of(place.logs)
        deque(islice(growing, PER_KILL), maxlen=0)
        keeper = place.start()
        try:
            until(lambda: size_of(place.logs) != before)  # noqa: B023
            time.sleep(chance.random() * 0.04)
        finally:
            keeper.kill()
            finish(keeper)
        assert keeper.returncode == -signal.SIGKILL
    deque(growing, maxlen=0)
    place.settle()
    place.assert_told_once(calls)
    starts = Counter(entry["_meta"]["session"] for entry in place.entries() if entry["type"] == "session_start")  # type: ignore[index]
    assert set(starts.values()) == {1}


def size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*.jsonl"):
        size += path.stat().st_size
    return size


# Dies in the middle of the K-th write to a log file, with half of the line written.
DIES = """
import os, signal, sys
from llm_proxy.keeper import __main__ as keeper
write, left = os.write, int(sys.argv.pop(1))
def dying(fd, data):
    global left
    left -= 1
    if not left:
        write(fd, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data)
os.write = dying
sys.exit(keeper.main())
"""


def test_a_torn_line_is_cut_and_written_again(place: Place) -> None:
    """Killed in the middle of a write, at each write of a short journal in turn."""
    calls = [Call(1, session="a"), Call(2, session="b"), Call(3), Call(4, session="a")]
    run = Journal(place.journal)
    run.add(calls[0].open, calls[0].request, *calls[1].frames)
    run.add(*calls[2].frames, calls[0].head, calls[3].open, calls[3].request)
    run.add(*calls[0].response, calls[0].end, calls[3].head, calls[3].end)
    run.close()
    journal = place.journal.rename(place.folder / "as it was")
    arguments = ("--journal", place.journal, "--logs", place.logs, "--state", place.state)
    for write in range(1, 13):
        for folder in (place.logs, place.state, place.journal):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(journal, place.journal)
        done = subprocess.run(
            [sys.executable, "-c", DIES, str(write), *arguments], stdin=subprocess.DEVNULL, timeout=30
        )
        assert done.returncode == (-signal.SIGKILL if write <= 11 else 0)
        if write <= 11:
            assert any(not path.read_bytes().endswith(b"\n") for path in place.files())
        place.settle()
        assert place.snapshot()["torn_lines"] == (write <= 11)
        place.assert_told_once(calls)


def test_two_keepers_of_one_journal_take_turns(place: Place) -> None:
    """The second waits; when the first is killed it goes on, and nothing is told twice."""
    calls = mixed(2000)
    deque(interleaved(place.journal, calls), maxlen=0)
    with writer_lock(place.journal):
        first = place.start()
        until(lambda: size_of(place.logs))
        second = place.start()
        time.sleep(0.3)
        assert second.poll() is None
        first.kill()
        finish(first)
        until(lambda: place.snapshot().get("pid") == second.pid and place.snapshot()["lag_bytes"] == 0)
        second.terminate()
        finish(second)
        assert second.returncode == 0
    place.assert_told_once(calls)


def test_two_journals_share_a_session(place: Place) -> None:
    """Two daemons, one conversation, keepers killed over and over: one file, each entry once."""
    other = place.folder / "journal2"
    calls = [[Call(n, session=f"s{n % 3}") for n in range(1, 3000)] for _ in range(2)]
    fill(place.journal, calls[0])
    fill(other, calls[1])
    chance = random.Random(3)
    for _ in range(8):
        keepers = [place.start(), place.start(other)]
        before = size_of(place.logs)
        until(lambda: size_of(place.logs) != before or keepers[0].poll() is not None)  # noqa: B023
        time.sleep(chance.random() * 0.05)
        for keeper in keepers:
            keeper.kill()
            finish(keeper)
    keepers = [place.start(), place.start(other)]
    for keeper in keepers:
        finish(keeper)
        assert keeper.returncode == 0
    assert len(place.files()) == 3
    place.assert_told_once(calls[0] + calls[1])


# --- things in the way ---------------------------------------------------------------------------------------------


def test_deleted_and_cut_files_begin_anew(place: Place) -> None:
    """A user tidies up: the session goes on in a file that says again what it is."""
    fill(place.journal, [Call(1, session="gone"), Call(2, session="cut")])
    place.settle()
    gone, cut = sorted(place.files(), key=lambda path: b'"cut"' in path.read_bytes())
    gone.unlink()
    os.truncate(cut, 100)
    fill(place.journal, [Call(1, session="gone"), Call(2, session="cut")])
    place.settle()
    lines = [json.loads(line) for line in gone.read_text().splitlines()]
    assert [(line["type"], line.get("seq")) for line in lines] == [
        ("session_start", None),
        ("request", 2),
        ("response", 2),
    ]
    assert [json.loads(line)["type"] for line in cut.read_text().split("\n")[1:-1]] == [
        "session_start",
        "request",
        "response",
    ]


def test_a_file_taken_away_while_it_is_open_is_noticed(place: Place) -> None:
    """Nothing is written into a deleted or renamed file."""
    run = Journal(place.journal)
    with writer_lock(place.journal), place.running() as keeper:
        for number in (1, 2, 3):
            run.add(*Call(number, session="s").frames)
            wake(keeper)
            until(lambda: place.files() and b'"response"' in place.files()[0].read_bytes())
            (path,) = place.files()
            assert b'"seq":%d' % number in path.read_bytes()
            if number == 1:
                path.unlink()
            else:
                shutil.rmtree(place.logs)
        keeper.terminate()
    run.close()


def _noise(state: Path) -> None:
    for path in state.iterdir():
        path.write_bytes(b"not a database at all " * 500)


def _newer(state: Path) -> None:
    """As a later version may leave it that was rolled back: another number, other tables."""
    with closing(sqlite3.connect(state / "sessions.db")) as database:
        database.executescript("PRAGMA user_version = 99; ALTER TABLE settled ADD COLUMN more; DROP TABLE turns")


@pytest.mark.parametrize(("spoil", "words"), [(_noise, "damaged"), (_newer, "of version 99, newer than")])
def test_a_database_that_is_of_no_use_is_moved_aside(place: Place, spoil: Callable[[Path], None], words: str) -> None:
    """It is a cache of what may be forgotten: recording goes on, in new files."""
    fill(place.journal, [Call(1, session="s")])
    place.settle()
    spoil(place.state)
    more = Call(1, session="s")
    fill(place.journal, [more])
    place.settle()
    assert place.told()[(str(more.id), "response")] == 1
    assert list(place.state.glob("sessions.db.damaged-*"))
    assert words in str(place.snapshot()["last_error"])
    with sqlite3.connect(place.state / "sessions.db") as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
    database.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_links_in_the_log_folder_are_refused(place: Place, depth: int) -> None:
    """A planted link leads nowhere; when it is gone, what was kept in the journal is written."""
    calls = [Call(1, session="s"), Call(2, session="s")]
    fill(place.journal, calls[:1])
    place.settle()
    (path,) = place.files()
    planted = [path.parent.parent, path.parent, path][depth - 1]
    elsewhere = place.folder / "elsewhere"
    planted.rename(elsewhere)
    planted.symlink_to(elsewhere)
    before = size_of(elsewhere) if elsewhere.is_dir() else elsewhere.stat().st_size
    fill(place.journal, calls[1:])
    with writer_lock(place.journal), place.running() as keeper:
        until(lambda: place.snapshot().get("state") == "degraded")
        planted.unlink()
        elsewhere.rename(planted)
        until(lambda: place.snapshot().get("state") == "ok")
        assert size_of(place.logs) > before
        keeper.terminate()
    place.assert_told_once(calls)
    assert not elsewhere.exists()


@pytest.mark.skipif(ROOT and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(place: Place) -> None:
    """The keeper says so, loses nothing, and goes on by itself when it can."""
    prefix: tuple[str, ...] = ()
    place.logs.mkdir()
    calls = [Call(number, session="s") for number in (1, 2)]
    fill(place.journal, calls[:1])
    if ROOT:
        prefix = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        place.state.mkdir()
        for path in (place.folder, place.journal, place.logs, place.state, *place.journal.iterdir()):
            os.chown(path, 65534, 65534)
        for path in (place.folder, *place.folder.parents):
            if path.stat().st_uid == 0 and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o011)
    place.logs.chmod(0o500)
    with place.running(prefix=prefix) as keeper, writer_lock(place.journal):
        until(lambda: place.snapshot().get("state") == "degraded")
        snapshot = place.snapshot()
        assert "Permission denied" in str(snapshot["last_error"]) and snapshot["errors"]
        place.logs.chmod(0o700)
        until(lambda: place.snapshot().get("state") == "ok" and place.files())
        keeper.terminate()
    place.assert_told_once(calls[:1])


def test_told_to_stop_while_nothing_can_be_written(place: Place) -> None:
    """It leaves at once, says that something is missing, and the next life has it all."""
    calls = [Call(1, session="s")]
    fill(place.journal, calls)
    place.logs.write_text("in the way")
    keeper = place.start()
    finish(keeper)
    assert keeper.returncode == 1 and place.snapshot()["state"] == "unfinished"
    place.logs.unlink()
    place.settle()
    place.assert_told_once(calls)


@pytest.mark.skipif(not ROOT, reason="mounting a small tmpfs needs root")
def test_a_full_disk(place: Place) -> None:
    """No line is torn, nothing is lost, and recording goes on by itself when there is room."""
    place.logs.mkdir(parents=True)
    calls = [Call(number, session=f"s{number % 3}", request=b"x" * 3000) for number in range(1, 200)]
    fill(place.journal, calls)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place.logs], check=True)
    try:
        with writer_lock(place.journal), place.running() as keeper:
            until(lambda: place.snapshot().get("state") == "degraded")
            assert "No space left" in str(place.snapshot()["last_error"])
            place.entries()
            subprocess.run(["mount", "-o", "remount,size=64m", place.logs], check=True)
            until(lambda: place.snapshot().get("state") == "ok" and not place.snapshot()["lag_bytes"])
            keeper.terminate()
        place.assert_told_once(calls)
    finally:
        subprocess.run(["umount", place.logs], check=True)


def test_endings_are_told(place: Place) -> None:
    """Every call has a response entry, whichever way it ended."""
    calls = [Call(1 + ending, session="s", ending=ending, error="because") for ending in Ending]
    fill(place.journal, calls)
    place.settle()
    answers = {entry["ending"]: entry for entry in place.entries() if entry["type"] == "response"}
    assert set(answers) == {ending.label for ending in Ending}
    assert all(answer["error"] == "because" for answer in answers.values())


def test_one_odd_exchange_does_not_hold_up_the_rest(place: Place) -> None:
    """What cannot be told, because of a bug of ours, leaves both its entries with the reason."""
    calls = [Call(1, session="s"), Call(2, session="s")]
    fill(place.journal, calls)
    reader = Reader(place.journal)
    batch = reader.read()
    assert batch is not None
    assembler = Assembler((), batch.start)
    items = [Item(one, one.exchange(reader.fetch)) for one in assembler.take(batch) if isinstance(one, Entered)]
    assert items[0].exchange is not None
    items[0].exchange = dataclasses.replace(items[0].exchange, interim=None, first_byte="odd")  # type: ignore[arg-type]
    tally = Tally()
    store = Store(place.state / "sessions.db", str(place.journal))
    teller = Teller("me@here", Options(), place.state, tally.troubles)
    recorder = Recorder(store, Logs(place.logs), "me@here", tally, teller)
    assert recorder.decide(items) == len(items)
    recorder.settle(items, batch.run, batch.end)
    place.assert_told_once(calls)
    (odd,) = [entry for entry in place.entries() if "record_error" in entry]
    assert odd["type"] == "response" and tally.troubles.counts["tell"] == 1
    store.close()
    reader.close()


@pytest.mark.parametrize("table", ["sessions", "journals", "in_flight", "settled", "written", "turns"])
def test_damage_in_any_table_is_told_as_damage(tmp_path: Path, table: str) -> None:
    """Only then is the database moved aside; told as anything else it would be tried for ever."""
    path = tmp_path / "sessions.db"
    Store(path, "j").close()
    link = sqlite3.connect(path)
    (page,) = link.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    link.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    link.close()
    size = int.from_bytes(path.read_bytes()[16:18], "big")
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    with pytest.raises(StoreDamaged):
        store = Store(path, "j")
        store.checkpoint()
        store.settled()
        store.in_flight()
        store.written()
        store.by_id("x")
        store.turns([b"x"])
