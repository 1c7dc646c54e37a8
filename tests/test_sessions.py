"""Calls come into the right sessions: by ids, by answers they name, by messages they repeat; whatever is killed."""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.journal.frames import Kind
from llm_proxy.journal.reader import Reader
from llm_proxy.journal.writer import writer_lock
from llm_proxy.keeper.assemble import Assembler
from llm_proxy.keeper.assemble import Call as Assembled
from llm_proxy.keeper.options import Options
from llm_proxy.keeper.places import Item
from llm_proxy.keeper.settle import Recorder, Tally
from llm_proxy.keeper.store import Store, Turn
from llm_proxy.keeper.telling import Teller
from llm_proxy.records.exchange import Ending
from llm_proxy.sinks.log_files import Logs
from tests.journals import MS, WALL, Call, Journal
from tests.logpage import untold
from tests.test_keeper import Place, finish, until, wake

Message = dict[str, Any]
KEYS = {"ann": "X-Api-Key: sk-ant-...annn", "bob": "X-Api-Key: sk-ant-...bobb"}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


@dataclass
class Talk:
    """Makes calls one after the other. `rows` are (label, session, number in it) as they are to be."""

    calls: dict[str, Call] = field(default_factory=dict)
    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, session: str, call: Call) -> None:
        assert label not in self.calls
        self.numbers[session] = self.numbers.get(session, 0) + 1
        self.calls[label] = call
        self.rows[label] = session, self.numbers[session]

    @property
    def serial(self) -> int:
        return len(self.calls) + 1

    @property
    def wall(self) -> int:
        return WALL + self.serial * 1000 * MS  # a call takes 200

    def claude(
        self,
        label: str,
        session: str,
        messages: list[Message],
        answer: str,
        who: str = "ann",
        headers: Iterable[str] = (),
        system: str = "be brief",
        **more: Any,
    ) -> None:
        request = {"model": "claude-sonnet-4-5", "system": system, "max_tokens": 9, "messages": messages}
        reply = {
            "id": f"msg_{label}",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-5",
            "content": [{"type": "text", "text": answer}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 2},
        }
        raw = more.pop("raw", json.dumps(reply).encode())
        call = Call(
            self.serial,
            request=json.dumps(request).encode(),
            request_headers=[KEYS[who], "User-Agent: tool/1", *headers],
            answer=raw,
            **{"wall": self.wall} | more,
        )
        self.add(label, session, call)

    def chat(self, label: str, session: str, messages: list[Message], answer: str) -> None:
        request = {"model": "gpt-5", "messages": [{"role": "system", "content": f"you are {label}"}, *messages]}
        choice = {"index": 0, "message": said(answer), "finish_reason": "stop"}
        reply = {"id": f"chatcmpl-{label}", "model": "gpt-5", "object": "chat.completion", "choices": [choice]}
        self.openai(label, session, "/v1/chat/completions", request, reply)

    def response(
        self, label: str, session: str, asked: str, previous: str = "", headers: Iterable[str] = (), **more: Any
    ) -> None:
        request = {"model": "gpt-5", "input": asked} | (
            {"previous_response_id": f"resp_{previous}"} if previous else {}
        )
        reply = answer_of(label)
        self.openai(label, session, "/v1/responses", request | more, reply, headers)

    def openai(
        self, label: str, session: str, path: str, request: Message, reply: Message, headers: Iterable[str] = ()
    ) -> None:
        call = Call(
            self.serial,
            provider="openai",
            upstream="api.openai.com",
            target=path,
            request=json.dumps(request).encode(),
            answer=json.dumps(reply).encode(),
            request_headers=["Authorization: Bearer [masked sha256:0011aabb len:51]", *headers],
            wall=self.wall,
        )
        self.add(label, session, call)

    def fetch(self, label: str, session: str, of: str) -> None:
        reply = json.dumps(answer_of(of)).encode()
        call = Call(
            self.serial,
            provider="openai",
            upstream="api.openai.com",
            method="GET",
            target=f"/v1/responses/resp_{of}",
            request=b"",
            answer=reply,
            wall=self.wall,
        )
        self.add(label, session, call)


def answer_of(label: str) -> Message:
    text = {"type": "output_text", "text": f"answer to {label}", "annotations": []}
    return {
        "id": f"resp_{label}",
        "object": "response",
        "status": "completed",
        "model": "gpt-5",
        "output": [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]}],
        "usage": {"input_tokens": 5, "output_tokens": 4, "total_tokens": 9},
    }


def failing(status: str) -> dict[str, Any]:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    return {"status": status, "raw": json.dumps(error).encode()}


def interleaved() -> Talk:
    """Ten clients at once, of every kind that there is."""
    talk = Talk()
    hello = [user("hello"), said("hi"), user("list files")]
    claude_id = "X-Claude-Code-Session-Id: cc-1"
    agent = [claude_id, "X-Claude-Code-Agent-Id: ag-1", "X-Claude-Code-Agent-Type: Explore"]
    inner = [claude_id, "X-Claude-Code-Agent-Id: ag-2", "X-Claude-Code-Parent-Agent-Id: ag-1"]
    codex, thread = ["session-id: cx-1", "thread-id: cx-1"], ["session-id: cx-1", "thread-id: th-2"]

    # two clients that begin alike, one that writes titles, one with ids of its own
    talk.claude("ann 1", "ann", hello[:1], "hi")
    talk.claude("bob 1", "bob", hello[:1], "hi", who="bob")
    talk.claude("title", "title", [user("write a title for: hello")], "Greeting")
    talk.claude("cc 1", "cc", hello[:1], "hi", headers=[claude_id])
    talk.claude("ann 2", "ann", hello, "a.txt")
    talk.response("r 1", "r", "first")
    talk.claude("cc 2", "cc", hello, "a.txt", headers=[claude_id], system="another")
    talk.claude("bob 2", "bob", hello, "a.txt", who="bob")
    talk.chat("chat 1", "chat", [user("sum 1 2")], "3")
    # sub-agents
    talk.claude("agent 1", "agent", [user("look around")], "done", headers=agent)
    talk.response("r 2", "r", "second", "r 1")
    talk.claude("inner 1", "inner", [user("look deeper")], "done", headers=inner)
    talk.response("cx 1", "cx", "go", headers=codex)
    talk.response("thread 1", "thread", "go there", headers=thread)
    talk.claude("agent 2", "agent", [user("look again")], "done", headers=agent)
    # the system prompt may change, white space and the answer's thinking may go
    long = [*hello, said(" a.txt\n"), user("thanks")]
    talk.claude("ann 3", "ann", long, "welcome", system="today is another day")
    talk.chat("chat 2", "chat", [user("sum 1 2"), said("3"), user("and 3")], "6")
    # forks: from the first answer, from the middle, from a fork
    talk.claude("ann fork 1", "ann fork", [*hello[:2], user("something else")], "well")
    talk.claude("ann 4", "ann", [*long, said("welcome"), user("more")], "no")
    talk.claude("ann fork 2", "ann fork", [*hello[:2], user("something else"), said("well"), user("go on")], "on")
    talk.claude(
        "ann fork fork 1", "ann fork fork", [*hello[:2], user("something else"), said("well"), user("no")], "ok"
    )
    talk.response("r fork 1", "r fork", "another second", "r 1")
    talk.response("r 3", "r", "third", "r 2")
    talk.response("r fork 2", "r fork", "another third", "r fork 1")
    talk.response("r 4", "r", "fourth", "r 3")
    # fetched and fetched again
    talk.fetch("poll 1", "r fork", "r fork 2")
    talk.fetch("poll 2", "r", "r 4")
    # failures, and what comes after them
    talk.claude("bob 3", "bob", [*hello, said("a.txt"), user("delete it")], "", who="bob", **failing("529 Overloaded"))
    talk.claude("bob 4", "bob", [*hello, said("a.txt"), user("delete it")], "gone", who="bob")
    talk.claude("new 1", "new", [user("brand new")], "", **failing("429 Too Many Requests"))
    talk.claude("new 2", "new", [user("brand new")], "", ending=Ending.UPSTREAM_FAILED, raw=b"")
    talk.claude("other new 1", "other new", [user("brand new")], "yes", who="bob")
    talk.claude("new 3", "new", [user("brand new")], "yes")
    talk.claude("new again 1", "new again", [user("brand new")], "yes")
    talk.claude("new again 2", "new again", [user("brand new"), said("yes"), user("and")], "so")
    talk.claude("new 4", "new", [user("brand new"), said("yes"), user("and")], "so")
    # a failed request in a fork stays there
    talk.claude("bob fork 1", "bob fork", [*hello[:2], user("hm")], "", who="bob", **failing("500 Oh"))
    talk.claude("bob fork 2", "bob fork", [*hello[:2], user("hm")], "mh", who="bob")
    talk.claude(
        "bob 5", "bob", [*hello, said("a.txt"), user("delete it"), said("gone"), user("good")], "yes", who="bob"
    )
    # requests that share what nobody answered
    talk.claude("shots 1", "shots", [user("a"), said("b"), user("c")], "d")
    talk.claude("other shots 1", "other shots", [user("a"), said("b"), user("e")], "f")
    talk.claude("cc 3", "cc", [user("anything")], "at all", headers=[claude_id])
    talk.response("cx 2", "cx", "on", "cx 1", headers=codex)
    talk.response("thread 2", "thread", "on there", headers=thread)
    talk.chat("chat 3", "chat", [user("sum 1 2"), said("3"), user("and 3"), said("6"), user("x")], "y")
    talk.chat("chat fork 1", "chat fork", [user("sum 1 2"), said("3"), user("and 4")], "7")
    return talk


# session -> (the session it came from, the last call in common, agent)
PARENTS = {
    "agent": ("cc", None, "Explore"),
    "inner": ("agent", None, "ag-2"),
    "thread": ("cx", None, "th-2"),
    "ann fork": ("ann", 1, None),
    "ann fork fork": ("ann fork", 1, None),
    "r fork": ("r", 1, None),
    "bob fork": ("bob", 1, None),
    "chat fork": ("chat", 1, None),
}


def assert_grouped(place: Place, talk: Talk, parents: dict[str, tuple[str, int | None, str | None]]) -> None:
    """Each call's two halves stand in its session, once, under its number; each session begins as it should."""
    place.assert_told_once(list(talk.calls.values()))
    entries = place.entries()
    assert [field for entry in entries for field in untold(entry)] == []
    seats = {entry["_meta"]["request_id"]: entry for entry in entries if "seq" in entry}  # type: ignore[index]
    names: dict[str, str] = {}
    found = {}
    for label, call in talk.calls.items():
        entry = seats[str(call.id)]
        session = str(entry["_meta"]["session"])  # type: ignore[index]
        found[label] = names.setdefault(session, talk.rows[label][0]), entry["seq"]
    assert found == talk.rows
    assert len(set(names.values())) == len(names)
    starts = [entry for entry in entries if entry["type"] == "session_start"]
    told = {
        names[entry["_meta"]["session"]]: (  # type: ignore[index]
            names[entry["parent_session"]],
            entry.get("parent_seq"),
            entry.get("agent"),
        )
        for entry in starts
        if "parent_session" in entry
    }
    assert told == parents and len(starts) == len(names)
    forks = {
        names[entry["_meta"]["session"]]: (names[entry["parent_session"]], entry["from_seq"], None)  # type: ignore[index]
        for entry in entries
        if entry["type"] == "fork"
    }
    assert forks == {name: parent for name, parent in parents.items() if parent[1]}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_everybody_finds_their_session_in_one_go(place: Place) -> None:
    """All calls are in the journal before the keeper comes."""
    talk = interleaved()
    assert len(talk.calls) > 40
    run = Journal(place.journal)
    run.add(*(frame for call in talk.calls.values() for frame in call.frames))
    run.close()
    place.settle()
    assert_grouped(place, talk, PARENTS)


def test_everybody_finds_their_session_one_by_one(place: Place) -> None:
    """Requests are written while their calls are open; half way another keeper takes over."""
    talk = interleaved()
    run = Journal(place.journal)
    calls = list(talk.calls.values())
    with writer_lock(place.journal):
        for half in (calls[:23], calls[23:]):
            with place.running() as keeper:
                for call in half:
                    run.add(call.open, *([call.request] if call.request else []))
                    wake(keeper)
                    until(lambda: (str(call.id), "request") in place.told())  # noqa: B023
                    run.add(call.head, *call.response, call.end)
                    wake(keeper)
                    until(lambda: (str(call.id), "response") in place.told())  # noqa: B023
                keeper.terminate()
    run.close()
    assert_grouped(place, talk, PARENTS)


@pytest.mark.parametrize("seed", range(4))
def test_everybody_finds_their_session_over_kills(place: Place, seed: int) -> None:
    """Keepers die again and again, between any two steps."""
    chance = random.Random(seed)
    talk = interleaved()
    run = Journal(place.journal)
    frames = [frame for call in talk.calls.values() for frame in call.frames]
    with writer_lock(place.journal):
        while frames:
            count = chance.randint(1, 60)
            run.add(*frames[:count])
            frames = frames[count:]
            keeper = place.start()
            time.sleep(chance.random() * 0.6)
            keeper.kill()
            finish(keeper)
    run.close()
    place.settle()
    assert_grouped(place, talk, PARENTS)


def test_what_is_known_is_kept_for_a_time_only(tmp_path: Path) -> None:
    """Turns that nobody has come back to for a month are forgotten, and the oldest where there are too many."""
    store = Store(tmp_path / "sessions.db", "j")
    now = time.time_ns()
    ages = [0, 29, 31]
    turns = [Turn(bytes([age]), "s", 1, b"", 0, now - age * 86_400 * 10**9) for age in ages]
    store.save_turns(turns)
    store.purge()
    assert {turn.key for turn in store.turns([turn.key for turn in turns])} == {b"\0", b"\x1d"}
    store.close()


# --- calls that overlap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
def test_an_open_call_holds_no_place(place: Place, live: bool) -> None:
    """Two calls go on from the same answer at once: only what was answered is a way that was taken.

    It makes no difference whether the keeper was there to see them open.
    """
    talk = Talk()
    start = [user("hello"), said("hi")]
    talk.claude("1", "a", start[:1], "hi")
    talk.claude("left", "a", [*start, user("left")], "l")
    talk.claude("right", "a", [*start, user("right")], "r", wall=WALL + 2100 * MS)
    talk.claude("left on", "a", [*start, user("left"), said("l"), user("on")], "lo")
    talk.claude("right on", "a", [*start, user("right"), said("r"), user("on")], "ro")
    talk.claude("late", "fork", [*start, user("late")], "x")
    first, left, right, *rest = talk.calls.values()
    run = Journal(place.journal)
    with writer_lock(place.journal), place.running() as keeper:
        for number, frames in enumerate((first.frames, opened(left), opened(right), ended(left), ended(right)), 2):
            run.add(*frames)
            if live:
                wake(keeper)
                until(lambda: len(place.told()) >= number)  # noqa: B023
        run.add(*(frame for call in rest for frame in call.frames))
        wake(keeper)
        until(lambda: len(place.told()) == 12)
        keeper.terminate()
    run.close()
    assert_grouped(place, talk, {"fork": ("a", 1, None)})


def test_what_was_decided_stays_decided(place: Place) -> None:
    """A keeper is killed before it has settled a call; meanwhile another daemon's goes on from the same answer."""
    talk = Talk()
    start = [user("hello"), said("hi")]
    talk.claude("1", "a", start[:1], "hi")
    talk.claude("elsewhere", "a", [*start, user("elsewhere")], "e")
    talk.claude("here", "a", [*start, user("here")], "h")
    other = place.folder / "journal2"
    first, elsewhere, here = talk.calls.values()
    write(place.journal, first)
    place.settle()
    write(place.journal, here)
    decide(place)
    write(other, elsewhere)
    finish(place.start(other))
    place.settle()
    place.assert_told_once([first, elsewhere, here])
    assert len(place.files()) == 1


def write(journal: Path, call: Call) -> None:
    run = Journal(journal)
    run.add(*call.frames)
    run.close()


def decide(place: Place) -> None:
    """All that a keeper does before it writes the first line."""
    store, tally = Store(place.state / "sessions.db", str(place.journal)), Tally()
    recorder = Recorder(store, Logs(place.logs), "me", tally, Teller("me", Options(), place.state, tally.troubles))
    reader = Reader(place.journal)
    assembler = None
    while (batch := reader.read()) is not None:
        assembler = assembler or Assembler((), batch.start)
        calls = [one for one in assembler.take(batch) if isinstance(one, Assembled)]
        recorder.decide([Item(one, one.exchange(reader.fetch)) for one in calls])
    store.close()


def test_without_its_database_a_conversation_begins_a_new_file(place: Place) -> None:
    """Nothing else is lost."""
    talk = Talk()
    talk.claude("1", "a", [user("hello")], "hi")
    talk.claude("2", "b", [user("hello"), said("hi"), user("again")], "yes")
    for call in talk.calls.values():
        write(place.journal, call)
        place.settle()
        shutil.rmtree(place.state)
    assert_grouped(place, talk, {})


# --- WebSockets ----------------------------------------------------------------------------------------------------


def socket(talk: Talk, label: str, session: str, asked: Message, headers: Iterable[str] = ()) -> Call:
    """One turn over a WebSocket."""
    request = {"type": "response.create", "model": "gpt-5", "input": f"say {label}"} | asked
    event = {"type": "response.completed", "response": answer_of(label)}
    ours, theirs = (json.dumps(one).encode() for one in (request, event))
    call = Call(
        talk.serial,
        provider="openai",
        upstream="api.openai.com",
        method="GET",
        target="/v1/responses",
        request=b"",
        request_headers=["Upgrade: websocket", "Connection: Upgrade", *headers],
        status="101 Switching Protocols",
        headers=["Upgrade: websocket", "Connection: Upgrade"],
        pieces=[(120, text_frame(theirs, masked=False))],
        sizes=(0, 0),
    )
    call.response.insert(0, call.frame(Kind.REQUEST, 110 * MS, text_frame(ours, masked=True)))
    talk.add(label, session, call)
    return call


def text_frame(payload: bytes, masked: bool) -> bytes:
    """RFC 6455 \u00a75.2; the mask is zero, which changes nothing."""
    head = struct.pack(">BBH", 0x81, (0x80 if masked else 0) | 126, len(payload))
    return head + (bytes(4) if masked else b"") + payload


def test_websockets_find_their_session(place: Place) -> None:
    """By their upgrade's headers at once, else by what the client says first."""
    talk = Talk()
    talk.response("r", "chain", "first")
    named = socket(talk, "named", "named", {}, ["session-id: s-1"])
    chained = socket(talk, "chained", "chain", {"previous_response_id": "resp_r"})
    keyed = socket(talk, "keyed", "keyed", {"prompt_cache_key": "k"})
    talk.response("keyed 2", "keyed", "more", headers=(), prompt_cache_key="k")
    socket(talk, "alone", "alone", {})
    talk.response("alone 2", "alone", "more", "alone")
    calls = list(talk.calls.values())
    run = Journal(place.journal)
    with writer_lock(place.journal), place.running() as keeper:
        run.add(*calls[0].frames, named.open, chained.open, keyed.open)
        wake(keeper)
        until(lambda: (str(named.id), "request") in place.told())
        assert len(place.told()) == 3  # what nobody can place yet is not written yet
        run.add(*(frame for call in (named, chained, keyed) for frame in call.frames[1:]))
        run.add(*(frame for call in calls[4:] for frame in call.frames))
        wake(keeper)
        until(lambda: len(place.told()) == 14)
        keeper.terminate()
    run.close()
    assert_grouped(place, talk, {})


# --- what is counted -----------------------------------------------------------------------------------------------


def test_an_answer_that_is_fetched_again_is_counted_once(place: Place) -> None:
    """With the call that brought it first."""
    talk = Talk()
    talk.response("plain", "a", "first")
    talk.fetch("poll plain", "a", "plain")
    queued = answer_of("late") | {"status": "queued", "output": [], "usage": None}
    talk.openai("late", "b", "/v1/responses", {"model": "gpt-5", "input": "x", "background": True}, queued)
    talk.fetch("poll 1", "b", "late")
    talk.fetch("poll 2", "b", "late")
    talk.fetch("unknown 1", "day", "unknown")
    talk.fetch("unknown 2", "day", "unknown")
    for half in (slice(0, 4), slice(4, None)):
        run = Journal(place.journal)
        run.add(*(frame for call in list(talk.calls.values())[half] for frame in call.frames))
        run.close()
        place.settle()
    assert_grouped(place, talk, {})
    answers = {entry["_meta"]["request_id"]: entry for entry in place.entries() if entry["type"] == "response"}  # type: ignore[index]
    counted = {}
    for label, call in talk.calls.items():
        digest = answers[str(call.id)]["digest"]
        assert isinstance(digest, dict)
        counted[label] = "usage" in digest, digest.get("usage_counted", True), "price" in answers[str(call.id)]
    assert counted == {
        "plain": (True, True, True),
        "poll plain": (False, False, False),
        "late": (False, True, False),
        "poll 1": (True, True, True),
        "poll 2": (False, False, False),
        "unknown 1": (True, True, True),
        "unknown 2": (False, False, False),
    }


def test_the_results_of_a_batch_are_counted_once(place: Place) -> None:
    """However often they are fetched; another batch's are counted too."""
    talk = Talk()
    message = {"type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": []}
    for label, batch in (("a 1", "a"), ("a 2", "a"), ("b 1", "b")):
        answer = message | {"id": f"msg_{batch}", "usage": {"input_tokens": 3, "output_tokens": 2}}
        line = {"custom_id": "x", "result": {"type": "succeeded", "message": answer}}
        call = Call(
            talk.serial,
            method="GET",
            target=f"/v1/messages/batches/msgbatch_{batch}/results",
            request=b"",
            answer=json.dumps(line).encode() + b"\n",
            headers=["Content-Type: application/x-jsonl"],
            wall=talk.wall,
        )
        talk.add(label, "day", call)
    run = Journal(place.journal)
    run.add(*(frame for call in talk.calls.values() for frame in call.frames))
    run.close()
    place.settle()
    assert_grouped(place, talk, {})
    digests = [entry["digest"] for entry in place.entries() if entry["type"] == "response"]
    assert ["usage" in digest for digest in digests] == [True, False, True]  # type: ignore[operator]


def opened(call: Call) -> tuple[bytes, ...]:
    return call.open, call.request


def ended(call: Call) -> tuple[bytes, ...]:
    return call.head, *call.response, call.end
