"""The share of processors that are short, for who writes the record: what the others leave, until it has waited long.

A niceness orders the processes of one group of the scheduler. Linux makes such a group of every session (autogroup,
sched(7)) and gives each the same share, so that a nice keeper in a session of its own takes as much as the proxy. But a
session has a niceness too, which, unlike a process', needs no privilege to be taken back. Where there are no
autogroups, or control groups come before them, the process' niceness is what counts. Scheduling classes (SCHED_IDLE,
SCHED_BATCH) do not reach beyond a group either.
"""

from __future__ import annotations

import os
from pathlib import Path

LAST_IN_LINE = 19
_SESSION = Path("/proc/self/autogroup")


class Priority:
    """Last in line from now on; `hurry` may change that for a while."""

    def __init__(self) -> None:
        os.nice(LAST_IN_LINE)
        self._ours = os.getsid(0) == os.getpid()  # a session that others are in as well is not ours to slow down
        self._niceness = 0
        self.hurry(False)

    def hurry(self, hurry: bool) -> None:
        """Take the same share as every other session, or what they leave."""
        niceness = 0 if hurry else LAST_IN_LINE
        if not self._ours or niceness == self._niceness:
            return
        try:
            _SESSION.write_text(str(niceness))
        except OSError:  # none here; or refused because somebody wrote a moment ago, so the next call tries again
            return
        self._niceness = niceness
