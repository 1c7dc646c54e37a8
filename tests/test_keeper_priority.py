"""Where processors are short, the keeper comes last: behind every other session, not just behind its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_proxy.journal import segments
from llm_proxy.keeper.options import Options, options
from llm_proxy.service import keeping
from llm_proxy.settings import load
from tests.journals import Call, Journal

HERE = Path("/proc/self/autogroup").exists()  # without it only a process' niceness counts


def niceness(pid: int) -> tuple[int, int]:
    """Of a process, and of its session."""
    group = Path(f"/proc/{pid}/autogroup")
    return os.getpriority(os.PRIO_PROCESS, pid), int(group.read_text().rpartition(" ")[2]) if HERE else 0


def keeper(folder: Path, calls: int, waiting: int, cap: int, *prefix: str) -> subprocess.Popen[bytes]:
    """A keeper in a new session, or behind `prefix` in that of another process, and what it has to settle.

    `waiting` bytes of a block that is not whole yet stand behind the calls: they wait as long as the keeper lives.
    """
    journal = Journal(folder / "journal")
    for serial in range(calls):
        journal.add(*Call(serial + 1).frames)
    journal.close()
    last = segments.path_of(folder / "journal", journal.writer.number)
    size = last.stat().st_size
    with last.open("ab") as file:
        file.write(segments.BLOCK_HEADER.pack(segments.BLOCK_MAGIC, segments.MAX_BLOCK, 0, 0, journal.place))
        file.truncate(size + max(waiting, segments.BLOCK_HEADER.size))
    folders = [f"--{name}={folder / name}" for name in ("journal", "logs", "state")]
    options = Options(cap=cap).to_json()
    command = [*prefix, sys.executable, "-m", "llm_proxy.keeper", *folders, "--options", options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():  # another process' files: there is nothing to be woken by
        assert time.monotonic() < deadline
        time.sleep(0.02)


def settled(folder: Path, calls: int) -> bool:
    """Whether the keeper says so, which it does when all is done that goes with it."""
    try:
        return bool(json.loads((folder / "journal/keeper.json").read_bytes())["exchanges"] == calls)
    except FileNotFoundError:
        return False


MB, GB = 1 << 20, 10**9
# Calls that are settled, what waits behind them, the journal's cap, and the session's niceness then.
WAITING = {
    "nothing settled": (0, 0, 2 * GB, 19),
    "little": (1, 230 * MB, 2 * GB, 19),
    "much": (1, 260 * MB, 2 * GB, 0),
    "little of a small journal": (1, 7 * MB, 64 * MB, 19),
    "much of a small journal": (1, 9 * MB, 64 * MB, 0),
    "much, of a large journal too": (1, 260 * MB, 100 * GB, 0),
}


@pytest.mark.parametrize(("calls", "waiting", "cap", "session"), WAITING.values(), ids=WAITING.keys())
def test_the_keeper_steps_back_until_too_much_waits(
    tmp_path: Path, calls: int, waiting: int, cap: int, session: int
) -> None:
    """Its session has niceness 19, and 0 again when the journal's cap may be near: then the record comes first."""
    with keeper(tmp_path, calls, waiting, cap) as running:
        until(lambda: settled(tmp_path, calls))
        until(lambda: niceness(running.pid) == (19, session if HERE else 0))
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 0


def test_a_session_that_others_are_in_is_left_alone(tmp_path: Path) -> None:
    """Started by hand in somebody's terminal it is nice itself, and slows nobody else down."""
    with keeper(tmp_path, 1, 0, 2 * GB, "sh", "-c", '"$@"; exit $?', "sh") as shell:
        until(lambda: settled(tmp_path, 1))
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        assert niceness(int(children[0])) == (19, 0) and niceness(shell.pid)[1] == 0
        os.kill(int(children[0]), signal.SIGTERM)
    assert shell.returncode == 0


def test_the_keeper_is_told_the_cap_of_its_journal(tmp_path: Path) -> None:
    """As it is configured; a keeper that is told nothing takes it for the default."""
    configured = load({}, {"LLM_PROXY_JOURNAL_CAP": "48 MiB"}, None).settings
    *_, given = keeping.arguments(configured, tmp_path)
    assert options(given).cap == configured.cap == 48 * MB
    assert Options().cap == load({}, {}, None).settings.cap
