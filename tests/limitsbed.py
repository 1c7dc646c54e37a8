"""Limiters for tests, alone and over Redis, with clocks of their own; calls that use so much; rows of the usage log."""

import asyncio
import itertools
import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway.facts import Attempt, Caller, Role
from llm_proxy.gateway.limiting import limiter as limiting
from llm_proxy.gateway.limiting.estimate import Estimate
from llm_proxy.gateway.limiting.limiter import Demand
from llm_proxy.gateway.limiting.local import LocalCounter
from llm_proxy.gateway.limiting.rules import Rules
from llm_proxy.gateway.limiting.sums import Sums
from llm_proxy.gateway.options import Options
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.store import schema
from llm_proxy.gateway.tokens import Prompt

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


class Clock:
    """Both clocks of a limiter."""

    def __init__(self, at=NOON):
        self.monotonic = 1000.0
        self.at = at.timestamp()

    def go(self, seconds):
        self.monotonic += seconds
        self.at += seconds


def caller(user=1, **more):
    return Caller(user, f"user{user}@example.com", Role.MEMBER, frozenset(), **more)


def over(store, redis_url="", clock=None, *, minute=0, day=0):
    """A limiter alone, or over that Redis."""
    given = Options(socket="", upstream="", state="", rate_limit_minute=minute, rate_limit_daily=day)
    clocks = {"clock": lambda: clock.monotonic, "wall": lambda: clock.at} if clock else {}
    rules = Rules(store, given, **{name: one for name, one in clocks.items() if name == "clock"})
    return limiting.over(rules, LocalCounter(Sums(store), **clocks), store, redis_url)


def local(store, clock=None, **limits):
    return over(store, "", clock, **limits)


def asks(body=None, **more):
    """What a call of these words asks for."""
    body = {"model": "gpt-4o"} | (body or {})
    return Demand(estimate=Estimate("chat", json.dumps(body).encode(), Prompt("chat", body), None), **more)


def attempt(tokens=0, cost=0.0):
    """One that used so many tokens and dollars."""
    who = caller()
    now = datetime.now(UTC)
    return Attempt("r", 1, now, who, "chat", "fast", None, 200, "complete", usage=Usage(output=tokens), cost=cost)


async def settled(limiter):
    """All that ended is counted."""
    while limiter._settling:
        await asyncio.wait(set(limiter._settling))
    if not isinstance(limiter.counter, LocalCounter):
        while limiter.counter._draining:
            await asyncio.wait({limiter.counter._draining})


async def spend(limiter, who, *, tokens=0, cost=0.0, demand=None):
    """A call of his that used so much in the end."""
    await limiter.open()
    held = await limiter.take(who, demand or asks())
    held.note(attempt(tokens, cost))
    held.close()
    await settled(limiter)


async def passes(limiter, who, times=1, demand=None):
    """How many of as many requests at once pass; those that do go on."""
    await limiter.open()
    demand = demand or limiting.PLAIN
    done = await asyncio.gather(*(limiter.take(who, demand) for _ in range(times)), return_exceptions=True)
    assert all(isinstance(one, Refusal) and one.status == 429 for one in done if isinstance(one, BaseException)), done
    return sum(not isinstance(one, BaseException) for one in done)


async def refused(limiter, who, demand=None):
    with pytest.raises(Refusal) as caught:
        await limiter.take(who, demand or limiting.PLAIN)
    return caught.value


async def limit(store, subject, subject_id, **most):
    """A row of limits, which holds at once."""
    async with store.writing() as connection:
        await connection.execute(insert(schema.limits).values(subject=subject, subject_id=subject_id, **most))
        await store.changed(connection)


_ids = itertools.count(1)


def dollars(amount):
    return int(amount * schema.NANO)


async def a_team(store, budget):
    async with store.writing() as connection:
        made = insert(schema.teams).values(name=f"team{next(_ids)}", monthly_budget=budget).returning(schema.teams.c.id)
        team = (await connection.execute(made)).scalar_one()
        await store.changed(connection)
        return team


async def log_requests(store, user=1, at=NOON, *, count=1, attempts=(1,), **values):
    """Rows as the usage log writes them."""
    rows = []
    for _ in range(count):
        request = f"request{next(_ids)}"
        for number in attempts:
            row = {
                "id": f"{request}-{number}",
                "request_id": request,
                "attempt": number,
                "user_id": user,
                "api": "chat",
                "alias_used": "fast",
                "provider_used": "openai",
                "model_used": "gpt-4o",
                "ending": "complete",
                "status_code": 200,
                "created_at": at,
            }
            rows.append(row | values)
    async with store.writing() as connection:
        await connection.execute(insert(schema.request_logs), rows)
