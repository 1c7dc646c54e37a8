"""What log entries mean can be told from them alone, live or years later, whoever wrote them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.dialects.digest import TOKEN_CLASSES, Answer, Asked, Digest, Usage
from llm_proxy.records.understood import Entry, facts, understand, usage_from
from tests.goldens import golden

ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [{"type": "text", "text": "é"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2, "cache_creation_input_tokens": 5},
}


def request(**other: Any) -> Entry:
    body = json.dumps({"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "hi"}]})
    return {"type": "request", "method": "POST", "path": "/v1/messages", "headers": {}, "body": body} | other


def response(**other: Any) -> Entry:
    headers = {"Content-Type": ["application/json; charset=utf-8"], "Retry-After": ["7"]}
    entry = {"type": "response", "status": 200, "headers": headers, "ending": "complete"}
    return entry | {"body": json.dumps(ANSWER, ensure_ascii=False)} | other


FACTS = {
    "api": "anthropic.messages",
    "model": "claude-sonnet-4-5-20250929",
    "stop_reason": "end_turn",
    "response_id": "msg_1",
    "usage": {"input": 3, "cache_write_5m": 5, "output": 2},
}


def test_a_call_is_told_without_its_texts() -> None:
    """Names and numbers, only those that there are."""
    digest = understand(request(), response())
    assert facts(digest) == FACTS
    assert digest.limits == (("retry-after", "7"),)
    assert [message.text for message in digest.asked.messages] == ["hi"]
    assert digest.last.message is not None and digest.last.message.text == "é"


BASE64 = {"body": base64.b64encode(json.dumps(ANSWER).encode()).decode(), "body_encoding": "base64"}


@pytest.mark.parametrize(
    ("asked", "answered", "told"),
    [
        ({}, BASE64, FACTS),
        ({"headers": {"content-type": "application/json"}}, {}, FACTS),  # as other programs write headers
        ({"path": "/v1/messages?beta=true"}, {}, FACTS),
        ({}, {"ending": "client_gone"}, FACTS),  # what is whole is whole
        ({}, {"digest": {"usage_counted": False}}, None),
        ({}, {"body": ""}, {"api": "anthropic.messages", "model": "claude-sonnet-4-5", "partial": True}),
        ({}, {"body": None, "status": None, "headers": None, "ending": "upstream_failed"}, {"api": "anthropic.messages", "model": "claude-sonnet-4-5"}),
        ({"path": "/v1/models", "method": "GET"}, {}, {}),
        ({"path": None}, {}, {}),
        ({}, {"status": 529, "body": '{"type":"error","error":{"type":"overloaded_error","message":"x"}}'}, {"api": "anthropic.messages", "model": "claude-sonnet-4-5", "error_type": "overloaded_error"}),
    ],
)  # fmt: skip
def test_entries_of_all_kinds(asked: Entry, answered: Entry, told: Entry | None) -> None:
    """However the body stands there, whatever is missing."""
    digest = understand(request(**asked), response(**answered))
    if told is None:
        told = {name: value for name, value in FACTS.items() if name != "usage"} | {"usage_counted": False}
    assert facts(digest) == told
    assert understand(request(**asked), response(**answered), digest.asked) == digest


def test_an_open_call_has_been_asked_only() -> None:
    """Without a response there is no answer."""
    digest = understand(request(), None)
    assert (digest.answers, digest.model, digest.usage) == ((), "claude-sonnet-4-5", None)
    assert facts(digest) == {"api": "anthropic.messages", "model": "claude-sonnet-4-5"}


def stream(lines: list[Entry]) -> Entry:
    return response(chunks=lines, body=None, headers={"Content-Type": ["text/event-stream"]})


def test_streams_as_they_stand_in_the_log() -> None:
    """Line by line; a line that is no text stands in base64."""
    whole = golden("anthropic-stream")
    asked = request(body=whole.request.decode(), path=whole.path)
    lines = whole.answer.splitlines(keepends=True)
    plain: list[Entry] = [{"raw": line.decode()} for line in lines]
    coded: list[Entry] = [{"base64": base64.b64encode(line).decode()} for line in lines]
    digests = [understand(asked, stream(one)) for one in (plain, coded, plain[:9] + coded[9:])]
    assert digests[0].answers == whole.answers
    assert digests[0] == digests[1] == digests[2]


def test_websockets_as_they_stand_in_the_log() -> None:
    """Requests and answers are both among the messages; usage is the sum over the turns."""
    messages: list[Entry] = []
    for turn in ("one", "two"):
        output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": turn}]}]
        usage = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 2}
        answer = {"id": f"resp_{turn}", "model": "gpt-5", "status": "completed", "output": output, "usage": usage}
        messages += [
            {"from": "client", "type": "text", "raw": json.dumps({"type": "response.create", "input": turn})},
            {"from": "server", "type": "ping", "raw": "{}"},
            {"from": "server", "type": "text", "raw": json.dumps({"type": "response.completed", "response": answer})},
        ]
    asked = request(method="GET", path="/v1/responses", headers={"Upgrade": ["websocket"]}, body="")
    digest = understand(asked, response(status=101, websocket={"messages": messages}, body=None))
    assert [answer.response_id for answer in digest.answers] == ["resp_one", "resp_two"]
    assert facts(digest) == {
        "api": "openai.responses",
        "model": "gpt-5",
        "stop_reason": "completed",
        "response_id": "resp_two",
        "usage": {"input": 2, "cache_read": 8, "output": 4},
    }
    assert [message.text for message in digest.asked.messages] == ["two"]  # the last one began anew


def test_usage_comes_back_as_it_was() -> None:
    """Every class has its own number; tools are counted by name."""
    usage = Usage(*range(1, len(TOKEN_CLASSES) + 1), server_tools=(("web_fetch", 2), ("web_search", 1)))
    digest = Digest(Asked(api="x"), (Answer(usage=usage),))
    entry = json.loads(json.dumps(facts(digest)))
    assert usage_from(entry) == usage
    assert usage_from({}) is None and usage_from({"usage": {}}) == Usage()
    none = facts(Digest(Asked(api="x"), (Answer(usage=Usage()),)))
    assert usage_from(none) == Usage()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("method", "path", "headers", "body", "body_encoding", "chunks", "websocket", "status", "ending", "digest")
ENTRIES = st.dictionaries(st.sampled_from(FIELDS), JSON)


@given(ENTRIES, ENTRIES)
def test_no_entry_is_too_odd(asked: Entry, answered: Entry) -> None:
    """Anybody may have written it: nothing is raised, and what is told can be written."""
    for one, other in ((asked, answered), (request() | asked, response() | answered)):
        for digest in (understand(one, other), understand(one, None)):
            entry = facts(digest)
            assert json.loads(json.dumps(entry)) == entry
            usage_from(entry)


@given(JSON)
def test_no_facts_are_too_odd(usage: Any) -> None:
    """Nor those that are read back."""
    told = usage_from({"usage": usage})
    assert told is None or told.total >= 0
