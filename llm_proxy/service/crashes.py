"""Counts starts that had no clean end, where no service manager does it: after several in a row, safe mode.

Kept in the state file `starts`, as seconds since boot; a clean stop forgets them. Leaves out what safe mode is.
"""

from __future__ import annotations

import time

from llm_proxy.errors import StateUnusable
from llm_proxy.service import state

LIMIT = 5  # starts
WINDOW = 60.0  # seconds; launchd's ThrottleInterval of 5 s allows 12 starts in it
_FILE = "starts"


def looping(folder: str, now: float | None = None) -> bool:
    """Note a start of the daemon; whether `LIMIT` others within `WINDOW` seconds before it have crashed."""
    now = time.monotonic() if now is None else now
    before = [at for at in _starts(folder) if now - WINDOW < at <= now]  # later than now: another boot's
    try:
        state.write(folder, _FILE, " ".join(f"{at:.1f}" for at in [*before[1 - LIMIT :], now]))
    except StateUnusable:
        return False
    return len(before) >= LIMIT


def forget(folder: str) -> None:
    state.remove(folder, _FILE)


def _starts(folder: str) -> list[float]:
    try:
        return [float(word) for word in (state.read(folder, _FILE) or b"").decode("ascii").split()]
    except ValueError:
        return []
