"""`llm-proxy reindex` and `llm-proxy retention`, as they are typed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.make_logs import make


@pytest.fixture
def home(tmp_path):
    """A home with the logs of three sessions, the newest about ten days old."""
    make(tmp_path / ".llm-provider-logs", calls=30, sessions=3, end=int(time.time()))
    return tmp_path


def run(home: Path, *arguments: str, status: int = 0, **environ: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_PROXY", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", "llm_proxy", *arguments],
        env=kept | {"HOME": str(home)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done
    return done.stdout if status == 0 else done.stderr


def test_reindex_makes_a_wrong_index_right(home):
    """Whatever somebody has done to the rows."""
    index = home / ".local/state/llm-proxy/index.db"
    assert json.loads(run(home, "reindex", "--json")) == {
        "calls": 30,
        "index": str(index),
        "logs": str(home / ".llm-provider-logs"),
    }
    db = sqlite3.connect(index)
    db.execute("DELETE FROM calls WHERE seq > 2")
    db.commit()
    db.close()
    assert json.loads(run(home, "stats", "--json"))["total"]["calls"] == 6
    assert run(home, "reindex").startswith("30 calls indexed")
    assert json.loads(run(home, "stats", "--json"))["total"]["calls"] == 30
    assert [one.name for one in index.parent.glob("index.db.*")] == ["index.db.rebuild"]


def test_reindex_of_nothing(tmp_path):
    """No logs are no error."""
    assert run(tmp_path, "reindex").startswith("0 calls indexed")


def test_retention_does_what_the_settings_say(home):
    """Nothing without settings; told first where that is asked for; every command reads what is left."""
    assert "nothing to do" in run(home, "retention")
    wanted = {"LLM_PROXY_RETENTION_DAYS": "25", "LLM_PROXY_RETENTION_COMPRESS_DAYS": "3"}
    told = json.loads(run(home, "retention", "--dry-run", "--json", **wanted))
    assert told["dry_run"] and [one["kind"] for one in told["files"]] == ["delete", "compress", "compress"]
    logs = home / ".llm-provider-logs"
    assert len(list(logs.rglob("*.jsonl"))) == 3
    assert run(home, "retention", **wanted).count("compressed ") == 2
    assert [one.suffix for one in sorted(logs.rglob("*.jsonl*"))] == [".zst", ".zst"]
    assert json.loads(run(home, "stats", "--json"))["total"]["calls"] == 20
    assert json.loads(run(home, "reindex", "--json"))["calls"] == 20
    (call, *_) = json.loads(run(home, "view", "last", "--json"))["calls"]
    assert call["request"]["body"]


def test_wrong_settings_and_words_are_named(home):
    """Before anything is touched."""
    assert "retention.days must be a number of days" in run(home, "retention", status=78, LLM_PROXY_RETENTION_DAYS="x")
    assert "--now" in run(home, "retention", "--now", status=2)
    assert "reindex" in run(home, "reindex", "all", status=2)
