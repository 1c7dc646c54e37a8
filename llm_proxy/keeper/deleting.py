"""Deletes a gateway's user's conversations from this machine, as the gateway asks for by files in a folder.

The files stand in `sinks.deletions`. First come the session logs and the index; then sinks that can delete what they
have written say that they have, and the question is answered. Whatever is killed, the next keeper begins anew with
what is still there. What `rules.json` says holds for good: a call that was under way is not written when it ends.
Leaves out what was sent elsewhere: the answer names it.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import msgspec

from llm_proxy.keeper.indexing import Indexing
from llm_proxy.keeper.options import Options
from llm_proxy.keeper.retention import write_beside
from llm_proxy.keeper.store import Store
from llm_proxy.records import privacy, understood
from llm_proxy.sinks import deletions, log_reader
from llm_proxy.sinks.deletions import CALLS, DONE, LOGS, PART, Order, Report, put, sync_folder
from llm_proxy.sinks.log_reader import COMPRESSED, PLAIN
from llm_proxy.wire.attribution import Attribution

RULES, LOCK = "rules.json", "lock"
_SOON, _NOT_AS_SOON = 0.1, 0.25  # seconds between two attempts, two looks for sinks' answers
_CALLS = frozenset({"request", "response", "price"})


class _Meta(msgspec.Struct):
    request_id: str = ""
    ts: str = ""


class _Whose(msgspec.Struct):
    account: str = ""
    request: str = ""


class _Found(msgspec.Struct):
    """What must be known of a line."""

    type: str = ""
    seq: int = 0
    meta: _Meta = msgspec.field(name="_meta", default_factory=_Meta)
    gateway: _Whose | None = None


_read_found = msgspec.json.Decoder(_Found).decode
_read_report = msgspec.json.Decoder(Report).decode
_read_rules = msgspec.json.Decoder(dict[str, int]).decode


class _Line(NamedTuple):
    offset: int
    length: int
    found: _Found

    @property
    def call(self) -> str:
        return self.found.meta.request_id


@dataclass(slots=True)
class _Pass:
    """One way through all session files, for all that was asked before it began."""

    orders: list[Order]
    lock: int
    due: float
    groups: Iterator[list[str]]
    counts: dict[str, int] = field(default_factory=dict)  # conversations, by order
    strays: int = 0  # calls that do not say whose they are
    unread: int = 0  # files


class Deleting:
    """For the log folder `root`. Without a folder in `options` nobody asks for anything."""

    def __init__(self, options: Options, root: Path) -> None:
        self._folder = Path(options.deletions)
        self._on = bool(options.deletions)
        self._root = root
        self._sent = options.sent
        self._answers = tuple(deletions.answer(sink, options.lanes) for sink in options.deleting_sinks)
        self._stands = options.rules_stand
        self._awaited = False  # some sink's answer
        self._rules: dict[str, int] = {}
        self._known: tuple[int, int] | None = None
        self._pass: _Pass | None = None
        self._look_at_rules()

    def covers(self, account: str, began: int) -> bool:
        """Whether a call of this account's that began then (ns) is to be as if it had never been."""
        return began < self._rules.get(account, 0)

    @property
    def pause(self) -> float | None:
        """Seconds until there is something to do; None where nothing is under way."""
        if self._pass is None:
            return _NOT_AS_SOON if self._awaited else None
        return max(_SOON, self._pass.due - time.monotonic())

    def step(self, store: Store, indexing: Indexing, changed: Callable[[], None]) -> bool:
        """Do one thing; False where there is nothing to do now. `changed` is called when lines have gone from files.

        Raises OSError, sqlite3.Error, StoreDamaged.
        """
        if not self._on:
            return False
        self._look_at_rules()
        self._pass = self._pass or self._begin()
        now = self._pass
        if now is None or time.monotonic() < now.due:
            return False
        try:
            files = next(now.groups, None)
            if files is None:
                return self._finish(now, store, indexing)
            if whose := self._clean(files, now, store):
                changed()
                for account in whose:
                    self._count(now, account)
        except BaseException:  # all of it once more
            os.close(now.lock)
            self._pass = None
            raise
        return True

    # -- what is asked

    def _begin(self) -> _Pass | None:
        self._awaited = False
        if not self._asked():
            return None
        lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another keeper sees to it
            os.close(lock)
            return None
        try:
            asked = self._asked()
            for order, files in asked:
                if LOGS in files:
                    self._conclude(order)
            orders = [order for order, files in asked if LOGS not in files]
            if not orders:
                os.close(lock)
                return None
            for order in orders:
                self._rules[order.account] = max(order.before, self._rules.get(order.account, 0))
            put(self._folder / RULES, msgspec.json.encode(self._rules))
            counts = {order.id: _counted(self._folder / (order.id + PART)) for order in orders}
            _remove_drafts(self._root)
        except BaseException:
            os.close(lock)
            raise
        return _Pass(orders, lock, time.monotonic() + self._stands, _groups(self._root), counts)

    def _asked(self) -> list[tuple[Order, set[str]]]:
        """Of the keepers of our log folder."""
        return [(order, files) for order, files in deletions.orders(self._folder) if order.means(self._root)]

    def _look_at_rules(self) -> None:
        """Another keeper may have been asked."""
        try:
            found = (self._folder / RULES).stat() if self._on else None
        except FileNotFoundError:
            return
        if found is None or self._known == (found.st_ino, found.st_mtime_ns):
            return
        with suppress(msgspec.MsgspecError):  # somebody else's: what we know holds
            for account, before in _read_rules((self._folder / RULES).read_bytes()).items():
                self._rules[account] = max(before, self._rules.get(account, 0))
        self._known = found.st_ino, found.st_mtime_ns

    # -- what is told

    def _count(self, now: _Pass, account: str) -> None:
        for order in now.orders:
            if order.account == account:
                now.counts[order.id] += 1
                put(self._folder / (order.id + PART), str(now.counts[order.id]).encode())

    def _finish(self, now: _Pass, store: Store, indexing: Indexing) -> bool:
        if not indexing.forget(found=any((self._folder / (order.id + PART)).exists() for order in now.orders)):
            return False
        store.scrub()
        strays = [f"{now.strays} calls recorded before it was told whose account makes them"] if now.strays else []
        unread = [f"{now.unread} session logs that cannot be read"] if now.unread else []
        left = "; ".join((*strays, *unread, *(f"what was passed on: {words}" for words in self._sent)))
        for order in now.orders:
            report = Report(time.time(), now.counts[order.id], left)
            put(self._folder / (order.id + LOGS), msgspec.json.encode(report))
            self._conclude(order)
        os.close(now.lock)
        self._pass = None
        return True

    def _conclude(self, order: Order) -> None:
        """Answer the question, once all sinks have."""
        answers = [self._folder / (order.id + ending) for ending in self._answers]
        try:
            told = [path.read_text(encoding="utf-8", errors="replace") for path in answers]
            report = _read_report((self._folder / (order.id + LOGS)).read_bytes())
        except FileNotFoundError:  # or another keeper has answered
            self._awaited = True
            return
        except msgspec.MsgspecError:  # no keeper's: all of it once more
            (self._folder / (order.id + LOGS)).unlink(missing_ok=True)
            return
        left = "; ".join(filter(None, (report.left, *told)))
        put(self._folder / (order.id + DONE), msgspec.json.encode(Report(time.time(), report.conversations, left)))
        for path in (*answers, *(self._folder / (order.id + ending) for ending in (LOGS, CALLS, PART))):
            path.unlink(missing_ok=True)

    def _name(self, gone: dict[str, str], now: _Pass) -> None:
        """That something goes; and which calls, for sinks whose files do not say whose they are. Before their logs."""
        for order in now.orders:
            calls = [call for call, account in gone.items() if account == order.account]
            part = self._folder / (order.id + PART)
            if calls and not part.exists():
                put(part, b"0")
            if calls and self._answers:
                deletions.add_calls(self._folder / (order.id + CALLS), calls)

    # -- what is done

    def _clean(self, files: list[str], now: _Pass, store: Store) -> set[str]:
        """The files of one conversation, in the order of its lines; gives the accounts of which something has gone.

        Raises OSError where somebody has written to one meanwhile.
        """
        stood = self._standing(files)
        try:
            if not self._concerns(files, now):
                return set()
            lines = {file: list(_lines(self._root / file)) for file in files}
        except FileNotFoundError:  # meanwhile
            return set()
        except OSError:  # damaged
            now.unread += 1
            return set()
        gone = _gone((line for found in lines.values() for line in found), now.orders)
        if not gone:
            return set()
        self._name(gone, now)
        kept = {file: [line for line in found if line.call not in gone] for file, found in lines.items()}
        if not any(line.found.type in _CALLS for found in kept.values() for line in found):
            kept = {file: [] for file in files}
        seqs = {line.found.seq for found in lines.values() for line in found if line.call in gone}
        drafts = {file: _draft(self._root / file, found) for file, found in kept.items() if found}
        try:
            with store.transaction():
                if self._standing(files) != stood:
                    raise OSError(f"{files[-1]} has grown while it was read")
                self._settle(store, kept, {UUID(call) for call in gone if _is_id(call)}, seqs)
                for file in files:
                    self._replace(file, drafts.get(file))
        finally:
            for draft in drafts.values():
                draft.unlink(missing_ok=True)
        return set(gone.values())

    def _concerns(self, files: list[str], now: _Pass) -> bool:
        needles = [f'"account":{msgspec.json.encode(order.account).decode()}'.encode() for order in now.orders]
        concerned = False
        for file in files:
            with log_reader.opened(self._root / file) as lines:
                for line in lines:
                    if _GATEWAY in line:
                        now.strays += _STRAY.search(line) is not None
                        concerned |= any(needle in line for needle in needles)
        return concerned

    def _standing(self, files: list[str]) -> list[tuple[int, int, int] | None]:
        """Within a transaction nobody else writes: what is true here stays true."""
        return [_state(self._root / file) for file in files]

    def _settle(self, store: Store, kept: dict[str, list[_Line]], calls: set[UUID], seqs: set[int]) -> None:
        last = max(kept, key=log_reader.order)  # the part that goes on
        plain = last.removesuffix(COMPRESSED).removesuffix(PLAIN) + PLAIN
        session = store.by_id(plain.rpartition("/")[2].removesuffix(PLAIN))
        store.forget_calls(calls)
        moved, at = {}, 0
        for line in kept[last]:
            moved[line.offset] = at
            at += line.length
        store.move_posts(str(self._root), plain, moved)
        if session is None or (session.key.logs, session.file) != (str(self._root), plain):
            return
        if not any(kept.values()):
            store.drop_whole(session.id)
            return
        store.forget_turns(session.id, seqs)
        if last == plain:
            session.size = at
            store.save([session])

    def _replace(self, file: str, draft: Path | None) -> None:
        path = self._root / file
        if draft is None:
            path.unlink()
            sync_folder(path.parent)
            for folder in (path.parent, path.parent.parent):
                with suppress(OSError):  # there is something else in it
                    folder.rmdir()
            return
        before = path.stat()
        os.utime(draft, ns=(before.st_mtime_ns, before.st_mtime_ns))
        draft.replace(path)
        sync_folder(path.parent)


# --- lines

# Names stand sorted in an entry, so the account is the first; in what a body says quotes are escaped.
_GATEWAY = b'"gateway":{'
_STRAY = re.compile(rb'"gateway":\{(?!"account":)[^}]*"user":')


def _groups(root: Path) -> Iterator[list[str]]:
    """The files of each session."""
    for _, files in groupby(log_reader.files(root), lambda file: file.removesuffix(COMPRESSED).removesuffix(PLAIN)):
        yield list(files)


def _lines(path: Path) -> Iterator[_Line]:
    """The entries; what is none says nothing that could be told from a user's words, and is not kept."""
    offset = 0
    with log_reader.opened(path) as file:
        while line := file.readline(log_reader.LONGEST_LINE):
            with suppress(msgspec.MsgspecError, RecursionError):
                yield _Line(offset, len(line), _read_found(line))
            offset += len(line)


def _gone(lines: Iterable[_Line], orders: Iterable[Order]) -> dict[str, str]:
    """Ids of the calls that are to go, and whose they are."""
    rules = deletions.rules(orders)
    gone = {}
    for _, _, found in lines:
        whose = found.gateway
        if found.type == "request" and whose is not None and whose.account in rules:
            opened = understood.moment_of({"_meta": {"ts": found.meta.ts}}) or 0
            if privacy.begun(Attribution(request=whose.request), opened) < rules[whose.account]:
                gone[found.meta.request_id] = whose.account
    return gone


def _draft(path: Path, kept: list[_Line]) -> Path:
    """Beside the file, what is to take its place."""
    draft = path.with_name(f".new-{path.name}")
    draft.unlink(missing_ok=True)
    write_beside(draft, _kept(path, kept), sum(line.length for line in kept))
    return draft


def _kept(path: Path, kept: list[_Line]) -> Iterator[bytes]:
    wanted = {line.offset for line in kept}
    offset = 0
    with log_reader.opened(path) as file:
        while line := file.readline(log_reader.LONGEST_LINE):
            if offset in wanted:
                yield line
            offset += len(line)


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


# --- files


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _remove_drafts(root: Path) -> None:
    """What was left where a process that replaced a file was killed."""
    for draft in root.glob("*/*/.new-*"):
        draft.unlink(missing_ok=True)


def _counted(path: Path) -> int:
    """As far as a keeper came that was killed."""
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return 0
