"""Whatever comes, from providers or callers: answers never raise, requests raise nothing but an error with a place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.gateway.translate.apis import APIS, server_sent
from llm_proxy.gateway.translate.conversation import Ask
from llm_proxy.gateway.translate.errors import read_problem, write_problem
from llm_proxy.gateway.translate.losses import BadRequest, Losses
from tests.conversations import asks, replies, streams, told

EVERY = pytest.mark.parametrize("api", sorted(APIS))
ODD: list[Any] = [None, True, 0, -1, 1.5, 10**30, "", "x", "\ud800", [], {}, [None], ["x"], {"x": 1}, [[]], [{}]]


@st.composite
def spoiled(draw: st.DrawFn, document: Any, times: int = 3) -> Any:
    """The document with some of its values, anywhere in it, replaced by odd ones or gone."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, times))):
        places = list(_places(document))
        if not places:
            return draw(st.sampled_from(ODD))
        holder, key = draw(st.sampled_from(places))
        if draw(st.booleans()):
            holder[key] = draw(st.sampled_from(ODD))
        else:
            del holder[key]
    return document


def _places(value: Any) -> Any:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield value, key
        yield from _places(one)


@EVERY
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_spoiled_requests_raise_nothing_but_bad_request(api: str, data: st.DataObject) -> None:
    """With a place and a rule; what is read can be written, or is refused likewise."""
    asked = APIS[api].write_request(data.draw(asks()), Losses("nobody"))
    body = data.draw(spoiled(asked))
    losses = Losses("nobody", refuse=data.draw(st.booleans()))
    try:
        ask = APIS[api].read_request(body, losses)
        for other in APIS.values():
            other.write_request(ask, losses)
    except BadRequest as wrong:
        assert str(wrong)


@EVERY
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_spoiled_answers_raise_nothing(api: str, data: st.DataObject) -> None:
    """And what is understood of them can be written for every caller."""
    body = data.draw(spoiled(APIS[api].write_reply(data.draw(replies()), Ask("m", ()), 1)))
    reply = APIS[api].read_reply(body)
    for other in APIS.values():
        server_sent("", other.write_reply(reply, Ask("m", ()), 1))


@EVERY
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_spoiled_streams_raise_nothing(api: str, data: st.DataObject) -> None:
    """Neither reading nor writing, with pieces gone, twice, or out of order."""
    pieces: list[Any] = [
        {name: piece} if api == "bedrock" else piece for name, piece in told(APIS[api], data.draw(streams()))
    ]
    pieces = data.draw(spoiled(pieces, times=4))
    if isinstance(pieces, list) and data.draw(st.booleans()):
        pieces = data.draw(st.permutations(pieces))
    reader = APIS[api].reader()
    events = [event for piece in (pieces if isinstance(pieces, list) else [pieces]) for event in reader.read(piece)]
    events += reader.finish()
    for other in APIS.values():
        writer = other.writer(Ask("m", (), usage=True), 1)
        for event in events:
            for name, piece in writer.write(event):
                server_sent(name, piece)


@given(data=st.data(), status=st.integers(400, 599))
@settings(max_examples=25, deadline=None)
def test_spoiled_errors_raise_nothing(data: st.DataObject, status: int) -> None:
    """They are an error all the same."""
    body = {"type": "error", "error": {"type": "x", "message": "y", "code": 1, "details": [{"retryDelay": "1s"}]}}
    problem = read_problem(status, {}, data.draw(spoiled(body)))
    for api in APIS:
        assert write_problem(api, problem)[0] >= 400
