"""The APIs by name, each with what reads and writes it: requests, whole answers, streams, token counts.

Leaves out how any of them is reached, and which of them a model speaks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway.translate import (
    anthropic,
    anthropic_answers,
    bedrock,
    bedrock_answers,
    chat,
    chat_answers,
    gemini,
    gemini_answers,
    responses,
    responses_answers,
)
from llm_proxy.gateway.translate.conversation import Ask, Event, Json, Reply
from llm_proxy.gateway.translate.losses import Losses


class StreamReader(Protocol):
    """Gives events for each piece of a provider's stream, and those that only its end can tell. Never raises."""

    def read(self, event: Json) -> Iterator[Event]: ...

    def finish(self) -> Iterator[Event]: ...


class StreamWriter(Protocol):
    """Gives the stream's pieces for each event: their names ("" where they have none) and data."""

    def write(self, event: Event) -> Iterator[tuple[str, Json]]: ...


class _ReadReply(Protocol):
    def __call__(self, body: Json, *, id: str = "", model: str = "") -> Reply: ...


class _Reader(Protocol):
    def __call__(self, *, id: str = "", model: str = "") -> StreamReader: ...


class _Writer(Protocol):
    def __call__(self, ask: Ask, created: int = 0) -> StreamWriter: ...


class _WriteReply(Protocol):
    def __call__(self, reply: Reply, ask: Ask, created: int = 0) -> Json: ...


@dataclass(frozen=True, slots=True)
class Api:
    """One API. `ending` is what closes a stream behind its last piece.

    `id` and `model` go to readers of answers, for those that do not tell them; `created`, seconds since 1970, to
    writers, for replies of APIs that do not tell it.
    """

    name: str
    read_request: Callable[[Json, Losses], Ask]
    write_request: Callable[[Ask, Losses], Json]
    read_reply: _ReadReply
    write_reply: _WriteReply
    reader: _Reader
    writer: _Writer
    read_usage: Callable[[Json], Usage]
    write_usage: Callable[[Usage], Json]
    ending: bytes = b""


APIS: Final = {
    "anthropic": Api(
        anthropic.NAME,
        anthropic.read_request,
        anthropic.write_request,
        anthropic_answers.read_reply,
        anthropic_answers.write_reply,
        anthropic_answers.StreamReader,
        anthropic_answers.StreamWriter,
        anthropic_answers.read_usage,
        anthropic_answers.write_usage,
    ),
    "chat": Api(
        chat.NAME,
        chat.read_request,
        chat.write_request,
        chat_answers.read_reply,
        chat_answers.write_reply,
        chat_answers.StreamReader,
        chat_answers.StreamWriter,
        chat_answers.read_usage,
        chat_answers.write_usage,
        ending=b"data: [DONE]\n\n",
    ),
    "responses": Api(
        responses.NAME,
        responses.read_request,
        responses.write_request,
        responses_answers.read_reply,
        responses_answers.write_reply,
        responses_answers.StreamReader,
        responses_answers.StreamWriter,
        responses_answers.read_usage,
        responses_answers.write_usage,
    ),
    "gemini": Api(
        gemini.NAME,
        gemini.read_request,
        gemini.write_request,
        gemini_answers.read_reply,
        gemini_answers.write_reply,
        gemini_answers.StreamReader,
        gemini_answers.StreamWriter,
        gemini_answers.read_usage,
        gemini_answers.write_usage,
    ),
    "bedrock": Api(
        bedrock.NAME,
        bedrock.read_request,
        bedrock.write_request,
        bedrock_answers.read_reply,
        bedrock_answers.write_reply,
        bedrock_answers.StreamReader,
        bedrock_answers.StreamWriter,
        bedrock_answers.read_usage,
        bedrock_answers.write_usage,
    ),
}


def server_sent(name: str, data: Json) -> bytes:
    """A piece of a stream as a server-sent event."""
    lead = f"event: {name}\n" if name else ""
    return f"{lead}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode("utf-8", "replace")
