"""Puts the frames of a journal together again: frames in, calls out, a call becomes an `Exchange`.

Pure, apart from reading a large body once more. Small bodies are held, large ones are remembered by where they lie,
so that thousands of open calls cost little and a finished one costs its own size. What is damaged or missing never
raises: the exchange says what is not there. Leaves out sessions and files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

from llm_proxy.journal.frames import Closing, Flag, Frame, Kind, Note, Opening, rerouted, unpack_end, unpack_open
from llm_proxy.journal.reader import Batch, Position, position_of
from llm_proxy.records.exchange import Body, Ending, Exchange, Fields
from llm_proxy.wire import attribution
from llm_proxy.wire.framing import BadFraming, Framing, UntilClose, for_request, for_response
from llm_proxy.wire.head import BadHead, pairs, parse_request, parse_response
from llm_proxy.wire.masking import masked_value

# Bytes of one body that are held in memory; beyond that its pieces are fetched from the journal when it is complete.
HELD = 256 << 10
SWITCHING_PROTOCOLS = 101

Fetch = Callable[[int, int, int], bytes]  # segment, offset, length; raises OSError


class Piece(NamedTuple):
    """What one frame carried of a body: held, or where it lies."""

    at: int
    payload: bytes
    segment: int
    offset: int
    length: int


class Pieces:
    """One body as it came, piece by piece. `lost`: a piece could not be fetched any more."""

    __slots__ = ("_held", "_pieces", "lost")

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._held = 0
        self.lost = False

    def add(self, frame: Frame) -> None:
        length = len(frame.payload)
        if self._held > HELD:
            self._pieces.append(Piece(frame.at, b"", frame.segment, frame.offset, length))
            return
        self._pieces.append(Piece(frame.at, frame.payload, frame.segment, frame.offset, length))
        self._held += length
        if self._held > HELD:
            self._pieces = [piece._replace(payload=b"") for piece in self._pieces]

    def read(self, fetch: Fetch) -> Iterator[tuple[int, bytes]]:
        """(monotonic ns, wire bytes) of each piece; ends early, and says so, where the journal is gone."""
        for piece in self._pieces:
            payload = piece.payload
            if not payload and piece.length:
                try:
                    payload = fetch(piece.segment, piece.offset, piece.length)
                except OSError:
                    payload = b""
                if len(payload) < piece.length:
                    self.lost = True
                    return
            yield piece.at, payload


class Call:
    """One exchange as far as its frames have been read. `position` is where it begins in the journal."""

    __slots__ = (
        "_answer",
        "_request",
        "at",
        "closing",
        "flags",
        "head",
        "id",
        "interim",
        "interrupted",
        "key",
        "last_at",
        "opening",
        "port",
        "position",
        "requested",
        "run",
    )

    def __init__(self, run: str, frame: Frame, opening: Opening) -> None:
        self.run = run
        self.key = frame.serial
        self.id = opening.exchange_id
        self.position = position_of(frame)
        self.at = self.last_at = frame.at
        self.opening = opening
        self.port = frame.port
        self.requested = bool(frame.flags & Flag.LAST)  # the request has been received to its end
        self.interrupted = False
        self.flags = 0
        self.head: Frame | None = None
        self.interim: tuple[int, ...] = ()
        self.closing: Closing | None = None
        self._request = Pieces()
        self._answer = Pieces()

    @property
    def over(self) -> bool:
        return self.interrupted or self.closing is not None

    @property
    def gateway(self) -> attribution.Attribution | None:
        """For whom the gateway makes it; None for every other call."""
        if self.opening.route[3] != attribution.WHY:
            return None
        return attribution.taken(pairs(self.opening.head)[1])[0]

    def take(self, frame: Frame) -> None:
        kind = frame.kind
        self.last_at = frame.at
        if kind == Kind.RESPONSE:
            self._answer.add(frame)
        elif kind == Kind.REQUEST:
            self._request.add(frame)
            self.requested |= bool(frame.flags & Flag.LAST)
        elif kind == Kind.HEAD:
            self.head = frame
        elif kind == Kind.ROUTE:
            self.requested = True
            with suppress(struct.error, ValueError):
                self.opening = rerouted(self.opening, frame.payload)
        elif kind == Kind.INTERIM:
            self.interim += (_status(pairs(frame.payload)[0])[0],)
        elif kind == Kind.END:
            self.flags = frame.flags
            self.closing = _closing(frame.payload)

    def request_arrived(self, fetch: Fetch) -> Exchange | None:
        """The exchange with its request only, as long as it is open; None where that is not there to its end."""
        start, fields = pairs(self.opening.head)
        payload = _Payload(self._request, self.at, _request_framing(self.opening.head), fetch)
        return self._exchange(start, fields, payload, None) if payload.whole else None

    def exchange(self, fetch: Fetch) -> Exchange:
        """What is known of the call, once it is over."""
        start, fields = pairs(self.opening.head)
        upgraded = self.head is not None and _status(pairs(self.head.payload)[0])[0] == SWITCHING_PROTOCOLS
        ours = UntilClose() if upgraded else _request_framing(self.opening.head)
        method = start.partition(" ")[0].encode("latin-1")
        theirs = _response_framing(self.head.payload, method) if self.head and not upgraded else UntilClose()
        return self._exchange(
            start,
            fields,
            _Payload(self._request, self.at, ours, fetch),
            _Payload(self._answer, self.at, theirs, fetch),
        )

    def _exchange(self, start: str, fields: Fields, request: _Payload, answer: _Payload | None) -> Exchange:
        provider, scheme, authority, why = self.opening.route
        # Sent by anybody else these are fields like any other.
        gateway, fields = attribution.taken(fields) if why == attribution.WHY else (None, fields)
        method, _, rest = start.partition(" ")
        line, response_fields = pairs(self.head.payload) if self.head is not None else ("", ())
        status, reason = _status(line)
        closing = self.closing or _UNKNOWN
        flags = self.flags if self.closing is not None else Flag.LOSSY
        notes = closing.notes
        return Exchange(
            id=self.id,
            provider=provider,
            scheme=scheme,
            upstream=authority,
            why=why,
            opened=self.opening.wall_ns,
            method=method,
            target=rest.rpartition(" ")[0],
            request_headers=fields,
            request=request.body(closing.request_size, closing.request_sha256, flags),
            status=status or None,
            reason=reason,
            response_headers=response_fields,
            response=answer.body(closing.response_size, closing.response_sha256, flags) if answer else Body(),
            trailers=_trailers(answer.trailers) if answer else (),
            interim=self.interim,
            first_byte=max(1, self.head.at - self.at) if self.head is not None else 0,
            ended=max(0, self.last_at - self.at),
            ending=_ending(closing.ending),
            error=closing.error,
            answered=closing.answered,
            websocket=bool(notes & Note.WEBSOCKET) or status == SWITCHING_PROTOCOLS,
            retried=bool(notes & Note.RETRIED),
            ended_by_close=bool(notes & Note.ENDED_BY_CLOSE),
            extra_bytes=bool(notes & Note.EXTRA_BYTES),
            client_port=self.port,
            reused=bool(notes & Note.REUSED) if self.closing is not None and status else None,
            connected=max(0, closing.connected_at - self.at) if closing.connected_at else 0,
            gateway=gateway,
        )


# What stands for the END of a call that has none.
_UNKNOWN = Closing(Ending.INTERRUPTED, 0, 0, 0, 0, 0, 0, "")


class Gap:
    """Calls or frames that the proxy could not put into the journal, as it counted them."""

    __slots__ = ("bytes", "exchanges", "frames", "from_ns", "id", "key", "position", "run", "to_ns")
    over = True

    def __init__(self, run: str, frame: Frame) -> None:
        self.run = run
        numbers = [int(word) for word in frame.payload.split() if word.isdigit() and len(word) < 20]
        self.exchanges, self.frames, self.bytes, self.from_ns, self.to_ns = (numbers + [0] * 5)[:5]
        self.position = position_of(frame)
        # The same gap is known again when the journal is read again.
        self.id = uuid5(NAMESPACE_OID, f"{run} {self.position.segment} {self.position.offset}")
        self.key = -frame.offset - (frame.segment << 40)


class Assembler:
    """Follows the runs of one journal.

    `done` are the ids of calls and gaps beyond the start position that are in the log files already: their frames
    are passed over. Everything given out stays known, and holds the checkpoint back, until it is `forget`-ed.
    """

    def __init__(self, done: Iterable[UUID], start: Position) -> None:
        self.run = ""
        self.end = start
        self._done = set(done)
        self._known: dict[int, Call | Gap] = {}  # in the order they began
        self._requested: list[Call] = []

    def take(self, batch: Batch) -> list[Call | Gap]:
        """What is over after this batch, in the order it ended; first the calls that a dead run left open."""
        over: list[Call | Gap] = []
        if batch.run != self.run:
            over += self.interrupt()
            self.run = batch.run
        known = self._known
        for frame in batch.frames:
            call = known.get(frame.serial)
            if frame.kind == Kind.OPEN:
                self._open(frame)
            elif frame.kind == Kind.GAP:
                over += self._gap(frame)
            elif isinstance(call, Call) and not call.over:
                waiting = not call.requested
                call.take(frame)
                if call.over:
                    over.append(call)
                elif waiting and call.requested:
                    self._requested.append(call)
        self.end = batch.end
        return over

    def requested(self) -> list[Call]:
        """Open calls whose request has become complete since this was last asked."""
        calls = [call for call in self._requested if not call.over]
        self._requested.clear()
        return calls

    def interrupt(self) -> list[Call | Gap]:
        """The run is dead: its open calls are over, with what had arrived."""
        self._requested.clear()
        calls = [call for call in self._known.values() if isinstance(call, Call) and not call.over]
        for number, call in enumerate(calls):
            call.interrupted = True
            # The next run counts its serials from 1 again, and these are still to be settled.
            self._known[_PAST | number] = self._known.pop(call.key)
            call.key = _PAST | number
        self._known = dict(sorted(self._known.items(), key=lambda item: item[1].position))
        return list(calls)

    def forget(self, settled: Iterable[Call | Gap]) -> None:
        for one in settled:
            self._known.pop(one.key, None)

    def checkpoint(self, without: Iterable[Call | Gap] = ()) -> tuple[str, Position]:
        """The run and position where reading must begin again after a crash, once those `without` are settled."""
        settled = {one.key for one in without}
        for key, one in self._known.items():
            if key not in settled:
                return one.run, one.position
        return self.run, self.end

    def follow(self, run: str, position: Position) -> bool:
        """The reader has gone on to a new segment in which nothing stands yet. Gives whether that is news."""
        if run != self.run or position.segment <= self.end.segment:
            return False
        self.end = position
        return True

    def _open(self, frame: Frame) -> None:
        try:
            opening = unpack_open(frame.payload)
        except (struct.error, ValueError):  # nothing can be said of a call without it
            return
        if opening.exchange_id in self._done:
            self._done.discard(opening.exchange_id)
            return
        call = Call(self.run, frame, opening)
        self._known[call.key] = call
        if call.requested:
            self._requested.append(call)

    def _gap(self, frame: Frame) -> list[Gap]:
        gap = Gap(self.run, frame)
        if gap.id in self._done:
            return []
        self._known[gap.key] = gap
        return [gap]


_PAST = 1 << 63  # beyond the serials of any run


class _Payload:
    """A body's payload as its framing cuts it out of the wire bytes."""

    __slots__ = ("broken", "lost", "pieces", "size", "trailers", "whole")

    def __init__(self, wire: Pieces, opened: int, framing: Framing, fetch: Fetch) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size = 0
        self.broken = False
        for at, data in wire.read(fetch):
            cut: list[bytes] = []
            position, length = 0, len(data)
            try:
                while position < length and not framing.done:
                    position = framing.feed(data, position, cut)
            except BadFraming:  # something is missing before this: what follows cannot be told from framing
                self.broken = True
            if cut:
                payload = cut[0] if len(cut) == 1 else b"".join(cut)
                self.pieces.append((max(0, at - opened), payload))
                self.size += len(payload)
            if self.broken:
                break
        self.lost = wire.lost
        self.whole = framing.done and not self.broken and not self.lost
        self.trailers = framing.trailers

    def body(self, counted: int, digest: bytes, flags: int) -> Body:
        """`counted` is the size the proxy counted, 0 where it could not tell."""
        missing = self.size < counted or self.lost or (self.broken and flags & Flag.LOSSY)
        return Body(
            pieces=tuple(self.pieces),
            size=max(self.size, counted),
            truncated=("limit" if digest or flags == Flag.OVER_LIMIT else "dropped") if missing else "",
            sha256=digest.hex(),
        )


def _request_framing(head: bytes) -> Framing:
    """From the fields alone: a masked target may hold spaces, which no request line of the wire does."""
    try:
        start, _, fields = _whole(head).partition(b"\r\n")
        version = b"HTTP/1.0" if start.endswith(b"HTTP/1.0") else b"HTTP/1.1"
        return for_request(parse_request(b"POST / " + version + b"\r\n" + fields))
    except BadHead:
        return UntilClose()


def _response_framing(head: bytes, method: bytes) -> Framing:
    try:
        return for_response(parse_response(_whole(head)), method)
    except BadHead:
        return UntilClose()


def _whole(head: bytes) -> bytes:
    """The parsers expect the blank line; a damaged record may not have it."""
    if not head.endswith(b"\r\n\r\n"):
        raise BadHead("not a whole head")
    return head


def _status(line: str) -> tuple[int, str]:
    """(status, reason) of a status line; (0, "") where it is none."""
    _, _, rest = line.partition(" ")
    number, _, reason = rest.partition(" ")
    return (int(number), reason) if len(number) == 3 and number.isascii() and number.isdigit() else (0, "")


def _closing(payload: bytes) -> Closing:
    try:
        return unpack_end(payload)
    except (struct.error, ValueError):
        return _UNKNOWN


def _ending(value: int) -> Ending:
    try:
        return Ending(value)
    except ValueError:
        return Ending.INTERRUPTED


def _trailers(lines: bytes) -> Fields:
    """Trailer fields travel in the body, so nobody has masked them yet."""
    if not lines:
        return ()
    _, fields = pairs(b"\r\n" + lines)
    return tuple((name, _masked(name, value)) for name, value in fields)


def _masked(name: str, value: str) -> str:
    instead = masked_value(name.lower().encode("latin-1"), value.encode("latin-1"))
    return value if instead is None else instead.decode("latin-1")
