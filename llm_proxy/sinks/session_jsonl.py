"""The session log's format: what an exchange looks like as JSON lines, and where its file lies. Pure.

The format is told in `docs/log-format.md`. Leaves out which session an exchange belongs to (the keeper's business) and
how lines get into files (`log_files`).
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from llm_proxy.dialects import frames
from llm_proxy.dialects.terminal import ends_complete
from llm_proxy.records.exchange import Body, Ending, Exchange, Fields
from llm_proxy.wire import eventstream, sse, websocket
from llm_proxy.wire.attribution import Attribution
from llm_proxy.wire.codings import CodingError, Decoder

Entry = dict[str, Any]
Pieces = tuple[tuple[int, bytes], ...]  # (nanoseconds since the exchange was opened, bytes)

BEDROCK = "bedrock"  # the rule that routes by Bedrock's door

DECODED_LIMIT = 64 << 20  # bytes of a body after its content coding is taken off
# Bytes at the end of a stream that are searched for a terminal event; some of these repeat the whole answer.
TERMINAL_TAIL = 8 << 20


# --- what an exchange looks like as entries -------------------------------------------------------------------------


def entries(exchange: Exchange, session: str, seq: int, machine: str) -> tuple[Entry, Entry]:
    """The request entry and the response entry of one exchange."""
    return request_entry(exchange, session, seq, machine), response_entry(exchange, session, seq, machine)


def session_start(exchange: Exchange, session: str, machine: str, origin: Entry) -> Entry:
    """The first entry of a file. `origin`: what is known of where the session comes from, empty values left out."""
    entry: Entry = {
        "_meta": {"host": exchange.upstream, "machine": machine, "session": session, "ts": utc(exchange.opened)},
        "provider": exchange.provider,
        "type": "session_start",
        "upstream": exchange.upstream,
    }
    return dict(sorted((entry | {name: value for name, value in origin.items() if value}).items()))


def fork_entry(exchange: Exchange, session: str, machine: str, parent: str, seq: int) -> Entry:
    """Stands behind the start of a session that has the calls up to `seq` in common with another, `parent`."""
    return {
        "_meta": {"host": exchange.upstream, "machine": machine, "session": session, "ts": utc(exchange.opened)},
        "from_seq": seq,
        "parent_session": parent,
        "reason": "message_history_diverged",
        "type": "fork",
    }


def request_entry(exchange: Exchange, session: str, seq: int, machine: str) -> Entry:
    # After an upgrade both directions are messages, and the response tells them all.
    body = Body() if exchange.websocket else exchange.request
    entry: Entry = {
        "_meta": _meta(exchange, session, machine, exchange.opened),
        "type": "request",
        "seq": seq,
        "method": _text(exchange.method),
        "path": _text(exchange.path),
        "headers": header_map(exchange.request_headers),
        "size": body.size,
    }
    if exchange.query:
        entry["query"] = _text(exchange.query)
    if exchange.gateway is not None:
        entry["gateway"] = _gateway(exchange.gateway)
    _add_body(entry, body, coding_of(exchange.request_headers))
    return dict(sorted((entry | _transport(exchange)).items()))


def response_entry(exchange: Exchange, session: str, seq: int, machine: str) -> Entry:
    body = exchange.response
    entry: Entry = {
        "_meta": _meta(exchange, session, machine, exchange.opened + exchange.ended),
        "type": "response",
        "seq": seq,
        "status": exchange.status,
        "headers": header_map(exchange.response_headers) if exchange.status is not None else None,
        "timing": _timing(exchange),
        "size": body.size,
    }
    stream: Pieces = ()
    media_type = _media_type(exchange.response_headers)
    if exchange.websocket:
        stream = _add_messages(entry, exchange)
    elif media_type == "text/event-stream":
        stream = _add_chunks(entry, exchange, _lines)
    elif media_type == eventstream.MEDIA_TYPE:
        stream = _add_chunks(entry, exchange, _frames)
    else:
        _add_body(entry, body, coding_of(exchange.response_headers))
    _add_ending(entry, exchange, stream)
    extras = {
        "answered": exchange.answered,
        "connection": _CONNECTIONS[exchange.reused],
        "ended_by_close": exchange.ended_by_close,
        "error": exchange.error,
        "extra_bytes": exchange.extra_bytes,
        "interim": list(exchange.interim),
        "reason": _text(exchange.reason),
        "retried": exchange.retried,
        "trailers": header_map(exchange.trailers),
    }
    entry |= {name: value for name, value in extras.items() if value}
    return dict(sorted((entry | _transport(exchange)).items()))


_CONNECTIONS = {None: "", False: "new", True: "reused"}


def _timing(exchange: Exchange) -> Entry:
    timing = {"ttfb_ms": exchange.first_byte // 1_000_000, "total_ms": exchange.ended // 1_000_000}
    if exchange.reused is not None and exchange.request.pieces and not exchange.websocket:
        timing["request_ms"] = exchange.request.pieces[-1][0] // 1_000_000
    if exchange.connected:
        timing["connect_ms"] = exchange.connected // 1_000_000
    return timing


def bare_entry(exchange: Exchange, session: str, seq: int, machine: str, kind: str, trouble: str) -> Entry:
    """What is left to say where an entry cannot be made."""
    meta = _meta(exchange, session, machine, exchange.opened)
    return {"_meta": meta, "record_error": trouble, "seq": seq, "type": kind}


def _meta(exchange: Exchange, session: str, machine: str, ns: int) -> Entry:
    return {
        "host": exchange.upstream,
        "machine": machine,
        "request_id": str(exchange.id),
        "session": session,
        "ts": utc(ns),
    }


def _transport(exchange: Exchange) -> Entry:
    """By which door the call went, where that is not the provider's own API."""
    return {"transport": exchange.why} if exchange.why == BEDROCK else {}


def _gateway(whose: Attribution) -> Entry:
    told: Entry = {part: value for part, value in whose._asdict().items() if value}
    if whose.attempt.isascii() and whose.attempt.isdigit():
        told["attempt"] = int(whose.attempt[:9])
    return dict(sorted(told.items()))


def _add_ending(entry: Entry, exchange: Exchange, stream: Pieces) -> None:
    """Clients that have read the terminal event often leave at once: then nothing is missing."""
    ending = exchange.ending
    if ending is Ending.CLIENT_GONE and ends_complete(exchange.provider, exchange.path, _tail(stream)):
        ending = Ending.COMPLETE
        entry["wire_ending"] = exchange.ending.label
    entry["ending"] = ending.label


def _add_body(entry: Entry, body: Body, coding: str) -> None:
    data = body.data
    _add_kept(entry, body)
    if coding and data:
        decoded = decode(((0, data),), coding)
        if decoded.error:
            entry["decode_error"] = decoded.error
        if decoded.usable:
            entry["content_encoding"] = coding
            data = b"".join(piece for _, piece in decoded.pieces)
            if decoded.over_limit:
                entry["truncated"] = "decoded"
    _add_data(entry, data)


def _add_data(entry: Entry, data: bytes) -> None:
    try:
        entry["body"] = data.decode()
    except UnicodeDecodeError:
        entry["body"] = _base64(data)
        entry["body_encoding"] = "base64"


def _add_kept(entry: Entry, body: Body) -> None:
    if body.truncated:
        entry["truncated"] = body.truncated
    if body.sha256:
        entry["sha256"] = body.sha256


def _add_chunks(entry: Entry, exchange: Exchange, cut: Callable[[Entry, Exchange, Pieces], Pieces]) -> Pieces:
    """The stream as chunks, with the time at which the end of each arrived. Returns it as server-sent events."""
    body, coding = exchange.response, coding_of(exchange.response_headers)
    pieces = body.pieces
    if coding and pieces:
        decoded = decode(pieces, coding)
        if decoded.error:
            entry["decode_error"] = decoded.error
        if not decoded.usable:
            _add_kept(entry, body)
            _add_data(entry, body.data)
            return ()
        entry["content_encoding"] = coding
        if decoded.over_limit:
            entry["truncated"] = "decoded"
        pieces = decoded.pieces
    _add_kept(entry, body)
    return cut(entry, exchange, pieces)


def _lines(entry: Entry, exchange: Exchange, pieces: Pieces) -> Pieces:
    splitter = sse.LineSplitter()
    chunks: list[Entry] = []
    at = 0
    for at, data in pieces:
        chunks += _chunks(exchange, at, map(_raw, splitter.feed(data)))
    entry["chunks"] = chunks + _chunks(exchange, at, map(_raw, splitter.finish()))
    return pieces


def _frames(entry: Entry, exchange: Exchange, pieces: Pieces) -> Pieces:
    """Of Amazon's event streams: each frame as a server-sent event, what is no readable frame as it came."""
    decoder = eventstream.FrameDecoder()
    found = [(at, one) for at, data in pieces for one in decoder.feed(data)]
    found += [(pieces[-1][0], one) for one in decoder.finish()]
    chunks: list[Entry] = []
    stream: list[tuple[int, bytes]] = []
    bad, troubles = decoder.bad, []
    for at, one in found:
        if isinstance(one, eventstream.Damaged):
            lines = []
            troubles.append(one.why)
        elif not (lines := frames.told(one)):
            bad += 1
            troubles.append("a frame holds no text")
        chunks += _chunks(exchange, at, [{"raw": line} for line in lines] or [{"frame": _base64(one.raw)}])
        stream.append((at, "".join(lines).encode()))
    if troubles:
        entry.setdefault("decode_error", troubles[0])
    if bad:
        entry["bad_frames"] = bad
    entry["chunks"] = chunks
    return tuple(stream)


def _chunks(exchange: Exchange, at: int, told: Iterable[Entry]) -> list[Entry]:
    ts, delta = local(exchange.opened + at), max(0, at - exchange.first_byte) // 1_000_000
    return [{"ts": ts, "delta_ms": delta} | one for one in told]


def _raw(data: bytes) -> Entry:
    try:
        return {"raw": data.decode()}
    except UnicodeDecodeError:
        return {"base64": _base64(data)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _tail(pieces: Pieces) -> bytes:
    kept: list[bytes] = []
    size = 0
    for _, data in reversed(pieces):
        kept.append(data)
        size += len(data)
        if size >= TERMINAL_TAIL:
            break
    return b"".join(reversed(kept))[-TERMINAL_TAIL:]


def _add_messages(entry: Entry, exchange: Exchange) -> Pieces:
    """The messages of both directions, in the order they ended. Returns the last text the server sent."""
    deflate = websocket.negotiated(
        _joined(exchange.request_headers, "sec-websocket-extensions"),
        _joined(exchange.response_headers, "sec-websocket-extensions"),
    )
    told: list[tuple[str, websocket.Message]] = []
    facts: Entry = {"client_size": exchange.request.size, "server_size": exchange.response.size}
    for side, body, masked in (("client", exchange.request, True), ("server", exchange.response, False)):
        parser = websocket.Parser(masked, deflate)
        for at, data in body.pieces:
            told += [(side, message) for message in parser.feed(data, at)]
        unfinished = parser.unfinished(exchange.ended)
        if unfinished is not None:
            told.append((side, unfinished))
        if parser.broken:
            facts[f"{side}_error"] = parser.broken
            facts[f"{side}_raw"] = _base64(body.data)
        if body.truncated:
            entry["truncated"] = body.truncated
    told.sort(key=lambda one: one[1].at)
    facts["messages"] = [_message(exchange, side, message) for side, message in told]
    entry["websocket"] = facts
    texts = (
        (message.at, message.payload) for side, message in reversed(told) if side == "server" and message.opcode == 1
    )
    return tuple(islice(texts, 1))


_MESSAGE_TYPES = {1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}


def _message(exchange: Exchange, side: str, message: websocket.Message) -> Entry:
    entry: Entry = {
        "ts": local(exchange.opened + message.at),
        "delta_ms": max(0, message.at - exchange.first_byte) // 1_000_000,
        "from": side,
        "type": _MESSAGE_TYPES.get(message.opcode, str(message.opcode)),
    }
    payload = message.payload
    if message.opcode == 8 and len(payload) >= 2:  # RFC 6455 §5.5.1: a status code, then the reason
        entry["code"] = int.from_bytes(payload[:2], "big")
        payload = payload[2:]
    entry |= _raw(payload)
    if message.truncated:
        entry |= {"truncated": True, "size": message.size}
    return entry


# --- bodies and fields ----------------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """A body with its content coding taken off. `usable`: False where the coding is unknown or a lie."""

    pieces: Pieces
    error: str
    usable: bool
    over_limit: bool


def decode(pieces: Pieces, coding: str, limit: int = DECODED_LIMIT) -> Decoded:
    """Take a content coding off piece by piece, so that each piece of text keeps the time it could first be read."""
    out: list[tuple[int, bytes]] = []
    at = 0
    try:
        decoder = Decoder(coding, limit)
        for at, data in pieces:
            if text := decoder.feed(data):
                out.append((at, text))
    except CodingError as error:
        return Decoded((), str(error), False, False)
    trouble = ""
    try:
        if text := decoder.finish():
            out.append((at, text))
    except CodingError as error:  # a stream that was cut: what came before the cut is good
        trouble = str(error)
    return Decoded(tuple(out), trouble, True, decoder.truncated)


def coding_of(fields: Fields) -> str:
    """The content codings as sent, "" for none."""
    coding = _joined(fields, "content-encoding")
    return "" if coding.strip().lower() == "identity" else coding


def _media_type(fields: Fields) -> str:
    return _joined(fields, "content-type").partition(";")[0].strip().lower()


def _joined(fields: Fields, name: str) -> str:
    """All values of a field as one list (RFC 9110 §5.3)."""
    length = len(name)
    return ", ".join(value for other, value in fields if len(other) == length and other.lower() == name)


@lru_cache(1024)
def _canonical(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))


def _text(value: str) -> str:
    """A latin-1 view of bytes as the text it most likely is."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def header_map(fields: Fields) -> dict[str, list[str]]:
    """Canonical name -> values in order; without Host, which is the upstream."""
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(_canonical(name), []).append(_text(value))
    found.pop("Host", None)
    return dict(sorted(found.items()))


# --- times and lines ------------------------------------------------------------------------------------------------


@lru_cache(256)
def _utc_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(256)
def _local_second(seconds: int) -> tuple[str, str]:
    moment = time.localtime(seconds)
    minutes = moment.tm_gmtoff // 60
    sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
    zone = f"{sign}{minutes // 60:02d}:{minutes % 60:02d}" if minutes else "Z"
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment), zone


def _fraction(ns: int) -> str:
    return f".{ns:09d}".rstrip("0") if ns else ""


def utc(ns: int) -> str:
    """RFC 3339 in UTC, to the nanosecond, trailing zeros trimmed."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return _utc_second(seconds) + _fraction(rest) + "Z"


def local(ns: int) -> str:
    """RFC 3339 with the local offset."""
    seconds, rest = divmod(ns, 1_000_000_000)
    second, zone = _local_second(seconds)
    return second + _fraction(rest) + zone


_encode = msgspec.json.Encoder().encode
# DEL, the C1 controls, U+2028 and U+2029: line ends or terminal commands to one reader or another.
_UNSAFE = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")


def line(entry: Entry) -> bytes:
    """An entry as one line of UTF-8, whatever it holds."""
    try:
        data = _encode(entry)
    except UnicodeEncodeError:  # a lone surrogate
        data = _encode(_well_formed(entry))
    if not data.isascii() or b"\x7f" in data:
        data = _UNSAFE.sub(lambda match: b"\\u%04x" % ord(match[0].decode()), data)
    return data + b"\n"


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_well_formed(name): _well_formed(item) for name, item in value.items()}
    return [_well_formed(item) for item in value] if isinstance(value, list) else value


# --- places ---------------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")


def folder_name(upstream: str) -> str:
    """The folder of an upstream: its authority, or a name made from it where that could lead anywhere else."""
    if _NAME.fullmatch(upstream):
        return upstream
    return f"_invalid-{sha256(upstream.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def place(upstream: str, session: str, opened: int) -> str:
    """Where a new session's file goes, relative to the log folder. `opened` is nanoseconds since 1970."""
    day = time.strftime("%Y-%m-%d", time.localtime(opened // 1_000_000_000))
    return f"{folder_name(upstream)}/{day}/{session}.jsonl"
