"""A call as Loki takes it: its log entries as lines, and between them what an agent did, with few labels. Pure.

The same call after the same calls gives the same bytes, so that Loki drops what is sent twice. `docs/loki.md` tells the
shapes. Leaves out how lines are sent and where `Track`s are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import msgspec

from llm_proxy.dialects.hints import is_conversation
from llm_proxy.dialects.tool_use import Result, Round, ToolCall, key_of, rounds
from llm_proxy.formats.call import Call, Entry
from llm_proxy.index.queries import Place
from llm_proxy.records import understood
from llm_proxy.sinks import session_jsonl

Pairs = tuple[tuple[str, str], ...]

APP = "llm-proxy"
UNKNOWN = "unknown"
# Loki refuses what is an hour older than the newest of its stream, and a call is told when it is over.
SPAN = 45 * 60 * 10**9  # ns before a call's end; what came earlier in it is told as if then
REMEMBERED = 256  # calls that wait for a result, and results that have been told, of a session
LONGEST = 255  # characters of an id or a name

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Line:
    """One entry of a stream: sorted labels, nanoseconds since 1970, JSON, structured metadata."""

    labels: Pairs
    ts_ns: int
    text: str
    metadata: Pairs


@dataclass(frozen=True, slots=True)
class Common:
    """What all lines share. `machine`: "" for what each call's own record says. `max_line`: bytes of a line's text."""

    environment: str
    machine: str
    max_line: int


@dataclass(frozen=True, slots=True)
class Track:
    """What must be known of a session to tell its next call; `Track()` is a new session. Its size is bounded.

    `failed`: a result of the last request said that it is an error; `recovered`: the one before had such a result.
    `streak` and `retries`: turns in a row that began with `last_tool`, and those of them after an error. `pending`:
    (key, name) of tools whose result has not been told yet. `seen`: keys of results that have been.
    """

    turns: int = 0
    tools: int = 0
    last_tool: str = ""
    failed: bool = False
    recovered: bool = False
    streak: int = 0
    retries: int = 0
    pending: Pairs = ()
    seen: tuple[str, ...] = ()

    def to_json(self) -> str:
        return _encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Track:
        """A text that is none of `to_json` is taken for a new session."""
        try:
            return _TRACK.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return cls()


_TRACK = msgspec.json.Decoder(Track)


def lines(call: Call, track: Track, common: Common) -> tuple[list[Line], Track]:
    """The lines of a finished call, in their order, and the session's next track. Never raises.

    A session's start is told with its first call. Calls that are no conversation have entries only.
    """
    told = _Told(call, common)
    if call.row.seq == 1:
        told.beginning(call.start, call.fork)
    if call.response is None or not _is_turn(call):
        told.request()
        told.response()
        return told.lines, track
    client = [text for side, text in understood.messages_of(call.response) if side == "client"]
    turn, track = _turn(track, rounds(call.digest, client if "websocket" in call.response else None))
    for result, name in turn.results:
        told.event("tool_result", {"tool_name": name}, tool_use_id=_clip(result.id), is_error=result.failed)
    told.event("turn_start", {}, turn_depth=track.turns, error_recovered=turn.recovered)
    told.request()
    told.response()
    for one in turn.calls:
        told.event("tool_call", {"tool_name": _name(one.name)}, tool_index=one.index, tool_use_id=_clip(one.id))
    told.turn_end(track, turn.is_retry)
    return told.lines, track


def _is_turn(call: Call) -> bool:
    return "websocket" in (call.response or {}) or is_conversation(call.row.method, call.row.path)


# --- what an agent did


@dataclass(frozen=True, slots=True)
class _Turn:
    """What is told of a call's tools; results with the names of their tools."""

    results: tuple[tuple[Result, str], ...]
    calls: tuple[ToolCall, ...]
    recovered: bool
    is_retry: bool


def _turn(track: Track, rounds: Sequence[Round]) -> tuple[_Turn, Track]:
    """Over a WebSocket a call has several rounds, which count as one turn."""
    track = replace(track, turns=track.turns + 1)
    results: list[tuple[Result, str]] = []
    is_retry = False
    recovered: list[bool] = []
    for one in rounds:
        fresh, track = _handed_back(track, one.results)
        results += fresh
        recovered.append(track.recovered)
        again, track = _called(track, one)
        is_retry = is_retry or again
    calls = tuple(call for one in rounds for call in one.calls)
    return _Turn(tuple(results), calls, any(recovered), is_retry), track


def _handed_back(track: Track, results: Iterable[Result]) -> tuple[list[tuple[Result, str]], Track]:
    """The results that have not been told yet, with names.

    A request that is sent again brings none, and stands where it stood: its errors are no older than they were.
    """
    pending, seen = dict(track.pending), set(track.seen)
    brought = [one for one in results if one.new or one.key in pending]
    fresh = {one.key: one for one in brought if one.key not in seen}
    named = [(one, _name(one.name or pending.get(key, ""))) for key, one in fresh.items()]
    return named, replace(
        track,
        failed=any(one.failed for one in brought),
        recovered=track.recovered if brought and not fresh else track.failed,
        pending=tuple(one for one in track.pending if one[0] not in fresh),
        seen=(*track.seen, *fresh)[-REMEMBERED:],
    )


def _called(track: Track, round: Round) -> tuple[bool, Track]:
    """Whether the model tries again what failed. Where no answer came it has decided nothing."""
    if not round.answered:
        return False, track
    if not round.calls:
        return False, replace(track, streak=0, retries=0)
    first = _name(round.calls[0].name)
    again = first == track.last_tool and track.failed
    waiting = dict(track.pending) | {key_of(one.id): _name(one.name) for one in round.calls if one.id}
    return again, replace(
        track,
        tools=track.tools + len(round.calls),
        last_tool=first,
        streak=track.streak + 1 if first == track.last_tool else 1,
        retries=track.retries + 1 if again else 0,
        pending=tuple(waiting.items())[-REMEMBERED:],
    )


# --- lines


class _Told:
    """The lines of a call as they come about. Each has the time of its entry, an event that of the one it stands by;
    where that is not behind the line before, it is put there.
    """

    def __init__(self, call: Call, common: Common) -> None:
        self.lines: list[Line] = []
        self._call = call
        self._common = common
        self._request, self._response = call.request or {}, call.response or {}
        self._facts = _facts(call)
        began = understood.moment_of(self._request)
        self._now = began if began is not None else call.row.started_ns
        ended = understood.moment_of(self._response)
        self._ended = max(self._now, ended if ended is not None else call.row.ended_ns or 0)
        self._next = max(0, self._ended - SPAN)
        bedrock = session_jsonl.BEDROCK in (self._request.get("transport"), self._response.get("transport"))
        self._transport = session_jsonl.BEDROCK if bedrock else "direct"
        self._model = call.digest.asked.model or _word(self._facts.get("model"))
        self._error = _error_type(call, self._facts)
        start = call.start or {}
        machine = common.machine or _word(_object((call.response or self._request).get("_meta")).get("machine"))
        self._labels = {
            "app": APP,
            "provider": call.row.provider or _word(start.get("provider")) or UNKNOWN,
            "environment": common.environment,
            "machine": machine or UNKNOWN,
        }
        self._session = {"session": call.row.session, "client_session": _word(start.get("client_session"))}
        self._ids = self._session | {"exchange": call.row.id, "provider_request_id": _request_id(self._response)}

    def beginning(self, *entries: Entry | None) -> None:
        for entry in entries:
            if entry:
                self._entry(entry, {}, self._session, b"", None)

    def request(self) -> None:
        call, asked = self._call, self._call.digest.asked
        if not call.request:
            return
        body = call.request_body
        labels = {"model": self._model}
        if asked.api and not asked.trouble and (body or "websocket" in self._response):
            labels |= {"stream": _flag(asked.stream), "has_tools": _flag(bool(asked.tools))}
        entry = call.request
        if body or "left_out" not in entry:
            entry = entry | {"request_sha": entry.get("sha256") or sha256(body).hexdigest()}
        self._entry(entry, labels, self._ids, body, call.row.request)

    def response(self) -> None:
        call, status = self._call, _status(self._response)
        self._now = self._ended
        if not call.response:
            return
        labels = {
            "model": self._model if self._transport == session_jsonl.BEDROCK else "",
            "status_bucket": f"{status // 100}xx" if status is not None and status // 100 in (2, 4, 5) else "",
            "stop_reason": _word(self._facts.get("stop_reason")),
            "ratelimit_status": _header(call.response, "anthropic-ratelimit-unified-status").lower(),
        }
        self._entry(call.response, labels, self._answered(labels), call.response_body, call.row.response)

    def turn_end(self, track: Track, is_retry: bool) -> None:
        usage = understood.usage_from(self._facts)
        labels = {"is_retry": _flag(is_retry), "error_type": self._error}
        labels["stop_reason"] = _word(self._facts.get("stop_reason"))
        self.event(
            "turn_end",
            labels,
            self._answered(labels),
            turn_depth=track.turns,
            tool_streak=track.streak,
            retry_count=track.retries,
            session_tool_count=track.tools,
            input_tokens=usage.input if usage else 0,
            output_tokens=usage.output if usage else 0,
            cache_read_input_tokens=usage.cache_read if usage else 0,
            cache_creation_input_tokens=usage.cache_write_5m + usage.cache_write_1h if usage else 0,
        )

    def event(self, kind: str, labels: dict[str, str], metadata: dict[str, str] | None = None, **facts: Any) -> None:
        entry = {"type": kind, "session_id": self._call.row.session, **facts}
        level = {"level": "warn"} if facts.get("is_error") else {}
        self._add(entry, {"log_type": kind, **labels}, (metadata or self._ids) | level, b"", None)

    def _answered(self, labels: dict[str, str]) -> dict[str, str]:
        """The metadata of what tells how a call ended; a name is either a label or here."""
        model = "" if labels.get("model") else _word(self._facts.get("model"))
        level = _LEVELS.get(self._error, "error")
        return self._ids | {"model": model, "level": level}

    def _entry(
        self, entry: Entry, labels: dict[str, str], metadata: dict[str, str], body: bytes, place: Place | None
    ) -> None:
        """A line of the log."""
        if self._transport == session_jsonl.BEDROCK and entry.get("type") in ("request", "response"):
            override = {"transport": session_jsonl.BEDROCK, "model_override": self._model}
            entry = entry | {"_meta": _object(entry.get("_meta")) | override}
        kind = _word(entry.get("type")) or UNKNOWN
        self._add(entry, {"log_type": kind, "transport": self._transport, **labels}, metadata, body, place)

    def _add(
        self, entry: Entry, labels: dict[str, str], metadata: dict[str, str], body: bytes, place: Place | None
    ) -> None:
        at = max(self._now, self._next)
        self._next = at + 1
        text = _text(entry, self._common.max_line, lambda: self._summary(entry, body, place))
        self.lines.append(Line(_pairs(self._labels | labels), at, text, _pairs({"level": "info"} | metadata)))

    def _summary(self, entry: Entry, body: bytes, place: Place | None) -> Entry:
        """What stands for a content that is too long, and where it is whole."""
        told: Entry = {"bytes": len(body), "sha256": sha256(body).hexdigest()}
        if self._model:
            told["model"] = _clip(self._model)
        if "truncated" in entry:
            told["truncated"] = _brief(entry["truncated"])
        if place is not None:
            log = {"file": _clip(place.file), "offset": place.offset, "length": place.length}
            told["log"] = log | {"upstream": _clip(self._call.row.upstream)}
        return told


_CONTENT = frozenset({"body", "body_encoding", "chunks", "websocket"})
_META = ("ts", "machine", "host", "session", "request_id", "transport", "model_override")
_ESSENTIAL = ("seq", "status", "size", "request_sha")


def _text(entry: Entry, most: int, summary: Callable[[], Entry]) -> str:
    """An entry as JSON of at most `most` bytes: whole, without its content, or with little more than its type."""
    text = b""
    for form in _forms(entry, summary):
        text = session_jsonl.line(dict(sorted(form.items())))[:-1]
        if len(text) <= most:
            break
    return text.decode()


def _forms(entry: Entry, summary: Callable[[], Entry]) -> Iterator[Entry]:
    yield entry
    short = {"summary": summary(), "truncated": "loki"}
    yield {name: value for name, value in entry.items() if name not in _CONTENT} | short
    kind = {"type": _brief(entry.get("type"))}
    known = {name: _brief(entry[name]) for name in _ESSENTIAL if name in entry}
    meta = _object(entry.get("_meta"))
    yield kind | known | {"_meta": {name: _brief(meta[name]) for name in _META if name in meta}} | short
    yield kind | {"truncated": "loki"}


def _brief(value: Any) -> Any:
    """A fact whose length nobody can stretch."""
    if isinstance(value, str):
        return _clip(value)
    return value if isinstance(value, int) and abs(value) < 1 << 53 else None


# --- words


_LEVELS = {"": "info", "client_gone": "warn"}


def _facts(call: Call) -> Entry:
    """The log's own digest stands where its bodies may not."""
    told = _object((call.response or {}).get("digest"))
    return told or understood.facts(call.digest)


# What a provider says in the middle of a good stream; the first that its word holds.
_STREAMED = (("context_length", "context_length"), ("rate_limit", "rate_limit"), ("invalid", "invalid_request"))


def _error_type(call: Call, facts: Entry) -> str:
    """Why a turn failed, "" where it did not."""
    response = call.response or {}
    status = _status(response)
    if status is not None and status >= 400:
        if status == 429 or status >= 500:
            return "rate_limit" if status == 429 else "server_error"
        said = call.response_body.lower() if status == 400 else b""
        return "context_length" if b"context" in said or b"too long" in said else "invalid_request"
    ending = _word(response.get("ending")) or "complete"
    if ending != "complete":
        return ending
    said_type = _word(facts.get("error_type"))
    return next((name for part, name in _STREAMED if part in said_type), "server_error") if said_type else ""


_REQUEST_IDS = ("request-id", "x-request-id", "x-amzn-requestid", "x-goog-request-id", "cf-ray")


def _request_id(response: Entry) -> str:
    """The provider's own id of the call."""
    return next((said for name in _REQUEST_IDS if (said := _header(response, name))), "")


def _header(entry: Entry, name: str) -> str:
    return next((value for other, value in understood.fields(entry) if other.lower() == name), "")


def _status(response: Entry) -> int | None:
    status = response.get("status")
    return status if type(status) is int else None


def _object(value: Any) -> Entry:
    return value if isinstance(value, dict) else {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _name(tool: str) -> str:
    return _clip(tool) or UNKNOWN


def _clip(text: str) -> str:
    """What anybody may call anything, as labels and terminals take it."""
    clipped = text[:LONGEST]
    return clipped if clipped.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in clipped)


def _pairs(told: dict[str, str]) -> Pairs:
    """Those that say something; Loki takes an empty value for none."""
    return tuple(sorted((name, _clip(value)) for name, value in told.items() if value))
