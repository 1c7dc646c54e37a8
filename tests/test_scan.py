"""`llm-proxy scan` tells where secrets stand in old logs, and never what they are."""

from __future__ import annotations

import asyncio
import json
import random
import string
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.sinks.log_reader import zstandard

_chance = random.Random(11)
_LETTERS = string.ascii_letters + string.digits


def made(prefix: str, length: int) -> str:
    return prefix + "".join(_chance.choices(_LETTERS, k=length))


KEY, OTHER, PASSWORD = made("sk-ant-api03-", 95), made("ghp_", 36), made("pw", 9)
REQUEST = {"type": "request", "_meta": {}, "body": json.dumps({"messages": [f"{KEY} and {KEY}"]})}
STREAM = {
    "type": "response",
    "chunks": [
        {"raw": f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': OTHER[at : at + 5]}}]})}\n"}
        for at in range(0, len(OTHER), 5)
    ],
}
HEADERS = {"type": "request", "headers": {"X-Odd": [KEY]}, "body": f"postgres://u:{PASSWORD}@h"}
CLEAN = {"type": "request", "body": "sk-ant-xxxx", "headers": {"X-Api-Key": ["sk-ant-...mnop"]}}


@pytest.fixture
def logs(environ: dict[str, str]) -> Path:
    """Logs as of old: three lines with secrets in a plain file, one in a compressed one, none in a third."""
    folder = Path(environ["HOME"], ".llm-provider-logs")
    day = folder / "api.anthropic.com/2025-01-01"
    day.mkdir(parents=True)
    lines = [json.dumps(one) for one in (CLEAN, REQUEST, STREAM, HEADERS)]
    (day / "a.jsonl").write_text("\n".join(lines) + "\n\n{torn " + KEY)
    (day / "b.jsonl.zst").write_bytes(zstandard().compress(json.dumps(REQUEST).encode() + b"\n"))
    (day / "c.jsonl").write_text(json.dumps(CLEAN) + "\n")
    (day / "link.jsonl").symlink_to(day / "a.jsonl")
    return folder


def no_secret_in(text: str) -> bool:
    return not any(one[:16] in text or one[-10:] in text for one in (KEY, OTHER, PASSWORD))


def test_what_is_found_and_where(logs: Path, command: Any) -> None:
    """File, line, kind, how often, and a fingerprint by which the same secret is known again."""
    done = command("scan", "--json")
    assert done.returncode == 1 and no_secret_in(done.stdout + done.stderr)
    told = json.loads(done.stdout)
    prints = {one["kind"]: one["fingerprint"] for one in told["found"]}
    found = [(Path(one["file"]).name, one["line"], one["kind"], one["times"]) for one in told["found"]]
    assert found == [
        ("a.jsonl", 2, "ANTHROPIC_KEY", 2),
        ("a.jsonl", 3, "GITHUB_TOKEN", 1),
        ("a.jsonl", 4, "ANTHROPIC_KEY", 1),
        ("a.jsonl", 4, "URL_PASSWORD", 1),
        ("a.jsonl", 6, "ANTHROPIC_KEY", 1),
        ("b.jsonl.zst", 1, "ANTHROPIC_KEY", 2),
    ]
    assert all(one["fingerprint"] == prints[one["kind"]] for one in told["found"])
    assert len(set(prints.values())) == 3 and told["files"] == 3 and told["unreadable"] == {}
    assert json.loads(command("scan", "--json").stdout) == told


def test_what_a_person_reads(logs: Path, command: Any) -> None:
    """The places, and what to do: the index holds copies."""
    done = command("scan")
    assert done.returncode == 1 and no_secret_in(done.stdout + done.stderr)
    assert f"rm -- {logs}/api.anthropic.com/2025-01-01/a.jsonl\n" in done.stdout
    assert "3 different secrets in 2 of 3 files" in done.stdout and "llm-proxy reindex" in done.stdout


def test_one_file_and_own_expressions(logs: Path, command: Any) -> None:
    """A path chooses; what the configuration calls a secret is one."""
    day = logs / "api.anthropic.com/2025-01-01"
    assert command("scan", str(day / "c.jsonl")).stdout == "no secrets in 1 files\n"
    done = command("scan", str(day / "c.jsonl"), env={"LLM_PROXY_REDACTION_PATTERNS": '{"XS": "x{4}"}'})
    assert done.returncode == 1 and "XS" in done.stdout


def test_a_file_that_cannot_be_read_is_no_clean_file(logs: Path, command: Any) -> None:
    """It is named, and the exit status is not 0."""
    day = logs / "api.anthropic.com/2025-01-01"
    for name in ("a.jsonl", "b.jsonl.zst"):
        (day / name).unlink()
    (day / "b.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd no such frame")
    done = command("scan")
    assert done.returncode == 1 and "not read to its end" in done.stdout and "b.jsonl.zst" in done.stdout


def test_lines_that_are_no_entries_are_searched_as_text(logs: Path, command: Any) -> None:
    """Whatever stands where an entry has a list of chunks, a message, a body."""
    odd = [{"chunks": [5, {"raw": 7}]}, {"websocket": {"messages": [1]}}, {"body": {"a": "\ud800"}}]
    lines = [json.dumps({"type": "response", "note": KEY} | one) for one in odd]
    file = logs / "api.anthropic.com/2025-01-01/odd.jsonl"
    file.write_text("\n".join(lines))
    found = json.loads(command("scan", str(file), "--json").stdout)["found"]
    assert [one["line"] for one in found] == [1, 2, 3]


def test_names_of_files_do_nothing_to_a_terminal(logs: Path, command: Any) -> None:
    """Control characters in them are shown, not sent."""
    (logs / "evil\x1b]0;x\x07.jsonl").write_text(KEY)
    done = command("scan")
    assert "\x1b" not in done.stdout and "evil" in done.stdout


def test_no_such_path(command: Any, tmp_path: Path) -> None:
    """Wrong usage is said; a log folder that is not there yet holds no secrets."""
    done = command("scan", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and "there is no" in done.stderr
    assert command("scan").stdout == "no secrets in 0 files\n"


async def test_what_this_proxy_records_has_nothing_to_be_found(daemon: Any, fake: Any, command: Any) -> None:
    """The two agree on what a secret is."""
    daemon.wait_for_recording()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": f"{KEY} {OTHER}"}]}).encode()
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}/v1/messages"

    def post() -> None:
        urllib.request.urlopen(urllib.request.Request(url, body), timeout=10).close()

    await asyncio.to_thread(post)
    assert "redacted" in daemon.entries(until=lambda entries: len(entries) == 3)[1]
    assert (await asyncio.to_thread(command, "scan")).returncode == 0
