"""What a team may spend in a calendar month (UTC), and whether it has: then its members' calls are refused.

What is spent is the store's sum over `request_logs` and what this process knows of since; the store is asked again in
the background, the less often the longer it takes to add up. So calls that are under way, and the last seconds of other
machines, may take a team past its budget. Leaves out who makes budgets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.store.schema import NANO, request_logs, teams

if TYPE_CHECKING:
    from llm_proxy.gateway.store.database import Store

log = logging.getLogger("llm_proxy.gateway")

FRESH: Final = 3.0  # seconds after which the store is asked again, while a call goes on by what is known
STALE: Final = 30.0  # seconds after which a call waits for what it says
_SHARE: Final = 20.0  # of the time it is let alone, the store spends at most one part of this with adding up
_LOOKUP: Final = 5.0  # seconds it has
_PATIENCE: Final = 1.0  # seconds that a call waits at most: a budget never stops the traffic because the store is down
_TOLD_EVERY: Final = 60.0  # seconds between two lines that it cannot be asked


@dataclass(slots=True)
class _Team:
    """`budget` and `sum` are the store's, in billionths of a dollar; `since` came in this process after it had said."""

    budget: int | None = None
    sum: int = 0
    since: int = 0
    asked: float = float("-inf")  # when, by the monotonic clock
    took: float = 0.0  # seconds
    asking: asyncio.Task[None] | None = None


class Budgets:
    def __init__(
        self, store: Store, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ):
        self.refused = 0
        self._store = store
        self._clock = clock
        self._wall = wall
        self._teams: dict[int, _Team] = {}
        self._told = float("-inf")

    async def check(self, team_id: int) -> None:
        """Raises Refusal 429 where the team's budget is spent. Does not wait, as a rule."""
        team = self._teams.setdefault(team_id, _Team())
        age = self._clock() - team.asked
        if age >= max(FRESH, team.took * _SHARE):
            if team.asking is None:
                team.asking = asyncio.create_task(self._ask(team_id, team))
            if age >= max(STALE, team.took * _SHARE * 2):
                await asyncio.wait({team.asking}, timeout=_PATIENCE)
        if team.budget is not None and team.sum + team.since >= team.budget:
            self.refused += 1
            words = f"your team has spent its budget of {_dollars(team.budget)} USD for this month"
            # OpenAI's and Anthropic's SDKs would try again within seconds.
            raise Refusal(429, "budget_exceeded", words, headers={"x-should-retry": "false"})

    def spent(self, team_id: int, cost: int) -> None:
        """A call cost that much, which the store need not know yet."""
        team = self._teams.get(team_id)
        if team is not None:
            team.since += cost

    async def _ask(self, team_id: int, team: _Team) -> None:
        from llm_proxy.gateway.store.database import StoreAway

        started, before = self._clock(), team.since
        month = datetime.fromtimestamp(self._wall(), UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        sum_of_month = (
            select(func.sum(request_logs.c.cost))
            .where(request_logs.c.team_id == team_id, request_logs.c.created_at >= month)
            .scalar_subquery()
        )
        try:
            async with asyncio.timeout(_LOOKUP), self._store.reading() as connection:
                budget = await connection.scalar(select(teams.c.monthly_budget).where(teams.c.id == team_id))
                # What is not limited need not be added up.
                total = 0 if budget is None else int(await connection.scalar(select(sum_of_month)) or 0)
        except (StoreAway, TimeoutError) as error:
            self._tell(error)
        else:
            team.budget, team.sum, team.since = budget, total, team.since - before
        finally:
            team.asked = self._clock()
            team.took = team.asked - started
            team.asking = None

    def _tell(self, error: Exception) -> None:
        now = self._clock()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            log.warning("budgets go by what was known before: %s", error or "the store did not answer in time")


def _dollars(nano: int) -> str:
    """Exactly, with two digits of cents at least."""
    whole, rest = divmod(nano, NANO)
    return f"{whole}.{f'{rest:09d}'.rstrip('0'):0<2}"
