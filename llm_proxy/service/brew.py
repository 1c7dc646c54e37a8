"""Homebrew's service for us: whether it is there, and stopping it. Its files are Homebrew's alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llm_proxy import paths
from llm_proxy.errors import SetupFailed
from llm_proxy.service import launchd, units

STOP = "brew services stop llm-proxy"
_LIMIT = 120.0  # seconds; brew waits for the daemon, which drains


def starts_it(platform: str) -> bool:
    """Whether it starts the daemon. Raises SetupFailed where launchctl cannot be run."""
    if platform == "darwin":
        return launchd.available() and launchd.is_loaded(units.BREW_LABEL)
    return (Path(paths.home()) / ".config/systemd/user" / units.BREW_UNIT).exists()


def stop() -> None:
    """For good: neither now nor at the next login. Raises SetupFailed."""
    try:
        done = subprocess.run(
            STOP.split(), capture_output=True, text=True, errors="replace", timeout=_LIMIT, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SetupFailed(f"`{STOP}` cannot be run: {exc}") from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SetupFailed(f"`{STOP}` failed: {said[-1] if said else f'status {done.returncode}'}")
