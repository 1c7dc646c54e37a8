"""`llm-proxy import`: logs of five programs and five eras become session logs like those of live calls."""

import base64
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_proxy.formats.reading import files
from llm_proxy.sinks import session_jsonl
from tests import oldlogs
from tests.conftest import Daemon
from tests.logpage import untold
from tests.oldlogs import (
    JWT,
    Reference,
    answer,
    append,
    claude_trace,
    events,
    go,
    gzipped,
    moment,
    proxy_llm,
    question,
    sse,
    taco,
)
from tests.recorded import converse
from tests.test_ask import Home, provider
from tests.test_ask import home as recorded

__all__ = ["provider", "recorded"]

KEY = "sk-ant-api03-abcdefghijklmnop"


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return Home(tmp_path / "home")


@pytest.fixture
def old(tmp_path):
    return tmp_path / "old"


def _calls(home):
    """All calls with their entries, by time."""
    found = [call for row in home.json("sessions")["sessions"] for call in home.json("view", row["id"])["calls"]]
    return sorted(found, key=lambda call: (call["request"]["_meta"]["ts"], call["seq"]))


def _log(home):
    """Everything that stands in the log folder."""
    return b"".join(path.read_bytes() for path in sorted((home.folder / ".llm-provider-logs").rglob("*.jsonl")))


def _stream(entry):
    return "".join(chunk["raw"] for chunk in entry["chunks"])


def _reasons(done):
    return {one["why"]: one["times"] for one in done["skipped_calls"]}


# --- the reference program ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", range(5))
def test_every_era_of_the_reference(home, old, era):
    """Its own ids where it had them, its times, bodies as they were, understood and counted like live calls."""
    log = Reference(old, era).start()
    first = log.call(question("hello <there>"), answer("Hi & hello"))
    log.call(question("hello <there>", "Hi & hello", "go on"), "Going on then", at=5)
    done = home.json("import", str(old))
    assert (done["new"], done["sessions"], done["skipped_calls"], done["skipped_files"]) == (2, 1, [], [])
    assert done["files"] == {"llm-proxy (Go)": 1}
    one, two = _calls(home)
    if era >= 3:
        assert one["id"] == first
    assert one["request"]["body"] == json.dumps(question("hello <there>"))
    assert one["request"]["_meta"]["machine"] == (oldlogs.MACHINE if era >= 2 else "unknown@unknown")
    assert one["request"]["_meta"]["ts"] == moment() and one["request"]["_meta"]["host"] == "api.anthropic.com"
    assert one["request"]["imported"] == {"format": "llm-proxy (Go)"} | ({"session": log.name} if era >= 2 else {})
    assert one["response"]["timing"] == {"ttfb_ms": 300, "total_ms": 450} and one["response"]["ending"] == "complete"
    assert one["response"]["digest"]["usage"] == {"input": 12, "output": 5} and one["response"]["price"]["usd"]
    assert _stream(two["response"]) == sse("Going on then") and two["response"]["size"] == len(sse("Going on then"))
    # Its `ttfb_ms` of streams began at the head; when that came its chunks tell.
    assert two["response"]["timing"] == {"ttfb_ms": 300, "first_token_ms": 420, "total_ms": 900}
    assert two["response"]["chunks"][1]["delta_ms"] == 60
    assert two["response"]["digest"]["usage"] == {"input": 12, "output": 7}
    assert [call["seq"] for call in (one, two)] == [1, 2]
    assert not untold(one["request"]) + untold(two["request"])


def test_a_conversation_in_many_files_is_one_session(home, old):
    """The last era wrote a file for each request of a client without ids; a branch is a fork here, too."""
    texts = ["begin", "first answer", "more", "second answer", "end", "third answer"]
    for number in range(3):
        name = f"20260203-10000{number}-0000000{number}"
        said = texts[: 2 * number + 1]
        log = Reference(old, 4, name=name).start(number)
        log.call(question(*said), answer(texts[2 * number + 1]), at=number * 10)
    branch = Reference(old, 4, name="20260203-110000-0000000f").start(60)
    branch.call(question("begin", "first answer", "elsewhere"), answer("other"), at=60)
    alike = Reference(old, 4, name="20260203-110000-0000000e").start(70)
    alike.call(question("begin"), answer("a stranger's"), at=70)
    assert home.json("import", str(old))["sessions"] == 3
    rows = home.json("sessions")["sessions"]
    assert sorted(row["calls"] for row in rows) == [1, 1, 3]
    (fork,) = (row for row in rows if row["forked"])
    (trunk,) = (row for row in rows if row["calls"] == 3)
    assert fork["parent"] == trunk["id"] and fork["parent_seq"] == 1


def test_what_a_file_holds_is_told_by_the_bodies(home, old):
    """Ids that collided had put two conversations into one file, of two clients and upstreams."""
    log = Reference(old, 4).start()
    log.call(question("a", metadata={"user_id": "user_x_session_aaaa"}), answer("b"))
    log.call(question("c", metadata={"user_id": "user_x_session_bbbb"}), answer("d"), at=1)
    log.call(question("e", metadata={"user_id": "user_x_session_aaaa"}), answer("f"), at=2)
    home.run("import", str(old))
    rows = home.json("sessions")["sessions"]
    assert {row["client_session"]: row["calls"] for row in rows} == {"aaaa": 2, "bbbb": 1}


@pytest.mark.parametrize("era", (1, 2, 3))
def test_copied_lines_of_forks_count_once(home, old, era):
    """A fork's file began with its parent's lines, word for word; the answer of the last was perhaps still to come."""
    parent = Reference(old, era, name="20260203-100000-aaaaaaaa").start()
    parent.call(question("a"), answer("b"))
    parent.call(question("a", "b", "c"), answer("d"), at=5)
    child = Reference(old, era, name="20260203-100010-bbbbbbbb")
    child.path.write_bytes(b"".join(parent.path.read_bytes().splitlines(keepends=True)[:4]))
    fork = child.entry("fork", 10, from_seq=1, parent_session=parent.name, reason="message_history_diverged")
    append(child.path, fork)
    child.start(10).call(question("a", "b", "x"), answer("y"), at=10)
    done = home.json("import", str(old))
    assert (done["new"], done["copies"], done["sessions"]) == (3, 2, 2) and not done["skipped_calls"]
    assert {call["response"]["ending"] for call in _calls(home)} == {"complete"}
    assert sum(row["forked"] for row in home.json("sessions")["sessions"]) == 1


def test_calls_without_an_answer_are_calls(home, old):
    """The reference wrote none where a stream broke off. Nobody knows more, and that is what is said."""
    log = Reference(old, 4).start()
    lost = log.call(question("lost"), None)
    log.call(question("had"), answer("yes"), at=3)
    assert home.json("import", str(old))["new"] == 2
    (call,) = (call for call in _calls(home) if call["id"] == lost)
    assert (call["response"]["status"], call["response"]["ending"]) == (None, "interrupted")
    assert "no answer" in call["response"]["error"] and call["response"]["timing"] == {}


def test_live_secrets_of_old_logs_are_masked(home, old):
    """A JWT's claims, cookies both ways, other vendors' key headers, secrets in bodies; what was masked stays so."""
    log = Reference(old, 4).start()
    sent = {
        "Authorization": [f"Bearer {JWT}"],
        "Cookie": ["session=live-cookie"],
        "X-Goog-Api-Key": ["AIzaSyA-live-google-key-0123456789abcde"],
    }
    got = {"Content-Type": ["application/json"], "Set-Cookie": ["a=live-set-cookie; HttpOnly"]}
    log.call(question("my key is AKIAIOSFODNN7EXAMPLE"), answer("ok"), headers=sent, reply_headers=got)
    append(old / "t.jsonl", taco(question("x"), answer("y"), at=9))
    home.run("import", str(old))
    written = _log(home)
    for secret in (
        JWT,
        "c2lnbmF0dXJl",
        "eyJzdWIi",
        "live-cookie",
        "live-google",
        "live-set",
        KEY,
        "AKIAIOSFODNN7EXAMPLE",
    ):
        assert secret.encode() not in written
    first, second = _calls(home)
    assert first["request"]["headers"]["X-Api-Key"] == ["sk-ant-...mnop"] == second["request"]["headers"]["X-Api-Key"]


def test_damaged_bodies_say_so(home, old):
    """Compressed bytes that were forced into text are gone; their size is not. Other text stays as far as it is there."""
    log = Reference(old, 4).start()
    torn = gzip.compress(json.dumps(answer("x")).encode()).decode("utf-8", "replace")
    coded = {"Content-Type": ["application/json"], "Content-Encoding": ["gzip"]}
    log.call(question("a"), {}, reply_headers=coded)
    lines = log.path.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[-1]) | {"body": torn, "size": 321}
    log.path.write_bytes(b"".join([*lines[:-1], go(entry) + b"\n"]))
    log.call("caf\ufffd", answer("b"), at=5)
    home.run("import", str(old))
    gone, kept = _calls(home)
    assert gone["response"]["body"] == "" and gone["response"]["truncated"] == "damaged"
    assert gone["response"]["size"] == 321 and gone["request"]["imported"]["damaged"] is True
    assert gone["response"]["headers"]["Content-Encoding"] == ["gzip"] and "decode_error" not in gone["response"]
    assert kept["request"]["body"] == "caf\ufffd" and kept["request"]["imported"]["damaged"] is True


def test_bedrock_streams_of_the_reference(home, old):
    """Only what was inside the frames is left of them; it is understood, now and when the index is made again."""
    log = Reference(old, 4, upstream="bedrock-runtime.us-west-2.amazonaws.com").start()
    lines = [f"data: {json.dumps(data)}" for _, data in events("Out of frames")]
    media = {"Content-Type": ["application/vnd.amazon.eventstream"]}
    path = "/model/us.anthropic.claude-haiku-4-5-20251001-v1:0/invoke-with-response-stream"
    log.call(question("hi"), lines, path=path, reply_headers=media)
    home.run("import", str(old))
    (call,) = _calls(home)
    assert call["response"]["headers"] == media and call["response"]["digest"]["usage"] == {"input": 12, "output": 7}
    assert call["response"]["timing"] == {"total_ms": 900}  # its own `ttfb_ms` is when all was there
    assert {chunk["delta_ms"] for chunk in call["response"]["chunks"]} == {0}
    home.run("reindex")
    assert home.json("stats")["total"]["usage"] == {"input": 12, "output": 7}
    assert home.json("search", "frames")["hits"]


def test_odd_lines_are_counted_with_their_reason(home, old):
    """A torn end, no JSON, unknown types, answers alone, no time, no path: the rest of the file is imported."""
    log = Reference(old, 2).start()
    log.call(question("good"), answer("yes"))
    good = log.path.read_bytes()
    ends = [
        go(log.entry("response", 1, seq=77, status=200, headers=None, body="x", size=1)),
        go(log.entry("weather", 1)),
        go({"type": "request", "_meta": {}, "seq": 9, "method": "GET", "path": "/", "headers": None, "body": ""}),
        go(log.entry("request", 1, seq=10, method="GET", path="", headers=None, body="", size=0)),
        b"[1, 2]",
        b"no json",
        b"",
        go(log.entry("request", 2, seq=11))[:40],
    ]
    log.path.write_bytes(good + b"\n".join(ends))
    done = home.json("import", str(old))
    assert done["new"] == 1
    assert _reasons(done) == {
        "an answer stands without its request": 1,
        "entries of this type are not known": 1,
        "it tells no time": 1,
        "the path is none": 1,
        "it is not what this format's lines are": 3,
    }
    assert all(one["first"] == str(log.path) for one in done["skipped_calls"])
    said = home.run("import", str(old)).stdout
    assert "1 were in the record already" in said and "3 calls or lines: it is not what" in said


# --- the others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ("code", "readme"))
def test_taco(home, old, spelling):
    """JSON to the digit, streams, gzip bodies unpacked; hosts are the providers' own."""
    number = b'{"messages":[{"role":"user","content":"a"}],"model":"claude-sonnet-4-6","x":12345678901234567890.10}'
    packed = gzip.compress(json.dumps(answer("packed")).encode())
    second = taco(question("b"), f"base64:{base64.b64encode(packed).decode()}", at=5, spelling=spelling)
    second["response"]["headers"]["Content-Encoding"] = ["gzip"]
    exact = json.dumps(taco("BODY", sse("Streamed at last"), spelling=spelling)).encode().replace(b'"BODY"', number)
    other = taco({"contents": []}, {}, at=9, spelling=spelling, provider="gemini")
    other["request"] |= {
        "path": "/v1beta/models/gemini-2.5-pro:generateContent",
        "query": "key=live-google-key&alt=sse",
    }
    append(old / "recordings-2026-02-03.jsonl", exact + b"\n", second, other)
    done = home.json("import", str(old))
    assert (done["new"], done["files"]) == (3, {"Taco": 1}) and not done["skipped_calls"]
    one, two, three = _calls(home)
    assert one["request"]["body"].encode() == number and one["request"]["_meta"]["ts"] == moment()
    assert one["response"]["timing"] == {"total_ms": 500} and one["request"]["_meta"]["host"] == "api.anthropic.com"
    assert _stream(one["response"]) == sse("Streamed at last")
    assert json.loads(two["response"]["body"]) == answer("packed") and two["response"]["content_encoding"] == "gzip"
    assert two["response"]["size"] == len(packed) and two["id"] == second["id"]
    assert three["request"]["_meta"]["host"] == "generativelanguage.googleapis.com"
    assert three["request"]["query"].endswith("&alt=sse") and b"live-google-key" not in _log(home)


@pytest.mark.parametrize("id", ("52153180-83e7-40f9-b9eb-29c9b3d41658", "5215318083e740f9b9eb29c9b3d41658"))
def test_a_uuid_of_digits_is_no_day(home, old, id):
    append(old / "recordings-2026-02-03.jsonl", taco(question("a"), answer("b"), id=id))
    home.run("import", str(old))
    (call,) = _calls(home)
    assert call["id"] == str(uuid.UUID(id))


def test_mirra(home, old):
    """Dated ids keep their UUID; a 502 of its own is no answer of the provider."""
    dated = "20260203-" + (id := str(uuid.uuid4()))
    failed = taco(question("a"), None, id=dated, error="dial tcp: refused", responseSize=0)
    failed["response"]["status"] = 502
    append(old / "recordings-2026-02-03.jsonl", failed)
    home.run("import", str(old))
    (call,) = _calls(home)
    assert call["id"] == id and call["request"]["imported"] == {"format": "Taco", "id": dated}
    assert (call["response"]["status"], call["response"]["answered"]) == (None, 502)
    assert (call["response"]["ending"], call["response"]["error"]) == ("upstream_failed", "dial tcp: refused")


def test_claude_trace(home, old):
    """Bodies that the client had unpacked already stand there unpacked, beside the head that says they were not."""
    append(
        old / ".claude-trace" / "log-2026-02-03-10-00-00.jsonl",
        claude_trace(question("begin"), answer("first")),
        claude_trace(question("begin", "first", "more"), sse("and second"), at=5),
        claude_trace(question("orphan"), None, at=9),
    )
    done = home.json("import", str(old))
    assert (done["new"], done["sessions"], done["files"]) == (3, 2, {"claude-trace": 1})
    one, two, three = _calls(home)
    assert json.loads(one["request"]["body"]) == question("begin") and one["request"]["query"] == "beta=true"
    assert one["response"]["timing"] == {"ttfb_ms": 250, "total_ms": 1000}
    assert one["response"]["content_encoding"] == "gzip" and json.loads(one["response"]["body"]) == answer("first")
    assert one["response"]["headers"]["Content-Encoding"] == ["gzip"] and "decode_error" not in one["response"]
    assert _stream(two["response"]) == sse("and second") and two["response"]["digest"]["usage"]["output"] == 7
    assert three["response"]["ending"] == "interrupted"
    assert b"live-one" not in _log(home)


def test_proxy_llm(home, old):
    """Either layout, gzip line by line; streams from their pieces; bodies that are not told are made of the messages."""
    chat = {"model": "qwen", "messages": [{"role": "user", "content": "ask"}]}
    reply = {"choices": [{"message": {"role": "assistant", "content": "told"}, "finish_reason": "stop"}]}
    plain = proxy_llm(
        "req_1_1", "chat/completions", chat, reply | {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    )
    streamed = proxy_llm("req_2_2", "messages", question("stream"), None, at=5, stream=True, duration="1m2.5s")
    rebuilt = proxy_llm(
        "req_3_3",
        "messages",
        None,
        answer("kept"),
        at=9,
        messages=[{"role": "user", "content": "made"}],
        session_id="mine",
    )
    left = proxy_llm("req_4_4", "chat/completions", chat, None, at=12, status_code=499, error="client disconnected")
    gzipped(old / "20260203" / "session_qwen_20260203.jsonl.gz", plain, streamed)
    leftover = home.folder / ".local/state/llm-proxy/import/0"
    append(leftover, b"of an import that was killed")
    append(old / "session_qwen" / "session_qwen_20260203_100009.jsonl", rebuilt, left)
    said = sse("in pieces")
    pieces = [
        {"id": "req_2_2", "chunk": text, "timestamp": moment(5 + place), "session_id": "session_qwen", "index": place}
        for place, text in enumerate((said[:100], said[100:]), start=1)
    ]
    append(old / "20260203" / "streams" / "session_qwen_20260203.jsonl", *reversed(pieces))
    done = home.json("import", str(old))
    assert (done["new"], done["files"]) == (4, {"proxy-llm": 3}) and not done["skipped_calls"]
    assert not leftover.parent.exists()
    one, two, three, four = _calls(home)
    assert one["request"]["path"] == "/v1/chat/completions" and one["response"]["timing"] == {"total_ms": 42}
    assert (
        one["response"]["digest"]["usage"] == {"input": 3, "output": 2}
        and one["request"]["imported"]["id"] == "req_1_1"
    )
    assert _stream(two["response"]) == said and two["response"]["timing"] == {
        "ttfb_ms": 1000,
        "first_token_ms": 2000,
        "total_ms": 62500,
    }
    assert json.loads(three["request"]["body"])["messages"] == [{"role": "user", "content": "made"}]
    assert three["request"]["imported"]["rebuilt"] is True and "rebuilt" not in one["request"]["imported"]
    assert three["request"]["headers"] == {"X-Session-Id": ["mine"]}
    assert (four["response"]["ending"], four["response"]["status"]) == ("client_gone", None)


def test_what_taco_exports_of_real_calls_comes_back(home, recorded, tmp_path):
    """Nine live calls, exported and imported elsewhere: the same ids, tokens, models, conversations."""
    home.folder.mkdir(exist_ok=True)
    recorded.run("export", "--format", "taco", "--output", str(tmp_path / "recordings-now.jsonl"))
    done = home.json("import", str(tmp_path / "recordings-now.jsonl"))
    assert done["new"] == 9 and not done["skipped_calls"]
    there, here = ({call["id"]: call for call in _calls(one)} for one in (recorded, home))
    assert there.keys() == here.keys()
    for id, call in there.items():
        told = here[id]
        assert json.loads(told["request"]["body"]) == json.loads(call["request"]["body"])
        assert told["response"]["status"] == call["response"]["status"]
        assert told["response"].get("digest", {}).get("usage") == call["response"].get("digest", {}).get("usage")
        if "chunks" in call["response"]:
            assert _stream(told["response"]) == _stream(call["response"])
    totals = [one.json("stats")["total"]["usage"] for one in (recorded, home)]
    assert totals[0] == totals[1]
    assert [sorted(row["calls"] for row in one.json("sessions")["sessions"]) for one in (recorded, home)][1] == [
        1,
        1,
        2,
        2,
        3,
    ]


# --- what is true of all --------------------------------------------------------------------------------------------


def test_twice_is_once(home, old):
    """Also from another place, after the index and all the state are gone, and beside new calls."""
    log = Reference(old, 1).start()
    log.call(question("a"), answer("b"))
    log.call(question("z"), None, at=3)
    append(old / "trace.jsonl", claude_trace(question("c"), answer("d")))
    append(old / "taco.jsonl", taco("e", "f"), taco("g", "h", id="no uuid"))
    assert home.json("import", str(old))["new"] == 5
    before = _log(home)
    elsewhere = old.rename(old.with_name("elsewhere"))
    again = home.json("import", str(elsewhere))
    assert (again["new"], again["already"]) == (0, 5) and _log(home) == before
    shutil.rmtree(home.folder / ".local")
    assert home.json("import", str(elsewhere))["new"] == 0 and _log(home) == before
    log.path = next(elsewhere.rglob(log.path.name))
    log.call(question("new"), answer("one"), at=60)
    again = home.json("import", str(elsewhere))
    assert (again["new"], again["already"]) == (1, 5) and _log(home) != before


def test_a_dry_run_writes_nothing(home, old):
    """It says the same as the run that follows."""
    Reference(old, 4).start().call(question("a"), answer("b"))
    would = home.json("import", str(old), "--dry-run")
    assert not list((home.folder / ".llm-provider-logs").rglob("*.jsonl"))
    done = home.json("import", str(old))
    assert would["new"] == done["new"] == 1 and would["files"] == done["files"]
    assert "1 imported" in home.run("import", str(old), "--log-dir", str(home.folder / "other")).stdout


def test_what_cannot_be_imported_is_said(home, old, recorded):
    """Nothing there, our own log folder, our own logs, other files."""
    assert "there is no" in home.run("import", str(old), status=1).stderr
    logs = home.folder / ".llm-provider-logs"
    append(logs / "x" / "y.jsonl", {"a": 1})
    for path in (logs, logs / "x" / "y.jsonl"):
        assert "outside the log folder" in home.run("import", str(path), status=2).stderr
    own = next((recorded.folder / ".llm-provider-logs").rglob("*.jsonl"))
    old.mkdir()
    shutil.copy(own, old)
    append(old / "strange.jsonl", {"hello": "world"})
    (old / "broken.jsonl.gz").write_bytes(gzip.compress(b"{}" * 999)[:20])
    (old / "link.jsonl").symlink_to(old / "nowhere")
    os.mkfifo(old / "pipe.jsonl")
    done = home.json("import", str(old), status=1)
    assert sorted(one["why"] for one in done["skipped_files"]) == [
        "cannot be read: Compressed file ended before the end-of-stream marker was reached",
        "cannot be read: No such file or directory",
        "cannot be read: it is no regular file",
        "llm-proxy wrote it itself: copy it to the same place below the log folder",
        "no format that is known here",
    ]
    assert (done["new"], done["files"]) == (0, {})


def test_an_import_that_is_killed_is_finished_by_the_next(home, old):
    """Whenever it was killed: every call once, with both its entries."""
    append(old / "t.jsonl", *(taco(question(f"q{number}"), answer("y" * 2000), at=number) for number in range(600)))
    logs = home.folder / ".llm-provider-logs/api.anthropic.com/2026-02-03"
    killed = 0
    for files_there in (1, 100, 270, 350):
        child = subprocess.Popen(home.argv("import", str(old)), env=home.environ, stdout=subprocess.DEVNULL)
        while child.poll() is None and (not logs.exists() or len(os.listdir(logs)) < files_there):
            time.sleep(0.001)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
    assert killed
    home.run("import", str(old))
    entries = [json.loads(line) for line in _log(home).splitlines()]
    for kind in ("request", "response"):
        ids = [entry["_meta"]["request_id"] for entry in entries if entry["type"] == kind]
        assert len(ids) == len(set(ids)) == 600
    assert home.json("stats")["total"]["calls"] == 600


def test_memory_is_bounded(home, old):
    """200 MB of recordings cost about as much as a group of calls."""
    body = question("x" * 1_000_000)
    old.mkdir()
    with (old / "t.jsonl").open("wb") as file:
        for number in range(200):
            file.write(json.dumps(taco(body, answer("y"), at=number)).encode() + b"\n")
    # what a process is charged with begins with what its parent held, and this one may hold much
    small = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", small, *home.argv("import", str(old))],
        env=home.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert home.json("stats")["total"]["calls"] == 200
    assert int(done.stdout) < 200_000, f"{done.stdout} kB"


def test_a_daemon_records_meanwhile(home, old, provider):
    """Both write the same sessions' database and the same conversation; nothing of either is lost or doubled."""
    said = question("x" * 500, metadata={"user_id": "user_x_session_same"})
    append(old / "t.jsonl", *(taco(said, answer("y"), at=number) for number in range(300)))
    daemon = Daemon(home.folder, ("--port", "0"), home.environ, {})
    try:
        child = subprocess.Popen(home.argv("import", str(old)), env=home.environ, stdout=subprocess.DEVNULL)
        converse(daemon, provider.port)
        assert child.wait(60) == 0
        daemon.entries(until=lambda entries: sum(entry["type"] == "response" for entry in entries) == 309)
        assert home.json("import", str(old))["already"] == 300
    finally:
        daemon.stop()
    rows = home.json("sessions")["sessions"]
    (one,) = (row for row in rows if row["client_session"] == "same")
    assert one["calls"] == 300 and sum(row["calls"] for row in rows) == 309
    calls = home.json("view", one["id"])["calls"]
    assert [call["seq"] for call in calls] == list(range(1, 301))


def test_two_at_once_are_one(home, old):
    """They would take the same calls: the second says so and touches nothing."""
    append(old / "t.jsonl", taco("a", "b"))
    state = home.folder / ".local/state/llm-proxy"
    state.mkdir(parents=True)
    with (state / "import.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another import is running" in home.run("import", str(old), status=1).stderr
    assert home.json("import", str(old))["new"] == 1


# --- hostile lines --------------------------------------------------------------------------------------------------

_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([moment(), 1.77e9]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_WHOLE = {
    "sessions": [
        {"type": "session_start", "ts": moment(), "provider": "openai", "upstream": "x"},
        {
            "type": "request",
            "_meta": {"ts": moment()},
            "seq": 1,
            "method": "POST",
            "path": "/v1/messages",
            "headers": {},
            "body": "{}",
            "size": 2,
        },
        {
            "type": "response",
            "_meta": {"ts": moment(1)},
            "seq": 1,
            "status": 200,
            "headers": {"A": ["b"]},
            "chunks": [{"ts": moment(), "delta_ms": 1, "raw": "data: x\n"}],
            "timing": {"ttfb_ms": 1, "total_ms": 2},
        },
    ],
    "taco": [taco(question("a"), sse("b"))],
    "claude_trace": [claude_trace(question("a"), sse("b"))],
    "proxy_llm": [
        proxy_llm("req_1", "messages", question("a"), answer("b")),
        {"id": "req_1", "chunk": "x", "index": 1, "timestamp": moment(), "session_id": "s"},
    ],
}


@st.composite
def _spoiled(draw):
    """A format, and lines of it in which some values are anything at all."""
    name = draw(st.sampled_from(sorted(_WHOLE)))
    lines = json.loads(json.dumps(_WHOLE[name]))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.sampled_from(lines))
        while True:
            key = draw(st.sampled_from(sorted(at)))
            if not (isinstance(at[key], dict) and at[key] and draw(st.booleans())):
                break
            at = at[key]
        at[key] = draw(_ANY)
    return name, lines


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_spoiled())
def test_no_line_breaks_a_reader(tmp_path, spoiled):
    """Whatever stands where something else was expected: a call that can be written, or a reason."""
    name, lines = spoiled
    file = tmp_path / "spoiled.jsonl"
    file.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    catalogue = files.Catalogue(tmp_path)
    catalogue.add(str(file))
    for form, found in catalogue.found():
        call = catalogue.read(form, found)
        for exchange in (call.exchange, call.as_told) if call is not None else ():
            for entry in session_jsonl.entries(exchange, "s", 1, call.machine):
                json.loads(session_jsonl.line(entry))
            session_jsonl.place(exchange.upstream, "s", exchange.opened)
    assert len(catalogue) or catalogue.no_calls.all() or catalogue.no_files.all() or name in ("sessions", "proxy_llm")
