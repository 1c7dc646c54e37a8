"""No field is passed over: each of the official SDKs' request types is carried, mapped, left out and told, or refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.losses import BadRequest, CannotSay, Losses
from tests.sdktypes import Place, places
from tests.translated_fields import DECIDED, REFUSED

REQUESTS: dict[str, Any] = {
    "anthropic": MessageCreateParamsNonStreaming,
    "chat": CompletionCreateParamsNonStreaming,
    "responses": ResponseCreateParamsNonStreaming,
}
# What the SDK's types leave open, and the API does not.
BESIDES = {"ResponseCreateParamsNonStreaming": {"model": "m"}, "FunctionCallOutput": {"call_id": "c"}}


def decisions(api: str) -> dict[tuple[str, str], set[str]]:
    """(type, field) -> marks; types of one name share a line."""
    decided: dict[tuple[str, str], set[str]] = defaultdict(set)
    owner = ""
    for word in DECIDED[api].split():
        if word.endswith(":"):
            owner = word[:-1]
        else:
            decided[owner, word[1:]].add(word[0])
    return decided


def last_name(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]


def mark(api: str, place: Place) -> str:
    """What becomes of the field: one of the marks, or `*` where it is refused with what holds it."""
    read = APIS[api].read_request
    try:
        ask = read(place.given, Losses("nobody"))
    except CannotSay as refused:
        return "!" if last_name(refused.field) == place.field else "*"
    losses = Losses("nobody", refuse=False)
    read(place.given, losses)
    if place.field in map(last_name, losses.dropped):
        return "~"
    try:
        return "." if ask == read(place.without, Losses("nobody", refuse=False)) else "+"
    except BadRequest:
        return "+"  # it must be there


def undecided(api: str) -> Iterator[str]:
    decided, refused = decisions(api), set(REFUSED[api].split())
    for place in places(REQUESTS[api], BESIDES):
        found = mark(api, place)
        expected = decided.get((place.owner, place.field), set())
        if place.owner in refused:
            expected = expected | {"!", "*"}
        if found not in expected and not (found == "*" and "!" in expected):
            yield f"{place.owner}.{place.field} is {found!r}, decided was {sorted(expected)}"


@pytest.mark.parametrize("api", sorted(REQUESTS))
def test_every_field_has_been_decided_on(api: str) -> None:
    """A field that a new SDK brings fails here until somebody has decided what becomes of it."""
    assert list(undecided(api)) == []


@pytest.mark.parametrize("api", sorted(REQUESTS))
def test_every_decision_is_about_a_field_that_there_is(api: str) -> None:
    """What the SDKs no longer have is no longer decided."""
    known = {(place.owner, place.field) for place in places(REQUESTS[api], BESIDES)}
    assert set(decisions(api)) <= known
    assert set(REFUSED[api].split()) <= {owner for owner, _ in known}


@pytest.mark.parametrize("api", sorted(APIS))
def test_a_field_that_nobody_knows_is_refused_by_its_name(api: str) -> None:
    """A misspelt setting is an error, not silence; with leave to drop it, it is told."""
    body = {"model": "m", "max_tokens": 1, "messages": [], "input": "x", "contents": []}
    known = {"anthropic": ("model", "max_tokens", "messages"), "chat": ("model", "messages"),
             "responses": ("model", "input"), "gemini": ("contents",), "bedrock": ("messages",)}[api]  # fmt: skip
    asked = {name: body[name] for name in known} | {"tempratur": 1}
    with pytest.raises(CannotSay, match=r"^tempratur: cannot be said to nobody$"):
        APIS[api].read_request(asked, Losses("nobody"))
    losses = Losses("nobody", refuse=False)
    APIS[api].read_request(asked, losses)
    assert losses.dropped == ["tempratur"]
