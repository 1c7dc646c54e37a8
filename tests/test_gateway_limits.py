"""Limits hold exactly, in one process and over many; budgets are kept; nothing of ours that is down stops the traffic."""

import asyncio
import contextlib
import logging
import random
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from llm_proxy.gateway.limiting import limiter as limiting
from llm_proxy.gateway.limiting import local as limiting_local
from llm_proxy.gateway.limiting import shared as limiting_shared
from llm_proxy.gateway.limiting import sums as limiting_sums
from llm_proxy.gateway.limiting.meters import DAY
from llm_proxy.gateway.limiting.shared import PATIENCE
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.store import schema
from tests.gatewaystore import a_store_url, opened
from tests.limitsbed import (
    NOON,
    Clock,
    a_team,
    asks,
    caller,
    dollars,
    local,
    log_requests,
    over,
    passes,
    refused,
    spend,
)
from tests.redisbed import PASSWORD, a_redis
from tests.storeaway import shut, unlock


@pytest.fixture
async def sqlite(tmp_path):
    """Where the store is only asked what it is asked on both kinds elsewhere."""
    async with a_store_url("sqlite", tmp_path) as url, opened(url, tmp_path) as store:
        yield store


@pytest.fixture
def redis(tmp_path):
    with a_redis(tmp_path) as server:
        yield server


@pytest.fixture
def patient(monkeypatch):
    """Redis is waited for, however busy this machine is."""
    monkeypatch.setattr(limiting_shared, "PATIENCE", 60.0)
    monkeypatch.setattr(limiting_shared, "_SOCKET", 60.0)


@pytest.fixture
async def shared():
    """Makes limiters that share, and lets go of them."""
    made = []

    def make(server, store, **limits):
        made.append(over(store, server.url, **limits))
        return made[-1]

    yield make
    for limiter in made:
        await limiter.close()


# --- one process


@pytest.mark.parametrize("limits", [{"minute": 100}, {"day": 100}, {"minute": 100, "day": 100}], ids=str)
async def test_of_500_at_once_exactly_100_pass(store, limits):
    """The limit is exact whatever comes at the same time, also while the store is still asked about the day."""
    limiter = local(store, Clock(), **limits)
    assert await passes(limiter, caller(), 500) == 100
    assert await passes(limiter, caller(2), 500) == 100, "one user's limit is no other's"


async def test_no_sixty_seconds_hold_more_than_the_limit():
    """There is no boundary: not of a minute, and not of a bucket that fills up while it is emptied."""
    clock, dice, passed = Clock(), random.Random(7), []
    limiter = local(None, clock, minute=20)
    for _ in range(4000):
        clock.go(dice.choice([0, 0, 0.01, 0.5, 3, 30]))
        if await passes(limiter, caller()):
            passed.append(clock.monotonic)
    assert len(passed) > 200
    for first, next_one in zip(passed, passed[20:], strict=False):
        assert next_one - first >= 60


async def test_who_waits_as_long_as_told_gets_through():
    """Retry-After is the first whole second at which one more fits, and refused requests do not move it."""
    clock = Clock()
    limiter = local(None, clock, minute=2)
    await limiter.take(caller())
    clock.go(20.5)
    await limiter.take(caller())
    waits = set()
    for _ in range(50):
        refusal = await refused(limiter, caller())
        waits.add(refusal.headers["Retry-After"])
    assert waits == {"40"}
    assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
    assert "2 requests in a minute" in refusal.message
    clock.go(38.9)
    await refused(limiter, caller())
    clock.go(1.1)
    assert await passes(limiter, caller()) == 1
    await refused(limiter, caller())


async def test_headers_tell_of_the_nearer_limit():
    """As OpenAI writes them: which limit, how many are left, when nothing of it is used any more."""
    clock = Clock(NOON + timedelta(minutes=29, seconds=1.5))
    limiter = local(None, clock, minute=5)
    limiter.counter.sums.of = None  # nothing is asked without a limit for the day
    told = (await limiter.take(caller())).headers
    assert told == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "1m0s",
    }


async def test_headers_of_the_day_tell_midnight(sqlite):
    """Where the day is nearer, it is the day's; SDKs are told not to try again within seconds."""
    clock = Clock(NOON + timedelta(minutes=29, seconds=1.5))
    limiter = local(sqlite, clock, minute=5, day=2)
    told = (await limiter.take(caller())).headers
    assert told == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "11h30m59s",
    }
    await limiter.take(caller())
    refusal = await refused(limiter, caller())
    assert "2 requests in a day" in refusal.message
    assert refusal.headers["Retry-After"] == str(11 * 3600 + 30 * 60 + 59)
    assert refusal.headers["x-should-retry"] == "false"


async def test_a_users_own_limit_comes_before_that_of_all():
    """None is the default of all, 0 no limit; a change holds with the next request."""
    limiter = local(None, Clock(), minute=3)
    assert await passes(limiter, caller(1), 9) == 3
    assert await passes(limiter, caller(1, rate_limit_minute=5), 9) == 2
    assert await passes(limiter, caller(1, rate_limit_minute=0), 9) == 9
    assert (await limiter.take(caller(1, rate_limit_minute=0))).headers == {}
    assert await passes(limiter, caller(1, rate_limit_minute=4), 9) == 0
    assert int((await refused(limiter, caller(1, rate_limit_minute=4))).headers["Retry-After"]) == 60
    assert await passes(local(None, Clock()), caller(1), 99) == 99


async def test_a_user_has_one_limit_by_whichever_key_he_comes():
    """Many keys are not many limits."""
    limiter = local(None, Clock(), minute=3)
    assert sum([await passes(limiter, caller(1, key_id=key)) for key in range(9)]) == 3


async def test_the_day_goes_on_after_a_restart(store):
    """Requests count, not their attempts; not yesterday's, not others', and not those that a limit refused."""
    await log_requests(store, count=3, attempts=(1, 2, 3))
    await log_requests(store, count=2, at=NOON - timedelta(days=1))
    await log_requests(store, count=2, at=NOON + timedelta(days=1))
    await log_requests(store, count=2, user=2)
    await log_requests(store, count=5, attempts=(0,), status_code=429, ending="refused")
    await log_requests(store, count=1, attempts=(0,), status_code=404, ending="refused")
    await log_requests(store, count=1, status_code=None, ending="timed_out")
    await log_requests(store, count=1, status_code=429)  # a provider's: the request had passed
    limiter = local(store, Clock(), day=10)
    assert await passes(limiter, caller(), 50) == 10 - 6


async def test_a_day_ends_at_midnight_in_utc(sqlite):
    """A new day is counted anew, and one that comes back after a step of the clock is not."""
    clock = Clock(datetime(2026, 3, 14, 23, 59, 59, tzinfo=UTC))
    limiter = local(sqlite, clock, day=3)
    assert await passes(limiter, caller(), 9) == 3
    await log_requests(sqlite, count=3, at=datetime.fromtimestamp(clock.at, UTC))
    clock.go(2)
    assert await passes(limiter, caller(), 9) == 3
    clock.at -= DAY
    assert await passes(limiter, caller(), 9) == 0


@contextlib.asynccontextmanager
async def a_store_that_is_away(folder):
    async with a_store_url("postgresql", folder) as url, opened(url, folder) as store:
        await shut(url)
        yield store


async def test_a_store_that_is_away_stops_nobody(tmp_path, caplog):
    """What was made today cannot be asked: it is counted from 0, and the log says so."""
    async with a_store_that_is_away(tmp_path) as store:
        limiter = local(store, Clock(), day=3)
        with caplog.at_level(logging.WARNING, "llm_proxy.gateway"):
            assert await passes(limiter, caller(), 9) == 3
    assert "goes by what is known here" in caplog.text


async def test_who_leaves_takes_nobody_along(sqlite):
    """Requests wait together for what the day holds; one of them is given up meanwhile."""
    limiter = local(sqlite, Clock(), day=3)
    waiting = [asyncio.create_task(limiter.take(caller())) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in done] == [asyncio.CancelledError, limiting.Held, limiting.Held]
    assert await passes(limiter, caller(), 5) == 1


async def test_users_who_are_idle_are_forgotten(monkeypatch, sqlite):
    """What is remembered has an end, and forgetting gives nobody more than his limit."""
    monkeypatch.setattr(limiting_local, "_MOST", 10)
    clock = Clock()
    limiter = local(sqlite, clock, minute=2)
    for user in range(10):
        assert await passes(limiter, caller(user), 3) == 2
    clock.go(30)
    assert await passes(limiter, caller(3)) == 0
    clock.go(31)
    assert await passes(limiter, caller(10), 3) == 2
    assert len(limiter.counter._counts) == 1


async def test_a_take_costs_next_to_nothing():
    """It is on the way of every call. A wide guard: measured are 2.5 µs."""
    limiter = local(None, minute=10**6)
    began = time.process_time()
    for _ in range(20_000):
        await limiter.take(caller_ := CALLER)
    assert caller_ and (time.process_time() - began) / 20_000 < 50e-6


CALLER = caller()


# --- budgets


async def test_a_team_that_has_spent_its_budget_is_refused(store):
    """Only this month's cost counts, only the team's own, and one that is not known counts nothing."""
    team, other, free = await a_team(store, dollars(5)), await a_team(store, dollars(5)), await a_team(store, None)
    await log_requests(store, team_id=team, cost=dollars(2), count=2)
    await log_requests(store, team_id=team, cost=None, count=9)
    await log_requests(store, team_id=team, cost=dollars(99), at=NOON.replace(month=2))
    await log_requests(store, team_id=other, cost=dollars(4.99))
    await log_requests(store, team_id=free, cost=dollars(1000))
    clock = Clock()
    limiter = local(store, clock)
    await spend(limiter, caller(team_ids=(team,)))
    await log_requests(store, team_id=team, cost=dollars(1))
    clock.go(31)
    refusal = await refused(limiter, caller(team_ids=(team,)), asks())
    assert (refusal.status, refusal.code) == (429, "budget_exceeded")
    assert "your team may spend 5.00 USD in a month, and has" in refusal.message
    assert refusal.headers["x-should-retry"] == "false"
    assert int(refusal.headers["Retry-After"]) == 17.5 * DAY - 31
    assert await passes(limiter, caller(team_ids=(team,))) == 1, "what costs nothing is free"
    assert await passes(limiter, caller(team_ids=(other, team)), 1, asks()) == 1, "a caller's first team pays"
    assert await passes(limiter, caller(team_ids=(free,)), 1, asks()) == 1
    assert await passes(limiter, caller(), 1, asks()) == 1


async def test_a_small_budget_is_told_as_it_is(sqlite):
    """To the last digit, and never as nothing."""
    for budget, told in ((0.004, "0.004 USD"), (1.5, "1.50 USD"), (0, "0.00 USD")):
        team = await a_team(sqlite, dollars(budget))
        await log_requests(sqlite, team_id=team, cost=dollars(2))
        refusal = await refused(local(sqlite, Clock()), caller(team_ids=(team,)), asks())
        assert f"may spend {told}" in refusal.message


async def test_what_is_spent_here_counts_at_once(sqlite):
    """Before the store knows of it, and once only when it does."""
    team = await a_team(sqlite, dollars(5))
    clock = Clock()
    limiter = local(sqlite, clock)
    who = caller(team_ids=(team,))
    await spend(limiter, who, cost=3)
    await spend(limiter, who)
    await log_requests(sqlite, team_id=team, cost=dollars(3))
    clock.go(31)
    await spend(limiter, who)  # what the store has is not added again
    await spend(limiter, who, cost=2)
    await refused(limiter, who, asks())


async def test_a_raised_budget_and_a_new_month_open_again(store):
    """At once, and by the calendar in UTC."""
    team = await a_team(store, dollars(1))
    await log_requests(store, team_id=team, cost=dollars(1))
    clock = Clock(NOON.replace(day=31))
    limiter = local(store, clock)
    store.on_change(limiter.forget)
    who = caller(team_ids=(team,))
    await refused(limiter, who, asks())
    async with store.writing() as connection:
        await connection.execute(update(schema.teams).values(monthly_budget=dollars(2)))
        await store.changed(connection)
    await spend(limiter, who, cost=1)
    await refused(limiter, who, asks())
    clock.go(12 * 3600 + 1)
    await spend(limiter, who)


async def test_a_budget_that_cannot_be_asked_stops_nobody(tmp_path, caplog):
    """What was known before holds, and one line a minute says so."""
    clock = Clock()
    async with a_store_url("postgresql", tmp_path) as url, opened(url, tmp_path) as store:
        team = await a_team(store, dollars(5))
        limiter = local(store, clock)
        who = caller(team_ids=(team,))
        await spend(limiter, who, cost=3)
        await shut(url)
        with caplog.at_level(logging.WARNING, "llm_proxy.gateway"):
            for _ in range(5):
                await spend(limiter, who, cost=0.3)
                clock.go(31)
            await spend(limiter, who, cost=0.5)
            await refused(limiter, who, asks())
    assert caplog.text.count("limits are those that were known before") == 2
    assert caplog.text.count("goes by what is known here") == 1


# --- many processes


def key_of(store, kind, subject="user:1"):
    """In Redis."""
    return f"llm-proxy:{{{store.account(0)}}}:{subject}:{kind}"


async def test_two_machines_have_one_limit(patient, shared, redis, sqlite):
    """Of 500 requests at once over two limiters exactly 100 pass; users are apart, and the headers count for all."""
    one, two = shared(redis, sqlite, minute=100), shared(redis, sqlite, minute=100)
    who = caller()
    counted = []
    for _ in range(25):
        counted += await asyncio.gather(*(passes(limiter, who, 5) for limiter in (one, two) for _ in range(2)))
    assert sum(counted) == 100
    assert (one.counter.fallbacks, two.counter.fallbacks) == (0, 0)
    await two.take(caller(2))
    told = (await one.take(caller(2))).headers
    assert told["x-ratelimit-remaining-requests"] == "98"


MACHINE = """
import asyncio, sys
from llm_proxy.gateway.limiting import shared as limiting_shared
from llm_proxy.gateway.facts import Caller, Role
from llm_proxy.gateway.limiting.limiter import make
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.store.database import Store

limiting_shared.PATIENCE = limiting_shared._SOCKET = 60.0  # however busy the machine is

async def main():
    store = Store(sys.argv[2], "/nowhere")
    await store.open()
    options = Options(socket="", upstream="", state="", rate_limit_minute=100, rate_limit_daily=150)
    limiter = make(store, options, Secrets("", "", "", redis_url=sys.argv[1]))
    who = Caller(1, "", Role.MEMBER, frozenset())
    await limiter.take(Caller(2, "", Role.MEMBER, frozenset()))
    print("ready", flush=True)
    sys.stdin.readline()
    passed = 0
    for _ in range(250):
        try:
            await limiter.take(who)
            passed += 1
        except Refusal:
            pass
    print(passed, flush=True)
    await limiter.close()
    await store.close()

asyncio.run(main())
"""


async def test_two_processes_have_one_limit(redis, store_url):
    """Real processes, each with 250 requests as fast as it can: 100 pass."""
    command = [sys.executable, "-c", MACHINE, redis.url, store_url]
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    machines = [await asyncio.create_subprocess_exec(*command, **pipes) for _ in range(2)]
    try:
        async with asyncio.timeout(120):
            for machine in machines:
                assert await machine.stdout.readline() == b"ready\n"
            for machine in machines:
                machine.stdin.write(b"\n")
            counted = [int(await machine.stdout.readline()) for machine in machines]
            assert [await machine.wait() for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            if machine.returncode is None:
                machine.kill()
                await machine.wait()
    assert sum(counted) == 100, counted
    assert all(counted), "both took part"


async def test_redis_counts_the_last_sixty_seconds(patient, shared, redis, sqlite):
    """By its own clock; what is older has left, and waiting is until the oldest leaves."""
    limiter = shared(redis, sqlite, minute=3)
    now = int(time.time() * 1e6)
    key = key_of(sqlite, "requests_minute")
    for age in (70, 61, 50.5, 20):
        redis.say("RPUSH", f"{key}:uses", f'"{now - int(age * 1e6)} 1"')
    redis.say("HSET", key, "sum", 4)
    assert await passes(limiter, caller()) == 1
    refusal = await refused(limiter, caller())
    assert 8 <= int(refusal.headers["Retry-After"]) <= 10
    assert redis.say("LLEN", f"{key}:uses") == b":3\r\n"
    assert limiter.counter.fallbacks == 0


async def test_a_clock_that_was_set_back_locks_nobody_out(patient, shared, redis, sqlite):
    """Entries of a future that was none are dropped."""
    limiter = shared(redis, sqlite, minute=1)
    redis.say("RPUSH", key_of(sqlite, "requests_minute") + ":uses", f'"{int((time.time() + 3600) * 1e6)} 1"')
    redis.say("HSET", key_of(sqlite, "requests_minute"), "sum", 1)
    assert await passes(limiter, caller(), 3) == 1


async def test_an_emptied_redis_learns_the_day_from_the_store(patient, shared, redis, store):
    """What is logged counts also where Redis was started anew, and is asked once for all that wait."""
    now = datetime.now(UTC)
    await log_requests(store, count=6, attempts=(1, 2), at=now)
    limiter = shared(redis, store, day=10)
    assert await passes(limiter, caller(), 20) == 4
    redis.say("FLUSHALL")
    await log_requests(store, count=3, at=now)
    other = shared(redis, store, day=10)
    assert await passes(other, caller(), 20) == 1
    assert redis.say("HGET", key_of(store, "requests_day"), "count") == b"$2\r\n10\r\n"
    # And yesterday's number is nobody's today.
    redis.say("HSET", key_of(store, "requests_day"), "period", int(time.time() // DAY) - 1)
    assert await passes(limiter, caller(), 20) == 10
    assert limiter.counter.fallbacks == other.counter.fallbacks == 0


async def test_an_emptied_redis_learns_from_the_machine_what_the_store_has_not_yet(patient, shared, redis, sqlite):
    """Calls under way, and those of the last second."""
    limiter = shared(redis, sqlite, day=10)
    assert await passes(limiter, caller(), 7) == 7
    redis.say("FLUSHALL")
    assert await passes(limiter, caller(), 9) == 3


async def test_a_store_that_does_not_say_opens_no_day_for_good(monkeypatch, patient, shared, redis, tmp_path):
    """Meanwhile it is counted together from 0, waiting for nothing; when the store says it, that holds."""
    monkeypatch.setattr(limiting_sums, "_AGAIN", 0.05)
    async with a_store_url("postgresql", tmp_path) as url, opened(url, tmp_path) as store:
        await log_requests(store, count=1000, at=datetime.now(UTC))
        limiter, other = (shared(redis, store, day=100) for _ in range(2))
        await shut(url)
        assert await passes(limiter, caller(), 3) + await passes(other, caller(), 3) == 6
        assert await passes(limiter, caller(2), 120) + await passes(other, caller(2), 120) == 100
        meters = await limiter.rules.of(caller())
        assert (await limiter.look(meters))[0].used == 6
        await unlock(url)
        async with asyncio.timeout(30):
            while (await limiter.look(meters))[0].used < 1000:
                await asyncio.sleep(0.02)
        await refused(limiter, caller())
        await refused(other, caller())
        assert redis.say("HMGET", key_of(store, "requests_day"), "count", "guess") == b"*2\r\n$4\r\n1000\r\n$-1\r\n"
        assert limiter.counter.fallbacks == 0


async def test_a_redis_that_hangs_costs_its_patience_once(shared, redis, sqlite, caplog):
    """Limits hold on this machine meanwhile, a line and a gauge say so, and it is shared again when Redis is back."""
    limiter = shared(redis, sqlite, minute=10)
    await limiter.counter._redis.ping()
    assert await passes(limiter, caller(), 4) == 4
    redis.freeze()
    with caplog.at_level(logging.WARNING, "llm_proxy.gateway"):
        began = time.monotonic()
        passed = [await passes(limiter, caller()) for _ in range(400)]
        assert time.monotonic() - began < 200 * PATIENCE
        assert sum(passed) == 6, "what Redis had let pass is known here"
        assert limiter.counter.is_away
        told = list(limiter.metrics())
        assert "llm_proxy_gateway_limits_degraded 1" in told and "llm_proxy_gateway_limits_lost_total 0" in told
        redis.thaw()
        async with asyncio.timeout(30):
            while limiter.counter.is_away:
                await passes(limiter, caller(2))
                await asyncio.sleep(0.02)
    assert "llm_proxy_gateway_limits_degraded 0" in list(limiter.metrics())
    assert caplog.text.count("Redis cannot be asked") == 1
    assert PASSWORD not in caplog.text


async def test_a_redis_that_is_down_is_found_again(shared, redis, sqlite):
    """Also with connections of before its end."""
    limiter = shared(redis, sqlite, minute=10)
    await asyncio.gather(*(limiter.counter._redis.ping() for _ in range(8)))
    redis.stop()
    assert await passes(limiter, caller(), 20) == 10
    assert limiter.counter.is_away
    redis.start()
    async with asyncio.timeout(30):
        while limiter.counter.is_away:
            await passes(limiter, caller(2))
            await asyncio.sleep(0.02)
    assert await passes(limiter, caller(3), 20) == 10


async def test_a_redis_that_is_down_a_second_time_opens_no_day_again(patient, shared, redis, sqlite):
    """What was counted together between the two is the store's to say, not what this machine remembers of the first."""
    limiter, now = shared(redis, sqlite, day=10), datetime.now(UTC)
    redis.stop()
    assert await passes(limiter, caller(), 2) == 2
    await log_requests(sqlite, count=2, at=now)
    redis.start()
    async with asyncio.timeout(30):
        while limiter.counter.is_away:
            await passes(limiter, caller(2))
            await asyncio.sleep(0.02)
    assert await passes(limiter, caller(), 3) == 3
    await log_requests(sqlite, count=3, at=now)
    redis.stop()
    assert await passes(limiter, caller(), 20) == 5


async def test_a_url_that_is_none_is_refused_without_its_password(sqlite):
    """At the start, by its name."""
    options = Options(socket="", upstream="", state="")
    with pytest.raises(ValueError, match="REDIS_URL") as caught:
        limiting.make(sqlite, options, Secrets("", "", "", redis_url=f"http://:{PASSWORD}@host:99999999"))
    assert PASSWORD not in str(caught.value)
