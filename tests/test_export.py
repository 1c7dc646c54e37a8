"""`llm-proxy export`: every format read back by somebody else's reader, as a stream, private, whole or not there."""

import base64
import csv
import io
import json
import os
import pty
import resource
import stat
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow.parquet
import pytest

from tests.recorded import QUESTIONS
from tests.test_ask import home, provider

__all__ = ["home", "provider"]

SSE = "event: message_start"


def _lines(home, *options):
    return [json.loads(line) for line in home.run("export", *options).stdout.splitlines()]


def test_jsonl_tells_all_of_a_call(home):
    """Ids, times, bodies as they crossed the wire, digest, usage by class."""
    calls = _lines(home)
    assert len(calls) == 9 and [call["started"] for call in calls] == sorted(call["started"] for call in calls)
    first = calls[0]
    assert json.loads(first["request"]["body"])["messages"][0]["content"] == QUESTIONS[0]
    assert first["response"]["body"].startswith(SSE) and first["response"]["body"].rstrip().endswith('"message_stop"}')
    assert (
        first["digest"]["api"] == "anthropic.messages"
        and first["usage"]["output"] == first["digest"]["usage"]["output"] > 0
    )
    assert first["url"].startswith("http://127.0.0.1:") and first["status"] == 200 and first["streamed"] is True
    assert calls[-1]["status"] is None and calls[-1]["error"] and calls[-1]["usage"] is None
    assert "sk-ant-api03-0123456789abcdef" not in json.dumps(calls)


def test_filters_hold(home):
    """Those of all commands."""
    assert [call["model"] for call in _lines(home, "--model", "gpt-5")] == ["gpt-5", "gpt-5"]
    assert _lines(home, "--from", "today", "--errors")[0]["ending"] == "upstream_failed"
    assert _lines(home, "--to", "yesterday") == []


def test_taco(home):
    """The README's field names; JSON bodies as JSON, streams as text."""
    recordings = _lines(home, "--format", "taco")
    first = recordings[0]
    assert set(first) == {"id", "timestamp", "provider", "request", "response", "timing"}
    assert set(first["timing"]) == {"startTime", "endTime", "durationMs"} and first["provider"] == "claude"
    assert first["request"]["body"]["messages"][0]["content"] == QUESTIONS[0]
    assert first["response"]["streaming"] is True and first["response"]["body"].startswith(SSE)
    assert recordings[-1]["error"] and recordings[-1]["response"]["status"] == 0


def test_csv(home):
    """No header row; a standard reader gets four columns, the bodies to the byte."""
    text = home.run("export", "--format", "csv").stdout
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert {len(row) for row in rows} == {4} and len(rows) == 9
    raw = _lines(home)
    assert [row[2] for row in rows] == [call["request"]["body"] for call in raw]
    assert [row[3] for row in rows] == [call["response"]["body"] for call in raw]
    assert text.startswith("POST,http://127.0.0.1:") and rows[0][1].endswith("/v1/messages")


def test_har(home):
    """What the specification requires of each entry is there, with the type it says."""
    log = json.loads(home.run("export", "--format", "har").stdout)["log"]
    assert log["version"] == "1.2" and log["creator"]["name"] == "llm-proxy" and len(log["entries"]) == 9
    for entry in log["entries"]:
        assert datetime.fromisoformat(entry["startedDateTime"].replace("Z", "+00:00")).tzinfo is UTC
        assert entry["time"] == sum(entry["timings"][part] for part in ("send", "wait", "receive"))
        request, response = entry["request"], entry["response"]
        assert {"method", "url", "httpVersion", "cookies", "headers", "queryString", "headersSize", "bodySize"} <= set(
            request
        )
        assert {"status", "statusText", "httpVersion", "cookies", "headers", "content"} <= set(response)
        assert {"redirectURL", "headersSize", "bodySize"} <= set(response) and entry["cache"] == {}
        assert {"size", "mimeType"} <= set(response["content"])
        assert all(set(header) == {"name", "value"} for header in request["headers"] + response["headers"])
        assert request["postData"]["mimeType"] == "application/json"
    assert log["entries"][0]["response"]["content"]["text"].startswith(SSE)


def test_markdown(home):
    """Conversations, each message once."""
    text = home.run("export", "--format", "markdown", "--provider", "claude", "--status", "2xx").stdout
    assert text.count(f"# {QUESTIONS[0]}\n") == 1 and text.count("### Assistant") == 3
    assert text.count(QUESTIONS[2]) == 1


def test_dataset(home):
    """One line per conversation, its longest form, roles in turn; failed ones left out."""
    rows = _lines(home, "--format", "dataset")
    conversations = [[message["role"] for message in row["messages"]] for row in rows]
    assert ["system", *["user", "assistant"] * 3] in conversations
    assert sum(len(row["messages"]) == 4 and row["messages"][0]["content"] == "hello openai" for row in rows) == 2
    assert not any("unreachable" in json.dumps(row) for row in rows)
    assert len({json.dumps(row) for row in rows}) == len(rows)


def test_parquet(home, tmp_path):
    """Typed columns that others read."""
    file = tmp_path / "calls.parquet"
    home.run("export", "--format", "parquet", "--output", str(file))
    table = pyarrow.parquet.read_table(file)
    assert table.num_rows == 9
    row = {name: table.column(name)[0].as_py() for name in table.column_names if name != "started"}
    assert row["model"] == "claude-sonnet-4-6" and row["tokens_output"] > 0 and row["status"] == 200
    assert str(table.schema.field("started").type) == "timestamp[ns, tz=UTC]" and SSE in row["response_body"]


def test_parquet_without_its_package_names_the_extra(home):
    """One line, not a traceback; no file."""
    hide = "import sys; sys.modules['pyarrow'] = None; sys.argv[1:] = ['export', '--format', 'parquet', '--output', 'x.parquet']; "
    done = subprocess.run(
        [sys.executable, "-c", hide + "from llm_proxy.cli.main import main; main()"],
        env=home.environ,
        cwd=home.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f": {sys.executable} -m pip install pyarrow\n")
    assert not list(home.folder.glob("*x.parquet*"))


def test_a_file_is_private_and_whole(home, tmp_path):
    """0600, over what was there before; where it cannot be written, one line says so and nothing is left."""
    file = tmp_path / "out.jsonl"
    file.write_text("before")
    said = home.run("export", "--output", str(file)).stdout
    assert said == f"9 calls written to {file}\n" and len(file.read_text().splitlines()) == 9
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for bad in (tmp_path, tmp_path / "no/such/file"):
        assert "--output must be a file" in home.run("export", "--output", str(bad), status=2).stderr
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_binary_bodies_survive(home, tmp_path):
    """As base64, in what can say so."""
    log = home.folder / ".llm-provider-logs/h/2026-01-01/20260101-000000-00000000.jsonl"
    log.parent.mkdir(parents=True)
    meta = {"host": "h", "machine": "m", "session": log.stem, "ts": "2026-01-01T00:00:00Z"}
    data = base64.b64encode(b"\x00\xff\xfe").decode()
    request = {
        "type": "request",
        "seq": 1,
        "method": "POST",
        "path": "/v1/audio",
        "headers": {},
        "size": 3,
        "body": data,
    }
    response = {
        "type": "response",
        "seq": 1,
        "status": 200,
        "headers": {},
        "size": 3,
        "body": data,
        "ending": "complete",
    }
    response["timing"] = {"ttfb_ms": 1, "total_ms": 2}
    binary = {"body_encoding": "base64", "_meta": meta | {"request_id": "019aa000-0000-7000-8000-0000000000b1"}}
    start = {"type": "session_start", "provider": "openai", "upstream": "h", "_meta": meta}
    log.write_text("".join(json.dumps(entry) + "\n" for entry in (start, request | binary, response | binary)))
    try:
        (call,) = _lines(home, "--to", "2026-01-02")
        assert (
            call["response"] == {"headers": {}, "body": data, "body_encoding": "base64"}
            and call["url"] == "https://h/v1/audio"
        )
        (entry,) = json.loads(home.run("export", "--format", "har", "--to", "2026-01-02").stdout)["log"]["entries"]
        assert entry["response"]["content"] == {
            "size": 3,
            "mimeType": "application/octet-stream",
            "text": data,
            "encoding": "base64",
        }
        (taco,) = _lines(home, "--format", "taco", "--to", "2026-01-02")
        assert taco["response"]["body"] == f"base64:{data}"
    finally:
        log.unlink()


def test_a_large_record_streams(home, tmp_path):
    """200 MB of calls pass through a process that may not hold them."""
    folder = tmp_path / "logs/big/2026-01-01"
    folder.mkdir(parents=True)
    text = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 2_000_000}]})
    for number in range(20):
        name = f"20260101-0000{number:02d}-00000000"
        meta = {"host": "big", "machine": "m", "session": name, "ts": "2026-01-01T00:00:00Z"}
        with (folder / f"{name}.jsonl").open("w") as file:
            for seq in range(1, 6):
                ids = {"_meta": meta | {"request_id": f"019aa000-0000-7000-8000-{number:04d}{seq:08d}"}, "seq": seq}
                asked = {"type": "request", "method": "POST", "path": "/v1/messages", "headers": {}, "size": len(text)}
                file.write(json.dumps(asked | ids | {"body": text}) + "\n")
                told = {"type": "response", "status": 200, "headers": {}, "size": 2, "body": "{}", "ending": "complete"}
                file.write(json.dumps(told | ids | {"timing": {"ttfb_ms": 1, "total_ms": 2}}) + "\n")
    assert home.json("stats", "--log-dir", str(tmp_path / "logs"))["total"]["calls"] == 100

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))

    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            home.argv("export", "--log-dir", str(tmp_path / "logs")),
            env=home.environ,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            preexec_fn=limit,
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").stat().st_size > 200_000_000


def test_a_bar_is_shown_to_people_only(home, tmp_path):
    """On a terminal's stderr; a pipe gets none."""
    assert home.run("export", "--output", str(tmp_path / "a")).stderr == ""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb", 0) as terminal:
        subprocess.run(
            home.argv("export"),
            env=home.environ | {"TERM": "xterm"},
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            timeout=60,
        )
    with os.fdopen(ours, "rb", 0) as seen:
        assert b"calls" in seen.read(65536)


def test_an_unknown_format_is_named(home):
    """With those there are."""
    said = home.run("export", "--format", "xml", status=2).stderr
    assert "xml" in said and "parquet" in said


@pytest.mark.parametrize("name", ["jsonl", "taco", "csv", "har", "markdown", "dataset", "parquet"])
def test_nothing_to_export_is_a_whole_file(home, tmp_path, name):
    """Empty in its own manner."""
    file = tmp_path / "none"
    assert home.run("export", "--format", name, "--to", "2001-01-01", "--output", str(file)).stdout.startswith(
        "0 calls"
    )
    if name == "har":
        assert json.loads(file.read_text())["log"]["entries"] == []
    elif name == "parquet":
        assert pyarrow.parquet.read_table(file).num_rows == 0
    else:
        assert file.read_bytes() == b""
