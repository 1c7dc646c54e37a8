"""Limits over several real processes and a real Redis: exact under load, without Redis, and where a process is killed."""

import asyncio
import contextlib
import json
import sys
import time

import pytest
from sqlalchemy import update

from llm_proxy.gateway.limiting import shared as limiting_shared
from llm_proxy.gateway.limiting.shared import PATIENCE
from llm_proxy.gateway.store import schema
from tests.gatewaystore import a_store_url, opened
from tests.limitsbed import asks, attempt, caller, limit, over, passes, refused, settled, spend
from tests.redisbed import a_redis

MACHINE = """
import asyncio, json, sys, time
from llm_proxy.gateway.limiting import shared as limiting_shared
from llm_proxy.gateway.limiting.limiter import make
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.store.database import Store
from tests.limitsbed import asks, attempt, caller

redis, url, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
limiting_shared.LEASE = given.get("lease", 30.0)
if given["patient"]:
    limiting_shared.PATIENCE = limiting_shared._SOCKET = 60.0  # however busy the machine is
passed = refused = 0

async def client(limiter, calls):
    global passed, refused
    for _ in range(calls):
        try:
            held = await limiter.take(caller(), asks(stream=given.get("stream", False)))
        except Refusal:
            refused += 1
            continue
        passed += 1
        if given.get("hold"):
            await asyncio.Event().wait()
        held.note(attempt(given["tokens"]))
        held.close()

async def main():
    store = Store(url, "/nowhere")
    await store.open()
    limiter = make(store, Options(socket="", upstream="", state=""), Secrets("", "", "", redis_url=redis))
    await limiter.take(caller(2))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    clients = [asyncio.create_task(client(limiter, given["calls"])) for _ in range(given["clients"])]
    if given.get("hold"):
        while passed + refused < given["clients"]:
            await asyncio.sleep(0.005)
    else:
        await asyncio.gather(*clients)
    print(json.dumps([passed, refused]), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await limiter.close()
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
def redis(tmp_path):
    with a_redis(tmp_path) as server:
        yield server


@pytest.fixture
async def sqlite(tmp_path):
    async with a_store_url("sqlite", tmp_path) as url, opened(url, tmp_path) as store:
        store.url = url
        yield store


class Machine:
    def __init__(self, process):
        self.process = process

    def go(self):
        self.process.stdin.write(b"\n")

    async def told(self):
        return json.loads(await self.process.stdout.readline())


@contextlib.asynccontextmanager
async def machines(redis, url, count=2, **given):
    """As many processes, each ready to go."""
    given = {"patient": True, "tokens": 0, "calls": 1} | given
    command = [sys.executable, "-c", MACHINE, redis.url, url, json.dumps(given)]
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    made = [Machine(await asyncio.create_subprocess_exec(*command, **pipes)) for _ in range(count)]
    try:
        async with asyncio.timeout(120):
            for one in made:
                assert await one.process.stdout.readline() == b"ready\n"
            yield made
    finally:
        for one in made:
            if one.process.returncode is None:
                one.process.kill()
            await one.process.wait()


async def test_of_200_clients_on_two_processes_exactly_as_many_pass_as_may(redis, store_url, tmp_path):
    """No request, no token and no stream too many, whatever comes at once: counted on the clients' side."""
    async with opened(store_url, tmp_path) as store:
        await limit(store, "everybody", 0, requests_minute=900, requests_day=10**6)
        await limit(store, "user", 1, requests_day=1000, tokens_day=500 * 1024, requests_minute=10**6)
    async with machines(redis, store_url, clients=100, calls=10, tokens=1024) as both:
        for one in both:
            one.go()
        counted = [await one.told() for one in both]
    assert sum(passed for passed, _ in counted) == 500
    assert sum(passed + refused for passed, refused in counted) == 2000
    assert all(passed for passed, _ in counted), "both took part"


async def test_a_killed_process_gives_its_streams_back(monkeypatch, redis, sqlite):
    """Within a lease; those of a process that lives go on holding theirs, however long."""
    monkeypatch.setattr(limiting_shared, "LEASE", 1.0)
    monkeypatch.setattr(limiting_shared, "PATIENCE", 60.0)
    await limit(sqlite, "user", 1, streams=10, tokens_day=10 * 1024)
    limiter = over(sqlite, redis.url)
    mine = [await limiter.take(caller(), asks(stream=True)) for _ in range(4)]
    async with machines(redis, sqlite.url, 1, clients=20, hold=True, stream=True, lease=1.0) as (other,):
        other.go()
        assert await other.told() == [6, 14]
        await asyncio.sleep(1.5)  # longer than a lease: a living process' holds stay
        await refused(limiter, caller(), asks(stream=True))
        other.process.kill()
        killed = time.monotonic()
        while not await passes(limiter, caller(), 1, asks(stream=True)):
            await asyncio.sleep(0.02)
        assert time.monotonic() - killed < 10
    await asyncio.sleep(1.1)  # all of its leases have ended
    assert await passes(limiter, caller(), 20, asks(stream=True)) == 5
    for held in mine:
        held.close()
    assert await passes(limiter, caller(), 20, asks(stream=True)) == 4
    await limiter.close()


async def test_a_redis_that_stops_costs_no_call_more_than_its_patience(redis, sqlite):
    """Limits hold on this machine meanwhile; what it let pass and what was used is counted once when Redis is back."""
    await limit(sqlite, "user", 1, requests_day=100, tokens_day=10**6, spend_month=10**12)
    limiter, other = over(sqlite, redis.url), over(sqlite, redis.url)
    for _ in range(5):
        await spend(limiter, caller(), tokens=100)
        await spend(other, caller(), tokens=10)
    counted = limiter.counter
    redis.freeze()
    took = []
    for _ in range(40):
        began = time.perf_counter()
        held = await limiter.take(caller(), asks())
        took.append(time.perf_counter() - began)
        held.note(attempt(100))
        held.close()
    assert max(took) < 1, "a wide guard: measured are 0.05"
    assert sum(one >= PATIENCE for one in took) < 10, "only the one that found out has waited"
    assert counted.is_away and "llm_proxy_gateway_limits_degraded 1" in list(limiter.metrics())
    async with asyncio.timeout(30):
        while counted._asking:  # given up for good: only Redis may know of it still
            await asyncio.sleep(0.02)
        redis.thaw()
        while counted.is_away:
            await asyncio.sleep(0.02)
    await settled(limiter)
    meters = await other.rules.of(caller())
    for one in (limiter, other):
        seen = {usage.meter.kind.name: (usage.used, usage.held) for usage in await one.look(meters)}
        assert seen == {"requests_day": (50, 0), "tokens_day": (4550, 0), "spend_month": (0, 0)}
        assert one.counter.is_away is False
    await limiter.close()
    await other.close()


@pytest.mark.parametrize("first", [0, 1], ids=["the same", "another"])
async def test_what_passed_while_redis_did_not_know_the_day_counts(redis, sqlite, first):
    """Whoever asks first what the day has held, before the store knows of the call."""
    await limit(sqlite, "user", 1, requests_day=10, tokens_day=10**6)
    both = over(sqlite, redis.url), over(sqlite, redis.url)
    for one in both:
        await one.open()
    redis.freeze()
    held = [await both[0].take(caller(), asks()) for _ in range(3)]
    assert both[0].counter.is_away
    held[0].note(attempt(100))
    held[0].close()
    redis.thaw()
    async with asyncio.timeout(30):
        while both[0].counter.is_away:
            await asyncio.sleep(0.02)
    await settled(both[0])
    meters = await both[first].rules.of(caller())
    for one in (both[first], both[1 - first]):
        await spend(one, caller(), tokens=10)
    held[1].note(attempt(1000))
    for one in held[1:]:
        one.close()
    await settled(both[0])
    for one in both:
        assert {usage.meter.kind.name: usage.used for usage in await one.look(meters)} == {
            "requests_day": 5,
            "tokens_day": 1120,
        }
        await one.close()


async def test_a_call_whose_caller_leaves_while_redis_is_asked_holds_nothing(monkeypatch, redis, sqlite):
    """What Redis has counted for nobody is taken back."""
    monkeypatch.setattr(limiting_shared, "PATIENCE", 60.0)
    await limit(sqlite, "user", 1, requests_day=10, streams=1)
    limiter = over(sqlite, redis.url)
    await passes(limiter, caller(2))
    meters = await limiter.rules.of(caller())
    await limiter.look(meters)
    redis.freeze()
    leaving = [asyncio.create_task(limiter.take(caller(), asks(stream=True))) for _ in range(3)]
    await asyncio.sleep(0.05)
    for one in leaving:
        one.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    redis.thaw()
    async with asyncio.timeout(30):
        while limiter.counter._asking or limiter.counter._draining:
            await asyncio.sleep(0.01)
    seen = [(one.used, one.held) for one in await limiter.look(meters)]
    assert seen == [(0, 0), (0, 0)]
    await limiter.close()


async def test_what_nobody_has_told_is_not_taken_for_told(monkeypatch, redis, sqlite):
    """Too much is owed and the oldest is given up while Redis is being told of it: the newest is told all the same."""
    monkeypatch.setattr(limiting_shared, "PATIENCE", 60.0)
    monkeypatch.setattr(limiting_shared, "_MOST_OWED", 3)
    await limit(sqlite, "user", 1, tokens_day=10**6)
    limiter = over(sqlite, redis.url)
    ending = [await limiter.take(caller(), asks()) for _ in range(4)]
    for held in ending:
        held.note(attempt(10))
    redis.freeze()
    for held in ending[:3]:
        held.close()
    await asyncio.sleep(0)  # they are on their way
    ending[3].close()
    assert limiter.counter.lost == 1
    redis.thaw()
    await asyncio.gather(limiter.counter._tell(), settled(limiter))
    (seen,) = await limiter.look(await limiter.rules.of(caller()))
    assert (seen.used, seen.held) == (40, 0)
    await limiter.close()


async def test_an_error_that_nobody_foresaw_ends_no_sharing(monkeypatch, redis, sqlite, caplog):
    """What tries until Redis is back and what renews leases go on; the log tells of it once a minute."""
    monkeypatch.setattr(limiting_shared, "LEASE", 0.15)
    monkeypatch.setattr(limiting_shared, "_AGAIN", 0.05)
    await limit(sqlite, "user", 1, streams=2)
    limiter = over(sqlite, redis.url)
    counted = limiter.counter
    held = await limiter.take(caller(), asks(stream=True))
    counted._holding["broken"] = [None]
    async with asyncio.timeout(30):
        while "nobody foresaw" not in caplog.text:
            await asyncio.sleep(0.01)
        counted._trouble("a test")
        await asyncio.sleep(0.3)
        assert counted.is_away
        del counted._holding["broken"]
        while counted.is_away:
            await asyncio.sleep(0.01)
    assert not counted._renewing.done()
    assert caplog.text.count("nobody foresaw") == 1
    held.close()
    await limiter.close()


async def test_a_limit_that_is_changed_holds_on_every_machine(monkeypatch, redis, sqlite):
    """Half a second later at most, by the store's counter; what was counted stays."""
    monkeypatch.setattr(limiting_shared, "PATIENCE", 60.0)
    monkeypatch.setattr(limiting_shared, "_SOCKET", 60.0)
    await limit(sqlite, "user", 1, requests_day=2)
    async with opened(sqlite.url) as second:
        one, two = over(sqlite, redis.url), over(second, redis.url)
        for store, limiter in ((sqlite, one), (second, two)):
            store.on_change(limiter.forget)
        watching = asyncio.create_task(second.watch())
        assert await passes(one, caller()) + await passes(two, caller()) == 2
        await refused(two, caller())
        async with sqlite.writing() as connection:
            await connection.execute(update(schema.limits).values(requests_day=5))
            await sqlite.changed(connection)
        began = time.monotonic()
        while not await passes(two, caller()):
            await asyncio.sleep(0.02)
        assert time.monotonic() - began < 5
        assert await passes(one, caller(), 9) == 2
        watching.cancel()
        await one.close()
        await two.close()
