"""What every API can say comes back the same from each: requests, answers, streams cut and interleaved anyhow."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import Ask, Event, PartBegin, PartEnd, Piece, Reply, ToolCall
from llm_proxy.gateway.translate.losses import Losses
from tests.conversations import asks, plainly, replies, streams, told, understood, whole

EVERY = pytest.mark.parametrize("api", sorted(APIS))


def there_and_back(api: str, ask: Ask) -> Ask:
    body = json.loads(json.dumps(APIS[api].write_request(ask, Losses("nobody"))))
    return APIS[api].read_request(body, Losses("nobody"))


@EVERY
@given(ask=asks())
@settings(max_examples=25, deadline=None)
def test_a_request_comes_back_the_same(api: str, ask: Ask) -> None:
    """Nothing that all APIs can say is lost, added or put elsewhere on the way through one of them."""
    assert plainly(there_and_back(api, ask)) == plainly(ask)


@given(ask=asks(), order=st.permutations(sorted(APIS)))
@settings(max_examples=25, deadline=None)
def test_a_request_comes_through_all_apis_one_after_the_other(ask: Ask, order: list[str]) -> None:
    """Whatever the caller speaks and whatever the provider: the request is the same."""
    said = ask
    for api in order:
        said = there_and_back(api, said)
    assert plainly(said) == plainly(ask)


@EVERY
@given(reply=replies())
@settings(max_examples=25, deadline=None)
def test_an_answer_comes_back_the_same(api: str, reply: Reply) -> None:
    """Words, thoughts, calls, why it ended and what it cost."""
    body = json.loads(json.dumps(APIS[api].write_reply(reply, Ask("model-1", ()), created=1)))
    read = APIS[api].read_reply(body, id="id-1", model="model-1")
    assert replace(read, created=0, parts=_unowned(read)) == reply


def _unowned(reply: Reply) -> tuple[object, ...]:
    """A thought that nobody signed belongs to nobody, whatever its item is called."""
    return tuple(replace(part, id="") if getattr(part, "origin", None) == "" and hasattr(part, "sealed") else part
                 for part in reply.parts)  # fmt: skip


@EVERY
@given(events=streams())
@settings(max_examples=25, deadline=None)
def test_a_stream_comes_back_the_same(api: str, events: list[Event]) -> None:
    """Each part with all that was said of it, in order, and the end with its counts."""
    assert whole(understood(APIS[api], told(APIS[api], events), api == "bedrock")) == whole(events)


@EVERY
@given(events=streams(interleaved=True))
@settings(max_examples=25, deadline=None)
def test_calls_that_come_interleaved_come_back_whole(api: str, events: list[Event]) -> None:
    """Models of some APIs write several calls at once; no call gets another one's arguments."""
    assert whole(understood(APIS[api], told(APIS[api], events), api == "bedrock")) == whole(events)


@EVERY
@given(events=streams(), data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_stream_that_is_cut_has_told_all_until_then(api: str, events: list[Event], data: st.DataObject) -> None:
    """What was said before a cut is said, no part begins twice or goes on after its end, and there is no end."""
    pieces = told(APIS[api], events)
    kept = pieces[: data.draw(st.integers(0, len(pieces) - 1))]
    reader = APIS[api].reader(id="id-1", model="model-1")
    before = [event for name, piece in kept for event in reader.read({name: piece} if api == "bedrock" else piece)]
    everything = understood(APIS[api], pieces, api == "bedrock")
    assert before == everything[: len(before)]
    open_parts: set[int] = set()
    for event in before:
        if isinstance(event, PartBegin):
            open_parts.add(event.index)
        elif isinstance(event, Piece):
            assert event.index in open_parts
        elif isinstance(event, PartEnd):
            open_parts.remove(event.index)


@pytest.mark.parametrize("source", sorted(APIS))
@pytest.mark.parametrize("target", sorted(APIS))
@given(events=streams(interleaved=True))
@settings(max_examples=4, deadline=None)
def test_a_stream_goes_from_every_api_to_every_other(source: str, target: str, events: list[Event]) -> None:
    """What a provider streams reaches the caller piece by piece in the caller's own API, and means the same."""
    provider = told(APIS[source], events)
    between = understood(APIS[source], provider, source == "bedrock")
    caller = told(APIS[target], between)
    assert whole(understood(APIS[target], caller, target == "bedrock")) == whole(events)


@EVERY
@given(events=streams())
@settings(max_examples=8, deadline=None)
def test_words_are_passed_on_at_once(api: str, events: list[Event]) -> None:
    """A writer holds nothing back but the calls of an API whose calls come whole."""
    writer = APIS[api].writer(Ask("model-1", (), usage=True), created=1)
    calls: set[int] = set()
    for event in events:
        written = list(writer.write(event))
        if isinstance(event, PartBegin) and isinstance(event.part, ToolCall):
            calls.add(event.index)
        if isinstance(event, Piece) and not (api == "gemini" and event.index in calls):
            assert written
