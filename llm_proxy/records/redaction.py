"""Secrets in what is recorded, replaced by tokens such as `<AWS_KEY#3>`: bodies, stream lines, WebSocket messages.

JSON stays JSON, whatever is taken out of it, and a secret that a model told in pieces is taken out of the pieces.
Leaves out what a secret looks like (`secrets`), heads (`wire.masking` has seen to them), what is not text, and who
gives the numbers.
"""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

from llm_proxy.records.first_token import first_token_ms
from llm_proxy.records.secrets import Span, merged, spans
from llm_proxy.wire import eventstream

Entry = dict[str, Any]
Number = Callable[[str, str], int]  # kind, secret -> the number of that secret, the same each time; 0: it has none
Path = tuple[str | int, ...]  # where a value lies in a JSON document


class Redactor:
    """Replaces secrets, those of known shapes and those of one's `own`: (name, regular expression), as in the settings.

    Where an own expression has a group, what its first group matched is the secret.
    """

    def __init__(self, own: Iterable[tuple[str, str]], number: Number) -> None:
        self._own = [(name, re.compile(pattern)) for name, pattern in own]
        self._number = number
        self._clean: set[int] = set()  # hashes of pieces of texts in which there was nothing

    def text(self, text: str) -> str:
        """Plain text or JSON without its secrets."""
        return self._text(text, Counter())

    def entry(self, entry: Entry) -> Entry:
        """The entry without the secrets of its bodies and with `redacted`, how many of each kind; itself if none."""
        counts: Counter[str] = Counter()
        changed: Entry = {}
        body, chunks, websocket = entry.get("body"), entry.get("chunks"), entry.get("websocket")
        if isinstance(body, str) and entry.get("body_encoding") == "base64":
            changed["body"] = self._frames(body, counts)
        elif isinstance(body, str):
            changed["body"] = self._body(body, counts) if entry.get("type") == "response" else self._text(body, counts)
        if isinstance(chunks, list):
            changed["chunks"] = self._items(chunks, counts)
        if isinstance(websocket, dict) and isinstance(websocket.get("messages"), list):
            changed["websocket"] = websocket | {"messages": self._messages(websocket["messages"], counts)}
        if not counts:
            return entry
        return dict(sorted((entry | changed | {"redacted": dict(sorted(counts.items()))}).items()))

    def _text(self, text: str, counts: Counter[str]) -> str:
        text = self._without(text, self._spans(text), counts)
        if not self._own:
            return text
        if text.removeprefix("data:").lstrip()[:1] not in ("{", "[", '"'):
            return self._without(text, self._own_spans(text), counts)
        return _LITERAL.sub(lambda literal: self._literal(literal[0], counts), text)

    def _spans(self, text: str) -> list[Span]:
        """A request sends its history again: pieces in which there was nothing before are known by their hash.

        No secret goes over the end of a JSON object.
        """
        if len(text) < _LONG or text.count(_BETWEEN) > _MOST_PIECES:
            return spans(text)
        pieces = text.split(_BETWEEN)
        new = [piece for piece in pieces if hash(piece) not in self._clean]
        if len(self._clean) > _MOST_CLEAN:
            self._clean.clear()
        if not spans(_BETWEEN.join(new)):
            self._clean.update(map(hash, new))
            return []
        found: list[Span] = []
        at = 0
        for piece in pieces:
            if hash(piece) not in self._clean:
                here = spans(piece)
                found += [Span(at + start, at + end, kind) for start, end, kind in here]
                self._clean.update([hash(piece)] if not here else [])
            at += len(piece) + len(_BETWEEN)
        return found

    def _literal(self, literal: str, counts: Counter[str]) -> str:
        """A string of JSON: what it says is searched for the own secrets, not how it is written."""
        try:
            said = json.loads(literal, strict=False) if "\\" in literal else literal[1:-1]
        except ValueError:
            return literal
        kept = self._without(said, self._own_spans(said), counts)
        return literal if kept is said else json.dumps(kept, ensure_ascii=literal.isascii())

    def _own_spans(self, text: str) -> list[Span]:
        found: list[Span] = []
        for name, pattern in self._own:
            places = (match.span(1 if pattern.groups and match[1] else 0) for match in pattern.finditer(text))
            found = merged(found, [Span(start, end, name) for start, end in places if start < end])
        return found

    def _without(self, text: str, found: Sequence[Span], counts: Counter[str]) -> str:
        if not found:
            return text
        kept: list[str] = []
        done = 0
        for span in found:
            kept += text[done : span.start], self._token(text, span, counts)
            done = span.end
        return "".join((*kept, text[done:]))

    def _token(self, text: str, span: Span, counts: Counter[str]) -> str:
        """The same key is the same secret however deep in JSON it stood."""
        counts[span.kind] += 1
        number = self._number(span.kind, _UNWRITTEN.sub("", text[span.start : span.end]))
        return f"<{span.kind}#{number}>" if number else f"<{span.kind}>"

    # -- what came in pieces

    def _body(self, body: str, counts: Counter[str]) -> str:
        """Of a response: it may be lines or an array of JSON documents, each with a piece of the answer."""
        one = body.lstrip()[:1] == "["
        if (one or "\n{" in body or "\ndata:" in body) and self._is_in_pieces(body):
            body = "\n".join(self._joined([body] if one else body.split("\n"), counts))
        return self._text(body, counts)

    def _items(self, items: list[Entry], counts: Counter[str]) -> list[Entry]:
        """Lines of a stream or messages of one side."""
        texts = [raw if isinstance(raw := item.get("raw"), str) else "" for item in items]
        whole = "".join(texts)
        kept = texts
        if self._is_in_pieces(whole):
            kept = self._joined(texts, counts)
            whole = "".join(kept)
        if self._own or spans(whole):
            kept = [self._text(text, counts) for text in kept]
        if kept is texts:
            return items
        return [item if new == old else item | {"raw": new} for item, old, new in zip(items, texts, kept, strict=True)]

    def _frames(self, body: str, counts: Counter[str]) -> str:
        """Amazon's event streams are binary, and recorded in base64; each frame holds an event like any other's."""
        if not eventstream.begins(_decoded(body[:16])):
            return body
        frames, rest = eventstream.cut(_decoded(body))
        events = [_event(eventstream.payload(frame)) for frame in frames]
        items = self._items([{"raw": event.text} for event in events], counts)
        kept = [
            frame if item["raw"] == event.text else eventstream.with_payload(frame, event.payload(item["raw"]))
            for frame, event, item in zip(frames, events, items, strict=True)
        ]
        return base64.b64encode(b"".join((*kept, rest))).decode()

    def _messages(self, messages: list[Entry], counts: Counter[str]) -> list[Entry]:
        kept = list(messages)
        for side in ("client", "server"):
            places = [place for place, message in enumerate(messages) if message.get("from") == side]
            for place, item in zip(places, self._items([messages[place] for place in places], counts), strict=True):
                kept[place] = item
        return kept

    def _is_in_pieces(self, stream: str) -> bool:
        """Whether a secret may be told in several of the pieces: a quick look that need not be exact.

        It takes the pieces one after the other, so where several texts are told in turn it cannot say no.
        """
        if any(_in_turn(one.pattern.findall(stream)) for one in _TEXTS if one.clue in stream):
            return True
        said = "\0".join(["".join(one.pattern.findall(stream)) for one in _PIECES if one.clue in stream])
        return bool(spans(said) or self._own_spans(said))

    def _joined(self, texts: Sequence[str], counts: Counter[str]) -> list[str]:
        """`texts` without the secrets that go over several of them. Each gets its token where the first part stood."""
        streams: dict[Any, list[_Piece]] = {}
        for number, text in enumerate(texts):
            for stream, path, said in _pieces(text):
                streams.setdefault(stream, []).append(_Piece(number, path, said))
        changes: dict[int, dict[Path, str]] = {}
        for pieces in streams.values():
            for piece in self._without_shared(pieces, counts):
                changes.setdefault(piece.text, {})[piece.path] = piece.said
        return [
            _with_strings(text, changes[number]) if number in changes else text for number, text in enumerate(texts)
        ]

    def _without_shared(self, pieces: Sequence[_Piece], counts: Counter[str]) -> Iterator[_Piece]:
        """The pieces that change. What lies within one piece is left to whoever looks at that."""
        said = "".join(piece.said for piece in pieces)
        starts = [0, *accumulate(len(piece.said) for piece in pieces)]
        changed: dict[int, str] = {}
        for span in reversed(merged(spans(said), self._own_spans(said))):
            first, last = bisect_right(starts, span.start) - 1, bisect_right(starts, span.end - 1) - 1
            if first == last:
                continue
            token = self._token(said, span, counts)
            for number in range(first, last + 1):
                start, text = starts[number], changed.get(number, pieces[number].said)
                before, after = text[: max(0, span.start - start)], text[max(0, span.end - start) :]
                changed[number] = before + (token if number == first else "") + (after if number == last else "")
        return (pieces[number]._replace(said=text) for number, text in changed.items())


_LONG = 2000  # characters
_BETWEEN = "},"
_MOST_PIECES = 20_000  # of one text
_MOST_CLEAN = 100_000  # remembered

# What JSON writes for line ends and slashes, and white space: no part of any key.
_UNWRITTEN = re.compile(r"\\+(?:[nrt]|u[0-9a-fA-F]{4})?|\s")


class _Piece(NamedTuple):
    """A string in one of several texts."""

    text: int
    path: Path
    said: str


class _Field(NamedTuple):
    clue: str
    pattern: re.Pattern[str]


def _field(name: str, value: str) -> _Field:
    return _Field(f'"{name}"', re.compile(rf'"{name}"\s*:\s*{value}'))


def _in_turn(values: Sequence[str]) -> bool:
    """Whether one of them comes back after another."""
    runs = [value for value, _ in groupby(values)]
    return len(runs) > len(set(runs))


# What the providers call the pieces in which text, thoughts and arguments come.
_PIECE_NAMES = (
    *("text", "thinking", "partial_json", "content", "delta", "arguments", "reasoning_content", "reasoning"),
    *("refusal", "response", "transcript", "input"),
)
_PIECES = tuple(_field(name, r'"([^"\\]*(?:\\.[^"\\]*)*)"') for name in _PIECE_NAMES)
# What tells one text from another that comes in turn with it.
_TEXTS = (
    *(_field(name, r"(\d+)") for name in ("index", "output_index", "content_index", "contentBlockIndex")),
    _field("type", r'"(response\.[^"\\]*delta)"'),
)
# By these fields the pieces of one text are told from those of another.
_MARKS = ("type", "index", "output_index", "content_index", "item_id", "contentBlockIndex")
_DEEPEST = 32

_LITERAL = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_JSON_TOKEN = re.compile(rf"({_LITERAL.pattern})|([{{}}\[\]:,])", re.DOTALL)
_DOCUMENT = re.compile(r"(?:data:)?\s*(?=[{\[])")


def _pieces(text: str) -> Iterator[tuple[Any, Path, str]]:
    """(which text it belongs to, path, string) of each piece that an event, or an array of events, holds."""
    begin = _DOCUMENT.match(text)
    if begin is None:
        return
    try:
        document = json.loads(text[begin.end() :], strict=False)
    except (ValueError, RecursionError):
        return
    for number, event in enumerate(document) if isinstance(document, list) else [(-1, document)]:
        for path, marks, said in _strings_of(event, (), ()):
            yield (path, marks), (number, *path) if number >= 0 else path, said


def _strings_of(value: Any, path: Path, marks: tuple[Any, ...]) -> Iterator[tuple[Path, tuple[Any, ...], str]]:
    if len(path) > _DEEPEST:
        return
    if isinstance(value, dict):
        marks += tuple(mark for name in _MARKS if isinstance(mark := value.get(name), str | int))
        for name, item in value.items():
            if not isinstance(item, str):
                yield from _strings_of(item, (*path, name), marks)
            elif name in _PIECE_NAMES:
                yield (*path, name), marks, item
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strings_of(item, (*path, number), marks)


def _with_strings(text: str, new: dict[Path, str] | None) -> str:
    """JSON with other strings at these paths, and everything else as it was."""
    if not new:
        return text
    kept: list[str] = []
    done = 0
    for path, start, end in _literals(text):
        if path in new:
            kept += text[done:start], json.dumps(new[path], ensure_ascii=text[start:end].isascii())
            done = end
    return "".join((*kept, text[done:]))


def _literals(text: str) -> Iterator[tuple[Path, int, int]]:
    """Path, start and end of each string of a JSON document that is no name."""
    path: list[str | int] = []
    name = False  # whether the next string is one
    for token in _JSON_TOKEN.finditer(text):
        literal, mark = token.groups()
        if literal and name:
            path[-1] = json.loads(literal, strict=False)
        elif literal:
            yield tuple(path), *token.span()
        elif mark in "{[":
            path.append("" if mark == "{" else 0)
            name = mark == "{"
        elif mark in "}]":
            path.pop()
            name = False
        elif mark == ",":
            last = path[-1]
            name = isinstance(last, str)
            path[-1] = last + 1 if isinstance(last, int) else last
        else:
            name = False


class _Event(NamedTuple):
    """What a frame says. InvokeModel's payloads have it in base64, `before` and `after` around it."""

    text: str
    before: bytes = b""
    after: bytes = b""

    def payload(self, text: str) -> bytes:
        said = text.encode("utf-8", "surrogatepass")
        return self.before + base64.b64encode(said) + self.after if self.before else said


_WRAPPED = re.compile(rb'"bytes" ?: ?"([A-Za-z0-9+/=]+)"')


def _event(payload: bytes) -> _Event:
    wrapped = _WRAPPED.search(payload)
    try:
        if wrapped is None:
            return _Event(payload.decode())
        start, end = wrapped.span(1)
        return _Event(_decoded(wrapped[1]).decode(), payload[:start], payload[end:])
    except UnicodeDecodeError:
        return _Event("")


def _decoded(text: str | bytes) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


# --- leaving everything out -----------------------------------------------------------------------------------------

_CONTENT = ("body", "body_encoding", "chunks")
_CONTENT_OF_MESSAGE = ("raw", "base64")


def without_content(entry: Entry, why: str) -> Entry:
    """The entry without its body, stream or messages' texts; `left_out` says why. Sizes, heads and times stay."""
    kept = {name: value for name, value in entry.items() if name not in _CONTENT}
    if (waited := first_token_ms(entry)) is not None:
        kept["timing"] = entry["timing"] | {"first_token_ms": waited}
    websocket = kept.get("websocket")
    if isinstance(websocket, dict):
        facts = {name: value for name, value in websocket.items() if not name.endswith("_raw")}
        messages = [
            {name: value for name, value in message.items() if name not in _CONTENT_OF_MESSAGE}
            for message in facts.get("messages", ())
        ]
        kept["websocket"] = facts | {"messages": messages}
    return dict(sorted((kept | {"left_out": why}).items()))
