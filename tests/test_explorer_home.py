"""Home: what is listed, counted and summed is what stands in the record, however it is filtered, sorted and paged."""

from __future__ import annotations

import csv
import io
import itertools
import random
import re
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from aiohttp.test_utils import TestClient, TestServer

from llm_proxy.explorer import asking, cache_miss, guard, rates, site
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.pages import home
from llm_proxy.index import browse
from llm_proxy.index.browse import NONE, Wanted
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.index.record import Record
from llm_proxy.index.sums import ORDERS
from scripts.make_logs import make
from tests.explored import HOSTILE, record

END = 1_795_000_000
NOW = datetime.fromtimestamp(END, UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A record of all that there is, and as many plain sessions again."""
    folder = tmp_path_factory.mktemp("record")
    found = record(folder, END)
    make(found.logs, calls=150, sessions=40, end=END)
    indexer = Indexer(found.index, found.logs)
    indexer.catch_up_all()
    indexer.close()
    return found


@pytest.fixture
def index(made):
    with open_index(made.index) as opened:
        yield opened


@pytest.fixture
def rows(index):
    """All sessions as the slow way tells them: by adding up calls."""
    return index.sessions(Filter(), None)


@pytest.fixture
async def client(made):
    state = made.logs.parent / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    headers = guard.bearer(guard.new_secret(state))
    app = site.application(Options(index=str(made.index), logs=str(made.logs), state=str(state)))
    async with TestClient(TestServer(app), headers=headers) as opened:
        yield opened


def shown(made, query="", now=NOW):
    pairs = [tuple(pair.split("=", 1)) for pair in query.split("&") if pair]
    asked = asking.asked("/", home.PARAMS, pairs, {}, now)
    with open_index(made.index) as opened:
        return home.view(Record(opened, made.logs), asked)


PLACES = {
    "when": lambda row: row.last_ns,
    "cost": lambda row: int(row.cost.usd * 10**6) + int(row.cost.equivalent * 10**6),
    "tokens": lambda row: row.usage.total,
    "calls": lambda row: row.calls,
    "took": lambda row: row.last_ns - row.started_ns,
}


@pytest.mark.parametrize(("order", "ascending"), list(itertools.product(ORDERS, (False, True))))
def test_pages_give_every_session_once_in_order(index, rows, order, ascending):
    """Whatever the order, also where many are equal, and whatever the length of a page."""
    expected = sorted(rows, key=lambda row: (PLACES[order](row), row.id), reverse=not ascending)
    found, cursor = [], ""
    while True:
        some, cursor = browse.page(index, Wanted(), order, ascending=ascending, before=cursor, limit=7)
        found += some
        if not cursor:
            break
    if order == "cost":  # parts of a microdollar do not count
        assert sorted(one.id for one in found) == sorted(row.id for row in rows)
        worth = [one.sums.cost.usd + one.sums.cost.equivalent for one in found]
        assert all(abs(a - b) < Decimal("1e-5") or (a < b) == ascending for a, b in itertools.pairwise(worth))
    else:
        assert [one.id for one in found] == [row.id for row in expected]


def test_a_session_that_comes_meanwhile_moves_nothing(index, rows):
    """A page begins behind the last session shown, not at a number of rows."""
    first, cursor = browse.page(index, Wanted(), limit=5)
    newer = f"{first[0].last_ns + 1}.zzz"
    again, _ = browse.page(index, Wanted(), before=newer, limit=5)
    behind, _ = browse.page(index, Wanted(), before=cursor, limit=5)
    assert [one.id for one in again] == [one.id for one in first]
    assert not {one.id for one in behind} & {one.id for one in first}


def test_what_is_listed_of_a_session_is_what_its_calls_come_to(index, rows):
    by_id = {row.id: row for row in rows}
    some, _ = browse.page(index, Wanted(), limit=200)
    assert len(some) == len(rows)
    for one in some:
        row = by_id[one.id]
        sums = one.sums
        assert (sums.calls, sums.errors, sums.open) == (row.calls, row.errors, row.open)
        assert sums.usage.total == row.usage.total and sums.usage.cache_read == row.usage.cache_read
        assert sums.cost == row.cost
        assert (one.title, one.project, one.branch, one.client) == (row.title, row.project, row.branch, row.program)
        assert one.models == row.models
        assert one.took_ms == (row.last_ns - row.started_ns) // 10**6
        assert one.children == sum(other.parent == one.id for other in rows)


def fits(row, wanted, cut):
    status = {
        "ok": not row.errors and row.id not in cut and not row.open,
        "errors": row.errors,
        "cut": row.id in cut,
        "live": row.open,
        "unpriced": row.cost.unpriced,
    }
    pairs = ((wanted.provider, row.provider), (wanted.project, row.project), (wanted.branch, row.branch))
    return (
        all(not given or (value or NONE) in given for given, value in (*pairs, (wanted.client, row.program)))
        and (not wanted.model or set(wanted.model) & set(row.models))
        and (not wanted.status or any(status[one] for one in wanted.status))
        and (wanted.since_ns is None or row.last_ns >= wanted.since_ns)
        and (wanted.until_ns is None or row.last_ns < wanted.until_ns)
    )


def test_filters_and_counts_are_those_of_the_record(index, rows):
    """Values of one field are alternatives, fields hold together; a facet counts what all other fields leave."""
    chance = random.Random(5)
    cut = {call.session for call in index.calls(Filter()) if call.partial or call.ending == "client_gone"}
    assert cut
    fields = {
        "provider": [row.provider or NONE for row in rows],
        "project": [row.project or NONE for row in rows],
        "branch": [row.branch or NONE for row in rows],
        "client": [row.program or NONE for row in rows],
        "model": [model for row in rows for model in row.models],
        "status": list(browse.STATUSES),
    }
    for _ in range(150):
        given = {
            name: tuple(chance.sample(values, chance.randint(1, 2)))
            for name, values in fields.items()
            if chance.random() < 0.3
        }
        if chance.random() < 0.3:
            given["since_ns"] = chance.choice(rows).last_ns
        if chance.random() < 0.3:
            given["until_ns"] = chance.choice(rows).last_ns
        wanted = Wanted(**given)
        expected = [row for row in rows if fits(row, wanted, cut)]
        assert browse.count(index, wanted) == len(expected), wanted
        some, _ = browse.page(index, wanted, limit=200)
        assert {one.id for one in some} == {row.id for row in expected}
        name = chance.choice([one for one in browse.FACETS if one not in ("model", "status")])
        others = Wanted(**{key: value for key, value in given.items() if key != name})
        column = {"client": "program"}.get(name, name)
        counts = Counter(getattr(row, column) or NONE for row in rows if fits(row, others, cut))
        assert {one.value: one.count for one in browse.facet(index, wanted, name)} == dict(counts)


def test_days_come_to_what_their_sessions_do(made, rows):
    """Under each date stands the sum of all of its sessions, also of those on another page."""
    view = shown(made, "n=3&utc=1")
    for group in view.groups:
        of_day = [
            row for row in rows if datetime.fromtimestamp(row.last_ns / 1e9, UTC).date().isoformat() == group.day.day
        ]
        assert group.day.sessions == len(of_day)
        assert group.day.sums.calls == sum(row.calls for row in of_day)
        assert group.day.sums.cost.usd == sum(row.cost.usd for row in of_day)


def test_today_and_the_last_fortnight(made, index):
    """Sums of all calls by the day they began, with the days that had none."""
    view = shown(made, "utc=1")
    stats = {row.key: row for row in index.stats(Filter(), "day", utc=True)}
    assert len(view.days) == 14 and len(view.histogram) == 30
    for day in view.days:
        row = stats.get(day.day)
        assert day.sums.calls == (row.calls if row else 0)
        assert day.sums.cost.usd == (row.cost.usd if row else 0)
    assert view.today == view.days[-1].sums
    assert view.days[-1].day == NOW.date().isoformat()


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu", "Europe/Vienna"])
def test_days_are_those_of_the_time_zone(made, rows, monkeypatch, zone):
    """A session stands under the date that a clock on the wall showed."""
    import time
    from zoneinfo import ZoneInfo

    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        view = shown(made, "n=200")
        for group in view.groups:
            days = {
                datetime.fromtimestamp(one.last_ns / 1e9, ZoneInfo(zone)).date().isoformat() for one in group.sessions
            }
            assert days == {group.day.day}
            assert group.day.sessions == len(group.sessions)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_filters_that_match_nothing_say_which_is_to_blame(made):
    view = shown(made, "project=ledger&model=nosuchmodel")
    assert not view.count and not view.groups
    counts = {one.name: one.without for one in view.filters}
    assert counts["project"] == 0 and counts["model"] == shown(made, "project=ledger").count > 0


async def test_counts_that_take_too_long_are_left_out_and_said_so(client, monkeypatch):
    """The sessions are there all the same; a link asks again."""
    import llm_proxy.index.queries as queries

    monkeypatch.setattr(queries, "_OPCODES", 1)
    monkeypatch.setattr(home, "FACETS_TAKE", -1)
    text = await (await client.get("/llm-proxy/?project=ledger")).text()
    assert "counts: too slow" in text and text.count('class="row"') >= 2
    told = await (await client.get("/llm-proxy/api/sessions?project=ledger")).json()
    assert all(facet["values"] is None for facet in told["facets"]) and told["histogram"] == []
    monkeypatch.undo()
    assert "counts: too slow" not in await (await client.get("/llm-proxy/?project=ledger")).text()


async def test_the_page_holds_nothing_that_runs(client, made):
    """Titles, projects, branches, models and clients are anybody's words."""
    for path in (
        "/llm-proxy/",
        "/llm-proxy/values?of=model",
        "/llm-proxy/values?of=project",
        "/llm-proxy/?status=errors",
    ):
        page = await (await client.get(path)).text()
        assert "&lt;script&gt;window.pwned" in page
        for bad in HOSTILE:
            assert "<" not in bad or bad not in page
        assert not re.search(r"<script(?! type=\"module\"| src=)", page)
        assert " style=" not in page


async def test_a_bad_value_says_what_is_allowed(client):
    for query in ("before=x", "sort=size", "n=0", "from=yesterday", "status=fine"):
        answer = await client.get(f"/llm-proxy/?{query}")
        assert answer.status == 400, query
        assert query.partition("=")[0] in await answer.text()
    answer = await client.get("/llm-proxy/?colour=red")
    assert answer.status == 200 and "colour" in await answer.text()


async def test_all_sessions_as_csv(client, rows, made):
    """Every session that fits, whatever is on the page, and no cell is a formula."""
    text = await (await client.get("/llm-proxy/sessions.csv?sort=tokens&dir=asc")).text()
    table = list(csv.DictReader(io.StringIO(text)))
    assert sorted(one["id"] for one in table) == sorted(row.id for row in rows)
    tokens = [sum(int(one[name]) for name in ("input", "cache_read", "cache_write", "output")) for one in table]
    assert tokens == sorted(tokens)
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for one in table for cell in one.values())
    assert home.cell("=1+1") == "'=1+1" and home.cell("a=1") == "a=1" and home.cell(-1) == -1
    some = list(csv.DictReader(io.StringIO(await (await client.get("/llm-proxy/sessions.csv?project=ledger")).text())))
    assert {one["project"] for one in some} == {"ledger"}


async def test_nothing_recorded_yet(tmp_path):
    """An empty record says what fills it."""
    (tmp_path / "logs").mkdir(mode=0o700)
    Indexer(tmp_path / "index.db", tmp_path / "logs").close()
    headers = guard.bearer(guard.new_secret(tmp_path))
    app = site.application(Options(index=str(tmp_path / "index.db"), logs=str(tmp_path / "logs"), state=str(tmp_path)))
    async with TestClient(TestServer(app), headers=headers) as opened:
        for path, words in (
            ("", "Nothing recorded yet"),
            ("figures", "No calls in this time"),
            ("search?q=a", "Nothing was found"),
        ):
            answer = await opened.get(f"/llm-proxy/{path}")
            assert answer.status == 200 and words in await answer.text()
        assert (await (await opened.get("/llm-proxy/api/sessions")).json())["total"] == 0


def test_what_was_lost_today_is_the_sum_of_todays_misses(made, index, monkeypatch):
    """In dollars, and what subscriptions would have lost apart; where there are too many calls nothing is said."""
    told = shown(made).lost
    day = datetime.fromtimestamp(END, UTC).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    calls = list(index.calls(Filter(since_ns=int(day.timestamp()) * 10**9)))
    assert told == cache_miss.lost(calls, rates.listed)
    assert told.misses >= 2
    assert told.equivalent > 0
    monkeypatch.setattr(home, "MOST_LOOKED_AT", 1)
    assert shown(made).lost is None
