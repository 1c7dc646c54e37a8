"""What somebody has used in a day or a month as the store knows it: requests, tokens or money, from `request_logs`.

Where the store does not say in time it is 0: a limit never stops the traffic because something of ours is down. Leaves
out what is counted since (`limiting.local`, `limiting.shared`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, distinct, func, not_, or_, select

from llm_proxy.gateway.limiting.meters import Meter, Subject, What, bounds
from llm_proxy.gateway.store.schema import model_aliases, request_logs

if TYPE_CHECKING:
    from llm_proxy.gateway.store.database import Store

log = logging.getLogger("llm_proxy.gateway")

LOOKUP: Final = 2.0  # seconds that the store has while a call waits for it
LATER: Final = 10.0  # seconds that it has where nobody waits
_AGAIN: Final = 5.0  # seconds until it is asked again for what it did not say, or that its late answer is good for
_MOST: Final = 10_000  # sums that it did not say in time, remembered
_TOLD_EVERY: Final = 60.0  # seconds between two lines that it does not say

_LOGS: Final = request_logs.c
_REFUSED: Final = and_(_LOGS.attempt == 0, _LOGS.status_code == 429)  # by a limit of ours: not counted
_COLUMNS: Final[dict[What, ColumnElement[Any]]] = {
    What.REQUESTS: func.count(distinct(_LOGS.request_id)),
    What.TOKENS: func.sum(_LOGS.input_tokens + _LOGS.output_tokens),
    What.SPEND: func.sum(_LOGS.cost),
}
_WHOSE: Final = {Subject.TEAM: _LOGS.team_id, Subject.USER: _LOGS.user_id, Subject.KEY: _LOGS.api_key_id}


class Sum(NamedTuple):
    """`took` seconds; not `known` where the store did not say."""

    amount: int
    took: float
    known: bool


class Sums:
    """Each is asked once, however many wait for it."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._asking: dict[tuple[str, int, float], asyncio.Task[Sum]] = {}
        self._late: dict[tuple[str, int], tuple[Sum, float]] = {}
        self._learning: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._told = float("-inf")

    async def of(self, meter: Meter, number: int, patience: float = LOOKUP) -> Sum:
        """In the `period` of that number."""
        name = meter.key, number, patience
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._ask(meter, number, patience))
            asking.add_done_callback(lambda _: self._asking.pop(name, None))
        return await asyncio.shield(asking)  # who leaves does not take the others' answer along

    async def soon(self, meter: Meter, number: int) -> Sum:
        """The same, and where the store did not say it nobody waits a second time: it is asked again meanwhile."""
        name = meter.key, number
        told, at = self._late.get(name, (None, 0.0))
        old = self._clock() - at >= _AGAIN
        if told is None or (told.known and old):
            told = await self.of(meter, number)
            self._late.pop(name, None)
            if not told.known:
                self._remember(name, told)
        elif old and name not in self._learning:
            learning = self._learning[name] = asyncio.create_task(self._learnt(meter, number))
            learning.add_done_callback(lambda _: self._learning.pop(name, None))
        return told

    async def _learnt(self, meter: Meter, number: int) -> None:
        self._remember((meter.key, number), await self.of(meter, number, LATER))

    def _remember(self, name: tuple[str, int], told: Sum) -> None:
        if len(self._late) >= _MOST:
            self._late.clear()
        self._late[name] = told, self._clock()

    async def _ask(self, meter: Meter, number: int, patience: float) -> Sum:
        from llm_proxy.gateway.store.database import StoreAway

        began = time.monotonic()
        start, end = bounds(meter.kind.span, number)
        try:
            async with asyncio.timeout(patience), self._store.reading() as connection:
                query = select(_COLUMNS[meter.kind.what]).where(_LOGS.created_at >= start, _LOGS.created_at < end)
                if meter.kind.what is What.REQUESTS:
                    query = query.where(not_(func.coalesce(_REFUSED, False)))
                if meter.subject is Subject.ALIAS:
                    query = query.where(_of_alias(meter.id))
                elif meter.subject is not Subject.EVERYBODY:
                    query = query.where(_WHOSE[meter.subject] == meter.id)
                return Sum(int(await connection.scalar(query) or 0), time.monotonic() - began, True)
        except (StoreAway, TimeoutError) as error:
            self._tell(meter, error)
            return Sum(0, time.monotonic() - began, False)

    def _tell(self, meter: Meter, error: Exception) -> None:
        now = self._clock()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            words = "what was used of the limit %s goes by what is known here: %s"
            log.warning(words, meter.key, error or "the store did not answer in time")


def _of_alias(id: int) -> ColumnElement[bool]:
    """Its owner's calls by its name, and where it is shared those of all who have none of this name themselves."""
    one = model_aliases.alias("one")
    other = model_aliases.alias("other")
    name = select(one.c.alias).where(one.c.id == id).scalar_subquery()
    owner = select(one.c.user_id).where(one.c.id == id).scalar_subquery()
    shared = select(one.c.shared).where(one.c.id == id).scalar_subquery()
    own = select(other.c.user_id).where(other.c.alias == name)
    return and_(_LOGS.alias_used == name, or_(_LOGS.user_id == owner, and_(shared, _LOGS.user_id.not_in(own))))
