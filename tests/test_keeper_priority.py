"""Where processors are short, the keeper comes last: behind every other session, not just behind its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journals import Call, Journal

HERE = Path("/proc/self/autogroup").exists()  # without it only a process' niceness counts
KEEPER = """
import sys
from llm_proxy.keeper import __main__, loop
loop.HURRY = int(sys.argv.pop(1))
sys.exit(__main__.main())
"""


def niceness(pid: int) -> tuple[int, int]:
    """Of a process, and of its session."""
    group = Path(f"/proc/{pid}/autogroup")
    return os.getpriority(os.PRIO_PROCESS, pid), int(group.read_text().rpartition(" ")[2]) if HERE else 0


def keeper(folder: Path, hurry: int, calls: int, *prefix: str) -> subprocess.Popen[bytes]:
    """A keeper in a new session, or behind `prefix` in that of another process, and what it has to settle."""
    journal = Journal(folder / "journal")
    for serial in range(calls):
        journal.add(*Call(serial + 1).frames)
    journal.close()
    folders = [f"--{name}={folder / name}" for name in ("journal", "logs", "state")]
    command = [*prefix, sys.executable, "-c", KEEPER, str(hurry), *folders]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():  # another process' files: there is nothing to be woken by
        assert time.monotonic() < deadline
        time.sleep(0.02)


def settled(folder: Path, calls: int) -> bool:
    told = sum(path.read_bytes().count(b'"type":"response"') for path in folder.glob("logs/*/*/*.jsonl"))
    return told == calls


WAITING = {"nothing": (0, 1 << 30, 19), "little": (1, 1 << 30, 19), "much": (1, -1, 0)}


@pytest.mark.parametrize(("calls", "hurry", "session"), WAITING.values(), ids=WAITING.keys())
def test_the_keeper_steps_back_until_too_much_waits(tmp_path: Path, calls: int, hurry: int, session: int) -> None:
    """Its session has niceness 19, and 0 again when the journal's cap may be near: then the record comes first."""
    with keeper(tmp_path, hurry, calls) as running:
        until(lambda: settled(tmp_path, calls))
        until(lambda: niceness(running.pid) == (19, session if HERE else 0))
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 0


def test_a_session_that_others_are_in_is_left_alone(tmp_path: Path) -> None:
    """Started by hand in somebody's terminal it is nice itself, and slows nobody else down."""
    with keeper(tmp_path, 1 << 30, 1, "sh", "-c", '"$@"; exit $?', "sh") as shell:
        until(lambda: settled(tmp_path, 1))
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        assert niceness(int(children[0])) == (19, 0) and niceness(shell.pid)[1] == 0
        os.kill(int(children[0]), signal.SIGTERM)
    assert shell.returncode == 0
