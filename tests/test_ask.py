"""The commands that ask the record: sessions, view, search, tail and stats, on real traffic."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime, timedelta

import pexpect
import pytest

from tests.conftest import _KEPT, Daemon
from tests.recorded import QUESTIONS, Provider, converse, fail


class Home:
    """A user's home, and `llm-proxy` run in it."""

    def __init__(self, folder):
        self.environ = {name: os.environ[name] for name in _KEPT if name in os.environ} | {"HOME": str(folder)}
        self.folder = folder

    def argv(self, *arguments):
        return [sys.executable, "-I", "-m", "llm_proxy", *arguments]

    def run(self, *arguments, status=0, **env):
        done = subprocess.run(self.argv(*arguments), env=self.environ | env, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments, status=0):
        return json.loads(self.run(*arguments, "--json", status=status).stdout)

    def screen(self, *arguments, columns=140, **env):
        """What a person sees on a terminal, escape codes of ours included."""
        child = pexpect.spawn(
            sys.executable,
            self.argv(*arguments)[1:],
            env=self.environ | {"TERM": "xterm-256color"} | env,
            dimensions=(50, columns),
            encoding="utf-8",
            timeout=30,
        )
        text = child.read()
        child.close()
        assert child.exitstatus == 0, text
        return text


@pytest.fixture(scope="module")
def provider():
    alone = Provider()
    yield alone
    alone.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory, provider):
    """Nine calls, recorded; the daemon has gone."""
    made = Home(tmp_path_factory.mktemp("home"))
    daemon = Daemon(made.folder, ("--port", "0"), made.environ, {})
    try:
        converse(daemon, provider.port)
        daemon.entries(until=lambda entries: sum(entry["type"] == "response" for entry in entries) == 9)
    finally:
        daemon.stop()
    return made


@pytest.fixture
def empty(tmp_path):
    return Home(tmp_path)


# --- sessions -------------------------------------------------------------------------------------------------------


def test_sessions_are_conversations_not_calls(home):
    """Turns of one conversation are one session, with its sums; a fork and a chain are told as what they are."""
    rows = home.json("sessions")["sessions"]
    by_title = {}
    for row in rows:
        by_title.setdefault(row["title"], []).append(row)
    (claude,) = by_title[QUESTIONS[0]]
    assert (claude["calls"], claude["models"], claude["errors"]) == (3, ["claude-sonnet-4-6"], 0)
    assert claude["usage"]["output"] > 0 and claude["provider"] == "anthropic"
    (chain,) = by_title["respond please"]
    assert chain["calls"] == 2
    chats = [row for row in rows if row["models"] == ["gpt-4.1-mini"]]
    assert sorted(row["calls"] for row in chats) == [1, 2]
    (fork,) = (row for row in chats if row["forked"])
    (trunk,) = (row for row in chats if not row["forked"])
    assert fork["parent"] == trunk["id"] and fork["parent_seq"] == 1
    assert sum(row["calls"] for row in rows) == 9


def test_a_fork_stands_under_what_it_came_from(home):
    """On the screen too, whichever of them was used last."""
    lines = [line for line in home.screen("sessions").splitlines() if "gpt-4.1-mini" in line]
    assert len(lines) == 2 and "└" not in lines[0] and "└" in lines[1] and "fork" in lines[1]


def test_a_pipe_gets_lines_with_tabs(home):
    """One per session, nothing cut, a time with its day."""
    titles, *rows = home.run("sessions").stdout.splitlines()
    assert titles.split("\t")[0] == "SESSION" and len(rows) == len(home.json("sessions")["sessions"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", row.split("\t")[1]) for row in rows)


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (("--provider", "anthropic"), 4),
        (("--provider", "claude"), 4),
        (("--model", "GPT-4.1"), 3),
        (("--status", "2xx"), 8),
        (("--status", "none"), 1),
        (("--errors",), 1),
        (("--from", "today"), 9),
        (("--from", "1h"), 9),
        (("--to", "yesterday"), 0),
        (("--from", "2w", "--to", "1w"), 0),
        (("--project", "nosuch"), 0),
    ],
)
def test_filters_choose_calls(home, options, calls):
    """The same ones for every command."""
    total = home.json("stats", *options)["total"]
    assert (total["calls"] if total else 0) == calls


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--from", "tomorow", "--from must be a day"),
        ("--to", "2026-13-01", "--to must be a day"),
        ("--status", "99", "--status must be a status"),
        ("--limit", "0", "--limit must be"),
    ],
)
def test_a_bad_value_is_named(home, option, value, says):
    """The option, the rule and the value, in one line; exit status 2."""
    done = home.run("sessions", option, value, status=2)
    assert says in done.stderr and value in done.stderr and done.stderr.count("\n") == 1


def test_times_that_make_no_span_are_named(home):
    """`--to` before `--from`."""
    assert "--to must be later" in home.run("stats", "--from", "today", "--to", "2020-01-01", status=2).stderr


def test_days_are_local_and_utc_is_asked_for(home):
    """A day begins at local midnight; `--utc` changes what is shown."""
    zone = {"TZ": "Pacific/Kiritimati"}  # UTC+14
    here = json.loads(home.run("stats", "--by", "day", "--json", **zone).stdout)["groups"][0]["key"]
    there = json.loads(home.run("stats", "--by", "day", "--json", "--utc", **zone).stdout)["groups"][0]["key"]
    now = datetime.fromisoformat(home.json("stats", "--utc")["total"]["last"].replace("Z", "+00:00"))
    assert there == now.date().isoformat() and here == (now + timedelta(hours=14)).date().isoformat()


# --- view -----------------------------------------------------------------------------------------------------------


def _session(home, title):
    return next(row["id"] for row in home.json("sessions")["sessions"] if row["title"] == title)


def test_a_conversation_tells_each_message_once(home):
    """However often it was sent again; the answers too, and what each call came to."""
    text = home.run("view", _session(home, QUESTIONS[0])).stdout
    for question in QUESTIONS:
        assert text.count(question) == (2 if question == QUESTIONS[0] else 1)  # the first is the title too
    assert text.count("### Assistant") == 3 and text.count("Be terse") == 1
    assert text.count("tokens in") == 3 and text.count("· complete ·") == 3
    assert " · 3 calls\n" in text
    lone = next(row["id"] for row in home.json("sessions")["sessions"] if row["calls"] == 1)
    assert " · 1 call\n" in home.run("view", lone).stdout


def test_a_call_and_its_prefix(home):
    """A prefix will do while it is nobody else's; else the candidates are listed."""
    calls = home.json("view", _session(home, QUESTIONS[0]))["calls"]
    one = calls[1]["id"]
    assert home.run("view", one).stdout.startswith(f"# Call {one}")
    assert home.json("view", one)["calls"][0]["request"]["_meta"]["request_id"] == one
    ambiguous = home.run("view", one[:4], status=1)
    assert one in ambiguous.stderr and "give more of it" in ambiguous.stderr and not ambiguous.stdout
    assert "no call and no session" in home.run("view", "zzz", status=1).stderr


def test_raw_is_what_was_recorded(home):
    """Bodies and streams as they were, with nothing of ours."""
    session = _session(home, QUESTIONS[0])
    raw = home.run("view", session, "--raw").stdout
    assert raw.count('"messages":') == 3 and raw.count("event: message_stop") == 3 and "# " not in raw.split("\n")[0]


def test_last_is_the_session_used_last(home):
    """Without an id it is that."""
    newest = home.json("sessions")["sessions"][0]["id"]
    assert home.json("view")["id"] == home.json("view", "last")["id"] == newest


@pytest.mark.parametrize("arguments", [("sessions",), ("view",), ("tail",), ("search", "unreachable"), ("stats",)])
def test_recorded_text_does_nothing_to_a_terminal(home, arguments):
    """Colours, bells and right-to-left marks of a message are shown, not done."""
    text = _tail_once(home) if arguments == ("tail",) else home.run(*arguments).stdout + home.screen(*arguments)
    assert "\x1b[31mred" not in text and "\x07" not in text and "\u202e" not in text
    if arguments[0] in ("sessions", "view"):
        assert "\\x1b[31mred\\x07" in text


@pytest.mark.parametrize("arguments", [("sessions",), ("search", "unreachable"), ("view",)])
def test_json_does_nothing_to_a_terminal_either(home, arguments):
    """DEL, C1 controls and right-to-left marks, which JSON holds as they are, stand there escaped and mean the same."""
    text = home.run(*arguments, "--json").stdout
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert arguments == ("view",) or "\u202ereversed" in json.dumps(json.loads(text), ensure_ascii=False)


def test_what_was_said_is_seen_on_a_terminal_too(home):
    """Tags do not vanish as Markdown's HTML does, and lines are not joined."""
    shown = re.sub(r"\x1b\[[0-9;]*m", "", home.screen("view"))
    assert re.search(r"\bis *\r\nVec<T> *\r\n", shown)


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120, 200])
@pytest.mark.parametrize("arguments", [("sessions",), ("stats", "--by", "model"), ("stats", "--by", "session")])
def test_a_table_fits_its_terminal(home, arguments, columns):
    """Columns that matter less are left out and named; none is emptied, and no id and no sum is cut."""
    titles, *rows = (row.split("\t") for row in home.run(*arguments).stdout.splitlines())
    told = [title for title, *cells in zip(titles, *rows, strict=True) if any(cells)]
    head, _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", home.screen(*arguments, columns=columns)).splitlines()
    missing = lines.pop().removeprefix("no room here for ").split(", ") if lines[-1].startswith("no room") else []
    assert sorted(head.split() + missing) == sorted(told) and len(lines) == len(rows)
    assert all(len(line) <= columns for line in lines)
    cost = titles.index("COST")
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row[0]) and row[cost] in line
    assert columns < 200 or not missing


# --- search ---------------------------------------------------------------------------------------------------------


def test_search_finds_a_message_once(home):
    """Not once per turn that resent it; with the call that first held it."""
    hits = home.json("search", "rings", "journal")["hits"]
    assert [hit["role"] for hit in hits] == ["user"] and hits[0]["found"] == ["rings", "journal"]
    assert hits[0]["id"] == home.json("view", hits[0]["session"])["calls"][0]["id"]
    assert QUESTIONS[0] in home.run("view", hits[0]["id"]).stdout


def test_search_finds_nothing(home):
    """Exit status 1, as grep's."""
    assert home.json("search", "nosuchwordanywhere", status=1)["hits"] == []
    assert home.run("search", status=2).stderr
    for odd in ('"', "*", "NEAR(", "a OR", "-", "column:x", "('"):
        assert home.run("search", odd, "nosuchwordanywhere", status=1).stdout == "nothing was found\n"


# --- stats ----------------------------------------------------------------------------------------------------------


def test_stats_add_up(home):
    """Groups sum to the total, whatever they are by."""
    total = home.json("stats")["total"]
    assert (total["calls"], total["errors"]) == (9, 1) and total["error_rate"] == 0.1111
    assert (
        set(total["latency_ms"]) == {"p50", "p95", "p99"} and total["latency_ms"]["p99"] >= total["latency_ms"]["p50"]
    )
    for by in ("day", "model", "project", "session", "provider"):
        groups = home.json("stats", "--by", by)["groups"]
        assert sum(row["calls"] for row in groups) == 9
        for name in ("input", "output", "cache_read"):
            assert sum(row["usage"].get(name, 0) for row in groups) == total["usage"][name]
    assert "read from cache" in home.run("stats").stdout
    assert "claude-sonnet-4-6" in home.screen("stats", "--by", "model")


# --- tail -----------------------------------------------------------------------------------------------------------


def _tail_once(home):
    """What the last ten calls look like."""
    child = subprocess.Popen(home.argv("tail"), env=home.environ, stdout=subprocess.PIPE, text=True)
    lines = [child.stdout.readline() for _ in range(9)]
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130
    child.stdout.close()
    return "".join(lines)


def test_tail_tells_calls_as_they_come(tmp_path, provider):
    """Of sessions old and new; open ones as open, and again when they have ended."""
    home = Home(tmp_path)
    daemon = Daemon(home.folder, ("--port", "0"), home.environ, {})
    child = None
    try:
        fail(daemon, "the first")
        daemon.entries(until=lambda entries: sum(entry["type"] == "response" for entry in entries) == 1)
        child = subprocess.Popen(home.argv("tail", "--json"), env=home.environ, stdout=subprocess.PIPE, text=True)
        assert json.loads(child.stdout.readline())["ending"] == "upstream_failed"
        converse(daemon, provider.port)
        told = {}
        deadline = time.monotonic() + 60
        while sum(not call["open"] for call in told.values()) < 9:
            assert time.monotonic() < deadline, told
            call = json.loads(child.stdout.readline())
            told[call["id"]] = call
        assert [call["model"] for call in told.values()].count("gpt-5") == 2
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 130
    finally:
        if child is not None:
            child.kill()
            child.wait()
            child.stdout.close()
        daemon.stop()


def test_tail_ends_where_all_was_uninstalled(empty):
    """It makes nothing anew."""
    log = empty.folder / ".llm-provider-logs/h/2026-01-01/20260101-000000-00000000.jsonl"
    log.parent.mkdir(parents=True)
    meta = {
        "host": "h",
        "session": log.stem,
        "ts": "2026-01-01T00:00:00Z",
        "request_id": "019aa000-0000-7000-8000-00000000",
    }
    log.write_text(
        json.dumps({"type": "request", "seq": 1, "method": "GET", "path": "/v1/models", "_meta": meta}) + "\n"
    )
    child = subprocess.Popen(empty.argv("tail"), env=empty.environ, stdout=subprocess.PIPE, text=True)
    assert "/v1/models" in child.stdout.readline()
    state = empty.folder / ".local/state/llm-proxy"
    state.rename(empty.folder / "gone")
    assert child.wait(20) == 0 and not state.exists()
    child.stdout.close()


# --- always ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("sessions",), ("stats",), ("stats", "--by", "day")])
def test_nothing_recorded_is_no_error(empty, arguments):
    """It says so."""
    assert "is recorded" in empty.run(*arguments).stdout
    empty.json(*arguments)


@pytest.mark.parametrize("arguments", [("sessions",), ("stats", "--json"), ("view",), ("export",)])
def test_a_full_disk_behind_the_output_is_named(home, arguments):
    """The answer cannot be written, and that is all that is said."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(home.argv(*arguments), env=home.environ, stdout=full, stderr=-1, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "llm-proxy: the answer cannot be written: No space left on device\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a read-only copy of the home")
def test_the_index_answers_where_nothing_can_be_written(home, tmp_path):
    """As on a full disk: with what it knows, saying so; without one, no advice that cannot be followed."""
    state = home.folder / ".local/state/llm-proxy"

    def ask(*arguments):
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        argv = ["unshare", "-m", "sh", "-c", script, str(home.folder), *home.argv(*arguments)]
        return subprocess.run(argv, env=home.environ, capture_output=True, text=True, timeout=60)

    with closing(sqlite3.connect(state / "index.db")) as other:  # as a daemon has it
        other.execute("SELECT 1 FROM calls").fetchone()
        done = ask("stats", "--json")
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0 and json.loads(done.stdout)["total"]["calls"] == 9
    assert "cannot be brought up to date" in done.stderr and "may be missing" in done.stderr
    (state / "index.db").rename(tmp_path / "index.db")
    done = ask("stats")
    (tmp_path / "index.db").rename(state / "index.db")
    assert done.returncode == 1 and "Read-only" in done.stderr and "reindex" not in done.stderr


def test_a_reader_that_has_had_enough_is_no_error(home):
    """`| head`."""
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -n 1', "sh", *home.argv("view", _session(home, QUESTIONS[0]))],
        env=home.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("# ") and done.stderr == ""


def test_no_colours_where_none_are_wanted(home):
    """NO_COLOR is minded."""
    assert "\x1b[" in home.screen("search", "journal")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", home.screen("search", "journal", NO_COLOR="1"))


def test_a_missing_index_is_made_from_the_logs(home):
    """It is a cache: gone or damaged, the answers are the same."""
    before = home.json("sessions")
    index = home.folder / ".local/state/llm-proxy/index.db"
    index.write_bytes(b"no database" * 1000)
    for sidecar in index.parent.glob("index.db-*"):
        sidecar.unlink()
    assert home.json("sessions") == before
