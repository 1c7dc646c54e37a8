"""Every call finds its API, and no dialect raises, whatever a client or a provider sends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_proxy.dialects import registry
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Digest, Message
from llm_proxy.dialects.reading import canonical, events, read_value
from llm_proxy.wire.sse import EventDecoder
from tests.goldens import golden, names

APIS = sorted({row.api for row in registry.TABLE})

PATHS = [
    ("POST", "/v1/messages", "anthropic.messages"),
    ("POST", "/messages", "anthropic.messages"),
    ("POST", "/anthropic/v1/messages/", "anthropic.messages"),
    ("POST", "/v1/projects/p/locations/l/publishers/anthropic/models/claude:rawPredict", "anthropic.messages"),
    ("POST", "/v1/publishers/anthropic/models/claude@1:streamRawPredict", "anthropic.messages"),
    ("POST", "/v1/messages/count_tokens", "anthropic.count_tokens"),
    ("POST", "/v1/messages/batches", "anthropic.batches"),
    ("POST", "/v1/messages/batches/msgbatch_1/cancel", "anthropic.batches"),
    ("GET", "/v1/messages/batches/msgbatch_1", "anthropic.batches"),
    ("GET", "/v1/messages/batches/msgbatch_1/results", "anthropic.batches"),
    ("POST", "/model/us.anthropic.claude-v1%3A0/invoke", "bedrock.invoke"),
    ("POST", "/model/us.anthropic.claude-v1:0/invoke-with-response-stream", "bedrock.invoke"),
    ("POST", "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ax%2Fy/converse", "bedrock.converse"),
    ("POST", "/model/arn:aws:bedrock:us-east-1:1:x/y/converse-stream", "bedrock.converse"),
    ("POST", "/model/us.anthropic.claude-v1:0/count-tokens", "bedrock.count_tokens"),
    ("POST", "/v1/chat/completions", "openai.chat"),
    ("POST", "/v1beta/openai/chat/completions", "openai.chat"),
    ("POST", "/openai/deployments/d/chat/completions", "openai.chat"),
    ("POST", "/api/chat/completions", "openai.chat"),
    ("POST", "/v1/completions", "openai.completions"),
    ("POST", "/v1/embeddings", "openai.embeddings"),
    ("POST", "/v1/responses", "openai.responses"),
    ("POST", "/backend-api/codex/responses", "openai.responses"),
    ("POST", "/v1/responses/compact", "openai.responses"),
    ("POST", "/v1/responses/resp_1/cancel", "openai.responses"),
    ("GET", "/v1/responses/resp_1", "openai.responses"),
    ("WS", "/v1/responses", "openai.responses"),
    ("POST", "/v1beta/models/gemini-3.1-pro:generateContent", "gemini.generate"),
    ("POST", "/v1/models/gemini-3.1-pro:streamGenerateContent", "gemini.generate"),
    ("POST", "/v1internal:streamGenerateContent", "gemini.generate"),
    ("POST", "/v1beta/models/gemini-3.1-pro:countTokens", "gemini.count_tokens"),
    ("POST", "/v1beta/models/e:embedContent", "gemini.embed"),
    ("POST", "/v1beta/models/e:batchEmbedContents", "gemini.embed"),
    ("POST", "/api/chat", "ollama.chat"),
    ("POST", "/api/generate", "ollama.chat"),
]
UNKNOWN = [
    ("GET", "/v1/messages"),
    ("GET", "/v1/messages/batches"),
    ("POST", "/v1/complete"),
    ("POST", "/v1/threads/t/messages"),
    ("GET", "/v1/models"),
    ("GET", "/v1/responses"),
    ("WS", "/v1/realtime"),
    ("GET", "/v1/responses/resp_1/input_items"),
    ("GET", "/v1/responses/7"),
    ("POST", "/v1/chat/completions\n"),
    ("POST", ""),
]


@pytest.mark.parametrize(("method", "path", "api"), PATHS)
def test_the_path_tells_the_api(method, path, api):
    """Under any prefix and at any host, with or without /v1."""
    method, upgraded = ("GET", True) if method == "WS" else (method, False)
    assert registry.api_of(method, path, upgraded) == api


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
def test_what_is_no_known_api_is_not_guessed(method, path):
    """Other calls are recorded, not understood."""
    method, upgraded = ("GET", True) if method == "WS" else (method, False)
    assert registry.api_of(method, path, upgraded) == ""


def test_a_dialect_is_imported_when_it_is_needed():
    """The registry costs no more than its table."""
    code = (
        "import sys; from llm_proxy.dialects import registry;"
        "before = set(sys.modules); registry.asked('openai.chat', '/', b'{}');"
        "print(*(m for m in before if 'dialects' in m)); print(*(m for m in set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=30)
    before, after = done.stdout.splitlines()
    assert "llm_proxy.dialects.openai_chat" in after.split() and "llm_proxy.dialects.openai_chat" not in before.split()
    assert "llm_proxy.dialects.bedrock" not in before.split() + after.split()


def test_limits_are_the_fields_that_tell_how_much_is_left():
    """Names in lower case, everything else left out."""
    fields = [
        ("Anthropic-Ratelimit-Requests-Remaining", "49"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.25"),
        ("X-RateLimit-Reset-Tokens", "1s"),
        ("Retry-After", "3"),
        ("retry-after-ms", "2900"),
        ("x-codex-primary-used-percent", "12"),
        ("Content-Type", "text/plain"),
        ("x-codex-turn-state", "opaque"),
        ("x-request-id", "req_1"),
    ]
    assert registry.limits(fields) == tuple((name.lower(), value) for name, value in fields[:6])


def test_the_golden_files_are_what_the_fake_provider_says():
    """Made anew they are the same, byte for byte."""
    command = [sys.executable, "-m", "tests.make_golden", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- hostile input


@pytest.fixture(scope="module")
def words():
    """Every name and word of the golden files, so that made-up JSON looks like the real thing."""
    found = set()

    def walk(value):
        if isinstance(value, dict):
            found.update(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(item)
        if isinstance(value, str) and len(value) < 40:
            found.add(value)

    for name in names(""):
        one = golden(name)
        texts = [one.request, one.answer, *(text for _, text in one.messages), *events(one.answer)]
        for text in texts:
            walk(read_value(text))
    assert {"cache_creation_input_tokens", "functionCall", "tool_calls", "response.completed"} <= found
    return sorted(found)


NUMBERS = st.sampled_from([0, 1, -1, 7, 2**53, 2**64, 10**30, 1.5, 1e308])


def documents(words):
    leaves = st.none() | st.booleans() | NUMBERS | st.sampled_from(words) | st.text(max_size=5)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(words), inner, max_size=6),
        max_leaves=25,
    )


def check(api, request, answer):
    """Both functions give what they promise for these bytes, as a body, as events and as messages."""
    asked = registry.asked(api, "/model/x/invoke", request)
    assert type(asked) is Asked and asked.api == api
    told = []
    for status in (200, 500, None):
        told += registry.answers(api, "/model/x/invoke", Content("body", answer, status=status))
        told += registry.answers(api, "/", Content("events", answer, status=status, complete=False))
        both = (("client", request), ("server", answer), ("server", request))
        told += registry.answers(api, "/", Content("messages", messages=both, status=status))
    assert all(type(answer) is Answer for answer in told)
    digest = Digest(asked, tuple(told))
    json.dumps([digest.model, digest.partial, digest.last.stop_reason, digest.last.error]).encode()
    assert digest.usage is None or digest.usage.total >= 0
    for message in (*asked.messages, *(answer.message for answer in told if answer.message)):
        assert type(message) is Message and len(message.key) == 16
        message.text.encode()


ODD = [
    b"",
    b"\xff\xfe",
    b"{",
    b'"' + b"\\" * 1_000_001 + b'"',
    b"{}",
    b"[]",
    b"null",
    b'"text"',
    b"[" * 100_000,
    b'{"messages":' * 5_000,
    b'{"messages":[{"role":"user","content":"\\ud83d cut"}],"model":"m"}',
    b'{"messages":[{"role":"user","content":"\xff"}],"temperature":NaN}',
    b'{"max_tokens":' + b"9" * 5_000 + b"}",
    b'data: {"type":[]}\n\ndata: {"type":"message_start","message":7}\n\ndata: [DONE]\n\n',
    b'{"error":{"message":{"deep":1},"type":[]}}',
    b"<html>502 Bad Gateway</html>",
    b"\x00\x00\x00\x10\x00\x00\x00\x00\x05\xc2H\xeb}\x98\xc8\xff",
]


@pytest.mark.parametrize("api", APIS)
def test_odd_bytes_are_survived(api):
    """Nothing raises: not broken JSON, not too deep or too large, not of the wrong shape."""
    for data in ODD:
        check(api, data, data)


@pytest.mark.parametrize("api", APIS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_is_survived(api, words, data):
    """Fields of any type in any place, plain, as server-sent events and as lines."""
    values = data.draw(st.lists(documents(words), min_size=1, max_size=4))
    coded = [json.dumps(value).encode() for value in values]
    check(api, coded[0], coded[-1])
    check(api, coded[0], b"".join(b"data: %s\n\n" % item for item in coded))
    check(api, coded[0], b"\n".join(coded))


@pytest.mark.parametrize("name", names(""))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_call_is_survived(name, data):
    """Golden requests and answers with a slice of them replaced by anything."""
    one = golden(name)
    request, answer = (_damaged(part, data) for part in (one.request, one.answer))
    check(one.api, request, answer)


def _damaged(part, data):
    start = data.draw(st.integers(0, len(part)))
    end = data.draw(st.integers(start, min(len(part), start + 60)))
    return part[:start] + data.draw(st.binary(max_size=8) | st.sampled_from([b"null", b"{}", b"[", b'"'])) + part[end:]


# --- what all dialects read with


@given(st.lists(st.sampled_from([b"data: a", b"data", b"data:b", b"\n", b"\r", b"\r\n", b"event: x", b": c", b"\xef\xbb\xbf", b"id: 3"]), max_size=14))  # fmt: skip
def test_events_are_those_of_the_standard(pieces):
    """The quick reader of whole streams finds what the incremental decoder finds."""
    stream = b"".join(pieces)
    decoder = EventDecoder()
    assert events(stream) == [event.data.encode() for event in decoder.feed(stream) + decoder.finish()]


SPELLINGS = [
    ('{"b": 1.0, "a": "\\u00fc"}', '{"a":"ü","b":1}'),
    ('{"a":"ü",\n "b":1}', '{"a":"ü","b":1}'),
    ('{"n": 1.50, "big": 1e3}', '{"big":1000,"n":1.5}'),
    ("[ 1 , 2 ]", "[1,2]"),
    ('{"cut": "hal', '{"cut": "hal'),
    ("", ""),
    ('{"half": "\\ud83d"}', '{"half":"\ufffd"}'),
    ('{"half": "\\ud83d", "nan": NaN}', '{"half":"\ufffd","nan":null}'),
    (
        '["\\ud83d\\ud83d\\ude00\\ude00", "\\\\ud83d", "\\\\\\ud83d"]',
        '["\ufffd\U0001f600\ufffd","\\\\ud83d","\\\\\ufffd"]',
    ),
]


@pytest.mark.parametrize(("said", "meant"), SPELLINGS)
def test_arguments_have_one_spelling(said, meant):
    """What clients change when they parse a call and write it again does not count; what is no JSON stays."""
    assert canonical(said) == meant
    assert canonical(said.encode()) == meant
