"""How those stand that the proxy only hears of: the keeper, the lanes of the sinks, the disks.

What a process has written of itself is believed only while that process lives. Leaves out how it is told (`report`).
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAGGING = 60.0  # seconds a lane may be behind before it is said to lag
SILENT = 30.0  # seconds; a process of lanes that lives says so more often
_COUNTED = re.compile("[a-z_]{1,32}")
_MOST_COUNTED = 16
_MOST = 1e18  # a number beyond it, and infinity, is somebody's mistake
DISK_EVERY = 10.0  # seconds between two looks at how full the disks are


def snapshot(path: Path | None) -> dict[str, Any]:
    """What a process has last said of itself; empty where it lives no more, or ended in good order."""
    told = last_words(path)
    return told if _lives(told) else {}


def last_words(path: Path | None) -> dict[str, Any]:
    """The same, whether that process lives or not; empty where nothing can be read."""
    if path is None:
        return {}
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _lives(told: Mapping[str, Any]) -> bool:
    pid = told.get("pid")
    # 0 and below are groups, which always live
    if type(pid) is not int or pid <= 0 or told.get("state", "stopped") == "stopped":
        return False
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return True


def figures(path: Path | None, pid: object) -> bytes:
    """What the keeper of that process id has counted, in Prometheus' format; empty where there is nothing of its."""
    if path is None or not pid:
        return b""
    try:
        whose, _, text = path.with_suffix(".prom").read_bytes().partition(b"\n")
    except OSError:
        return b""
    return text if whose == f"# {pid}".encode() and text.endswith(b"\n") else b""


def number(told: Mapping[str, Any], name: str) -> float:
    """A number in what somebody wrote; 0 where it is none."""
    value = told.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST else 0


@dataclass(frozen=True, slots=True)
class Lane:
    """One sink's lane. `state` is ok, lagging, retrying, broken, silent (its process says nothing) or down (there is
    none). `waiting`, `passed`, `parked` and `gone` are calls; `lag` is seconds since all had been passed on; times are
    seconds since 1970, 0 for never. `retries` is how often something was offered again, `counted` what the sink itself
    counts, by names of its own; `warning` is what it wants a person to know although it gets on.
    """

    state: str
    waiting: int = 0
    lag: float = 0.0
    passed: int = 0
    parked: int = 0
    gone: int = 0
    retries: int = 0
    counted: Mapping[str, int] = field(default_factory=dict)
    warning: str = ""
    last_error: str = ""
    last_error_at: float = 0.0


def lanes(path: Path | None, names: Sequence[str], now: float) -> dict[str, Lane]:
    """The lanes of those sinks, by what their process has written there; `now` is the wall time."""
    if not names:
        return {}
    told = last_words(path)
    known = told.get("sinks")
    written = known if isinstance(known, dict) else {}
    silent = "silent" if now - number(told, "updated") > SILENT else ""
    trouble = silent if _lives(told) else "down"
    return {name: _lane(written.get(name), trouble, now) for name in names}


def _lane(told: object, trouble: str, now: float) -> Lane:
    if not isinstance(told, dict):
        return Lane(trouble or "down")
    since, state = number(told, "since"), told.get("state")
    lag = max(0.0, now - since) if since else 0.0
    if state not in ("ok", "retrying"):
        state = "broken"
    elif state == "ok" and lag > LAGGING:
        state = "lagging"
    counts = {name: int(number(told, name)) for name in ("waiting", "passed", "parked", "gone", "retries")}
    return Lane(
        trouble or state,
        lag=round(lag, 3),
        **counts,
        counted=_counted(told.get("counted")),
        warning=str(told.get("warning") or ""),
        last_error=str(told.get("last_error") or ""),
        last_error_at=number(told, "last_error_at"),
    )


def _counted(told: object) -> dict[str, int]:
    """Those that can be a metric's label and value."""
    if not isinstance(told, dict):
        return {}
    names = [name for name in told if _COUNTED.fullmatch(name)][:_MOST_COUNTED]
    return {name: int(number(told, name)) for name in names}


class Disks:
    """Free bytes of file systems, looked at by a thread: a dead network disk answers late or never."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = dict(folders)
        self._stop = threading.Event()
        self.free: dict[str, int] = {}

    def start(self) -> None:
        if self._folders:
            threading.Thread(target=self._look, name="disks", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _look(self) -> None:
        while True:
            self.free = dict(self._found())
            if self._stop.wait(DISK_EVERY):
                return

    def _found(self) -> Iterator[tuple[str, int]]:
        for name, folder in self._folders.items():
            for place in (Path(folder), *Path(folder).parents):  # it may not be there yet
                try:
                    found = os.statvfs(place)
                except OSError:
                    continue
                yield name, found.f_bavail * found.f_frsize
                break
