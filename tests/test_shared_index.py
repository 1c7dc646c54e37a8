"""The shared index: what is asked of it, two machines' files in it, answers as one machine's own index does."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from llm_proxy.index import browse, figures, postgres_sql, search, size, threads
from llm_proxy.index.browse import Wanted
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.postgres import Pool, open_shared
from llm_proxy.index.postgres_write import SharedIndexer
from llm_proxy.index.queries import CallRow, Filter, IndexUnavailable, SessionRow, TookTooLong, open_index
from llm_proxy.index.sums import ORDERS, QUARTER
from llm_proxy.index.syntax import parse
from llm_proxy.index.viewer import EVERYTHING, Viewer
from scripts.make_logs import make
from tests.explored import record
from tests.postgresbed import SERVER
from tests.sharedbed import shared, shared_by_all

__all__ = ["shared", "shared_by_all"]

END = 1_795_000_000
DAY = 86_400
MACHINES = ("east-1", "west.2")


@pytest.fixture(scope="module")
def made(tmp_path_factory, shared_by_all):
    """The same logs twice: in one index, and, a part on each of two machines, in the shared one."""
    whole = record(tmp_path_factory.mktemp("whole"), END)
    make(whole.logs, calls=150, sessions=30, end=END)
    _attribute(whole.logs)
    whole.index.unlink()
    with closing(Indexer(whole.index, whole.logs)) as indexer:
        indexer.catch_up_all()
    files = sorted(one for one in whole.logs.rglob("*.jsonl") if one.parent != whole.logs)
    for number, machine in enumerate(MACHINES):
        logs = tmp_path_factory.mktemp(machine)
        for file in files[number::2]:
            place = logs / file.relative_to(whole.logs)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
        with closing(SharedIndexer(shared_by_all, machine, logs)) as indexer:
            indexer.fill()
    return whole


ACCOUNTS = ("0123abcd.1", "0123abcd.2", "")


def _attribute(logs):
    """For whom the gateway made the calls: two users in turn, and none, also within one session."""
    turn = itertools.cycle(ACCOUNTS)
    for file in sorted(logs.rglob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        for line in lines:
            if line["type"] == "request" and (account := next(turn)):
                line["gateway"] = {"account": account, "user": "u@example.com", "request": "r", "attempt": 1}
        file.write_text("".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines))


@pytest.fixture(scope="module")
def both(made, shared_by_all):
    """(a machine's own index, the shared one)."""
    with ExitStack() as stack:
        yield stack.enter_context(open_index(made.index)), stack.enter_context(open_shared(shared_by_all))


def plain(found):
    """Without what alone may differ: the machines' names, and NUL, which no text of PostgreSQL's can have."""
    if isinstance(found, str):
        found = found.replace("\0", "")
        for machine in MACHINES:
            found = found.removeprefix(f"{machine}/")
        return found
    if dataclasses.is_dataclass(found):
        told = {field.name: plain(getattr(found, field.name)) for field in dataclasses.fields(found)}
        return type(found).__name__, told
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [plain(one) for one in found]
    return found


FILTERS = {
    "all": Filter(),
    "errors": Filter(errors=True),
    "model": Filter(model="OPUS"),
    "project": Filter(project="LEDG"),
    "provider": Filter(provider="openai"),
    "since": Filter(since_ns=(END - DAY) * 10**9, until_ns=(END - 3600) * 10**9),
    "class": Filter(status="4xx"),
    "status": Filter(status="529"),
    "none": Filter(status="none"),
    "session": Filter(session="2026111"),
    "more": Filter(errors=True, project="led", since_ns=1),
    "nothing": Filter(project="no such"),
}
WANTED = {
    "all": Wanted(),
    "model": Wanted(model=("claude-opus-4-5", "gpt-5.2-codex")),
    "none": Wanted(project=(browse.NONE,), branch=("main", browse.NONE)),
    "status": Wanted(status=("errors", "cut", "live", "unpriced")),
    "ok": Wanted(status=("ok",), client=("claude", "python")),
    "time": Wanted(since_ns=(END - 3 * DAY) * 10**9, until_ns=END * 10**9),
    "provider": Wanted(provider=("openai",), model=("gpt-4.1",)),
    "user": Wanted(user=("U@example.com",)),
    "nothing": Wanted(branch=("no such",)),
}
ASKED = {
    "calls": lambda index, filter: list(index.calls(filter)),
    "newest calls": lambda index, filter: list(index.calls(filter, newest_first=True, limit=7)),
    "sessions": lambda index, filter: index.sessions(filter, None),
    "last sessions": lambda index, filter: index.sessions(filter, 5),
    **{
        f"stats by {by}": lambda index, filter, by=by: index.stats(filter, by, utc=True)
        for by in ("total", "day", "model", "project", "session", "provider")
    },
}
EDGES = [
    [(END - days * DAY) * 10**9 // QUARTER for days in range(12, -1, -1)],
    [END * 10**9 // QUARTER - 8, END * 10**9 // QUARTER],
]
BROWSED = {
    "count": browse.count,
    "facets": lambda index, wanted: [browse.facet(index, wanted, name) for name in (*browse.FACETS, "user")],
    "without": browse.without,
    "days": lambda index, wanted: browse.days_of_sessions(index, wanted, _day),
    "last days": lambda index, wanted: browse.last_days_of_sessions(index, wanted, _day),
    "figures": lambda index, wanted: [figures.sums(index, edges, wanted) for edges in EDGES],
    "paces": lambda index, wanted: [figures.paces(index, edges, wanted) for edges in EDGES],
    **{
        f"groups by {by}": lambda index, wanted, by=by: [figures.groups(index, edges, wanted, by) for edges in EDGES]
        for by in ("model", "project", "session", "user", "team", "gateway_project")
    },
}


def _day(slot):
    return datetime.fromtimestamp(slot * QUARTER // 10**9, UTC).date()


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("filter", FILTERS)
def test_calls_sessions_and_sums_are_the_same(both, asked, filter):
    """Two machines' rows, asked for with any filter, are those of one index over all of their files."""
    own, shared = (ASKED[asked](index, FILTERS[filter]) for index in both)
    assert plain(shared) == plain(own)
    assert filter == "nothing" or own or (asked, filter) == ("newest calls", "none")


@pytest.mark.parametrize("asked", BROWSED)
@pytest.mark.parametrize("wanted", WANTED)
def test_lists_facets_and_figures_are_the_same(both, asked, wanted):
    """What the explorer's home and its figures ask."""
    own, shared = (BROWSED[asked](index, WANTED[wanted]) for index in both)
    assert plain(shared) == plain(own)


@pytest.mark.parametrize(("order", "ascending"), list(itertools.product(ORDERS, (False, True))))
def test_pages_are_the_same(both, order, ascending):
    """Each page and its cursor, from the first to the last."""
    own, shared = both
    cursor = ""
    while True:
        there = browse.page(own, Wanted(), order, ascending=ascending, before=cursor, limit=9)
        assert plain(browse.page(shared, Wanted(), order, ascending=ascending, before=cursor, limit=9)) == plain(there)
        cursor = there[1]
        if not cursor:
            break


def test_one_conversation_is_the_same(both, made):
    """A session, what its calls add, its forks and sub-agents, found by the beginning of its id."""
    own, shared = both
    for id in made.sessions.values():
        for asked in (threads.session, threads.children, threads.gists, lambda index, id: index.calls_of(id)):
            assert plain(asked(shared, id)) == plain(asked(own, id))
    for prefix in ("2026", made.sessions["ledger"], "no such", "0"):
        kinds = {SessionRow, CallRow}
        assert {type(one) for one in shared.find(prefix)} <= kinds
        assert plain(shared.find(prefix, 1000)) == plain(own.find(prefix, 1000))
    ids = [call.id for call in own.calls(Filter(), limit=30)]
    assert shared.answered([*ids, "no such"]) == own.answered(ids)
    assert shared.last().id == own.last().id
    assert size.size(shared) == size.size(own)
    span = (END - DAY) * 10**9, END * 10**9
    assert browse.calls_between(shared, *span) == browse.calls_between(own, *span)


SEARCHES = (
    "the",
    "reconcile",
    '"the borrow checker"',
    "tra*",
    "parser -commas",
    "rain OR soft",
    "HÁIKU",
    "a.b/c-d_e",
    "tests/test_reconcile.py",
    "the role:tool",
    "the role:you,assistant project:ledg",
    "the tool:Grep",
    "tool:Grep,Bash",
    "soft -model:opus",
    'the model:"gpt-4.1"',
    "the status:error",
    "the status:none,2xx since:30d",
    "the -project:ledger until:yesterday",
    "session:2026 the",
    "'; DROP TABLE calls; --",
    "& | ! <-> ( ) : *",
    "no such words",
    "",
)


@pytest.mark.parametrize("sort", ["best", "newest"])
@pytest.mark.parametrize("typed", SEARCHES)
def test_a_search_finds_the_same(both, typed, sort):
    """The same messages, counted alike and marked alike; which is best is each database's own opinion."""
    query = parse(typed, END, UTC)
    ages = ((END - DAY) * 10**9, (END - 7 * DAY) * 10**9)
    found = [search.results(index, query, sort, ages, limit=500, seconds=30) for index in both]
    own, shared = ({one.id: one for one in some.sessions} for some in found)
    assert found[1].counts == found[0].counts and found[0].counts is not None
    assert set(shared) == set(own)
    for id, session in own.items():
        assert (shared[id].title, shared[id].last_ns, shared[id].hits) == (session.title, session.last_ns, session.hits)
    if sort == "newest":
        assert [one.id for one in found[1].sessions][:1] == [one.id for one in found[0].sessions][:1]
    given, values = search.conditions(query)
    hits = [index.matches(search.asked_for(query), Filter(), 500, given, values) for index in both]
    told = [{(one.call, one.session, one.role, one.pieces) for one in some} for some in hits]
    assert told[1] == told[0]


VIEWERS = {
    "one user": Viewer(ACCOUNTS[0]),
    "another": Viewer(ACCOUNTS[1]),
    "one without calls": Viewer("0123abcd.3"),
    "an admin who sees metadata": Viewer(ACCOUNTS[0], "metadata"),
    "an admin who sees all": Viewer(ACCOUNTS[0], "full"),
}


@pytest.mark.parametrize("viewer", VIEWERS)
def test_a_viewer_sees_the_same_and_no_more(made, shared_by_all, viewer):
    """What each may see, of all that can be asked, is what a machine's own index shows him."""
    whose = VIEWERS[viewer]
    with open_index(made.index, whose) as own, open_shared(shared_by_all, whose) as shared:
        for asked in ASKED.values():
            assert plain(asked(shared, Filter())) == plain(asked(own, Filter()))
        for browsed in BROWSED.values():
            assert plain(browsed(shared, Wanted())) == plain(browsed(own, Wanted()))
        assert size.size(shared)[:3] == size.size(own)[:3]
        query = parse("the", END, UTC)
        found = [search.results(index, query, "newest", (0,), limit=500, seconds=30) for index in (own, shared)]
        assert found[0].counts == found[1].counts
        pages = [search.results(index, query, "best", (0,), limit=4, seconds=30) for index in (own, shared)]
        assert plain(pages[1]) == plain(pages[0])
        hurried = [search._Search(index, query, (), 0.0, 1e12)._newest(1000) for index in (own, shared)]
        assert len(hurried[0][0]) == len(hurried[1][0]) == len(found[0].sessions) and hurried[0][2] == hurried[1][2]
        for id in made.sessions.values():
            assert plain(threads.gists(shared, id)) == plain(threads.gists(own, id))
        accounts = {call.account for call in shared.calls(Filter())}
        assert accounts <= ({whose.account} if whose.others == "none" else set(ACCOUNTS[:2]))


def test_who_would_see_others_redacted_sees_that_there_were_calls(shared_by_all, made):
    """PostgreSQL cannot redact: it shows less, and whoever reads a body is told the same."""
    with open_shared(shared_by_all, Viewer(ACCOUNTS[0], "redacted")) as index:
        assert index.viewer.others == "metadata"
        assert {call.account for call in index.calls(Filter())} == set(ACCOUNTS[:2])
        assert not any(call.error for call in index.calls(Filter()) if call.account != ACCOUNTS[0])


def test_connections_are_kept_for_their_viewer_alone(shared_by_all, made):
    """One user's connection never answers another's question; one that has died is not used again."""
    pool = Pool(shared_by_all)
    for _ in range(3):
        for whose in (*VIEWERS.values(), EVERYTHING):
            with pool.open(whose) as index:
                seen = {call.account for call in index.calls(Filter())}
                if whose.others == "none" and whose.account:
                    assert seen <= {whose.account}
    assert len(pool._idle) == len(VIEWERS) + 1
    backends = [link.execute("SELECT pg_backend_pid()")[0][0] for _, link in pool._idle]
    for backend in backends:
        asyncio.run(SERVER.execute(f"SELECT pg_terminate_backend({backend})"))
    with pool.open() as index:
        assert index.sessions(Filter(), 1)
    pool.close()


def test_a_question_that_cannot_be_answered_costs_no_connection(shared_by_all, made):
    """Not for what is not there; but one that is in the midst of its rows is not used again."""
    pool = Pool(shared_by_all)
    seen = set()
    for _ in range(3):
        with pytest.raises(LookupError), pool.open() as index:
            seen |= set(index.rows("SELECT pg_backend_pid()", {}))
            raise LookupError
    assert len(seen) == len(pool._idle) == 1
    with pytest.raises(LookupError), pool.open() as index:
        words = "SELECT texts.id FROM words JOIN texts ON texts.id = words.rowid WHERE words MATCH :asked"
        rows = index.rows(f"{words} UNION ALL SELECT generate_series(1, 2000)", {"asked": '"the"'})
        next(rows)
        raise LookupError
    assert not pool._idle
    pool.close()


def test_the_best_hit_comes_first_and_pages_go_on(both):
    """Every session of a search stands on exactly one page."""
    _, shared = both
    query, ages = parse("the", END, UTC), (0,)
    whole = search.results(shared, query, "best", ages, limit=500, seconds=30)
    found, cursor = [], ""
    while True:
        page = search.results(shared, query, "best", ages, before=cursor, limit=4, seconds=30)
        found += [one.id for one in page.sessions]
        cursor = page.next
        if not cursor:
            break
    assert found == [one.id for one in whole.sessions] and len(set(found)) == len(found) > 4


def test_what_takes_too_long_is_broken_off(shared_by_all, made):
    """A question that is over its time raises at once, and the next one is answered."""
    with open_shared(shared_by_all) as index:
        index.stop_at(time.monotonic() + 0.2)
        began = time.monotonic()
        with pytest.raises(TookTooLong):
            list(index.rows("SELECT pg_sleep(20)", {}))
        assert time.monotonic() - began < 5
        index.stop_at(None)
        assert index.sessions(Filter(), 1)


def test_nobody_there_is_said():
    """An address where no PostgreSQL listens."""
    with pytest.raises(IndexUnavailable, match="shared index"), open_shared("postgresql://a:b@127.0.0.1:1/x"):
        pass


def test_words_are_cut_and_marked_as_fts5_does():
    """Whatever stands in a text: the same words as SQLite's tokenizer, marked in the same places."""
    import sqlite3

    texts = [
        "Ünïcödé naïve café CAFÉ e\u0301te\u0301 ﬁne",
        "snake_case kebab-case a.b.c /usr/local/bin http://x.y:80/z?q=1 user@host 1e5 -3.14 0xFF",
        "日\u200b本\u200b語 Ελληνικά Русский ёлка İstanbul ß straße",
        "'quotes' \"double\" it's \\ back\\slash : & | ! ( ) <->",
        "a" * 3000 + " end",
    ]
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE words USING fts5(text, tokenize = 'unicode61 remove_diacritics 2')")
    db.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(words, instance)")
    for text in texts:
        db.execute("DELETE FROM words")
        db.execute("INSERT INTO words VALUES (?)", (text,))
        theirs = [row[0] for row in db.execute("SELECT term FROM terms ORDER BY offset")]
        assert [one.said for one in postgres_sql.words_of(text)] == [one[:500] for one in theirs]
    marks = SimpleNamespace(text="one two three two one", asked='"two three" "on"*')
    assert postgres_sql.marked(marks.asked, marks.text) == "\x02one\x03 \x02two three\x03 two \x02one\x03"
