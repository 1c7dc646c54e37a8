"""This machine among those of the store: says that it lives, and has conversations deleted that users want deleted.

What is to be deleted is handed to the keeper by files in a folder, because the keeper knows no store: `ID.ask` says
whose and begun before when, `ID.done` what has become of it. Both sides may be killed at any time: what is not reported
yet is asked for again. Any number of processes of a machine may do this. Leaves out deleting (the keeper).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import exists, select

from llm_proxy.gateway.options import Options
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.database import Store, StoreAway
from llm_proxy.gateway.store.schema import deletion_reports, deletions, machines, now, request_logs
from llm_proxy.gateway.store.wordless import wordless

log = logging.getLogger("llm_proxy.gateway")

BEAT: Final = 10.0  # seconds between two signs of life
LOOK: Final = 0.5  # seconds between two looks whether the keeper has done what it was asked for
ASK, DONE = ".ask", ".done"
_ID: Final = re.compile(r"[0-9a-f]{16,64}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Report(msgspec.Struct, frozen=True):
    """The keeper's. `at` is in seconds since 1970; `left` says what could not be deleted."""

    at: float
    conversations: int
    left: str = ""


_read_report: Final = msgspec.json.Decoder(Report).decode


class Machine:
    """`id` stays the same over restarts: it lies in the gateway's folder. Raises OSError."""

    def __init__(self, store: Store, options: Options) -> None:
        self.id = _id(Path(options.state) / "machine")
        self._store = store
        self._options = options
        self._folder = Path(options.state) / "deletions"
        self._asked: set[str] = set()  # by us
        self._news = asyncio.Event()
        self._waiting = True
        self._beats_at = 0.0

    async def run(self) -> None:
        self._store.on_change(self._news.set)
        try:
            await self._run()
        finally:
            self._store.off_change(self._news.set)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(StoreAway):
                if time.monotonic() >= self._beats_at:
                    await self.beat()
                    self._beats_at = time.monotonic() + BEAT
                if self._news.is_set() or self._waiting:
                    self._news.clear()
                    self._waiting = await self.hand_over()
            if self._waiting:
                await asyncio.sleep(LOOK)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self._news.wait()

    async def beat(self) -> None:
        values = {
            "name": socket.gethostname()[:255],
            "version": self._options.version[:64],
            "address": self._options.public_url[:2048],
            "seen_at": now(),
        }
        made = self._store.insert(machines).values(id=self.id, **values)
        async with self._store.writing() as connection:
            await connection.execute(made.on_conflict_do_update(index_elements=["id"], set_=values))

    async def hand_over(self) -> bool:
        """Ask the keeper for what is to be deleted, report what is. Gives whether something is still to come."""
        ours = exists().where(deletion_reports.c.deletion_id == deletions.c.id, deletion_reports.c.machine == self.id)
        there = await asyncio.to_thread(self._files)
        async with self._store.reading() as connection:
            rows = (await connection.execute(select(deletions).where(~ours).order_by(deletions.c.id))).all()
        waiting = set()
        for row in rows:
            report = await asyncio.to_thread(self._told, row)
            if report is None:
                waiting.add(_name(row.account, row.id))
            else:
                await self._report(row.id, row.user_id, report)
        await asyncio.to_thread(_tidy, there, waiting)
        return bool(waiting)

    async def _report(self, deletion: int, user_id: int, report: Report) -> None:
        values = {"done_at": datetime.fromtimestamp(report.at, UTC), "conversations": report.conversations}
        made = self._store.insert(deletion_reports).values(
            deletion_id=deletion, machine=self.id, left=report.left, **values
        )
        async with self._store.writing() as connection:
            await connection.execute(wordless(request_logs.c.user_id == user_id))  # what was being written meanwhile
            written = await connection.execute(made.on_conflict_do_nothing())
            if written.rowcount:  # another process of ours may have been quicker
                told = {"machine": self.id, "conversations": report.conversations, "left": report.left}
                await note(connection, None, "conversations.deleted", f"deletion:{deletion}", **told)

    # -- files

    def _told(self, row: Any) -> Report | None:
        """What the keeper says; where it has not, it is asked."""
        path = self._folder / _name(row.account, row.id)
        try:
            return _read_report(path.with_name(path.name + DONE).read_bytes())
        except FileNotFoundError:
            pass
        except msgspec.MsgspecError as error:
            log.error("%s%s is not the keeper's, and is asked for again: %s", path, DONE, error)
            path.with_name(path.name + DONE).unlink(missing_ok=True)
        # One of a life before may mean a log folder that nobody writes any more.
        if path.name not in self._asked or not path.with_name(path.name + ASK).exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = (row.before - _EPOCH) // timedelta(microseconds=1) * 1000
            asked = {"id": path.name, "account": row.account, "before": before, "logs": self._options.logs}
            _put(path.with_name(path.name + ASK), msgspec.json.encode(asked))
            self._asked.add(path.name)
        return None

    def _files(self) -> list[Path]:
        """Those there are; the question stands before the answer."""
        ours = _name(self._store.account(0), "*")
        return [path for pattern in (ours + ASK, ours) for path in self._folder.glob(pattern)]


def _tidy(there: Sequence[Path], waiting: Collection[str]) -> None:
    """What is reported needs no files any more; the question goes first, because alone it would be asked again.

    Of those that were there before the store was asked: another process may have handed over newer ones since.
    """
    for path in there:
        if path.name.partition(".")[0] not in waiting:
            path.unlink(missing_ok=True)


def _name(account: str, deletion: object) -> str:
    """Of its files: another store's deletions have other names."""
    return f"{account.partition('.')[0]}-{deletion}"


def _id(path: Path) -> str:
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_name(f"{path.name}.{os.getpid()}.new")
            try:
                _write(draft, f"{secrets.token_hex(16)}\n".encode())
                os.link(draft, path)  # never over another's
            finally:
                draft.unlink(missing_ok=True)
    found = path.read_text(encoding="ascii", errors="replace").strip()
    if not _ID.fullmatch(found):
        raise OSError(f"{path} must hold 16 to 64 hexadecimal digits, got {found[:70]!r}")
    return found


def _put(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    _write(draft, data)
    draft.replace(path)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
