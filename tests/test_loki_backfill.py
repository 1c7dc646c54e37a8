"""History goes to Loki by a command: once, oldest first, from where it was broken off, whatever it meets."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakeloki import FakeLoki
from tests.lokibed import LINES, Bed, until
from tests.test_loki_lane import WHOLE, exchanges, expected


@pytest.fixture
def loki():
    with FakeLoki() as server:
        yield server


@pytest.fixture
def bed(environ):
    """Logs and state where the command looks for them."""
    made = Bed(Path(environ["HOME"]), state=".local/state/llm-proxy", logs=".llm-provider-logs")
    made.state.chmod(0o700)
    yield made
    made.close()


@pytest.fixture
def backfill(environ, command):
    """Run it with these settings; the completed process."""

    def run(url, *arguments, text="", status=0):
        configured(environ, f'[loki]\nurl = "{url}"\nenvironment = "test"\nmachine = "desk"\n{text}')
        done = command("loki", "backfill", *arguments)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def configured(environ, text):
    path = Path(environ["HOME"], ".config/llm-proxy/config.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_history_arrives_once_in_streams_of_its_hours(bed, loki, backfill):
    """The lane's own lines but for the label; a second run sends nothing, and asked to nothing that is new."""
    days = [time.time() - days * 86400 for days in (5, 4, 0.5)]
    ids = [id for since in days for id in bed.make(60, per_session=20, since=since)]
    assert f"{expected(180, 20)} entries of 180 calls would be sent" in backfill(loki.url, "--dry-run").stdout
    assert loki.pushes == []
    assert f"{expected(180, 20)} entries of 180 calls sent" in backfill(loki.url).stdout
    found = exchanges(loki)
    assert set(found) == set(ids) and all(kinds == WHOLE for kinds in found.values())
    for entry in loki.entries():
        assert entry.told("backfill") == datetime.fromtimestamp(entry.ts_ns / 1e9, UTC).strftime("%Y-%m-%dT%H")
    again = backfill(loki.url)
    assert "0 entries of 0 calls sent" in again.stdout and "180 calls were sent by an earlier run" in again.stdout
    told = json.loads(backfill(loki.url, "--again", "--json").stdout)
    assert (told["calls"], told["entries"], told["refused"]) == (180, expected(180, 20), 0)
    assert len(loki.entries()) == expected(180, 20) == loki.duplicates


def test_a_range_tells_turns_as_they_stand_in_the_whole_session(bed, loki, backfill):
    """Whenever and in whatever parts it is sent: lines count from the session's first call, ranges need no order."""
    since = time.time() - 3 * 86400
    bed.make(40, per_session=40, since=since, step=3600)  # nearly two days
    middle = datetime.fromtimestamp(since + 20.5 * 3600).isoformat(timespec="seconds")
    backfill(loki.url, "--from", middle)
    assert [entry.json["turn_depth"] for entry in loki.entries(log_type="turn_end")] == list(range(21, 41))
    backfill(loki.url, "--to", middle)
    assert [entry.json["turn_depth"] for entry in loki.entries(log_type="turn_end")] == list(range(1, 41))
    parts = {(entry.labels, entry.ts_ns, entry.text) for entry in loki.entries()}
    with FakeLoki() as other:
        backfill(other.url, "--again")
        assert {(entry.labels, entry.ts_ns, entry.text) for entry in other.entries()} == parts


def test_a_call_that_goes_on_past_the_end_of_a_range_hides_none_behind_it(bed, loki, backfill):
    """It is sent with the range in which it began; what began later and ended sooner comes with the next run."""
    since = time.time() - 86400
    long = bed.make(1, since=since, lasts=3600)
    short = bed.make(3, since=since + 1200)
    backfill(loki.url, "--to", datetime.fromtimestamp(since + 600).isoformat(timespec="seconds"))
    assert set(exchanges(loki)) == set(long)
    backfill(loki.url)
    assert set(exchanges(loki)) == {*long, *short}


def test_what_is_written_to_the_log_late_comes_with_the_next_run(bed, loki, backfill):
    """A run says nothing of calls that it could not see, though they were over when it began."""
    over = time.time() - 600
    bed.make(3, since=over - 600)
    backfill(loki.url)
    late = bed.make(3, since=over)
    backfill(loki.url)
    assert set(late) < set(exchanges(loki)) and len(exchanges(loki)) == 6


def test_broken_off_it_goes_on_where_it_was(bed, loki, backfill, environ):
    """SIGKILL at any moment, then a Loki that is down: the next run sends the rest, and nothing twice but a push."""
    ids = bed.make(2000, since=time.time() - 86400)
    text = f'[loki]\nurl = "{loki.url}"\nenvironment = "test"\nmachine = "desk"\nbatch_size = 100\n'
    configured(environ, text)
    loki.late = 0.02
    command = [sys.executable, "-I", "-m", "llm_proxy", "loki", "backfill"]
    running = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loki.wait(pushes=20, timeout=60)
    running.send_signal(signal.SIGKILL)
    running.wait()
    loki.late = 0
    loki.fail, loki.fail_next = 500, 1
    loki.fail_body = "no"
    broken = backfill(loki.url, text="batch_size = 100\nretry_max = 1\n", status=1)
    assert "llm-proxy: Loki answered 500: no; 0 calls were sent, the next run goes on there" in broken.stderr
    done = backfill(loki.url)
    assert int(re.search(r"(\d+) calls were sent by an earlier run", done.stdout)[1]) > 300
    found = exchanges(loki)
    assert set(found) == set(ids) and all(kinds == WHOLE for kinds in found.values())
    assert loki.duplicates <= 110 and loki.refused == 0


def test_what_loki_finds_too_old_is_told_in_one_line_with_the_setting(bed, loki, backfill):
    """Ten days: counted, not put aside; what is younger arrives; status 1."""
    bed.make(50, since=time.time() - 10 * 86400)
    new = bed.make(50, since=time.time() - 86400)
    done = backfill(loki.url, status=1)
    assert set(exchanges(loki)) == set(new)
    (line,) = [line for line in done.stdout.splitlines() if "reject_old_samples" in line]
    assert line.startswith(f"{expected(50)} entries more are older than Loki takes")
    assert not (bed.state / "parked").exists()


def test_calls_that_are_sent_as_they_end_are_left_to_the_lane(bed, loki, backfill):
    """Without --to the backfill ends where the lane began; both together tell each call once."""
    old = bed.make(30, since=time.time() - 3000)
    bed.begin_at(bed.last())
    bed.lanes(loki.url)
    until(lambda: bed.standing().get("state") == "ok", bed.standing)
    new = bed.make(30, since=time.time() + 0.1)
    loki.wait(entries=expected(30))
    done = backfill(loki.url, text="enabled = true\n")
    assert f"{expected(30)} entries of 30 calls sent" in done.stdout and "are sent as they end" in done.stdout
    found = exchanges(loki)
    assert set(found) == {*old, *new} and all(len(kinds) == LINES for kinds in found.values())
    assert "Loki is off now" not in done.stdout
    assert "Loki is off now: --to has later ones sent too" in backfill(loki.url, text="enabled = false\n").stdout


@pytest.mark.parametrize(
    ("arguments", "text", "words", "status"),
    [
        ((), "", "loki.url is empty, and must be a URL such as http://127.0.0.1:3100", 78),
        (("--from", "soon"), 'url = "http://127.0.0.1:1"', "--from must be", 2),
        (("--from", "today", "--to", "2020-01-01"), 'url = "http://127.0.0.1:1"', "--to must be later than --from", 2),
        (("--provider", "x"), 'url = "http://127.0.0.1:1"', "--provider", 2),
        ((), 'url = "http://127.0.0.1:1"\nretry_max = 1', "refused", 1),
        ((), 'url = "http://127.0.0.1:1"\nauth_token = "a"\nusername = "b"', "both are given", 78),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(bed, environ, command, arguments, text, words, status):
    """The option or the setting, the rule; nothing was sent."""
    bed.make(1)
    configured(environ, f"[loki]\n{text}\n")
    done = command("loki", "backfill", *arguments)
    assert done.returncode == status and words in done.stderr.replace("Connection refused", "refused"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert os.listdir(bed.logs)
