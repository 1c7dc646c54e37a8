"""This user's launchd, through launchctl. Its commands return before they are done, so each is waited for.

Leaves out what the agent holds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from llm_proxy.errors import SetupFailed

_LIMIT = 10.0  # seconds for one command
_GONE_LIMIT = 40.0  # the daemon drains for 25 s before the job is gone
_ATTEMPTS = 5
_BUSY = 5  # EIO: what bootstrap says while the old job is still on its way out
_LOADED_ALREADY = 37  # EALREADY, and 17 EEXIST on some versions


def target() -> str:
    return f"gui/{os.getuid()}"


def available() -> bool:
    return shutil.which("launchctl") is not None


def is_loaded(label: str) -> bool:
    """Raises SetupFailed where launchctl cannot be run."""
    return _launchctl("print", f"{target()}/{label}").returncode == 0


def load(label: str, plist: str) -> None:
    """(Re)load the agent. Raises SetupFailed."""
    unload(label)
    for attempt in range(_ATTEMPTS):
        done = _launchctl("bootstrap", target(), plist)
        if done.returncode == 0:
            return
        if done.returncode in (_LOADED_ALREADY, 17):
            if _launchctl("kickstart", "-k", f"{target()}/{label}").returncode == 0:
                return
        elif done.returncode != _BUSY:
            break
        time.sleep(0.2 * (attempt + 1))  # launchd tells nobody when it is ready
    raise SetupFailed(f"`launchctl bootstrap {target()}` failed: {done.stderr.strip() or f'status {done.returncode}'}")


def unload(label: str) -> None:
    """Stop the agent and wait until launchd has let go of it; nothing where it is not loaded. Raises SetupFailed."""
    if not is_loaded(label):
        return
    _launchctl("bootout", f"{target()}/{label}")
    deadline = time.monotonic() + _GONE_LIMIT
    while is_loaded(label):
        if time.monotonic() > deadline:
            raise SetupFailed(f"launchd still holds {label} after {_GONE_LIMIT:g} s")
        time.sleep(0.1)  # bootout returns at once, and launchd tells nobody when it is done


def _launchctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["launchctl", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SetupFailed(f"`launchctl {arguments[0]}` cannot be run: {exc}") from exc
