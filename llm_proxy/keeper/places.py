"""Finds the session of each call of a group, and what the call leaves behind for later ones.

What was decided from other calls is committed before anything is written by it: after a crash the same call goes to
the same place, whatever has come in between. New sessions are committed before the first line of their file, so that
the file can be found. Leaves out writing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import UUID

from llm_proxy.journal.reader import Position
from llm_proxy.keeper import stitch
from llm_proxy.keeper.assemble import Call, Gap
from llm_proxy.keeper.projects import Client
from llm_proxy.keeper.sessions import Belonging, belonging, new_session
from llm_proxy.keeper.stitch import Turns
from llm_proxy.keeper.store import Key, Seat, Session, Store, Turn
from llm_proxy.keeper.telling import Told
from llm_proxy.records.exchange import Exchange

GAPS = "recording-gaps.jsonl"


class Brought(NamedTuple):
    """A call that is over and comes from no journal; its position is before all that stand in one."""

    id: UUID
    position: Position = Position(0, 0)
    over: bool = True


@dataclass(slots=True)
class Item:
    """What is to be written: a call that is over, the request of an open one, or a gap (without exchange and told).

    `place` is the session's id. `turns` are to be kept, `spent` to be forgotten when it has been written.
    """

    one: Call | Gap | Brought
    exchange: Exchange | None = None
    told: Told | None = None
    place: str = ""
    turns: list[Turn] = field(default_factory=list)
    spent: list[Turn] = field(default_factory=list)


class Places:
    """The sessions of one log folder as the store knows them. Raises sqlite3.Error, StoreDamaged."""

    def __init__(self, store: Store, logs: str, on_change: Callable[[], None]) -> None:
        """`on_change` is called where another keeper has written since the last transaction."""
        self._store = store
        self._logs = logs
        self._on_change = on_change
        self.in_flight = store.in_flight()
        self._by_id: dict[str, Session] = {}
        self._by_key: dict[Key, Session] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    # -- sessions

    def session(self, name: str) -> Session | None:
        session = self._by_id.get(name)
        return session if session is not None else self._remember(self._store.by_id(name))

    def session_known(self, name: str) -> Session | None:
        """Without asking the store."""
        return self._by_id.get(name)

    def forget(self) -> None:
        self._by_id.clear()
        self._by_key.clear()

    def dropped(self, session: Session) -> None:
        self._by_id.pop(session.id, None)
        self._by_key.pop(session.key, None)

    def _find(self, key: Key) -> Session | None:
        session = self._by_key.get(key)
        return session if session is not None else self._remember(self._store.by_key(key))

    def _remember(self, session: Session | None) -> Session | None:
        if session is not None:
            self._by_id[session.id] = self._by_key[session.key] = session
        return session

    # -- deciding

    def decide(self, items: Sequence[Item]) -> int:
        """Give the items their places. Returns how many have one that can be written to now, from the first on.

        The next one is a fork from a call among these that has no number yet.
        """
        wanted = [_Wanted(item, self._logs) for item in items]
        if all(map(self._is_plain, wanted)):
            return len(items)
        decided: dict[UUID, Seat] = {}
        try:
            with self._store.transaction() as changed:
                if changed:
                    self._on_change()
                turns = Turns(self._store.turns)
                count = 0
                while count < len(items) and self._place(wanted[count], turns, decided):
                    count += 1
                self._store.take_off(decided.items())
        except BaseException:
            self.forget()  # some of them may never have come to be
            raise
        self.in_flight |= decided
        return count

    def _is_plain(self, wanted: _Wanted) -> bool:
        """Whether nothing has to be asked or told beyond a session that is known."""
        item = wanted.item
        session = self._current(item)
        if wanted.leaves or (wanted.where.stitched and session is None):
            return False
        session = session or self._find(wanted.where.key)
        item.place = session.id if session is not None else ""
        return session is not None

    def _current(self, item: Item) -> Session | None:
        """Where the call was put when it was open, or in an earlier life."""
        seat = self.in_flight.get(item.one.id)
        return self.session(seat.session) if seat is not None else None

    def _place(self, wanted: _Wanted, turns: Turns, decided: dict[UUID, Seat]) -> bool:
        item, where = wanted.item, wanted.where
        session = self._current(item)
        if session is None and not wanted.fetched:
            session = self._find(where.key)
        fork = None
        if session is None and where.stitched:
            turn = self._told_by_others(wanted, turns)
            if turn is not None and not wanted.fetched and turn.continued_before(wanted.opened):
                fork = turn  # the conversation had gone on otherwise when this call began
                if not fork.seq:
                    return False
            elif turn is not None and (session := self.session(turn.session)) is not None:
                decided[item.one.id] = Seat(session.id, 0)
        session = session or self._find(where.key) or self._add(item, where, fork)
        item.place = session.id
        item.turns, item.spent = [], []
        if wanted.leaves:
            self._leave(wanted, turns)
        return True

    def _told_by_others(self, wanted: _Wanted, turns: Turns) -> Turn | None:
        if wanted.fetched:
            return wanted.choose(turns.at(wanted.fetched))
        return wanted.choose(turns.failed(wanted.track, wanted.at)) or wanted.choose(turns.built_upon(wanted.track))

    def _add(self, item: Item, where: Belonging, fork: Turn | None) -> Session:
        if item.exchange is None:
            session = Session(f"{GAPS} of {self._logs}", where.key, "", GAPS, 0, 0, 1 << 40)
            self._store.add(session)
        else:
            session = self._add_new(item.exchange, where, item.told.client if item.told else None, fork)
        self._remember(session)
        return session

    def _add_new(self, exchange: Exchange, where: Belonging, client: Client | None, fork: Turn | None) -> Session:
        parent = self._find(where.parent) if where.parent is not None else None
        while True:
            session = new_session(exchange, where, client)
            if fork is not None:
                session.parent, session.parent_seq = fork.session, fork.seq
            elif parent is not None:
                session.parent = parent.id
            try:
                self._store.add(session)
            except sqlite3.IntegrityError:  # the id is taken
                continue
            return session

    # -- what a call leaves behind

    def _leave(self, wanted: _Wanted, turns: Turns) -> None:
        item = wanted.item
        told = item.told
        if told is None:
            return
        if wanted.fetched:
            self._count_once(wanted, told, turns)
            return
        digest = told.digest
        for key in stitch.named_answers(wanted.scope, digest):
            turn = turns.put(wanted.turn(key))
            turn.counted |= digest.usage is not None
            item.turns.append(turn)
        if not wanted.where.stitched or not digest.asked.messages:
            return  # this client says itself what belongs together, or nothing that could be known again
        item.turns += [turns.put(wanted.turn(key)) for key in stitch.said_answers(wanted.track, digest)]
        if stitch.has_failed(digest):
            item.turns.append(turns.put(wanted.turn(wanted.track.retry)))
            return
        item.spent = turns.at(wanted.track.retry)
        turns.remove(item.spent)
        for turn in turns.built_upon(wanted.track):
            if turn.session == item.place and not turn.continued:
                turn.continued = wanted.at
                item.turns.append(turn)

    def _count_once(self, wanted: _Wanted, told: Told, turns: Turns) -> None:
        """An answer that is fetched again and again was still given once."""
        if told.digest.usage is None or told.digest.partial:
            return
        known = turns.at(wanted.fetched)
        if any(turn.counted for turn in known):
            told.digest = replace(told.digest, counted=False)
            return
        turn = wanted.choose(known) or turns.put(wanted.turn(wanted.fetched))
        turn.counted = True
        wanted.item.turns.append(turn)


class _Wanted:
    """An item, and what its call says of where it belongs."""

    __slots__ = ("at", "client", "fetched", "item", "leaves", "opened", "scope", "track", "where")

    def __init__(self, item: Item, logs: str) -> None:
        self.item = item
        self.fetched = b""
        self.leaves = False
        exchange, told = item.exchange, item.told
        if exchange is None or told is None:
            self.where = Belonging(Key(logs, "", "", "gaps:"))
            return
        asked = told.digest.asked
        id = stitch.fetched(asked.api, exchange.path)
        self.where = belonging(exchange, logs, told.hint, bool(id))
        self.opened, self.at = exchange.opened, exchange.opened + exchange.ended
        named = asked.api == "openai.responses"
        if self.where.stitched or named:
            self.scope = stitch.scope(logs, exchange)
            self.client = stitch.client(exchange, told.client.pid if told.client else 0)
            self.fetched = stitch.response_key(self.scope, id) if id else b""
            self.track = stitch.track(self.scope, self.client, asked)
            self.leaves = item.one.over

    def choose(self, turns: list[Turn]) -> Turn | None:
        return stitch.choose(turns, self.client, self.opened)

    def turn(self, key: bytes) -> Turn:
        return Turn(key, self.item.place, 0, self.client.who, self.client.process, self.at)
