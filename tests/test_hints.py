"""A client's own session id is found where that client puts it, and no body can make looking for it fail."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.dialects.hints import Agent, Hint, client_session, is_conversation

CLAUDE = {"user_id": json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "json-1"})}
LEGACY = {"user_id": "user_abc_account_9f_session_legacy-1"}
MESSAGES, RESPONSES, CHAT = "/v1/messages", "/v1/responses", "/v1/chat/completions"
GEMINI = "/v1beta/models/m:generateContent"

FOUND = [
    # Each row lacks what the row above it had first: the order of the sources.
    ("anthropic", MESSAGES, {"x-claude-code-session-id": "h1", "x-session-id": "x1"}, {"metadata": CLAUDE}, "h1", "x-claude-code-session-id"),
    ("anthropic", MESSAGES, {"x-session-id": "x1"}, {"metadata": CLAUDE}, "json-1", "metadata.user_id"),
    ("anthropic", MESSAGES, {"x-session-id": "x1"}, {"metadata": LEGACY}, "legacy-1", "metadata.user_id"),
    ("anthropic", MESSAGES, {"x-session-id": "x1"}, {"metadata": {"user_id": "plain"}}, "x1", "x-session-id"),
    ("anthropic", MESSAGES, {}, {"metadata": {"user_id": "a_session_b_session_c"}}, "c", "metadata.user_id"),
    ("anthropic", "/model/m/invoke", {}, {"metadata": LEGACY}, "legacy-1", "metadata.user_id"),
    ("bedrock", "/model/m/invoke", {"x-claude-code-session-id": "h1"}, {"metadata": CLAUDE}, "h1", "x-claude-code-session-id"),
    ("bedrock", "/model/m/invoke", {}, {"metadata": CLAUDE}, "json-1", "metadata.user_id"),
    ("bedrock", "/model/m/converse", {"x-session-id": "x1"}, {"messages": []}, "x1", "x-session-id"),
    ("openai", "/v1/threads/thread_1/runs", {"session-id": "s1"}, {}, "thread_1", "path"),
    ("openai", RESPONSES, {"session-id": "s1", "session_id": "s2", "thread-id": "t1"}, {}, "s1", "session-id"),
    ("openai", RESPONSES, {"session_id": "s2", "thread-id": "t1"}, {}, "s2", "session_id"),
    ("openai", RESPONSES, {"thread-id": "t1"}, {"conversation": "c1"}, "t1", "thread-id"),
    ("openai", RESPONSES, {}, {"conversation": "c1", "metadata": {"session_id": "m1"}}, "c1", "conversation"),
    ("openai", RESPONSES, {}, {"conversation": {"id": "c2"}, "prompt_cache_key": "p1"}, "c2", "conversation"),
    ("openai", CHAT, {"x-session-id": "x1"}, {"metadata": {"session_id": "m1"}}, "m1", "metadata.session_id"),
    ("openai", CHAT, {"x-session-id": "x1"}, {"prompt_cache_key": "p1"}, "x1", "x-session-id"),
    ("openai", RESPONSES, {}, {"prompt_cache_key": "p1"}, "p1", "prompt_cache_key"),
    ("gemini", GEMINI, {"x-session-id": "ses_1"}, {}, "ses_1", "x-session-id"),
    ("whoever", "/x", {"x-session-id": "ses_1"}, {}, "ses_1", "x-session-id"),
    # What is not valid or of another type falls through to the next source.
    ("openai", RESPONSES, {"session-id": "../x", "thread-id": "t1"}, {}, "t1", "thread-id"),
    ("openai", RESPONSES, {}, {"conversation": 7, "metadata": [1], "prompt_cache_key": "p1"}, "p1", "prompt_cache_key"),
    ("openai", RESPONSES, {}, {"conversation": {"id": None}, "metadata": {"session_id": {}}, "prompt_cache_key": "p1"}, "p1", "prompt_cache_key"),
    ("openai", "/v1/threads/a%2Fb/runs", {"session-id": "s1"}, {}, "s1", "session-id"),
    ("openai", "/v1/threads/runs", {"session-id": "s1"}, {}, "s1", "session-id"),
    ("anthropic", MESSAGES, {"x-session-id": "x"}, {"metadata": {"user_id": '{"session_id": 5}'}}, "x", "x-session-id"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "path", "headers", "body", "id", "source"), FOUND)
def test_the_first_valid_source_names_the_session(provider, path, headers, body, id, source):
    """In each provider's order."""
    hint = client_session(provider, path, headers, json.dumps(body).encode())
    assert hint is not None and (hint.id, hint.source) == (id, source)


CLAUDE_AGENT = {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a1"}
CODEX_AGENT = {"session-id": "s", "thread-id": "t1"}
AGENTS = [
    ("anthropic", {"x-claude-code-session-id": "s"}, None),
    ("anthropic", CLAUDE_AGENT, Agent("a1", "", "a1")),
    ("anthropic", CLAUDE_AGENT | {"x-claude-code-agent-type": "Explore"}, Agent("a1", "", "Explore")),
    ("anthropic", CLAUDE_AGENT | {"x-claude-code-parent-agent-id": "a0"}, Agent("a1", "a0", "a1")),
    ("anthropic", CLAUDE_AGENT | {"x-claude-code-parent-agent-id": "a1"}, Agent("a1", "", "a1")),
    ("anthropic", CLAUDE_AGENT | {"x-claude-code-parent-agent-id": "../x"}, Agent("a1", "", "a1")),
    ("anthropic", CLAUDE_AGENT | {"x-claude-code-agent-type": "\x1b[31m"}, Agent("a1", "", "a1")),
    ("anthropic", CLAUDE_AGENT | {"x-claude-code-agent-id": "s"}, None),
    ("anthropic", {"x-claude-code-agent-id": "a1"}, None),
    ("openai", {"session-id": "s", "thread-id": "s"}, None),
    ("openai", CODEX_AGENT, Agent("t1", "", "t1")),
    ("openai", CODEX_AGENT | {"x-openai-subagent": "review"}, Agent("t1", "", "review")),
    ("openai", CODEX_AGENT | {"x-codex-parent-thread-id": "s"}, Agent("t1", "", "t1")),
    ("openai", CODEX_AGENT | {"x-codex-parent-thread-id": "t0"}, Agent("t1", "t0", "t1")),
    ("openai", CODEX_AGENT | {"x-codex-turn-metadata": '{"agent_name":"explorer"}'}, Agent("t1", "", "explorer")),
    ("openai", CODEX_AGENT | {"x-codex-turn-metadata": "{" * 100_000}, Agent("t1", "", "t1")),
]


@pytest.mark.parametrize(("provider", "headers", "agent"), AGENTS)
def test_sub_agents_are_told_apart(provider, headers, agent):
    """Where the client names them; what it names badly is as good as not named."""
    hint = client_session(provider, "/v1/messages", headers, b"")
    assert (hint.agent if hint else None) == agent


@pytest.mark.parametrize("provider", ["anthropic", "openai", "gemini"])
def test_ids_of_requests_people_and_answers_are_no_sessions(provider):
    """They would give a session per call, or merge everybody's calls."""
    headers = {"x-client-request-id": "r1", "x-request-id": "r2", "amz-sdk-invocation-id": "i1"}
    body = {
        "user": "alice",
        "previous_response_id": "resp_1",
        "metadata": {"user_id": "alice"},
        "id": "x",
        "session_id": "y",
    }
    assert client_session(provider, "/v1/responses", headers, json.dumps(body).encode()) is None


@pytest.mark.parametrize(
    ("id", "valid"),
    [
        ("0f5b1d3e-8a3c-4b62-9f6e-1c2d3e4f5a6b", True),
        ("a", True),
        ("a" * 255, True),
        ("a.b:c_d-E", True),
        ("...", True),
        ("", False),
        ("a" * 256, False),
        (".", False),
        ("..", False),
        ("a/b", False),
        ("a b", False),
        ("a\n", False),
        ("\n", False),
        ("a\0", False),
        ("é", False),
        ("٣", False),
        ("%2e", False),
    ],
)
def test_an_id_is_short_and_plain(id, valid):
    """It may become part of a file's name or a query."""
    for headers, body in (({"x-session-id": id}, b""), ({}, json.dumps({"prompt_cache_key": id}).encode())):
        assert (client_session("openai", "/v1/responses", headers, body) is not None) is valid


HOSTILE = {
    "empty": b"",
    "array": b"[]",
    "number": b"1",
    "text": b"hello",
    "NaN": b'{"a":NaN,"prompt_cache_key":"k"}',
    "deep arrays": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"prompt_cache_key":"k"}',
    "deep objects": b'{"metadata":' * 100_000,
    "deep conversation": b'{"conversation":' + b'{"id":' * 100_000 + b"1" + b"}" * 100_001,
    "lone surrogate": b'{"prompt_cache_key":"\\ud800"}',
    "not UTF-8": b'{"prompt_cache_key":"\xff"}',
    "UTF-16": '{"prompt_cache_key":"k"}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"prompt_cache_key":"k"}',
    "cut": b'{"prompt_cache_key":"k"',
    "NUL": b'{"prompt_cache_key":"k"}\0',
    "deep user id": json.dumps({"metadata": {"user_id": '{"a":' * 100_000}}).encode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_that_cannot_be_read_is_ignored(name):
    """The headers still count, and nothing is raised."""
    for provider in ("anthropic", "openai", "gemini"):
        assert client_session(provider, "/v1/responses", {}, HOSTILE[name]) is None
        assert client_session(provider, "/v1/responses", {"x-session-id": "x"}, HOSTILE[name]) == Hint(
            "x", "x-session-id"
        )


@pytest.mark.parametrize(
    "rest",
    [
        b'"big":' + b"9" * 5000,
        b'"input":"' + b"x" * 100_000 + b'"',
        b'"input":"half an emoji \\uD83D"',
        b'"input":"\\ud83d\\ude00 whole"',
        b'"input":"a \\\\ud83d backslash"',
        b'"input":' + b"[" * 500 + b"]" * 500,
        b'"prompt_cache_key":"old"',
    ],
    ids=lambda rest: repr(rest[:20]),
)
def test_what_stands_beside_the_fields_does_not_hide_them(rest):
    """Odd but real: long numbers, a prompt cut within an emoji, nested input, a doubled key."""
    body = b"{" + rest + b',"prompt_cache_key":"k"}'
    assert client_session("openai", "/v1/responses", {}, body) == Hint("k", "prompt_cache_key")


def test_a_large_body_stays_cheap():
    """32 MB of history before the field that counts: no value of it becomes an object."""
    message = b'{"role":"user","content":"line\\n"},'
    body = b'{"input":[' + message * (32_000_000 // len(message)) + b'0],"prompt_cache_key":"k"}'
    started = time.process_time()
    assert client_session("openai", "/v1/responses", {}, body) == Hint("k", "prompt_cache_key")
    assert time.process_time() - started < 1
    started = time.process_time()
    assert client_session("openai", "/v1/responses", {"session-id": "s"}, body) == Hint("s", "session-id")
    assert time.process_time() - started < 0.01  # a header spares the body


FIELDS = st.sampled_from(["metadata", "user_id", "session_id", "conversation", "id", "prompt_cache_key"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["anthropic", "openai", "x"]), st.text(max_size=30), JSON.map(json.dumps) | st.text(), st.data())
def test_any_request_gives_a_valid_hint_or_none(provider, path, text, data):
    """Whatever JSON or text the body is."""
    headers = data.draw(
        st.dictionaries(st.sampled_from(["session-id", "x-session-id", "thread-id"]), st.text(max_size=9))
    )
    hint = client_session(provider, path, headers, text.encode("utf-8", "surrogatepass"))
    assert hint is None or (
        hint.id.isascii() and 0 < len(hint.id) < 256 and hint.id not in (".", "..") and "/" not in hint.id
    )


@given(st.sampled_from(["anthropic", "openai", "gemini"]), st.binary(max_size=200))
def test_any_bytes_are_a_body(provider, body):
    """Never raises."""
    client_session(provider, "/v1/messages", {}, body)


CONVERSATIONS = """POST /v1/messages|POST /messages|POST /v1/chat/completions|POST /chat/completions|POST /v1/completions
POST /v1/responses|POST /responses|POST /backend-api/codex/responses|POST /v1/responses/compact|POST /v1/messages/
POST /v1/threads/t/runs|POST /v1/threads/runs|POST /v1/threads/t/messages|POST /v1/threads/t/runs/r/submit_tool_outputs
POST /v1beta/models/m:generateContent|POST /v1beta/models/m:streamGenerateContent
POST /model/arn%3Aaws/converse|POST /model/m/converse-stream|POST /model/m/invoke
POST /model/m/invoke-with-response-stream|POST /api/chat|POST /api/generate|POST /v1/projects/p/publishers/anthropic/models/m:streamRawPredict|GET /v1/responses|GET /v1/realtime|GET /responses"""

OTHERS = """POST /v1/messages/count_tokens|POST /v1/messages/batches|GET /v1/messages|HEAD /v1/messages|GET /v1/models
POST /v1/embeddings|POST /v1/files|GET /v1/responses/resp_1|DELETE /v1/responses/resp_1|POST /v1/responses/r/cancel
POST /v1/responses/input_tokens|GET /v1/chat/completions|POST /v1beta/models/m:countTokens|POST /v1beta/models/m:embedContent
POST /v1/threads|GET /v1/threads/t/runs/r|POST /v1/realtime/sessions|POST /api/event_logging/batch|HEAD /api/hello
GET /|POST /|POST /v1/xmessages|POST /v1/messagesx|OPTIONS /v1/messages|POST /v1/images/generations"""


@pytest.mark.parametrize("call", CONVERSATIONS.replace("\n", "|").split("|"))
def test_asking_a_model_is_a_conversation(call):
    """Each of these gets a session of its own where it names none."""
    assert is_conversation(*call.split(" "))


@pytest.mark.parametrize("call", OTHERS.replace("\n", "|").split("|"))
def test_everything_else_is_not(call):
    """Lists, counts, files and probes share the day's session."""
    assert not is_conversation(*call.split(" "))
