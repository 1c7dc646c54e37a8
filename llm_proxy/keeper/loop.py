"""The keeper's life: wait for the journal to grow, settle what is in it, say how things stand, end when told to.

One process per journal, one thread, nothing asynchronous: each step is finished before the next begins, and any of
them may be the last. Whatever refuses (a full disk, a folder that cannot be written) is tried again; meanwhile the
journal keeps everything.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import select
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import msgspec

from llm_proxy.journal import segments
from llm_proxy.journal.reader import Position, Reader
from llm_proxy.journal.writer import JournalBusy, recover, writer_lock
from llm_proxy.keeper import retention
from llm_proxy.keeper.assemble import Assembler, Call, Gap
from llm_proxy.keeper.deleting import Deleting
from llm_proxy.keeper.figures import Figures
from llm_proxy.keeper.indexing import SLICE, Indexing
from llm_proxy.keeper.options import Options
from llm_proxy.keeper.places import Item
from llm_proxy.keeper.sessions import is_undecided
from llm_proxy.keeper.settle import Recorder, Tally
from llm_proxy.keeper.store import Store, StoreDamaged, open_store
from llm_proxy.keeper.telling import Teller
from llm_proxy.records import privacy
from llm_proxy.sinks.log_files import Logs
from llm_proxy.sinks.priority import Priority

TICK = 1.0  # seconds between two looks without being woken; also what a power cut may cost
SYNC_SHARE = 0.05  # of the time, at most: what is not synced yet is still in the journal
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between attempts
LETTING_GO = 2.0  # seconds a killed proxy may take: the kernel ends its pipe before it lets go of its lock
READ = 4 << 20  # bytes of journal at once
# The journal can wait, the proxy's streams cannot: where cores are short, the keeper has what is left of them.
# With this much waiting, or this part of the journal's cap, the cap may be near: the log files come first, the index
# later.
HURRY, HURRY_PART = 256 << 20, 8  # bytes; an eighth
UPKEEP = 3600.0  # seconds between two looks at what may be forgotten
# One transaction holds about this many bytes of bodies and this many calls, or a single larger one.
GROUP_BYTES = 8 << 20
GROUP_CALLS = 512

Trouble = (OSError, sqlite3.Error, StoreDamaged)
T = TypeVar("T")


class Told:
    """What the keeper is told from outside: by its stdin (a pipe the proxy holds) and by SIGTERM."""

    def __init__(self) -> None:
        self.leave = False  # SIGTERM
        self.alone = False  # the pipe has ended: the proxy is gone
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    @property
    def stop(self) -> bool:
        return self.leave or self.alone

    def wait(self, seconds: float) -> None:
        """Until woken, told to stop, or the time is over."""
        pipes = [self._reading] if self.alone else [self._reading, 0]
        ready, _, _ = select.select(pipes, [], [], seconds)
        if 0 in ready:
            try:
                self.alone = not os.read(0, 65536)
            except OSError:
                self.alone = True
        if self._reading in ready:
            os.read(self._reading, 65536)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.leave = True


class GaveUp(Exception):
    """Told to stop while the log files cannot be written. The journal still holds what is missing."""


class Snapshot:
    """`keeper.json`: how things stand, for `--status` and `/metrics`. Written when something has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fixed = {"pid": os.getpid(), "started": time.time()}
        self._errors = 0
        self._last_error = ""
        self._last_error_at = 0.0
        self._said: dict[str, Any] = {}
        self._due_at = 0.0

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due_at

    def trouble(self, error: str) -> None:
        self._errors += 1
        self._last_error = error
        self._last_error_at = time.time()

    def write(self, **facts: Any) -> None:
        self._due_at = time.monotonic() + TICK
        facts |= {"errors": self._errors, "last_error": self._last_error, "last_error_at": self._last_error_at}
        if facts == self._said:
            return
        self._said = facts
        _replace(self.path, msgspec.json.encode(self._fixed | facts | {"updated": time.time()}))

    def figures(self, figures: Figures) -> None:
        """`keeper.prom`: what calls meant, in Prometheus' format; the first line says whose."""
        now = time.time()
        if figures.due(now):
            _replace(self.path.with_suffix(".prom"), f"# {os.getpid()}\n{figures.text(now)}".encode())


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".new")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        draft.replace(path)
    except OSError:  # it only tells; what it tells about is safe
        pass


@contextmanager
def keeper_lock(path: Path, told: Told) -> Iterator[bool]:
    """One keeper per journal: wait for the one before. Gives False where it was told to leave first. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while not told.leave:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                told.wait(FIRST_PAUSE)
                continue
            yield True
            return
        yield False
    finally:
        os.close(fd)


def machine() -> str:
    """user@host, as the log entries name it."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = "unknown"
    return f"{user}@{socket.gethostname() or 'unknown'}"


class Keeper:
    """Turns one journal into log files until it is told to stop."""

    def __init__(self, journal: Path, logs: Path, state: Path, options: Options) -> None:
        self.journal = journal
        self.options = options
        self.told = Told()
        self.logs = Logs(logs)
        self.database = state / "sessions.db"
        self.indexing = Indexing(options.index, logs)
        self.deleting = Deleting(options, logs)
        self.snapshot = Snapshot(journal / "keeper.json")
        self.tally = Tally()
        self.machine = machine()
        self.teller = Teller(self.machine, options, state, self.tally.troubles)
        self.store: Store
        self.reader: Reader
        self.assembler: Assembler
        self.recorder: Recorder
        self.priority: Priority
        self._much = min(HURRY, options.cap // HURRY_PART)
        self._opened = False
        self._settled = Position(0, 0)  # the committed checkpoint
        self._unsynced = False
        self._synced_at = self._sync_took = 0.0
        self._behind_since = 0.0  # wall time at which there was more to settle than nothing
        self._kept_up_at = -UPKEEP
        self._retained: Iterator[retention.Done] = iter(())

    def run(self) -> int:
        """The process's exit status: 0 unless something is left in the journal that could not be written."""
        with keeper_lock(self.journal / "keeper.lock", self.told) as locked:
            if not locked:
                return 0
            self.priority = Priority()
            try:
                self._insist(self._open)
                self._look()
                while not self.told.stop:
                    self._upkeep()
                    self.told.wait(min(TICK, self.deleting.pause or TICK))
                    self._look()
                complete = self._finish()
            except GaveUp:
                complete = False
            self._say("stopped" if complete else "unfinished")
            return 0 if complete else 1

    # -- beginning

    def _open(self) -> None:
        self.store, trouble = open_store(self.database, str(self.journal))
        if trouble:
            self.snapshot.trouble(f"{trouble}; a new one was begun")
        start = self._start()
        self.reader = Reader(self.journal, start)
        self.assembler = Assembler(self.store.settled() if start else (), start or Position(0, 0))
        self._record()
        self._opened = True
        self._say("ok", now=True)

    def _record(self) -> None:
        facts = (self.store, self.logs, self.machine, self.tally, self.teller)
        self.recorder = Recorder(*facts, posts=self.options.posts, lanes=self.options.lanes)

    def _start(self) -> Position | None:
        """Where the last life's checkpoint is, unless the journal is not the one it belongs to any more."""
        known = self.store.checkpoint()
        if known is None:
            return None
        run, position = known
        try:
            with segments.path_of(self.journal, position.segment).open("rb") as file:
                head = segments.read_head(file.read(segments.SEGMENT_HEADER.size))
        except FileNotFoundError:
            return None
        if head is None or head.run.hex() != run:
            return None
        self._settled = position
        return position

    # -- living

    def _look(self) -> None:
        """Settle everything that is in the journal now."""
        more = True
        while more:
            more = self._insist(self._step)
            self._insist(lambda: self._sync(TICK))
        self._say("ok")

    def _step(self) -> bool:
        batch = self.reader.read(READ)
        self._behind_since = 0.0 if batch is None else self._behind_since or time.time()
        if batch is None:
            if self.assembler.run and self.reader.run != self.assembler.run:  # the next run has begun, silently
                self._settle(self.assembler.interrupt())
            elif self.assembler.follow(self.reader.run, self.reader.position):
                self._settle(())
            return False
        over = self.assembler.take(batch)
        self._settle([*over, *self.assembler.requested()])
        return True

    def _settle(self, calls: Iterable[Call | Gap]) -> None:
        group: list[Item] = []
        size = 0
        for one in calls:
            item = None if isinstance(one, Call) and self._withheld(one) else self._item(one)
            if item is None:
                continue
            group.append(item)
            size += item.exchange.request.size + item.exchange.response.size if item.exchange else 0
            if size > GROUP_BYTES or len(group) >= GROUP_CALLS:
                self._commit(group)
                group, size = [], 0
        self._commit(group)

    def _withheld(self, call: Call) -> bool:
        """Whether nothing is to be kept of it: its user wants it so, or has had it deleted while it was under way."""
        whose = call.gateway
        if whose is None:
            return False
        if self.deleting.covers(whose.account, privacy.begun(whose, call.opening.wall_ns)):
            why = "deleted"
        elif privacy.level(whose, self.options.gateway_privacy) == privacy.NONE and not self.recorder.begun(call.id):
            why = "privacy"
        else:
            return False
        if call.over:
            self.assembler.forget([call])
            self.tally.withheld += 1
            self.tally.figures.withhold(why)
        return True

    def _item(self, one: Call | Gap) -> Item | None:
        if isinstance(one, Gap):
            return Item(one)
        if one.over:
            return Item(one, one.exchange(self.reader.fetch))
        exchange = one.request_arrived(self.reader.fetch)
        return Item(one, exchange) if exchange is not None and not is_undecided(exchange) else None

    def _commit(self, group: list[Item]) -> None:
        if not group and self.assembler.checkpoint()[1] == self._settled:
            return
        while True:
            group = group[self._insist(partial(self._commit_some, group)) :]
            if not group:
                break
        self._say("ok")

    def _commit_some(self, group: list[Item]) -> int:
        """Settle items of the group, from the first on; returns how many."""
        count = self.recorder.decide(group)
        over = [one for item in group[:count] if isinstance(one := item.one, Call | Gap) and one.over]
        run, checkpoint = self.assembler.checkpoint(over)
        lines = self.recorder.settle(group[:count], run, checkpoint)
        hurry = self._lag() > self._much
        self.priority.hurry(hurry or self.told.stop)
        self.indexing.take(lines, hurry=hurry)
        self.assembler.forget(over)
        self._settled = checkpoint
        self._unsynced = True
        return count

    def _sync(self, every: float) -> None:
        """The log files, then what is known of them, to disk; then the journal need not hold it any longer."""
        now = time.monotonic()
        if not self._unsynced or now < self._synced_at + every * max(1.0, self._sync_took / SYNC_SHARE):
            return
        self.logs.sync()
        self.store.make_durable()
        self._unsynced = False
        self.reader.forget(self._settled)
        self._synced_at = time.monotonic()
        self._sync_took = self._synced_at - now

    # -- between calls

    def _upkeep(self) -> None:
        """What can wait: the index where it is behind, and once an hour what is old. Pauses when the journal grows."""
        self._delete()
        self.indexing.catch_up(self._is_wanted)
        now = time.monotonic()
        try:
            if now - self._kept_up_at >= UPKEEP:
                self._kept_up_at = now
                self.store.purge()
                self._retained = retention.run(self.options.retention, self.logs.root, self.store)
            while not self._is_wanted() and next(self._retained, None) is not None:
                self.indexing.look_again()
        except Trouble as error:  # tried again in an hour; damage is found by whoever writes next
            self.snapshot.trouble(f"old records were not looked after: {error}")

    def _delete(self) -> None:
        """What users want to be deleted: some of it each time, however busy we are."""
        end = time.monotonic() + SLICE
        try:
            while self.deleting.step(self.store, self.indexing, self.recorder.look_again):
                if self._is_wanted() and time.monotonic() >= end:
                    break
        except Trouble as error:  # tried again
            self.snapshot.trouble(f"conversations could not be deleted: {error}")

    def _is_wanted(self) -> bool:
        return self.told.stop or self._lag() > 0

    # -- trouble

    def _insist(self, action: Callable[[], T]) -> T:
        """Try until it works. Raises GaveUp where it does not and the keeper has been told to stop."""
        pause = FIRST_PAUSE
        while True:
            try:
                result = action()
            except StoreDamaged as error:
                self.snapshot.trouble(str(error))
                self._replace_store()
            except (OSError, sqlite3.Error) as error:
                self.snapshot.trouble(str(error))
                self._say("degraded", now=True)
            else:
                return result
            if self.told.stop:
                raise GaveUp
            self._pause(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.told.stop and (left := end - time.monotonic()) > 0:
            self.told.wait(left)

    def _replace_store(self) -> None:
        try:
            self.store.move_aside()
            self.store, _ = open_store(self.database, str(self.journal))
        except Trouble as error:
            self.snapshot.trouble(str(error))
            return
        self._record()

    # -- ending

    def _finish(self) -> bool:
        """Settle what there is; where the proxy is dead, its open calls too. False: something could not be had."""
        deadline = time.monotonic() + (LETTING_GO if self.told.alone else 0)
        while True:
            try:
                with writer_lock(self.journal):
                    return self._finish_alone()
            except JournalBusy:  # the proxy goes on, or the next one has begun: its own keeper takes over from here
                self._look()
            if time.monotonic() >= deadline:
                self._insist(lambda: self._sync(0))
                return True
            self.told.wait(0.05)

    def _finish_alone(self) -> bool:
        complete = True
        try:
            recover(self.journal)
        except OSError as error:
            self.snapshot.trouble(f"the ring of the dead proxy cannot be moved to the journal: {error}")
            complete = False
        self._look()
        if complete:
            self._settle(self.assembler.interrupt())
        self._insist(lambda: self._sync(0))
        if complete:
            self._insist(self.reader.forget_all)
        return complete

    def _say(self, state: str, *, now: bool = False) -> None:
        if not (now or state in ("stopped", "unfinished") or self.snapshot.due):
            return
        tally, lag = self.tally, self._lag()
        if not lag:
            self._behind_since = 0.0
        self.snapshot.write(
            state=state,
            exchanges=tally.exchanges,
            entries=tally.entries,
            interrupted=tally.interrupted,
            lag_bytes=lag,
            last_exchange_at=tally.last_exchange / 1e9,
            damaged_blocks=self.reader.damaged if self._opened else 0,
            truncated_exchanges=tally.truncated,
            gaps=tally.gaps,
            withheld=tally.withheld,
            torn_lines=tally.torn,
            unwritable=tally.troubles.counts["tell"],
            troubles=dict(tally.troubles.counts),
            last_trouble=tally.troubles.last,
            index=self.indexing.state,
            index_trouble=self.indexing.trouble,
            behind_since=self._behind_since,
        )
        self.snapshot.figures(tally.figures)

    def _lag(self) -> int:
        try:
            return self.reader.lag() if self._opened else 0
        except OSError:
            return 0
