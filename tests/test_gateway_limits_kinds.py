"""Limits of every kind, of everybody, team, user, key and alias: the same alone and over Redis; set and seen by HTTP."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from llm_proxy.gateway.costing import Prices
from llm_proxy.gateway.facts import Alias, Provider, ProviderKey, Target
from llm_proxy.gateway.limiting import shared as limiting_shared
from llm_proxy.gateway.limiting.estimate import MOST_OUTPUT, SOME_OUTPUT, Estimates
from llm_proxy.gateway.limiting.limiter import Demand
from llm_proxy.gateway.limiting.meters import KINDS
from llm_proxy.gateway.store import schema
from tests.gatewaystore import a_store_url, add_user, opened
from tests.limitsbed import asks, attempt, caller, dollars, limit, log_requests, over, passes, refused, settled, spend
from tests.redisbed import a_redis

FAST = Alias(7, 1, "fast", "gpt-4o", 1)
ALL = {"team_ids": (3,), "key_id": 5, "key_name": "laptop"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with a_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def sqlite(tmp_path):
    async with a_store_url("sqlite", tmp_path) as url, opened(url, tmp_path) as store:
        yield store


@pytest.fixture(params=["alone", "over Redis"])
async def limiter(request, sqlite, monkeypatch):
    """One of each kind, which waits for Redis however busy this machine is."""
    monkeypatch.setattr(limiting_shared, "PATIENCE", 60.0)
    monkeypatch.setattr(limiting_shared, "_SOCKET", 60.0)
    url = ""
    if request.param == "over Redis":
        redis = request.getfixturevalue("redis")
        redis.say("FLUSHALL")
        url = redis.url
    made = over(sqlite, url)
    sqlite.on_change(made.forget)
    yield made
    await made.close()


@pytest.fixture
def store(limiter, sqlite):
    return sqlite


# (what is limited, the call, what it uses in the end): of five such calls one after the other two pass.
CASES = [
    ({"requests_minute": 2}, asks(), {}),
    ({"requests_day": 2}, asks(), {}),
    ({"tokens_minute": 3000}, asks(), {"tokens": 1400}),
    ({"tokens_day": 3000}, asks(), {"tokens": 1400}),
    ({"tokens_minute": 8000}, asks({"max_tokens": 32000}), {"tokens": 3800}),
    ({"tokens_day": 1000}, asks({"max_tokens": 400}), {"tokens": 400}),
    ({"spend_day": dollars(5)}, asks(), {"cost": 2.5}),
    ({"spend_month": dollars(5)}, asks(), {"cost": 3.5}),
    ({"spend_day": dollars(5), "spend_month": dollars(99), "requests_day": 4}, asks(), {"cost": 2.6, "tokens": 9}),
]
SUBJECTS = [("everybody", 0), ("team", 3), ("user", 1), ("key", 5), ("alias", 7)]


@pytest.mark.parametrize(("most", "demand", "used"), CASES, ids=lambda one: str(one)[:40])
async def test_each_kind_holds(limiter, store, most, demand, used):
    """By what calls have used in the end, and by what they may use before."""
    await limit(store, "user", 1, **most)
    for _ in range(2):
        await spend(limiter, caller(), demand=demand, **used)
    for _ in range(3):
        await refused(limiter, caller(), demand)
    await spend(limiter, caller(2), demand=demand, **used)


@pytest.mark.parametrize(("subject", "id"), SUBJECTS)
@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
async def test_each_subject_has_limits_of_each_kind(limiter, store, subject, id, kind):
    """0 lets nothing through, and the refusal says which limit of whom; who is somebody else goes on."""
    await limit(store, subject, id, **{kind: 0})
    demand = asks(alias=FAST, stream=True)
    assert f'limited_total{{limit="{kind}",subject="{subject}"}} 0' in "".join(limiter.metrics())
    refusal = await refused(limiter, caller(**ALL), demand)
    assert (refusal.status, int(refusal.headers["Retry-After"]) >= 1) == (429, True)
    assert refusal.code == ("budget_exceeded" if kind.startswith("spend") else "rate_limit_exceeded")
    whose = {"everybody": "everybody", "team": "your team", "user": "you ", "key": "'laptop'", "alias": "'fast'"}
    assert whose[subject] in refusal.message
    assert f'limited_total{{limit="{kind}",subject="{subject}"}} 1' in "".join(limiter.metrics())
    assert await passes(limiter, caller(2), 1, asks()) == (subject != "everybody" or kind == "streams")


async def test_all_limits_that_fit_hold_and_a_call_counts_on_all_or_none(limiter, store):
    """The narrow one does not replace the wide one, and what one refuses no other has counted."""
    await limit(store, "everybody", 0, requests_minute=6)
    await limit(store, "team", 3, requests_minute=4)
    await limit(store, "key", 5, requests_minute=3)
    assert await passes(limiter, caller(**ALL), 9) == 3
    assert await passes(limiter, caller(**ALL | {"key_id": 6}), 9) == 1
    assert await passes(limiter, caller(2), 9) == 2


async def test_of_many_at_once_as_many_pass_as_fit(limiter, store):
    """What calls under way may use counts: none of them gets what another one holds."""
    await limit(store, "user", 1, tokens_minute=10 * SOME_OUTPUT + 5, tokens_day=99 * SOME_OUTPUT)
    assert await passes(limiter, caller(), 50, asks()) == 10


async def test_streams_at_once_are_limited_and_given_back(limiter, store):
    """Only streams are streams; one that ends makes room for the next, at once."""
    await limit(store, "user", 1, streams=2)
    stream = asks(stream=True)
    first = await limiter.take(caller(), stream)
    await limiter.take(caller(), stream)
    refusal = await refused(limiter, caller(), stream)
    assert "you may have 2 streams at once, and have" in refusal.message
    assert await passes(limiter, caller(), 5, asks()) == 5
    for _ in range(20):
        first.close()
        first = await limiter.take(caller(), stream)
    await refused(limiter, caller(), stream)


async def test_no_call_uses_more_than_can_be_counted(limiter, store):
    """Whatever a provider says it used: the next calls are counted by the same meters."""
    await limit(store, "user", 1, tokens_day=10, tokens_minute=10, spend_month=10)
    await spend(limiter, caller(), tokens=10**30, cost=1e30)
    seen = [(one.meter.kind.name, one.used) for one in await limiter.look(await limiter.rules.of(caller()))]
    assert sorted(seen) == [("spend_month", 10**15), ("tokens_day", 10**12), ("tokens_minute", 10**12)]
    assert not getattr(limiter.counter, "is_away", False)
    await refused(limiter, caller(), asks())


async def test_what_was_held_too_much_is_given_back(limiter, store):
    """A call that fails, or whose caller leaves, uses what it used."""
    await limit(store, "user", 1, tokens_day=MOST_OUTPUT)
    demand = asks({"max_tokens": 99999})
    for _ in range(3):
        held = await limiter.take(caller(), demand)
        await refused(limiter, caller(), demand)
        held.close()
        held.close()
        await settled(limiter)
    await spend(limiter, caller(), tokens=1, demand=demand)
    await refused(limiter, caller(), demand)


async def test_one_call_may_need_all_there_is(limiter, store):
    """A limit below what a call may use lets one through, where nothing else is used."""
    await limit(store, "user", 1, tokens_day=100)
    await spend(limiter, caller(), tokens=40)
    refusal = await refused(limiter, caller(), asks())
    assert "you may use 100 tokens in a day, and have used 40 tokens, calls under way included" in refusal.message
    await spend(limiter, caller(), tokens=40, demand=asks({"max_tokens": 60}))


@pytest.mark.parametrize(("subject", "id"), SUBJECTS)
async def test_a_day_and_month_go_on_after_a_restart(limiter, store, subject, id):
    """By the usage log: requests, tokens and money of whoever it is, and of nobody else."""
    owner = await add_user(store, "owner@example.com")
    other = await add_user(store, "other@example.com")
    async with store.writing() as connection:
        key = {"id": 1, "user_id": owner, "provider": "openai", "encrypted_key": "", "key_version": 1}
        await connection.execute(schema.provider_keys.insert().values(key))
        for number, user, shared in ((7, owner, True), (8, other, False)):
            alias = {"id": number, "user_id": user, "alias": "fast", "target_model": "m", "provider_key_id": 1}
            await connection.execute(schema.model_aliases.insert().values(alias | {"shared": shared}))
    now = datetime.now(UTC)
    used = {"input_tokens": 10, "output_tokens": 5, "cost": dollars(1), "at": now}
    await log_requests(store, owner, count=2, team_id=3, api_key_id=5, **used)
    await log_requests(store, other, count=1, team_id=4, api_key_id=6, alias_used="fast", **used)
    await log_requests(store, 99, count=1, team_id=4, api_key_id=6, alias_used="slow", **used)
    await log_requests(store, owner, at=datetime(2020, 1, 1, tzinfo=UTC), team_id=3, api_key_id=5)
    await limit(store, subject, id, requests_day=9, tokens_day=99, spend_month=dollars(9))
    meters = await limiter.rules.of(caller(owner, **ALL), FAST)
    seen = {one.meter.kind.name: one.used for one in await limiter.look(meters)}
    calls = 4 if subject == "everybody" else 2
    assert seen == {"requests_day": calls, "tokens_day": 15 * calls, "spend_month": dollars(calls)}


async def test_80_percent_is_told_once(limiter, store, caplog):
    """In every answer from then on; in the log and the metrics once in the span, for each limit."""
    await limit(store, "team", 3, requests_day=10)
    who = caller(team_ids=(3,))
    assert 'limit_warnings_total{limit="requests_day",subject="team"} 0' in "".join(limiter.metrics())
    with caplog.at_level(logging.WARNING, "llm_proxy.gateway"):
        told = [(await limiter.take(who)).headers.get("x-llm-proxy-warning") for _ in range(10)]
    assert told[:7] == [None] * 7
    assert told[7:] == [f"your team: {count} of 10 requests in a day" for count in (8, 9, 10)]
    assert caplog.text.count("80 % of a limit: team 3 has 8 of 10 requests (requests_day)") == 1
    assert caplog.text.count("80 %") == 1
    assert 'limit_warnings_total{limit="requests_day",subject="team"} 1' in "".join(limiter.metrics())


async def test_headers_tell_requests_and_tokens(limiter, store):
    """Of the nearest limit of each, by OpenAI's names; by Anthropic's too for its callers."""
    await limit(store, "everybody", 0, requests_minute=100, tokens_minute=100_000)
    await limit(store, "user", 1, requests_minute=50, tokens_day=10**9)
    told = (await limiter.take(caller(), asks({"max_tokens": 24}, dialect="chat"))).headers
    assert told == {
        "x-ratelimit-limit-requests": "50",
        "x-ratelimit-remaining-requests": "49",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-tokens": str(100_000 - 24),
        "x-ratelimit-reset-tokens": "1m0s",
    }
    told = (await limiter.take(caller(), asks({"max_tokens": 24}, dialect="anthropic"))).headers
    names = [f"anthropic-ratelimit-{what}-{one}" for what in ("requests", "tokens") for one in ("limit", "remaining")]
    assert [told[name] for name in names] == ["50", "48", "100000", str(100_000 - 48)]
    moment = datetime.fromisoformat(told["anthropic-ratelimit-requests-reset"])
    assert 55 < (moment - datetime.now(UTC)).total_seconds() < 65


async def test_a_change_holds_at_once(limiter, store):
    """Limits are read again when something in the store changes; what was counted stays."""
    assert await passes(limiter, caller(), 5) == 5
    await limit(store, "user", 1, requests_day=3)
    await spend(limiter, caller(), demand=Demand())
    async with store.writing() as connection:
        await connection.execute(schema.limits.update().values(requests_day=1))
        await store.changed(connection)
    await refused(limiter, caller())
    async with store.writing() as connection:
        await connection.execute(schema.limits.delete())
        await store.changed(connection)
    assert (await limiter.take(caller())).headers == {}


async def test_prices_make_the_estimate():
    """Of the prompt's tokens and of what the answer may have, by the prices of the record; unknown ones are none."""
    estimates = Estimates(Prices())
    key = ProviderKey(1, 1, Provider.ANTHROPIC, "", "")
    body = {"messages": [{"role": "user", "content": "word " * 1000}], "max_tokens": 2000}
    call = asks(body).estimate
    for model, priced in (("claude-sonnet-4-5", True), ("nobody-knows", False)):
        tokens, cost = await estimates.of(replace(call, target=Target(key, model)), priced=True)
        assert 2900 < tokens < 3400
        expected = (tokens - 2000) * 3000 + 2000 * 15000  # 3 and 15 USD per million
        assert cost == (pytest.approx(expected, rel=0.01) if priced else 0)
    assert estimates.cost([attempt(cost=0.5), attempt(cost=0.25)]) == dollars(0.75)
