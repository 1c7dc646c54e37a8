"""A gateway that a team has used for a month, for pictures and for tests that want much to look at. All is invented.

`fill(gateway)` makes eight people, three teams, provider keys, aliases with chains, API keys and limits by HTTP, and
writes a month of usage into the store. The first account is the administrator's.
"""

from __future__ import annotations

import math
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from tests.gatewaybed import Gateway

DAYS = 30
PEOPLE = ("ada", "bo.larsen", "chidi", "dana", "emeka", "fatima", "grigori")  # besides the administrator
TEAMS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "Platform": (400, ("ada", "bo.larsen", "chidi")),
    "Research": (900, ("dana", "emeka")),
    "Support": (None, ("fatima", "grigori")),
}


class Model(NamedTuple):
    """Prices are US dollars for a million tokens: fresh, read, written, out; None: nobody knows them."""

    alias: str
    provider: str
    name: str
    share: float
    prices: tuple[float, float, float, float] | None


MODELS = (
    Model("smart", "anthropic", "claude-opus-4-5", 0.18, (5, 0.5, 6.25, 25)),
    Model("code", "anthropic", "claude-sonnet-4-5", 0.38, (3, 0.3, 3.75, 15)),
    Model("fast", "openai", "gpt-5-mini", 0.22, (0.25, 0.025, 0.25, 2)),
    Model("long-context", "gemini", "gemini-2.5-pro", 0.12, (1.25, 0.31, 1.25, 10)),
    Model("cheap", "openai-compatible", "llama-3.3-70b", 0.10, None),
)
PROJECTS = ("billing", "website", "ferret", "compiler", "")
TROUBLES = (
    (529, "upstream_failed", "overloaded_error: Overloaded"),
    (429, "upstream_failed", "rate_limit_error: this key has reached its requests a minute"),
    (None, "upstream_failed", "api.openai.com did not begin to answer in 60 s"),
    (None, "client_gone", ""),
)
_COLUMNS = (
    *("id", "request_id", "attempt", "user_id", "api_key_id", "team_id", "api", "alias_used", "provider_used"),
    *("model_used", "stream", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("reasoning_tokens", "cost", "status_code", "ending", "error", "milliseconds", "first_token_milliseconds"),
    *("created_at", "project"),
)


def email(name: str) -> str:
    return f"{name}@example.com"


class Who(NamedTuple):
    id: int
    key: int
    team: int | None


def fill(gateway: Gateway, now: datetime | None = None) -> None:
    """Blocks until all is there."""
    who = _people(gateway)
    keys = _provider_keys(gateway)
    _aliases(gateway, keys)
    _usage(gateway, who, now or datetime.now(UTC))
    _limits(gateway, who)


def _people(gateway: Gateway) -> list[Who]:
    """The administrator first."""
    made = [_who(gateway, gateway.admin, "admin's laptop")]
    for number, name in enumerate(PEOPLE):
        session = gateway.sign_up(email(name))
        made.append(_who(gateway, session, f"{name.partition('.')[0]}'s laptop"))
        gateway.key(session, name="continuous integration", scopes=["models", "usage"], expires_in_days=90 - number)
    ids = dict(zip(PEOPLE, (one.id for one in made[1:]), strict=True))
    teams = {}
    for name, (budget, members) in TEAMS.items():
        team = gateway.want(201, "POST", "/manage/teams", {"name": name, "monthly_budget": budget}, gateway.admin)["id"]
        for member in members:
            path = f"/manage/teams/{team}/members/{ids[member]}"
            assert gateway.ask("PUT", path, token=gateway.admin).status < 300
            teams[ids[member]] = team
    for given in ({"email": "hana@example.com"}, {"role": "admin"}):
        gateway.want(201, "POST", "/manage/invitations", given, gateway.admin)
    gateway.want(200, "PATCH", f"/manage/users/{ids['grigori']}", {"active": False}, gateway.admin)
    gateway.want(200, "PATCH", f"/manage/users/{ids['emeka']}", {"rate_limit_minute": 60}, gateway.admin)
    return [one._replace(team=teams.get(one.id)) for one in made]


def _who(gateway: Gateway, session: str, name: str) -> Who:
    me = gateway.want(200, "GET", "/auth/me", token=session)["id"]
    return Who(me, gateway.want(200, "POST", "/auth/key", {"name": name}, session)["id"], None)


def _provider_keys(gateway: Gateway) -> dict[str, int]:
    given: dict[str, dict[str, Any]] = {
        "anthropic": {"label": "Anthropic, company account"},
        "openai": {"label": "OpenAI, company account"},
        "gemini": {"label": "Gemini"},
        "openai-compatible": {"label": "Groq", "base_url": "https://api.groq.com/openai/v1"},
    }
    made = {}
    for provider, more in given.items():
        told = {"provider": provider, "api_key": f"sk-{provider}-0123456789abcdef", "shared": True, "test": False}
        made[provider] = gateway.want(201, "POST", "/manage/providers", told | more, gateway.admin)["id"]
    return made


def _aliases(gateway: Gateway, keys: dict[str, int]) -> None:
    def step(provider: str, model: str, rank: int, weight: int = 1) -> dict[str, Any]:
        return {"provider_key_id": keys[provider], "model": model, "rank": rank, "weight": weight}

    given: dict[str, dict[str, Any]] = {
        "cheap": {},
        "fast": {"chain": [step("gemini", "gemini-2.5-flash", 1)]},
        "code": {
            "chain": [step("openai", "gpt-5", 1), step("gemini", "gemini-2.5-pro", 2)],
            "use_light_model": True,
            "light_model": "claude-haiku-4-5",
            "light_model_threshold": 400,
        },
        "smart": {
            "chain": [step("openai", "gpt-5", 1, 3), step("gemini", "gemini-2.5-pro", 1)],
            "long_model": "claude-sonnet-4-5",
            "long_model_threshold": 150_000,
        },
        "long-context": {"parameters": {"temperature": 0.2}},
        "summaries": {"chain": [step("openai-compatible", "llama-3.3-70b", 1)]},
    }
    targets = {model.alias: model for model in MODELS} | {"summaries": MODELS[2]}
    ids: dict[str, int] = {}
    for name, more in given.items():
        if name in ("code", "smart"):
            more["fallback_alias_id"] = ids["fast"]
        model = targets[name]
        ids[name] = gateway.alias(name, model.name, keys[model.provider], shared=True, **more)["id"]


def _usage(gateway: Gateway, who: list[Who], now: datetime) -> None:
    chance = random.Random(11)
    rows = []
    for day in range(DAYS):
        at = now - timedelta(days=day)
        calls = 6 if at.weekday() > 4 else 40 + chance.randint(-8, 14)
        for number in range(calls):
            moment = at.replace(hour=7, minute=0) + timedelta(minutes=chance.triangular(0, 720, 300))
            if day == 0:
                moment = now - timedelta(minutes=20 + 15 * number)
            rows += _call(chance, f"demo-{day}-{number}", chance.choice(who), moment)
    store = gateway.daemon.home / ".local/share/llm-proxy/gateway/gateway.db"
    marks = ", ".join("?" * len(_COLUMNS))
    with closing(sqlite3.connect(store, timeout=10)) as link, link:
        link.executemany(f"INSERT INTO request_logs ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)
        link.execute("UPDATE api_keys SET last_used_at = ? WHERE id % 3 > 0", (_written(now - timedelta(hours=2)),))


def _call(chance: random.Random, name: str, who: Who, at: datetime) -> list[tuple[Any, ...]]:
    """Its attempts: one, or one that failed and one that came after it."""
    [model] = chance.choices(MODELS, [one.share for one in MODELS])
    project = chance.choice(PROJECTS)
    read = int(chance.lognormvariate(10.2, 0.8)) if model.prices else 0
    fresh, write = int(chance.lognormvariate(7.6, 0.9)), read // 12
    out = int(chance.lognormvariate(6.2, 0.7))
    cost = None
    if model.prices:
        cost = round(sum(n * price for n, price in zip((fresh, read, write, out), model.prices, strict=True)) * 1000)
    took = int(1200 + out * chance.uniform(9, 16))

    def row(attempt: int, one: Model, counts: tuple[int, ...], cost: int | None, *end: Any) -> tuple[Any, ...]:
        first = (f"{name}-{attempt}", name, attempt, who.id, who.key, who.team, "messages", model.alias)
        return (*first, one.provider, one.name, True, *counts, cost, *end, _written(at), project)

    whole = (fresh + read + write, out, read, write, 0)
    good = (200, "complete", "", took, chance.randint(380, 1900))
    if chance.random() > 0.035:
        return [row(1, model, whole, cost, *good)]
    trouble = row(1, model, (0,) * 5, 0, *chance.choice(TROUBLES), chance.randint(200, 4000), None)
    other = Model("", "openai", "gpt-5", 0, (1.25, 0.125, 1.25, 10))
    return [trouble, row(2, other, whole, cost, *good)] if chance.random() < 0.6 else [trouble]


def _written(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")


def _limits(gateway: Gateway, who: list[Who]) -> None:
    """Of which half is used, most, and all."""
    month = {row["user_id"]: row for row in _sums(gateway, "user")}
    all_spent = sum(row["cost"] for row in month.values())
    mine, hers = month[who[0].id], month[who[1].id]
    today = f"&from={datetime.now(UTC):%Y-%m-%d}"
    used = sum(row["requests"] - row["retries"] for row in _sums(gateway, "user", today))
    given = {
        "everybody/0": {"spend_month": _nice(all_spent / 0.5), "streams": 40, "requests_day": max(used * 2, 10)},
        f"user/{who[0].id}": {"spend_month": round(mine["cost"] / 0.85, 2), "requests_minute": 60},
        f"key/{who[0].key}": {"spend_month": math.floor(mine["cost"]), "tokens_minute": 200_000},
        f"user/{who[1].id}": {"spend_month": _nice(hers["cost"] / 0.85)},
        f"team/{who[1].team}": {"tokens_day": 20_000_000},
        "alias/1": {"requests_minute": 120},
    }
    for name, share in (("Platform", 0.85), ("Research", 1)):
        one = next(row for row in _sums(gateway, "team") if row["team"] == name)
        budget = {"monthly_budget": math.floor(one["cost"] / share * 100) / 100}
        gateway.want(200, "PATCH", f"/manage/teams/{one['team_id']}", budget, gateway.admin)
    for subject, most in given.items():
        gateway.want(200, "PUT", f"/manage/limits/{subject}", most, gateway.admin)


def _sums(gateway: Gateway, by: str, more: str = "") -> list[dict[str, Any]]:
    month = more or f"&from={datetime.now(UTC):%Y-%m}-01"
    found: list[dict[str, Any]] = gateway.want(
        200, "GET", f"/manage/usage?all=true&group_by={by}{month}", token=gateway.admin
    )
    return found


def _nice(amount: float) -> float:
    """Rounded to two digits."""
    return float(f"{amount:.2g}")
