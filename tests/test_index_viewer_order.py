"""What a viewer is shown of a search, and in what order, tells nothing of texts that he may not read."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC

import pytest

from llm_proxy.index import search
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.index.syntax import parse
from llm_proxy.index.viewer import Viewer
from tests.explored import Maker, Session

NOW = 1_795_000_000
ANN, BOB = "0123abcd.1", "0123abcd.2"
MINE = ("quince pear", "quince quince quince fig", "pear quince", "pear and fig", "fig quince pear quince")


def recorded(folder, others):
    """Ann's conversations, and before each what Bob said."""
    maker = Maker(folder / "logs", NOW * 10**9)
    for number, said in enumerate(MINE):
        for one in others.get(number, ()):
            _say(maker, f"b{number}", one, BOB, number)
        maker._number = 1000 + number  # the same ids, whatever else is recorded
        _say(maker, f"a{number}", said, ANN, number)
    path = folder / "index.db"
    with closing(Indexer(path, folder / "logs")) as indexer:
        indexer.catch_up_all()
    return path


def _say(maker, name, said, account, number):
    session = Session(maker, name, "openai", "api.openai.com", (NOW - 3600 + 60 * number) * 10**9)
    body = {"model": "m", "messages": [{"role": "user", "content": said}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": f"answer {number}"}, "finish_reason": "stop"}
    session.call("/v1/chat/completions", body, {"id": f"r{name}", "model": "m", "choices": [choice]})
    lines = [json.loads(line) for line in session._path.read_bytes().splitlines()]
    for line in lines:
        if line["type"] == "request":
            line["gateway"] = {"account": account, "user": "u@e", "request": "r", "attempt": 1}
    session._path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def told(path, typed, sort):
    """All pages of three sessions with their cursors, what there was no time to put in order, and the command's."""
    query = parse(typed, NOW, UTC)
    with open_index(path, Viewer(ANN)) as index:
        pages, cursor = [], ""
        while True:
            page = search.results(index, query, sort, (0,), before=cursor, limit=2, seconds=30)
            pages.append(page)
            cursor = page.next
            if not cursor:
                break
        hurried = search._Search(index, query, (), 0.0, 1e12)
        rows, _, covers = hurried._newest(10)
        calls = dict(index.rows("SELECT key, id FROM calls", {}))
        newest = [[calls[call] for _, call in hits] for hits in rows.values()]
        hits = index.matches(search.asked_for(query), Filter(), 20)
    return pages, newest, covers, hits


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Without another's words, with many of them, and with what Ann said last said by him first."""
    others = ({}, {0: [f"quince {n} word" for n in range(40)]}, {0: (MINE[3], MINE[4]), 1: ("pear",) * 3})
    return [recorded(tmp_path_factory.mktemp("made"), one) for one in others]


@pytest.mark.parametrize("sort", ["best", "newest"])
@pytest.mark.parametrize("typed", ["quince", "pear", "fig", "answ*"])
def test_what_others_said_changes_nothing(indexes, typed, sort):
    """Hits, their order, scores and cursors are the same, whatever another account's conversations hold."""
    alone, *beside = (told(path, typed, sort) for path in indexes)
    assert len([one for page in alone[0] for one in page.sessions]) >= 3
    for one in beside:
        assert one == alone


def test_the_owner_is_shown_the_best(indexes):
    """Whoever sees everything has the order of rank."""
    with open_index(indexes[0]) as index:
        page = search.results(index, parse("quince", NOW, UTC), "best", (0,), seconds=30)
        assert page.sessions[0].found[0].pieces[0][1] and page.sessions[0].last_ns != max(
            one.last_ns for one in page.sessions
        )
        assert index.matches("quince", Filter(), 5)[0].score > 0
