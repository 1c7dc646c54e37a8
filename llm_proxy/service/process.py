"""The daemon as a process, seen from outside: found by the state folder, started without a manager, stopped.

It is known by its statement (pid and start time) or by the lock it holds, never by its name. Leaves out managers.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_proxy import paths
from llm_proxy.errors import SetupFailed
from llm_proxy.service import activation, state
from llm_proxy.service.origin import DEB_PROGRAM

STOP_LIMIT = 35.0  # seconds: the drain's 25 s, the keeper's 4 s, and some
_START_LIMIT = 20.0
_RECORD_LIMIT = 2.5
HEALTH_LIMIT = 2.0


def program() -> str:
    """The `llm-proxy` command of this very installation, for a service manager to run."""
    own = Path(sys.prefix) / "bin/llm-proxy"
    launchers = (Path(paths.home()) / ".local/bin/llm-proxy", Path(DEB_PROGRAM))
    return str(next((launcher for launcher in launchers if _leads_to(launcher, own)), own))


def owner(folder: str) -> int:
    """Pid of this user's daemon, also of one that only drains; 0 where there is none."""
    run = state.read_run(folder)
    if run is not None and run.instance != activation.NOBODY and state.alive(run):
        return run.pid
    return _lock_holder(f"{folder}/lock")


def stop(folder: str, pid: int) -> None:
    """Ask it to stop and wait for that; kill it if it does not. Raises SetupFailed."""
    for number, limit in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            raise SetupFailed(f"process {pid} is not ours to stop") from None
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if owner(folder) != pid:
                return
            time.sleep(0.05)  # the lock's end is told to nobody who is not its holder's parent
    raise SetupFailed(f"process {pid} does not end")


def start_detached(command: Sequence[str], folder: str) -> None:
    """Start a daemon that outlives us and every terminal; its messages go to `daemon.log`. Raises OSError."""
    state.prepare(folder)
    fd = os.open(f"{folder}/daemon.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, cwd="/", start_new_session=True, umask=0o077
        )
    finally:
        os.close(fd)


def wait_until_it_answers(folder: str) -> state.Run:
    """The daemon that says it runs and answers /health as itself. Raises SetupFailed."""
    deadline = time.monotonic() + _START_LIMIT
    while True:
        run = state.read_run(folder)
        if run is not None and health(run):
            return state.read_run(folder) or run
        if time.monotonic() > deadline:
            raise SetupFailed(f"no daemon answered within {_START_LIMIT:g} s")
        time.sleep(0.05)  # its start is seen in a file


def wait_until_it_records(run: state.Run) -> str:
    """Empty as soon as everything is recorded; what keeps it from that after `_RECORD_LIMIT` seconds."""
    deadline = time.monotonic() + _RECORD_LIMIT
    while (found := health(run)).get("recording") != "ok":
        if time.monotonic() > deadline:
            return str(found.get("reason") or "it no longer answers")
        time.sleep(0.05)  # the keeper's start is seen in a file
    return ""


def health(run: state.Run, path: str = "/health", limit: float = HEALTH_LIMIT) -> dict[str, Any]:
    """What that daemon answers; empty where it does not within `limit` seconds, or where somebody else does."""
    link = http.client.HTTPConnection("127.0.0.1", run.port, timeout=limit)
    try:
        link.request("GET", path)
        answer = json.loads(link.getresponse().read(65536))
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        link.close()
    if not isinstance(answer, dict):
        return {}
    # while the manager listens for us, whoever answers was started by this very call
    if run.instance != activation.NOBODY and answer.get("instance", run.instance) != run.instance:
        return {}
    return answer


def is_of_this_installation(pid: int) -> bool:
    """Whether it runs with our interpreter, so that there is no need to start it anew."""
    import psutil

    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return bool(words) and words[0] == sys.executable and not _was_replaced(pid)


def _was_replaced(pid: int) -> bool:
    """Whether a package has put another file into the place of the interpreter that it runs (seen on Linux)."""
    try:
        return not Path(f"/proc/{pid}/exe").samefile(sys.executable)
    except OSError:
        return False


def _leads_to(launcher: Path, own: Path) -> bool:
    try:
        # the launcher is a script that names our interpreter, in the shell's quotes
        text = launcher.read_bytes()[:65536].replace(b"'\\''", b"'").replace(b"'\"'\"'", b"'")
        return launcher.resolve() == own.resolve() or os.fsencode(sys.prefix) in text
    except OSError:
        return False


def _lock_holder(path: str) -> int:
    """From /proc/locks: whoever holds the flock on that file."""
    try:
        facts = os.stat(path)  # noqa: PTH116
        table = Path("/proc/locks").read_text("ascii", "replace")
    except OSError:
        return 0
    wanted = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    for line in table.splitlines():
        words = line.split()  # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == wanted and words[4].isdecimal():
            return int(words[4])
    return 0
