"""One conversation recorded on several machines by turns, as behind a load balancer that is sticky to nothing."""

from __future__ import annotations

import itertools
import json
import random
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from llm_proxy.explorer.conversation import arrange
from llm_proxy.index import browse, figures, search, threads
from llm_proxy.index.browse import Wanted
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.postgres import open_shared
from llm_proxy.index.postgres_write import SharedIndexer
from llm_proxy.index.queries import Filter, SessionRow, open_index
from llm_proxy.index.sums import QUARTER
from llm_proxy.index.syntax import parse
from llm_proxy.index.viewer import Viewer
from tests.explored import Maker, Session
from tests.sharedbed import shared

__all__ = ["shared"]

START = 1_795_000_000 * 10**9
MACHINES = ("east", "west", "north")
ANN, BOB = "0123abcd.1", "0123abcd.2"
EDGES = [START // QUARTER - 4, START // QUARTER + 400]


class Fleet:
    """Machines' logs, and beside them those of one machine that had all calls."""

    def __init__(self, folder, shared):
        self.folder, self.shared = folder, shared
        self.makers = {name: Maker(folder / name / "logs", START) for name in (*MACHINES, "whole")}
        for name, maker in self.makers.items():
            maker._number = MACHINES.index(name) * 10_000 if name in MACHINES else 50_000  # no id is given twice
        self.parts = {}
        self.talks = {}
        self.said = itertools.count(1)

    def call(self, talk, machine, at, path, body, answer, account="", about=None, provider="openai", **more):
        """The same call, on a machine and on the one that has all. `talk` names the session there."""
        number = next(self.said)
        at += 3 * self.talks.setdefault(talk, len(self.talks))  # no two calls begin at one time
        for name in (machine, "whole"):
            maker = self.makers[name]
            session = self.parts.get((name, talk))
            if session is None:
                upstream = f"api.{provider}.com"
                session = Session(maker, f"{talk}", provider, upstream, START + at * 10**9, **(about or {}))
                self.parts[name, talk] = session
            session.now = START + at * 10**9
            kept, maker._number = maker._number, 99_000 + number
            session.call(path, body, answer, total=1500, after=0, **more)
            maker._number = kept
            if account:
                attributed(session._path, account)

    def fill(self, machine, only=None):
        root = self.folder / machine / "logs"
        with closing(SharedIndexer(self.shared, machine, root)) as indexer:
            if only is None:
                indexer.fill()
            else:
                indexer.catch_up(str(only.relative_to(root)))

    def whole(self, viewer=Viewer()):  # noqa: B008
        path = self.folder / "whole.db"
        with closing(Indexer(path, self.folder / "whole" / "logs")) as indexer:
            indexer.catch_up_all()
        return open_index(path, viewer)

    def recorded(self):
        """The machines that have recorded something."""
        return [name for name in MACHINES if (self.folder / name / "logs").exists()]


@pytest.fixture
def fleet(tmp_path, shared):
    return Fleet(tmp_path, shared)


def attributed(file, account):
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    for line in lines:
        if line["type"] == "request":
            line.setdefault("gateway", {"account": account, "user": "u@e", "request": "r", "attempt": 1})
    file.write_text("".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines))


def completion(said, tokens=7):
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    used = {"prompt_tokens": 11, "completion_tokens": tokens, "total_tokens": 11 + tokens}
    return {"id": "c", "object": "chat.completion", "model": "gpt-4.1", "choices": [choice], "usage": used}


def chat(history):
    return {"model": "gpt-4.1", "messages": [{"role": role, "content": said} for role, said in history]}


def talk_by_history(fleet, order, name="talk", account="", opening="Where is the ledger kept?", start=0):
    """A client without a session id, whose turns go round the machines."""
    history = [("user", opening)]
    for turn, machine in enumerate(order):
        said = f"{opening} The answer of turn {turn} is number {turn * 7919}."
        at = start + turn * 60
        fleet.call(name, machine, at, "/v1/chat/completions", chat(history), completion(said, 7 + turn), account)
        history += [("assistant", said), ("user", f"And what of the zebra in turn {turn + 1}?")]
    return history


def talk_by_id(fleet, order, name="talk", account="", client="11112222-aaaa-bbbb-cccc-333344445555", start=0, **more):
    """A client with a session id. What it says has no history in common."""
    about = {"client_session": client, "client_session_source": "x-claude-code-session-id"} | more.pop("about", {})
    for turn, machine in enumerate(order):
        body = {"model": "claude-opus-4-5", "messages": [{"role": "user", "content": f"{name} zebra {turn}"}]}
        answer = {
            "type": "message",
            "role": "assistant",
            "model": "claude-opus-4-5",
            "content": [{"type": "text", "text": f"{name} giraffe {turn}"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 10, "output_tokens": turn},
        }
        fleet.call(
            *(name, machine, start + turn * 60, "/v1/messages", body, answer, account, about),
            provider="anthropic",
            **more,
        )


def talk_by_named_answers(fleet, order, name="talk", account=""):
    """A client of the Responses API that names the answer before."""
    before = None
    for turn, machine in enumerate(order):
        body = {"model": "gpt-4.1", "input": f"zebra of turn {turn}", "previous_response_id": before}
        before = f"resp_{turn}"
        content = [{"type": "output_text", "text": f"said in turn {turn}"}]
        answer = {
            "id": before,
            "object": "response",
            "status": "completed",
            "model": "gpt-4.1",
            "output": [{"type": "message", "role": "assistant", "content": content}],
            "usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11},
        }
        fleet.call(name, machine, turn * 60, "/v1/responses", body, answer, account)


TALKS = {"history": talk_by_history, "id": talk_by_id, "named": talk_by_named_answers}
ROUND = ["east", "west", "north", "east", "west", "east", "north", "west"]


def bare(found, ids):
    """Without ids of sessions and names of files, which alone may differ."""
    if isinstance(found, SessionRow):
        return replace(found, id=ids.get(found.id, found.id), parent=ids.get(found.parent, found.parent), files=())
    if hasattr(found, "session"):
        return replace(found, session=ids.get(found.session, found.session), request=None, response=None)
    return found


def same_as_whole(fleet, viewer=Viewer(), *, late=False):  # noqa: B008
    """What can be asked of the shared index, and of one machine that had recorded all. Gives the conversations.

    `late`: lines came so that a text may be found in a later call that repeats it.
    """
    with fleet.whole(viewer) as own, open_shared(fleet.shared, viewer) as joined:
        theirs, ours = list(own.calls(Filter())), list(joined.calls(Filter()))
        assert [call.id for call in ours] == [call.id for call in theirs]
        ids = {mine.session: there.session for mine, there in zip(ours, theirs, strict=True)}
        assert len(set(ids.values())) == len(ids) == len({call.session for call in theirs})
        assert [bare(call, ids) for call in ours] == [bare(call, ids) for call in theirs]
        assert [bare(one, ids) for one in joined.sessions(Filter(), None)] == [
            bare(one, ids) for one in own.sessions(Filter(), None)
        ]
        for id, there in ids.items():
            assert [call.id for call in joined.calls_of(id)] == [call.id for call in own.calls_of(there)]
            assert threads.gists(joined, id) == threads.gists(own, there)
            assert shape(joined, id) == shape(own, there)
            children = [[bare(one, ids) for one in threads.children(*asked)] for asked in ((joined, id), (own, there))]
            assert children[0] == children[1]
        for asked in (
            lambda index: browse.count(index, Wanted()),
            lambda index: [browse.facet(index, Wanted(), name) for name in browse.FACETS],
            lambda index: browse.days_of_sessions(index, Wanted(), _day),
            lambda index: [replace(one, id="", parent="") for one in browse.page(index, Wanted(), "took")[0]],
            lambda index: figures.sums(index, EDGES, Wanted()),
            lambda index: [replace(row, key="") for row in index.stats(Filter(), "session", utc=True)],
            lambda index: index.stats(Filter(), "model", utc=True),
        ):
            assert asked(joined) == asked(own)
        found = [
            search.results(index, parse("zebra", START // 10**9, UTC), "newest", (0,), seconds=30)
            for index in (joined, own)
        ]
        assert found[0].counts == found[1].counts
        assert [ids[one.id] for one in found[0].sessions] == [one.id for one in found[1].sessions]
        hits = [
            {(hit.role, hit.pieces) if late else (hit.role, hit.pieces, hit.call, hit.seq) for hit in some}
            for some in (index.search("zebra", Filter(), 500) for index in (joined, own))
        ]
        assert hits[0] == hits[1]
        return joined.sessions(Filter(), None)


def shape(index, id):
    made = arrange(index.calls_of(id), threads.gists(index, id))
    return [(step.number, step.call.id, step.begins, step.after, len(step.forks)) for step in made.steps]


def _day(slot):
    return datetime.fromtimestamp(slot * QUARTER // 10**9, UTC).date()


@pytest.mark.parametrize("machines", [MACHINES, MACHINES[::-1]], ids="-".join)
@pytest.mark.parametrize("kind", TALKS)
def test_a_conversation_over_machines_is_one(fleet, kind, machines):
    """Whichever machine comes first: one row with all sums, all calls in order of time, found by each part's id."""
    TALKS[kind](fleet, ROUND)
    for machine in machines:
        fleet.fill(machine)
    (row,) = same_as_whole(fleet)
    assert row.calls == len(ROUND)
    assert {file.partition("/")[0] for file in row.files} == set(MACHINES)
    with open_shared(fleet.shared) as index:
        for machine in MACHINES:
            part = fleet.parts[machine, "talk"].id
            assert [call.id for call in index.calls_of(part)] == [call.id for call in index.calls_of(row.id)]
            assert [
                one.id
                for one in (threads.session(index, part), *index.find(part), *index.sessions(Filter(session=part)))
            ] == [row.id] * 3
            query = parse(f"zebra session:{part}", START // 10**9, UTC)
            assert [one.id for one in search.results(index, query, "best", (0,), seconds=30).sessions] == [row.id]
        assert row.id == min(fleet.parts[machine, "talk"].id for machine in MACHINES)


@pytest.mark.parametrize("seed", range(2))
def test_it_is_one_however_its_lines_come(fleet, seed):
    """Machines that write by turns, some behind, lines read one by one."""
    rng = random.Random(seed)
    for kind in TALKS:
        TALKS[kind](fleet, rng.choices(MACHINES, k=9), name=kind)
    files = {}
    for machine in fleet.recorded():
        for file in (fleet.folder / machine / "logs").rglob("*.jsonl"):
            files[machine, file] = file.read_bytes().splitlines(keepends=True)
            file.write_bytes(b"")
    while files:
        machine, file = rng.choice(list(files))
        with file.open("ab") as end:
            for _ in range(rng.randint(1, 3)):
                if files[machine, file]:
                    end.write(files[machine, file].pop(0))
        if not files[machine, file]:
            del files[machine, file]
        fleet.fill(machine, file)
    assert len(same_as_whole(fleet, late=True)) == 3


def test_strangers_stay_apart(fleet):
    """The same ids and words of two accounts, and of none; the same client at another provider; what starts alike."""
    for account in (ANN, BOB, ""):
        talk_by_history(fleet, ["east", "west"], f"history {account}", account)
        talk_by_id(fleet, ["west", "east"], f"id {account}", account)
    talk_by_history(fleet, ["north"], "alike")
    for machine in MACHINES:
        fleet.fill(machine)
    assert len(same_as_whole(fleet)) == 7
    for viewer in (Viewer(ANN), Viewer(BOB), Viewer(ANN, "metadata"), Viewer(ANN, "full")):
        rows = same_as_whole(fleet, viewer)
        assert len(rows) == (2 if viewer.others == "none" else 4)
        with open_shared(fleet.shared, viewer) as index:
            for (machine, talk), part in fleet.parts.items():
                seen = threads.session(index, part.id)
                if machine != "whole" and viewer.account not in talk and viewer.others == "none":
                    assert seen is None and index.calls_of(part.id) == [] and index.find(part.id) == []


def test_what_parted_is_a_fork(fleet):
    """An answer that another request had continued before; on another machine it is a session that came of it."""
    talk_by_history(fleet, ["east", "west", "east"])
    history = [("user", "Where is the ledger kept?")]
    history += [
        ("assistant", "Where is the ledger kept? The answer of turn 0 is number 0."),
        ("user", "No: the zebra's."),
    ]
    fleet.call("fork", "north", 1000, "/v1/chat/completions", chat(history), completion("It went another way."))
    history += [("assistant", "It went another way."), ("user", "Which zebra?")]
    fleet.call("fork", "west", 1060, "/v1/chat/completions", chat(history), completion("The striped one."))
    fleet.parts["whole", "fork"].fork(fleet.parts["whole", "talk"].id, 1)
    for machine in ("west", "north", "east", "north"):
        fleet.fill(machine)
    rows = same_as_whole(fleet)
    assert [(row.calls, row.forked, row.parent_seq) for row in rows] == [(2, True, 1), (3, False, None)]


def test_agents_of_one_kind_stay_apart_and_come_from_the_whole(fleet):
    """Sub-agents by their own ids, over machines; they came from the conversation, by its number for the call."""
    talk_by_id(fleet, ["west", "east", "west"])
    for agent, start in (("a1", 300), ("a2", 330)):
        for number, machine in enumerate(("north", "east")):
            parent = fleet.parts[machine if machine == "east" else "west", "talk"].id
            about = {"agent": "Explore", "parent_session": parent, "parent_seq": 1}
            if machine == "north":
                about.pop("parent_seq")
            headers = {"X-Claude-Code-Agent-Id": agent, "X-Claude-Code-Agent-Type": "Explore"}
            whole = ("whole", agent) not in fleet.parts
            talk_by_id(
                *(fleet, [machine], agent),
                start=start + number * 60,
                about=about,
                headers=headers,
            )
            if whole:
                told = {"parent_session": fleet.parts["whole", "talk"].id, "from_seq": 2}
                path = fleet.parts["whole", agent]._path
                lines = path.read_text().splitlines()
                start_line = json.loads(lines[0]) | {"parent_session": told["parent_session"], "parent_seq": 2}
                path.write_text("\n".join([json.dumps(start_line), *lines[1:], ""]))
    for machine in MACHINES:
        fleet.fill(machine)
    rows = same_as_whole(fleet)
    assert [(row.calls, row.agent) for row in rows] == [(2, "Explore"), (2, "Explore"), (3, "")]
    assert {row.parent for row in rows if row.agent} == {rows[-1].id}


def test_what_failed_and_was_sent_again_elsewhere_is_one(fleet):
    """The first call overloaded on one machine, the same again on the next."""
    history = [("user", "Where is the zebra kept?")]
    path, error = "/v1/chat/completions", {"error": {"message": "overloaded", "type": "server_error"}}
    fleet.call("talk", "east", 0, path, chat(history), error, ANN, status=529)
    fleet.call("talk", "west", 3, path, chat(history), completion("In the zoo, where it has been all the time."), ANN)
    fleet.fill("west")
    fleet.fill("east")
    assert [row.calls for row in same_as_whole(fleet)] == [2]


@pytest.mark.parametrize("kind", TALKS)
def test_a_part_that_goes_leaves_the_rest_where_it_is(fleet, kind):
    """At once, for machines that are gone read nothing again. Who does read again finds nothing to add; then it comes back."""
    TALKS[kind](fleet, ROUND)
    for machine in MACHINES:
        fleet.fill(machine)
    file, gone = fleet.parts["west", "talk"]._path, fleet.parts["west", "talk"].id
    with open_shared(fleet.shared) as index:
        stay = [call for call in index.calls_of(gone) if not call.request[0].startswith("west/")]
    lines = file.read_bytes()
    file.unlink()
    for machine in ("west", "east", "north"):
        fleet.fill(machine)
        with open_shared(fleet.shared) as index:
            (row,) = index.sessions(Filter(), None)
            calls = index.calls_of(row.id)
            assert [call.id for call in calls] == [call.id for call in stay]
            assert [call.seq for call in calls] == list(range(1, len(stay) + 1))
            assert (row.calls, row.started_ns) == (len(stay), stay[0].started_ns)
            assert row.last_ns == max(call.ended_ns for call in stay)
            assert sum(one.calls for span in figures.sums(index, EDGES, Wanted()) for one in span.values()) == len(stay)
            assert row.id == min(fleet.parts[name, "talk"].id for name in ("east", "north"))
            assert {one.partition("/")[0] for one in row.files} == {"east", "north"}
            assert index.calls_of(gone) == []
            assert list(index.rows("SELECT calls FROM sessions", {})) == [(len(stay),)]
            assert {hit.call for hit in index.search("zebra", Filter(), 500)} <= {call.id for call in stay}
    file.write_bytes(lines)
    fleet.fill("west")
    same_as_whole(fleet, late=True)
