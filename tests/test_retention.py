"""Old session files: compressed, without their bodies, deleted; and never anything else."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.keeper import retention
from llm_proxy.keeper.options import Options, Retention, options
from llm_proxy.keeper.store import Key, Seat, Session, Store
from llm_proxy.sinks import log_reader
from scripts.make_logs import make

DAY = 86_400
NOW = 1_795_000_000


@pytest.fixture
def logs(tmp_path):
    """Six sessions, five days apart, all of them closed."""
    root = tmp_path / "logs"
    make(root, calls=60, sessions=6, end=NOW)
    return root


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "sessions.db", "journal")
    yield opened
    opened.close()


def run(logs, store, *, now=NOW, dry=False, **policy):
    return list(retention.run(Retention(**policy), logs, store, now=now, dry=dry))


def content(logs: Path) -> dict[str, list[dict]]:
    """All entries by session."""
    found: dict[str, list[dict]] = {}
    for file in log_reader.files(logs):
        found.setdefault(Path(file).name.partition(".")[0], []).extend(e for _, _, e in log_reader.entries(logs / file))
    return found


def ages(logs: Path) -> dict[str, float]:
    return {file: (NOW - (logs / file).stat().st_mtime) / DAY for file in log_reader.files(logs)}


def test_nothing_is_done_unless_it_is_asked_for(logs, store):
    """All off by default."""
    before = {file: (logs / file).stat() for file in log_reader.files(logs)}
    assert run(logs, store, now=NOW + 10_000 * DAY) == []
    assert {file: (logs / file).stat() for file in log_reader.files(logs)} == before
    assert options(Options().to_json()).retention == Retention()


def test_age(logs, store):
    """What is older goes, with its empty folders; what is younger stays."""
    old = {file for file, age in ages(logs).items() if age > 12}
    done = run(logs, store, days=12)
    assert {one.file for one in done} == old and {one.kind for one in done} == {"delete"}
    assert all(age <= 12 for age in ages(logs).values()) and len(ages(logs)) == 6 - len(old) > 0
    assert not any((logs / file).parent.exists() for file in old)


def test_compression_keeps_every_line_and_the_time(logs, store):
    """Smaller, at the same age, with the same lines at the same places; young files stay as they are."""
    before, old = content(logs), ages(logs)
    places = {f: [(at, n) for at, n, _ in log_reader.entries(logs / f)] for f in log_reader.files(logs)}
    done = run(logs, store, compress_days=12)
    assert 0 < len(done) < 6
    for one in done:
        file = one.file + ".zst"
        assert not (logs / one.file).exists() and (logs / file).stat().st_mode & 0o777 == 0o600
        assert one.after == (logs / file).stat().st_size < one.before / 4
        assert ages(logs)[file] == pytest.approx(old[one.file])
        assert [(at, n) for at, n, _ in log_reader.entries(logs / file)] == places[one.file]
    assert content(logs) == before
    assert run(logs, store, compress_days=12) == []


def test_a_session_that_goes_on_after_compression_becomes_one_file_again(logs, store):
    """Its new part is put behind the old one, also where the last attempt was killed before its last step."""
    file = next(iter(log_reader.files(logs)))
    whole = (logs / file).read_bytes()
    half = whole.index(b"\n", len(whole) // 2) + 1
    times = ((logs / file).stat().st_mtime,) * 2
    (logs / file).write_bytes(whole[:half])
    os.utime(logs / file, times)
    before = content(logs)
    run(logs, store, compress_days=20)
    second = before[Path(file).stem][0]
    (logs / file).write_bytes(json.dumps(second).encode() + b"\n" + whole[half:])
    os.utime(logs / file, times)
    plain = (logs / file).read_bytes()
    assert [one.kind for one in run(logs, store, compress_days=20)] == ["compress"]
    packed = logs / f"{file}.zst"
    with log_reader.opened(packed) as read:
        assert read.read() == whole[:half] + plain
    (logs / file).write_bytes(plain)  # killed between replacing the one and removing the other
    os.utime(logs / file, times)
    run(logs, store, compress_days=20)
    assert not (logs / file).exists()
    with log_reader.opened(packed) as read:
        assert read.read() == whole[:half] + plain


def test_bodies_go_and_figures_stay(logs, store, tmp_path):
    """Tokens, cost, times, status and headers outlive what was said, in the log and in the index."""
    indexer = Indexer(tmp_path / "index.db", logs)
    indexer.catch_up_all()
    with open_index(indexer.path) as index:
        before, sums = {call.id: call for call in index.calls(Filter())}, index.stats(Filter(), "model")
        words = " ".join(
            piece for piece, _ in index.search(index.sessions(Filter())[-1].title.split()[0], Filter())[0].pieces
        )
        assert words
    done = run(logs, store, bodies_days=12)
    assert {one.kind for one in done} == {"strip"} and all(one.after < one.before / 4 for one in done)
    indexer.catch_up_all()
    stripped = {Path(one.file).name.partition(".")[0] for one in done}
    for session, entries in content(logs).items():
        said = [entry for entry in entries if "body" in entry or "chunks" in entry]
        assert bool(said) == (session not in stripped)
        assert {entry.get("left_out") for entry in entries[1:]} == {"expired" if session in stripped else None}
    with open_index(indexer.path) as index:
        assert index.stats(Filter(), "model") == sums
        for call in index.calls(Filter()):
            known = before[call.id]
            assert (call.usage, call.usd, call.status, call.model, call.total_ms, call.failed) == (
                (known.usage, known.usd, known.status, known.model, known.total_ms, known.failed)
            )
        titles = {row.id: row.title for row in index.sessions(Filter())}
        assert all(bool(title) == (session not in stripped) for session, title in titles.items())
    assert run(logs, store, bodies_days=12) == []
    indexer.close()


def test_logs_without_digests_are_understood_before_their_bodies_go(tmp_path, store):
    """Usage that only the body told stands in the entry afterwards."""
    root = tmp_path / "old"
    made = make(root, calls=10, sessions=1, end=NOW - 40 * DAY, digests=False)
    run(root, store, bodies_days=1)
    (entries,) = content(root).values()
    told = [entry["digest"] for entry in entries if entry["type"] == "response"]
    assert len(told) == 10 and not any("chunks" in entry for entry in entries)
    assert sum(digest.get("usage", {}).get("output", 0) for digest in told) == made["output_tokens"]


def test_what_was_said_in_odd_entries_goes_too(logs, store):
    """Messages of a WebSocket, and what only looks like such."""
    file = next(iter(log_reader.files(logs)))
    start = next(log_reader.entries(logs / file))[2]
    said = [
        {"websocket": {"messages": [{"from": "client", "type": "text", "raw": "secret"}], "client_raw": "secret"}},
        {"websocket": {"messages": ["secret"]}},
        {"websocket": "secret", "chunks": "secret", "body": ["secret"]},
        {"_meta": ["x"], "body": "secret"},
        {"type": "unheard", "body": "secret"},
    ]
    with (logs / file).open("w") as out:
        for entry in (start, *({"_meta": start["_meta"], "type": "response"} | one for one in said)):
            out.write(json.dumps(entry) + "\n")
        out.write('{"type": "response", "body": "secret torn')
    os.utime(logs / file, (NOW - 40 * DAY,) * 2)
    assert [one.file for one in run(logs, store, bodies_days=35)] == [file]
    assert "secret" not in (logs / file).read_text()
    (messages,) = [e["websocket"]["messages"] for _, _, e in log_reader.entries(logs / file) if "websocket" in e]
    assert messages == [{"from": "client", "type": "text"}]


def test_bodies_of_compressed_files_and_of_what_came_later_go_too(logs, store):
    """A file whose session went on is looked at again."""
    run(logs, store, compress_days=20)
    (packed,) = [file for file in log_reader.files(logs) if file.endswith(".zst")][:1]
    assert [one.kind for one in run(logs, store, bodies_days=25) if one.file == packed] == ["strip"]
    assert run(logs, store, bodies_days=25) == []
    assert not any("body" in entry for _, _, entry in log_reader.entries(logs / packed))
    plain = packed.removesuffix(".zst")
    start = next(log_reader.entries(logs / packed))[2]
    start.pop(retention.REMOVED)
    with (logs / plain).open("w") as file:
        file.write(json.dumps(start) + "\n")
        file.write(json.dumps(start | {"type": "request", "body": "later"}) + "\n")
    os.utime(logs / plain, (NOW - 30 * DAY,) * 2)
    kinds = [one.kind for one in run(logs, store, bodies_days=25, compress_days=25)]
    assert kinds == ["strip", "compress"]
    assert not any("body" in entry for _, _, entry in log_reader.entries(logs / packed))


def test_bodies_that_were_written_after_the_others_went_go_too(logs, store):
    """A session may go on in its file, and be closed again."""
    (file,) = {one.file for one in run(logs, store, bodies_days=28)}
    with (logs / file).open("a") as later:
        later.write(json.dumps({"type": "request", "body": "later"}) + "\n")
    os.utime(logs / file, (NOW - 29 * DAY,) * 2)
    assert [one.file for one in run(logs, store, bodies_days=28)] == [file]
    assert not any("body" in entry for _, _, entry in log_reader.entries(logs / file))
    assert run(logs, store, bodies_days=28) == []


def test_a_disk_cap_holds(logs, store):
    """The oldest go first, and no more than needed."""
    sizes = {file: (logs / file).stat().st_size for file in log_reader.files(logs)}
    oldest = sorted(sizes, key=lambda file: ages(logs)[file], reverse=True)
    cap = sum(sizes.values()) - sizes[oldest[0]] - 1
    done = run(logs, store, max_size=cap)
    assert [one.file for one in done] == oldest[:2]
    assert sum((logs / file).stat().st_size for file in log_reader.files(logs)) <= cap
    assert run(logs, store, max_size=cap) == []


def test_the_cap_counts_what_compression_has_saved(logs, store):
    """What fits once it is compressed need not go."""
    total = sum((logs / file).stat().st_size for file in log_reader.files(logs))
    assert {one.kind for one in run(logs, store, compress_days=3, max_size=total // 2)} == {"compress"}


def test_a_dry_run_says_and_does_nothing(logs, store):
    """The same steps, the files untouched."""
    before = {file: (logs / file).read_bytes() for file in log_reader.files(logs)}
    policy = {"days": 20, "bodies_days": 12, "compress_days": 3, "max_size": 1}
    said = run(logs, store, dry=True, **policy)
    assert {file: (logs / file).read_bytes() for file in log_reader.files(logs)} == before
    assert {one.kind for one in said} == {"delete", "strip", "compress"}
    assert len({one.file for one in said if one.kind == "delete"}) == sum(one.kind == "delete" for one in said) == 6


def test_what_is_not_closed_is_left_alone(logs, store):
    """Neither a session written to lately, nor one with an open call, however old its file is."""
    files = list(log_reader.files(logs))
    os.utime(logs / files[0], (NOW - DAY,) * 2)
    key = Key(str(logs), "anthropic", "api.anthropic.com", "id:x")
    name = Path(files[1]).stem
    with store.transaction():
        store.add(Session(name, key, "", files[1], 1, 1, NOW))
        store.take_off([(uuid4(), Seat(name, 1))])
    everything = {"days": 1, "bodies_days": 1, "compress_days": 1, "max_size": 1}
    gone = {one.file for one in run(logs, store, **everything)}
    assert gone == set(files[2:])
    assert (logs / files[0]).exists() and (logs / files[1]).exists()


def test_what_is_not_ours_is_never_touched(logs, store):
    """Names, folders, links and first lines that no session log of ours has."""
    entry = {"type": "session_start", "_meta": {"session": "a"}}
    files = {
        "notes.jsonl": entry,
        "recording-gaps.jsonl": {"type": "gap"},
        "api.host/a.jsonl": entry,
        "api.host/letters/a.jsonl": entry,
        "api.host/2026-01-01/a.txt": entry,
        "api.host/2026-01-01/b.jsonl": entry,  # the session of another file
        "api.host/2026-01-01/c.jsonl": {"type": "letter", "_meta": {"session": "c"}},
        "api.host/2026-01-01/d.jsonl": ["d"],
    }
    for file, said in files.items():
        path = logs / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said) + "\n")
        os.utime(path, (0, 0))
    (logs / "api.host/2026-01-01/e.jsonl").symlink_to(logs / "notes.jsonl")
    (logs / "api.host/2026-01-01/f.jsonl").write_bytes(b"")
    os.utime(logs / "api.host/2026-01-01/f.jsonl", (0, 0))
    run(logs, store, days=3, bodies_days=1, compress_days=1, max_size=1, now=NOW + 100 * DAY)
    assert {file: json.loads((logs / file).read_text()) for file in files} == files
    assert (logs / "api.host/2026-01-01/e.jsonl").is_symlink()
    assert list(log_reader.files(logs)) == [
        f"api.host/{n}.jsonl" for n in ("a", *(f"2026-01-01/{x}" for x in "bcdf"), "letters/a")
    ]


@pytest.mark.parametrize("kind", ["compress", "strip", "delete"])
def test_a_file_written_to_meanwhile_is_left_alone(logs, store, kind):
    """Closed when it was looked at, open when its turn comes: nothing is lost."""
    file = next(retention.session_files(logs))
    hand = retention._Hand(logs, store, False)
    real = store.transaction
    line = b'{"type":"request"}\n'

    def late():
        with (logs / file.path).open("ab") as other:
            other.write(line)
        return real()

    before = (logs / file.path).read_bytes()
    store.transaction = late
    assert list(hand.do(kind, file)) == []
    assert (logs / file.path).read_bytes() == before + line
    assert [one.name for one in (logs / file.path).parent.iterdir()] == [Path(file.path).name]


def test_a_kill_at_any_moment_loses_no_line(tmp_path, store):
    """Compression is killed at random: the lines are always there once, in one file or the other."""
    root = tmp_path / "big"
    make(root, calls=40, sessions=1, end=NOW - 50 * DAY)
    before = content(root)
    chance = random.Random(4)
    code = "from tests.test_retention import *; import sys; s = Store(Path(sys.argv[2]), 'j'); print('r', flush=True); "
    code += "run(Path(sys.argv[1]), s, compress_days=1)"
    for attempt in itertools.count():
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(root), str(tmp_path / "s.db")], stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"r\n"
        time.sleep(chance.random() * 0.01 * (attempt + 1))  # the moment of the kill is the point
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
        assert all(entries in (before[name], before[name] * 2) for name, entries in content(root).items())
        if process.returncode == 0:
            break
    assert content(root) == before
    run(root, store, compress_days=1)
    assert [file.endswith(".zst") for file in log_reader.files(root)] == [True]
