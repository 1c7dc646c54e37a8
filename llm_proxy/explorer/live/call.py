"""One call in flight, from the frames of the journal: what it waits for, what it says, how fast, how it ended.

Pure. Memory is bounded, whatever comes: the last words, counters and one unfinished event. What is damaged or missing
never raises: reading along ends, the call goes on. Leaves out which calls there are (`watch`).
"""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from llm_proxy.dialects import frames as told_frames
from llm_proxy.dialects.digest import PartKind, Usage
from llm_proxy.dialects.registry import api_of
from llm_proxy.explorer.live.speech import Bit, Speech, understood
from llm_proxy.explorer.live.veil import Veil
from llm_proxy.journal.frames import Closing, Flag, Frame, Kind, Note, Opening, rerouted, unpack_end
from llm_proxy.records import privacy
from llm_proxy.records.exchange import Ending
from llm_proxy.records.pricing import is_subscription
from llm_proxy.records.redaction import Redactor
from llm_proxy.sinks.session_jsonl import coding_of, header_map
from llm_proxy.wire import attribution, eventstream, sse, websocket
from llm_proxy.wire.codings import CodingError, Decoder
from llm_proxy.wire.framing import BadFraming, Framing, UntilClose, for_response
from llm_proxy.wire.head import BadHead, pairs, parse_response

TAIL = 4000  # characters of the last words that are kept
FIRST_WORDS = 120  # characters of the first ones
EVENT_LIMIT = 4 << 20  # bytes of one event; a stream's last may repeat the whole answer
LINE_LIMIT = 1 << 20
MS = 1_000_000

# Phases, in the order in which most calls go through them.
SENDING, WAITING, RECEIVING, TOLD, OVER = "sending", "waiting", "receiving", "told", "over"
_KINDS = {
    PartKind.TEXT: "text",
    PartKind.REFUSAL: "text",
    PartKind.THINKING: "thinking",
    PartKind.TOOL_CALL: "tool",
}
# Characters of a token, where the provider has not counted yet; a rule of thumb, so figures from it carry ≈.
_PER_TOKEN = 4
_OVERHEAD = 8  # characters that even an empty piece counts as
_MOST_TOOLS = 6  # that are named


class Manner(NamedTuple):
    """How calls are shown. `by_line`: see `Veil`; `silent`: nothing of what they say.

    Those that the gateway makes are shown as they are recorded: no more than `ceiling`, and `personal` redacts where
    their user wants it.
    """

    redactor: Redactor | None = None
    by_line: bool = False
    silent: bool = False
    ceiling: str = privacy.FULL
    personal: Redactor = Redactor(privacy.PERSONAL, lambda kind, secret: 0)

    def of(self, level: str) -> Manner:
        """How those of one level are shown."""
        if level == privacy.REDACTED:
            return self._replace(redactor=self.personal, by_line=True)
        return self if level == privacy.FULL else self._replace(silent=True)


class Words(NamedTuple):
    """What was said in one go. `kind`: text, thinking, tool; `name` where a tool's call begins with it."""

    kind: str
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A call as it can be shown: plain values. Times are nanoseconds since 1970, or milliseconds since it began.

    `phase`: sending (the request is on its way), waiting (for the first byte), receiving (an answer that cannot be read
    along), thinking, text, tool, over. `counted`: the provider has counted its output tokens, else they are estimated.
    """

    id: str
    provider: str
    upstream: str
    method: str
    path: str
    api: str
    model: str
    subscription: bool
    started_ns: int
    phase: str
    tool: str
    first_ms: int | None  # until the first words, or bytes where there are no words to be read
    total_ms: int | None  # None while it is open
    request_bytes: int
    response_bytes: int
    status: int | None
    usage: Usage | None
    tier: str
    output: int
    counted: bool
    speed: float | None  # output tokens a second, since the first
    ending: str
    error: str
    words: tuple[Words, ...]
    did: str  # tools called, else the first words
    account: str = ""  # for whom the gateway made it

    @property
    def failed(self) -> bool:
        """No good answer, and not because the client left."""
        refused = self.status is None or self.status >= 400
        return self.phase == OVER and self.ending != "client_gone" and (refused or self.ending != "complete")


class Call:
    """Mutable: what has been read of one call so far."""

    def __init__(self, frame: Frame, opening: Opening, manner: Manner) -> None:
        self.id = str(opening.exchange_id)
        self._began, self._started = frame.at, opening.wall_ns
        self._manner = manner
        self._goes(opening)
        self._requested = bool(frame.flags & Flag.LAST)
        self._request_bytes = self._response_bytes = 0
        self._status: int | None = None
        self._first = self._last_said = 0
        self._closing: Closing | None = None
        self._interrupted = False
        self._last = frame.at
        self._speech = Speech(self._api)
        self._answer: _Answer | None = None
        self._veil = self._new_veil()
        self._kind = self._tool = ""
        self._letters = 0
        self._before = 0  # output tokens of earlier turns of the same connection
        self._tail: deque[Words] = deque()
        self._tail_size = 0
        self._opening_words = ""
        self._tools: list[str] = []
        self._new: list[Words] = []

    def _goes(self, opening: Opening) -> None:
        """Where it goes and what it is, by its head."""
        start, fields = pairs(opening.head)
        method, _, rest = start.partition(" ")
        self._opening = opening
        self._provider, _, self._upstream, why = opening.route
        self._account, level = "", privacy.FULL
        if why == attribution.WHY:
            whose, fields = attribution.taken(fields)
            self._account, level = whose.account, privacy.level(whose, self._manner.ceiling)
            self._manner = self._manner.of(level)
        self.hidden = level == privacy.NONE
        self._method = method
        self._path = rest.rpartition(" ")[0].partition("?")[0]
        self._fields = fields
        upgrade = any(name.lower() == "upgrade" and value.lower() == "websocket" for name, value in fields)
        self._api = api_of(method, self._path, upgrade)
        self._subscription = is_subscription(
            {"_meta": {"host": self._upstream}, "headers": header_map(fields), "transport": why}
        )

    @property
    def over(self) -> bool:
        return self._interrupted or self._closing is not None

    def take(self, frame: Frame) -> None:
        self._last = frame.at
        kind = frame.kind
        if kind == Kind.RESPONSE:
            self._response_bytes += len(frame.payload)
            if not self._reads:
                self._first = self._first or frame.at
            elif self._answer is not None:
                self._hear(self._answer.server(frame.payload), frame.at)
        elif kind == Kind.REQUEST:
            self._request_bytes += len(frame.payload)
            self._requested |= bool(frame.flags & Flag.LAST)
            if isinstance(self._answer, _Socket) and self._answer.client(frame.payload):
                self._turn()
        elif kind == Kind.ROUTE:
            self._requested = True
            with suppress(struct.error, ValueError):
                self._goes(rerouted(self._opening, frame.payload))
        elif kind == Kind.HEAD:
            self._head(frame.payload)
        elif kind == Kind.END:
            self._hear(self._answer.finish() if self._answer else [], frame.at)
            self._end(frame.payload)

    def interrupt(self) -> None:
        """Its run is dead."""
        self._interrupted = True
        self._close_block()

    def said(self) -> list[Words]:
        """What has come since this was last asked, neighbours of one kind as one."""
        new, self._new = self._new, []
        return _joined(new)

    @property
    def seen(self) -> Seen:
        usage, counted = self._speech.usage, self._speech.over or bool(self._speech.stop_reason)
        output = self._letters // _PER_TOKEN if usage is None or not counted else usage.output
        output = max(output, usage.output if usage is not None else 0) + self._before
        talked = (self._last_said - self._first) / 1e9
        return Seen(
            id=self.id,
            provider=self._provider,
            upstream=self._upstream,
            method=self._method,
            path=self._path,
            api=self._api,
            model=self._speech.model,
            subscription=self._subscription,
            started_ns=self._started,
            phase=self._phase,
            tool=self._tool,
            first_ms=(self._first - self._began) // MS if self._first else None,
            total_ms=(self._last - self._began) // MS if self.over else None,
            request_bytes=self._request_bytes,
            response_bytes=self._response_bytes,
            status=self._status,
            usage=replace(usage, output=output) if usage is not None else None,
            tier=self._speech.tier,
            output=output,
            counted=counted and usage is not None,
            speed=output / talked if self._first and talked > 0.2 and output else None,
            ending=self._ending,
            error=self._closing.error if self._closing and self._closing.error else self._veiled(self._speech.error),
            words=tuple(_joined(self._tail)),
            did=", ".join(dict.fromkeys(self._tools)) or self._opening_words.strip(),
            account=self._account,
        )

    @property
    def _reads(self) -> bool:
        """Whether the answer can be read along."""
        return understood(self._api) and self._answer is not None and self._answer.reads

    @property
    def _phase(self) -> str:
        if self.over:
            return OVER
        if self._kind:
            return self._kind
        if self._response_bytes and not self._reads:
            return RECEIVING
        return WAITING if self._requested else SENDING

    @property
    def _ending(self) -> str:
        if self._closing is None:
            return Ending.INTERRUPTED.label if self._interrupted else ""
        try:
            ending = Ending(self._closing.ending)
        except ValueError:
            return Ending.INTERRUPTED.label
        # Clients that have read the last event often leave at once: then nothing is missing.
        gone_after = ending is Ending.CLIENT_GONE and self._speech.over
        return Ending.COMPLETE.label if gone_after else ending.label

    def _new_veil(self) -> Veil:
        return Veil(self._manner.redactor, by_line=self._manner.by_line)

    def _veiled(self, words: str) -> str:
        if self._manner.silent:
            return ""
        return words if self._manner.redactor is None else self._manner.redactor.text(words)

    def _head(self, head: bytes) -> None:
        line, fields = pairs(head)
        number = line.partition(" ")[2][:3]
        self._status = int(number) if number.isascii() and number.isdigit() else None
        if self._status == 101:
            deflate = websocket.negotiated(
                _field(self._fields, "sec-websocket-extensions"), _field(fields, "sec-websocket-extensions")
            )
            self._answer = _Socket(deflate, self._speech)
        else:
            self._answer = _Stream(head, self._method.encode("latin-1"), fields, self._speech)

    def _turn(self) -> None:
        """Over a WebSocket the client has asked again."""
        seen = self.seen
        self._close_block()
        self._before = seen.output
        self._letters = 0
        self._kind = self._tool = ""
        self._speech = Speech(self._api)
        assert self._answer is not None
        self._answer.speech = self._speech

    def _hear(self, bits: list[Bit], at: int) -> None:
        for bit in bits:
            kind = _KINDS.get(bit.kind, "text")
            if bit.begins or kind != self._kind:
                self._close_block()
                self._kind, self._tool = kind, self._veiled(bit.name)[:80]
                if self._tool:
                    self._tools = [*self._tools, self._tool][-_MOST_TOOLS:]
                    self._add(Words(kind, "", self._tool))
            if bit.text or bit.name:
                self._first = self._first or at
                self._last_said = at
                self._letters += len(bit.text)
                self._say(self._veil.feed(bit.text))

    def _close_block(self) -> None:
        self._say(self._veil.finish())
        self._veil = self._new_veil()

    def _say(self, text: str) -> None:
        if text and not self._manner.silent:
            self._add(Words(self._kind, text))
            if self._kind == "text" and len(self._opening_words) < FIRST_WORDS:
                self._opening_words = (self._opening_words + text)[:FIRST_WORDS]

    def _add(self, words: Words) -> None:
        words = words._replace(text=words.text[-TAIL:])
        self._tail.append(words)
        self._tail_size += len(words.text) + _OVERHEAD
        while self._tail_size > TAIL and len(self._tail) > 1:
            self._tail_size -= len(self._tail.popleft().text) + _OVERHEAD
        self._new.append(words)
        if len(self._new) > 200:
            self._new = _joined(self._new)

    def _end(self, payload: bytes) -> None:
        try:
            self._closing = unpack_end(payload)
        except (struct.error, ValueError):
            self._interrupted = True
        else:
            self._request_bytes = max(self._request_bytes, self._closing.request_size)
            if self._closing.notes & Note.WEBSOCKET and self._status is None:
                self._status = 101
        self._close_block()


def _joined(words: deque[Words] | list[Words]) -> list[Words]:
    """Neighbours of one kind as one; a name begins a new one."""
    found: list[list[str]] = []
    heads: list[Words] = []
    for one in words:
        if heads and heads[-1].kind == one.kind and not one.name:
            found[-1].append(one.text)
        else:
            heads.append(one)
            found.append([one.text])
    return [head._replace(text="".join(texts)[-TAIL:]) for head, texts in zip(heads, found, strict=True)]


def _field(fields: tuple[tuple[str, str], ...], name: str) -> str:
    return ", ".join(value for other, value in fields if other.lower() == name)


# --- from the bytes of an answer to events


class _Answer:
    """How an answer comes. `reads`: it is of a kind that can be read along, and nothing went wrong so far."""

    reads = False
    speech: Speech

    def server(self, data: bytes) -> list[Bit]:
        """What these bytes, as they crossed the wire, add."""
        raise NotImplementedError

    def finish(self) -> list[Bit]:
        return []


class _Stream(_Answer):
    """A response body: framing off, coding off, cut into events."""

    def __init__(self, head: bytes, method: bytes, fields: tuple[tuple[str, str], ...], speech: Speech) -> None:
        self.speech = speech
        try:
            self._framing: Framing = for_response(parse_response(head), method)
        except BadHead:
            self._framing = UntilClose()
        media = _field(fields, "content-type").partition(";")[0].strip().lower()
        self._cut = _CUTTERS.get(media)
        self._cutter: _Cutter | None = self._cut() if self._cut is not None else None
        self._decoder: Decoder | None = None
        try:
            coding = coding_of(fields)
            self._decoder = Decoder(coding) if coding else None
        except CodingError:
            self._cutter = None

    @property
    def reads(self) -> bool:  # type: ignore[override]  # a fact of what was met so far
        return self._cutter is not None

    def server(self, data: bytes) -> list[Bit]:
        if self._cutter is None:
            return []
        try:
            payload = self._payload(data)
            payload = self._decoder.feed(payload) if self._decoder is not None else payload
        except (BadFraming, CodingError):  # pieces are missing before this one
            self._cutter = None
            return []
        return self._tell(self._cutter.feed(payload))

    def finish(self) -> list[Bit]:
        return [] if self._cutter is None else self._tell(self._cutter.finish())

    def _payload(self, data: bytes) -> bytes:
        cut: list[bytes] = []
        position, length = 0, len(data)
        while position < length and not self._framing.done:
            position = self._framing.feed(data, position, cut)
        return b"".join(cut)

    def _tell(self, events: list[tuple[str, str]]) -> list[Bit]:
        return [bit for name, data in events for bit in self.speech.feed(name, data)]


class _Cutter:
    """Decoded bytes in, (name, data) of events out."""

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        raise NotImplementedError

    def finish(self) -> list[tuple[str, str]]:
        return []


class _Events(_Cutter):
    """Server-sent events."""

    def __init__(self) -> None:
        self._decoder = sse.EventDecoder(EVENT_LIMIT)

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        return [(one.event, one.data) for one in self._decoder.feed(data)]

    def finish(self) -> list[tuple[str, str]]:
        return [(one.event, one.data) for one in self._decoder.finish()]


class _Frames(_Cutter):
    """Amazon's event streams."""

    def __init__(self) -> None:
        self._decoder = eventstream.FrameDecoder()
        self._events = _Events()

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        found = (one for one in self._decoder.feed(data) if isinstance(one, eventstream.Frame))
        return [event for one in found for event in self._events.feed("".join(told_frames.told(one)).encode())]


class _Lines(_Cutter):
    """JSON objects, one a line."""

    def __init__(self) -> None:
        self._splitter = sse.LineSplitter(LINE_LIMIT)

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        return [("", line.decode("utf-8", "replace")) for line in self._splitter.feed(data) if line.strip()]

    def finish(self) -> list[tuple[str, str]]:
        return [("", line.decode("utf-8", "replace")) for line in self._splitter.finish() if line.strip()]


_CUTTERS: dict[str, type[_Cutter]] = {
    "text/event-stream": _Events,
    eventstream.MEDIA_TYPE: _Frames,
    "application/x-ndjson": _Lines,
    "application/jsonl": _Lines,
}


class _Socket(_Answer):
    """An upgraded connection."""

    reads = True

    def __init__(self, deflate: websocket.Deflate | None, speech: Speech) -> None:
        self.speech = speech
        self._server = websocket.Parser(False, deflate, EVENT_LIMIT)
        self._client = websocket.Parser(True, deflate, LINE_LIMIT)

    def server(self, data: bytes) -> list[Bit]:
        texts = (one.payload for one in self._server.feed(data, 0) if one.opcode == websocket.TEXT)
        return [bit for text in texts for bit in self.speech.feed("", text.decode("utf-8", "replace"))]

    def client(self, data: bytes) -> bool:
        """Whether the client has said something."""
        return any(one.opcode == websocket.TEXT for one in self._client.feed(data, 0))
