"""Writes calls to the log files, exactly once, whenever the keeper is killed.

First the lines, then one transaction that says how far the files, the sessions and the journal are settled. Killed in
between, the lines stand beyond the settled size of their file: they are read back there by id and type, and not
written again. Leaves out where calls come from (`loop`) and where they go (`places`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from llm_proxy.dialects.digest import Digest
from llm_proxy.index.lines import Line
from llm_proxy.journal.reader import Position
from llm_proxy.keeper.assemble import Call, Gap
from llm_proxy.keeper.figures import Figures
from llm_proxy.keeper.places import Brought, Item, Places
from llm_proxy.keeper.store import Seat, Session, Store, Written
from llm_proxy.keeper.telling import Teller, Troubles
from llm_proxy.records import privacy
from llm_proxy.records.exchange import Exchange
from llm_proxy.sinks import session_jsonl
from llm_proxy.sinks.log_files import LogFile, Logs
from llm_proxy.sinks.outbox import HALVES, Posted
from llm_proxy.sinks.session_jsonl import Entry

# Sessions remembered between two groups; more than that are looked up again.
CACHED = 4096
# Entries of calls and gaps: those that must not stand twice.
_ONCE = ("request", "response", "gap")


@dataclass(slots=True)
class Tally:
    """Counted since this keeper started."""

    exchanges: int = 0
    entries: int = 0
    interrupted: int = 0
    truncated: int = 0
    gaps: int = 0
    torn: int = 0  # half lines that a killed keeper left, cut off
    withheld: int = 0  # calls of which nothing is kept
    last_exchange: int = 0  # wall ns
    troubles: Troubles = field(default_factory=Troubles)
    figures: Figures = field(default_factory=Figures)


class Recorder:
    """The one that writes, for one journal. After any exception both steps can be done again with the same items."""

    def __init__(
        self,
        store: Store,
        logs: Logs,
        machine: str,
        tally: Tally,
        teller: Teller,
        *,
        posts: bool = False,
        lanes: str = "",
    ) -> None:
        """`posts`: what is written is told to the lanes too, those of the name `lanes`."""
        self.tally = tally
        self._store = store
        self._logs = logs
        self._machine = machine
        self._teller = teller
        self._places = Places(store, str(logs.root), self._reread)
        self._written: dict[tuple[UUID, str], Seat] = store.written()
        self._lines: list[Line] = []
        self._posts = posts
        self._for = lanes
        self._posted: list[Posted] = []

    def decide(self, items: Sequence[Item]) -> int:
        """Tell what the items mean and find their places; how many of them, from the first on, can be settled next.

        Raises OSError, sqlite3.Error, StoreDamaged.
        """
        for item in items:
            if item.told is None and item.exchange is not None:
                item.told = self._teller.over(item.exchange) if item.one.over else self._teller.open(item.exchange)
        return self._places.decide(items)

    def settle(self, items: Sequence[Item], run: str, checkpoint: Position) -> list[Line]:
        """Write what was decided; from now on reading begins at `checkpoint`. Returns the lines that were written.

        Raises OSError, sqlite3.Error, StoreDamaged.
        """
        self._lines, self._posted = [], []
        try:
            with self._store.transaction() as changed:
                if changed:
                    self._reread()
                touched: dict[str, Session] = {}
                seats = [self._write(item, touched) for item in items]
                self._commit(items, seats, touched, run, checkpoint)
        except BaseException:
            # The files may hold more than is settled now: that is found out again from what is committed.
            self._places.forget()
            raise
        self._account(items, seats)
        if len(self._places) > CACHED:
            self._places.forget()
        return self._lines

    def _reread(self) -> None:
        """Another keeper has written: nothing that is remembered of the store holds any more."""
        self._places.forget()
        self._written = self._store.written()

    def begun(self, call: UUID) -> bool:
        """Whether a line of it stands in a file already."""
        return call in self._places.in_flight or (call, "request") in self._written

    def look_again(self) -> None:
        """Lines were taken out of files."""
        self._reread()
        self._places.in_flight = self._store.in_flight()

    # -- entries

    def _write(self, item: Item, touched: dict[str, Session]) -> Seat:
        one, exchange, told = item.one, item.exchange, item.told
        session = self._places.session(item.place)
        if session is None:
            raise sqlite3.OperationalError(f"session {item.place} has gone from the database")
        file = self._ready(session, exchange)
        touched[session.id] = session
        if isinstance(one, Gap) or exchange is None or told is None:
            return self._write_gap(one, session, file)
        digest = self._teller.indexed(told)
        seat = self._written.get((one.id, "request"), self._places.in_flight.get(one.id))
        if seat is None or not seat.seq or seat.session != session.id:
            session.last_seq += 1
            seat = Seat(session.id, session.last_seq)
            request = told.request if told.whole else self._teller.request(exchange, told.client)
            self._append_half(session, file, exchange, seat, request, digest)
        if one.over and (one.id, "response") not in self._written:
            self._append_half(session, file, exchange, seat, self._teller.answered(exchange, told), digest)
        session.last_activity = max(session.last_activity, (exchange.opened + exchange.ended) // 1_000_000_000)
        return seat

    def _write_gap(self, gap: Call | Gap | Brought, session: Session, file: LogFile) -> Seat:
        if isinstance(gap, Gap) and (gap.id, "gap") not in self._written:
            entry = gap_entry(gap, self._machine)
            self._append(session, file, session_jsonl.line(entry), entry)
        return Seat(session.id, 0)

    def _append_half(
        self, session: Session, file: LogFile, exchange: Exchange, seat: Seat, entry: Entry, digest: Digest
    ) -> None:
        """The request or the response of a call."""
        entry["_meta"]["session"], entry["seq"] = seat
        try:
            data = session_jsonl.line(entry)
        except Exception as error:  # a bug of ours must not hold up everybody else's record for ever
            self.tally.troubles.take("tell", repr(error))
            entry = session_jsonl.bare_entry(exchange, *seat, self._machine, entry["type"], repr(error))
            data = session_jsonl.line(entry)
        self._append(session, file, data, entry, digest)

    def _append(self, session: Session, file: LogFile, data: bytes, entry: Entry, digest: Digest | None = None) -> None:
        self._lines.append(Line(session.file, file.size, len(data), entry, digest))
        if self._posts and entry["type"] in HALVES:
            call = UUID(entry["_meta"]["request_id"]).bytes
            place = str(self._logs.root), session.file, file.size, len(data)
            self._posted.append(Posted(call, entry["type"], *place, self._for))
        file.append(data)
        session.size = file.size

    def _ready(self, session: Session, exchange: Exchange | None) -> LogFile:
        """The session's file, with what stands in it beyond the settled size taken into account."""
        file = self._logs.file(session.file)
        cut = file.size < session.size
        if file.size > session.size:
            self._adopt(session, file)
        session.size = file.size
        if exchange is not None and (cut or not file.size):
            if not file.ends_whole():
                file.append(b"\n")
            self._begin(session, file, exchange)
        return file

    def _begin(self, session: Session, file: LogFile, exchange: Exchange) -> None:
        start = session_jsonl.session_start(exchange, session.id, self._machine, _origin(session))
        self._append(session, file, session_jsonl.line(start), start)
        if session.parent_seq:
            fork = session_jsonl.fork_entry(exchange, session.id, self._machine, session.parent, session.parent_seq)
            self._append(session, file, session_jsonl.line(fork), fork)

    def _adopt(self, session: Session, file: LogFile) -> None:
        before = file.size
        stand = list(file.known_after(session.size))
        found = [Written(known.id, known.type, Seat(session.id, known.seq)) for known in stand]
        if self._posts:
            root = str(self._logs.root)
            halves = (one for one in stand if one.type in HALVES)
            self._posted += (
                Posted(one.id.bytes, one.type, root, session.file, one.offset, one.length, self._for) for one in halves
            )
        self.tally.torn += file.size < before
        session.last_seq = max([session.last_seq, *(one.seat.seq for one in found)])
        found = [one for one in found if one.type in _ONCE]
        self._written.update(((one.exchange, one.type), one.seat) for one in found)
        # They may be another keeper's, which must find them though the file's settled size has gone past them.
        self._store.remember_written(found)

    # -- the transaction

    def _commit(
        self,
        items: Sequence[Item],
        seats: Sequence[Seat],
        touched: dict[str, Session],
        run: str,
        checkpoint: Position,
    ) -> None:
        store = self._store
        over = [item.one for item in items if item.one.over]
        finished = {item.place for item in items if _is_all(item, touched[item.place])}
        store.save(session for name, session in touched.items() if name not in finished)
        if finished:
            store.drop(finished)
        for item, seat in zip(items, seats, strict=True):
            for turn in item.turns:
                turn.seq = turn.seq or seat.seq
            if item.turns:
                store.save_turns(item.turns)
            if item.spent:
                store.drop_turns(item.spent)
        began = [(item.one.id, seat) for item, seat in zip(items, seats, strict=True) if not item.one.over]
        if began:
            store.take_off(began)
        landed = [one.id for one in over if one.id in self._places.in_flight]
        if landed:
            store.land(landed)
        store.settle((one.position, one.id) for one in over if one.position >= checkpoint)
        if self._written:
            store.forget_written(one.id for one in over)
        if self._posted:
            store.post(self._posted)
        store.set_checkpoint(run, checkpoint)

    def _account(self, items: Sequence[Item], seats: Sequence[Seat]) -> None:
        tally = self.tally
        tally.entries += len(self._lines)
        for item, seat in zip(items, seats, strict=True):
            one, exchange = item.one, item.exchange
            if not one.over:
                self._places.in_flight[one.id] = seat
                continue
            self._places.in_flight.pop(one.id, None)
            if self._written:
                for kind in _ONCE:
                    self._written.pop((one.id, kind), None)
            session = self._places.session_known(item.place)
            if session is not None and _is_all(item, session):
                self._places.dropped(session)
            if exchange is None:
                tally.gaps += 1
                continue
            tally.exchanges += 1
            tally.interrupted += isinstance(one, Call) and one.interrupted
            tally.truncated += bool(exchange.request.truncated or exchange.response.truncated)
            tally.last_exchange = max(tally.last_exchange, exchange.opened + exchange.ended)
            self._figure(item)

    def _figure(self, item: Item) -> None:
        if item.exchange is None or item.told is None:
            return
        try:
            told = item.told
            digest = privacy.digest_without_words(told.digest) if told.level == privacy.METADATA else told.digest
            self.tally.figures.take(item.exchange, digest, told.response or {})
        except Exception as error:  # a bug of ours; the record is written
            self.tally.troubles.take("figures", repr(error))


def _is_all(item: Item, session: Session) -> bool:
    """Whether nothing will be added to the session any more: it is one call's, which is over and left nothing."""
    return item.one.over and not item.turns and session.key.client == f"call:{item.one.id}"


def _origin(session: Session) -> Entry:
    return {
        "agent": session.agent,
        "client": json.loads(session.process) if session.process else None,
        "client_session": session.client_session,
        "client_session_source": session.source,
        "parent_seq": session.parent_seq,
        "parent_session": session.parent,
    }


def gap_entry(gap: Gap, machine: str) -> Entry:
    """A line of `recording-gaps.jsonl`: what could not be recorded, and between which times."""
    return {
        "_meta": {"machine": machine, "request_id": str(gap.id), "ts": session_jsonl.utc(gap.to_ns)},
        "bytes": gap.bytes,
        "exchanges": gap.exchanges,
        "frames": gap.frames,
        "from": session_jsonl.utc(gap.from_ns),
        "to": session_jsonl.utc(gap.to_ns),
        "type": "gap",
    }
