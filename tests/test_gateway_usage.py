"""Every attempt is in the usage log once, at its price, whatever becomes of the store; everybody reads his own only."""

import asyncio
import json
import logging
import os
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
import pytest
from sqlalchemy import func, insert, select, text

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway import usage as usage_module
from llm_proxy.gateway.costing import Prices
from llm_proxy.gateway.facts import Attempt, Caller, Provider, ProviderKey, Role, Scope, Target
from llm_proxy.gateway.manage import audit as audit_route
from llm_proxy.gateway.manage import usage as usage_route
from llm_proxy.gateway.manage import usage_calls, usage_series
from llm_proxy.gateway.options import Options, options
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask
from llm_proxy.gateway.spool import Spool
from llm_proxy.gateway.store import audit, schema
from llm_proxy.gateway.usage import BATCH, SPOOL, UsageLog, row
from tests.gatewaystore import a_store_url, add_user, opened
from tests.storeaway import shut, unlock

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
PRICES = Prices()


def caller(user=1, role=Role.MEMBER, session="s", **more):
    return Caller(user, f"user{user}@example.com", role, frozenset({Scope.USAGE}), session_id=session, **more)


def target(provider=Provider.OPENAI, model="gpt-4o", base_url=""):
    return Target(ProviderKey(7, 1, provider, "label", "sealed", base_url=base_url), model, "fast")


def attempt(request="r1", number=1, **more):
    values = {
        "at": NOON,
        "caller": caller(),
        "api": "chat",
        "asked": "fast",
        "target": target(),
        "status": 200,
        "ending": "complete",
        "usage": Usage(input=1_000_000, output=100_000),
        "seconds": 1.5,
        "first_token": 0.25,
    }
    return Attempt(request_id=request, number=number, **values | more)


def log_of(store, folder):
    return UsageLog(store, str(folder), PRICES)


async def rows_of(store):
    query = select(schema.request_logs).order_by(schema.request_logs.c.id)
    async with store.reading() as connection:
        return (await connection.execute(query)).mappings().all()


async def counted(store):
    async with store.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(schema.request_logs))


async def until(true):
    async with asyncio.timeout(60):
        while not await true():
            await asyncio.sleep(0.02)


@pytest.fixture
async def sqlite(tmp_path):
    async with a_store_url("sqlite", tmp_path) as url, opened(url, tmp_path) as store:
        yield store


# --- into the store


async def test_an_attempt_is_a_row(store, tmp_path):
    """All that is known of it, cost included; what is unknown is null, and texts are cut to what a column holds."""
    usage = Usage(input=1000, cache_read=200, cache_write_5m=30, cache_write_1h=4, output=50, reasoning=20)
    log = log_of(store, tmp_path)
    log.note(attempt(caller=caller(3, key_id=5, team_ids=(8, 9)), usage=usage, stream=True))
    log.note(
        attempt(
            "r2", 0, target=None, status=404, ending="refused", usage=Usage(), asked="x" * 900 + "\0", error="\ud800\0e"
        )
    )
    log.note(attempt("r3", 2, status=None, ending="timed_out", usage=Usage(), first_token=None, error="e" * 900))
    await log.flush()
    first, second, third = await rows_of(store)
    expected = row(attempt(caller=caller(3, key_id=5, team_ids=(8, 9)), usage=usage, stream=True), first["cost"])
    assert dict(first) == expected
    assert (first["id"], first["request_id"], first["attempt"], first["team_id"]) == ("r1-1", "r1", 1, 8)
    assert (first["input_tokens"], first["cache_read_tokens"], first["cache_write_tokens"]) == (1234, 200, 34)
    assert (first["milliseconds"], first["first_token_milliseconds"]) == (1500, 250)
    assert first["cost"] > 0
    assert first["created_at"] == NOON
    assert (second["provider_used"], second["model_used"], second["provider_key_id"]) == ("", "", None)
    assert (second["alias_used"], second["error"], second["cost"]) == ("x" * 255, "?\ufffde", 0)
    assert (third["status_code"], third["first_token_milliseconds"], third["error"]) == (None, None, "e" * 500)
    assert log.counts == {"noted": 3, "written": 3, "spooled": 0, "lost": 0}


async def test_an_attempt_that_comes_twice_is_one_row(store, tmp_path):
    """Its id decides, also over two processes."""
    for _ in range(2):
        log = log_of(store, tmp_path)
        for one in (attempt("r1"), attempt("r1"), attempt("r1", 2)):
            log.note(one)
        await log.flush()
    assert [one["id"] for one in await rows_of(store)] == ["r1-1", "r1-2"]


async def test_what_is_noted_is_there_within_a_second(sqlite, tmp_path):
    """Without a flush: one attempt after half a second, many at once without waiting. The guard is wide."""
    log = log_of(sqlite, tmp_path)
    await asyncio.to_thread(PRICES.load)
    run = asyncio.create_task(log.run())
    try:
        for count in (1, 3 * BATCH + 1):
            began = time.monotonic()
            for number in range(count):
                log.note(attempt(f"{count}.{number}"))
            before = await counted(sqlite)

            async def grown(goal=before + count):
                return await counted(sqlite) >= goal

            await until(grown)
            assert time.monotonic() - began < 15
        assert log.counts["written"] == 3 * BATCH + 2
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_noting_costs_next_to_nothing(tmp_path):
    """It is on the way of every call. A wide guard: measured is less than a microsecond."""
    log, one = log_of(None, tmp_path), attempt()
    began = time.process_time()
    for _ in range(20_000):
        log.note(one)
    assert (time.process_time() - began) / 20_000 < 50e-6


async def test_memory_has_an_end(monkeypatch, tmp_path):
    """What finds no place is counted."""
    monkeypatch.setattr(usage_module, "_MOST_WAITING", 10)
    log = log_of(None, tmp_path)
    for number in range(25):
        log.note(attempt(str(number)))
    assert (log.counts["noted"], log.counts["lost"], len(log._waiting)) == (25, 15, 10)


async def test_a_writer_that_is_cancelled_loses_nothing(sqlite, tmp_path):
    """Whenever that is: what was on its way is written by the flush, once."""
    for rest in (0, 0.001, 0.005, 0.02, 0.05):
        log = log_of(sqlite, tmp_path)
        run = asyncio.create_task(log.run())
        for number in range(2 * BATCH):
            log.note(attempt(f"{rest}.{number}"))
        await asyncio.sleep(rest)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await log.flush()
        assert not log._waiting
    assert await counted(sqlite) == 10 * BATCH


async def test_a_row_that_the_store_does_not_take_holds_back_no_other(store, tmp_path, caplog):
    """It is named in the log, and counted as lost."""
    log = log_of(store, tmp_path)
    for number in range(9):
        log.note(attempt(f"r{number}", None if number == 4 else 1))
    with caplog.at_level(logging.WARNING, "llm_proxy.gateway"):
        await log.flush()
    assert await counted(store) == 8
    assert (log.counts["written"], log.counts["lost"]) == (8, 1)
    assert "r4-None" in caplog.text


async def test_prices_that_break_cost_no_row(sqlite, tmp_path, caplog):
    """They are somebody else's: an attempt without a cost is better than none, and one that cannot be told is named."""

    class Broken(Prices):
        def load(self):
            raise RuntimeError("no prices today")

        def cost(self, attempt):
            return self.load()

    log = UsageLog(sqlite, str(tmp_path), Broken())
    run = asyncio.create_task(log.run())
    log.note(attempt("r1"))
    log.note(attempt("r2", seconds=None))
    log.note(attempt("r3"))

    async def written():
        return not log._waiting

    await until(written)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert [(one["id"], one["cost"]) for one in await rows_of(sqlite)] == [("r1-1", None), ("r3-1", None)]
    assert (log.counts["written"], log.counts["lost"]) == (2, 1)
    assert "no prices today" in caplog.text


async def test_sums_hold_whatever_a_provider_writes(store, tmp_path):
    """Counts of tokens are bounded, so that adding them up cannot overflow."""
    log = log_of(store, tmp_path)
    for number in range(50):
        log.note(attempt(f"r{number}", usage=Usage(input=2**62, output=-5), target=target(Provider.COMPATIBLE)))
    await log.flush()
    (told,) = await ask_usage(store)
    assert (told.input_tokens, told.output_tokens) == (50 * 10**12, 0)


# --- the store away


@pytest.fixture
async def postgres_url(tmp_path):
    async with a_store_url("postgresql", tmp_path) as url:
        yield url


async def test_a_store_that_is_away_costs_no_row(monkeypatch, postgres_url, tmp_path, caplog):
    """Rows go to a file that nobody else can read, and come back once, also to a process that is started later."""
    monkeypatch.setattr(usage_module, "_AGAIN", 0.1)
    async with opened(postgres_url, tmp_path) as store:
        log = log_of(store, tmp_path)
        log.note(attempt("before"))
        await log.flush()
        await shut(postgres_url)
        with caplog.at_level(logging.WARNING, "llm_proxy.gateway"):
            for number in range(BATCH + 10):
                log.note(attempt(f"away{number}"))
            await log.flush()
        file = tmp_path / SPOOL
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert log.counts["spooled"] == BATCH + 10
        assert caplog.text.count("usage goes to a file") == 1
        await unlock(postgres_url)
    async with opened(postgres_url, tmp_path) as store:
        later = log_of(store, tmp_path)
        later.note(attempt("away3"))
        run = asyncio.create_task(later.run())

        async def emptied():
            return file.stat().st_size == 0 and not later._waiting

        await until(emptied)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        rows = await rows_of(store)
        assert len(rows) == len({one["id"] for one in rows}) == BATCH + 11
        assert {one["created_at"] for one in rows} == {NOON}
        assert later.counts["lost"] == 0


async def test_a_store_that_hangs_holds_nobody_up(monkeypatch, sqlite, tmp_path):
    """Its patience over, rows go to the file; noting never notices."""
    monkeypatch.setattr(usage_module, "_PATIENCE", 0.2)
    log = log_of(sqlite, tmp_path)
    async with sqlite.writing():  # the one writer SQLite has
        for number in range(10):
            log.note(attempt(str(number)))
        await log.flush()
    assert log.counts["spooled"] == 10
    assert await counted(sqlite) == 0


async def test_neither_store_nor_file_and_rows_wait(monkeypatch, sqlite, tmp_path, caplog):
    """In memory, and are written when one of them is back."""
    monkeypatch.setattr(usage_module, "_PATIENCE", 0.2)
    (tmp_path / SPOOL).mkdir()
    log = log_of(sqlite, tmp_path)
    log.note(attempt())
    with caplog.at_level(logging.WARNING, "llm_proxy.gateway"):
        async with sqlite.writing():
            await log.flush()
        assert len(log._waiting) == 1
        log._away_until = 0
        await log.flush()
    assert await counted(sqlite) == 1


def test_a_spool_has_an_end(tmp_path):
    """What finds no room is told, and what is there stays readable."""
    spool = Spool(tmp_path / "file", 500)
    assert spool.add([{"n": number, "text": "x" * 40} for number in range(20)]) == 8
    assert spool.add([{"n": 99, "text": "x" * 40}]) == 0
    rows, broken = spool.some()
    assert ([one["n"] for one in rows], broken) == (list(range(8)), 0)


def test_a_spool_survives_a_torn_line(tmp_path):
    """What a crash cut off is passed over and counted; the lines around it are read."""
    spool = Spool(tmp_path / "file")
    spool.add([{"n": 1}, {"n": 2}])
    os.truncate(tmp_path / "file", (tmp_path / "file").stat().st_size - 4)
    spool.add([{"n": 3}])
    assert spool.some() == ([{"n": 1}, {"n": 3}], 1)
    spool.done()
    assert not spool.holds_something()


def test_two_readers_of_a_spool_lose_nothing(tmp_path):
    """One empties it while the other is in the middle of it; what comes then is read from its beginning."""
    path = tmp_path / "file"
    one, other = Spool(path), Spool(path)
    one.add([{"n": number, "text": "x" * 1000} for number in range(500)])
    seen = [row["n"] for row in other.some()[0]]
    other.done()
    while one.some()[0]:
        one.done()
    one.add([{"n": 1000 + number, "text": "x" * 1000} for number in range(500)])
    while rows := other.some()[0]:
        seen += [row["n"] for row in rows]
        other.done()
    assert set(range(1000, 1500)) <= set(seen)
    assert not one.holds_something()


def test_a_spool_follows_no_link(tmp_path):
    """It is made in a folder of ours, and is nothing but a file there."""
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Spool(tmp_path / "file").add([{"n": 1}])


async def test_a_file_with_foreign_lines_does_no_harm(sqlite, tmp_path):
    """Lines that are no rows are counted as lost, and rows of a version with other columns are taken."""
    good = json.loads(msgspec.json.encode(row(attempt("good"), 5)))
    older = {name: value for name, value in good.items() if name not in ("error", "stream")} | {"id": "older-1", "x": 1}
    lines = ["name", json.dumps(good), "{", "[]", '{"id": 3}', json.dumps(older), "\udcff"]
    (tmp_path / SPOOL).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    log = log_of(sqlite, tmp_path)
    while await log._bring_back():
        pass
    assert [one["id"] for one in await rows_of(sqlite)] == ["good-1", "older-1"]
    assert log.counts["lost"] == 4


# --- costs


@pytest.mark.parametrize(
    "changes, dollars",
    [
        ({}, 2.5 + 1),
        ({"target": target(Provider.ANTHROPIC, "claude-sonnet-4-5")}, 6 + 0.1 * 22.5),
        ({"target": target(Provider.COMPATIBLE, "gpt-4o", "https://api.openai.com/v1")}, 3.5),
        ({"target": target(Provider.OPENAI, "gpt-4o", "https://llm.example.com/v1")}, None),
        ({"target": target(Provider.COMPATIBLE, "gpt-4o", "http://127.0.0.1:8000")}, None),
        ({"target": target(model="no-such-model")}, None),
        ({"cost": 0.125}, 0.125),
        ({"usage": Usage()}, None),
        ({"usage": Usage(), "status": 500, "ending": "upstream_failed"}, 0),
        ({"usage": Usage(), "status": None, "ending": "timed_out"}, 0),
        ({"usage": Usage(), "status": None, "ending": "client_gone"}, None),
        ({"target": None, "status": 404, "ending": "refused"}, 0),
        ({"api": "count_tokens", "usage": Usage(input=10)}, 0),
    ],
    ids=str,
)
def test_what_an_attempt_costs(changes, dollars):
    """By the record's prices: what is not known is never 0, and what was not answered costs nothing."""
    cost = PRICES.cost(attempt(**changes))
    assert cost == (None if dollars is None else pytest.approx(dollars * schema.NANO))


@pytest.mark.parametrize(
    "provider, model", [("gemini", "gemini-2.5-flash"), ("bedrock", "anthropic.claude-3-haiku-20240307-v1:0")]
)
@pytest.mark.parametrize("base_url", ["", "https://bedrock-runtime.eu-central-1.amazonaws.com", "http://127.0.0.1:1/"])
def test_each_provider_has_prices(provider, model, base_url):
    """Bedrock's are Amazon's, wherever its endpoint lies; others' go by the address."""
    cost = PRICES.cost(attempt(target=target(Provider(provider), model, base_url)))
    assert (cost is not None) == (provider == "bedrock" or not base_url)


def test_the_operators_prices_come_first(tmp_path):
    """Those of the settings, as the record's; then the stored list's, then the package's."""
    given = Options(
        "", "", "", prices=(("gpt-4o*", (("input", "10"), ("output", "0"))),), price_data=str(tmp_path / "none")
    )
    prices = Prices(options(given.to_json()))
    assert prices.cost(attempt()) == 10 * schema.NANO
    assert prices.cost(attempt(target=target(base_url="http://127.0.0.1:1"))) == 10 * schema.NANO
    assert prices.cost(attempt(target=target(model="o3"))) == PRICES.cost(attempt(target=target(model="o3")))


# --- /manage/usage


def around(store, **more):
    """What the route needs of a site."""
    return SimpleNamespace(store=store, usage=UsageLog(store, "/nowhere", PRICES), options=Options("", "", "", **more))


async def ask_usage(store, who=None, **query):
    query = {name.rstrip("_"): value for name, value in query.items()}
    return await usage_route.usage(Ask(around(store), who or caller(), {}, query, None, ""))


async def note(store, *attempts):
    log = UsageLog(store, "/nowhere", PRICES)
    for one in attempts:
        log.note(one)
    await log.flush()


async def test_usage_has_tokentracers_shape_and_more(store):
    """An array by provider and alias, [] for nobody; failures and fallbacks are counted."""
    assert await ask_usage(store) == []
    ours = target(Provider.ANTHROPIC, "claude-sonnet-4-5")
    nothing = {"usage": Usage(), "ending": "upstream_failed"}
    await note(
        store,
        attempt("r1", 1),
        attempt("r2", 1, status=500, **nothing),
        attempt("r2", 2, status=429, ending="complete", usage=Usage()),
        attempt("r2", 3, target=ours, usage=Usage(input=1000, cache_read=9000, output=100)),
        attempt("r3", 1, target=target(model="secret-model"), usage=Usage(input=5, output=5), ending="client_gone"),
        attempt("r4", 0, target=None, status=429, ending="refused", usage=Usage()),
        attempt("r5", 1, caller=caller(2)),
    )
    told = json.loads(msgspec.json.encode(await ask_usage(store)))
    keys = {"provider", "alias", "input_tokens", "output_tokens", "requests"}
    assert all(keys <= one.keys() for one in told)
    by_provider = {one["provider"]: one for one in told}
    assert set(by_provider) == {"", "openai", "anthropic"}
    openai, anthropic = by_provider["openai"], by_provider["anthropic"]
    assert (openai["requests"], openai["failed"], openai["retries"], openai["unpriced"]) == (4, 2, 1, 1)
    assert (openai["input_tokens"], openai["output_tokens"], openai["cost"]) == (1_000_005, 100_005, 3.5)
    assert (anthropic["input_tokens"], anthropic["cache_read_tokens"]) == (10_000, 9000)
    assert (by_provider[""]["requests"], by_provider[""]["failed"], by_provider[""]["cost"]) == (1, 1, 0)
    assert "day" not in openai and "user" not in openai


async def test_usage_by_whatever_it_is_grouped_by(store):
    """Days are UTC's; what has a name has it, and who was deleted has none. Sums are the same over all groupings."""
    ann, bob = await add_user(store, "ann@example.com"), await add_user(store, "bob@example.com")
    async with store.writing() as connection:
        team = (
            await connection.execute(insert(schema.teams).values(name="red").returning(schema.teams.c.id))
        ).scalar_one()
        key = {"user_id": ann, "name": "laptop", "prefix": "llmp_", "key_hash": "x", "scopes": []}
        key_id = (
            await connection.execute(insert(schema.api_keys).values(**key).returning(schema.api_keys.c.id))
        ).scalar_one()
    late = datetime(2026, 3, 15, 1, 30, tzinfo=datetime.fromisoformat("2026-01-01T00:00+02:00").tzinfo)
    await note(
        store,
        attempt("r1", caller=caller(ann, key_id=key_id, team_ids=(team,))),
        attempt("r2", caller=caller(ann), at=late),
        attempt("r3", caller=caller(bob), at=late + timedelta(hours=1), target=target(model="gpt-4o-mini")),
        attempt("r4", caller=caller(999), asked="slow"),
    )
    admin = caller(ann, Role.ADMIN)
    told = {by: await ask_usage(store, admin, all="true", group_by=by) for by in usage_route.GROUPS}
    sums = {(sum(one.requests for one in rows), round(sum(one.cost for one in rows), 9)) for rows in told.values()}
    assert len(sums) == 1
    assert {(one.day, one.requests) for one in told["day"]} == {("2026-03-14", 3), ("2026-03-15", 1)}
    assert {(one.user_id, one.user) for one in told["user"]} == {
        (ann, "ann@example.com"),
        (bob, "bob@example.com"),
        (999, None),
    }
    assert {(one.team_id, one.team, one.requests) for one in told["team"]} == {(team, "red", 1), (None, None, 3)}
    assert {(one.key_id, one.key) for one in told["key"]} == {(key_id, "laptop"), (None, None)}
    assert {one.model for one in told["model"]} == {"gpt-4o", "gpt-4o-mini"}
    both = await ask_usage(store, admin, all="true", group_by="day,alias,day")
    assert [(one.day, one.alias, one.requests) for one in both] == [
        ("2026-03-14", "fast", 2),
        ("2026-03-14", "slow", 1),
        ("2026-03-15", "fast", 1),
    ]


async def test_usage_of_a_time(store):
    """`from` is included; `to` is a whole day, or a moment that is excluded."""
    hours = [0, 23, 24, 47, 48]
    midnight = NOON.replace(hour=0)
    await note(store, *(attempt(f"r{hour}", at=midnight + timedelta(hours=hour)) for hour in hours))

    async def requests(**query):
        return sum(one.requests for one in await ask_usage(store, **query))

    assert await requests() == 5
    assert await requests(from_="2026-03-15") == 3
    assert await requests(to="2026-03-14") == 2
    assert await requests(from_="2026-03-15", to="2026-03-15") == 2
    assert await requests(from_="2026-03-14T23:00:00Z", to="2026-03-16T00:00:00Z") == 3
    assert await requests(from_="2026-03-15T01:00:00 01:00") == 3  # "+" as it comes unescaped


@pytest.mark.parametrize(
    "query, name",
    [
        ({"since": "2026-03-15"}, "since"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-03-15T00:00:00"}, "from"),
        ({"to": "9999-12-31"}, "to"),
        ({"to": "0001-01-01T00:00:00+14:00"}, "to"),
        ({"group_by": "day,password_hash"}, "group_by"),
        ({"group_by": "day;drop table users"}, "group_by"),
        ({"user": "-1"}, "user"),
        ({"user": "1 or 1=1"}, "user"),
        ({"user": "٣"}, "user"),
        ({"user": "9" * 19}, "user"),
        ({"all": "yes"}, "all"),
    ],
    ids=str,
)
async def test_a_wrong_query_is_refused_by_name(sqlite, query, name):
    """Nothing is ignored, and the message says the rule and the value."""
    ask = Ask(around(sqlite), caller(1, Role.ADMIN), {}, query, None, "")
    with pytest.raises(Refusal) as caught:
        await usage_route.usage(ask)
    assert (caught.value.status, caught.value.param) == (400, name)
    assert name in caught.value.message


@pytest.mark.parametrize(
    "who",
    [caller(1), caller(1, session=None, key_id=3), caller(1, Role.ADMIN, session=None, key_id=3)],
    ids=["member", "member's key", "administrator's key"],
)
async def test_nobody_but_an_administrator_sees_others(store, who):
    """Neither by asking for them nor by asking for all; a key of an administrator's is no administrator."""
    await note(store, attempt("r1"), attempt("r2", caller=caller(2)), attempt("r3", caller=caller(2)))
    assert sum(one.requests for one in await ask_usage(store, who)) == 1
    assert sum(one.requests for one in await ask_usage(store, who, user="1")) == 1
    for query, status in (({"user": "2"}, 404), ({"all": "true"}, 403), ({"user": "2", "all": "true"}, 403)):
        with pytest.raises(Refusal) as caught:
            await ask_usage(store, who, **query)
        assert caught.value.status == status
    admin = replace(who, role=Role.ADMIN, session_id="s")
    assert sum(one.requests for one in await ask_usage(store, admin, user="2")) == 2
    assert sum(one.requests for one in await ask_usage(store, admin, user="2", all="true")) == 2
    assert sum(one.requests for one in await ask_usage(store, admin, all="true")) == 3
    assert sum(one.requests for one in await ask_usage(store, admin)) == 1


async def test_an_answer_has_an_end(monkeypatch, sqlite):
    """What would be cut off is refused instead."""
    monkeypatch.setattr(usage_route, "MOST", 3)
    await note(sqlite, *(attempt(f"r{number}", asked=f"a{number}") for number in range(4)))
    with pytest.raises(Refusal, match="more than 3 rows"):
        await ask_usage(sqlite)
    assert len(await ask_usage(sqlite, group_by="model")) == 1


_MANY = {
    "sqlite": """
        WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 199999)
        INSERT INTO request_logs SELECT {columns} FROM n""",
    "postgresql": "INSERT INTO request_logs SELECT {columns} FROM generate_series(0, 199999) AS n(i)",
}


async def test_200000_rows_are_no_trouble(store):
    """Own usage is found by an index, and everybody's of a time too. The guard is wide."""
    moment = (
        "strftime('%Y-%m-%d %H:%M:%S.000000', 1767225600 + i * 60, 'unixepoch')"
        if store.dialect == "sqlite"
        else "to_timestamp(1767225600 + i * 60)"
    )
    made = {
        "id": "'r' || i || '-1'",
        "request_id": "'r' || i",
        "attempt": "1",
        "user_id": "i % 500",
        "api": "'chat'",
        "alias_used": "'alias' || (i % 7)",
        "provider_used": "'openai'",
        "model_used": "'gpt-4o'",
        "stream": "false",
        "cost": "1000000",
        "input_tokens": "10",
        "output_tokens": "1",
        "status_code": "200",
        "ending": "'complete'",
        "error": "''",
        "project": "''",
        "created_at": moment,
    }
    plain = {"cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "milliseconds"}
    columns = ", ".join(made.get(one.name, "0" if one.name in plain else "NULL") for one in schema.request_logs.c)
    async with store.writing() as connection:
        await connection.execute(text(_MANY[store.dialect].format(columns=columns)))
        await connection.execute(text("ANALYZE request_logs"))
    began = time.monotonic()
    rows = await ask_usage(store, caller(3), from_="2026-01-02", group_by="day,alias")
    assert sum(one.requests for one in rows) == 400 - 3
    everybody = await ask_usage(store, caller(3, Role.ADMIN), all="true")
    assert [one.requests for one in everybody] and sum(one.requests for one in everybody) == 200_000
    assert sum(one.cost for one in everybody) == pytest.approx(200)
    assert time.monotonic() - began < 20
    for query, index in (
        ({}, "user_id_created_at"),
        ({"from": "2026-02-01"}, "user_id_created_at"),
        ({"all": "true", "from": "2026-01-01", "to": "2026-01-01"}, "created_at"),
    ):
        ask = Ask(around(store), caller(3, Role.ADMIN), {}, query, None, "")
        statement = usage_route.statement(usage_route.groups(store.dialect).values(), usage_route.where(ask))
        how = "EXPLAIN QUERY PLAN " if store.dialect == "sqlite" else "EXPLAIN "
        async with store.reading() as connection:
            dialect = connection.dialect
            literal = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
            plan = "\n".join(
                str(one) for one in (await connection.execute(text(how + literal.replace(":", r"\:")))).all()
            )
        assert f"ix_request_logs_{index}" in plan, plan


# --- /manage/audit


async def ask_audit(store, **query):
    query = {name.rstrip("_"): value for name, value in query.items()}
    return await audit_route.acts(Ask(SimpleNamespace(store=store), caller(1, Role.ADMIN), {}, query, None, ""))


async def test_the_audit_log_page_by_page(store):
    """Newest first; every act is on one page, also while others are added."""
    ann = await add_user(store, "ann@example.com")
    acts = ["alias.create", "alias.delete", "key.create", "login", "alias%", "aliasXdelete"]

    async def act(action, user=ann):
        ask = Ask(None, caller(user), {}, {}, None, "203.0.113.9") if user else None
        async with store.writing() as connection:
            await audit.note(connection, ask, action, "alias:17", name="fast")

    for action in acts:
        await act(action)
    await act("rotate", None)
    everything = (await ask_audit(store)).acts
    assert [one.action for one in everything] == ["rotate", *reversed(acts)]
    assert (everything[0].user_id, everything[0].user) == (None, None)
    assert (everything[1].user, everything[1].object, everything[1].address) == (
        "ann@example.com",
        "alias:17",
        "203.0.113.9",
    )
    assert everything[1].detail == {"name": "fast"}
    assert everything[1].at.tzinfo is not None
    seen, before = [], {}
    while True:
        page = await ask_audit(store, limit="3", **before)
        assert len(page.acts) <= 3
        seen += page.acts
        await act("late")
        if page.next is None:
            break
        before = {"before": str(page.next)}
    assert seen == everything

    async def found(**query):
        return [one.action for one in (await ask_audit(store, **query)).acts]

    assert await found(action="alias") == ["alias.delete", "alias.create"]
    assert await found(action="alias.delete") == ["alias.delete"]
    assert await found(action="alias%") == ["alias%"]
    assert await found(action="nothing\0'--") == []
    assert len(await found(user=str(ann))) == 9
    assert await found(user="12345") == []
    assert await found(to="2001-01-01") == []
    assert len(await found(from_="2001-01-01", to="9000-01-01")) == 10
    for wrong in ({"limit": "0"}, {"limit": "1001"}, {"before": "x"}, {"id": "1"}):
        with pytest.raises(Refusal) as caught:
            await ask_audit(store, **wrong)
        assert caught.value.status == 400


def test_the_audit_log_is_for_administrators():
    """Usage is for keys with its scope. Who may come is the route's own word, which `app` keeps."""
    assert [one.access for one in audit_route.ROUTES] == [Access.ADMIN]
    for one in (*usage_route.ROUTES, *usage_calls.ROUTES, *usage_series.ROUTES):
        assert (one.access, one.scope) == (Access.KEY, Scope.USAGE)
