"""Tools between a request and its answer: which results a request hands back, which tools its answer calls.

The same for every API, because all histories are messages here. Tools that the provider runs itself are left out: they
are called and answered within one answer, and no client waits for them. Leaves out what results say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import zip_longest

from llm_proxy.dialects.digest import Answer, Asked, Digest, Message, Part, PartKind


@dataclass(frozen=True, slots=True)
class Result:
    """A tool's result. `name` is "" where the history does not hold its call and the API does not repeat it.

    `key` is of the result's call (`key_of`), or where the API gives no ids of the result and its place: 12 hex digits,
    the same each time that a client sends it. `new`: it stands behind all that the model has said.
    """

    id: str
    name: str
    failed: bool
    key: str
    new: bool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the client is to run. `index` counts from 0 within the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Round:
    """One request, with all results in its history, and its answer. `answered`: the model has said something."""

    results: tuple[Result, ...]
    calls: tuple[ToolCall, ...]
    answered: bool


def rounds(digest: Digest, client: Sequence[bytes] | None = None) -> tuple[Round, ...]:
    """One for an HTTP call, whatever number of choices it has; one for each request where `client` are the texts that
    the client sent over a WebSocket.
    """
    if client is None:
        return (_round(digest.asked, digest.answers),)
    from llm_proxy.dialects.openai_responses import asked  # the only API that is spoken over WebSocket

    requests = [request for text in client if (request := asked("", text)).messages]
    return tuple(
        _round(request or Asked(), (answer,) if answer else ())
        for request, answer in zip_longest(requests, digest.answers)
    )


def _round(asked: Asked, answers: Sequence[Answer]) -> Round:
    said = [answer.message for answer in answers if answer.message is not None]
    return Round(results(asked.messages), calls(asked.api, said), any(message.parts for message in said))


def key_of(id: str) -> str:
    """A short name for an id, which may be as long as its sender likes."""
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


# --- what a request hands back


def results(messages: Sequence[Message]) -> tuple[Result, ...]:
    """The results in a history, in its order."""
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=-1)
    names: dict[str, str] = {}
    waiting: deque[str] = deque()  # names of calls without an id: results come in the order of the calls
    found: list[Result] = []
    for place, message in enumerate(messages):
        if message.role == "assistant":
            made = [part for part in message.parts if part.kind == PartKind.TOOL_CALL]
            names |= {part.id: part.name for part in made if part.id}
            waiting = deque(part.name for part in made if not part.id)
            continue
        for number, part in enumerate(message.parts):
            if part.kind == PartKind.TOOL_RESULT:
                name = part.name or (names.get(part.id, "") if part.id else _next(waiting))
                key = key_of(part.id or f"{place} {number} {name} {part.text}")
                found.append(Result(part.id, name, part.failed, key, place > last))
    return tuple(found)


def _next(waiting: deque[str]) -> str:
    return waiting.popleft() if waiting else ""


# --- what an answer calls


def calls(api: str, answers: Iterable[Message]) -> tuple[ToolCall, ...]:
    """The tools that the client is to run, over all answers."""
    made = [part for message in answers for part in _made(api, message.parts)]
    return tuple(ToolCall(index, part.id, part.name) for index, part in enumerate(made))


# How Anthropic's ids of tools begin that run on its side; their results may stand in a later answer.
_PROVIDERS = ("srvtoolu_", "mcptoolu_")


def _made(api: str, parts: Sequence[Part]) -> Iterable[Part]:
    answered = {(part.id, "" if part.id else part.name) for part in parts if part.kind == PartKind.TOOL_RESULT}
    for part in parts:
        if part.kind != PartKind.TOOL_CALL or part.id.startswith(_PROVIDERS):
            continue
        if api == "openai.responses" and not part.id:  # only what the client runs has a `call_id`
            continue
        if (part.id, "" if part.id else part.name) not in answered:
            yield part
