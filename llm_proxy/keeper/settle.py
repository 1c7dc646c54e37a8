"""Writes calls to the log files, exactly once, whenever the keeper is killed.

First the lines, then one transaction that says how far the files, the sessions and the journal are settled. Killed in
between, the lines stand beyond the settled size of their file: they are read back there by id and type, and not
written again. A session is committed before the first line of its file, so that the file can be found. Leaves out
where calls come from (`loop`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from llm_proxy.journal.reader import Position
from llm_proxy.keeper.assemble import Call, Gap
from llm_proxy.keeper.sessions import Belonging, belonging, new_session
from llm_proxy.keeper.store import Key, Seat, Session, Store, Written
from llm_proxy.records.exchange import Exchange
from llm_proxy.sinks import session_jsonl
from llm_proxy.sinks.log_files import LogFile, Logs
from llm_proxy.sinks.session_jsonl import Entry

GAPS = "recording-gaps.jsonl"
# Sessions remembered between two groups; more than that are looked up again.
CACHED = 4096


@dataclass(slots=True)
class Item:
    """What is to be written: a call that is over, the request of an open one, or a gap (without an exchange)."""

    one: Call | Gap
    exchange: Exchange | None
    where: Belonging | None = None


@dataclass(slots=True)
class Tally:
    """Counted since this keeper started."""

    exchanges: int = 0
    entries: int = 0
    interrupted: int = 0
    truncated: int = 0
    gaps: int = 0
    torn: int = 0  # half lines that a killed keeper left, cut off
    unwritable: int = 0  # exchanges that could not be told as they are: a bug of ours
    last_exchange: int = 0  # wall ns


class Recorder:
    """The one that writes, for one journal. After any exception `settle` can be called again with the same items."""

    def __init__(self, store: Store, logs: Logs, machine: str, tally: Tally) -> None:
        self.tally = tally
        self._store = store
        self._logs = logs
        self._scope = str(logs.root)
        self._machine = machine
        self._in_flight = store.in_flight()
        self._by_id: dict[str, Session] = {}
        self._by_key: dict[Key, Session] = {}
        self._written: dict[tuple[UUID, str], Seat] = store.written()
        self._entries = 0

    def settle(self, items: Sequence[Item], run: str, checkpoint: Position) -> None:
        """Write `items`; from now on reading begins at `checkpoint`. Raises OSError, sqlite3.Error, StoreDamaged."""
        try:
            self._entries = 0
            places = self._places(items)
            with self._store.transaction() as changed:
                if changed:
                    self._reload()
                touched: dict[str, Session] = {}
                seats = [self._write(item, place, touched) for item, place in zip(items, places, strict=True)]
                self._commit(items, seats, touched, run, checkpoint)
        except BaseException:
            # The files may hold more than is settled now: that is found out again from what is committed.
            self._forget_sessions()
            raise
        self._account(items, seats)
        if len(self._by_id) > CACHED:
            self._forget_sessions()

    # -- sessions

    def _places(self, items: Sequence[Item]) -> list[str]:
        """The session of each item; new ones are committed first."""
        places = []
        missing: dict[Key, tuple[Item, Belonging]] = {}
        for item in items:
            seat = self._in_flight.get(item.one.id)
            if seat is not None and self._session(seat.session) is not None:
                places.append(seat.session)
                continue
            if item.where is None:
                item.where = self._belonging(item)
            session = self._find(item.where.key)
            if session is None:
                missing.setdefault(item.where.key, (item, item.where))
            places.append(session.id if session else "")
        if not missing:
            return places
        with self._store.transaction() as changed:
            if changed:
                self._reload()
            for item, where in missing.values():
                if self._find(where.key) is None:
                    self._add(item, where)
        return [
            place or self._by_key[item.where.key].id if item.where else place
            for item, place in zip(items, places, strict=True)
        ]

    def _belonging(self, item: Item) -> Belonging:
        if item.exchange is None:
            return Belonging(Key(self._scope, "", "", "gaps:"), "")
        return belonging(item.exchange, self._scope)

    def _find(self, key: Key) -> Session | None:
        session = self._by_key.get(key)
        return session if session is not None else self._remember(self._store.by_key(key))

    def _session(self, name: str) -> Session | None:
        session = self._by_id.get(name)
        return session if session is not None else self._remember(self._store.by_id(name))

    def _remember(self, session: Session | None) -> Session | None:
        if session is not None:
            self._by_id[session.id] = self._by_key[session.key] = session
        return session

    def _add(self, item: Item, where: Belonging) -> None:
        if item.exchange is None:
            session = Session(f"{GAPS} of {self._scope}", where.key, "", GAPS, 0, 0, 1 << 40)
            self._store.add(session)
        else:
            session = self._add_new(item.exchange, where)
        self._remember(session)

    def _add_new(self, exchange: Exchange, where: Belonging) -> Session:
        while True:
            session = new_session(exchange, where)
            try:
                self._store.add(session)
            except sqlite3.IntegrityError:  # the id is taken
                continue
            return session

    def _forget_sessions(self) -> None:
        self._by_id.clear()
        self._by_key.clear()

    def _reload(self) -> None:
        """Another keeper has written: nothing that is remembered of the store holds any more."""
        self._forget_sessions()
        self._written = self._store.written()

    # -- entries

    def _write(self, item: Item, place: str, touched: dict[str, Session]) -> Seat:
        one, exchange = item.one, item.exchange
        seat = self._in_flight.get(one.id)
        session = self._session(place)
        if session is None:
            raise sqlite3.OperationalError(f"session {place} has gone from the database")
        file = self._ready(session, exchange)
        touched[place] = session
        if isinstance(one, Gap) or exchange is None:
            return self._write_gap(one, session, file)
        seat = self._written.get((one.id, "request"), seat)
        if seat is None or seat.session != place:
            session.last_seq += 1
            seat = Seat(place, session.last_seq)
            self._append(session, file, self._line(session_jsonl.request_entry, exchange, seat))
        if one.over and (one.id, "response") not in self._written:
            self._append(session, file, self._line(session_jsonl.response_entry, exchange, seat))
        session.last_activity = max(session.last_activity, (exchange.opened + exchange.ended) // 1_000_000_000)
        return seat

    def _write_gap(self, gap: Call | Gap, session: Session, file: LogFile) -> Seat:
        if isinstance(gap, Gap) and (gap.id, "gap") not in self._written:
            self._append(session, file, session_jsonl.line(gap_entry(gap, self._machine)))
        return Seat(session.id, 0)

    def _line(self, make: Callable[[Exchange, str, int, str], Entry], exchange: Exchange, seat: Seat) -> bytes:
        try:
            return session_jsonl.line(make(exchange, *seat, self._machine))
        except Exception as error:  # a bug of ours must not hold up everybody else's record for ever
            self.tally.unwritable += 1
            kind = "request" if make is session_jsonl.request_entry else "response"
            return session_jsonl.line(session_jsonl.bare_entry(exchange, *seat, self._machine, kind, repr(error)))

    def _append(self, session: Session, file: LogFile, data: bytes) -> None:
        file.append(data)
        session.size = file.size
        self._entries += 1

    def _ready(self, session: Session, exchange: Exchange | None) -> LogFile:
        """The session's file, with what stands in it beyond the settled size taken into account."""
        file = self._logs.file(session.file)
        cut = file.size < session.size
        if file.size > session.size:
            self._adopt(session, file)
        session.size = file.size
        if exchange is not None and (cut or not file.size):
            start = session_jsonl.session_start(
                exchange, session.id, self._machine, session.client_session, session.source
            )
            data = session_jsonl.line(start)
            self._append(session, file, data if file.ends_whole() else b"\n" + data)
        return file

    def _adopt(self, session: Session, file: LogFile) -> None:
        before = file.size
        found = [Written(known.id, known.type, Seat(session.id, known.seq)) for known in file.known_after(session.size)]
        self.tally.torn += file.size < before
        session.last_seq = max([session.last_seq, *(one.seat.seq for one in found)])
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
        single = {
            seat.session
            for item, seat in zip(items, seats, strict=True)
            if item.one.over and touched[seat.session].key.client.startswith("call:")
        }
        store.save(session for name, session in touched.items() if name not in single)
        if single:
            store.drop(single)
        began = [(item.one.id, seat) for item, seat in zip(items, seats, strict=True) if not item.one.over]
        if began:
            store.take_off(began)
        landed = [one.id for one in over if one.id in self._in_flight]
        if landed:
            store.land(landed)
        store.settle((one.position, one.id) for one in over if one.position >= checkpoint)
        if self._written:
            store.forget_written(one.id for one in over)
        store.set_checkpoint(run, checkpoint)

    def _account(self, items: Sequence[Item], seats: Sequence[Seat]) -> None:
        tally = self.tally
        tally.entries += self._entries
        for item, seat in zip(items, seats, strict=True):
            one, exchange = item.one, item.exchange
            if not one.over:
                self._in_flight[one.id] = seat
                continue
            self._in_flight.pop(one.id, None)
            if self._written:
                for kind in ("request", "response", "gap"):
                    self._written.pop((one.id, kind), None)
            session = self._by_id.get(seat.session)
            if session is not None and session.key.client.startswith("call:"):
                del self._by_id[session.id]
                self._by_key.pop(session.key, None)
            if exchange is None:
                tally.gaps += 1
                continue
            tally.exchanges += 1
            tally.interrupted += isinstance(one, Call) and one.interrupted
            tally.truncated += bool(exchange.request.truncated or exchange.response.truncated)
            tally.last_exchange = max(tally.last_exchange, exchange.opened + exchange.ended)


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
