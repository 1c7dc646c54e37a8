"""`export`, `stats` and `view` with `--recordings DIR`: Taco's commands on Taco's files."""

import base64
import gzip
import json
import uuid

import pytest

from tests.oldlogs import answer, append, question, sse, taco
from tests.test_ask import Home

TZ = "Pacific/Kiritimati"  # 14 hours ahead: a morning in UTC is the next day there


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "recordings"


def _write(folder, day, *recordings):
    append(folder / f"recordings-{day}.jsonl", *recordings)
    return [one["id"] for one in recordings]


def test_export_gives_lines_byte_for_byte(home, folder):
    """Not read and written again: digits, the order of keys and spaces stay; torn and foreign lines are said."""
    lines = [
        b'{"timing":{"started_at":"2026-02-03T10:00:00Z"},  "id":"b", "provider":"claude","n":12345678901234567890.10}\n',
        json.dumps(taco(question("x" * 11_000_000), answer("y"))).encode() + b"\n",  # longer than Taco can read
    ]
    append(folder / "recordings-2026-02-03.jsonl", lines[0], b'{"id": "tor\n', lines[1])
    target = home.folder / "out.jsonl"
    done = home.run("export", "--recordings", str(folder), "--output", str(target))
    assert target.read_bytes() == b"".join(lines) and target.stat().st_mode & 0o777 == 0o600
    assert f"count=2 output={target}" in done.stdout and done.stderr.startswith("1 lines are no recordings")
    assert home.run("export", "-recordings", str(folder), "-output=-").stdout.encode() == b"".join(lines)


def test_days_are_local_and_providers_are_told_apart(home, folder):
    """10:00 UTC of the third is the fourth on Kiritimati, whatever file the line stands in; `--to` holds its day."""
    early = taco(question("a"), answer("b"), at=-3600 * 3)  # 21:00 of the third there
    late = taco(question("a"), answer("b"))
    other = taco(question("a"), answer("b"), provider="openai")
    _write(folder, "2026-02-03", early)
    _write(folder, "2026-02-04", late, other)

    def ids(*options):
        told = home.run("export", "--recordings", str(folder), "--output", "-", *options, TZ=TZ).stdout
        return [json.loads(line)["id"] for line in told.splitlines()]

    assert ids("--from", "2026-02-04") == [late["id"], other["id"]]
    assert ids("--to", "2026-02-03") == [early["id"]]
    assert ids("--to", "2026-02-04", "--provider", "claude") == [early["id"], late["id"]] == ids("--provider=anthropic")
    assert ids("--provider", "nobody") == []


def test_nothing_there_is_an_error(home, folder):
    """With the folder's name and exit status 1; wrong days with 2."""
    for word in ("export", "stats", "view"):
        done = home.run(word, "--recordings", str(folder), status=1)
        assert f"no recordings found in {folder}" in done.stderr
    folder.mkdir()
    assert "no recordings found" in home.run("stats", "--recordings", str(folder), status=1).stderr
    _write(folder, "2026-02-03", taco(question("a"), answer("b")))
    assert "--from must be" in home.run("export", "--recordings", str(folder), "--from", "soon", status=2).stderr


def test_stats_in_tacos_words(home, folder):
    """Statuses from 400 on are errors; a table per provider."""
    failed = taco(question("a"), {"error": "x"}, spelling="readme")
    failed["response"]["status"] = 529
    _write(folder, "2026-02-03", taco(question("a"), answer("b")), failed, taco("a", "b", provider="gemini"))
    assert home.run("stats", "--recordings", str(folder)).stdout.split("\n\n") == [
        "=== Overall Statistics ===\nTotal Requests: 3\nTotal Errors: 1\nError Rate: 33.33%\n"
        "Average Response Time: 500.00ms",
        "=== CLAUDE ===\nRequests: 2\nErrors: 1\nError Rate: 50.00%\nAverage Response Time: 500.00ms",
        "=== GEMINI ===\nRequests: 1\nErrors: 0\nError Rate: 0.00%\nAverage Response Time: 500.00ms\n",
    ]
    told = home.json("stats", "--recordings", str(folder), "--provider", "gemini")
    assert told["total"] == {"requests": 1, "errors": 0, "error_rate": 0.0, "average_ms": 500.0}


def test_view_shows_a_recording_without_its_secrets(home, folder):
    """Masked, nothing for a terminal to obey, gzip unpacked."""
    packed = "base64:" + base64.b64encode(gzip.compress(json.dumps(answer("packed \x1b[31m")).encode())).decode()
    one = taco(question("hello"), packed)
    one["request"] |= {"query": "key=secretsecret&x=1"}
    one["response"]["headers"]["Content-Encoding"] = ["gzip"]
    _write(folder, "2026-02-03", one)
    shown = home.run("view", one["id"][:9], "--recordings", str(folder)).stdout
    assert shown.startswith(f"=== Recording {one['id']} ===\nTimestamp: ") and "Duration: 500ms" in shown
    for words in (
        "--- Request ---\nMethod: POST\nPath: /v1/messages\n",
        '"content": "hello"',
        "--- Response ---\nStatus: 200",
    ):
        assert words in shown
    assert "packed \\u001b[31m" in shown and "\x1b" not in shown
    assert "secretsecret" not in shown and "abcdefghijklmnop" not in shown and "&x=1" in shown


def test_view_shows_streams_with_and_without_names(home, folder):
    """OpenAI's events have no `event:` line, and are shown all the same."""
    named = taco(question("a"), sse("well then"))
    plain = taco(question("a"), 'event: \ndata: {"choices": [{"delta": {"content": "unnamed"}}]}\n\ndata: [DONE]\n\n')
    _write(folder, "2026-02-03", named, plain)
    shown = home.run("view", "--recordings", str(folder), named["id"]).stdout
    assert "Streaming: true" in shown and "Event: message_start" in shown and '"text": " then"' in shown
    shown = home.run("view", "--recordings", str(folder), plain["id"]).stdout
    assert '"content": "unnamed"' in shown and "[DONE]" in shown


def test_view_finds_by_prefix_or_takes_the_newest(home, folder):
    """An ambiguous beginning lists what it could be."""
    first, second = (f"aaaa{place}{str(uuid.uuid4())[5:]}" for place in "12")
    _write(folder, "2026-02-03", taco("a", "b", id=first), taco("a", "b", at=9, id=second), taco("a", "b", at=5))
    done = home.run("view", "--recordings", str(folder))
    assert done.stdout.startswith(f"=== Recording {second} ===") and "newest" in done.stderr
    done = home.run("view", "--recordings", str(folder), "aaaa", status=1)
    assert first in done.stderr and second in done.stderr and "please provide more characters" in done.stderr
    assert "recording not found: zz" in home.run("view", "--recordings", str(folder), "zz", status=1).stderr
    assert home.json("view", "--recordings", str(folder), "aaaa1")["request"]["body"] == '"a"'[1:-1]
