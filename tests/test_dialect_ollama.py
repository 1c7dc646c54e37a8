"""Ollama's own API is understood: chat and generate, in one object or one per line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.dialects import ollama
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage
from tests.spoiled import nested, spoiled

CHAT, GENERATE = "/api/chat", "/api/generate"
TEXT = Part(PartKind.TEXT, "Hello, Zürich.")
CALL = {"function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}}}
COUNTS = {
    "total_duration": 4_883_583_458,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 342_546_000,
    "eval_count": 298,
    "eval_duration": 4_535_599_000,
}


def line(**fields: object) -> dict[str, object]:
    return {"model": "llama3.2", "created_at": "2026-11-21T12:00:00Z", "done": False, **fields}


def said(**message: object) -> dict[str, object]:
    return line(message={"role": "assistant", "content": "", **message})


END = {**said(), "done": True, "done_reason": "stop", **COUNTS}
STREAMS = {
    "chat": [said(thinking="h"), said(thinking="m"), said(content="Hello, "), said(content="Zürich."), END],
    "tool": [said(content="Hello, Zürich."), said(tool_calls=[CALL]), END],
    "generate": [line(response="Hello, "), line(response="Zürich."), {**line(response=""), "done": True, "done_reason": "stop", "context": [1, 2], **COUNTS}],
}  # fmt: skip


def ndjson(*lines: object) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines).encode()


def answers(data: bytes, status: int | None = 200, complete: bool = True) -> tuple[Answer, ...]:
    return ollama.answers(Content("body", data, status=status, complete=complete, media_type="application/x-ndjson"))


def asked(path: str = CHAT, **request: object) -> Asked:
    return ollama.asked(path, json.dumps(request).encode())


# --- answers


def test_a_stream_is_understood():
    """Words, thoughts, tokens from its last line."""
    (told,) = answers(ndjson(*STREAMS["chat"]))
    assert told.message == Message("assistant", (Part(PartKind.THINKING, "hm"), TEXT))
    assert told.usage == Usage(input=26, output=298)
    assert (told.model, told.stop_reason, told.partial, told.trouble) == ("llama3.2", "stop", False, "")


def test_tool_calls_come_whole():
    """In a line of their own; an id is left out, for clients send none back."""
    (told,) = answers(ndjson(*STREAMS["tool"]))
    assert told.message.parts == (TEXT, Part(PartKind.TOOL_CALL, '{"city":"Zürich","days":3}', "weather"))
    (with_id,) = answers(ndjson(said(content="Hello, Zürich."), said(tool_calls=[{"id": "call_1", **CALL}]), END))
    assert with_id.message.key == told.message.key


def test_generate_says_a_response():
    """And gives back a context, which is not for people."""
    (told,) = answers(ndjson(*STREAMS["generate"]))
    assert (told.message, told.usage) == (Message("assistant", (TEXT,)), Usage(input=26, output=298))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_plain_answer_is_understood(indent):
    """On one line or on several."""
    whole = {**END, "message": {"role": "assistant", "content": "Hello, Zürich.", "thinking": "hm"}}
    (told,) = answers(json.dumps(whole, indent=indent).encode())
    assert told == answers(ndjson(*STREAMS["chat"]))[0]


@pytest.mark.parametrize("name", STREAMS)
def test_a_cut_stream_gives_what_was_there(name):
    """Cut at every byte."""
    data = ndjson(*STREAMS[name])
    (whole,) = answers(data)
    last_line = data.rstrip().rindex(b"\n") + 1
    for at in range(len(data)):
        (told,) = answers(data[:at], complete=False)
        if told == whole:
            assert at >= len(data) - 1
            continue
        assert told.partial
        assert told.usage is None
        text = told.message.text if told.message else ""
        assert whole.message.text.startswith(text)
        assert at < last_line or text == whole.message.text


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("end", [b"\r\n", b"\n\n", b"\n"])
def test_line_ends_do_not_matter(name, end):
    """Whatever stands between the lines."""
    data = ndjson(*STREAMS[name])
    assert answers(data.replace(b"\n", end)) == answers(data)


def test_errors_are_told_in_ollamas_words():
    """Instead of an answer, and within a stream; an error page is one too."""
    (told,) = answers(b'{"error":"model \'x\' not found"}', status=404)
    assert (told.error, told.message, told.partial) == ("model 'x' not found", None, False)
    (told,) = answers(ndjson(*STREAMS["chat"][:3], {"error": "out of memory"}))
    assert (told.error, told.message.text, told.partial) == ("out of memory", "Hello, ", True)
    (told,) = answers(b"<html>", status=502)
    assert told.error == "<html>"


def test_no_counts_are_no_usage():
    """A model that is only loaded says nothing."""
    (told,) = answers(ndjson({**line(response=""), "done": True, "done_reason": "load"}))
    assert (told.message, told.usage, told.stop_reason, told.partial) == (None, None, "load", False)
    assert answers(b"", status=None, complete=False) == ()


# --- requests


def test_a_request_tells_what_it_wants():
    """It streams unless it says no."""
    told = asked(
        model="llama3.2",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi", "images": ["AAAA"]}],
        tools=[{"type": "function", "function": {"name": "weather"}}],
        options={"num_predict": 7},
    )
    assert (told.model, told.stream, told.max_tokens, told.tools) == ("llama3.2", True, 7, ("weather",))
    assert told.messages == (
        Message("system", (Part(PartKind.TEXT, "Be brief."),)),
        Message("user", (Part(PartKind.TEXT, "hi"), Part(PartKind.MEDIA, name="image"))),
    )
    assert asked(stream=False).stream is False
    assert ollama.asked(CHAT, b"[]").trouble


def test_generate_asks_by_a_prompt():
    """With its own system text and pictures."""
    told = asked(GENERATE, model="llama3.2", prompt="hi", system="Be brief.", images=["AAAA"])
    assert told.system == "Be brief."
    assert told.messages == (Message("user", (Part(PartKind.TEXT, "hi"), Part(PartKind.MEDIA, name="image"))),)


def test_results_of_tools_are_told():
    """By the tool's name."""
    (message,) = asked(messages=[{"role": "tool", "tool_name": "weather", "content": "sunny"}]).messages
    assert message == Message("tool", (Part(PartKind.TOOL_RESULT, "sunny", "weather"),))


# --- keys


def test_an_answer_has_the_key_of_the_message_that_repeats_it():
    """Without its thoughts, with arguments in another order."""
    (told,) = answers(ndjson(*STREAMS["tool"]))
    call = {"function": {"arguments": {"days": 3.0, "city": "Zürich"}, "name": "weather"}}
    (message,) = asked(messages=[{"role": "assistant", "content": "Hello, Zürich.\n", "tool_calls": [call]}]).messages
    assert message.key == told.message.key
    call["function"]["arguments"]["days"] = 4
    (message,) = asked(messages=[{"role": "assistant", "content": "Hello, Zürich.", "tool_calls": [call]}]).messages
    assert message.key != told.message.key
    (told,) = answers(ndjson(*STREAMS["chat"]))
    assert asked(messages=[{"role": "assistant", "content": "Hello, Zürich."}]).messages[0].key == told.message.key


# --- anything at all

DOCUMENTS = [
    {"model": "m", "messages": [{"role": "user", "content": "hi", "images": ["A"]}, {"role": "tool", "content": "x"}], "options": {"num_predict": 1}},
    {"model": "m", "prompt": "hi", "images": ["A"], "system": "x"},
    *STREAMS["tool"],
    *STREAMS["generate"],
]  # fmt: skip


@given(st.binary(max_size=60), st.sampled_from(["body", "events"]), st.sampled_from([200, 500, None]))
def test_no_bytes_raise(data, kind, status):
    """Whatever they are."""
    assert ollama.asked(CHAT, data) is not None
    ollama.answers(Content(kind, data, status=status))


@given(st.lists(spoiled(*DOCUMENTS), min_size=1, max_size=3), st.sampled_from([200, 400]))
def test_no_json_raises(datas, status):
    """Good documents, spoiled anywhere; and what comes out can be written."""
    asked = ollama.asked(CHAT, datas[0])
    told = ollama.answers(Content("body", b"\n".join(datas), status=status))
    for message in (*asked.messages, *(answer.message for answer in told if answer.message)):
        assert len(message.key) == 16
        assert message.text.encode() is not None


@pytest.mark.parametrize("data", nested())
def test_no_depth_raises(data):
    """Of JSON that contains itself."""
    for inner in (
        data,
        b'{"messages":%s}' % data,
        b'{"message":{"tool_calls":[{"function":{"arguments":%s}}]}}' % data,
    ):
        ollama.asked(CHAT, inner)
        ollama.answers(Content("body", inner))
