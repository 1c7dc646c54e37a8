"""One call: what it cost and why, where its time went, what changed since the one before, its events, its bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from itertools import islice
from typing import Any, Literal

from aiohttp import web

from llm_proxy.dialects.digest import TOKEN_CLASSES, Usage
from llm_proxy.dialects.reading import mapping, text
from llm_proxy.explorer import cache_miss, conversation, diffing, jsontree, rates, snippets
from llm_proxy.explorer import events as streams
from llm_proxy.explorer.asking import Absent, Asked, BadValue, NotFound, Param, Withheld, choice, whole
from llm_proxy.explorer.asking import text as text_param
from llm_proxy.explorer.cache_miss import Diagnosis
from llm_proxy.explorer.diffing import Section
from llm_proxy.explorer.events import Event, Row
from llm_proxy.explorer.jsontree import Node
from llm_proxy.explorer.page import Extra, File, Handler, Page
from llm_proxy.explorer.render import ROOT
from llm_proxy.explorer.waterfall import Waterfall, waterfall
from llm_proxy.formats import har
from llm_proxy.formats.call import Call, headers_of
from llm_proxy.index import threads
from llm_proxy.index.queries import CallRow, SessionRow
from llm_proxy.index.record import Record
from llm_proxy.records.understood import Entry

EVENTS = 500  # rows of the events' table at a time
RAW = 64 * 1024  # bytes at a time
_COUNTED = 400_000  # bytes of both requests, up to which every tab says how much changed
_TOLERANCE = Decimal("0.000001")

Side = Literal["request", "response"]

PARAMS: tuple[Param, ...] = (
    choice("tab", "What to show of the call.", "overview", "diff", "events", "http", "raw"),
    text_param("against", "Of the diff: the call to compare with, by its id; else the previous one of the session."),
    choice("every", "Of the events: 1 shows every one, 0 joins runs of like ones.", "0", "1"),
    whole("row", "Of the events: the first row shown.", 0, 10**7, 0),
    choice("side", "Of the bytes and of a part of them: whose.", "request", "response"),
    text_param("at", "Of request and response: only the value at this place, such as 3.0.2."),
    whole("offset", "Of the raw view: the first byte shown.", 0, 1 << 40, 0),
    choice(
        "dl", "Give a file instead: a body, the stream, a HAR, or a program that makes the call again.",
        "", "request", "response", "sse", "har", "curl", "python",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another call of the session. `turn` is 0 where it is no turn of the conversation shown."""

    id: str
    seq: int
    turn: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know before reading: `kind` is warn, err or plain."""

    kind: str
    bold: str
    text: str


@dataclass(frozen=True, slots=True)
class Charge:
    """A class of tokens, or a tool that is paid by use. `within`: it is part of another class, and in no sum.

    `rate` is US dollars per million tokens or per use; None where it is not told; `usd` likewise.
    """

    name: str
    label: str
    count: int
    rate: Decimal | None
    usd: Decimal | None
    within: bool = False
    by_use: bool = False


@dataclass(frozen=True, slots=True)
class Prices:
    """What the call's tokens came to. `exact`: the rows add up to `usd`."""

    charges: tuple[Charge, ...]
    tokens: int
    usd: Decimal | None
    basis: str
    source: str
    version: str
    why: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Fact:
    """A line of "who asked". `copy`: it may be copied."""

    name: str
    value: str
    copy: bool = False


@dataclass(frozen=True, slots=True)
class Overview:
    waterfall: Waterfall | None
    prices: Prices | None
    cache: Diagnosis | None
    previous: Neighbour | None  # the call whose cache this one could use
    previous_left: int  # tokens that it had left there
    asked_by: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Diff:
    against: Neighbour | None
    same_session: bool
    earlier_ms: int
    sections: tuple[Section, ...]
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Events:
    """A page of the table. `kind`: server-sent events, messages, lines, or "" where it is no stream."""

    kind: str
    rows: tuple[Row, ...]
    total: int
    first_row: int
    next_row: int | None
    every: bool


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a response. `tree` is None where the body is no JSON; `text` is then its beginning."""

    side: Side
    start: str
    size: int | None
    headers: tuple[tuple[str, str], ...]
    tree: Node | None
    text: str
    put_together: int = 0  # from so many events
    cut: bool = False
    empty: str = ""  # why there is no body


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line, or a piece of a long one. `cr`: it ended with a carriage return, which \\n alone would not tell."""

    offset: int
    text: str
    cr: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    side: Side
    size: int
    first: int
    until: int
    lines: tuple[RawLine, ...]
    binary: bool


@dataclass(frozen=True, slots=True)
class View:
    """The call; of `overview`, `diff`, `events`, `http` and `raw` only the tab asked for is given."""

    call: CallRow
    title: str
    did: str
    turn: int
    session: SessionRow | None
    previous: Neighbour | None
    next: Neighbour | None
    target: str
    notes: tuple[Note, ...]
    lost: Decimal | None
    events_count: int
    changes: int | None
    tab: str
    overview: Overview | None = None
    diff: Diff | None = None
    events: Events | None = None
    http: tuple[Message, ...] = ()
    raw: Raw | None = None


def view(record: Record, asked: Asked) -> View | File:
    row = _row(record, asked.ids["id"])
    call = Call(row, *record.entries(row))
    if call.request is None and call.response is None:
        raise Absent("The log file that held this call has been deleted, moved or cut.")
    if asked["dl"]:
        return _file(call, asked["dl"])
    calls = record.index.calls_of(row.session)
    events = streams.events_of(call.response)
    shape = conversation.arrange(calls, threads.gists(record.index, row.session))
    turns = {one.id: step.number for step in shape.steps for one in step.calls}
    session = threads.session(record.index, row.session)
    before = _before(record, calls, row, session)
    previous = Call(before, *record.entries(before)) if before is not None else None
    neighbours = _neighbours(calls, row, turns)
    diagnosis = cache_miss.diagnose(previous, call, rates.listed(row)) if asked["tab"] in ("overview", "diff") else None
    size = len(call.request_body) + (len(previous.request_body) if previous is not None else 0)
    wanted = asked["tab"] == "diff" or (previous is not None and size <= _COUNTED)
    diff = _diff(record, call, calls, turns, asked["against"], previous, diagnosis) if wanted else None
    turn = turns.get(row.id, 0)
    did = _did(call, shape.step_of(row.id))
    return View(
        call=row,
        title=(f"Turn {turn}" if turn else f"Call {row.seq}" if row.seq else "Call") + (f": {did}" if did else ""),
        did=did,
        turn=turn,
        session=session,
        previous=neighbours[0],
        next=neighbours[1],
        target=call.target,
        notes=tuple(_notes(call, events)),
        lost=diagnosis.usd if diagnosis is not None and diagnosis.lost else None,
        events_count=len(events),
        changes=_changes(diff) if diff is not None and diff.sections else None,
        tab=asked["tab"],
        overview=_overview(session, call, events, diagnosis, previous, turns) if asked["tab"] == "overview" else None,
        diff=diff if asked["tab"] == "diff" else None,
        events=_events(call, events, asked) if asked["tab"] == "events" else None,
        http=_messages(call, events, asked) if asked["tab"] == "http" else (),
        raw=_raw(call, asked) if asked["tab"] == "raw" else None,
    )


def _row(record: Record, id: str) -> CallRow:
    found = (one for one in record.index.find(id, 1000) if isinstance(one, CallRow) and one.id == id)
    row = next(found, None)
    if row is None:
        raise NotFound(f"There is no call {id[:80]!r}.")
    if record.withholds(row):
        raise Withheld
    return row


def _before(record: Record, calls: Sequence[CallRow], row: CallRow, session: SessionRow | None) -> CallRow | None:
    """The call whose cache this one could use: of this session, or of the one that it forked from."""
    before = cache_miss.previous_of(calls, row)
    if before is not None or session is None or not session.forked or session.parent_seq is None:
        return before
    common = [one for one in record.index.calls_of(session.parent) if one.seq <= session.parent_seq]
    return cache_miss.previous_of([*common, row], row)


def _neighbours(
    calls: Sequence[CallRow], row: CallRow, turns: Mapping[str, int]
) -> tuple[Neighbour | None, Neighbour | None]:
    place = next((number for number, one in enumerate(calls) if one.id == row.id), None)
    if place is None:
        return None, None
    one = calls[place - 1] if place else None
    other = calls[place + 1] if place + 1 < len(calls) else None
    return (
        _neighbour(one, turns) if one is not None else None,
        _neighbour(other, turns) if other is not None else None,
    )


def _neighbour(row: CallRow, turns: Mapping[str, int]) -> Neighbour:
    return Neighbour(row.id, row.seq, turns.get(row.id, 0))


# --- what it did, and what is odd about it

_APIS = {
    "anthropic.count_tokens": "counts tokens",
    "bedrock.count_tokens": "counts tokens",
    "gemini.count_tokens": "counts tokens",
    "anthropic.batches": "a batch",
    "openai.embeddings": "embeddings",
    "gemini.embed": "embeddings",
}


def _did(call: Call, step: conversation.Step | None) -> str:
    """In a few words, for the title."""
    row = call.row
    if row.open:
        return "still open"
    if row.error_type or row.failed:
        return f"failed, {row.error_type or row.status or row.ending}"
    gist = step.gist if step is not None else None
    if gist is not None and gist.tools:
        more = f" and {gist.calls - 1} more" if gist.calls > 1 else ""
        return _short(gist.tools[0], 70) + more
    if gist is not None and gist.words:
        return f"“{_short(gist.words, 80)}”"
    return _APIS.get(row.api) or ("" if row.api else f"{row.method} {row.path}"[:80])


def _short(said: str, longest: int) -> str:
    return said if len(said) <= longest else said[: longest - 1].rstrip() + "…"


_ENDINGS = {
    "refused": ("err", "Refused by this proxy.", ""),
    "upstream_failed": ("err", "The provider could not be reached, or broke off.", ""),
    "client_gone": ("warn", "The client left before the end.", "What had come by then is recorded."),
    "timed_out": ("err", "Nothing came for too long.", ""),
    "interrupted": ("warn", "llm-proxy was stopped while the call was open.", "What had come by then is recorded."),
}
_LEFT_OUT = {
    "metadata_only": "The configuration keeps bodies out of the log.",
    "expired": "They were taken out when they had the age that the configuration says.",
    "privacy": "Their user wants no more to be kept than figures, or they could not be searched for what is private.",
    "redaction_failed": "They could not be searched for secrets, so they were not kept.",
}
_CUT = {
    "limit": "longer than the recording limit",
    "dropped": "the disk was stalled or full",
    "decoded": "larger than 64 MB after decompression",
    "damaged": "damaged in the log it was imported from",
}


def _notes(call: Call, events: Sequence[Event]) -> Iterable[Note]:
    row, request, response = call.row, call.request, call.response
    if row.open:
        yield Note("plain", "Still open.", "What has come of the answer is shown when it is over, or under Live.")
    if row.ending in _ENDINGS:
        kind, bold, more = _ENDINGS[row.ending]
        yield Note(kind, bold, " ".join(filter(None, (row.error, more))))
    elif row.error or row.error_type:
        said = row.error or call.digest.last.error
        yield Note("err" if row.failed else "warn", f"{row.error_type or 'It did not end well'}:", said[:600])
    if row.partial and row.ending == "complete":
        yield Note("warn", "The answer is partial.", "The stream ended before it said that it was over.")
    if request is None:
        yield Note("warn", "The request is not recorded.", "Its log has gone, or began later.")
    for name, entry in (("request", request), ("response", response)):
        if entry is None:
            continue
        if entry.get("left_out"):
            yield Note("plain", f"The {name} has no body here.", _LEFT_OUT.get(str(entry["left_out"]), ""))
        if entry.get("truncated"):
            why = _CUT.get(str(entry["truncated"]), str(entry["truncated"])[:80])
            yield Note("warn", f"The {name} is not recorded as a whole:", f"{why}.")
        if isinstance(entry.get("redacted"), dict):
            kinds = ", ".join(f"{count} {kind}" for kind, count in list(entry["redacted"].items())[:8])
            yield Note("plain", f"Secrets in the {name} stand as tokens:", str(kinds)[:300])
        if entry.get("record_error"):
            yield Note("err", f"The {name} could not be recorded:", str(entry["record_error"])[:300])
        if entry.get("decode_error"):
            yield Note("warn", f"The {name} could not be decoded:", str(entry["decode_error"])[:300])
    imported = mapping((request or {}).get("imported"))
    if imported:
        made = " Its body is made from the messages told there." if imported.get("rebuilt") else ""
        yield Note("plain", "Imported,", f"recorded by another program ({str(imported.get('format'))[:40]}).{made}")
    trouble = text(mapping((response or {}).get("digest")).get("trouble"))
    if trouble:
        yield Note("plain", "Not all of it was understood:", trouble[:300])
    if not row.api and not row.open and row.status is not None:
        yield Note("plain", "This API is not understood.", "The bytes are recorded; tokens and cost are not known.")
    if events and any(event.event == "broken frame" for event in events):
        yield Note("warn", "The stream holds broken frames.", "They stand among the events as they came.")


# --- overview

_LABELS = {
    "input": "fresh input",
    "cache_read": "cache read",
    "cache_write_5m": "cache write, 5 min",
    "cache_write_1h": "cache write, 1 h",
    "output": "output",
    "reasoning": "reasoning",
    "input_audio": "audio in",
    "cache_read_audio": "audio from cache",
    "output_audio": "audio out",
    "input_image": "images in",
    "output_image": "images out",
}
_WITHIN = {
    "reasoning": "output",
    "output_audio": "output",
    "output_image": "output",
    "input_audio": "input",
    "input_image": "input",
    "cache_read_audio": "cache_read",
}
_ALWAYS = ("input", "cache_read", "output")


def _overview(
    session: SessionRow | None,
    call: Call,
    events: Sequence[Event],
    diagnosis: Diagnosis | None,
    previous: Call | None,
    turns: Mapping[str, int],
) -> Overview:
    left = previous.row.usage if previous is not None else None
    return Overview(
        waterfall=waterfall(call.request, call.response, events),
        prices=_prices(call),
        cache=diagnosis,
        previous=_neighbour(previous.row, turns) if previous is not None else None,
        previous_left=left.cache_read + left.cache_write_5m + left.cache_write_1h if left is not None else 0,
        asked_by=tuple(_asked_by(session, call)),
    )


def _prices(call: Call) -> Prices | None:
    row, usage = call.row, call.row.usage
    if usage is None:
        return None
    price = mapping((call.response or {}).get("price"))
    units = cache_miss.rates_of(call)
    several = any(isinstance(unit, list) for unit in mapping(price.get("units")).values())
    charges = tuple(_charges(usage, {} if several else units))
    summed = sum((one.usd for one in charges if one.usd is not None), Decimal(0))
    exact = row.usd is not None and abs(summed - row.usd) <= _TOLERANCE + row.usd / 10_000
    if not exact:  # priced again since, or in parts: the rows would say something else than the sum
        charges = tuple(_charges(usage, {}))
    return Prices(
        charges=charges,
        tokens=usage.total,
        usd=row.usd,
        basis=row.basis,
        source=text(price.get("source")),
        version=text(price.get("version")),
        why=text(price.get("why")),
        exact=exact,
    )


def _charges(usage: Usage, units: Mapping[str, Decimal]) -> Iterable[Charge]:
    apart = {name: getattr(usage, name) for name in _WITHIN if name in units}
    for name in TOKEN_CLASSES:
        count = getattr(usage, name)
        if not count and name not in _ALWAYS:
            continue
        rate = units.get(name)
        if name in _WITHIN and rate is None:
            yield Charge(name, _LABELS[name], count, None, None, True)
            continue
        charged = count - sum(other for inner, other in apart.items() if _WITHIN[inner] == name)
        usd = rate * charged / 1_000_000 if rate is not None else Decimal(0) if units and not count else None
        yield Charge(name, _LABELS[name], count, rate, usd, name in _WITHIN)
    uses = dict(usage.server_tools)
    for name, rate in units.items():
        if name in TOKEN_CLASSES:
            continue
        used = 1 if name == "requests" else sum(n for tool, n in uses.items() if tool.startswith(name[:10]))
        yield Charge(name, name.replace("_", " "), used, rate, rate * used, by_use=True)
    if not units:
        for name, used in uses.items():
            yield Charge(name, name.replace("_", " ")[:60], used, None, None, by_use=True)


def _asked_by(session: SessionRow | None, call: Call) -> Iterable[Fact]:
    row, request, response = call.row, call.request or {}, call.response or {}
    answered = {name.lower(): values for name, values in headers_of(call.response).items()}
    sent = {name.lower(): values for name, values in headers_of(call.request).items()}
    if session is not None:
        yield Fact("process", session.program)
        yield Fact("directory", session.cwd, True)
        yield Fact("branch", session.branch)
    yield Fact("user agent", next(iter(sent.get("user-agent", ())), ""))
    yield Fact("machine", text(mapping(request.get("_meta")).get("machine")))
    yield Fact("upstream", row.upstream)
    yield Fact("by way of", {"bedrock": "the Bedrock door, signed there"}.get(text(request.get("transport")), ""))
    gateway = mapping(request.get("gateway"))
    yield Fact("for", text(gateway.get("user")))
    yield Fact("team", text(gateway.get("team")))
    yield Fact("asked for as", text(gateway.get("alias")))
    yield Fact("gateway’s request", text(gateway.get("request")), True)
    yield Fact("API", row.api)
    if session is not None:
        yield Fact("client’s session", session.client_session, True)
    yield Fact("session", row.session, True)
    yield Fact("call", row.id, True)
    provider_id = next((answered[name][0] for name in _REQUEST_IDS if answered.get(name)), "")
    yield Fact("provider’s request", provider_id, True)
    yield Fact("answer", row.response_id, True)
    yield Fact("service tier", row.service_tier)
    for name, entry, data in (
        ("sha-256 in", request, call.request_body),
        ("sha-256 out", response, call.response_body),
    ):
        whole_hash = text(entry.get("sha256"))
        coded = entry.get("truncated") or entry.get("redacted") or entry.get("content_encoding") or "websocket" in entry
        yield Fact(name, whole_hash or (sha256(data).hexdigest() if data and not coded else ""), True)


_REQUEST_IDS = ("request-id", "x-request-id", "x-amzn-requestid", "x-goog-request-id", "cf-ray")


# --- diff


def _diff(
    record: Record,
    call: Call,
    calls: Sequence[CallRow],
    turns: Mapping[str, int],
    against: str,
    previous: Call | None,
    diagnosis: Diagnosis | None,
) -> Diff:
    before = previous if not against else None
    if before is None:
        other, why_not = _other(record, call, calls, against)
        if other is None:
            return Diff(None, False, 0, (), why_not)
        before = Call(other, *record.entries(other))
    other = before.row
    neighbour = _neighbour(other, turns)
    earlier = (call.row.started_ns - other.started_ns) // 10**6
    same = other.session == call.row.session
    lacking = next((one for one in (call, before) if one.request is None or one.request.get("left_out")), None)
    if lacking is not None:
        which = "this call" if lacking is call else "that call"
        return Diff(neighbour, same, earlier, (), f"The request of {which} has no body in the log.")
    at = None
    if diagnosis is not None and diagnosis.lost and diagnosis.previous == other.id and diagnosis.path:
        told = f"cached prefix ends here: {diagnosis.matched or 0:,} tokens"
        at = diffing.Break(diagnosis.first_difference, told)
    try:
        bodies = [_value(one) for one in (before, call)]
    except ValueError:
        return Diff(neighbour, same, earlier, (), "One of the requests is no JSON; compare their bytes under Raw.")
    scale = tuple(
        one.row.usage.prompt / len(one.request_body) if one.row.usage is not None and one.request_body else None
        for one in (before, call)
    )
    headers = headers_of(before.request), headers_of(call.request)
    found = diffing.sections(bodies[0], bodies[1], headers, (scale[0], scale[1]), at)
    return Diff(neighbour, same, earlier, tuple(found))


def _changes(diff: Diff) -> int:
    """Without headers, some of which are others each time."""
    return sum(one.changed + one.added + one.removed for one in diff.sections if one.name != "Headers")


def _value(call: Call) -> Any:
    """Raises ValueError."""
    body = call.request_body
    try:
        return json.loads(body.decode("utf-8-sig", "replace")) if body else None
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _other(record: Record, call: Call, calls: Sequence[CallRow], against: str) -> tuple[CallRow | None, str]:
    if against:
        try:
            return _row(record, against), ""
        except NotFound:
            raise BadValue("against", "the id of a recorded call", against) from None
    place = next((number for number, one in enumerate(calls) if one.id == call.row.id), 0)
    before = next((one for one in reversed(calls[:place]) if one.api == call.row.api), None)
    return before, "" if before is not None else "It is the first call of its kind in this session."


# --- events


def _events(call: Call, events: Sequence[Event], asked: Asked) -> Events:
    every, first = asked["every"] == "1", asked["row"]
    rows = list(islice(streams.rows(events, every=every), first, first + EVENTS + 1))
    response = call.response or {}
    kind = "server-sent events" if "chunks" in response else "messages" if "websocket" in response else "lines"
    return Events(
        kind=kind if events else "",
        rows=tuple(rows[:EVENTS]),
        total=len(events),
        first_row=first,
        next_row=first + EVENTS if len(rows) > EVENTS else None,
        every=every,
    )


# --- request and response


def _messages(call: Call, events: Sequence[Event], asked: Asked) -> tuple[Message, ...]:
    if asked["at"]:
        return (_message(call, asked["side"], events, asked["at"]),)
    return tuple(_message(call, side, events) for side in _SIDES)


_SIDES: tuple[Side, Side] = ("request", "response")


def _message(call: Call, side: Side, events: Sequence[Event], at: str = "") -> Message:
    entry = call.request if side == "request" else call.response
    start = f"{call.row.method} {call.target}" if side == "request" else _status(call)
    headers = tuple((name, value) for name, values in headers_of(entry).items() for value in values)
    size = entry.get("size") if entry is not None else None
    size = size if isinstance(size, int) else None
    if entry is None:
        why = "The call is still open." if call.row.open and side == "response" else "It is not in the log."
        return Message(side, start, None, (), None, "", empty=why)
    data, put_together = _body(call, side, events)
    if not data:
        return Message(side, start, size, headers, None, "", empty=_why_empty(call, entry, side))
    try:
        tree = jsontree.tree(jsontree.parse(data), at, whole=bool(at))
    except KeyError:
        raise BadValue("at", "a place in the body, such as 3.0.2", at) from None
    except ValueError:
        shown = data[:RAW].decode("utf-8", "replace")
        return Message(side, start, size, headers, None, shown, 0, len(data) > RAW)
    return Message(side, start, size, headers, tree, "", put_together)


def _body(call: Call, side: Side, events: Sequence[Event]) -> tuple[bytes, int]:
    """The body as bytes; of a stream what its events come to, else all of them as a list, and how many they are."""
    if side == "request":
        return call.request_body, 0
    if not events:
        return call.response_body, 0
    whole_answer = streams.assembled(events)
    if whole_answer is not None:
        return json.dumps(whole_answer, ensure_ascii=False).encode("utf-8", "surrogatepass"), len(events)
    told = [event.data if event.data[:1] in ("{", "[") else json.dumps(event.data) for event in events]
    return ("[" + ",".join(told) + "]").encode("utf-8", "surrogatepass"), len(events)


def _why_empty(call: Call, entry: Entry, side: Side) -> str:
    if entry.get("left_out"):
        return _LEFT_OUT.get(str(entry["left_out"]), "It was left out.")
    if entry.get("record_error"):
        return "It could not be recorded."
    if side == "response" and call.row.status is None:
        return "None came."
    if side == "request" and call.row.status == 101:
        return "After the upgrade both sides send messages: see Events."
    return "It has no body."


def _status(call: Call) -> str:
    if call.row.status is None:
        answered = (call.response or {}).get("answered")
        return f"{answered}, by this proxy" if isinstance(answered, int) else "none"
    return f"{call.row.status} {text((call.response or {}).get('reason'))}".rstrip()


# --- bytes


def _raw(call: Call, asked: Asked) -> Raw:
    side: Side = asked["side"]
    data = call.request_body if side == "request" else call.response_body
    first = min(asked["offset"], len(data))
    part = data[first : first + RAW]
    end = part.rfind(b"\n") + 1
    if first + len(part) < len(data) and end > RAW // 2:  # at the end of a line, where there is one
        part = part[:end]
    binary = b"\0" in part or _is_binary(part)
    lines = _hex(part, first) if binary else _text_lines(part, first)
    return Raw(side, len(data), first, first + len(part), tuple(lines), binary)


def _is_binary(part: bytes) -> bool:
    """Whatever is mostly no text; a character that is cut at the edges does not count."""
    return part.decode("utf-8", "replace").count("\ufffd") > 4 + len(part) // 20


_LINE = 1000  # bytes of a line; longer ones are told in several


def _text_lines(part: bytes, offset: int) -> Iterable[RawLine]:
    for line in part.splitlines(keepends=True):
        for start in range(0, len(line), _LINE):
            piece = line[start : start + _LINE]
            shown = piece.rstrip(b"\r\n").decode("utf-8", "replace")
            yield RawLine(offset + start, shown, piece.endswith((b"\r\n", b"\r")))
        offset += len(line)


def _hex(part: bytes, offset: int) -> Iterable[RawLine]:
    for start in range(0, len(part), 16):
        row = part[start : start + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row)
        yield RawLine(offset + start, f"{row.hex(' '):<47}  {shown}")


# --- files


def _file(call: Call, wanted: str) -> File:
    name = f"call-{call.row.id[:13]}"
    match wanted:
        case "curl":
            return File("", "text/plain; charset=utf-8", snippets.curl(call, _name(call, "request")).encode())
        case "python":
            return File("", "text/plain; charset=utf-8", snippets.python(call, _name(call, "request")).encode())
        case "har":
            out = io.BytesIO()
            har.write([call], out)
            return File(f"{name}.har", "application/json", out.getvalue())
        case "sse":
            if "chunks" not in (call.response or {}):
                raise Absent("The answer of this call was no event stream.")
            return File(f"{name}.sse", "application/octet-stream", call.response_body)
    side: Side = "request" if wanted == "request" else "response"
    entry = call.request if side == "request" else call.response
    if entry is None:
        raise Absent(f"There is no {side} of this call in the log.")
    data = call.request_body if side == "request" else call.response_body
    return File(_name(call, side), "application/octet-stream", data)


def _name(call: Call, side: Side) -> str:
    data = call.request_body if side == "request" else call.response_body
    kind = "json" if data[:1] in (b"{", b"[") else "txt" if data and not _is_binary(data[:4096]) else "bin"
    return f"call-{call.row.id[:13]}-{side}.{kind}"


# --- fragments


def part(record: Record, asked: Asked) -> Message:
    """One value of a body, for a tree that is unfolded."""
    row = _row(record, asked.ids["id"])
    call = Call(row, *record.entries(row))
    return _message(call, asked["side"], streams.events_of(call.response), asked["at"])


def rows(record: Record, asked: Asked) -> Events:
    """More rows of the events' table."""
    row = _row(record, asked.ids["id"])
    call = Call(row, *record.entries(row))
    return _events(call, streams.events_of(call.response), asked)


def _fragment(template: str, make: Callable[[Record, Asked], Any]) -> Handler:
    async def show(request: web.Request) -> web.StreamResponse:
        from llm_proxy.explorer.site import SITE, asked_of

        site = request.app[SITE]
        asked = asked_of(request, request.path.removeprefix(ROOT), PARAMS)
        made = await site.ask(asked.viewer, lambda record: site.fragment(template, asked, view=make(record, asked)))
        return web.Response(text=made, content_type="text/html")

    return show


PAGES = (Page("/calls/{id}", "call", "One call.", PARAMS, view, limit=5.0),)
EXTRAS: tuple[Extra, ...] = (
    Extra("/calls/{id}/json", _fragment("call_part.html", part)),
    Extra("/calls/{id}/events", _fragment("call_rows.html", rows)),
)
