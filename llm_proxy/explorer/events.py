"""The events of a call's answer, one by one or in runs: server-sent events, WebSocket messages, lines of JSON.

Pure: entries of the log in, rows out. An event's time is that of its last byte, in milliseconds after the request
arrived. Leaves out markup, and what the answer as a whole means (`dialects`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from llm_proxy.dialects.reading import count, mapping, read_value, sequence, text
from llm_proxy.records.understood import Entry, body_of

SILENCE_MS = 250  # without a byte: longer ones are rows of their own
SHOWN = 320  # characters of an event's data in a row; the whole is in the download

Block = Literal["thinking", "text", "tool", "other", ""]
_LINES_OF_JSON = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/stream+json")


class Delta(NamedTuple):
    """A piece of an answer that an event carries. `place` says of which part; `name` what that part is called."""

    block: Block
    place: str
    kind: str = ""  # of the delta, in the provider's words; "" for an event that only begins or ends the part
    text: str = ""
    name: str = ""


_NO_DELTA = Delta("", "")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `at_ms` is None where the log does not tell it; `side` is who sent a WebSocket message."""

    number: int
    at_ms: int | None
    event: str
    data: str
    octets: int
    delta: Delta = _NO_DELTA
    piece: int = 0  # number of the read that completed it
    side: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: an event, a run of like deltas, or a silence (`silence`, without a number).

    `delta_ms` is the time since the event before. `kind` is what all deltas of a run are; `data` is cut to `SHOWN`
    characters, `characters` tells how many there are.
    """

    first: int | None
    last: int | None
    at_ms: int | None
    until_ms: int | None
    delta_ms: int | None
    event: str
    count: int
    octets: int
    kind: str
    data: str
    characters: int
    silence: bool = False
    side: str = ""


def events_of(response: Entry | None) -> list[Event]:
    """All events of a response entry; empty where it is no stream."""
    if not response:
        return []
    began = _ttfb(response)
    chunks = response.get("chunks")
    if isinstance(chunks, list):
        return list(_server_sent(chunks, began))
    websocket = mapping(response.get("websocket")).get("messages")
    if isinstance(websocket, list):
        return list(_messages(websocket, began))
    if is_lines_of_json(response):
        lines = body_of(response).decode("utf-8", "replace").splitlines()
        return [_event(n, None, "line", line, len(line.encode()) + 1) for n, line in enumerate(filter(None, lines), 1)]
    return []


def is_lines_of_json(response: Entry) -> bool:
    headers = mapping(response.get("headers"))
    told = next((values for name, values in headers.items() if name.lower() == "content-type"), "")
    kind = str(told[0] if isinstance(told, list) and told else told)
    return kind.partition(";")[0].strip().lower() in _LINES_OF_JSON


def rows(events: Sequence[Event], *, every: bool = False) -> Iterator[Row]:
    """The table: with `every`, no runs are made."""
    run: list[Event] = []
    before: int | None = None
    for event in events:
        silent = _between(before, event.at_ms)
        if run and (every or silent > SILENCE_MS or not _alike(run[-1], event)):
            yield _row(run, _start(events, run))
            run = []
        if silent > SILENCE_MS:
            yield Row(None, None, before, event.at_ms, silent, "silence", 0, 0, "", "", 0, silence=True)
        run.append(event)
        before = event.at_ms if event.at_ms is not None else before
    if run:
        yield _row(run, _start(events, run))


def silences(events: Iterable[Event], longer_than: int) -> list[tuple[int, int]]:
    """(from, until) in milliseconds, of the times between two events in which nothing came."""
    found, before = [], None
    for event in events:
        if _between(before, event.at_ms) > longer_than:
            assert before is not None and event.at_ms is not None
            found.append((before, event.at_ms))
        before = event.at_ms if event.at_ms is not None else before
    return found


def _between(before: int | None, at: int | None) -> int:
    return at - before if before is not None and at is not None else 0


def _alike(one: Event, other: Event) -> bool:
    return bool(
        one.delta.kind
        and one.event == other.event
        and one.side == other.side
        and one.delta[:3] == other.delta[:3]  # block, place, kind
    )


def _start(events: Sequence[Event], run: Sequence[Event]) -> int | None:
    place = run[0].number - 2
    return events[place].at_ms if place >= 0 else None


def _row(run: Sequence[Event], before: int | None) -> Row:
    first, last = run[0], run[-1]
    whole = "".join(one.delta.text for one in run) if len(run) > 1 else first.delta.text or first.data
    return Row(
        first=first.number,
        last=last.number,
        at_ms=first.at_ms,
        until_ms=last.at_ms,
        delta_ms=None if len(run) > 1 or before is None or first.at_ms is None else first.at_ms - before,
        event=first.event,
        count=len(run),
        octets=sum(one.octets for one in run),
        kind=first.delta.kind,
        data=whole[:SHOWN],
        characters=len(whole),
        side=first.side,
    )


# --- reading them off the log


def _ttfb(response: Entry) -> int:
    return count(mapping(response.get("timing")).get("ttfb_ms"))


def _at(item: Entry, began: int) -> int | None:
    delta = item.get("delta_ms")
    return began + int(delta) if isinstance(delta, int | float) and abs(delta) < 1 << 53 else None


def _server_sent(chunks: Sequence[Any], began: int) -> Iterator[Event]:
    """Of the lines that chunks are. What never got its blank line is told last, as unfinished."""
    number = piece = octets = 0
    name, data, read = "", [], None
    at: int | None = None
    for item in filter(lambda one: isinstance(one, dict), chunks):
        at = _at(item, began)
        if item.get("ts") != read:
            piece, read = piece + 1, item.get("ts")
        if "frame" in item:
            number += 1
            octets = len(text(item["frame"])) * 3 // 4
            yield Event(number, at, "broken frame", text(item["frame"]), octets, piece=piece)
            octets = 0
            continue
        raw = text(item.get("raw")) or text(item.get("base64"))
        octets += len(raw.encode("utf-8", "surrogatepass"))
        # Amazon's frames are told with their blank line in the same item.
        for line in raw.splitlines() or [""]:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif not line and (data or name):
                number += 1
                yield _event(number, at, name, "\n".join(data), octets, piece=piece)
                name, data, octets = "", [], 0
        if raw.endswith(("\n\n", "\r\n\r\n")) and (data or name):
            number += 1
            yield _event(number, at, name, "\n".join(data), octets, piece=piece)
            name, data, octets = "", [], 0
    if data or name:
        yield replace(_event(number + 1, at, name, "\n".join(data), octets, piece=piece), event="unfinished")


def _messages(messages: Sequence[Any], began: int) -> Iterator[Event]:
    told = (one for one in messages if isinstance(one, dict))
    for number, one in enumerate(told, 1):
        said = text(one.get("raw")) or text(one.get("base64"))
        octets = count(one.get("size")) or len(said.encode("utf-8", "surrogatepass"))
        kind, side = text(one.get("type")), text(one.get("from"))
        if kind == "close":
            said = " ".join(filter(None, (str(one.get("code") or ""), said)))
        found = _event(number, _at(one, began), "" if kind == "text" else kind, said, octets, piece=number)
        yield replace(found, side=side, delta=found.delta if side == "server" else _NO_DELTA)


def _event(number: int, at: int | None, name: str, data: str, octets: int, piece: int = 0) -> Event:
    value = mapping(read_value(data)) if data[:1] == "{" else {}
    shown = name or text(value.get("type")) or text(value.get("object")) or "message"
    return Event(number, at, shown, data, octets, delta_of(name, value), piece)


# --- what an event carries


def delta_of(name: str, data: Entry) -> Delta:
    """The piece of the answer in an event of any API; an empty one where it carries none."""
    kind = text(data.get("type"))
    for wanted, read in _READERS:
        if wanted in data and (found := read(name or kind, data)) is not None:
            return found
    return _NO_DELTA


_ANTHROPIC: dict[str, tuple[Block, str]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("tool", "partial_json"),
    "signature_delta": ("thinking", "signature"),
}
_BLOCKS: dict[str, Block] = {"text": "text", "thinking": "thinking", "redacted_thinking": "thinking"}


def _anthropic(name: str, data: Entry) -> Delta | None:
    place = str(data.get("index"))
    block = mapping(data.get("content_block"))
    if block:
        kind = text(block.get("type"))
        return Delta(_BLOCKS.get(kind, "tool" if "tool" in kind else "other"), place, name=_named(kind, block))
    delta = mapping(data.get("delta"))
    kind = text(delta.get("type"))
    if kind in _ANTHROPIC:
        about, field = _ANTHROPIC[kind]
        return Delta(about, place, kind, text(delta.get(field)))
    return Delta("other", place, kind) if kind else Delta("other", place)


def _named(kind: str, block: Entry) -> str:
    return " ".join(filter(None, (kind, text(block.get("name")))))


def _converse(name: str, data: Entry) -> Delta | None:
    place = str(data.get("contentBlockIndex"))
    tool = mapping(mapping(data.get("start")).get("toolUse"))
    if tool:
        return Delta("tool", place, name=_named("toolUse", tool))
    delta = mapping(data.get("delta"))
    if "text" in delta:
        return Delta("text", place, "text", text(delta["text"]), "text")
    if "toolUse" in delta:
        return Delta("tool", place, "toolUse", text(mapping(delta["toolUse"]).get("input")))
    if "reasoningContent" in delta:
        said = mapping(delta["reasoningContent"])
        return Delta("thinking", place, "reasoningContent", text(said.get("text")), "reasoning")
    return Delta("other", place)


def _chat(_: str, data: Entry) -> Delta | None:
    choice = mapping(next(iter(sequence(data.get("choices"))), None))
    delta = mapping(choice.get("delta"))
    for field in ("reasoning_content", "reasoning"):
        if text(delta.get(field)):
            return Delta("thinking", f"{field}", field, text(delta[field]), "reasoning")
    tool = mapping(next(iter(sequence(delta.get("tool_calls"))), None))
    if tool:
        called = mapping(tool.get("function"))
        said, named = text(called.get("arguments")), text(called.get("name"))
        place = f"tool {tool.get('index', 0)}"
        return Delta("tool", place, "tool_calls" if said or not named else "", said, f"tool {named}" if named else "")
    for field in ("content", "refusal"):
        if text(delta.get(field)):
            return Delta("text", f"{choice.get('index', 0)} {field}", field, text(delta[field]), field)
    if text(choice.get("text")):  # of the older completions
        return Delta("text", str(choice.get("index", 0)), "text", text(choice["text"]), "text")
    return None


def _responses(name: str, data: Entry) -> Delta | None:
    item = mapping(data.get("item"))
    place = str(data.get("output_index", data.get("item_id", "")))
    if item:
        kind = text(item.get("type"))
        block: Block = "thinking" if kind == "reasoning" else "text" if kind == "message" else "tool"
        return Delta(block, place, name=_named(kind, item))
    if not name.endswith(".delta") or not isinstance(data.get("delta"), str):
        return None
    about: Block = "thinking" if "reasoning" in name else "text" if "text" in name or "refusal" in name else "tool"
    return Delta(about, place, name.removeprefix("response.").removesuffix(".delta"), data["delta"])


def _gemini(_: str, data: Entry) -> Delta | None:
    candidate = mapping(next(iter(sequence(data.get("candidates"))), None))
    parts = [mapping(part) for part in sequence(mapping(candidate.get("content")).get("parts"))]
    said = "".join(text(part.get("text")) for part in parts)
    if any("functionCall" in part for part in parts):
        called = mapping(next(part["functionCall"] for part in parts if "functionCall" in part))
        return Delta("tool", "tool", "", "", _named("functionCall", called))
    if not said:
        return None
    thought = any(part.get("thought") is True for part in parts)
    kind = "" if candidate.get("finishReason") else "thought" if thought else "text"
    return Delta("thinking" if thought else "text", "thought" if thought else "text", kind, said, kind or "text")


def _ollama(_: str, data: Entry) -> Delta | None:
    message = mapping(data.get("message"))
    if text(message.get("thinking")):
        return Delta("thinking", "thinking", "thinking", text(message["thinking"]), "thinking")
    said = text(message.get("content")) or text(data.get("response"))
    return Delta("text", "text", "content", said, "text") if said and data.get("done") is not True else None


# By a field that only events of that API have; the first that reads it wins.
_READERS = (
    ("contentBlockIndex", _converse),
    ("choices", _chat),
    ("candidates", _gemini),
    ("done", _ollama),
    ("output_index", _responses),
    ("index", _anthropic),
)


# --- the whole answer again


def assembled(events: Sequence[Event]) -> Any:
    """The answer that a stream's events come to, as its API gives it without streaming; None where not known."""
    values = [mapping(read_value(event.data)) for event in events if event.data[:1] == "{"]
    for value in reversed(values):
        if "response" in value and text(value.get("type")).startswith("response."):
            return value["response"]
    begun = next((value["message"] for value in values if value.get("type") == "message_start"), None)
    return _message(mapping(begun), values) if begun is not None else None


def _message(message: Entry, values: Sequence[Entry]) -> Entry:
    content: dict[int, Entry] = {}
    arguments: dict[int, str] = {}
    message = dict(message)
    for value in values:
        place, kind = count(value.get("index")), value.get("type")
        if kind == "content_block_start":
            content[place] = dict(mapping(value.get("content_block")))
        elif kind == "content_block_delta" and place in content:
            delta = mapping(value.get("delta"))
            about = text(delta.get("type"))
            if about == "input_json_delta":
                arguments[place] = arguments.get(place, "") + text(delta.get("partial_json"))
            elif about in _ANTHROPIC:
                field = _ANTHROPIC[about][1]
                content[place][field] = text(content[place].get(field)) + text(delta.get(field))
        elif kind == "message_delta":
            message |= mapping(value.get("delta"))
            message["usage"] = mapping(message.get("usage")) | mapping(value.get("usage"))
    for place, said in arguments.items():
        value = read_value(said)
        content[place]["input"] = said if value is None else value
    return message | {"content": [content[place] for place in sorted(content)]}
