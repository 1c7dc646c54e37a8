"""What travels through APIs that have no place for it: signatures of other makers, tools that take text, order."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.gateway.translate.conversation import (
    Begin,
    End,
    Failure,
    PartBegin,
    PartEnd,
    Piece,
    Reply,
    Role,
    Signed,
    Stop,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    joined,
)
from llm_proxy.gateway.translate.free import Freed, object_of
from llm_proxy.gateway.translate.order import InOrder
from llm_proxy.gateway.translate.signatures import ANTHROPIC, OPENAI, carried, delivered, inward, outward

FREE = (Tool("patch", free=True), Tool("weather", schema={}))


@given(st.text(), st.text(), st.text(), st.text())
def test_a_signature_of_another_maker_comes_back(text: str, signature: str, sealed: str, id: str) -> None:
    """With all that only its maker can open; unsigned thoughts come back as nobody's."""
    thought = Thinking(text, signature, sealed, OPENAI, id)
    back = inward(text, outward(thought, ANTHROPIC), ANTHROPIC)
    assert back == (thought if signature or sealed else Thinking(text))


@given(st.text().filter(lambda text: not text.startswith("llmp1.")))
def test_a_makers_own_signature_is_not_touched(signature: str) -> None:
    """It is verified to the byte."""
    thought = inward("", signature, ANTHROPIC)
    assert outward(thought, ANTHROPIC) == signature


@given(st.text(), st.sampled_from(("", "llmp1.")))
def test_a_forged_envelope_is_nobodys_thought(text: str, mark: str) -> None:
    """Clients can send anything."""
    inward("", mark + text, ANTHROPIC)
    assert inward("x", "llmp1.!!!", ANTHROPIC) == Thinking("x")
    assert inward("x", "llmp1.e30=", ANTHROPIC) == Thinking("x")


def test_a_calls_signature_travels_as_a_thought_before_it() -> None:
    """And lands on the same call."""
    call = ToolCall("1", "f", "{}", signature="c2ln", origin="gemini")
    parts = (Text("a"), call, ToolCall("2", "f", "{}"))
    assert [type(part) for part in carried(parts)] == [Text, Thinking, ToolCall, ToolCall]
    assert tuple(delivered(carried(parts))) == parts


@given(st.text())
def test_text_for_a_tool_comes_out_of_its_object_again(text: str) -> None:
    """Whole, or cut anywhere."""
    boxed = json.dumps(object_of(ToolCall("1", "patch", text, free=True)))
    reply = Reply("", "", (ToolCall("1", "patch", boxed), ToolCall("2", "weather", boxed)))
    assert Freed(FREE).reply(reply).parts == (ToolCall("1", "patch", text, free=True), ToolCall("2", "weather", boxed))
    freed = Freed(FREE)
    events = [PartBegin(0, ToolCall("1", "patch", "")), *(Piece(0, one) for one in boxed), PartEnd(0)]
    assert [told for event in events for told in freed.event(event)] == [
        PartBegin(0, ToolCall("1", "patch", "", free=True)),
        Piece(0, text),
        PartEnd(0),
    ]


@pytest.mark.parametrize("given", ["oops", "{}", "[1]", '{"input":7}', ""])
def test_a_model_that_breaks_the_rule_is_not_hidden(given: str) -> None:
    """The caller sees what it wrote."""
    assert Freed(FREE).reply(Reply("", "", (ToolCall("1", "patch", given),))).parts[0].arguments == given  # type: ignore[union-attr]


def test_parts_wait_for_those_before_them() -> None:
    """Nothing is lost, nothing mixed, and the end waits for all."""
    order = InOrder()
    events = [
        Begin("", ""),
        PartBegin(5, Text("")),
        PartBegin(7, Text("")),
        Piece(7, "b"),
        Piece(5, "a"),
        PartEnd(7),
        Piece(5, "a"),
        PartEnd(5),
        End(Stop.END),
    ]
    assert [one for event in events for one in order.events(event)] == [
        Begin("", ""),
        PartBegin(0, Text("")),
        Piece(0, "a"),
        Piece(0, "a"),
        PartEnd(0),
        PartBegin(1, Text("")),
        Piece(1, "b"),
        PartEnd(1),
        End(Stop.END),
    ]


def test_a_part_that_never_ended_ends_with_the_answer() -> None:
    """But not with a failure: what was broken off is not made whole."""
    begun = [PartBegin(0, Text("")), PartBegin(1, Thinking("")), Signed(1, "s", ANTHROPIC)]
    order, broken = InOrder(), InOrder()
    ended = [one for event in [*begun, End(Stop.END)] for one in order.events(event)]
    assert [type(one) for one in ended] == [PartBegin, PartEnd, PartBegin, Signed, PartEnd, End]
    failed = [one for event in [*begun, Failure("server", "")] for one in broken.events(event)]
    assert [type(one) for one in failed] == [PartBegin, Failure]


def test_results_know_their_calls() -> None:
    """By id; where neither has one, by name and order."""
    turns = joined(
        [
            Turn(Role.ASSISTANT, (ToolCall("", "f", "{}"), ToolCall("", "f", "{}"), ToolCall("x", "g", "", free=True))),
            Turn(Role.USER, (ToolResult("", name="f"), ToolResult("x"), ToolResult("", name="f"), ToolResult("?"))),
        ]
    )
    assert turns[1].parts == (
        ToolResult("call_0", name="f"),
        ToolResult("x", name="g", free=True),
        ToolResult("call_1", name="f"),
        ToolResult("?"),
    )
