"""Which limits hold for a call: those of everybody, of its user, his team, the key and the alias, all of them.

The table is read once and kept until something in the store changes. A user's own numbers and the settings are what
holds for him where no row says another; a team's budget likewise. While the store is away, what was read last holds.
Leaves out counting (`limiting.meters`) and changing limits (`manage.limits`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from llm_proxy.gateway.facts import Alias, Caller
from llm_proxy.gateway.limiting.meters import KINDS, Meter, Subject
from llm_proxy.gateway.store.schema import limits, teams

if TYPE_CHECKING:
    from llm_proxy.gateway.options import Options
    from llm_proxy.gateway.store.database import Store

log = logging.getLogger("llm_proxy.gateway")

FRESH: Final = 60.0  # seconds; what changes meanwhile is known by the store's counter
_AGAIN: Final = 5.0  # seconds until a store that is away, or does not answer, is waited for again
_PATIENCE: Final = 1.0  # seconds that a call waits for it
_TOLD_EVERY: Final = 60.0  # seconds between two lines that it is away
_TRIES: Final = 5
_MOST: Final = 10_000  # callers whose meters are remembered

_Rows = Mapping[tuple[str, int], Mapping[str, int]]
_BY_NAME: Final = {kind.name: kind for kind in KINDS}


class Rules:
    """`store` None: there are none but the settings' and the users' own."""

    def __init__(self, store: Store | None, options: Options, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._defaults = (options.rate_limit_minute, options.rate_limit_daily)
        self._rows: _Rows = {}
        self._is_current = False  # but for the time that has passed
        self._told = float("-inf")
        self._until = float("-inf") if store else float("inf")
        self._asking: asyncio.Task[None] | None = None
        self._known: dict[tuple[Any, ...], tuple[Meter, ...]] = {}

    async def of(self, caller: Caller, alias: Alias | None = None) -> tuple[Meter, ...]:
        """What holds for a call of his by that alias."""
        if self._clock() >= self._until:
            await self._read()
        team = caller.team_ids[0] if caller.team_ids else None
        name = (
            caller.user_id, caller.key_id, team, alias and alias.id, caller.rate_limit_minute, caller.rate_limit_daily,
        )  # fmt: skip
        known = self._known.get(name)
        if known is None:
            subjects = [(Subject.EVERYBODY, 0, ""), (Subject.USER, caller.user_id, "")]
            if team is not None:
                subjects.append((Subject.TEAM, team, ""))
            if caller.key_id is not None:
                subjects.append((Subject.KEY, caller.key_id, caller.key_name))
            if alias is not None:
                subjects.append((Subject.ALIAS, alias.id, alias.alias))
            known = tuple(meter for one in subjects for meter in self.meters(*one, caller))
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[name] = known
        return known

    def meters(self, subject: Subject, id: int, name: str, caller: Caller) -> Iterator[Meter]:
        """Of one subject, as they were read last; `caller` is the user, where it is one."""
        said = dict(self._rows.get((subject, id), {}))
        if subject is Subject.USER:
            own = (caller.rate_limit_minute, caller.rate_limit_daily)
            for kind, of_user, of_all in zip(("requests_minute", "requests_day"), own, self._defaults, strict=True):
                most = of_all if of_user is None else of_user
                if most > 0:  # there 0 is no limit
                    said.setdefault(kind, most)
        for kind, most in said.items():
            yield Meter(subject, id, _BY_NAME[kind], most, name)

    def forget(self) -> None:
        """Something changed in the store."""
        if self._store is not None:
            self._until = float("-inf")
            self._asking = None
            self._is_current = False

    async def _read(self) -> None:
        """For all who wait, once. What was known holds where the store does not answer; what may only have grown old is
        waited for by nobody.
        """
        for _ in range(_TRIES):  # something may change while it is read
            asking = self._asking = self._asking or asyncio.create_task(self._ask())
            if self._is_current:
                return
            await asyncio.wait({asking}, timeout=_PATIENCE)
            if not asking.done():
                self._until = self._clock() + _AGAIN
                return
            asking.result()
            if self._clock() < self._until:
                return

    async def _ask(self) -> None:
        from llm_proxy.gateway.store.database import StoreAway

        assert self._store is not None
        task = asyncio.current_task()
        rows: dict[tuple[str, int], dict[str, int]] = {}
        try:
            async with self._store.reading() as connection:
                budgets = select(teams.c.id, teams.c.monthly_budget).where(teams.c.monthly_budget.is_not(None))
                for team, budget in await connection.execute(budgets):
                    rows[Subject.TEAM, team] = {"spend_month": budget}
                for row in (await connection.execute(select(limits))).mappings():
                    said = {kind.name: row[kind.name] for kind in KINDS if row[kind.name] is not None}
                    rows.setdefault((row["subject"], row["subject_id"]), {}).update(said)
            if self._asking is task:  # nothing has changed meanwhile
                self._rows, self._known, self._is_current = rows, {}, True
                self._until = self._clock() + FRESH
        except StoreAway as error:
            self._tell(error)
            if self._asking is task:
                self._until = self._clock() + _AGAIN
        finally:
            if self._asking is task:
                self._asking = None

    def _tell(self, error: Exception) -> None:
        now = self._clock()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            log.warning("limits are those that were known before: %s", error)
