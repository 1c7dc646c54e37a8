"""What all readers of other programs' logs make: where a call stands (`Found`), and the call itself (`Foreign`).

Nothing of what a log says is trusted: times, sizes and names are held to what they can be, credentials in heads are
masked. Leaves out the formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec

from llm_proxy.records.exchange import Body, Ending, Exchange, Fields
from llm_proxy.sinks.session_jsonl import Pieces, coding_of
from llm_proxy.wire.masking import masked_target, masked_value

UNKNOWN = "unknown"
NOBODY = "unknown@unknown"  # the machine of logs that tell none
# The hosts that calls go to where a log names none.
HOSTS = {
    "anthropic": "api.anthropic.com",
    "openai": "api.openai.com",
    "gemini": "generativelanguage.googleapis.com",
}
# What answered calls of a log that tells no ending came to, and those without an answer.
NO_ANSWER = "the log this call was imported from tells no answer"


class Unreadable(Exception):
    """A line tells no call that could be imported. Says why, without naming the line."""


class OwnLog(Exception):
    """A file that llm-proxy wrote itself."""


class Place(NamedTuple):
    """A line of a file: its path, and where in its lines it begins."""

    path: str
    offset: int
    length: int


class Found(NamedTuple):
    """A call in a log, not read yet. `started` is nanoseconds since 1970; `about` is what other lines say of it."""

    id: UUID
    started: int
    lines: tuple[Place, ...]
    answered: bool = True
    machine: str = NOBODY
    about: tuple[str, ...] = ()
    key: str = ""  # by which its parts are known


class Part(NamedTuple):
    """A piece of a call that stands by itself, perhaps in another file."""

    key: str
    line: Place


@dataclass(frozen=True, slots=True)
class Side:
    """A request or a response as a log tells it. `pieces` as in `Exchange`.

    `coded`: the pieces still have the content coding that the headers name. `damaged`: bytes were lost when the log was
    written; `gone`: so many that the body says nothing any more.
    """

    headers: Fields = ()
    pieces: Pieces = ()
    size: int = 0
    coded: bool = False
    damaged: bool = False
    gone: bool = False

    def body(self) -> Body:
        return Body((), self.size, "damaged") if self.gone else Body(self.pieces, self.size)

    def headers_as_told(self, *, stream: bool) -> Fields:
        """The headers by which the pieces are read rightly, whatever has been done to them."""
        fields = self.headers if self.coded else _without(self.headers, "content-encoding")
        return (*_without(fields, "content-type"), ("Content-Type", "text/event-stream")) if stream else fields

    @property
    def coding(self) -> str:
        """The content coding that was taken off before the log was written."""
        return "" if self.coded or self.gone else coding_of(self.headers)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A call that another program recorded.

    `exchange` has the heads as they were, but for what is masked; `as_told` those by which its bodies are read rightly.
    `origin` says where it comes from, as it stands in the log.
    """

    exchange: Exchange
    as_told: Exchange
    request: Side
    response: Side
    machine: str
    origin: dict[str, Any]


@dataclass(slots=True)
class Draft:
    """A call while its reader puts it together. Times as in `Exchange`; `first_byte` 0, `ended` None: not told."""

    found: Found
    method: str
    target: str
    provider: str
    upstream: str
    request: Side
    response: Side = field(default_factory=Side)
    status: int | None = None
    stream: bool = False
    first_byte: int = 0
    ended: int | None = None
    ending: Ending = Ending.COMPLETE
    error: str = ""
    answered: int = 0
    scheme: str = "https"
    origin: dict[str, Any] = field(default_factory=dict)

    def call(self, name: str) -> Foreign:
        """`name` is the format's. Raises Unreadable."""
        if not _METHOD.fullmatch(self.method):
            raise Unreadable("the method is none")
        ended = min(max(self.ended or 0, self.first_byte, 0), _LONGEST)
        exchange = Exchange(
            id=self.found.id,
            provider=self.provider if _WORD.fullmatch(self.provider) else UNKNOWN,
            scheme=self.scheme,
            upstream=self.upstream[:255] or UNKNOWN,
            why="import",
            opened=self.found.started,
            method=self.method,
            target=self.target,
            request_headers=self.request.headers,
            request=self.request.body(),
            status=self.status,
            reason="",
            response_headers=self.response.headers,
            response=self.response.body(),
            trailers=(),
            interim=(),
            first_byte=min(max(self.first_byte, 0), ended),
            ended=ended,
            ending=self.ending,
            error=self.error[:1000],
            answered=self.answered,
            websocket=False,
            retried=False,
            ended_by_close=False,
            extra_bytes=False,
        )
        as_told = replace(
            exchange,
            request_headers=self.request.headers_as_told(stream=False),
            response_headers=self.response.headers_as_told(stream=self.stream),
            # Lines whose times are not known all came at the end; so did the head then.
            first_byte=exchange.first_byte or ended,
        )
        origin = {"format": name} | {key: value for key, value in self.origin.items() if value}
        if self.request.damaged or self.response.damaged:
            origin["damaged"] = True
        return Foreign(exchange, as_told, self.request, self.response, self.found.machine, origin)


_METHOD = re.compile(r"[A-Za-z][A-Za-z-]{0,31}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST = 400 * 86_400 * 10**9


def unanswered(draft: Draft) -> Draft:
    """A call of which nobody knows how it ended."""
    draft.ending, draft.error = Ending.INTERRUPTED, NO_ANSWER
    return draft


# --- ids and times


def derived_id(*parts: bytes) -> UUID:
    """The same for the same lines, whenever and from wherever they are imported."""
    return uuid5(NAMESPACE_OID, b"\0".join(parts).decode("latin-1"))


def kept_id(text: Any, line: bytes) -> UUID:
    """The id that a log gives a call, or one derived from its line."""
    try:
        return UUID(text) if isinstance(text, str) and len(text) <= 40 else derived_id(line)
    except ValueError:
        return derived_id(line)


_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|z|[+-]\d\d:?\d\d)?", re.ASCII)
_FIRST, _LAST = 946_684_800, 4_102_444_800  # the years 2000 to 2099, in seconds since 1970


def moment(text: Any) -> int | None:
    """RFC 3339, or seconds as a number, as nanoseconds since 1970; None for anything else, and for other centuries."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return round(text * 1_000_000) * 1000 if _FIRST <= text < _LAST else None
    match = _MOMENT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    try:
        seconds = int(datetime.fromisoformat(match[1] + (match[3] or "Z").upper()).timestamp())
    except (ValueError, OverflowError):
        return None
    return seconds * 10**9 + int((match[2] or "0").ljust(9, "0")) if _FIRST <= seconds < _LAST else None


def begun(*told: Any) -> int:
    """The first that is a time. Raises Unreadable."""
    for one in told:
        if (at := moment(one)) is not None:
            return at
    raise Unreadable("it tells no time")


def count(value: Any) -> int | None:
    """A number that can be a size or a duration."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 53 else None


# --- lines


T = TypeVar("T")
# A lone half of a surrogate pair, which other programs write and JSON readers refuse. First what it must not be taken
# for: an escaped backslash, a whole pair.
_HALF = re.compile(rb"\\(?:[^u]|u[dD][89abAB]..\\u[dD][c-fC-F]..|u[dD]([89a-fA-F]..)|u)", re.DOTALL)


def whole(line: bytes) -> bytes:
    """A line with U+FFFD for halves of surrogate pairs."""
    return _HALF.sub(lambda match: rb"\ufffd" if match[1] else match[0], line)


def decoded(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    """Raises Unreadable."""
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        return decoder.decode(whole(line))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Unreadable("it is not what this format's lines are") from None


# --- heads


def fields(headers: Any) -> Fields:
    """A map of names to a value or a list of values, credentials masked, the host left out."""
    if not isinstance(headers, Mapping):
        return ()
    return tuple(
        (_latin(name), _masked(name, value))
        for name, values in headers.items()
        for value in (values if isinstance(values, list) else [values])
        if isinstance(name, str) and isinstance(value, str) and name.lower() != "host"
    )


def _masked(name: str, value: str) -> str:
    data = value.encode("utf-8", "replace").strip(b" \t")
    masked = masked_value(name.lower().encode("utf-8", "replace"), data)
    return (data if masked is None else masked).decode("latin-1")


def _latin(text: str) -> str:
    return text.encode("utf-8", "replace").decode("latin-1")


# What would end a path, or a line.
_NOT_IN_PATH = re.compile(r"[\x00-\x20\x7f?#]")


def target(path: Any, query: Any = "") -> str:
    """A path that may have been decoded, and a query as it was sent, secrets masked. Raises Unreadable."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise Unreadable("the path is none")
    path = _NOT_IN_PATH.sub(lambda match: f"%{ord(match[0]):02X}", path)
    whole_target = f"{path}?{query}" if isinstance(query, str) and query else path
    return masked_target(whole_target.encode("utf-8", "replace")).decode("latin-1")


def provider_of(path: str) -> str:
    """By what is called, where a log does not tell."""
    if re.search(r":\w*[gG]enerateContent|:countTokens|/v1beta/", path):
        return "gemini"
    return "anthropic" if re.search(r"/messages|/model/|/v1/complete\b", path) else "openai"


def value_of(headers: Fields, name: str) -> str:
    return next((value for other, value in headers if other.lower() == name), "")


def _without(headers: Fields, name: str) -> Fields:
    return tuple((other, value) for other, value in headers if other.lower() != name)


# --- bodies


def side(headers: Fields, pieces: Iterable[tuple[int, bytes]], size: int | None = None, *, coded: bool = False) -> Side:
    """`size` None: as told by Content-Length, else what there is.

    Bytes that are no UTF-8 became U+FFFD in most logs. Of a compressed body nothing can be read then.
    """
    kept = tuple((at, data) for at, data in pieces if data)
    there = sum(len(data) for _, data in kept)
    if size is None:
        length = value_of(headers, "content-length")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 16 and not coded else there
    damaged = not coded and any("\ufffd".encode() in data for _, data in kept)
    return Side(headers, kept, size, coded, damaged, gone=damaged and bool(coding_of(headers)))


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
