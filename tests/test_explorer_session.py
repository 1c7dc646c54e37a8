"""A conversation in the explorer: every turn once, of every API, from whatever clients make of their histories."""

import base64
import json
import random
import re
from collections import Counter
from hashlib import sha256
from types import SimpleNamespace

import pytest
from aiohttp.test_utils import TestClient, TestServer

from llm_proxy.explorer import guard, turns
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.pages import session as page
from llm_proxy.explorer.reading import Calls
from llm_proxy.explorer.site import application
from llm_proxy.explorer.story import Story, Window
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import open_index
from llm_proxy.index.record import Record
from scripts import make_conversation
from tests.explored import SECOND, Claude, Maker, Session, png, record, result, text, thinking, use

NOW = 1_795_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return record(tmp_path_factory.mktemp("record"), NOW)


class Scene:
    """Sessions written by a test, and how the explorer tells them."""

    def __init__(self, folder):
        self.logs, self.index = folder / "logs", folder / "index.db"
        self.maker = Maker(self.logs, NOW * SECOND)

    def session(self, provider="anthropic", upstream="api.anthropic.com", **about):
        return Session(self.maker, f"s{self.maker.number()}", provider, upstream, NOW * SECOND, **about)

    def story(self, session, branch=0):
        indexer = Indexer(self.index, self.logs)
        indexer.catch_up_all()
        indexer.close()
        with open_index(self.index) as index:
            story = Story(Record(index, self.logs), session.id, branch)
            told = page.made.turns(story, Window(1, len(story.steps), len(story.steps)))
            return SimpleNamespace(story=story, steps=story.steps, turns=told)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def said(blocks):
    """What stands in some blocks, in a few words each."""
    told = []
    for block in blocks:
        if block.tool:
            answer = block.tool.result
            told.append(f"{block.tool.name}:{answer.said.text if answer else None}")
        elif block.result:
            told.append(f"result:{block.result.said.text}")
        elif block.kind == "you":
            told.append(said(block.blocks))
        else:
            told.append(block.said.text if block.said else block.kind)
    return told


def story_of(made, name):
    with open_index(made.index) as index:
        story = Story(Record(index, made.logs), made.sessions[name], 0)
        return story, page.made.turns(story, Window(1, len(story.steps), len(story.steps)))


# --- each turn once


def test_an_agents_conversation_is_told_once(made):
    """Prompts, thinking, tools with their results, an image and a retry stand where they were, however often sent."""
    story, told = story_of(made, "ledger")
    assert len(story.rows) == 9 and [turn.number for turn in told] == list(range(1, 9))
    assert said(told[0].blocks)[2:] == [
        "Grep:tests/test_reconcile.py:41:def test_reconcile_groups_match(book):",
        told[0].blocks[3].tool.name + ":" + told[0].blocks[3].tool.result.said.text,
    ]
    assert [len(turn.prompts) for turn in told] == [2, 0, 0, 0, 0, 2, 0, 0]
    assert told[0].prompts[0].kind == "added" and told[0].prompts[0].name == "system-reminder"
    picture = told[5].prompts[1].picture
    assert (picture.type, picture.width, picture.height) == ("image/png", 24, 16)
    assert picture.sha256 == sha256(png()).hexdigest()
    failed = told[5].notes[0]
    assert failed.kind == "err" and failed.head == "529 overloaded_error" and "tried again 2.00 s later" in failed.words
    assert told[5].blocks[1].tool.result.word == "exit 1" and told[5].blocks[1].tool.open
    edit = told[3].blocks[1].tool
    assert (edit.added, edit.removed) == (1, 1) and edit.path == "reconcile.py"


def test_the_head_counts_what_the_record_has(made):
    """Figures are sums over the calls and the sub-agents' calls; the classes of tokens come to the cost."""
    with open_index(made.index) as index:
        asked = page.Asked(
            "",
            {"from": 0, "view": "", "branch": 0, "fmt": "html", "call": "", "q": ""},
            {"id": made.sessions["ledger"]},
        )
        view = page.view(Record(index, made.logs), asked)
    figures = view.figures
    assert (figures.calls, figures.turns, figures.sub_agent_calls, figures.failed, figures.beside) == (11, 8, 2, 1, 0)
    trouble = figures.trouble
    assert (trouble.misses, trouble.errors, trouble.failed_tools, trouble.cut) == (2, 1, 1, 0)
    assert abs(sum(one.usd for one in view.money) - figures.cost.equivalent) < figures.cost.equivalent / 100
    assert [row.label for row in view.outline] == ["", "", "+2", "", "miss", "529", "miss", ""]
    assert view.title.startswith("tests/test_reconcile.py fails about one run in twelve")


def test_trouble_stands_where_it_happened(made):
    """A gap, misses with their causes, the fork and the sub-agent are in the turns they belong to."""
    _, told = story_of(made, "ledger")
    assert [note.head for note in told[4].before] == ["15m 00s later"]
    assert "expired" in told[4].notes[0].words and told[4].notes[0].lost > 0
    assert "mcp__ledger__balance" in told[6].notes[0].words
    (fork,) = [note for note in told[3].notes if note.session]
    assert fork.session == made.sessions["ledger-fork"] and "Rather use a dict" in fork.words
    (child,) = told[2].threads
    assert child.session == made.sessions["ledger-child"] and child.agent == "Explore" and len(child.lines) == 2


@pytest.mark.parametrize(
    ("name", "prompts", "answers"),
    [
        ("chat", ["What is the weather in Graz and in Wien?"], ["weather:Graz: 3 °C", "weather:Wien: 3 °C"]),
        ("gemini", ["Summarise these notes", "picture"], ["Three notes, all about rain."]),
        ("ollama", ["Is this local?"], ["Yes, it is."]),
        ("bedrock", ["Which rows are wrong?"], ["Rows 3 and 9."]),
    ],
)
def test_apis_are_told_alike(made, name, prompts, answers):
    """What was asked and answered, with results at their calls, whatever the API."""
    _, told = story_of(made, name)
    assert said(told[0].prompts) == prompts and said(told[0].blocks) == answers


def test_responses_with_their_histories(made):
    """Codex sends its items again and drops the thoughts: each stands once."""
    _, told = story_of(made, "responses")
    assert said(told[0].blocks) == ["**Looking for the parser**", "shell:Cargo.toml\nsrc\n"]
    assert [len(turn.prompts) for turn in told] == [1, 0]


def test_any_part_of_a_conversation_is_the_same_as_the_whole(tmp_path):
    """Of many turns only the last request is read; what it gives for each turn is what its own request gives."""
    whole = make_conversation.make(tmp_path / "logs", turns=50, size=60_000, end=NOW)
    indexer = Indexer(tmp_path / "index.db", tmp_path / "logs")
    indexer.catch_up_all()
    indexer.close()
    with open_index(tmp_path / "index.db") as index:
        story = Story(Record(index, tmp_path / "logs"), whole["session"], 0)
    steps = story.steps
    assert len(steps) == 50
    calls = Calls(story.record)
    asked = Counter()
    reader = turns.Reader(
        lambda call: asked.update([call.id]) or calls.asked(call), calls.rounds, lambda call, answer: ()
    )
    together = turns.said_in(steps, 1, 40, reader)
    assert len(asked) == 1, "one request holds them all"
    alone = {}
    for number in range(1, 41):
        alone |= turns.said_in(steps, number, number, calls.reader)
    assert together == alone and all(not one.missing for one in together.values())
    texts = Counter(text for one in together.values() for text in said(one.prompts + one.blocks))
    assert max(texts.values()) == 1


# --- what clients do with histories


def test_a_retry_is_one_turn(scene):
    """The same request after errors, twice, and after an answer that broke off: one turn, with its attempts."""
    session = scene.session()
    agent = Claude(session)
    agent.fails("Go", 529, "overloaded_error", "Overloaded")
    agent.fails("Go", 500, "api_error", "Oops")
    agent.ask("Go", [text("Gone.")])
    told = scene.story(session)
    (turn,) = told.turns
    assert [note.head for note in turn.notes] == ["529 overloaded_error", "500 api_error"]
    assert "failed again" in turn.notes[0].words and "got this answer" in turn.notes[1].words
    assert said(turn.prompts) == ["Go"] and said(turn.blocks) == ["Gone."]


def test_what_a_provider_says_ends_in_one_full_stop(scene):
    """Its own full stop is not followed by ours, nor by a semicolon."""
    session = scene.session()
    agent = Claude(session)
    agent.fails("Go", 429, "rate_limit_error", "Slow down.")
    agent.fails("Go", 429, "rate_limit_error", "Slow down.")
    (turn,) = scene.story(session).turns
    first, last = (note.words for note in turn.notes)
    assert "Slow down; the client tried again" in first and last.endswith("Slow down.")


def test_a_request_that_is_changed_when_it_is_sent_again_is_still_one_turn(scene):
    """Clients add a reminder or a picture to what they repeat: the attempts are told in their order."""
    session = scene.session()
    agent = Claude(session)
    for status in (529, 500):
        agent.fails([text("Go"), text(f"<n>{status}</n>")], status, "error", "no")
    agent.ask([text("Go"), text("<n>last</n>")], [text("Gone.")])
    (turn,) = scene.story(session).turns
    assert [note.head for note in turn.notes] == ["529 error", "500 error"] and said(turn.blocks) == ["Gone."]
    agent.fails([text("On"), text("<n>1</n>")], 529, "error", "no")
    agent.fails([text("On"), text("<n>2</n>")], 500, "error", "no")
    agent.ask([text("On"), text("<n>3</n>")], [text("Still.")])
    _, last = scene.story(session).turns
    assert [note.head for note in last.notes] == ["529 error", "500 error"]


def test_an_interrupted_answer_stands_where_it_was(scene):
    """The client left in the middle and asked otherwise: what was said is shown, and no branch is made of it."""
    session = scene.session()
    agent = Claude(session)
    agent.ask("One", [text("First.")])
    before = agent.said
    agent.ask("Two", [text("Secon")], ending="client_gone")
    agent.said = before
    agent.ask("Rather three", [text("Third.")])
    told = scene.story(session)
    assert [said(turn.prompts + turn.blocks) for turn in told.turns] == [
        ["One", "First."],
        ["Two", "Secon"],
        ["Rather three", "Third."],
    ]
    assert told.turns[1].notes[0].head == "cut: the client left" and not told.steps[2].forks


def test_a_rewound_conversation_has_branches(scene):
    """The way that went on last is shown; the other is a line where it parted, and can be opened."""
    session = scene.session()
    agent = Claude(session)
    agent.ask("Begin", [text("Begun.")])
    fork = agent.said
    agent.ask("Left", [text("On the left.")])
    agent.ask("Further left", [text("Far left.")])
    agent.said = fork
    agent.ask("Right", [text("On the right.")])
    told = scene.story(session)
    assert [said(turn.blocks) for turn in told.turns] == [["Begun."], ["On the right."]]
    (note,) = told.turns[1].before
    assert (note.head, note.branch) == ("Branch", 2) and "Left" in note.words and "2 calls" in note.words
    other = scene.story(session, branch=2)
    assert [said(turn.blocks) for turn in other.turns] == [["Begun."], ["On the left."], ["Far left."]]
    with pytest.raises(page.BadValue):
        scene.story(session, branch=77)


def test_a_compacted_history_is_said(scene):
    """A request that begins anew with a summary follows the conversation, and a line says so."""
    session = scene.session()
    agent = Claude(session)
    agent.ask("Begin", [text("Begun.")])
    agent.ask("More", [text("Much more.")])
    agent.said = []
    agent.ask("Summary: it was begun. Go on", [text("Going on.")])
    agent.ask("And on", [text("Still going.")])
    told = scene.story(session)
    assert [note.head for turn in told.turns for note in turn.before] == ["History rewritten"]
    assert [said(turn.prompts) for turn in told.turns] == [
        ["Begin"],
        ["More"],
        ["Summary: it was begun. Go on"],
        ["And on"],
    ]


def test_an_edited_history_is_said(scene):
    """Clients clear old results of tools: the conversation is one all the same, and the line says what happened."""
    session = scene.session()
    agent = Claude(session)
    agent.ask("Begin", [use("a", "Bash", command="ls")])
    agent.ask([result("a", "a long list")], [use("b", "Bash", command="cat")])
    agent.said = [agent.said[0], agent.said[1], {"role": "user", "content": [result("a", "[cleared]")]}, agent.said[3]]
    agent.ask([result("b", "text")], [text("Read.")])
    agent.ask("Go on", [text("On.")])
    told = scene.story(session)
    assert [said(turn.blocks) for turn in told.turns] == [["Bash:a long list"], ["Bash:text"], ["Read."], ["On."]]
    assert [[note.head for note in turn.before] for turn in told.turns] == [[], [], ["History edited"], []]


def test_a_call_on_another_branch_is_found(scene):
    """A search leads to a call that the conversation as it went on does not have: its branch is shown."""
    session = scene.session()
    agent = Claude(session)
    agent.ask("Begin", [text("Begun.")])
    fork = agent.said
    call = agent.ask("Left", [text("On the left.")])
    agent.said = fork
    agent.ask("Right", [text("On the right.")])
    scene.story(session)
    with open_index(scene.index) as index:
        story = Story(Record(index, scene.logs), session.id, 0, call)
    assert story.shape.branch == 2 and [step.gist.words for step in story.steps] == ["Begun.", "On the left."]


def test_instructions_that_change_are_said(scene):
    """A system prompt that is not what it was is a line in the flow."""
    session = scene.session()
    agent = Claude(session)
    agent.ask("Begin", [text("Begun.")])
    agent.system = "You are somebody else."
    agent.ask("More", [text("Much more.")])
    assert [note.head for note in scene.story(session).turns[1].before] == ["Instructions changed"]


def test_what_goes_on_beside_is_no_turn(scene):
    """A call without tools that shares nothing with the conversation stands in the turn in which it was made."""
    session = scene.session()
    agent = Claude(session)
    agent.ask("Begin", [use("a", "Bash", command="ls")])
    side = Claude(session, "claude-haiku-4-5", system="Write a title.")
    side.tools = []
    side.ask("Begin, as a title", [text("Beginnings")])
    agent.ask([result("a", "file")], [text("One file.")])
    told = scene.story(session)
    assert [said(turn.blocks) for turn in told.turns] == [["Bash:file"], ["One file."]]
    (beside,) = told.turns[0].threads
    assert beside.session == "" and beside.lines[0].words == "Beginnings" and beside.models == ("claude-haiku-4-5",)


def test_parallel_tools_without_ids(scene):
    """Gemini names no call: results go to the calls of their names, in order."""
    session = scene.session("gemini", "generativelanguage.googleapis.com")

    def call(contents, parts):
        answer = {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]}
        session.call("/v1beta/models/gemini-2.5-flash:generateContent", {"contents": contents}, answer)
        return [*contents, {"role": "model", "parts": parts}]

    asks = [{"functionCall": {"name": "look", "args": {"at": place}}} for place in "ab"]
    said_ = call([{"role": "user", "parts": [{"text": "Look"}]}], asks)
    given = [{"functionResponse": {"name": "look", "response": {"output": found}}} for found in ("one", "two")]
    call([*said_, {"role": "user", "parts": given}], [{"text": "Both."}])
    told = scene.story(session)
    assert [said(turn.blocks) for turn in told.turns] == [["look:one", "look:two"], ["Both."]]
    assert not told.turns[1].prompts


def responses(id, text_, **more):
    item = {"type": "message", "id": f"m{id}", "role": "assistant", "content": [{"type": "output_text", "text": text_}]}
    return {"id": id, "object": "response", "status": "completed", "model": "gpt-5.2", "output": [item]} | more


def test_answers_that_are_only_named(scene):
    """With previous_response_id a request holds what is new; the conversation is one all the same, also forked."""
    session = scene.session("openai", "api.openai.com")
    for id, before, words in (("r1", None, "One"), ("r2", "r1", "Two"), ("r3", "r1", "Other"), ("r4", "r3", "More")):
        body = {"model": "gpt-5.2", "input": words} | ({"previous_response_id": before} if before else {})
        session.call("/v1/responses", body, responses(id, f"{words}!"))
    told = scene.story(session)
    assert [said(turn.prompts + turn.blocks) for turn in told.turns] == [
        ["One", "One!"],
        ["Other", "Other!"],
        ["More", "More!"],
    ]
    assert told.turns[1].before[0].branch == 2


def test_a_websocket_has_turns_of_its_own(scene):
    """Several requests and answers over one connection stand in their order in its one call."""
    session = scene.session("openai", "api.openai.com")
    messages = []
    call = {"type": "function_call", "id": "f1", "call_id": "c1", "name": "ls", "arguments": "{}"}
    rounds = (
        ({"input": [{"role": "user", "content": "List"}]}, responses("w1", "", output=[call])),
        (
            {
                "previous_response_id": "w1",
                "input": [{"type": "function_call_output", "call_id": "c1", "output": "a b"}],
            },
            responses("w2", "Two files."),
        ),
        ({"previous_response_id": "w2", "input": [{"role": "user", "content": "Sure?"}]}, responses("w3", "Yes.")),
    )
    for asked, answer in rounds:
        create = {"type": "response.create", "model": "gpt-5.2"} | asked
        messages.append({"from": "client", "type": "text", "raw": json.dumps(create), "ts": "", "delta_ms": 0})
        done = {"type": "response.completed", "response": answer}
        messages.append({"from": "server", "type": "text", "raw": json.dumps(done), "ts": "", "delta_ms": 1})
    socket = {"messages": messages, "client_size": 1, "server_size": 1}
    session.call("/v1/responses", None, method="GET", status=101, headers={"Upgrade": "websocket"}, websocket=socket)
    (turn,) = scene.story(session).turns
    assert said(turn.prompts) == ["List"]
    assert said(turn.blocks) == ["ls:a b", "Two files.", ["Sure?"], "Yes."]


def test_several_choices_are_all_shown(scene):
    """An answer of which the client wanted two is two answers."""
    session = scene.session("openai", "api.openai.com")
    choices = [
        {"index": n, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        for n, said in enumerate("ab")
    ]
    body = {"model": "gpt-4.1", "n": 2, "messages": [{"role": "user", "content": "Letters"}]}
    session.call("/v1/chat/completions", body, {"model": "gpt-4.1", "choices": choices})
    (turn,) = scene.story(session).turns
    assert said(turn.blocks) == ["a", "choice", "b"]


def test_sub_agents_of_sub_agents(scene):
    """Two levels are shown within the turn, below that a line with the link."""
    parent = scene.session()
    agent = Claude(parent)
    agent.ask("Begin", [use("a", "Task", prompt="Look")])
    last = parent
    for _ in range(3):
        child = scene.session(parent_session=last.id, agent="Explore")
        child.now = parent.now - SECOND
        Claude(child).ask("Look", [use("b", "Task", prompt="Look")])
        last = child
    (first,) = scene.story(parent).turns[0].threads
    (second,) = first.threads
    (third,) = second.threads
    assert not second.deep and third.deep and not third.lines and third.session == last.id
    figures = page.made.figures(scene.story(parent).story)
    assert (figures.calls, figures.sub_agent_calls, figures.left_out) == (3, 2, 1)


def test_a_log_that_has_gone_leaves_what_the_index_knows(scene):
    """Figures, outline and chart stay; the turns say that their log cannot be read."""
    session = scene.session()
    Claude(session).ask("Begin", [text("Begun.")])
    scene.story(session)
    path = next(scene.logs.rglob("*.jsonl"))
    kept = path.rename(path.with_suffix(".away"))
    with open_index(scene.index) as index:
        story = Story(Record(index, scene.logs), session.id, 0)
        page.made._SAID._values.clear()
        (turn,) = page.made.turns(story, Window(1, 1, 1))
    kept.rename(path)
    page.made._SAID._values.clear()
    assert turn.missing and not turn.blocks and turn.usage is not None


def test_any_order_of_clients_is_told_without_loss(scene):
    """Whatever histories a client sends, every call that asks is in the conversation, in a branch or beside it."""
    chance = random.Random(7)
    session = scene.session()
    agent = Claude(session)
    kept = [agent.said]
    for number in range(60):
        agent.said = chance.choice(kept[-4:])
        if chance.random() < 0.2:
            agent.fails(f"Ask {number}", 529, "overloaded_error", "Overloaded")
        agent.ask(f"Ask {number}", [text(f"Answer {number}")], ending=chance.choice(["complete"] * 5 + ["client_gone"]))
        kept.append(agent.said)
    told = scene.story(session)
    seen = set()
    branches = [0]
    while branches:
        one = scene.story(session, branches.pop()) if len(seen) else told
        for step in one.steps:
            new = {call.id for call in step.calls} | {
                call.id for aside in step.asides for beside in aside.steps for call in beside.calls
            }
            branches += [fork.seq for fork in step.forks] if not new <= seen else []
            seen |= new
    assert seen == set(session.calls)


# --- over HTTP


@pytest.fixture
async def site(made, tmp_path):
    secret = guard.new_secret(tmp_path)
    options = Options(index=str(made.index), logs=str(made.logs), state=str(tmp_path))
    async with TestClient(TestServer(application(options))) as client:

        async def get(path, status=200, **headers):
            answer = await client.get(
                f"/llm-proxy{path}", headers=guard.bearer(secret) | headers, allow_redirects=False
            )
            assert answer.status == status, await answer.text()
            return answer

        yield get


async def test_pages_of_all_sessions(site, made):
    """Every session has its page, its table of calls, its fragment and its JSON; none holds another's markup."""
    for id in made.sessions.values():
        for path in (f"/sessions/{id}", f"/sessions/{id}?view=calls", f"/sessions/{id}?utc=1"):
            text_ = await (await site(path)).text()
            assert not re.search(r"<script>window|<svg/?onload|<img src=x|<iframe|javascript:window[^<]*\"", text_), (
                path
            )
            assert " style=" not in text_.replace("&lt;", "")
        told = await (await site(f"/api/sessions/{id}")).json()
        assert told["session"]["id"] == id


async def test_a_session_without_conversation_shows_its_calls(site, tmp_path, made):
    """Calls that ask for no words are a table; the choice of a view can be taken."""
    scene = Scene(tmp_path / "scene")
    session = scene.session("openai", "api.openai.com")
    session.call("/v1/models", None, {"data": []}, method="GET")
    session.call("/v1/embeddings", {"model": "e", "input": "rain"}, {"data": [], "usage": {"prompt_tokens": 1}})
    assert not scene.story(session).steps
    state = tmp_path / "state"
    state.mkdir()
    secret = guard.new_secret(state)
    options = Options(index=str(scene.index), logs=str(scene.logs), state=str(state))
    async with TestClient(TestServer(application(options))) as client:
        answer = await client.get(f"/llm-proxy/sessions/{session.id}", headers=guard.bearer(secret))
        told = await answer.text()
    assert answer.status == 200 and "/v1/embeddings" in told and 'class="conv"' not in told


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/sessions/nothing", 404),
        ("/sessions/{ledger}?from=0", 400),
        ("/sessions/{ledger}?view=pictures", 400),
        ("/sessions/{ledger}?branch=900", 400),
        ("/sessions/{ledger}?call=nothing", 404),
        ("/sessions/{ledger}/turns?from=99", 400),
        ("/sessions/{ledger}/turns?n=1000", 400),
        ("/sessions/{ledger}/part?part=system", 404),
        ("/sessions/{ledger}/part?call=../../etc/passwd&part=system", 404),
        ("/sessions/nothing/turns", 404),
        ("/sessions/nothing/export", 404),
        ("/sessions/{ledger}/export?fmt=exe", 400),
        ("/blobs/zz?session={ledger}", 400),
        ("/blobs/" + "0" * 64 + "?session={ledger}", 404),
        ("/session/{ledger}", 308),
        ("/sessions/{ledger}?fmt=md", 307),
    ],
)
async def test_what_is_not_there_is_said(site, made, path, status):
    """Ids are looked up exactly, and values by their rules; nothing is ever made a path of."""
    answer = await site(path.format(**made.sessions), status)
    if status in (307, 308):
        assert answer.headers["Location"].startswith(f"/llm-proxy/sessions/{made.sessions['ledger']}")


async def test_all_turns_come_by_fragments(site, made):
    """The page's first turns and the fragments behind them are all turns, each once, and the last leads nowhere."""
    id = made.sessions["ledger"]
    found, start = [], 1
    while start:
        text_ = await (await site(f"/sessions/{id}/turns?from={start}&n=3")).text()
        found += re.findall(r'id="(t\d+)"', text_)
        more = re.search(r"data-turns=\"[^\"]*from=(\d+)", text_)
        start = int(more[1]) if more else 0
    assert found == [f"t{number}" for number in range(1, 9)]


async def test_what_was_not_sent_is_fetched(site, made):
    """A long result stands cut in the page, and whole behind the reference that the page gives."""
    id = made.sessions["ledger"]
    shown = await (await site(f"/sessions/{id}")).text()
    assert "run 39:" in shown and "run 40:" not in shown
    (href,) = re.findall(r'class="cut" href="/llm-proxy([^"]+)" data-more>show all 60', shown)
    whole = await (await site(href.replace("&amp;", "&"), **{"Sec-Fetch-Dest": "empty"})).text()
    assert "run 0:" in whole and "run 59:" in whole and "<html" not in whole
    alone = await (await site(href.replace("&amp;", "&"))).text()
    assert "run 59:" in alone and "<html" in alone
    call = made.calls["ledger"][0]
    assert "You are an interactive agent" in await (await site(f"/sessions/{id}/part?call={call}&part=system")).text()
    assert "WebFetch" in await (await site(f"/sessions/{id}/part?call={call}&part=tools")).text()
    await site(f"/sessions/{made.sessions['chat']}/part?call={call}&part=tools", 404)


async def test_a_search_leads_to_the_words(site, made):
    """The turn of the call is shown, what holds the words is open, and they are marked."""
    id, call = made.sessions["ledger"], made.calls["ledger"][7]
    shown = await (await site(f"/sessions/{id}?call={call}&q=ImportError+project:ledger")).text()
    assert re.search(rf'class="turn [^"]*found" id="t6"[^>]* data-call="{made.calls["ledger"][6]}"', shown) or (
        f'data-call="{call}"' in shown
    )
    assert "<mark>ImportError</mark>" in shown and "<mark>project" not in shown
    assert re.search(r'<details class="tool" open><summary class="car"><b>Bash</b>', shown)


async def test_a_search_finds_what_a_page_would_not_send(site, made):
    """The words stand behind the lines that are shown at first: the result is there as far as they."""
    id, call = made.sessions["ledger"], made.calls["ledger"][2]
    shown = await (await site(f"/sessions/{id}?call={call}&q=%22run+55%22")).text()
    assert "<mark>run 55</mark>" in shown
    assert "run 55" not in await (await site(f"/sessions/{id}?call={made.calls['ledger'][0]}&q=%22run+55%22")).text()


async def test_pictures_are_what_they_begin_as(site, made):
    """A recorded PNG is served as one and as nothing else; an SVG, whatever it is called, is not."""
    id, call = made.sessions["ledger"], made.calls["ledger"][6]
    digest = sha256(png()).hexdigest()
    shown = await (await site(f"/sessions/{id}")).text()
    assert f"/blobs/{digest}?" in shown
    answer = await site(f"/blobs/{digest}?session={id}&call={call}", **{"Sec-Fetch-Dest": "image"})
    assert await answer.read() == png() and answer.headers["Content-Type"] == "image/png"
    assert (
        answer.headers["X-Content-Type-Options"] == "nosniff" and "sandbox" in answer.headers["Content-Security-Policy"]
    )
    alone = await site(f"/blobs/{digest}?session={id}&call={call}")
    assert alone.headers["Content-Disposition"].startswith("attachment")
    await site(f"/blobs/{digest}?session={id}&call={made.calls['ledger'][0]}", 404)
    hostile = await (await site(f"/sessions/{made.sessions['hostile']}")).text()
    assert "/blobs/" not in hostile


@pytest.mark.parametrize("name", ["ledger", "chat", "responses", "gemini", "spent", "hostile", "live"])
async def test_markdown_export_has_each_message_once(site, made, name):
    """The download is the whole conversation; what was sent again does not stand there again."""
    answer = await site(f"/sessions/{made.sessions[name]}/export?fmt=md")
    told = (await answer.read()).decode()
    assert answer.headers["Content-Disposition"].endswith('.md"')
    _, turns_ = story_of(made, name)
    for turn in turns_:
        for block in turn.prompts:
            if block.kind == "text":
                assert told.count(block.said.text.strip()) >= 1
    if name == "ledger":
        assert told.count("I'll look at the test and reproduce the failure.") == 1
        assert told.count("deterministic. Don't just sort") == 2, "as the heading, and where it was said"


async def test_jsonl_export_has_every_call(site, made):
    """One object per call, in order."""
    answer = await site(f"/sessions/{made.sessions['ledger']}/export?fmt=jsonl")
    lines = (await answer.read()).decode().splitlines()
    assert len(lines) == 9 and all(isinstance(json.loads(line), dict) for line in lines)


def test_pictures_of_every_kind_are_found():
    """By their first bytes, in any provider's JSON, with slashes escaped or not; measured by their heads."""
    from llm_proxy.explorer import blobs

    gif = b"GIF89a" + (7).to_bytes(2, "little") + (5).to_bytes(2, "little") + b"\0" * 20
    jpeg = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffc0001108000a00140301") + b"\0" * 20
    webp = b"RIFF" + b"\x20\0\0\0" + b"WEBPVP8X" + b"\x0a\0\0\0" + b"\0" * 4 + b"\x0f\0\0" + b"\x07\0\0" + b"\0" * 8
    body = json.dumps(
        [
            {"data": base64.b64encode(png()).decode()},
            {"url": "data:image/gif;base64," + base64.b64encode(gif).decode()},
            {"text": 'he said "' + base64.b64encode(png()).decode() + '"'},
            {"data": base64.b64encode(b"<svg onload=x>").decode()},
            {"bytes": base64.b64encode(jpeg).decode().replace("/", "\\/")},
            {"data": base64.b64encode(webp).decode()},
        ]
    ).replace("\\\\/", "\\/")
    found = [(one.type, one.width, one.height) for one in blobs.pictures(body.encode())]
    assert found == [("image/png", 24, 16), ("image/gif", 7, 5), ("image/jpeg", 20, 10), ("image/webp", 16, 8)]
    assert blobs.picture(b"\x89PNG\r\n\x1a\n") == blobs.Blob("image/png", b"\x89PNG\r\n\x1a\n")


def test_thinking_is_cut_where_it_is_long(scene):
    """More than two kilobytes of thoughts are sent when they are opened."""
    session = scene.session()
    Claude(session).ask("Think", [thinking("hm " * 2000), text("Done.")])
    block = scene.story(session).turns[0].blocks[0]
    assert block.kind == "thinking" and 0 < len(block.said.text) <= turns.THINKING_CHARS and block.said.more > 3000


async def test_what_a_fork_shares_is_a_click_away(site, made):
    """The messages before the new one are fetched when they are asked for: each once, results at their calls."""
    id, (call,) = made.sessions["ledger-fork"], made.calls["ledger-fork"]
    shown = await (await site(f"/sessions/{id}")).text()
    assert "8 earlier messages" in shown and "look at the test and reproduce" not in shown
    told = await (await site(f"/sessions/{id}/part?call={call}&part=earlier")).text()
    assert told.count("look at the test and reproduce") == 1
    assert told.count("test_reconcile_groups_match(book)") == 1 and "Rather use a dict" not in told.split("<main")[1]
