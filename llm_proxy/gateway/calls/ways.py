"""How one target is spoken to: in the caller's own API, bytes for bytes, or in another, through translation.

Either way makes the body that goes out, and what the caller gets of the answer: whole, or piece by piece through a
feed. Leaves out sending, and what becomes of failures (`running`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.reading import read_value
from llm_proxy.gateway.calls import embedding, legacy
from llm_proxy.gateway.calls.arriving import Arrived
from llm_proxy.gateway.calls.parameters import laid_over
from llm_proxy.gateway.calls.passing_events import WholeEvents, WithoutCounts
from llm_proxy.gateway.calls.speaking import broken_off
from llm_proxy.gateway.facts import Target
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.sending.events import Events, Watch, answered
from llm_proxy.gateway.translate.apis import APIS, StreamWriter, server_sent
from llm_proxy.gateway.translate.conversation import Ask, Begin, End, Event, Failure, Json, PartBegin, Piece, Reply
from llm_proxy.gateway.translate.errors import Kind
from llm_proxy.gateway.translate.free import Freed
from llm_proxy.gateway.translate.losses import CannotSay, Losses

# The dialect of errors for each API that callers speak.
DIALECTS: Final = {
    "chat": "chat",
    "responses": "responses",
    "anthropic": "anthropic",
    "completions": "chat",
    "embeddings": "chat",
    "count_tokens": "anthropic",
}
STREAMED: Final = frozenset({"chat", "responses", "anthropic", "completions"})  # may be
_ID_PREFIXES = {"chat": "chatcmpl-", "responses": "resp_", "anthropic": "msg_", "completions": "cmpl-"}
_encode = msgspec.json.encode
_CUT: Final = Failure(Kind.BAD_GATEWAY, "the provider's answer ended before it was whole")


class Unfit(Exception):
    """The provider answered with success, and what it says is a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Feed(Protocol):
    """A stream on its way: pieces of the provider's in, pieces of the caller's out.

    `begun`: the model has said something, so that nobody else may answer now. `over`: the answer told its end.
    `failure`: it told that it broke off. `usage` is what is known of it so far, `pieces` how many there were: about as
    many as tokens.
    """

    @property
    def pieces(self) -> int: ...

    @property
    def begun(self) -> bool: ...

    @property
    def over(self) -> bool: ...

    @property
    def failure(self) -> Failure | None: ...

    @property
    def usage(self) -> Usage: ...

    def feed(self, piece: bytes) -> bytes:
        """Raises Broken for what cannot be read."""

    def finish(self) -> bytes:
        """The provider's stream came to its end: what is left to say. Sets `failure` where it ended too early."""

    def break_off(self, failure: Failure) -> bytes:
        """The provider's stream broke: the event that says so."""


class Way(Protocol):
    """`api` is what is spoken to the target, `dropped` what of the request is not carried."""

    api: str
    body: bytes
    dropped: list[str]

    def whole(self, data: bytes) -> tuple[bytes, Usage]:
        """The caller's answer. Raises Unfit."""

    def feed(self) -> Feed: ...


def way(arrived: Arrived, api: str, target: Target, speaks: tuple[str, ...], *, refuse: bool, id: str) -> Way:
    """How a caller of `api` gets to the target, who speaks some APIs. Raises Refusal 400, BadRequest."""
    if api in speaks:
        return Passing(arrived, api, target)
    if api == "embeddings":
        if "embed_gemini" in speaks:
            return Embedding(arrived, target, Losses("Gemini", refuse=refuse))
        raise cannot(target, "make embeddings")
    first: CannotSay | None = None
    for other in speaks:
        if other in APIS:
            try:
                return Translating(arrived, api, other, target, Losses(APIS[other].name, refuse=refuse), id)
            except CannotSay as error:  # another API of the same model may have a word for it
                first = first or error
    raise first or cannot(target, "be spoken to in any API that we translate to")


def cannot(target: Target, what: str) -> Refusal:
    words = f"model: {target.model!r} of {target.key.provider} cannot {what}"
    return Refusal(400, "unsupported_by_provider", words, param="model")


# -- the caller's own API


class Passing:
    """Bytes for bytes: only the model's name, and what an alias says, is another."""

    def __init__(self, arrived: Arrived, api: str, target: Target) -> None:
        self.api = api
        self.dropped: list[str] = []
        self._uncounted = api == "chat" and arrived.stream and not arrived.counts
        parameters = {} if api == "count_tokens" else target.parameters  # how to answer is no question there
        self.body = arrived.as_sent(api, target.model, parameters, counted=self._uncounted)

    def whole(self, data: bytes) -> tuple[bytes, Usage]:
        return data, answered(self.api, data)

    def feed(self) -> Feed:
        return _Passed(self.api, WithoutCounts() if self._uncounted else WholeEvents())


class _Passed:
    """Until the model speaks its events are read; from then on they are looked at for little else than token counts."""

    def __init__(self, api: str, events: WholeEvents) -> None:
        self.pieces = 0
        self._api = api
        self._watch = Watch(api)
        self._events = events

    @property
    def begun(self) -> bool:
        return self._watch.begun

    @property
    def over(self) -> bool:
        return self._watch.over

    @property
    def failure(self) -> Failure | None:
        return self._watch.failure

    @property
    def usage(self) -> Usage:
        return self._watch.usage

    def feed(self, piece: bytes) -> bytes:
        self._watch.feed(piece)
        self.pieces += piece.count(b"\n\n")
        return self._events.feed(piece)

    def finish(self) -> bytes:
        told = self.failure
        self._watch.finish()
        if self.failure is told:
            return self._events.finish()
        return broken_off(DIALECTS[self._api], self._watch.failure or _CUT)

    def break_off(self, failure: Failure) -> bytes:
        self._watch.failure = failure
        return broken_off(DIALECTS[self._api], failure)


# -- another API


@dataclass(frozen=True, slots=True)
class _Speaker:
    """What callers of an API send and get."""

    read_request: Callable[[Json, Losses], Ask]
    write_reply: Callable[[Reply, Ask, int], Json]
    writer: Callable[[Ask, int], StreamWriter]
    ending: bytes = b""


_SPEAKERS: Final = {
    **{
        name: _Speaker(api.read_request, api.write_reply, api.writer, api.ending)
        for name, api in APIS.items()
        if name in DIALECTS
    },
    "completions": _Speaker(legacy.read_request, legacy.write_reply, legacy.StreamWriter, APIS["chat"].ending),
}


class Translating:
    """Into the target's API and back. Answers name the model that the caller asked for."""

    def __init__(self, arrived: Arrived, api: str, other: str, target: Target, losses: Losses, id: str) -> None:
        self._speaker = _SPEAKERS[api]
        self._ask = self._speaker.read_request(laid_over(api, arrived.document, target.parameters), losses)
        self._asked = arrived.model
        self._id = _ID_PREFIXES[api] + id
        self._other = APIS[other]
        self.api = other
        told = self._other.write_request(replace(self._ask, model=target.model, usage=True), losses)
        self.body = _encode(told)
        self.dropped = losses.dropped

    def whole(self, data: bytes) -> tuple[bytes, Usage]:
        body = read_value(data)
        if not isinstance(body, dict):
            raise Unfit(Failure(Kind.BAD_GATEWAY, "the provider answered with something that is no JSON object"))
        reply = self._other.read_reply(body, id=self._id, model=self._asked)
        if reply.failure is not None:
            raise Unfit(reply.failure)
        freed = Freed(self._ask.tools).reply(replace(reply, model=self._asked))
        return _encode(self._speaker.write_reply(freed, self._ask, int(time.time()))), reply.usage

    def feed(self) -> Feed:
        writer = self._speaker.writer(self._ask, int(time.time()))
        return _Translated(self.api, self._id, self._asked, writer, Freed(self._ask.tools), self._speaker.ending)


class _Translated:
    def __init__(self, api: str, id: str, asked: str, writer: StreamWriter, freed: Freed, ending: bytes) -> None:
        self.begun = self.over = False
        self.failure: Failure | None = None
        self.usage = Usage()
        self.pieces = 0
        self._events = Events(api)
        self._reader = APIS[api].reader(id=id, model=asked)
        self._asked = asked
        self._writer = writer
        self._freed = freed
        self._ending = ending

    def feed(self, piece: bytes) -> bytes:
        return self._written(event for data in self._events.feed(piece) for event in self._reader.read(data))

    def finish(self) -> bytes:
        last = self._written(event for data in self._events.finish() for event in self._reader.read(data))
        last += self._written(self._reader.finish())
        return last if self.over or self.failure else last + self.break_off(_CUT)

    def break_off(self, failure: Failure) -> bytes:
        return self._written((failure,))

    def _written(self, events: Iterable[Event]) -> bytes:
        """Behind an end or a failure nothing comes."""
        out: list[bytes] = []
        for event in events:
            if self.over or self.failure:
                break
            self._note(event)
            named = replace(event, model=self._asked) if isinstance(event, Begin) else event
            for one in self._freed.event(named):
                out += [server_sent(name, data) for name, data in self._writer.write(one)]
            if self.over:
                out.append(self._ending)
        return b"".join(out)

    def _note(self, event: Event) -> None:
        match event:
            case Piece() | PartBegin():
                self.begun = True
                self.pieces += 1
            case Begin():
                self.usage = event.usage
            case End():
                self.begun = self.over = True
                self.usage = event.usage
            case Failure():
                self.failure = event


class Embedding:
    """OpenAI's embeddings, made by Gemini."""

    api = "embed_gemini"

    def __init__(self, arrived: Arrived, target: Target, losses: Losses) -> None:
        self._asked = arrived.document
        self.body = _encode(
            embedding.write_gemini(laid_over("embeddings", self._asked, target.parameters), target.model, losses)
        )
        self.dropped = losses.dropped

    def whole(self, data: bytes) -> tuple[bytes, Usage]:
        return _encode(embedding.read_gemini(read_value(data), self._asked)), Usage()

    def feed(self) -> Feed:
        raise TypeError("embeddings do not stream")
