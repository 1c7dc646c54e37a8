"""A request, an answer or a stream from one API into another, as a gateway would carry it.

Leaves out sockets: these are the pure tests' short forms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import Ask, Event
from llm_proxy.gateway.translate.free import Freed
from llm_proxy.gateway.translate.losses import Losses

Json = Any
NOTHING = Ask("model-1", (), usage=True)


def request(source: str, target: str, body: Json, model: str = "", losses: Losses | None = None) -> Json:
    """The body that the target gets, with the alias's own model where one is named."""
    losses = losses or Losses(APIS[target].name)
    ask = APIS[source].read_request(body, losses)
    return APIS[target].write_request(replace(ask, model=model or ask.model), losses)


def answer(source: str, target: str, body: Json, ask: Ask = NOTHING, created: int = 1_760_000_000) -> Json:
    """The body that the caller, who speaks `target`, gets."""
    reply = APIS[source].read_reply(body, id="id-1", model="model-1")
    return APIS[target].write_reply(Freed(ask.tools).reply(reply), ask, created)


def events(source: str, pieces: Iterable[Json]) -> list[Event]:
    """What the provider's pieces say."""
    reader = APIS[source].reader(id="id-1", model="model-1")
    return [*(event for piece in pieces for event in reader.read(piece)), *reader.finish()]


def stream(
    source: str, target: str, pieces: Iterable[Json], ask: Ask = NOTHING, created: int = 1_760_000_000
) -> list[Json]:
    """The pieces that the caller gets."""
    writer, freed = APIS[target].writer(ask, created), Freed(ask.tools)
    told = (one for event in events(source, pieces) for one in freed.event(event))
    return [data for event in told for _, data in writer.write(event)]
