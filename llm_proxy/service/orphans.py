"""As process 1 of a container we are given whoever has lost its parent, and have to bury it.

A zombie that is seen twice, a while apart, is nobody's: whoever started a process of ours waits for it at once. Leaves
out our own processes (`supervise`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os

EVERY = 5.0  # seconds


async def bury(every: float = EVERY) -> None:
    """For ever, where we are process 1; else nothing."""
    if os.getpid() != 1:
        return
    seen = 0
    while True:
        await asyncio.sleep(every)
        seen = look(seen)


def look(seen: int) -> int:
    """Bury `seen`, which was dead at the last look, if it still lies there; the next one that does, 0 for none."""
    while (found := _dead()) and found == seen:
        _wait(found)
    return found


def _wait(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # somebody has, just now
        os.waitpid(pid, os.WNOHANG)


def _dead() -> int:
    """A child that has ended and that nobody has waited for; 0 where there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return found.si_pid if found is not None else 0
