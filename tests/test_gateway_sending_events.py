"""What the gateway reads of streams: events, a model's first word, ends, failures and token counts."""

import itertools
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway.sending import events as module
from llm_proxy.gateway.sending.client import Broken
from llm_proxy.gateway.sending.events import Events, Retelling, Watch, answered, begins
from llm_proxy.gateway.translate.errors import Kind
from tests.fakebedrock import frames, replies


def sse(*events, names=False):
    out = b""
    for event in events:
        name = b"event: %b\n" % event["type"].encode() if names else b""
        data = event if isinstance(event, bytes) else json.dumps(event, separators=(",", ":")).encode()
        out += name + b"data: " + data + b"\n\n"
    return out


def chunk(delta=None, finish=None, **more):
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "choices": choices} | more


CHAT_USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}
CHAT = [
    chunk({"role": "assistant", "content": ""}, usage=None),
    chunk({"content": 'He said "usage":{} '}, usage=None),
    chunk({"content": "and [DONE]"}, usage=None),
    chunk({}, "stop", usage=None),
    chunk(usage=CHAT_USAGE),
]
RESPONSES = [
    {"type": "response.created", "response": {"id": "r", "usage": None, "error": None}},
    {"type": "response.in_progress", "response": {"id": "r", "usage": None}},
    {"type": "response.output_item.added", "item": {"type": "message"}},
    {"type": "response.output_text.delta", "delta": "response.completed"},
    {
        "type": "response.completed",
        "response": {"usage": {"input_tokens": 12, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 2}}},
    },
]
ANTHROPIC = [
    {
        "type": "message_start",
        "message": {"id": "m", "usage": {"input_tokens": 10, "cache_read_input_tokens": 2, "output_tokens": 1}},
    },
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "message_stop"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]
STREAMS = {
    "chat": sse(*CHAT) + b"data: [DONE]\n\n",
    "responses": sse(*RESPONSES, names=True),
    "anthropic": sse(*ANTHROPIC, names=True),
}
USAGE = Usage(input=10, cache_read=2, output=5)


# --- events


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
@pytest.mark.parametrize(("api", "events"), [("chat", CHAT), ("responses", RESPONSES), ("anthropic", ANTHROPIC)])
def test_events_come_whole_however_they_are_cut(api, events, size):
    """Every event is told once, as JSON, wherever the stream was cut; the last needs no blank line."""
    stream = b": a comment\n\n" + STREAMS[api].rstrip(b"\n").replace(b"\n", b"\r\n")
    decoder = Events(api)
    told = []
    for start in range(0, len(stream), size):
        told += decoder.feed(stream[start : start + size])
    assert told + decoder.finish() == events


LINES = [
    b"data: {}",
    b'data:{"a":1}',
    b"event: x",
    b"event: error",
    b": note",
    b"id: 1",
    b"data: [DONE]",
    b"retry: 5",
    b"",
]


@given(
    st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])), max_size=20),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_pieces_of_any_cut_say_the_same(lines, cuts):
    """Whether a stream comes whole, in pieces that end with an event, or byte by byte, its events are the same."""
    stream = b"data: {}\n\n" + b"".join(line + end for line, end in lines)
    ways = [
        [stream],
        [stream[at : at + 1] for at in range(len(stream))],
        re.findall(rb".+?(?:\n\n|\Z)", stream, re.DOTALL),
    ]
    edges = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    ways.append([stream[start:stop] for start, stop in itertools.pairwise(edges)])
    told = []
    for pieces in ways:
        assert b"".join(pieces) == stream
        events = Events("chat")
        try:
            told.append([event for piece in pieces for event in events.feed(piece)] + events.finish())
        except Broken:
            told.append("broken")
    assert all(one == told[0] for one in told)


@pytest.mark.parametrize("data", [b"{", b"[1]", b"text", b"\xff", b'{"a":', b"null"])
def test_what_is_no_event_is_not_passed_over(data):
    """A piece of a stream that cannot be read is told: leaving it out would change what the model said."""
    with pytest.raises(Broken) as caught:
        Events("chat").feed(b"data: " + data + b"\n\n")
    assert caught.value.code == "bad_event"


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        (b"event: error\ndata: overloaded\n\n", {"type": "api_error", "message": "overloaded"}),
        (b'event: error\ndata: {"message":"no"}\n\n', {"message": "no"}),
        (b'event: error\ndata: {"error":{"message":"no"}}\n\n', {"message": "no"}),
    ],
)
def test_an_event_named_error_is_one(stream, event):
    """Hosts name an error by the event alone, or write bare text."""
    ((told),) = Events("chat").feed(stream)
    assert told["error"] == event


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_bedrocks_frames_are_events(size):
    """A frame is its type with its payload, wherever the stream was cut; an exception keeps its name and words."""
    stream = b"".join(replies.converse_stream()) + frames.exception("throttlingException", "Too many")
    stream += frames.error("InternalFailure", "oh")
    decoder = Events("bedrock")
    told = []
    for start in range(0, len(stream), size):
        told += decoder.feed(stream[start : start + size])
    assert decoder.finish() == []
    names = [next(iter(event)) for event in told]
    assert names[0] == "messageStart"
    assert names[-3:] == ["metadata", "throttlingException", "internalFailureException"]
    assert [event[name] for event, name in zip(told[-2:], names[-2:], strict=True)] == [
        {"message": "Too many"},
        {"message": "oh"},
    ]


@pytest.mark.parametrize("decoder", [lambda: Events("bedrock"), Retelling])
def test_a_damaged_frame_is_told(decoder):
    """A frame whose checksum is wrong, or that is not whole at the end, breaks the answer."""
    one = frames.event("messageStart", {"role": "assistant"})
    with pytest.raises(Broken, match="damaged"):
        decoder().feed(frames.damaged(one))
    cut = decoder()
    cut.feed(one[:-3])
    with pytest.raises(Broken, match="within a frame"):
        cut.finish()


def test_frames_told_anew_are_anthropics_events():
    """Names are the events' types, data their own bytes on one line, failures Anthropic's errors."""
    spoken = frames.chunk({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a\nb"}})
    retelling = Retelling()
    told = retelling.feed(spoken) + retelling.feed(frames.exception("modelTimeoutException", "late"))
    retelling.finish()
    assert told == (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
        b'"text":"a\\nb"}}\n\nevent: error\ndata: {"type":"error","error":{"type":"timeout_error","message":"late"}}\n\n'
    )
    for wrong in (b"not json", b'{"type":"a\\nb"}', b"[]"):
        with pytest.raises(Broken):
            Retelling().feed(frames.frame(wrong, {":event-type": "other", ":message-type": "event"}))


# --- the first word

SILENT = {
    "chat": [
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": None, "refusal": None}),
        chunk(),
        {"choices": [], "prompt_filter_results": [{}]},
        chunk(usage=CHAT_USAGE),
        {"error": {"message": "no"}},
        {"choices": "odd"},
    ],
    "completions": [{"choices": [{"text": ""}]}],
    "responses": [*RESPONSES[:2], {"type": "error"}, {"type": "response.failed"}, {}, {"type": 5}],
    "anthropic": [
        *ANTHROPIC[:3],
        {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "error", "error": {}},
        {"type": "unknown"},
    ],
    "gemini": [
        {"candidates": []},
        {"candidates": [{"content": {"role": "model"}}]},
        {"candidates": [{"content": {"parts": [{"text": ""}]}}]},
        {"usageMetadata": {"promptTokenCount": 1}},
        {"error": {"code": 503}},
    ],
    "bedrock": [{"messageStart": {"role": "assistant"}}, {"throttlingException": {"message": "x"}}, {"metadata": {}}],
}
SPEAKING = {
    "chat": [
        chunk({"content": "x"}),
        chunk({"reasoning_content": "x"}),
        chunk({"refusal": "x"}),
        chunk({"tool_calls": [{"index": 0}]}),
        chunk({}, "stop"),
        chunk({}, "content_filter"),
    ],
    "completions": [{"choices": [{"text": "x"}]}, {"choices": [{"text": "", "finish_reason": "stop"}]}],
    "responses": [*RESPONSES[2:], {"type": "response.incomplete"}, {"type": "response.reasoning_summary_text.delta"}],
    "anthropic": [
        *ANTHROPIC[3:],
        {"type": "content_block_start", "content_block": {"type": "tool_use", "id": "t"}},
        {"type": "content_block_start", "content_block": {"type": "redacted_thinking", "data": "x"}},
        {"type": "content_block_start", "content_block": {"type": "text", "text": "x"}},
    ],
    "gemini": [
        {"candidates": [{"content": {"parts": [{"text": "x"}]}}]},
        {"candidates": [{"content": {"parts": [{"text": "x", "thought": True}]}}]},
        {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}}]},
        {"candidates": [{"finishReason": "STOP"}]},
        {"promptFeedback": {"blockReason": "SAFETY"}},
    ],
    "bedrock": [{"contentBlockStart": {}}, {"contentBlockDelta": {}}, {"messageStop": {"stopReason": "end_turn"}}],
}


@pytest.mark.parametrize(("api", "event"), [(api, event) for api, events in SILENT.items() for event in events])
def test_before_the_first_word(api, event):
    """What comes before any output, and failures, still let the call go elsewhere."""
    assert begins(api, event) is False


@pytest.mark.parametrize(("api", "event"), [(api, event) for api, events in SPEAKING.items() for event in events])
def test_the_first_word(api, event):
    """Text, thoughts, refusals, calls and ends are the model's: nobody else may answer now."""
    assert begins(api, event) is True


# --- streams that pass


@pytest.mark.parametrize("size", [1, 5, 100, 10_000])
@pytest.mark.parametrize("api", STREAMS)
def test_a_passing_stream_is_understood(api, size):
    """Begin, end and token counts are known, wherever the stream was cut, whatever its texts look like."""
    watch, stream = Watch(api), STREAMS[api]
    for start in range(0, len(stream), size):
        watch.feed(stream[start : start + size])
    watch.finish()
    assert (watch.begun, watch.over, watch.failure, watch.usage) == (True, True, None, USAGE)


@pytest.mark.parametrize("api", STREAMS)
def test_the_model_is_heard_at_its_first_word(api):
    """`begun` is true from the very event on that holds the first output."""
    watch = Watch(api)
    for event in re.findall(rb".*?\n\n", STREAMS[api], re.DOTALL):
        before = watch.begun
        watch.feed(event)
        if watch.begun != before:
            (told,) = Events(api).feed(event)
            assert begins(api, told)
            return
    raise AssertionError("it was never heard")


@pytest.mark.parametrize("api", STREAMS)
def test_a_passing_stream_that_ends_early_is_a_failure(api):
    """Cut behind any event but the last, a stream is no whole answer; a provider's counts are kept all the same."""
    events = re.findall(rb".*?\n\n", STREAMS[api], re.DOTALL)
    ends = {"chat": 3}.get(api, len(events) - 1)  # behind finish_reason nothing but counts is missing
    for count in range(len(events)):
        watch = Watch(api)
        for event in events[:count]:
            watch.feed(event)
        watch.finish()
        assert (watch.failure is None) == watch.over == (count > ends), count


@pytest.mark.parametrize(
    ("api", "event", "kind", "message"),
    [
        ("chat", {"error": {"message": "slow down", "type": "requests"}}, Kind.LIMITED, "slow down"),
        (
            "responses",
            {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "oh"}}},
            Kind.BROKEN,
            "oh",
        ),
        (
            "anthropic",
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            Kind.OVERLOADED,
            "Overloaded",
        ),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_failure_in_a_passing_stream_is_told(api, event, kind, message, begun):
    """An error event is found before the first word and behind it, with its kind and words, and nothing ends well."""
    watch = Watch(api)
    events = {"chat": CHAT[:2], "responses": RESPONSES[:4], "anthropic": ANTHROPIC[:4]}[api]
    watch.feed(sse(*(events if begun else events[:1]), names=api != "chat"))
    watch.feed(sse(event))
    watch.finish()
    assert watch.failure is not None
    assert (watch.begun, watch.over, watch.failure.kind, watch.failure.message) == (begun, False, kind, message)


def test_a_host_may_leave_done_out():
    """A chat stream whose choice has finished is whole without OpenAI's last event, where it comes to a good end."""
    watch = Watch("chat")
    watch.feed(sse(*CHAT))
    assert not watch.over
    watch.finish()
    assert (watch.over, watch.failure) == (True, None)


def test_counts_of_every_chunk_replace_each_other():
    """Some hosts count in each chunk what has come up to it."""
    watch = Watch("chat")
    for count in (1, 2, 3):
        watch.feed(sse(chunk({"content": "x"}, usage={"prompt_tokens": 7, "completion_tokens": count})))
    assert watch.usage == Usage(input=7, output=3)


def test_little_of_a_stream_is_kept(monkeypatch):
    """Neither a long stream nor an event without end is kept whole; what follows them is understood."""
    monkeypatch.setattr(module, "LINE_LIMIT", 200_000)
    watch = Watch("chat")
    most = 0
    for _ in range(10_000):
        watch.feed(sse(CHAT[1]))
        most = max(most, watch._size)
    assert most < 70_000
    watch.feed(b"data: {")
    for _ in range(10_000):
        watch.feed(b"x" * 100)
        most = max(most, watch._size)
    assert 100_000 < most < 201_000
    assert sum(map(len, watch._tail)) == watch._size
    watch.feed(b'"usage":{}\n\n' + sse(CHAT[-1]) + b"data: [DONE]\n\n")
    assert (watch.over, watch.usage) == (True, USAGE)


def test_a_large_last_event_is_read():
    """A response's last event repeats all of it: its counts are found behind megabytes, in pieces of any size."""
    large = RESPONSES[-1] | {"response": {"output": ["x" * 3_000_000]} | RESPONSES[-1]["response"]}
    stream = sse(*RESPONSES[:-1], large, names=True)
    for size in (1000, 65_536, len(stream)):
        watch = Watch("responses")
        for start in range(0, len(stream), size):
            watch.feed(stream[start : start + size])
        watch.finish()
        assert (watch.over, watch.usage, watch.failure) == (True, USAGE, None)


@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(1, 200), max_size=30), st.binary(max_size=60))
def test_nothing_that_passes_is_an_error_of_ours(api, sizes, noise):
    """Whatever comes behind the first word, a stream is watched to its end without a failure of our own."""
    watch = Watch(api)
    stream = STREAMS[api] + b"data: " + noise + b"\n\n" + noise
    start = 0
    for size in [*sizes, len(stream)]:
        watch.feed(stream[start : start + size])
        start += size
    watch.finish()
    assert watch.begun
    assert watch.over or watch.failure is not None


def test_watching_is_cheap():
    """Ten thousand events that pass cost some milliseconds; they may take no more than a wide multiple of that."""
    event = sse(chunk({"content": "some words of the model "}, created=1_700_000_000, model="gpt-5.2", usage=None))
    watch = Watch("chat")
    watch.feed(event)
    begun = time.process_time()
    for _ in range(10_000):
        watch.feed(event)
    spent = time.process_time() - begun
    watch.feed(sse(CHAT[-1]))
    assert watch.usage == USAGE
    assert spent < 0.25


# --- whole answers


@pytest.mark.parametrize(
    ("api", "body", "usage"),
    [
        ("chat", {"choices": [], "usage": CHAT_USAGE}, USAGE),
        ("responses", {"output": [], "usage": RESPONSES[-1]["response"]["usage"]}, USAGE),
        ("anthropic", {"content": [], "usage": ANTHROPIC[0]["message"]["usage"] | {"output_tokens": 5}}, USAGE),
        ("embeddings", {"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}, Usage(input=3)),
        ("completions", {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}, Usage(input=3, output=2)),
        ("count_tokens", {"input_tokens": 9, "usage": {"input_tokens": 9}}, Usage()),
        ("chat", {"usage": None}, Usage()),
        ("chat", {"usage": "odd"}, Usage()),
        ("chat", {"usage": {"prompt_tokens": -1, "completion_tokens": "x"}}, Usage()),
        ("chat", {}, Usage()),
        ("chat", [{"usage": {}}], Usage()),
    ],
)
def test_the_counts_of_whole_answers(api, body, usage):
    """Token counts are read from each API's bodies; what tells none, or odd ones, has none."""
    assert answered(api, json.dumps(body).encode()) == usage


@given(st.sampled_from(["chat", "responses", "anthropic"]), st.binary(max_size=100))
def test_the_counts_of_anything(api, body):
    """No body makes reading its counts fail."""
    assert isinstance(answered(api, b'{"usage"' + body), Usage)
