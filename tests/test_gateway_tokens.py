"""Prompts are counted as their models count them, without any network, never in vain and never for long."""

import json
import subprocess
import sys
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.gateway.tokens import MEASURED, READ, Prompt, _counter, family, load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its other half, which the gateway does not import
    import bpe_openai

TEXT = "Grüße! The quick brown fox — 狐狸 — jumps over 13 lazy dogs.\n\tdef f(x): return x ** 2"


def exactly(text, encoding="o200k_base"):
    """By the package's own interface."""
    return len(bpe_openai.get_encoding(encoding).encode_ordinary(text))


def asked(*texts):
    return {"model": "m", "messages": [{"role": "user", "content": text} for text in texts]}


@pytest.mark.parametrize(
    ("model", "encoding", "factor"),
    [
        ("gpt-4o-mini", "o200k_base", 1),
        ("gpt-4.1", "o200k_base", 1),
        ("gpt-5.2-pro", "o200k_base", 1),
        ("o3", "o200k_base", 1),
        ("openai/gpt-oss-120b", "o200k_base", 1),
        ("gpt-4", "cl100k_base", 1),
        ("gpt-4-turbo-2024-04-09", "cl100k_base", 1),
        ("gpt-4-0613", "cl100k_base", 1),
        ("gpt-3.5-turbo", "cl100k_base", 1),
        ("text-embedding-3-large", "cl100k_base", 1),
        ("claude-opus-4-5", "o200k_base", 1.2),
        ("us.anthropic.claude-sonnet-4-5-v1:0", "o200k_base", 1.2),
        ("gemini-3-pro", "o200k_base", 1),
        ("Meta-Llama-3.1-8B", "cl100k_base", 1),
        ("", "o200k_base", 1),
    ],
)
def test_each_family_has_its_vocabulary(model, encoding, factor):
    """OpenAI's their own, others the nearest one, times what is said of them."""
    assert family(model)[1:] == (encoding, factor)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4", "claude-x"])
def test_a_chat_is_counted_as_openai_documents_it(model):
    """Three tokens for a message beside its role and text, three before the answer."""
    _, encoding, factor = family(model)
    one = exactly("user", encoding) + exactly(TEXT, encoding) + 3
    assert Prompt("chat", asked(TEXT)).tokens(model) == round(factor * (one + 3))
    assert Prompt("chat", asked(TEXT, TEXT)).tokens(model) == round(factor * (2 * one + 3))
    assert Prompt("chat", json.dumps(asked(TEXT)).encode()).tokens(model) == round(factor * (one + 3))


HELLO = exactly(TEXT)

SAME = {
    "chat": [
        {"messages": [{"role": "user", "content": TEXT}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9999}},
                        {"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral"}},
                        {"type": "file", "file": {"file_data": "B" * 9999, "filename": "x"}},
                    ],
                }
            ],
            "metadata": {"a": TEXT},
            "user": TEXT,
        },
    ],
    "responses": [
        {"input": [{"role": "user", "content": TEXT}]},
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}]},
    ],
    "anthropic": [
        {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 5},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": TEXT},
                        {"type": "image", "source": {"type": "base64", "media_type": "", "data": "A" * 9999}},
                    ],
                }
            ]
        },
    ],
}


@pytest.mark.parametrize("api", SAME)
def test_the_same_words_count_the_same_in_every_shape(api):
    """Text parts like texts; pictures, files and what no model reads are not counted."""
    assert {Prompt(api, body).tokens("gpt-4o") for body in SAME[api]} == {HELLO + 3 + 1 + 3}


@pytest.mark.parametrize(
    ("api", "body", "tokens"),
    [
        ("responses", {"input": TEXT}, HELLO),
        ("responses", {"instructions": TEXT, "input": TEXT}, 2 * HELLO),
        ("anthropic", {"system": TEXT, "messages": []}, HELLO + 3),
        ("anthropic", {"system": [{"type": "text", "text": TEXT}], "messages": []}, HELLO + 3),
        ("count_tokens", {"system": TEXT, "messages": []}, HELLO + 3),
        ("completions", {"prompt": TEXT}, HELLO),
        ("completions", {"prompt": [TEXT, TEXT], "suffix": TEXT}, 3 * HELLO),
        ("completions", {"prompt": [1, 2, 3]}, 3),
        ("embeddings", {"input": [[1, 2, 3], [4]]}, 4),
        ("embeddings", {"input": TEXT}, HELLO),
        ("unheard of", {"input": TEXT}, 0),
    ],
)
def test_every_api_has_its_texts(api, body, tokens):
    """Instructions, systems, prompts; tokens that are given as such."""
    assert Prompt(api, body).tokens("gpt-4o") == tokens


TOOL = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", 7, None]}}, "required": ["city"]}


@pytest.mark.parametrize(
    ("api", "without", "more"),
    [
        ("chat", asked("x"), {"tools": [{"type": "function", "function": {"name": "w", "parameters": TOOL}}]}),
        ("chat", asked("x"), {"response_format": {"type": "json_schema", "json_schema": {"schema": TOOL}}}),
        ("responses", {"input": "x"}, {"tools": [{"type": "function", "name": "w", "parameters": TOOL}]}),
        ("responses", {"input": "x"}, {"text": {"format": {"type": "json_schema", "schema": TOOL}}}),
        ("anthropic", asked("x"), {"tools": [{"name": "w", "input_schema": TOOL}]}),
        (
            "anthropic",
            {"messages": [{"role": "assistant", "content": []}]},
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "w", "input": TOOL}]}]},
        ),
    ],
)
def test_tools_and_schemas_count_about_as_their_json(api, without, more):
    """Their names too. How providers show them to a model, none says."""
    added = Prompt(api, without | more).tokens("gpt-4o") - Prompt(api, without).tokens("gpt-4o")
    plain = exactly(json.dumps(TOOL, separators=(",", ":")))
    assert plain * 0.7 < added < plain * 1.6 + 20


def test_results_and_arguments_of_tools_are_counted():
    """They are most of what agents send."""
    for api, message in (
        ("chat", {"role": "tool", "tool_call_id": "c" * 500, "content": TEXT}),
        ("chat", {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "", "arguments": TEXT}}]}),
        ("anthropic", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": TEXT}]}),
        ("responses", {"type": "function_call_output", "call_id": "c" * 500, "output": TEXT}),
    ):
        field = "input" if api == "responses" else "messages"
        assert HELLO <= Prompt(api, {field: [message]}).tokens("gpt-4o") <= HELLO + 12


@given(st.lists(st.text(max_size=40), max_size=8), st.sampled_from(["gpt-4o", "gpt-4", "claude-x"]))
@settings(max_examples=60, deadline=None)
def test_reaching_agrees_with_counting(texts, model):
    """At every threshold, for what came as bytes and for what was decoded, asked in any order."""
    body = asked(*texts)
    tokens = Prompt("chat", body).tokens(model)
    exact = tokens if family(model).factor == 1 else None
    for given_ in (body, json.dumps(body).encode()):
        one = Prompt("chat", given_)
        for threshold in (0, 1, tokens // 2, tokens - 3, tokens - 2):
            assert one.reaches(model, threshold) or threshold > tokens
        for threshold in (tokens + 3, 10 * tokens, 10**7):
            assert not one.reaches(model, threshold)
        if exact is not None:
            assert one.reaches(model, exact) and not one.reaches(model, exact + 1)
        assert one.tokens(model) == tokens


def test_long_texts_are_cut_without_changing_much():
    """A cut costs a token at most; there are few of them."""
    text = TEXT * 1500
    counted = Prompt("completions", {"prompt": text}).tokens("gpt-4o")
    assert exactly(text) <= counted <= exactly(text) + 20


def test_beyond_half_a_million_characters_the_rest_is_estimated(monkeypatch):
    """By how dense those were."""
    counted = []
    real = _counter("o200k_base")
    monkeypatch.setattr(
        "llm_proxy.gateway.tokens._counter", lambda encoding: lambda text: (counted.append(len(text)), real(text))[1]
    )
    text = TEXT * 40_000
    assert len(text) > 3 * MEASURED
    tokens = Prompt("completions", {"prompt": text}).tokens("gpt-4o")
    assert tokens == pytest.approx(HELLO * 40_000, rel=0.02)
    assert MEASURED <= sum(counted) < MEASURED + 20_000


def test_no_more_is_counted_than_is_asked_for():
    """Of a prompt of thirty megabytes, as little as of one of thirty kilobytes; with wide guards."""
    load(["gpt-4o"])
    body = {"messages": [{"role": "user", "content": TEXT * 4}] * 90_000}
    for ask, most in (
        (lambda one: one.reaches("gpt-4o", 100), 0.2),
        (lambda one: one.reaches("gpt-4o", 20_000), 0.5),
        (lambda one: one.tokens("gpt-4o"), 5.0),
    ):
        one = Prompt("chat", body)
        started = time.perf_counter()
        ask(one)
        assert time.perf_counter() - started < most


def test_short_bodies_are_not_even_read():
    """No token is shorter than a byte, so what is shorter than the threshold cannot reach it."""
    one = Prompt("chat", b"[" * 50)  # whose reading would find no JSON
    assert not one.reaches("gpt-4o", 51)
    assert one._body == b"[" * 50 and not one._counts


def test_what_was_counted_is_not_counted_again(monkeypatch):
    """A second threshold goes on where the first ended."""
    counted = []
    real = _counter("o200k_base")
    monkeypatch.setattr(
        "llm_proxy.gateway.tokens._counter", lambda encoding: lambda text: (counted.append(text), real(text))[1]
    )
    one = Prompt("chat", asked(*[TEXT] * 50))
    assert one.reaches("gpt-4o", 100)
    first = len(counted)
    assert first < 20
    assert one.reaches("gpt-5", 100) and len(counted) == first
    assert one.tokens("gpt-4o") and counted.count(TEXT) == 50


ODD = [None, True, 0, -1, 1.5, 10**30, "", "x", "\ud800", [], {}, [None], ["x"], {"x": 1}, [[]], [{}]]
ANY = st.recursive(
    st.sampled_from(ODD),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "input", "tools", "type", "x"]), inner)
    ),
    max_leaves=8,
)


@given(
    st.sampled_from([*READ, "nobody's"]),
    st.dictionaries(st.sampled_from([*{n for r in READ.values() for n in r}]), ANY),
)
@settings(max_examples=300, deadline=None)
def test_odd_content_raises_nothing(api, body):
    """Others refuse it, or providers do."""
    assert Prompt(api, body).tokens("gpt-4o") >= 0
    assert Prompt(api, body).reaches("claude-x", 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"messages": [{"content": "\\ud800 x"}]}',
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        None,
        "text",
        7,
    ],
    ids=lambda body: str(body)[:20],
)
def test_bodies_that_are_no_request_raise_nothing(body):
    """Broken JSON, no JSON, surrogates that stand alone, a hundred thousand brackets."""
    assert Prompt("chat", body).tokens("gpt-4o") >= 0


def test_nesting_without_end_raises_nothing():
    """Deeper than anything that recurses could go."""
    deep = inner = []
    for _ in range(100_000):
        inner.append([])
        inner = inner[0]
    body = {"messages": deep, "tools": deep, "system": deep}
    assert Prompt("anthropic", body).tokens("gpt-4o") < 20


def test_nothing_heavy_is_imported_before_something_is_counted():
    """Not the vocabularies, and never the package's other half, which takes a second."""
    program = """
import sys
from llm_proxy.gateway import tokens
from llm_proxy.gateway.planning import plan
assert not any("bpe" in name for name in sys.modules)
assert tokens.Prompt("chat", {"messages": [{"content": "hello world"}]}).tokens("gpt-4o") == 8
assert "bpe_openai" not in sys.modules
print(len(tokens._vocabularies().supported_encodings()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and int(done.stdout) >= 2, done.stderr


def test_without_a_vocabulary_a_token_is_four_bytes(monkeypatch, caplog):
    """Loudly, once; nothing fails for it."""
    monkeypatch.setattr("llm_proxy.gateway.tokens.find_spec", lambda name: None)
    for cached in (_counter, sys.modules["llm_proxy.gateway.tokens"]._vocabularies):
        cached.cache_clear()
    try:
        assert Prompt("completions", {"prompt": "x" * 400}).tokens("gpt-4o") == 100
        assert Prompt("completions", {"prompt": "x" * 400}).tokens("gpt-4o") == 100
        assert len(caplog.records) == 1 and "four bytes" in caplog.text
    finally:
        for cached in (_counter, sys.modules["llm_proxy.gateway.tokens"]._vocabularies):
            cached.cache_clear()


@pytest.mark.parametrize(
    "text, letters", [("we measure how long this text is. ", 4), ("我們測量這段文字的長度。", 4 / 3)]
)
def test_the_length_of_a_prompt_tells_about_how_many(text, letters):
    """Without a vocabulary: pictures are left out, and any script is told well enough."""
    text *= 100
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, picture]}]}
    about = Prompt("chat", json.dumps(body).encode()).about()
    assert about == pytest.approx(len(text) / letters, rel=0.1)
    assert 0.5 * about < Prompt("chat", body).tokens("gpt-4o") < 2 * about
    assert Prompt("chat", b"no JSON").about() == 0
