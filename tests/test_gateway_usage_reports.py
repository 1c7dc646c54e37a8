"""Usage by project and hour, over time without gaps, call by call and as CSV: of one's own, unless one administers."""

import csv
import io
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway import tabular
from llm_proxy.gateway.calls.arriving import Arrived
from llm_proxy.gateway.calls.project import LONGEST, cleaned, of_headers, of_metadata
from llm_proxy.gateway.facts import Role
from llm_proxy.gateway.manage import usage, usage_calls, usage_series
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Ask
from llm_proxy.gateway.store import schema
from tests.gatewaycalls import Calls, calls
from tests.gatewaystore import add_user
from tests.test_gateway_usage import NOON, around, attempt, caller, note, sqlite, target

__all__ = ["calls", "sqlite"]

ADMIN = caller(1, Role.ADMIN)
MINI = target(model="gpt-4o-mini")


def ask(store, who=None, accept="", sees="metadata", **query):
    return Ask(
        around(store, admin_sees=sees),
        who or caller(),
        {},
        {name.rstrip("_"): one for name, one in query.items()},
        None,
        "",
        accept,
    )


# --- projects


@pytest.mark.parametrize(
    "headers, body, project",
    [
        ({}, {}, ""),
        ({"x-llm-proxy-project": "apollo"}, {}, "apollo"),
        ({"openai-project": "proj_1"}, {}, "proj_1"),
        ({"x-llm-proxy-project": "apollo", "openai-project": "proj_1"}, {"project": "b"}, "apollo"),
        ({"x-llm-proxy-project": " \t ", "openai-project": "proj_1"}, {}, "proj_1"),
        ({}, {"project": "Büro 7", "user_id": "x"}, "Büro 7"),
        ({}, {"project": 7}, ""),
        ({}, {"projects": "x"}, ""),
        ({}, ["project"], ""),
        ({}, "project", ""),
        ({}, None, ""),
        ({"x-llm-proxy-project": "\udcff=\x00a\x1b[0m\u202eb"}, {}, "?= a [0m b"),
        ({"x-llm-proxy-project": "x" * 900}, {}, "x" * LONGEST),
    ],
    ids=str,
)
def test_a_project_is_named_by_header_or_body(headers, body, project):
    """Ours before OpenAI's before the body's; what is no name is none, and a name is one line that fits."""
    arrived = Arrived(msgspec.json.encode({"model": "fast", "metadata": body, "messages": []}))
    assert (of_headers(headers) or arrived.project) == project


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_text_becomes_a_project_that_can_be_kept(text):
    """In every store and in a head."""
    name = cleaned(text)
    assert len(name) <= LONGEST and name == cleaned(name)
    assert all(one.isprintable() for one in name)
    name.encode()
    assert of_metadata(msgspec.json.encode({"project": name})) == name


async def test_usage_tells_projects_apart(calls: Calls) -> None:
    """From the call to the report: by header and by body, failed calls too; the provider is told nothing of the header."""
    await calls.alias("fast", await calls.provider("openai"))
    chat = {"model": "fast", "messages": [{"role": "user", "content": "hello"}]}
    for headers, more in (
        ({"x-llm-proxy-project": "apollo"}, {}),
        ({"OpenAI-Project": "apollo"}, {"stream": True}),
        ({}, {"metadata": {"project": "gemini"}}),
        ({"x-llm-proxy-project": "apollo"}, {"model": "nobody-knows-it"}),
        ({}, {}),
    ):
        await calls.ask("/v1/chat/completions", chat | more, headers)
    who = caller(calls.user)
    told = await usage.usage(Ask(calls.site, who, {}, {"group_by": "project"}, None, ""))
    assert [(one.project, one.requests, one.failed) for one in told] == [("", 1, 0), ("apollo", 3, 1), ("gemini", 1, 0)]
    only = await usage_calls.calls(Ask(calls.site, who, {}, {"project": "apollo", "failed": "true"}, None, ""))
    assert [(one.alias, one.status, one.failed) for one in only.calls] == [("nobody-knows-it", 404, True)]
    heads = [name.lower() for one in calls.fake.requests for name, _ in one.headers]
    assert not {"x-llm-proxy-project", "openai-project"} & set(heads)


# --- hours and means


async def test_usage_by_hour_and_how_long_it_took(store):
    """An hour is named as a moment that may be asked from; means are of whole answers only."""
    half = NOON + timedelta(minutes=59, seconds=59)
    await note(
        store,
        attempt("r1", seconds=1.0, first_token=0.5),
        attempt("r2", at=half, seconds=2.0, first_token=1.0),
        attempt("r3", at=half, seconds=60.0, first_token=None, status=500, ending="upstream_failed"),
        attempt("r4", at=NOON + timedelta(hours=1), status=None, ending="timed_out", seconds=9.0, first_token=None),
    )
    first, second = await usage.usage(ask(store, group_by="hour"))
    assert (first.hour, first.requests, first.failed) == ("2026-03-14T12:00:00Z", 3, 1)
    assert (first.seconds, first.first_token_seconds) == (1.5, 0.75)
    assert (second.hour, second.seconds, second.first_token_seconds) == ("2026-03-14T13:00:00Z", None, None)
    (later,) = await usage.usage(ask(store, group_by="hour", from_=second.hour))
    assert later == second


async def test_usage_of_one_thing(store):
    """By what it was asked for, of, and by; a name that nobody used gives nothing."""
    team, key = caller(1, team_ids=(4,)), caller(1, session=None, key_id=7)
    await note(
        store,
        attempt("r1", caller=team, project="a"),
        attempt("r2", caller=key, asked="slow", target=MINI),
        attempt("r3", 0, target=None, status=429, ending="refused", usage=Usage()),
    )

    async def found(**query):
        return sum(one.requests for one in await usage.usage(ask(store, **query)))

    assert [await found(model=name) for name in ("gpt-4o", "gpt-4o-mini", "", "x\0")] == [1, 1, 1, 0]
    assert [await found(alias="slow"), await found(provider="openai"), await found(project="a")] == [1, 2, 1]
    assert [await found(team="4"), await found(key="7"), await found(key="8"), await found(failed="true")] == [
        1,
        1,
        0,
        1,
    ]
    assert await found(project="' OR 1=1 --") == 0


async def test_words_of_errors_of_others_are_for_those_who_see_all(store):
    """A provider's may repeat what was asked; one's own are told, and of others' a code is."""
    failed = {"status": 400, "ending": "upstream_failed", "caller": caller(7)}
    words = "bad prompt: canary", "canary", "model_not_found", "server"
    await note(store, *(attempt(f"r{n}", error=one, **failed) for n, one in enumerate(words)))

    async def told(*who, **more):
        page = await usage_calls.calls(ask(store, *who, **more))
        return [one.error for one in sorted(page.calls, key=lambda one: one.request_id)]

    assert await told(caller(7)) == await told(ADMIN, all="true", sees="full") == list(words)
    for sees in ("none", "metadata", "redacted"):
        assert await told(ADMIN, user="7", sees=sees) == ["", "", "model_not_found", "server"]
    document = await usage_calls.calls(ask(store, ADMIN, "text/csv", all="true"))
    assert "canary" not in str(document) and "model_not_found" in str(document)


# --- over time


async def test_a_series_has_no_gaps_and_loses_nothing(store):
    """Every day or hour is there; the lines together are what usage says, whatever the number of lines."""
    ann, bob = await add_user(store, "ann@example.com"), await add_user(store, "bob@example.com")
    days = [0, 0, 2, 5]
    await note(
        store,
        *(attempt(f"a{n}", caller=caller(ann), at=NOON + timedelta(days=day)) for n, day in enumerate(days)),
        *(attempt(f"b{n}", caller=caller(bob), target=MINI, at=NOON + timedelta(hours=n)) for n in range(5)),
        attempt("c", 0, caller=caller(99), target=None, status=404, ending="refused", usage=Usage()),
    )
    query = {"all": "true", "from_": "2026-03-13", "to": "2026-03-20"}
    whole = await usage_series.series(ask(store, ADMIN, **query))
    assert whole.moments == [f"2026-03-{day}" for day in range(13, 21)]
    (line,) = whole.lines
    assert (line.group, line.others) == (None, False)
    assert line.requests == [0, 8, 0, 1, 0, 0, 1, 0]
    assert line.failed == [0, 1, 0, 0, 0, 0, 0, 0]
    for word in ("model", "user", "team", "key", "project", "alias", "provider"):
        for top in ("1", "2", "10"):
            told = await usage_series.series(ask(store, ADMIN, group_by=word, top=top, **query))
            assert [sum(column) for column in zip(*(one.requests for one in told.lines), strict=True)] == line.requests
            assert sum(sum(one.cost) for one in told.lines) == pytest.approx(sum(line.cost))
            assert len(told.lines) <= int(top) + 1 and [one.others for one in told.lines[:-1]] == [False] * (
                len(told.lines) - 1
            )
    told = await usage_series.series(ask(store, ADMIN, group_by="user", **query))
    assert [(one.group, one.name, one.others) for one in told.lines] == [
        (ann, "ann@example.com", False),
        (bob, "bob@example.com", False),
        (99, None, False),
    ]
    teams = await usage_series.series(ask(store, ADMIN, group_by="team", **query))
    assert [(one.group, one.name, one.others, sum(one.requests)) for one in teams.lines] == [(None, None, False, 10)]
    few = await usage_series.series(ask(store, ADMIN, group_by="model", top="1", **query))
    assert [(one.group, one.others, sum(one.requests)) for one in few.lines] == [("gpt-4o", False, 4), (None, True, 6)]
    hours = await usage_series.series(
        ask(store, caller(bob), by="hour", from_="2026-03-14T11:30:00Z", to="2026-03-14T15:30:00Z")
    )
    assert hours.moments == [f"2026-03-14T{hour}:00:00Z" for hour in range(11, 16)]
    assert hours.lines[0].requests == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("by, steps, step", [("day", 30, timedelta(days=1)), ("hour", 48, timedelta(hours=1))])
async def test_a_series_ends_now_where_nobody_says(sqlite, by, steps, step):
    """With as much before as charts show; an empty time has its moments, and no line."""
    told = await usage_series.series(ask(sqlite, by=by))
    assert (len(told.moments), told.lines) == (steps, [])
    moments = [datetime.fromisoformat(one).replace(tzinfo=UTC) for one in told.moments]
    assert {after - before for before, after in itertools.pairwise(moments)} == {step}
    assert moments[-1] <= datetime.now(UTC)
    assert datetime.now(UTC) - moments[-1] < step + timedelta(minutes=5)
    assert len((await usage_series.series(ask(sqlite, by=by, to="0001-01-01"))).moments) <= 24
    assert (await usage_series.series(ask(sqlite, by=by, from_="2026-01-02", to="2026-01-01"))).moments == []


@pytest.mark.parametrize(
    "query, name",
    [
        ({"by": "week"}, "by"),
        ({"by": "day,hour"}, "by"),
        ({"group_by": "day"}, "group_by"),
        ({"group_by": "model,user"}, "group_by"),
        ({"top": "51"}, "top"),
        ({"format": "csv"}, "format"),
        ({"by": "hour", "from": "2020-01-01"}, ""),
        ({"from": "0001-01-01", "to": "9999-12-30"}, ""),
        ({"top": "50", "from": "2025-01-01", "to": "2026-01-01"}, ""),
    ],
    ids=str,
)
async def test_a_series_of_what_is_not_there_is_refused(sqlite, query, name):
    """And one that nobody could draw."""
    with pytest.raises(Refusal) as caught:
        await usage_series.series(ask(sqlite, **query))
    assert (caught.value.status, caught.value.param) == (400, name)


# --- call by call


async def test_calls_page_by_page(store):
    """Newest first; each is on one page, also those of the same moment and while others are added."""
    ann = await add_user(store, "ann@example.com")
    async with store.writing() as connection:
        made = insert(schema.teams).values(name="red").returning(schema.teams.c.id)
        team = (await connection.execute(made)).scalar_one()
    who = caller(ann, team_ids=(team,))
    times = [0, 1, 1, 1, 2, 2, 3]
    await note(
        store,
        *(attempt(f"r{n}", caller=who, at=NOON + timedelta(seconds=s)) for n, s in enumerate(times)),
        attempt("s1", caller=caller(ann + 1), at=NOON),
    )
    everything = (await usage_calls.calls(ask(store, who))).calls
    assert [one.request_id for one in everything] == ["r6", "r5", "r4", "r3", "r2", "r1", "r0"]
    first = everything[0]
    assert (first.user, first.team, first.key, first.at) == (
        "ann@example.com",
        "red",
        None,
        NOON + timedelta(seconds=3),
    )
    assert (first.cost, first.seconds, first.first_token_seconds, first.failed) == (3.5, 1.5, 0.25, False)
    seen, before = [], {}
    while True:
        page = await usage_calls.calls(ask(store, who, limit="2", **before))
        seen += page.calls
        await note(store, attempt(f"late{len(seen)}", caller=who, at=NOON + timedelta(days=1)))
        if page.next is None:
            break
        before = {"before": page.next}
    assert seen == everything
    for wrong in (
        {"before": "x"},
        {"before": "1_"},
        {"before": "9" * 18 + "_x"},
        {"limit": "1001"},
        {"group_by": "day"},
    ):
        with pytest.raises(Refusal) as caught:
            await usage_calls.calls(ask(store, who, **wrong))
        assert caught.value.status == 400


@pytest.mark.parametrize("route", [usage.usage, usage_calls.calls, usage_series.series], ids=lambda one: one.__name__)
async def test_nobody_but_an_administrator_is_told_of_others(store, route):
    """Neither by asking for them, nor by their team's, key's or project's name, nor by a cursor."""
    theirs = caller(2, team_ids=(4,), session=None, key_id=7)
    await note(store, attempt("r1"), attempt("r2", caller=theirs, project="secret"))

    def count(told):
        rows = getattr(told, "calls", None) or getattr(told, "lines", None) or (told if isinstance(told, list) else [])
        return sum(sum(one.requests) if hasattr(one, "others") else getattr(one, "requests", 1) for one in rows)

    times = {"from_": "2026-03-14", "to": "2026-03-14"}
    members_key = caller(1, Role.ADMIN, session=None, key_id=3)
    for who in (caller(1), members_key):
        for query, status in (({"user": "2"}, 404), ({"all": "true"}, 403)):
            with pytest.raises(Refusal) as caught:
                await route(ask(store, who, **query, **times))
            assert caught.value.status == status
        for query in ({"team": "4"}, {"key": "7"}, {"project": "secret"}):
            assert count(await route(ask(store, who, **query, **times))) == 0
        assert count(await route(ask(store, who, **times))) == 1
    cursor = f"{round(NOON.timestamp() * 1e6) + 1}_z"
    assert count(await usage_calls.calls(ask(store, caller(1), before=cursor))) == 1
    assert count(await route(ask(store, ADMIN, all="true", **times))) == 2
    assert count(await route(ask(store, replace(ADMIN, user_id=5), user="2", **times))) == 1


# --- CSV


def _read(document):
    assert document.kind == "text/csv; charset=utf-8; header=present"
    assert document.body.endswith(b"\r\n")
    return list(csv.DictReader(io.StringIO(document.body.decode(), newline="")))


@pytest.mark.parametrize(
    "accept, given, csv",
    [
        ("", "", False),
        ("*/*", "", False),
        ("text/csv", "", True),
        ("Text/CSV;q=0.8", "", True),
        ("application/json, text/csv", "", False),
        ("application/json;q=0.5, text/csv;q=0.6", "", True),
        ("text/csv;q=0", "", False),
        ("text/csv;q=x", "", False),
        ("text/*", "", False),
        ("text/csv", "json", False),
        ("application/json", "csv", True),
    ],
)
def test_csv_is_what_is_asked_for(accept, given, csv):
    """By the query first."""
    assert tabular.wanted({"format": given}, accept) is csv


async def test_usage_as_csv_is_the_same_usage(store):
    """With the names of the fields first, also where there is nothing; for a browser it is a file to keep."""
    empty = await usage.usage(ask(store, accept="text/csv", group_by="day,user"))
    assert _read(empty) == []
    await note(store, attempt("r1"), attempt("r2", usage=Usage(), asked='no,"price"\r\nhere', target=target(model="x")))
    told = await usage.usage(ask(store, group_by="day,alias,user"))
    document = await usage.usage(ask(store, group_by="day,alias,user", format="csv"))
    assert document.headers == {"Content-Disposition": 'attachment; filename="usage.csv"'}
    rows = _read(document)
    assert list(rows[0])[:4] == ["day", "alias", "user_id", "user"]
    for row, one in zip(rows, told, strict=True):
        assert row.keys() == msgspec.to_builtins(one).keys()
        assert (row["alias"], int(row["user_id"]), row["user"]) == (one.alias, one.user_id, "")
        assert (int(row["requests"]), float(row["cost"]), float(row["seconds"])) == (
            one.requests,
            one.cost,
            one.seconds,
        )


async def test_calls_as_csv_tell_where_they_go_on(store):
    """By a link (RFC 8288) to the next page of the same question."""
    await note(store, *(attempt(f"r{n}", project="a b") for n in range(3)))
    document = await usage_calls.calls(ask(store, format="csv", limit="2", project="a b"))
    rows = _read(document)
    assert [one["request_id"] for one in rows] == ["r2", "r1"]
    assert (rows[0]["at"], rows[0]["stream"], rows[0]["status"]) == ("2026-03-14T12:00:00Z", "false", "200")
    link = document.headers["Link"]
    assert link.startswith("</manage/usage/calls?format=csv&limit=2&project=a+b&before=") and link.endswith(
        '>; rel="next"'
    )
    query = dict(part.split("=") for part in link[1:].partition(">")[0].partition("?")[2].split("&"))
    last = await usage_calls.calls(ask(store, **query | {"project": "a b"}))
    assert [one["request_id"] for one in _read(last)] == ["r0"]
    assert "Link" not in last.headers


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\uff1d1"], ids=repr)
async def test_no_spreadsheet_computes_what_callers_write(sqlite, text):
    """A model's name is anybody's text: one that would be a formula is marked as a text."""
    document = tabular.document("x", ["a", "b"], [{"a": text, "b": -1}])
    ((a, b),) = list(csv.reader(io.StringIO(document.body.decode(), newline="")))[1:]
    assert (a, b) == (f"'{text}", "-1")
