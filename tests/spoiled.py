"""Hostile JSON for parsers: good documents in which something was put where it does not belong."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([-1, 0, 1, 2**53, 2**64, 10**30, 1e308]))
WORDS = st.one_of(
    st.text(max_size=8), st.sampled_from(["\ud800", "assistant", "tool", "data:", "data:image/png;base64,AA=="])
)
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["type", "text", "content", "parts", "function", "id", "usage", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


def _places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for name, inner in inside for place in _places(inner, (*here, name)))]


def _put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    name, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[name] = _put(value[name], tuple(rest), new)
    return copy


@st.composite
def spoiled(draw: st.DrawFn, *documents: Any) -> bytes:
    """One of the documents as JSON, with one to three of its values, at any depth, replaced by anything."""
    value = draw(st.sampled_from(documents))
    for _ in range(draw(st.integers(1, 3))):
        value = _put(value, draw(st.sampled_from(_places(value))), draw(ANY))
    return json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def nested(*around: str) -> list[bytes]:
    """Each of these, around itself 100,000 times and 400 times: too deep for any parser, and for recursion only."""
    halves = [template.split("%") for template in ("[%]", '{"a":%}', *around)]
    return [(left * depth + "1" + right * depth).encode() for left, right in halves for depth in (100_000, 400)]
