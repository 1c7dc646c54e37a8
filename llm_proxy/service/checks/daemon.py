"""The daemon and what it keeps: does it run, answer and record, on its port, with state and logs of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from llm_proxy import __version__, paths
from llm_proxy.service import state
from llm_proxy.service.checks.scene import Finding, Scene, edit, note, problem, quoted
from llm_proxy.service.status import LARGE_LOGS

_STATE_FILES = ("run", "port", "last_port", "secret")
_WALK_LIMIT = 1.0  # seconds
_UPTIME_GRAIN = 2.0  # seconds; the kernel tells its boot time in whole ones


def configuration(scene: Scene) -> Iterator[Finding]:
    if scene.config_error:
        source = scene.config_error.partition(":")[0]
        mend = scene.unset(source) if source.startswith("LLM_PROXY_") else edit(paths.config_file())
        yield problem(scene.config_error, mend)
        return
    path = Path(paths.config_file())
    started = time.time() - scene.status.uptime
    if scene.status.running and path.exists() and path.stat().st_mtime > started + _UPTIME_GRAIN:
        yield note(f"{path} has been changed since the daemon started, which reads it only then", scene.restart())


def runs(scene: Scene) -> Iterator[Finding]:
    status = scene.status
    if not status.running:
        yield problem(f"it does not run: {status.reason}", "llm-proxy --setup")
        return
    if status.reason:
        yield problem(f"it runs, but {status.reason}", scene.restart())
        return
    if status.safe_mode:
        yield problem(
            "it runs in safe mode, as it crashed or could not read its configuration: calls are carried, not recorded",
            "llm-proxy --setup",
        )
    elif status.recording != "ok":
        why = status.recording_reason or status.keeper.last_error or "no reason given"
        yield problem(f"recording is {status.recording}: {why}", scene.restart())
    if status.version != __version__:
        yield note(f"it is version {status.version}, this command is {__version__}", scene.restart())


def gateway(scene: Scene) -> Iterator[Finding]:
    """A store that is away is told of by `llm-proxy gateway check`, which says what to do about it."""
    found = scene.status.gateway
    if found.state == "not answering":
        yield problem(f"the gateway is switched on and does not serve: {found.reason}", "llm-proxy gateway check")


def port(scene: Scene) -> Iterator[Finding]:
    """Where no daemon runs, whether somebody else holds the port that clients still name."""
    if scene.status.running:
        return
    wanted = scene.configured_port or state.read_port(scene.state, "last_port")
    if not wanted or not listens("127.0.0.1", wanted):
        return
    text = f"port {wanted} is held by {_holder(wanted)}"
    if scene.configured_port:
        yield problem(f"{text}, and your configuration asks for it", edit(paths.config_file()))
    else:
        yield problem(f"{text}; setup takes another one and leads attached clients there", "llm-proxy --setup")


def state_folder(scene: Scene) -> Iterator[Finding]:
    folder = Path(scene.state)
    if not folder.exists():
        return
    yield from _private(folder)
    for name in _STATE_FILES:
        path = folder / name
        if path.is_symlink() or (path.exists() and state.read(scene.state, name) is None):
            yield problem(
                f"{path} is not a file of ours as we write it, so it counts for nothing", f"rm {quoted(path)}"
            )
    if not scene.status.running and state.read(scene.state, "run") is not None:
        yield note("it was not stopped cleanly last time; new shells see that and print nothing", "llm-proxy --setup")


def logs(scene: Scene) -> Iterator[Finding]:
    folder = Path(scene.status.logs.folder)
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            yield problem(f"the log folder {folder} is not a folder", f"mv {quoted(folder)} {quoted(f'{folder}.old')}")
        return
    yield from _private(folder)
    if scene.status.logs.size > LARGE_LOGS:
        size = scene.status.logs.size / 10**9
        yield note(f"the logs take {size:.0f} GB; this removes those older than 30 days", forget(folder))


def attached(scene: Scene) -> Iterator[Finding]:
    """Clients whose own configuration names a port, and one that can be reached in no other way."""
    status = scene.status
    for client in status.attached:
        if not client.finished:
            yield problem(f"attaching {client.client} was cut short", f"llm-proxy attach {client.client}")
        elif client.port != status.port:
            mend = f"llm-proxy attach {client.client}" if status.running else "llm-proxy --setup"
            yield problem(f"{client.client} is attached to port {client.port}, where none of ours listens", mend)
    known = {client.client for client in status.attached}
    if "codex" not in known and shutil.which("codex", path=scene.environ.get("PATH")):
        yield note("Codex reads no variable, so its calls do not pass here", "llm-proxy attach codex")


def forget(folder: Path) -> str:
    return f"find {quoted(folder)} -name '*.jsonl*' -mtime +30 -delete"


def listens(host: str, port: int) -> bool:
    """Whether a connection is taken there, at once."""
    try:
        socket.create_connection((host, port), 0.3).close()
    except OSError:
        return False
    return True


def _holder(port: int) -> str:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for link in psutil.net_connections("tcp"):
            if link.pid and link.status == psutil.CONN_LISTEN and link.laddr and link.laddr.port == port:
                return f"{psutil.Process(link.pid).name()} (pid {link.pid})"
    return "another program"


def _private(folder: Path) -> Iterator[Finding]:
    """Ours, writable, and for nobody else to read; also what lies in it, as far as a second's walk gets."""
    foreign, public = _misfits(folder)
    if foreign is not None:
        mend = f'sudo chown -R "$(id -un)" {quoted(folder)}'
        yield problem(f"{foreign} belongs to somebody else (was something run with sudo?)", mend)
    if public is not None:
        yield problem(f"{public} can be read by other users of this machine", f"chmod -R go-rwx {quoted(folder)}")
    if foreign is None and not os.access(folder, os.W_OK | os.X_OK):
        yield problem(f"{folder} cannot be written", f"chmod u+rwx {quoted(folder)}")


def _misfits(folder: Path) -> tuple[str | None, str | None]:
    """The first path that is not ours, the first that others may read or write."""
    foreign = public = None
    deadline = time.monotonic() + _WALK_LIMIT
    waiting = [str(folder)]
    while waiting and time.monotonic() < deadline:
        path = waiting.pop()
        try:
            facts = os.lstat(path)
            if foreign is None and facts.st_uid != os.geteuid():
                foreign = path
            # what lies in a folder that nobody may enter is out of reach
            if facts.st_mode & 0o077 and not stat.S_ISLNK(facts.st_mode) and public is None:
                public = path
            if stat.S_ISDIR(facts.st_mode):
                waiting += [entry.path for entry in os.scandir(path)]
        except OSError:
            continue
        if foreign and public:
            break
    return foreign, public
