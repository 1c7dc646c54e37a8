"""OpenAI's chat completions, completions and embeddings, and those of the many who imitate them, are understood alike."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llm_proxy.dialects import openai_chat
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Message, Part, PartKind, Usage
from llm_proxy.dialects.openai import usage_of
from llm_proxy.dialects.reading import events
from tests.goldens import check_cuts, check_pieces, golden, streams
from tests.spoiled import nested, spoiled

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def stream(*chunks: object, done: bool = True) -> bytes:
    datas = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"] * done
    return "".join(f"data: {data}\n\n" for data in datas).encode()


def delta(stop: str | None = None, index: int = 0, **said: object) -> dict[str, object]:
    choice = {"index": index, "delta": said, "finish_reason": stop}
    return {"id": "chatcmpl-1", "model": "gpt-5.2", "choices": [choice]}


def streamed(*chunks: object, done: bool = True, complete: bool = True) -> tuple[Answer, ...]:
    return openai_chat.answers(Content("events", stream(*chunks, done=done), complete=complete))


def plain(value: object, status: int = 200) -> Answer:
    return openai_chat.answers(Content("body", json.dumps(value).encode(), status=status))[-1]


def asked_message(message: object) -> Message:
    return openai_chat.asked(CHAT, json.dumps({"model": "m", "messages": [message]}).encode()).messages[0]


# --- golden files


def test_a_plain_answer_is_understood():
    """Model, words, tokens and the reason to stop."""
    one = golden("chat-plain")
    assert one.asked.messages == (Message("user", (Part(PartKind.TEXT, "Say hello."),)),)
    assert one.last.message == Message(
        "assistant", (Part(PartKind.TEXT, "Hello from the fake provider: Grüße, 世界 🌍.\n"),)
    )
    assert (one.last.model, one.last.stop_reason, one.last.service_tier) == ("gpt-5.2", "stop", "default")
    assert one.last.usage == Usage(input=19, cache_read=11, output=9, reasoning=2)
    assert one.last.response_id.startswith("chatcmpl-")
    assert not one.last.partial


def test_a_stream_tells_its_tokens_only_where_it_was_asked_to():
    """Without include_usage there is no count, and none is made up."""
    assert golden("chat-stream").last.usage is None
    assert golden("chat-usage-stream").last.usage == Usage(input=34, cache_read=11, output=3, reasoning=2)


def test_a_streamed_tool_call_is_the_one_of_a_plain_answer():
    """Its arguments come in pieces cut anywhere."""
    for name in ("chat-tool", "chat-tool-stream"):
        (call,) = golden(name).last.message.parts
        assert (call.kind, call.name, call.text) == (PartKind.TOOL_CALL, "weather", '{"city":"Zürich","days":3}')
        assert call.id.startswith("call_")
        assert golden(name).last.stop_reason == "tool_calls"
        assert golden(name).asked.tools == ("weather",)


@pytest.mark.parametrize("name", streams("chat"))
def test_a_stream_means_the_same_in_whatever_pieces_it_comes(name):
    """Split at every byte and at random."""
    check_pieces(golden(name))


@pytest.mark.parametrize("name", streams("chat"))
def test_a_cut_stream_gives_what_was_there(name):
    """Cut at every byte."""
    check_cuts(golden(name))


@pytest.mark.parametrize("name", ["chat-stream", "chat-usage-stream", "chat-tool-stream"])
def test_the_official_sdk_sees_the_same_in_a_stream(name):
    """Words, tool calls, stop reason and tokens."""
    state = ChatCompletionStreamState()
    for data in events(golden(name).answer)[:-1]:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(data))
    theirs, ours = state.get_final_completion(), golden(name).last
    (choice,) = theirs.choices
    assert ours.message.text == (choice.message.content or "")
    calls = [
        (call.id, call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()
    ]
    assert [
        (part.id, part.name, json.loads(part.text)) for part in ours.message.parts if part.kind == "tool_call"
    ] == calls
    assert (ours.stop_reason, ours.response_id, ours.model) == (choice.finish_reason, theirs.id, theirs.model)
    if theirs.usage:
        assert (ours.usage.prompt, ours.usage.output) == (theirs.usage.prompt_tokens, theirs.usage.completion_tokens)


# --- tokens

USAGES = [
    # What is cached lies inside the prompt: 1,200 of 2,000 tokens were read, 800 are fresh.
    (
        {"prompt_tokens": 2000, "completion_tokens": 300, "total_tokens": 2300, "prompt_tokens_details": {"cached_tokens": 1200}},
        Usage(input=800, cache_read=1200, output=300),
    ),
    # Reasoning lies inside the output.
    (
        {"prompt_tokens": 10, "completion_tokens": 500, "total_tokens": 510, "completion_tokens_details": {"reasoning_tokens": 448}},
        Usage(input=10, output=500, reasoning=448),
    ),
    # xAI counts it beside: the total shows it.
    (
        {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 94}},
        Usage(input=32, output=103, reasoning=94),
    ),
    # So does Gemini behind its OpenAI paths, and names no reasoning at all.
    ({"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 247}, Usage(input=7, output=240, reasoning=200)),
    # Written to a cache, of which some for long: all inside the prompt.
    (
        {
            "input_tokens": 1000,
            "output_tokens": 5,
            "total_tokens": 1005,
            "input_tokens_details": {
                "cached_tokens": 300,
                "cache_write_tokens": 500,
                "cache_write_tokens_details": {"ttl_30m_tokens": 400, "ttl_12h_tokens": 100},
            },
        },
        Usage(input=200, cache_read=300, cache_write_5m=400, cache_write_1h=100, output=5),
    ),
    # Sound, of which some was cached: 100 of 150 tokens of sound are fresh.
    (
        {
            "prompt_tokens": 400,
            "completion_tokens": 90,
            "prompt_tokens_details": {"cached_tokens": 80, "audio_tokens": 150, "cached_tokens_details": {"audio_tokens": 50}},
            "completion_tokens_details": {"audio_tokens": 70},
        },
        Usage(input=320, cache_read=80, output=90, input_audio=100, cache_read_audio=50, output_audio=70),
    ),
    # Pictures.
    (
        {"input_tokens": 60, "output_tokens": 200, "input_tokens_details": {"image_tokens": 50}, "output_tokens_details": {"image_tokens": 190}},
        Usage(input=60, output=200, input_image=50, output_image=190),
    ),
    # DeepSeek and Moonshot have no details.
    (
        {"prompt_tokens": 100, "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36, "completion_tokens": 8, "total_tokens": 108},
        Usage(input=36, cache_read=64, output=8),
    ),
    ({"prompt_tokens": 100, "cached_tokens": 40, "completion_tokens": 8, "total_tokens": 108}, Usage(input=60, cache_read=40, output=8)),
    # OpenRouter adds dollars, which are left out.
    ({"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "cost": 0.00014}, Usage(input=5, output=1)),
    # Embeddings only read.
    ({"prompt_tokens": 8, "total_tokens": 8}, Usage(input=8)),
    # A count of nothing is a count; something else is none.
    ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage()),
    ({}, None),
    ({"cost": 1}, None),
    (None, None),
    # Nonsense never gives a negative count.
    ({"prompt_tokens": 5, "completion_tokens": -3, "prompt_tokens_details": {"cached_tokens": 9, "audio_tokens": 7}}, Usage(cache_read=9)),
    ({"prompt_tokens": "5", "completion_tokens": True}, Usage()),
]  # fmt: skip


@pytest.mark.parametrize(("told", "usage"), USAGES)
def test_tokens_are_counted_once_each(told, usage):
    """No class overlaps another."""
    assert usage_of(told) == usage


def test_of_several_counts_in_a_stream_the_last_one_holds():
    """Hosts that count along would be summed up otherwise; a chunk without a count changes nothing."""
    counts = [{"prompt_tokens": 9, "completion_tokens": number, "total_tokens": 9 + number} for number in (1, 2)]
    (answer,) = streamed(
        {**delta(content="a"), "usage": counts[0]},
        {**delta("stop", content="b"), "usage": counts[1]},
        {**delta(), "usage": None},
    )
    assert answer.usage == Usage(input=9, output=2)


def test_groqs_count_stands_in_a_field_of_its_own():
    """Where no other is given."""
    count = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    (answer,) = streamed(delta(content="a"), {**delta("stop"), "x_groq": {"id": "req_1", "usage": count}})
    assert answer.usage == Usage(input=4, output=2)


# --- requests

TEXT = Part(PartKind.TEXT, "hi")
MESSAGES = [
    ({"role": "user", "content": "hi"}, Message("user", (TEXT,))),
    ({"role": "developer", "content": "hi"}, Message("system", (TEXT,))),
    ({"role": "system", "content": [{"type": "text", "text": "hi"}]}, Message("system", (TEXT,))),
    (
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
                {"type": "hologram", "text": "what"},
            ],
        },
        Message(
            "user",
            (
                TEXT,
                Part(PartKind.MEDIA, "https://example.com/a.png", "image"),
                Part(PartKind.MEDIA, "image/png", "image"),
                Part(PartKind.MEDIA, "audio/wav", "audio"),
                Part(PartKind.MEDIA, "a.pdf", "document"),
                Part(PartKind.OTHER, "what", "hologram"),
            ),
        ),
    ),
    (
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1.0, "a": [ ]}'}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"cut'}},
                {"id": "c3", "type": "custom", "custom": {"name": "shell", "input": "ls  -l"}},
                {"id": "c4", "type": "function", "function": {"name": "h", "arguments": ""}},
            ],
        },
        Message(
            "assistant",
            (
                Part(PartKind.THINKING, "hm"),
                Part(PartKind.TOOL_CALL, '{"a":[],"b":1}', "f", "c1"),
                Part(PartKind.TOOL_CALL, '{"cut', "g", "c2"),
                Part(PartKind.TOOL_CALL, "ls  -l", "shell", "c3"),
                Part(PartKind.TOOL_CALL, "{}", "h", "c4"),
            ),
        ),
    ),
    ({"role": "assistant", "content": None, "refusal": "no"}, Message("assistant", (Part(PartKind.REFUSAL, "no"),))),
    (
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        Message("assistant", (Part(PartKind.TOOL_CALL, "{}", "f"),)),
    ),
    ({"role": "tool", "tool_call_id": "c1", "content": "hi"}, Message("tool", (Part(PartKind.TOOL_RESULT, "hi", id="c1"),))),
    (
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        Message("tool", (Part(PartKind.TOOL_RESULT, "a\nb", id="c1"),)),
    ),
    ({"role": "function", "name": "f", "content": "hi"}, Message("tool", (Part(PartKind.TOOL_RESULT, "hi", "f"),))),
    (
        {"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "hi"}]},
        Message("assistant", (Part(PartKind.THINKING, "hm"), TEXT)),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "message"), MESSAGES)
def test_messages_are_understood_in_all_their_forms(sent, message):
    """Roles, pieces, calls and results."""
    assert asked_message(sent) == message


def test_a_request_tells_what_it_wants():
    """Whatever the API calls it, however old the client."""
    request = {
        "model": "gpt-5.2",
        "messages": [],
        "stream": True,
        "max_completion_tokens": 7,
        "max_tokens": 9,
        "service_tier": "flex",
        "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "g"}}, {"type": "web_search"}],
        "functions": [{"name": "h"}],
    }  # fmt: skip
    asked = openai_chat.asked(CHAT, json.dumps(request).encode())
    assert (asked.api, asked.model, asked.stream, asked.max_tokens, asked.service_tier) == (
        "openai.chat",
        "gpt-5.2",
        True,
        7,
        "flex",
    )
    assert asked.tools == ("f", "g", "web_search", "h")


def test_azure_names_the_model_in_the_path():
    """Where the body names none."""
    path = "/openai/deployments/my-gpt/chat/completions"
    assert openai_chat.asked(path, b'{"messages":[]}').model == "my-gpt"
    assert openai_chat.asked(path, b'{"model":"gpt-5.2"}').model == "gpt-5.2"


@pytest.mark.parametrize(
    ("path", "body", "parts"),
    [
        (COMPLETIONS, {"prompt": "once"}, (Part(PartKind.TEXT, "once"),)),
        (COMPLETIONS, {"prompt": ["a", "b"]}, (Part(PartKind.TEXT, "a"), Part(PartKind.TEXT, "b"))),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, (Part(PartKind.OTHER, name="tokens"),)),
        (EMBEDDINGS, {"input": "a"}, (Part(PartKind.TEXT, "a"),)),
        (EMBEDDINGS, {"input": [[1], [2]]}, (Part(PartKind.OTHER, name="tokens"),)),
    ],
)
def test_a_prompt_is_the_users_message(path, body, parts):
    """Of completions and embeddings, which have no messages."""
    assert openai_chat.asked(path, json.dumps(body).encode()).messages == (Message("user", parts),)


# --- answers of those who imitate


def test_thoughts_are_kept_apart_from_words():
    """DeepSeek's reasoning_content, OpenRouter's reasoning, Mistral's typed pieces: said once each."""
    thinks = [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]
    for thought in ({"reasoning_content": "h", "content": None}, {"reasoning": "h"}, {"content": thinks}):
        (answer,) = streamed(delta(role="assistant", **thought), delta(**thought), delta("stop", content="yes"))
        assert answer.message == Message("assistant", (Part(PartKind.THINKING, "hh"), Part(PartKind.TEXT, "yes")))


def test_azures_first_chunk_has_no_choices():
    """It tells of filters; the model stands in later ones."""
    filters = {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    (answer,) = streamed(filters, delta(content="a"), delta("stop"))
    assert (answer.model, answer.message.text, answer.response_id) == ("gpt-5.2", "a", "chatcmpl-1")


def test_comments_in_a_stream_say_nothing():
    """OpenRouter's keep a connection alive."""
    data = b": OPENROUTER PROCESSING\n\n" + stream(delta("stop", content="a"))
    assert openai_chat.answers(Content("body", data))[0].message.text == "a"


def test_tool_calls_are_told_apart_by_index_else_by_id():
    """Some hosts give every call the index 0, or none."""
    for one, two in ((0, 1), (0, 0), (None, None)):
        pieces = [
            {"index": one, "id": "c1", "function": {"name": "f", "arguments": '{"a":'}},
            {"index": one, "function": {"arguments": "1}"}},
            {"index": two, "id": "c2", "function": {"name": "g", "arguments": "{}"}},
        ]
        (answer,) = streamed(*(delta(tool_calls=[piece]) for piece in pieces), delta("tool_calls"))
        assert answer.message.parts == (
            Part(PartKind.TOOL_CALL, '{"a":1}', "f", "c1"),
            Part(PartKind.TOOL_CALL, "{}", "g", "c2"),
        )


def test_the_older_function_call_is_streamed_too():
    """It has no id."""
    calls = [{"name": "f", "arguments": '{"a"'}, {"arguments": ":1}"}]
    (answer,) = streamed(*(delta(function_call=call) for call in calls), delta("function_call"))
    assert answer.message.parts == (Part(PartKind.TOOL_CALL, '{"a":1}', "f"),)


def test_each_choice_is_an_answer_and_tokens_are_told_once():
    """Streamed, their chunks interleave."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    chunks = [delta(index=1, content="b"), delta(index=0, content="a"), delta("stop", 0), delta("length", 1)]
    choices = [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}, {"index": 1, "message": {"content": "b"}, "finish_reason": "length"}]  # fmt: skip
    whole = openai_chat.answers(Content("body", json.dumps({"choices": choices, "usage": usage}).encode()))
    for told in (streamed(*chunks, {"choices": [], "usage": usage}), whole):
        assert [(answer.message.text, answer.stop_reason) for answer in told] == [("a", "stop"), ("b", "length")]
        assert [answer.usage for answer in told] == [Usage(input=3, output=4), None]


def test_a_refusal_is_told_as_one():
    """Plain and streamed."""
    said = Message("assistant", (Part(PartKind.REFUSAL, "I will not."),))
    assert streamed(delta(refusal="I will"), delta("stop", refusal=" not."))[0].message == said
    assert plain({"choices": [{"message": {"content": None, "refusal": "I will not."}}]}).message == said


def test_completions_say_text():
    """The older API, plain and streamed."""
    choice = {"index": 0, "text": "once", "finish_reason": "length"}
    told = plain(
        {"id": "cmpl-1", "model": "m", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    )
    assert (told.message.text, told.stop_reason, told.usage) == ("once", "length", Usage(input=1, output=2))
    (told,) = streamed({"choices": [{"text": "on"}]}, {"choices": [{"text": "ce", "finish_reason": "stop"}]})
    assert (told.message.text, told.stop_reason) == ("once", "stop")


def test_embeddings_tell_model_and_tokens():
    """There are no words."""
    told = golden("embeddings-plain").last
    assert (told.model, told.usage, told.message) == ("text-embedding-3-small", Usage(input=14), None)


def test_what_was_heard_is_a_medium_and_its_words():
    """An answer in sound brings a transcript."""
    told = plain(
        {"choices": [{"message": {"content": None, "audio": {"id": "audio_1", "data": "AAAA", "transcript": "hi"}}}]}
    )
    assert told.message.parts == (Part(PartKind.MEDIA, "", "audio", "audio_1"), TEXT)


# --- ends and errors


@pytest.mark.parametrize(
    ("done", "stop", "complete", "partial"),
    [
        (True, "stop", True, False),
        (True, "stop", False, False),  # the client left after the mark: it missed nothing
        (False, "stop", True, False),  # a host without the mark
        (False, "stop", False, True),  # the usage may still have been to come
        (False, None, True, True),
        (False, None, False, True),
    ],
)
def test_a_stream_is_partial_unless_it_said_that_it_is_over(done, stop, complete, partial):
    """By its mark, or by its stop reason where it came to its end."""
    (answer,) = streamed(delta(content="a"), delta(stop), done=done, complete=complete)
    assert answer.partial is partial
    assert answer.message.text == "a"


ERRORS = [
    (401, {"error": {"message": "Bad key", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}}, "invalid_request_error", "Bad key"),
    (429, {"error": {"message": "Slow down", "type": None, "code": "1302"}}, "1302", "Slow down"),
    (402, {"error": {"message": "No money", "code": 402}}, "402", "No money"),
    (500, {"error": "broken"}, "", "broken"),
    (404, {"detail": "Not Found"}, "", "Not Found"),
    (422, {"object": "error", "message": "Bad role", "type": "invalid_request_message_order"}, "invalid_request_message_order", "Bad role"),
    (400, [{"error": {"code": 400, "message": "Bad name", "status": "INVALID_ARGUMENT"}}], "INVALID_ARGUMENT", "Bad name"),
    (200, {"error": {"message": "Out of memory", "code": 507}}, "507", "Out of memory"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "words"), ERRORS)
def test_a_providers_error_is_told_in_its_own_words(status, body, kind, words):
    """In each of the shapes they come in."""
    told = plain(body, status)
    assert (told.error_type, told.error, told.trouble, told.message) == (kind, words, "", None)


def test_an_error_page_is_an_error_too():
    """Of an edge server, which speaks no JSON."""
    (told,) = openai_chat.answers(Content("body", b"<html>502 Bad Gateway</html>", status=502))
    assert told.error == "<html>502 Bad Gateway</html>"


def test_an_error_within_a_stream_ends_it():
    """What was said before is kept."""
    (told,) = streamed(delta(content="a"), {"error": {"message": "Overloaded", "type": "server_error"}}, done=False)
    assert (told.message.text, told.error, told.error_type, told.partial) == ("a", "Overloaded", "server_error", True)


def test_what_is_no_json_is_named_as_trouble():
    """Cut, it is partial as well; where nothing came, there is no answer."""
    assert openai_chat.asked(CHAT, b"[1]").trouble
    (cut,) = openai_chat.answers(Content("body", b'{"id":"x","cho', complete=False))
    assert cut.trouble
    assert cut.partial
    assert openai_chat.answers(Content("body", status=None, complete=False)) == ()


# --- keys


def test_an_answer_has_the_key_of_the_message_that_repeats_it():
    """As the official SDK sends it back, and as clients that rewrite it do."""
    for name in ("chat-plain", "chat-tool"):
        one = golden(name)
        theirs = ChatCompletion.model_validate_json(one.answer).choices[0].message
        assert asked_message(theirs.model_dump()).key == one.last.message.key
        assert asked_message(theirs.model_dump(exclude_none=True)).key == one.last.message.key
    one = golden("chat-tool-stream")
    (call,) = one.last.message.parts
    rewritten = {"days": 3.0, "city": "Zürich"}
    sent = {
        "id": call.id,
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps(rewritten, indent=1)},
    }
    assert asked_message({"role": "assistant", "content": "", "tool_calls": [sent]}).key == one.last.message.key
    sent["function"]["arguments"] = json.dumps({**rewritten, "days": 4})
    assert asked_message({"role": "assistant", "content": "", "tool_calls": [sent]}).key != one.last.message.key


def test_thoughts_and_blanks_do_not_change_a_key():
    """Clients drop the former and trim the latter."""
    (answer,) = streamed(delta(reasoning_content="hm"), delta("stop", content="Yes.\n"))
    assert asked_message({"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}).key == answer.message.key
    assert asked_message({"role": "user", "content": "Yes."}).key != answer.message.key


# --- anything at all

REQUESTS = [
    {
        "model": "m",
        "messages": [sent for sent, _ in MESSAGES],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
]
CHUNKS = [
    {**delta("stop", content="a", tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]), "usage": USAGES[0][0]},
    {"id": "x", "choices": [{"index": 0, "message": MESSAGES[4][0], "finish_reason": "stop"}], "usage": USAGES[5][0], "error": ERRORS[0][1]},
]  # fmt: skip


@given(st.binary(max_size=60), st.sampled_from(["body", "events"]), st.sampled_from([200, 500, None]))
def test_no_bytes_raise(data, kind, status):
    """Whatever they are."""
    assert openai_chat.asked(CHAT, data) is not None
    openai_chat.answers(Content(kind, data, status=status))
    openai_chat.answers(Content(kind, b"data: " + data + b"\n\n", status=status))


THOUGHTS = '[{"type":"thinking","thinking":%}]'


@pytest.mark.parametrize("data", nested(THOUGHTS))
def test_no_depth_raises(data):
    """Of JSON that contains itself."""
    for inner in (data, b'{"messages":[{"content":%s}]}' % data, b'{"choices":[{"message":{"content":%s}}]}' % data):
        openai_chat.asked(CHAT, inner)
        openai_chat.answers(Content("body", inner))
        openai_chat.answers(Content("events", b"data: " + inner + b"\n\n"))


@given(spoiled(*REQUESTS, *CHUNKS), st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]), st.sampled_from([200, 400]))
def test_no_json_raises(data, path, status):
    """Good documents, spoiled anywhere; and what comes out can be written."""
    asked = openai_chat.asked(path, data)
    told = (
        *openai_chat.answers(Content("body", data, status=status)),
        *openai_chat.answers(Content("events", b"data: " + data + b"\n\n")),
    )
    for message in (*asked.messages, *(answer.message for answer in told if answer.message)):
        assert len(message.key) == 16
        assert message.text.encode() is not None
    assert all(min(vars_of(answer.usage)) >= 0 for answer in told if answer.usage)


def vars_of(usage: Usage) -> list[int]:
    return [usage.input, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h, usage.output, usage.reasoning]
