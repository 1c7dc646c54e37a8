"""What systemd is told: ready, stopping, still alive, keep this. Silence where it does not listen.

The watchdog is fed from the event loop itself, so a loop that hangs is seen. An error here never reaches the daemon.
Leaves out unit files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Any

_USUAL_STOP = 30.0  # seconds, our unit's TimeoutStopSec


class Manager:
    """The service manager's end of the line, as named by NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self._notifier: Any = None
        self._beat: asyncio.TimerHandle | None = None
        if os.environ.get("NOTIFY_SOCKET"):
            import sdnotify

            self._notifier = sdnotify.SystemdNotifier()
            if self._notifier.socket is not None:
                self._notifier.socket.setblocking(False)
        # the unit with Type=notify is ours, and has the limit and the successor
        self.counts_crashes = self._notifier is not None
        # ours alone (NotifyAccess=main): a child that inherits it would be ignored with a warning
        os.environ.pop("NOTIFY_SOCKET", None)

    def ready(self, status: str = "") -> None:
        self._tell("READY=1" + (f"\nSTATUS={status}" if status else ""))
        if interval := _watchdog_interval():
            self._feed(interval)

    def stopping(self, longer: float = 0.0) -> None:
        """Say so; the watchdog is fed on, since draining runs in the same loop. `longer`: seconds more than usually."""
        self._tell("STOPPING=1" + (f"\nEXTEND_TIMEOUT_USEC={int((longer + _USUAL_STOP) * 1e6)}" if longer else ""))

    def keep(self, name: str, sockets: Iterable[socket.socket]) -> None:
        """Have it hold them too, so that they are there for whoever comes after us."""
        if self._notifier is None or self._notifier.socket is None:
            return
        text = f"FDSTORE=1\nFDNAME={name}".encode()
        with contextlib.suppress(OSError):
            socket.send_fds(self._notifier.socket, [text], [link.fileno() for link in sockets])

    def give_up(self, name: str) -> None:
        """What it holds under that name is no longer wanted."""
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()

    def _feed(self, interval: float) -> None:
        self._tell("WATCHDOG=1")
        self._beat = asyncio.get_running_loop().call_later(interval, self._feed, interval)

    def _tell(self, text: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(text)


def _watchdog_interval() -> float:
    """Half of the time systemd grants, in seconds; 0 where it does not watch this process (sd_watchdog_enabled(3))."""
    granted, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(granted) / 2e6 if granted.isdecimal() and pid == str(os.getpid()) else 0.0
