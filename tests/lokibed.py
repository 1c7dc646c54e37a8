"""Calls that wait for Loki, made cheaply: session logs and the outbox as the keeper leaves them, and a process of lanes."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

from llm_proxy.lanes.options import TABLES
from llm_proxy.sinks import outbox, session_jsonl

# As `[loki]` has it, but for what a test says.
OPTIONS = {
    "auth_token": "",
    "username": "",
    "password": "",
    "tenant": "",
    "ca_file": "",
    "batch_size": 1000,
    "max_batch_bytes": 1 << 20,
    "batch_wait": 0.05,
    "retry_max": 5,
    "use_gzip": True,
    "environment": "test",
    "machine": "desk",
    "max_line": 250 * 1024,
}
LINES = 4  # of an answered call without tools: turn_start, request, response, turn_end
HOST = "api.anthropic.com"


def until(true, told=lambda: "", limit=60):
    deadline = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)
    return found


class Bed:
    """Everything below `folder`. Call numbers and ids go on over all that is made."""

    def __init__(self, folder, state="state", logs="logs"):
        self.state, self.logs = folder / state, folder / logs
        self.state.mkdir(parents=True)
        self.made = 0
        self._processes = []
        with contextlib.closing(self._db()) as db:
            db.executescript(outbox.TABLE)
            db.execute(outbox.LANES)

    def _db(self):
        return sqlite3.connect(self.state / "sessions.db", timeout=30)

    def make(self, calls, *, per_session=50, text="hello", since=None, step=0.01, lasts=0.005):
        """So many calls, the last one just over or the first at `since` (seconds); their ids, in order."""
        began = time.time() - calls * step - 1 if since is None else since
        ids, rows = [], []
        for first in range(0, calls, per_session):
            number = self.made + first
            name = time.strftime("%Y%m%d-%H%M%S-", time.localtime(began)) + f"{number:08x}"
            file = f"{HOST}/{name[:4]}-{name[4:6]}-{name[6:8]}/{name}.jsonl"
            path = self.logs / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                for seq in range(1, min(per_session, calls - first) + 1):
                    id = UUID(int=number + seq)
                    at = began + (first + seq) * step
                    for entry in _entries(name, id, seq, at, text, lasts):
                        line = session_jsonl.line(entry)
                        if entry["type"] != "session_start":
                            rows.append((id.bytes, entry["type"], str(self.logs), file, out.tell(), len(line), ""))
                        out.write(line)
                    ids.append(str(id))
        self.made += calls
        with contextlib.closing(self._db()) as db, db:
            db.executemany(outbox.POST, rows)
        return ids

    def lanes(self, url, **changes):
        """A process of lanes with this one sink; it begins with the first call there is."""
        self.begin_at(0)
        told = {"state": str(self.state), "folder": str(self.logs), "sinks": [["loki", {}]], "name": ""}
        table = OPTIONS | {"url": url} | changes
        process = Lanes(self, json.dumps(told), json.dumps({"loki": table}))
        self._processes.append(process)
        return process

    def begin_at(self, position):
        """As if the sink had passed on everything up to there; nothing where it has a cursor already."""
        from llm_proxy.lanes.cursors import Cursors

        cursors = Cursors(self.state / "sinks.db")
        if cursors.of("loki") is None:
            cursors.set("loki", position, {})

    def last(self):
        """The number of the last line there is."""
        with contextlib.closing(self._db()) as db:
            return db.execute("SELECT max(id) FROM outbox").fetchone()[0]

    def standing(self):
        """What the lane last said of itself."""
        try:
            return json.loads((self.state / "sinks.json").read_text())["sinks"]["loki"]
        except (OSError, ValueError, KeyError):
            return {}

    def parked(self):
        path = self.state / "parked/loki.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self):
        for process in self._processes:
            process.kill()


class Lanes:
    """A process of lanes; ended with its stdin, as by the daemon, or killed."""

    def __init__(self, bed, told, tables):
        self._errors = (bed.state / "lanes.err").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llm_proxy.lanes", told],
            env={**os.environ, TABLES: tables},
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
        )

    def wake(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def rss(self):
        """Bytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def stop(self, limit=15):
        """The seconds it took to end."""
        began = time.monotonic()
        self.process.stdin.close()
        assert self.process.wait(limit) == 0
        self._errors.close()
        return time.monotonic() - began

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self._errors.close()
        with contextlib.suppress(OSError):
            self.process.stdin.close()


def _entries(session, id, seq, at, text, lasts):
    meta = {"host": HOST, "machine": "ann@desk", "session": session}
    if seq == 1:
        start = {"provider": "anthropic", "upstream": HOST, "client_session": f"c-{session}"}
        yield {"type": "session_start", "_meta": meta | {"ts": _utc(at)}, **start}
    meta["request_id"] = str(id)
    asked = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": f"{text} {seq}"}]}
    body = json.dumps(asked)
    headers = {"Content-Type": ["application/json"], "X-Api-Key": ["sk-ant-...mnop"]}
    told = {"method": "POST", "path": "/v1/messages", "headers": headers, "size": len(body), "body": body}
    yield {"type": "request", "_meta": meta | {"ts": _utc(at)}, "seq": seq, **told}
    usage = {"input_tokens": 3, "output_tokens": 5}
    said = {"id": f"msg_{seq}", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "usage": usage}
    said |= {"content": [{"type": "text", "text": "yes"}], "stop_reason": "end_turn"}
    body = json.dumps(said)
    digest = {"api": "anthropic.messages", "model": "claude-sonnet-4-5", "stop_reason": "end_turn"}
    yield {
        "type": "response",
        "_meta": meta | {"ts": _utc(at + lasts)},
        "seq": seq,
        "status": 200,
        "ending": "complete",
        "headers": {"Content-Type": ["application/json"]},
        "size": len(body),
        "body": body,
        "timing": {"ttfb_ms": 4, "total_ms": int(lasts * 1000)},
        "digest": digest | {"usage": {"input": 3, "output": 5}},
    }


def _utc(at):
    return session_jsonl.utc(int(at * 1e6) * 1000)
