"""OpenAI's Responses API is understood whichever way it comes: plain, streamed, over WebSocket, in the background."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from llm_proxy.dialects import openai_responses, registry
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage
from tests.goldens import check_cuts, check_pieces, golden, streams
from tests.spoiled import nested, spoiled

PATH = "/v1/responses"
TEXT = Part(PartKind.TEXT, "hi")


def asked(**request: object) -> Asked:
    return openai_responses.asked(PATH, json.dumps(request).encode())


def plain(value: object, status: int = 200) -> Answer:
    (answer,) = openai_responses.answers(Content("body", json.dumps(value).encode(), status=status))
    return answer


def sse(*events: dict[str, object]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def streamed(*events: dict[str, object], complete: bool = True) -> tuple[Answer, ...]:
    return openai_responses.answers(Content("events", sse(*events), complete=complete))


def response(id: str = "resp_1", status: str = "completed", **facts: object) -> dict[str, object]:
    return {"id": id, "object": "response", "model": "gpt-5.2", "status": status, **facts}


def event(kind: str, **fields: object) -> dict[str, object]:
    return {"type": f"response.{kind}", **fields}


CREATED = event("created", response=response(status="in_progress"))


# --- golden files


def test_a_plain_answer_is_understood():
    """Model, words, tokens, id, tier."""
    one = golden("responses-plain")
    assert one.asked.messages == (Message("user", (Part(PartKind.TEXT, "Say hello."),)),)
    assert one.last.message.text == "Hello from the fake provider: Grüße, 世界 🌍.\n"
    assert one.last.usage == Usage(input=10, cache_read=11, output=9)
    assert (one.last.model, one.last.stop_reason, one.last.service_tier) == ("gpt-5.2", "completed", "default")
    assert one.last.response_id.startswith("resp_")


def test_thoughts_and_a_tool_call_are_one_message():
    """Items of a stream in their order."""
    one = golden("responses-tool-stream")
    thought, call = one.last.message.parts
    assert thought == Part(PartKind.THINKING, "The user wants an answer.")
    assert (call.kind, call.name, call.text) == (PartKind.TOOL_CALL, "weather", '{"city":"Zürich","days":3}')
    assert call.id.startswith("call_")
    assert one.last.usage.reasoning == 3
    assert (one.asked.tools, one.asked.stream) == (("weather",), True)


@pytest.mark.parametrize("name", streams("responses"))
def test_a_stream_means_the_same_in_whatever_pieces_it_comes(name):
    """Split at every byte and at random."""
    check_pieces(golden(name))


@pytest.mark.parametrize("name", streams("responses"))
def test_a_cut_stream_gives_what_was_there(name):
    """Cut at every byte; the deltas build up what the last event would have repeated."""
    check_cuts(golden(name))


@pytest.mark.parametrize("name", ["responses-stream", "responses-tool-stream"])
def test_the_deltas_alone_give_the_same_message(name):
    """All but the last event came."""
    one = golden(name)
    data = one.answer[: one.answer.index(b"event: response.completed")]
    (cut,) = openai_responses.answers(Content("events", data, complete=False))
    assert cut.message == one.last.message
    assert (cut.partial, cut.stop_reason, cut.usage) == (True, "", None)
    assert (cut.model, cut.response_id) == (one.last.model, one.last.response_id)


@pytest.mark.parametrize("name", ["responses-plain", "responses-tool"])
def test_the_official_sdk_sees_the_same(name):
    """Words and tokens."""
    theirs, ours = Response.model_validate_json(golden(name).answer), golden(name).last
    assert ours.message.text == theirs.output_text
    assert ours.response_id == theirs.id
    assert (ours.usage.prompt, ours.usage.output) == (theirs.usage.input_tokens, theirs.usage.output_tokens)
    assert ours.usage.cache_read == theirs.usage.input_tokens_details.cached_tokens


# --- WebSocket


def test_each_response_of_a_websocket_is_an_answer():
    """The one that only warms up too: it is charged."""
    one = golden("responses-websocket")
    warm, said, called = one.answers
    assert (warm.message, warm.usage.prompt > 0, warm.partial) == (None, True, False)
    assert said.message.text == "Hello from the"
    assert called.message.parts[0].name == "weather"
    assert len({answer.response_id for answer in one.answers}) == 3


def test_a_websocket_cut_anywhere_gives_what_was_there():
    """Whole messages only: what is cut within one is not in the record."""
    one = golden("responses-websocket")
    for at in range(len(one.messages)):
        told = openai_responses.answers(Content("messages", messages=one.messages[:at], complete=False))
        whole = one.answers[: len(told)]
        assert told[:-1] == whole[:-1]
        assert not told or told == whole or told[-1].partial


def test_what_a_client_asks_over_a_websocket_is_told_together():
    """A request that continues an answer adds its messages; one that names none starts anew."""

    def create(**request: object) -> tuple[str, bytes]:
        return "client", json.dumps({"type": "response.create", "model": "m", **request}).encode()

    told = openai_responses.asked_in(
        [
            create(generate=False, input=[], previous_response_id="resp_0", tools=[{"type": "function", "name": "f"}]),
            ("server", b'{"type":"response.created","input":"not asked"}'),
            create(previous_response_id="resp_1", input="hi"),
            create(previous_response_id="resp_2", input="ho", instructions="Be brief."),
        ]
    )
    assert [message.text for message in told.messages] == ["hi", "ho"]
    assert (told.model, told.system, told.tools, told.stream) == ("m", "Be brief.", ("f",), True)
    assert told.previous_response == "resp_0"
    anew = openai_responses.asked_in([create(input="hi"), create(input="ho")])
    assert [message.text for message in anew.messages] == ["ho"]
    assert openai_responses.asked_in([]).messages == ()


def test_lanes_of_a_websocket_are_kept_apart():
    """Their events interleave."""
    sent = []
    for lane in ("a", "b"):
        sent.append(event("created", response=response(f"resp_{lane}", "in_progress"), stream_id=lane))
    for lane in ("b", "a"):
        sent.append(event("output_text.delta", output_index=0, content_index=0, delta=lane, stream_id=lane))
    sent.append(event("completed", response=response("resp_b"), stream_id="b"))
    messages = tuple(("server", json.dumps(one).encode()) for one in sent)
    one, two = openai_responses.answers(Content("messages", messages=messages))
    assert (one.message.text, one.response_id, one.partial) == ("a", "resp_a", True)
    assert (two.message.text, two.response_id, two.partial) == ("b", "resp_b", False)


def test_a_refused_request_on_a_websocket_is_an_answer_with_an_error():
    """The next one goes on."""
    refused = {"type": "error", "status": 400, "error": {"type": "invalid_request_error", "message": "No."}}
    messages = [refused, CREATED, event("completed", response=response())]
    told = openai_responses.answers(
        Content("messages", messages=tuple(("server", json.dumps(one).encode()) for one in messages))
    )
    assert [(answer.error, answer.error_type, answer.partial) for answer in told] == [
        ("No.", "invalid_request_error", True),
        ("", "", False),
    ]


# --- requests

ITEMS = [
    ({"role": "user", "content": "hi"}, Message("user", (TEXT,))),
    ({"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "hi"}]}, Message("system", (TEXT,))),
    (
        {"type": "message", "role": "user", "content": [
            {"type": "input_image", "image_url": "data:image/jpeg;base64,AAAA"},
            {"type": "input_image", "file_id": "file_1"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
            {"type": "input_audio", "input_audio": {"format": "mp3", "data": "AAAA"}},
        ]},
        Message("user", (
            Part(PartKind.MEDIA, "image/jpeg", "image"),
            Part(PartKind.MEDIA, "file_1", "image"),
            Part(PartKind.MEDIA, "a.pdf", "document"),
            Part(PartKind.MEDIA, "audio/mp3", "audio"),
        )),
    ),
    (
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}, {"type": "refusal", "refusal": "no"}]},
        Message("assistant", (TEXT, Part(PartKind.REFUSAL, "no"))),
    ),
    (
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        Message("assistant", (Part(PartKind.TOOL_CALL, '{"a":1}', "f", "c1"),)),
    ),
    (
        {"type": "custom_tool_call", "id": "ct_1", "call_id": "c2", "name": "apply_patch", "input": "*** Begin"},
        Message("assistant", (Part(PartKind.TOOL_CALL, "*** Begin", "apply_patch", "c2"),)),
    ),
    ({"type": "function_call_output", "call_id": "c1", "output": "hi"}, Message("tool", (Part(PartKind.TOOL_RESULT, "hi", id="c1"),))),
    (
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "https://x/a"}]},
        Message("tool", (Part(PartKind.TOOL_RESULT, "hi", id="c1"), Part(PartKind.MEDIA, "https://x/a", "image"))),
    ),
    ({"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"}, Message("tool", (Part(PartKind.TOOL_RESULT, "ok", id="c2"),))),
    (
        {"type": "local_shell_call", "id": "ls_1", "call_id": "c3", "action": {"type": "exec", "command": ["ls"]}, "status": "completed"},
        Message("assistant", (Part(PartKind.TOOL_CALL, '{"command":["ls"],"type":"exec"}', "local_shell", "c3"),)),
    ),
    ({"type": "local_shell_call_output", "id": "c3", "output": "a"}, Message("tool", (Part(PartKind.TOOL_RESULT, "a", id="c3"),))),
    (
        {"type": "shell_call_output", "call_id": "c4", "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]},
        Message("tool", (Part(PartKind.TOOL_RESULT, '[{"outcome":{"exit_code":0,"type":"exit"},"stderr":"","stdout":"a"}]', id="c4"),)),
    ),
    (
        {"type": "apply_patch_call_output", "call_id": "c5", "status": "failed", "output": "no such file"},
        Message("tool", (Part(PartKind.TOOL_RESULT, "no such file", id="c5", failed=True),)),
    ),
    (
        {"type": "computer_call_output", "call_id": "c6", "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,A"}},
        Message("tool", (Part(PartKind.TOOL_RESULT, id="c6"), Part(PartKind.MEDIA, "image/png", "image"))),
    ),
    (
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "content": [{"type": "reasoning_text", "text": "ah"}], "encrypted_content": "gAAA"},
        Message("assistant", (Part(PartKind.THINKING, "hm"), Part(PartKind.THINKING, "ah"))),
    ),
    (
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "news"}},
        Message("assistant", (Part(PartKind.TOOL_CALL, '{"query":"news","type":"search"}', "web_search"),)),
    ),
    (
        {"type": "file_search_call", "id": "fs_1", "queries": ["a"], "results": [{"file_id": "f", "text": "found"}]},
        Message("assistant", (Part(PartKind.TOOL_CALL, '["a"]', "file_search"), Part(PartKind.TOOL_RESULT, "found", "file_search"))),
    ),
    (
        {"type": "code_interpreter_call", "id": "ci_1", "code": "1 + 1", "outputs": [{"type": "logs", "logs": "2"}]},
        Message("assistant", (Part(PartKind.TOOL_CALL, "1 + 1", "code_interpreter"), Part(PartKind.TOOL_RESULT, "2", "code_interpreter"))),
    ),
    (
        {"type": "image_generation_call", "id": "ig_1", "result": "AAAA", "revised_prompt": "a cat", "output_format": "webp"},
        Message("assistant", (Part(PartKind.TOOL_CALL, "a cat", "image_generation"), Part(PartKind.MEDIA, "image/webp", "image"))),
    ),
    (
        {"type": "mcp_call", "id": "mcp_1", "name": "roll", "server_label": "dice", "arguments": '{"n": 2}', "output": "7"},
        Message("assistant", (Part(PartKind.TOOL_CALL, '{"n":2}', "roll"), Part(PartKind.TOOL_RESULT, "7", "roll"))),
    ),
    (
        {"type": "mcp_call", "id": "mcp_1", "name": "roll", "arguments": "{}", "output": None, "error": "no dice"},
        Message("assistant", (Part(PartKind.TOOL_CALL, "{}", "roll"), Part(PartKind.TOOL_RESULT, "no dice", "roll", failed=True))),
    ),
    ({"type": "mcp_list_tools", "id": "l_1", "tools": []}, Message("assistant", (Part(PartKind.OTHER, name="mcp_list_tools"),))),
    ({"type": "mcp_approval_response", "approve": True}, Message("user", (Part(PartKind.OTHER, name="mcp_approval_response"),))),
    ({"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAA"}, Message("assistant", (Part(PartKind.OTHER, name="compaction"),))),
    ({"type": "item_reference", "id": "msg_1"}, Message("assistant", (Part(PartKind.OTHER, name="item_reference", id="msg_1"),))),
    ({"type": "hologram", "text": "what"}, Message("assistant", (Part(PartKind.OTHER, "what", "hologram"),))),
]  # fmt: skip


@pytest.mark.parametrize(("item", "message"), ITEMS)
def test_items_are_understood_in_all_their_forms(item, message):
    """Messages, calls and results of every tool, thoughts; unknown ones keep their name."""
    assert asked(input=[item]).messages == (message,)


@pytest.mark.parametrize(
    "item", [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, {"type": "compaction_trigger"}]
)
def test_items_that_say_nothing_are_no_messages(item):
    """Encrypted thoughts, settings."""
    assert asked(input=[item, {"role": "user", "content": "hi"}]).messages == (Message("user", (TEXT,)),)


def test_what_the_model_does_in_a_row_is_one_message():
    """As its answer was: else no history would be recognised."""
    items = [item for item, message in ITEMS if message.role == "assistant"]
    (message,) = asked(input=items).messages
    assert message == plain(response(output=items)).message
    assert len(asked(input=[items[0], {"role": "user", "content": "hi"}, items[0]]).messages) == 3


def test_a_request_tells_what_it_wants():
    """Also the tools that stand in its input, and the answer that it continues."""
    told = asked(
        model="gpt-5.2",
        instructions="Be brief.",
        stream=True,
        max_output_tokens=7,
        service_tier="priority",
        previous_response_id="resp_0",
        tools=[{"type": "function", "name": "f"}, {"type": "web_search"}, {"type": "mcp", "server_label": "dice"}],
        input=[{"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "g"}]}, {"role": "user", "content": "hi"}],
    )  # fmt: skip
    assert (told.model, told.system, told.stream, told.max_tokens) == ("gpt-5.2", "Be brief.", True, 7)
    assert (told.service_tier, told.previous_response) == ("priority", "resp_0")
    assert told.tools == ("f", "web_search", "dice", "g")
    assert told.messages == (Message("user", (TEXT,)),)


def test_to_look_after_an_answer_asks_nothing():
    """GET, cancel and upgrade have no body, which is no trouble."""
    assert openai_responses.asked("/v1/responses/resp_1", b"") == Asked("openai.responses")
    assert openai_responses.asked(PATH, b"{").trouble


# --- answers


def test_a_background_answer_is_counted_when_it_is_there():
    """Queued it has no tokens and says nothing; asked after, it does."""
    queued = plain(response(status="queued", background=True, output=[], usage=None))
    assert (queued.stop_reason, queued.usage, queued.message, queued.partial) == ("queued", None, None, False)
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    done = plain(response(background=True, output=[ITEMS[3][0]], usage=usage))
    assert (done.stop_reason, done.usage, done.response_id) == (
        "completed",
        Usage(input=5, output=2),
        queued.response_id,
    )
    assert plain(response(status="cancelled", output=[])).stop_reason == "cancelled"
    assert registry.api_of("GET", "/v1/responses/resp_1") == "openai.responses"
    assert registry.api_of("POST", "/v1/responses/resp_1/cancel") == "openai.responses"


def test_an_incomplete_answer_says_why():
    """It is an end all the same."""
    incomplete = response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}, output=[])
    for told in (plain(incomplete), *streamed(CREATED, event("incomplete", response=incomplete))):
        assert (told.stop_reason, told.partial) == ("max_output_tokens", False)


def test_a_failed_answer_tells_the_error():
    """Plain and streamed; what was said before is kept."""
    failed = response(status="failed", error={"code": "server_error", "message": "Oh no."}, output=[])
    said = event("output_text.delta", output_index=0, content_index=0, delta="hi")
    for told in (plain(failed), *streamed(CREATED, said, event("failed", response=failed))):
        assert (told.error, told.error_type, told.stop_reason, told.partial) == (
            "Oh no.",
            "server_error",
            "failed",
            False,
        )
    assert told.message.text == "hi"


def test_an_error_event_ends_a_stream():
    """Its words are the provider's."""
    (told,) = streamed(
        CREATED, {"type": "error", "code": "rate_limit_exceeded", "message": "Slow down.", "param": None}
    )
    assert (told.error, told.error_type, told.partial, told.response_id) == (
        "Slow down.",
        "rate_limit_exceeded",
        True,
        "resp_1",
    )


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, {"error": {"message": "Bad key", "type": "invalid_request_error", "code": "invalid_api_key"}}, "invalid_request_error", "Bad key"),
        (403, {"detail": "Unauthorized"}, "", "Unauthorized"),
        (502, "no object", "", '"no object"'),
    ],
)  # fmt: skip
def test_a_providers_error_is_told_in_its_own_words(status, body, kind, words):
    """ChatGPT's own backend says `detail`."""
    told = plain(body, status)
    assert (told.error_type, told.error, told.message) == (kind, words, None)


def test_chatgpts_backend_leaves_the_items_out_at_the_end():
    """They came before."""
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    (told,) = streamed(
        CREATED,
        event("output_item.done", output_index=0, item=item),
        event("completed", response={"id": "resp_1", "usage": usage, "output": []}),
    )
    assert (told.message, told.usage, told.partial) == (Message("assistant", (TEXT,)), Usage(input=5, output=2), False)


DELTAS = [
    ("refusal", {"delta": "no"}, Part(PartKind.REFUSAL, "no")),
    ("reasoning_text", {"delta": "hm"}, Part(PartKind.THINKING, "hm")),
    ("reasoning_summary_text", {"delta": "hm", "summary_index": 1}, Part(PartKind.THINKING, "hm")),
    ("function_call_arguments", {"delta": '{"a'}, Part(PartKind.TOOL_CALL, '{"a', "function")),
    ("custom_tool_call_input", {"delta": "ls"}, Part(PartKind.TOOL_CALL, "ls", "custom_tool")),
    ("mcp_call_arguments", {"delta": "{}"}, Part(PartKind.TOOL_CALL, "{}", "mcp")),
    ("code_interpreter_call_code", {"delta": "1"}, Part(PartKind.TOOL_CALL, "1", "code_interpreter")),
]


@pytest.mark.parametrize(("kind", "fields", "part"), DELTAS)
def test_every_kind_of_delta_tells_where_it_belongs(kind, fields, part):
    """Even where the item's beginning was missed."""
    (told,) = streamed(event(f"{kind}.delta", output_index=3, content_index=0, **fields))
    assert told.message.parts == (part,)
    assert told.partial


def test_a_finished_item_replaces_what_its_deltas_said():
    """Some of them may be missing from the record."""
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}
    said = event("output_text.delta", output_index=0, content_index=0, delta="i")
    (told,) = streamed(CREATED, said, event("output_item.done", output_index=0, item=item))
    assert (told.message, told.partial) == (Message("assistant", (TEXT,)), True)


def test_items_and_pieces_stand_in_the_order_of_their_indices():
    """However their deltas interleave."""
    deltas = [(1, 0, "c"), (0, 1, "b"), (1, 0, "d"), (0, 0, "a")]
    (told,) = streamed(
        CREATED,
        *(event("output_text.delta", output_index=at, content_index=piece, delta=said) for at, piece, said in deltas),
    )
    assert [part.text for part in told.message.parts] == ["a", "b", "cd"]


def test_a_compacted_conversation_is_no_words_of_the_model():
    """It repeats what users said, and is charged."""
    items = [
        {"type": "message", "role": "user", "content": "hi"},
        {"type": "compaction", "id": "c", "encrypted_content": "gAAA"},
    ]
    usage = {"input_tokens": 50, "output_tokens": 20, "total_tokens": 70}
    told = plain({"id": "resp_1", "object": "response.compaction", "output": items, "usage": usage})
    assert told.message == Message("assistant", (Part(PartKind.OTHER, name="compaction"),))
    assert told.usage == Usage(input=50, output=20)


def test_tools_that_the_provider_ran_are_counted_by_use():
    """To open a page is not charged; where the provider counts itself, its count holds."""
    search, page, file = (
        {"type": "web_search_call", "action": {"type": "search", "query": "a"}},
        {"type": "web_search_call", "action": {"type": "open_page", "url": "https://x"}},
        {"type": "file_search_call", "queries": ["a"]},
    )
    usage = {"input_tokens": 1, "output_tokens": 1}
    told = plain(response(output=[search, page, search, file], usage=usage))
    assert told.usage == Usage(input=1, output=1, server_tools=(("file_search", 1), ("web_search", 2)))
    told = plain(response(output=[search, search], usage=usage, tool_usage={"web_search": {"num_requests": 1}}))
    assert told.usage.server_tools == (("web_search", 1),)
    assert plain(response(output=[search])).usage is None


# --- keys


@pytest.mark.parametrize("name", ["responses-plain", "responses-tool"])
def test_an_answer_has_the_key_of_the_items_that_repeat_it(name):
    """As the official SDK sends them back, and as clients that drop thoughts and ids do."""
    one = golden(name)
    output = Response.model_validate_json(one.answer).output
    sent = [item.model_dump(exclude_none=True) for item in output]
    terse = [
        {field: value for field, value in item.items() if field not in ("id", "status")}
        for item in sent
        if item["type"] != "reasoning"
    ]
    for items in (sent, terse):
        (message,) = asked(input=items).messages
        assert message.key == one.last.message.key


def test_a_streamed_answer_has_the_key_of_its_repetition():
    """Arguments written anew are the same arguments."""
    one = golden("responses-tool-stream")
    call = one.last.message.parts[1]
    item = {
        "type": "function_call",
        "call_id": call.id,
        "name": "weather",
        "arguments": '{ "days": 3,\n "city": "Z\\u00fcrich" }',
    }
    assert asked(input=[item]).messages[0].key == one.last.message.key
    assert asked(input=[{**item, "call_id": "other"}]).messages[0].key != one.last.message.key
    said = golden("responses-stream").last.message
    assert asked(input=[{"role": "assistant", "content": said.text}]).messages[0].key == said.key


# --- anything at all

DOCUMENTS = [
    {
        "model": "m",
        "instructions": "x",
        "input": [item for item, _ in ITEMS],
        "tools": [{"type": "function", "name": "f"}],
    },
    response(
        output=[item for item, _ in ITEMS],
        usage={"input_tokens": 5, "output_tokens": 2},
        error={"code": "x", "message": "y"},
    ),
    event("completed", response=response(output=[ITEMS[3][0]])),
    event("output_item.added", output_index=0, item=ITEMS[4][0]),
    event("function_call_arguments.delta", output_index=0, delta="{"),
    {"type": "error", "code": "x", "message": "y"},
]


@given(st.binary(max_size=60), st.sampled_from(["body", "events"]), st.sampled_from([200, 500, None]))
def test_no_bytes_raise(data, kind, status):
    """Whatever they are, and whichever way they come."""
    assert openai_responses.asked(PATH, data) is not None
    assert openai_responses.asked_in([("client", data)]) is not None
    openai_responses.answers(Content(kind, data, status=status))
    openai_responses.answers(Content("messages", messages=(("server", data), ("client", data)), status=101))


@pytest.mark.parametrize("data", nested('[{"type":"thinking","thinking":%}]', '{"type":"mcp_call","output":[%]}'))
def test_no_depth_raises(data):
    """Of JSON that contains itself."""
    for inner in (data, b'{"input":[{"content":%s}]}' % data, b'{"input":%s}' % data, b'{"output":[%s]}' % data):
        openai_responses.asked(PATH, inner)
        openai_responses.answers(Content("body", inner))
        openai_responses.answers(Content("events", b"data: " + inner + b"\n\n"))


@given(st.lists(spoiled(*DOCUMENTS), min_size=1, max_size=4), st.sampled_from([200, 400]))
def test_no_json_raises(datas, status):
    """Good documents, spoiled anywhere; and what comes out can be written."""
    asked = openai_responses.asked(PATH, datas[0])
    told = list(openai_responses.answers(Content("body", datas[0], status=status)))
    told += openai_responses.answers(Content("events", b"".join(b"data: " + data + b"\n\n" for data in datas)))
    told += openai_responses.answers(
        Content("messages", messages=tuple(("server", data) for data in datas), status=101)
    )
    for message in (*asked.messages, *(answer.message for answer in told if answer.message)):
        assert len(message.key) == 16
        assert message.text.encode() is not None
