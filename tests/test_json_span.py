"""The scanner that finds the model in a body: where a parser of JSON sees it, in pieces of any size, in linear time."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_proxy.wire import json_span
from llm_proxy.wire.json_span import ModelSpan, NotAnObject

KEYS = st.sampled_from(["model", "Model", "models", "a", "", 'mo"del', "model\\", "{", "]"]) | st.text(max_size=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just('\\"model": "x"')
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)
MEMBERS = st.lists(st.tuples(KEYS, VALUES), max_size=8)
SPACE = st.sampled_from(["", " ", "\n\t", "\r\n  "])


@st.composite
def objects(draw):
    """A JSON text as a hostile but correct writer has it: duplicate keys, escaped letters, any white space."""
    ascii_only = draw(st.booleans())
    parts = []
    for key, value in draw(MEMBERS):
        told = json.dumps(key, ensure_ascii=ascii_only)
        if key == "model" and draw(st.booleans()):
            told = draw(
                st.sampled_from(['"\\u006dodel"', '"mod\\u0065\\u006C"', '"\\u006d\\u006f\\u0064\\u0065\\u006c"'])
            )
        space = draw(SPACE)
        indent = draw(st.sampled_from([None, 1]))
        parts.append(f"{space}{told}{space}:{space}{json.dumps(value, ensure_ascii=ascii_only, indent=indent)}{space}")
    space = draw(SPACE)
    return (space + "{" + ",".join(parts) + (space if not parts else "") + "}" + space).encode("utf-8", "surrogatepass")


def fed(body, size):
    scanner = ModelSpan()
    for start in range(0, len(body), size):
        scanner.feed(body[start : start + size])
    return scanner.found()


def as_parsed(body):
    return json.loads(body.decode("utf-8", "surrogatepass"))


@settings(max_examples=600, deadline=None)
@given(objects(), st.integers(1, 40))
@example(b'{"model":"a","model":["x"]}', 3)
@example(b'{"model":["x"],"model":"b\\\\"}', 1)
@example(b'{"a":{"model":"x"},"model":"\\"y\\""}', 2)
def test_it_finds_what_a_parser_finds(body, size):
    """The last top-level `model`, where it is a string: its very bytes, whatever stands around it and however it comes."""
    span, model = fed(body, size), as_parsed(body).get("model")
    if not isinstance(model, str):
        assert span is None
        return
    assert json.loads(body[span.start : span.end].decode("utf-8", "surrogatepass")) == model
    assert span.name == model.encode("utf-16", "surrogatepass").decode("utf-16", "replace") or "\ufffd" in span.name
    changed = body[: span.start] + b'"upstream"' + body[span.end :]
    assert as_parsed(changed) == as_parsed(body) | {"model": "upstream"}


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 7))
def test_anything_else_is_refused_or_passed_without_harm(body, size):
    """Bytes that are no JSON object name no model, or raise the one error there is."""
    try:
        span = fed(body, size)
    except NotAnObject:
        return
    assert body.strip(b" \t\r\n")[:1] == b"{" and body.strip(b" \t\r\n")[-1:] == b"}"
    assert span is None or body[span.start : span.start + 1] == b'"'


@pytest.mark.parametrize(
    "body", [b"", b" ", b"[]", b'"model"', b'{"model"', b'{"model":"a"', b'{"model":"a"}}', b'{"model" "a"}', b"{,}"]
)
def test_what_is_no_object_is_told(body):
    with pytest.raises(NotAnObject):
        fed(body, 100)


def test_hostile_depth_and_width_end_early():
    """Deeper or wider than any parser goes is refused, not followed."""
    for body in (b'{"a":' + b"[" * 20_000, b'{"a":1' + b',"a":1' * 20_000 + b"}"):
        with pytest.raises(NotAnObject):
            fed(body, 65_536)
    inner = json_span.DEEPEST - 2
    assert fed(b'{"a":' + b"[" * inner + b"]" * inner + b',"model":"m"}', 65_536).name == "m"


def test_a_name_of_any_length_is_no_longer_kept():
    """Memory is bounded: of a name of a megabyte a kilobyte is kept, which is not taken for a name that ends there."""
    span = fed(b'{"model":"' + b"m" * 1_000_000 + b'"}', 4096)
    assert span.end - span.start == 1_000_002
    assert span.name == "m" * json_span.LONGEST + "…"


@pytest.mark.parametrize(
    "unit",
    [b'{"a":[{"b":"c"}]},', b'"\\\\\\"",', b"[[[[]]]],", b'"' + b"x" * 1000 + b'",', b'"{[",'],
    ids=["messages", "escapes", "brackets", "texts", "quoted brackets"],
)
def test_time_is_linear(unit):
    """Eight times the bytes take eight times the time, within what a busy machine blurs."""

    def spent(times):
        body = b'{"a":[' + unit * times + b'1],"model":"m"}'
        began = time.thread_time()
        assert fed(body, 65_536).name == "m"
        return time.thread_time() - began

    few = 200_000 // len(unit)
    short, long = min(spent(few) for _ in range(3)), min(spent(8 * few) for _ in range(3))
    assert long < 40 * max(short, 0.001)
