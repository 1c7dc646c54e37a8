"""`python -m llm_proxy.lanes JSON`: runs the lanes; the daemon starts and ends it.

Bytes on stdin mean that there may be calls, its end that the daemon has gone: what is there is passed on, for a while.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sqlite3
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from llm_proxy.lanes.cursors import Cursors
from llm_proxy.lanes.deleting import Deletions
from llm_proxy.lanes.lane import Lane, State
from llm_proxy.lanes.options import TABLES, Options, options
from llm_proxy.lanes.sink import UnknownSink, Unusable, make
from llm_proxy.sinks.outbox import Outbox
from llm_proxy.sinks.priority import Priority

TICK = 1.0  # seconds: the keeper settles shortly after the wake-up that both are given
FINISH = 10.0  # seconds for what is left when it is to end
BEAT = 10.0  # seconds after which the same is said again
FORGET = 60.0  # seconds between two looks at what all lanes have passed on


class Lanes:
    """All lanes of one daemon."""

    def __init__(self, given: Options) -> None:
        self.given = given
        self.place = given.place
        self.outbox = Outbox(Path(given.state, "sessions.db"), given.name)
        self.cursors = Cursors(self.place / "sinks.db")
        self.lanes: list[Lane] = []
        self.broken: dict[str, State] = {}
        self._said: dict[str, Any] = {}
        self._said_at = 0.0
        self._forgot_at = 0.0
        self._leave = False
        # Only calls of this very run can be waiting in lanes that have never been.
        all_calls = bool(given.name) and not self.cursors.known()
        for name, told in given.sinks:
            try:
                sink = make(name, Path(given.folder), told)
            except Exception as error:  # one sink's trouble: a class of somebody's may raise anything
                why = str(error) if isinstance(error, Unusable | UnknownSink) else repr(error)
                self.broken[name] = State("broken", last_error=why, last_error_at=time.time())
            else:
                asked = Deletions(given.deletions, name, given.name)
                parking = self.place / "parked"
                self.lanes.append(Lane(name, sink, self.outbox, self.cursors, parking, all_calls, asked))

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        priority = Priority()
        for lane in self.lanes:
            lane.start()
        while not self._leave and self._wait():
            for lane in self.lanes:
                lane.news.set()
            if time.monotonic() - self._forgot_at > FORGET:
                self._forget()
            self.say()
        priority.hurry(True)
        deadline = time.monotonic() + FINISH
        for lane in self.lanes:
            lane.finish(deadline)
        self._forget()
        self.say("stopped")

    def say(self, state: str = "running") -> None:
        """`sinks.json`, written when something has changed, and now and then to show that we live."""
        try:
            sinks = {lane.name: lane.standing() for lane in self.lanes}
        except sqlite3.Error:
            sinks = {lane.name: asdict(lane.state) for lane in self.lanes}
        sinks |= {name: asdict(one) for name, one in self.broken.items()}
        facts = {"pid": os.getpid(), "state": state, "sinks": sinks}
        now = time.monotonic()
        if facts == self._said and now - self._said_at < BEAT:
            return
        self._said, self._said_at = facts, now
        path = self.place / "sinks.json"
        draft = path.with_suffix(".new")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(facts | {"updated": time.time()}, file)
            draft.replace(path)
        except OSError:  # it only tells; what it tells about is safe
            pass

    def _wait(self) -> bool:
        """Until woken or the time is over; False where the daemon has gone."""
        try:
            ready, _, _ = select.select([0], [], [], TICK)
            return not ready or bool(os.read(0, 65536))
        except InterruptedError:
            return True
        except OSError:
            return False

    def _forget(self) -> None:
        self._forgot_at = time.monotonic()
        try:
            self.outbox.forget(self.cursors.lowest([name for name, _ in self.given.sinks]))
        except sqlite3.Error:  # another time
            pass

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._leave = True


def main() -> int:
    given = options(sys.argv[1], os.environ.pop(TABLES, "{}"))
    os.umask(0o077)
    given.place.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(given.place / "lanes.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # the lanes of another daemon of this user, or of the one before
    Lanes(given).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
