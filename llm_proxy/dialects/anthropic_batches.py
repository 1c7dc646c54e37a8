"""Anthropic's Message Batches: many requests in one, their results as JSON lines.

A batch costs nothing when it is made; its results carry the usage. Leaves out the list of all batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from llm_proxy.dialects import anthropic, reading
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind

_ABSENT = msgspec.Raw()
_TIER = "batch"


class _Batch(msgspec.Struct):
    requests: msgspec.Raw = _ABSENT


class _Item(msgspec.Struct):
    custom_id: Any = None
    params: msgspec.Raw = _ABSENT


class _Result(msgspec.Struct):
    type: Any = None
    message: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _Line(msgspec.Struct):
    """A line of results, or the batch itself."""

    result: _Result | None = None
    type: Any = None
    id: Any = None
    processing_status: Any = None


_BATCH = msgspec.json.Decoder(_Batch)
_ITEM = msgspec.json.Decoder(_Item)
_LINE = msgspec.json.Decoder(_Line)


def asked(path: str, body: bytes) -> Asked:
    """The requests of a batch, one after the other: before the messages of each, a part that names it. Never raises.

    That part is of the kind OTHER with the name `batch_request`, the request's `custom_id` as id and its model as text.
    `model` is the one that all of them ask for, "" where they differ.
    """
    said = reading.read(_BATCH, body)
    if said is None:
        return Asked(service_tier=_TIER, trouble="the body is not a JSON object" if body else "")
    messages: list[Message] = []
    models: dict[str, None] = {}
    for item in reading.read_each(_ITEM, said.requests):
        one = anthropic.request(item.params)
        models[one.model] = None
        part = Part(PartKind.OTHER, one.model, "batch_request", reading.text(item.custom_id))
        messages += (Message("user", (part,)), *one.messages)
    return Asked(model=next(iter(models)) if len(models) == 1 else "", messages=tuple(messages), service_tier=_TIER)


def answers(content: Content) -> tuple[Answer, ...]:
    """One answer per line of results; for a batch itself, one with its id and, as stop reason, its status.

    Never raises.
    """
    if content.kind == "messages":
        return (Answer(trouble="this API is not spoken over WebSocket"),)
    if content.status is None and not content.data:
        return ()
    return tuple(_read(content.data)) or (reading.failure(content),)


def _read(data: bytes) -> Iterator[Answer]:
    lines = [line for line in data.split(b"\n") if line.strip()]
    for number, raw in enumerate(lines, start=1):
        line = reading.read(_LINE, raw)
        if line is None:
            if number > 1:  # the file was cut inside its last line
                yield Answer(partial=True, service_tier=_TIER)
            return
        if line.result is not None:
            yield from _result(line.result)
        elif line.type == "message_batch":
            yield Answer(response_id=reading.text(line.id), stop_reason=reading.text(line.processing_status))
        else:
            yield from anthropic.reply(raw)


def _result(result: _Result) -> Iterator[Answer]:
    kind = reading.text(result.type)
    said = anthropic.reply(result.message) or anthropic.reply(result.error)
    for answer in said or (Answer(stop_reason=kind),):  # canceled, expired: neither message nor error
        yield replace(answer, service_tier=_TIER)
