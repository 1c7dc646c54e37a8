"""What every dialect shares: the request understood, what the model would say, and the answer as pieces of a body.

The model always says the same words; it calls a tool when the request forces one or the last user text says
`call NAME {json}`. Leaves out how the words look in each API (one module per dialect) and framing (`delivery`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = Any
Fields = tuple[tuple[bytes, bytes], ...]

SENTENCE = ("Hello", " from", " the", " fake", " provider:", " Grüße,", " 世界", " 🌍.", "\n")
THOUGHTS = ("The user", " wants", " an answer.")
CREATED = 1_760_000_000  # seconds; fixed, so that two runs differ in ids only

_serial = itertools.count(1)
_CALL = re.compile(r"\bcall (\w+)(?: (\{.*\}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response before it is framed. `length` is None for a stream: `pieces` are then its events, maybe endless."""

    status: int
    fields: Fields
    pieces: Iterable[bytes]
    length: int | None


@dataclass(frozen=True, slots=True)
class Provider:
    """What differs between providers apart from their answers."""

    fields: Callable[[str], Fields]  # of every response, from a fresh id
    error: Callable[[int, str], Json]  # status and message as an error body
    error_event: Callable[[str], bytes]  # message as an error inside a stream


@dataclass(frozen=True, slots=True)
class Call:
    """A request as a dialect sees it. `words` is the text to say, None for the usual sentence."""

    path: str
    body: dict[str, Json]
    size: int
    words: Iterable[str] | None
    must_stream: bool
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def streams(self) -> bool:
        return self.must_stream or bool(self.body.get("stream"))

    @property
    def text(self) -> Iterable[str]:
        return SENTENCE if self.words is None else self.words

    @property
    def model(self) -> str:
        return str(self.body.get("model") or "fake-model")

    @property
    def input_tokens(self) -> int:
        return max(1, self.size // 4)


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: dict[str, Json]

    @property
    def json(self) -> str:
        return dumps(self.arguments)

    @property
    def fragments(self) -> Iterator[str]:
        """The arguments in pieces as a model would give them, cut without regard to JSON."""
        text = self.json
        return (text[at : at + 7] for at in range(0, len(text), 7))


def tool_wanted(names: list[str], last_text: str, forced: str | bool) -> ToolCall | None:
    """Which tool to call: the one named by `forced`, any if that is True, else the one the text asks for."""
    if not names:
        return None
    asked = _CALL.search(last_text)
    name = asked[1] if asked and asked[1] in names else ""
    if forced and not name:
        name = forced if isinstance(forced, str) else names[0]
    if not name:
        return None
    try:
        arguments = json.loads(asked[2]) if asked and asked[2] else {"city": "Zürich", "days": 3}
    except ValueError:
        arguments = {"text": asked[2] if asked else ""}
    return ToolCall(name, arguments)


def text_of(content: Json) -> str:
    """The text of a message's content, which is a string or a list of parts in every dialect."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def new_id(prefix: str) -> str:
    return f"{prefix}{next(_serial):022d}"


def dumps(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def document(value: Json, fields: Fields = (), status: int = 200) -> Answer:
    body = dumps(value).encode()
    return Answer(status, ((b"Content-Type", b"application/json"), *fields), (body,), len(body))


def stream(events: Iterable[bytes], fields: Fields = ()) -> Answer:
    kind = (b"Content-Type", b"text/event-stream; charset=utf-8")
    return Answer(200, (kind, (b"Cache-Control", b"no-cache"), *fields), events, None)


def named_event(data: dict[str, Json]) -> bytes:
    """A server-sent event named after its `type`."""
    return f"event: {data['type']}\ndata: {dumps(data)}\n\n".encode()


def data_event(data: Json) -> bytes:
    return f"data: {dumps(data)}\n\n".encode()
