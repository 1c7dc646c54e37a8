"""Search: the syntax, what it finds and counts, and what is said where the time was too short."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.cli.search import search as on_the_command_line
from llm_proxy.errors import UsageError
from llm_proxy.explorer import asking, guard, site
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.pages import search as page
from llm_proxy.index import search, syntax
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.index.record import Record
from llm_proxy.index.syntax import BadQuery, Term, parse
from scripts.make_logs import make
from tests.explored import HOSTILE, record

END = 1_795_000_000
NOW = datetime.fromtimestamp(END, UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = record(tmp_path_factory.mktemp("record"), END)
    make(found.logs, calls=200, sessions=40, end=END)
    indexer = Indexer(found.index, found.logs)
    indexer.catch_up_all()
    indexer.close()
    return found


@pytest.fixture
def index(made):
    with open_index(made.index) as opened:
        yield opened


@pytest.fixture
async def client(made):
    state = made.logs.parent / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    headers = guard.bearer(guard.new_secret(state))
    app = site.application(Options(index=str(made.index), logs=str(made.logs), state=str(state)))
    async with TestClient(TestServer(app), headers=headers) as opened:
        yield opened


def found(index, typed, **how):
    return search.results(index, parse(typed, END, UTC), how.pop("sort", "best"), (0,), **how)


def asked(made, query):
    pairs = [tuple(pair.split("=", 1)) for pair in query.split("&")]
    with open_index(made.index) as opened:
        return page.view(Record(opened, made.logs), asking.asked("/search", page.PARAMS, pairs, {}, NOW))


# --- the syntax

DAY = 86_400 * 10**9
MIDNIGHT = END // 86_400 * DAY


@pytest.mark.parametrize(
    ("typed", "words", "terms"),
    [
        ("hash seed", "hash seed", ()),
        ('"hash seed" -flaky retr*', '"hash seed" -flaky retr*', ()),
        ("a project:ledger", "a", (Term("project", (("ledger", False),)),)),
        ("project:ledger,api a", "a", (Term("project", (("ledger", False), ("api", False))),)),
        ('project:"my app",x', "", (Term("project", (("my app", True), ("x", False))),)),
        ("-model:haiku a", "a", (Term("model", (("haiku", False),), True),)),
        ("role:you,result", "", (Term("role", (("user", True), ("tool", True))),)),
        ("PROJECT:x", "", (Term("project", (("x", False),)),)),
        ("https://x.y std::vector key:value", "https://x.y std::vector key:value", ()),
        ('"project:ledger"', '"project:ledger"', ()),
        ("project:", "project:", ()),
        ("provider:claude", "", (Term("provider", (("anthropic", False),)),)),
        ('say "open', 'say "open', ()),
    ],
)
def test_words_and_filters_are_told_apart(typed, words, terms):
    query = parse(typed, END, UTC)
    assert (query.words, query.terms) == (words, terms)


@pytest.mark.parametrize(
    ("typed", "since", "until"),
    [
        ("since:2d", END * 10**9 - 2 * DAY, None),
        ("since:today", MIDNIGHT, None),
        ("from:yesterday until:yesterday", MIDNIGHT - DAY, MIDNIGHT),
        ("after:2026-11-01 before:2026-11-02", 1_793_491_200 * 10**9, 1_793_577_600 * 10**9),
        ("until:2026-11-01", None, 1_793_577_600 * 10**9),
        ("since:2026-11-01T08:00", (1_793_491_200 + 8 * 3600) * 10**9, None),
    ],
)
def test_times(typed, since, until):
    """A day begins at midnight; `until` includes the day it names, `before` does not."""
    query = parse(typed, END, UTC)
    assert (query.since_ns, query.until_ns, query.words) == (since, until, "")


@pytest.mark.parametrize(
    "typed", ["role:nobody", "status:6", "since:soon", "until:2026-13-01", "status:ok", "role:you,x"]
)
def test_a_filter_that_breaks_its_rule_is_named(typed):
    with pytest.raises(
        BadQuery, match=f"{typed.partition(':')[0]}: must be .*{typed.rpartition(':')[2].split(',')[-1]}"
    ):
        parse(typed, END, UTC)


_TEXT = st.text(st.characters(codec="utf-8"), max_size=40) | st.lists(
    st.sampled_from(['"', "-", ":", ",", " ", "a", "project", "role", "since", "*", "(", "NOT", "7d", "you", "\x00"])
).map("".join)


@settings(deadline=None, max_examples=300)
@given(_TEXT)
def test_whatever_is_typed_is_a_query_or_named(typed):
    """Nothing that can be typed breaks the search index's own language."""
    import sqlite3

    try:
        query = parse(typed, END, UTC)
    except BadQuery:
        return
    asked_for = search.asked_for(query)
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
    if asked_for:
        db.execute("SELECT * FROM words WHERE words MATCH ?", (asked_for,)).fetchall()
    search.conditions(query)
    db.close()


@settings(deadline=None)
@given(
    _TEXT,
    st.sampled_from(["project", "model"]),
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1).filter(
        lambda text: '"' not in text
    ),
)
def test_a_filter_is_put_in_and_taken_out_again(typed, name, value):
    once = syntax.with_filter(typed, name, value)
    if syntax.has_filter(typed, name, value):
        return
    assert syntax.has_filter(once, name, value) or typed.count('"') % 2
    if not typed.count('"') % 2:
        assert not syntax.has_filter(syntax.with_filter(once, name, value), name, value)


# --- what is found


def hits(results):
    return {(session.id, one.call, one.role) for session in results.sessions for one in session.found}


def every(index, typed, **how):
    """All sessions, page by page."""
    sessions, cursor = [], ""
    while True:
        some = found(index, typed, before=cursor, limit=3, **how)
        sessions += some.sessions
        cursor = some.next
        if not cursor:
            return sessions


def expected(index, made, typed):
    """By reading all texts: (session, text id) that hold the words."""
    rows = index.rows(
        "SELECT sessions.id, unpacked(packed) FROM messages JOIN texts ON texts.id = messages.text JOIN sessions ON sessions.key = messages.session",
        {},
    )
    words = typed.split()
    return Counter(
        session
        for session, text in rows
        if all(re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", text.lower()) for word in words)
    )


@pytest.mark.parametrize("sort", ["best", "newest"])
@pytest.mark.parametrize("typed", ["reconcile", "ba", "the", "ledger set"])
def test_every_hit_is_counted_and_every_session_shown_once(index, made, typed, sort):
    """Page by page, in whichever order; each session with all of its hits counted and at most three shown."""
    wanted = expected(index, made, typed)
    sessions = every(index, typed, sort=sort)
    assert [one.id for one in sessions].__len__() == len({one.id for one in sessions})
    assert {one.id: one.hits for one in sessions} == dict(wanted)
    assert all(1 <= len(one.found) <= 3 for one in sessions)
    counts = found(index, typed).counts
    assert (counts.hits, counts.sessions) == (wanted.total(), len(wanted))
    for values in (counts.roles, counts.projects, counts.models, counts.dates):
        assert sum(one.count for one in values) == wanted.total()
    if sort == "newest":
        newest = [one.found[0].started_ns for one in sessions]
        assert newest == sorted(newest, reverse=True)


def test_filters_choose_hits(index):
    """By who said it, the project, the model, the tool called, how the call ended, and when."""
    whole = hits(found(index, "reconcile", limit=50))
    assert {role for _, _, role in whole} > {"tool"}
    assert {role for _, _, role in hits(found(index, "reconcile role:tool", limit=50))} == {"tool"}
    assert {role for _, _, role in hits(found(index, "reconcile -role:tool", limit=50))} & {"tool"} == set()
    assert not found(index, "reconcile project:website").sessions
    assert found(index, "reconcile project:edge").counts == found(index, "reconcile").counts
    assert not found(index, 'reconcile project:"edge"').sessions
    assert {one.model for session in found(index, "set model:haiku").sessions for one in session.found} == {
        "claude-haiku-4-5"
    }
    calling = [one for session in found(index, "tool:Bash").sessions for one in session.found]
    assert calling and {one.role for one in calling} == {"assistant"}
    assert all("Bash" in "".join(text for text, _ in one.pieces) for one in calling)
    assert (
        len(found(index, "tool:Bash,Grep", limit=50).sessions) >= len(found(index, "tool:Grep", limit=50).sessions) > 0
    )
    assert not found(index, "reconcile until:2020-01-01").sessions
    assert found(index, "reconcile since:60d").counts == found(index, "reconcile").counts
    failed = {call.id for call in index.calls(Filter(errors=True))}
    assert all(call in failed for _, call, _ in hits(found(index, "ba status:error", limit=50)))


def test_one_session_shows_all_of_its_hits(index):
    """The query of "more in this session" shows more than three."""
    session = max(found(index, "reconcile").sessions, key=lambda one: one.hits)
    assert session.hits > 3
    (alone,) = found(index, f"reconcile session:{session.id}").sessions
    assert len(alone.found) == alone.hits == session.hits


def test_words_are_marked(index):
    for session in found(index, "reconcile set").sessions:
        for one in session.found:
            assert {text.lower() for text, marked in one.pieces if marked} <= {"reconcile", "set"}
            assert any(marked for _, marked in one.pieces)


def test_where_the_time_is_over_what_came_is_shown_and_said(index, monkeypatch):
    """The newest texts that could be read, back to when, and no counts; with enough time everything."""
    import llm_proxy.index.queries as queries

    monkeypatch.setattr(queries, "_OPCODES", 1)
    began = time.monotonic()

    class Slow(search._Search):
        def _until(self, share):
            # The first way takes all of its time; the second has some.
            self._index.stop_at(time.monotonic() - 1 if share == search._FIRST else None)

    slow = Slow(index, parse("ba", END), (0,), began, 2).page("best", None, 3)
    assert slow.sessions and slow.counts is None and slow.covers_ns
    assert all(session.hits is None for session in slow.sessions)
    assert slow.covers_ns <= min(one.started_ns for session in slow.sessions for one in session.found)
    none = found(index, "ba", seconds=-1)
    assert none.covers_ns is not None and not none.sessions and none.counts is None
    monkeypatch.undo()
    index.stop_at(None)
    assert found(index, "ba").counts is not None


def test_dates_are_counted_up_to_each_age(made):
    """Today's hits are among the last 7 days', those among the last 30 days'."""
    view = asked(made, "q=ba&utc=1")
    (dates,) = [facet for facet in view.facets if facet.name == "date"]
    counts = {one.label: one.hits for one in dates.choices}
    assert counts.get("today", 0) <= counts.get("last 7 days", 0) <= counts["last 30 days"] <= view.hits
    assert counts["last 30 days"] + counts.get("older", 0) == view.hits
    for one in dates.choices:
        if one.label in ("today", "older"):
            assert asked(made, f"q={one.query}&utc=1").hits == one.hits


def test_a_facets_link_leaves_as_many_hits_as_it_says(made):
    for facet in asked(made, "q=ba&utc=1").facets:
        if facet.name != "date":
            for one in facet.choices:
                again = asked(made, f"q={one.query}&utc=1")
                assert again.hits == one.hits, one
                (on,) = [
                    other for same in again.facets if same.name == facet.name for other in same.choices if other.on
                ]
                assert " ".join(on.query.split()) == "ba"


def test_the_command_line_takes_the_same(made, capsys, monkeypatch, tmp_path):
    """The command under the hits finds them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    command = shlex.split(asked(made, "q=reconcile role:tool -model:haiku").command)
    assert command[:2] == ["llm-proxy", "search"]
    assert on_the_command_line([*command[2:], "--log-dir", str(made.logs)]) == 0
    calls = {line.split("\t")[0] for line in capsys.readouterr().out.splitlines()}
    with open_index(made.index) as opened:
        shown = {call for _, call, _ in hits(found(opened, "reconcile role:tool -model:haiku", limit=50))}
    assert calls and calls <= shown
    for odd in ("role:nobody x", "project:ledger"):
        with pytest.raises(UsageError):
            on_the_command_line([odd, "--log-dir", str(made.logs)])


# --- the page


async def test_the_page_marks_words_and_runs_nothing(client):
    """What models and clients say stands there as text, found words in it marked."""
    for query in ("window", "script", "pwned", HOSTILE[0]):
        text = await (await client.get(f"/llm-proxy/search?q={quote(query)}")).text()
        assert "<mark>" in text, query
        for bad in HOSTILE:
            assert "<" not in bad or bad not in text
        assert " style=" not in text and "\x1b" not in text and "\u202e" not in text


async def test_a_hit_leads_to_its_call(client, made):
    """Each row is one link to the conversation, at the call that holds it."""
    text = await (await client.get("/llm-proxy/search?q=reconcile")).text()
    links = re.findall(r'<a class="snip" href="/llm-proxy/sessions/([^?"]+)\?call=([^&"]+)&amp;q=reconcile"', text)
    assert links
    for session, call in links:
        answer = await client.get(f"/llm-proxy/sessions/{session}?call={call}&q=reconcile")
        shown = await answer.text()
        assert answer.status == 200 and 'class="turn' in shown and " found" in shown


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "What can be typed"),
        ("q=nosuchword", "Nothing was found"),
        ("q=project:ledger", "Put a word beside the filters"),
        ("q=role:nobody%20x", "The query cannot be read"),
        ("q=reconcile%20project:nope", "Without the filters there may be something"),
        ("q=ba", "Same search in a terminal"),
    ],
)
async def test_states(client, query, words):
    answer = await client.get(f"/llm-proxy/search?{query}")
    assert answer.status == 200 and words in await answer.text()


async def test_a_cursor_that_is_none_is_refused(client):
    for cursor in ("x", "1", "nan_1", "1e999_1", "_", "-1.5_-3"):
        answer = await client.get(f"/llm-proxy/search?q=ba&before={cursor}")
        assert answer.status in (400, 200)
        assert answer.status == 400 or cursor == "1e999_1"
