"""Google's Gemini API is understood: plain, as events, as an array that grows, in the envelope of Gemini CLI's login."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.dialects import gemini
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage
from tests.goldens import check_cuts, check_pieces, golden, streams
from tests.spoiled import nested, spoiled

PATH = "/v1beta/models/gemini-3.1-pro-preview:generateContent"
STREAM = "/v1beta/models/gemini-3.1-pro-preview:streamGenerateContent"
TEXT = Part(PartKind.TEXT, "hi")


def asked(path: str = PATH, **request: object) -> Asked:
    return gemini.asked(path, json.dumps(request).encode())


def answers(value: object, status: int = 200, complete: bool = True) -> tuple[Answer, ...]:
    return gemini.answers(Content("body", json.dumps(value).encode(), status=status, complete=complete))


def streamed(*chunks: object) -> tuple[Answer, ...]:
    return gemini.answers(Content("events", "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks).encode()))


def chunk(*parts: object, stop: str | None = None, index: int = 0, **facts: object) -> dict[str, object]:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": index}
    return {"candidates": [{**candidate, "finishReason": stop} if stop else candidate], **facts}


# --- golden files


def test_a_plain_answer_is_understood():
    """Model, words, tokens, reason to stop."""
    one = golden("gemini-plain")
    assert (one.asked.model, one.asked.stream) == ("gemini-3.1-pro-preview", False)
    assert one.asked.messages == (Message("user", (Part(PartKind.TEXT, "Say hello."),)),)
    assert one.last.message.text == "Hello from the fake provider: Grüße, 世界 🌍.\n"
    assert one.last.usage == Usage(input=16, cache_read=11, output=9)
    assert (one.last.model, one.last.stop_reason, one.last.partial) == ("gemini-3.1-pro-preview", "STOP", False)
    assert one.last.response_id.startswith("gem")


def test_events_and_the_array_mean_the_same():
    """Its two ways to stream; the last count replaces those before."""
    events, array = golden("gemini-stream"), golden("gemini-array")
    for one in (events, array):
        assert one.asked.stream
        assert one.last.message == Message("assistant", (Part(PartKind.TEXT, "Hello from the"),))
        assert one.last.usage == Usage(input=16, cache_read=11, output=3)
        assert not one.last.partial


def test_thoughts_are_output_beside_the_candidates_count():
    """And a tool's arguments are an object."""
    one = golden("gemini-tool-stream")
    assert one.last.message.parts == (
        Part(PartKind.THINKING, "The user wants an answer."),
        Part(PartKind.TOOL_CALL, '{"city":"Zürich","days":3}', "weather"),
    )
    assert (one.last.usage.output, one.last.usage.reasoning) == (6, 3)
    assert one.asked.tools == ("weather",)


@pytest.mark.parametrize("name", streams("gemini"))
def test_a_stream_means_the_same_in_whatever_pieces_it_comes(name):
    """Split at every byte and at random."""
    check_pieces(golden(name))


@pytest.mark.parametrize("name", streams("gemini"))
def test_a_cut_stream_gives_what_was_there(name):
    """Cut at every byte, of the array too."""
    check_cuts(golden(name))


# --- tokens

USAGES = [
    # What is cached lies inside the prompt: 1,500 of 2,000 were read.
    (
        {"promptTokenCount": 2000, "cachedContentTokenCount": 1500, "candidatesTokenCount": 40, "totalTokenCount": 2040},
        Usage(input=500, cache_read=1500, output=40),
    ),
    # Thoughts lie beside what was said, what a tool brought beside the prompt: 10 + 90, and 100 + 250.
    (
        {"promptTokenCount": 100, "candidatesTokenCount": 10, "thoughtsTokenCount": 90, "toolUsePromptTokenCount": 250, "totalTokenCount": 450},
        Usage(input=350, output=100, reasoning=90),
    ),
    # Sound and pictures: 300 of 400 tokens of sound were cached, 258 are a picture and 50 a page.
    (
        {
            "promptTokenCount": 1000,
            "cachedContentTokenCount": 300,
            "candidatesTokenCount": 1400,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 292},
                {"modality": "AUDIO", "tokenCount": 400},
                {"modality": "IMAGE", "tokenCount": 258},
                {"modality": "DOCUMENT", "tokenCount": 50},
            ],
            "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 300}],
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}, {"modality": "AUDIO", "tokenCount": 100}],
        },
        Usage(input=700, cache_read=300, output=1400, input_audio=100, cache_read_audio=300, input_image=308, output_image=1290, output_audio=100),
    ),
    # Embeddings only read.
    ({"promptTokenCount": 8}, Usage(input=8)),
    ({}, None),
    # Nonsense never gives a negative count.
    ({"promptTokenCount": 5, "cachedContentTokenCount": 9, "candidatesTokenCount": -1, "promptTokensDetails": [7]}, Usage(cache_read=9)),
]  # fmt: skip


@pytest.mark.parametrize(("told", "usage"), USAGES)
def test_tokens_are_counted_once_each(told, usage):
    """No class overlaps another."""
    (answer,) = answers(chunk({"text": "hi"}, stop="STOP", usageMetadata=told))
    assert answer.usage == usage


def test_the_last_count_of_a_stream_replaces():
    """Each chunk counts what has come so far."""
    counts = [{"promptTokenCount": 5, "candidatesTokenCount": number, "thoughtsTokenCount": 3} for number in (1, 2)]
    (answer,) = streamed(
        chunk({"text": "a"}, usageMetadata=counts[0]), chunk({"text": "b"}, stop="STOP", usageMetadata=counts[1])
    )
    assert answer.usage == Usage(input=5, output=5, reasoning=3)


def test_searches_are_counted_by_use():
    """What a chunk says of them grows."""
    usage = {"promptTokenCount": 1}
    one, two = (chunk({"text": "a"}, stop="STOP", usageMetadata=usage) for _ in range(2))
    one["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a"]}
    two["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b"]}
    assert streamed(one, two)[0].usage == Usage(input=1, server_tools=(("web_search", 2),))


@pytest.mark.parametrize(("told", "tier"), [({"trafficType": "ON_DEMAND"}, ""), ({"trafficType": "ON_DEMAND_PRIORITY"}, "priority"), ({"serviceTier": "flex"}, "flex")])  # fmt: skip
def test_the_tier_that_was_charged_is_told(told, tier):
    """In the words that prices know."""
    assert answers(chunk(stop="STOP", usageMetadata={"promptTokenCount": 1, **told}))[0].service_tier == tier


# --- requests

PATHS = [
    (PATH, "gemini-3.1-pro-preview", "gemini.generate", False),
    ("/v1/models/gemini-2.5-flash:streamGenerateContent", "gemini-2.5-flash", "gemini.generate", True),
    ("/v1/projects/p/locations/us/publishers/google/models/gemini-2.5-pro:generateContent", "gemini-2.5-pro", "gemini.generate", False),
    ("/v1beta/tunedModels/mine-123:generateContent", "mine-123", "gemini.generate", False),
    ("/v1/projects/p/locations/us/endpoints/42:streamGenerateContent", "42", "gemini.generate", True),
    ("/v1beta/models/gemini%2D3:generateContent", "gemini-3", "gemini.generate", False),
    ("/v1beta/models/gemini-2.5-flash:countTokens", "gemini-2.5-flash", "gemini.count_tokens", False),
    ("/v1beta/models/gemini-embedding-2:embedContent", "gemini-embedding-2", "gemini.embed", False),
    ("/v1beta/models/gemini-embedding-2:batchEmbedContents", "gemini-embedding-2", "gemini.embed", False),
]  # fmt: skip


@pytest.mark.parametrize(("path", "model", "api", "stream"), PATHS)
def test_the_path_names_the_model(path, model, api, stream):
    """On every door that Google has."""
    told = asked(path, contents=[])
    assert (told.model, told.api, told.stream) == (model, api, stream)
    assert gemini.asked(path, b"").model == model


CONTENTS = [
    ({"role": "user", "parts": [{"text": "hi"}]}, Message("user", (TEXT,))),
    ({"parts": [{"text": "h"}, {"text": "i"}]}, Message("user", (TEXT,))),
    (
        {"role": "user", "parts": [
            {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
            {"inline_data": {"mime_type": "audio/wav", "data": "AAAA"}},
            {"fileData": {"mimeType": "video/mp4", "fileUri": "https://x/v"}},
            {"fileData": {"mimeType": "application/pdf", "fileUri": "https://x/f"}},
            {"hologram": {"data": "AAAA"}, "thoughtSignature": "AA"},
        ]},
        Message("user", (
            Part(PartKind.MEDIA, "image/png", "image"),
            Part(PartKind.MEDIA, "audio/wav", "audio"),
            Part(PartKind.MEDIA, "https://x/v", "video"),
            Part(PartKind.MEDIA, "https://x/f", "document"),
            Part(PartKind.OTHER, name="hologram"),
        )),
    ),
    (
        {"role": "model", "parts": [
            {"text": "hm", "thought": True},
            {"text": "hi", "thoughtSignature": "AA"},
            {"functionCall": {"name": "f", "args": {"b": 1.0, "a": []}, "id": "c1"}},
            {"functionCall": {"name": "g"}},
            {"executableCode": {"language": "PYTHON", "code": "1 + 1"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_FAILED", "output": "2"}},
            {"toolCall": {"id": "t1", "toolType": "URL_CONTEXT", "args": {"urls": []}}},
            {"toolResponse": {"id": "t1", "toolType": "URL_CONTEXT", "response": {"ok": True}}},
        ]},
        Message("assistant", (
            Part(PartKind.THINKING, "hm"),
            TEXT,
            Part(PartKind.TOOL_CALL, '{"a":[],"b":1}', "f", "c1"),
            Part(PartKind.TOOL_CALL, "{}", "g"),
            Part(PartKind.TOOL_CALL, "1 + 1", "code_execution"),
            Part(PartKind.TOOL_RESULT, "2", "code_execution", failed=True),
            Part(PartKind.TOOL_CALL, '{"urls":[]}', "url_context", "t1"),
            Part(PartKind.TOOL_RESULT, '{"ok":true}', "url_context", "t1"),
        )),
    ),
    (
        {"role": "user", "parts": [
            {"functionResponse": {"name": "f", "id": "c1", "response": {"output": "sunny"}}},
            {"functionResponse": {"name": "g", "response": {"error": "no such city"}}},
            {"functionResponse": {"name": "h", "response": {"degrees": 20}}},
        ]},
        Message("tool", (
            Part(PartKind.TOOL_RESULT, "sunny", "f", "c1"),
            Part(PartKind.TOOL_RESULT, "no such city", "g", failed=True),
            Part(PartKind.TOOL_RESULT, '{"degrees":20}', "h"),
        )),
    ),
    ({"role": "function", "parts": [{"functionResponse": {"name": "f", "response": {"result": "ok"}}}]}, Message("tool", (Part(PartKind.TOOL_RESULT, "ok", "f"),))),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), CONTENTS)
def test_contents_are_understood_in_all_their_forms(content, message):
    """Pieces, calls and results; a single content need not stand in a list."""
    assert asked(contents=[content]).messages == (message,)
    assert asked(contents=content).messages == (message,)


def test_a_request_tells_what_it_wants():
    """In both spellings of names that Google takes."""
    for spell in (lambda name: name, gemini._snake):
        told = asked(
            **{
                spell("systemInstruction"): {"parts": [{"text": "Be"}, {"text": "brief."}]},
                spell("generationConfig"): {spell("maxOutputTokens"): 7},
                spell("serviceTier"): "flex",
                "tools": [{spell("functionDeclarations"): [{"name": "f"}, {"name": "g"}]}, {"googleSearch": {}}],
                "contents": [],
            }
        )
        assert (told.system, told.max_tokens, told.service_tier) == ("Be\n\nbrief.", 7, "flex")
        assert told.tools == ("f", "g", "googleSearch")


def test_gemini_clis_login_has_envelopes():
    """Around the request and around each answer."""
    path = "/v1internal:streamGenerateContent"
    told = asked(path, model="gemini-2.5-pro", request={"contents": [CONTENTS[0][0]], "systemInstruction": "Be brief."})
    assert (told.model, told.system, told.stream) == ("gemini-2.5-pro", "Be brief.", True)
    assert told.messages == (CONTENTS[0][1],)
    inner = chunk({"text": "hi"}, stop="STOP", usageMetadata={"promptTokenCount": 3}, modelVersion="gemini-2.5-pro")
    (answer,) = streamed({"response": inner, "traceId": "t"})
    assert (answer.message, answer.usage, answer.model) == (
        Message("assistant", (TEXT,)),
        Usage(input=3),
        "gemini-2.5-pro",
    )


def test_what_is_counted_or_embedded_is_a_message():
    """Each has a frame of its own."""
    content = CONTENTS[0][0]
    for request in (
        {"generateContentRequest": {"contents": [content]}},
        {"content": content},
        {"requests": [{"model": "models/m", "content": content}]},
    ):
        assert asked(PATH, **request).messages == (CONTENTS[0][1],)


# --- answers


def test_each_candidate_is_an_answer_and_tokens_are_told_once():
    """Streamed, their chunks interleave."""
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 4}
    told = streamed(
        chunk({"text": "b"}, index=1),
        chunk({"text": "a"}),
        chunk(stop="STOP", usageMetadata=usage),
        chunk(stop="MAX_TOKENS", index=1, usageMetadata=usage),
    )
    assert [(answer.message.text, answer.stop_reason) for answer in told] == [("a", "STOP"), ("b", "MAX_TOKENS")]
    assert [answer.usage for answer in told] == [Usage(input=3, output=4), None]
    assert not any(answer.partial for answer in told)


def test_a_blocked_prompt_is_a_refusal():
    """Nothing was said, and that is an end."""
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}
    for (told,) in (answers(blocked), streamed(blocked)):
        assert told.message == Message("assistant", (Part(PartKind.REFUSAL, "PROHIBITED_CONTENT"),))
        assert (told.stop_reason, told.usage, told.partial) == ("PROHIBITED_CONTENT", Usage(input=3), False)


def test_embeddings_and_counts_say_nothing():
    """The former tell their tokens where Google does; the latter are not charged."""
    (told,) = answers({"embedding": {"values": [0.1, 0.2]}, "usageMetadata": {"promptTokenCount": 2}})
    assert (told.message, told.usage, told.partial) == (None, Usage(input=2), False)
    (told,) = answers({"totalTokens": 31})
    assert (told.message, told.usage) == (None, None)


ERROR = {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED", "details": []}}


@pytest.mark.parametrize(
    ("body", "status"), [(ERROR, 429), ([ERROR], 429), (ERROR, 200), ([chunk({"text": "a"}), ERROR], 200)]
)
def test_a_providers_error_is_told_in_its_own_words(body, status):
    """As an object, in an array, and as the end of a stream."""
    (told,) = answers(body, status)
    assert (told.error_type, told.error) == ("RESOURCE_EXHAUSTED", "Quota exceeded")


def test_an_array_is_partial_until_a_reason_to_stop():
    """What is whole of it counts; a plain answer that is cut is trouble."""
    data = json.dumps([chunk({"text": "a"}), chunk({"text": "b"}, stop="STOP")]).encode()
    cut = data[: data.index(b'"b"')]
    (told,) = gemini.answers(Content("body", cut, complete=False))
    assert (told.message.text, told.partial) == ("a", True)
    (told,) = gemini.answers(Content("body", b'{"candidates":[{"con', complete=False))
    assert told.trouble
    assert told.partial
    assert gemini.answers(Content("body", status=None, complete=False)) == ()


# --- keys


def test_an_answer_has_the_key_of_the_contents_that_repeat_it():
    """Whether a client keeps it whole, every chunk as its own content, or without the thoughts."""
    call = {"functionCall": {"name": "f", "args": {"a": 1, "b": 2}}}
    chunks = [
        chunk({"text": "hm", "thought": True}),
        chunk({"text": "Hel"}),
        chunk({"text": "lo"}),
        chunk(call, stop="STOP"),
    ]
    (answer,) = streamed(*chunks)
    assert [part.text for part in answer.message.parts] == ["hm", "Hello", '{"a":1,"b":2}']
    kept = [one["candidates"][0]["content"] for one in chunks]
    merged = [
        {"role": "model", "parts": [{"text": "Hello"}, {"functionCall": {"args": {"b": 2.0, "a": 1}, "name": "f"}}]}
    ]
    for contents in (kept, merged):
        before, message, after = asked(contents=[CONTENTS[0][0], *contents, CONTENTS[4][0]]).messages
        assert message.key == answer.message.key
        assert (before.role, after.role) == ("user", "tool")
    other = json.loads(json.dumps(merged).replace("2.0", "3"))
    assert asked(contents=other).messages[0].key != answer.message.key


# --- anything at all

DOCUMENTS = [
    {"contents": [content for content, _ in CONTENTS], "systemInstruction": {"parts": [{"text": "x"}]}, "tools": [{"functionDeclarations": [{"name": "f"}]}]},
    chunk(*CONTENTS[3][0]["parts"], stop="STOP", usageMetadata=USAGES[2][0], modelVersion="m", promptFeedback={"blockReason": "X"}),
    {"response": chunk({"text": "a"})},
    ERROR,
]  # fmt: skip


@given(st.binary(max_size=60), st.sampled_from(["body", "events"]), st.sampled_from([200, 500, None]))
def test_no_bytes_raise(data, kind, status):
    """Whatever they are."""
    for path in (PATH, data.decode("latin-1")):
        assert gemini.asked(path, data) is not None
    for content in (data, b"[" + data, b"data: " + data + b"\n\n"):
        gemini.answers(Content(kind, content, status=status))


@given(st.lists(spoiled(*DOCUMENTS), min_size=1, max_size=3), st.sampled_from([200, 400]))
def test_no_json_raises(datas, status):
    """Good documents, spoiled anywhere; and what comes out can be written."""
    told = list(gemini.answers(Content("body", datas[0], status=status)))
    told += gemini.answers(Content("body", b"[" + b",".join(datas) + b"]", status=status))
    told += gemini.answers(Content("body", b"[" + b",".join(datas)))
    told += gemini.answers(Content("events", b"".join(b"data: " + data + b"\n\n" for data in datas)))
    asked = gemini.asked(STREAM, datas[0])
    for message in (*asked.messages, *(answer.message for answer in told if answer.message)):
        assert len(message.key) == 16
        assert message.text.encode() is not None


@pytest.mark.parametrize("data", nested('{"parts":[%]}', '{"response":%}'))
def test_no_depth_raises(data):
    """Of JSON that contains itself."""
    for inner in (data, b'{"contents":[%s]}' % data, b'{"candidates":[{"content":%s}]}' % data, b"[%s" % data):
        gemini.asked(PATH, inner)
        gemini.answers(Content("body", inner))
        gemini.answers(Content("events", b"data: " + inner + b"\n\n"))
