"""What changed between two requests: by structure, and inside texts by line and by word.

Pure, and near linear: what is equal is told by comparing encoded text, only the rest is walked. What would take long to
compare exactly is told as replaced. Leaves out markup, and what a change cost (`cache_miss`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

Path = tuple[str | int, ...]
Pieces = tuple[tuple[str, bool], ...]  # (text, whether it is what differs)
Kind = Literal["same", "path", "keep", "del", "add", "break", "more"]

_MOST_PAIRS = 250_000  # comparisons of one list or text with another
_MOST_ITEMS = 3000  # items or lines on a side that are aligned, where few are alike
_MOST_ROWS = 600  # in a section
_MOST_LINES = 40  # of one value that came or went
_LONGEST_LINE = 1000  # characters shown of a line; of a longer one the place that differs
_AROUND = 80  # characters shown around a difference in a long line
_MOST_WORDS = 1200
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a diff. `pieces` joined are its text; `number` is the line's in its own text, where it has one."""

    kind: Kind
    pieces: Pieces
    number: int | None = None

    @property
    def text(self) -> str:
        return "".join(piece for piece, _ in self.pieces)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of both requests. Counts are of its items; tokens are estimates, None where nothing tells the scale."""

    name: str
    changed: int
    added: int
    removed: int
    summary: str
    count_before: int
    count_after: int
    tokens_before: int | None
    tokens_after: int | None
    rows: tuple[Row, ...]
    cut: bool = False  # more changed than `rows` tell

    @property
    def equal(self) -> bool:
        return not (self.changed or self.added or self.removed)


@dataclass(frozen=True, slots=True)
class Break:
    """Where the cached prefix ends: the path of the first difference, and the words for it."""

    path: Path
    text: str


# The names that a part has in each API. Everything else in a request is a parameter.
PARTS = (
    ("Tools", ("tools", "functions", "toolConfig", "tool_config")),
    ("System", ("system", "instructions", "systemInstruction", "system_instruction")),
    ("Messages", ("messages", "contents", "input", "prompt")),
)
_PARTS = frozenset(name for _, names in PARTS for name in names)


def sections(
    before: Any,
    after: Any,
    headers: tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]] = ({}, {}),
    scale: tuple[float | None, float | None] = (None, None),
    at: Break | None = None,
) -> list[Section]:
    """Of two request bodies as plain JSON values. `scale`: tokens per character of each body's JSON."""
    one = before if isinstance(before, dict) else {} if before is None else {"body": before}
    other = after if isinstance(after, dict) else {} if after is None else {"body": after}
    found = [_parameters(one, other, at)]
    for title, names in PARTS:
        for name in names:
            if name in one or name in other:
                found.append(_section(title, name, one, other, scale, at))
    found.append(_headers(*headers))
    return found


def _parameters(one: Mapping[str, Any], other: Mapping[str, Any], at: Break | None) -> Section:
    before, after = ({name: body[name] for name in body if name not in _PARTS} for body in (one, other))
    return _made("Parameters", before, after, (), (None, None), at, len(before), len(after))


def _section(
    title: str,
    name: str,
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    scale: tuple[float | None, float | None],
    at: Break | None,
) -> Section:
    before, after = one.get(name, _NONE), other.get(name, _NONE)
    return _made(title, before, after, (name,), scale, at, _length(before), _length(after))


def _headers(before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> Section:
    one, other = ({name: ", ".join(values) for name, values in each.items()} for each in (before, after))
    return _made("Headers", one, other, (), (None, None), None, len(one), len(other))


def _made(
    title: str,
    before: Any,
    after: Any,
    path: Path,
    scale: tuple[float | None, float | None],
    at: Break | None,
    count_before: int,
    count_after: int,
) -> Section:
    walk = _Walk(scale[1], at)
    codes = _code(before), _code(after)
    if codes[0] != codes[1]:
        walk.differ(before, after, path)
    tokens = [round(len(code) * by) if by is not None else None for code, by in zip(codes, scale, strict=True)]
    return Section(
        name=title,
        changed=walk.changed,
        added=walk.added,
        removed=walk.removed,
        summary=_summary(title, before, after),
        count_before=count_before,
        count_after=count_after,
        tokens_before=tokens[0],
        tokens_after=tokens[1],
        rows=tuple(walk.rows[:_MOST_ROWS]),
        cut=len(walk.rows) > _MOST_ROWS,
    )


_UNITS = {"Tools": "tool", "System": "block", "Messages": "message"}


def _summary(title: str, before: Any, after: Any) -> str:
    """What is equal."""
    if title in _UNITS:
        count = _length(after)
        return f"{count} {_UNITS[title]}{'' if count == 1 else 's'} equal" if _code(before) == _code(after) else ""
    names = [name for name in after if name in before and _code(after[name]) == _code(before[name])]
    if len(names) == len(after) == len(before):
        return (
            ", ".join(names[:6])
            + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            + (": equal" if names else "")
        )
    return f"{len(names)} equal" if names else ""


class _None:
    """What stands where nothing is; null is something."""


_NONE = _None()


def _code(value: Any) -> str:
    if isinstance(value, _None):
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return repr(value)


def _length(value: Any) -> int:
    return 0 if isinstance(value, _None) else len(value) if isinstance(value, list | dict) else 1


class _Walk:
    """Two values walked side by side, and the rows that tell how they differ."""

    def __init__(self, scale: float | None, at: Break | None) -> None:
        self.rows: list[Row] = []
        self.changed = self.added = self.removed = 0
        self._scale = scale
        self._at = at

    def differ(self, before: Any, after: Any, path: Path, title: str = "") -> None:
        """They are not equal."""
        if len(self.rows) > _MOST_ROWS:
            return
        if isinstance(before, dict) and isinstance(after, dict) and len(path) < 40:
            self._objects(before, after, path, title)
        elif isinstance(before, list) and isinstance(after, list) and len(path) < 40:
            self._lists(before, after, path, title)
        else:
            self._leaf(before, after, path, title)

    def _objects(self, before: Mapping[str, Any], after: Mapping[str, Any], path: Path, title: str) -> None:
        found = False
        for name in dict.fromkeys((*before, *after)):
            one, other = before.get(name, _NONE), after.get(name, _NONE)
            if _code(one) != _code(other):
                found = True
                self.differ(one, other, (*path, name), f"{title} › {name}" if title else name)
        if not found:
            self.changed += 1
            self._path(path, title)
            self._row("keep", "the same keys in another order")

    def _lists(self, before: Sequence[Any], after: Sequence[Any], path: Path, title: str) -> None:
        codes = [_code(item) for item in before], [_code(item) for item in after]
        run: list[int] = []
        for one, other in aligned(*codes, _names(before), _names(after)):
            if one is not None and other is not None and codes[0][one] == codes[1][other]:
                run.append(other)
                continue
            self._same(path, title, run, codes[1])
            run = []
            a = _NONE if one is None else before[one]
            b = _NONE if other is None else after[other]
            place = other if other is not None else one
            assert place is not None
            label = f"{title or written(path)}[{place}] {_name(a if other is None else b)}".rstrip()
            self.differ(a, b, (*path, place), label)
        self._same(path, title, run, codes[1])

    def _same(self, path: Path, title: str, run: Sequence[int], codes: Sequence[str]) -> None:
        if not run:
            return
        place = f"[{run[0]}]" if len(run) == 1 else f"[{run[0]}…{run[-1]}]"
        size = sum(len(codes[number]) for number in run)
        tokens = f" · {round(size * self._scale):,} tok" if self._scale is not None else ""
        self._row("same", f"{title or written(path)}{place} equal{tokens}")

    def _leaf(self, before: Any, after: Any, path: Path, title: str) -> None:
        gone, new = isinstance(before, _None), isinstance(after, _None)
        if gone:
            self.added += 1
        elif new:
            self.removed += 1
        else:
            self.changed += 1
        if self._at is not None and gone and path[: len(self._at.path)] == self._at.path:
            self._break()
        blocks = list(_message(after if gone else before if new else None))
        if blocks:  # a message that came or went: each of its blocks under a head of its own
            for name, value in blocks:
                self._path(path, f"{title or written(path)}{f' › {name}' if name else ''}")
                self.rows += _whole("add" if gone else "del", value)
            return
        self._path(path, title)
        rows = list(_values(before, after))
        if self._at is not None and self._at.path[: len(path)] == path:
            place = next((number for number, row in enumerate(rows) if row.kind == "add"), len(rows))
            self.rows += rows[:place]
            self._break()
            self.rows += rows[place:]
        else:
            self.rows += rows

    def _break(self) -> None:
        if self._at is not None:
            self._row("break", self._at.text)
            self._at = None

    def _path(self, path: Path, title: str) -> None:
        self._row("path", title or written(path))

    def _row(self, kind: Kind, text: str) -> None:
        self.rows.append(Row(kind, ((text, False),)))


def written(path: Path) -> str:
    """`tools[17].description`."""
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).removeprefix(".")


def _name(value: Any) -> str:
    """What an item of a list is called: a tool's name, a message's role, a block's type."""
    if not isinstance(value, dict):
        return ""
    function = value.get("function")
    named = value.get("name") or (function.get("name") if isinstance(function, dict) else None)
    told = [value.get("role") or value.get("type"), named]
    return " ".join(str(one)[:80] for one in told if isinstance(one, str) and one)


_SAID = ("text", "thinking", "content", "input", "arguments", "output", "toolUse", "toolResult")


def _message(value: Any) -> Iterator[tuple[str, Any]]:
    """(what it is, what it says) of each block of a message; nothing of what is no message."""
    if not isinstance(value, dict):
        return
    content = value.get("content", value.get("parts"))
    if not isinstance(content, list | str) or not set(value) <= {"role", "content", "parts", "type", "id", "status"}:
        return
    for block in content if isinstance(content, list) else [content]:
        kind = _name(block)
        said = next((block[name] for name in _SAID if name in block), block) if isinstance(block, dict) else block
        marked_here = " · cache_control" if isinstance(block, dict) and "cache_control" in block else ""
        yield f"{kind}{marked_here}", said


def _names(items: Sequence[Any]) -> list[str]:
    return [_name(item) for item in items]


# --- lists


def aligned(
    before: Sequence[str], after: Sequence[str], names: Sequence[str] = (), others: Sequence[str] = ()
) -> list[tuple[int | None, int | None]]:
    """Pairs of places: of equal items, of items that became another, of one that went (x, None) or came (None, y).

    `names` and `others` say what each is called: what changed is paired with what has the same name.
    """
    start, stop = 0, min(len(before), len(after))
    while start < stop and before[start] == after[start]:
        start += 1
    end = 0
    while end < stop - start and before[-1 - end] == after[-1 - end]:
        end += 1
    pairs: list[tuple[int | None, int | None]] = [(place, place) for place in range(start)]
    pairs += _middle(before, after, range(start, len(before) - end), range(start, len(after) - end), names, others)
    pairs += [(len(before) - place, len(after) - place) for place in range(end, 0, -1)]
    return pairs


def _middle(
    before: Sequence[str],
    after: Sequence[str],
    mine: range,
    theirs: range,
    names: Sequence[str],
    others: Sequence[str],
) -> Iterator[tuple[int | None, int | None]]:
    if not _comparable([before[i] for i in mine], [after[i] for i in theirs]):
        yield from _replaced(list(mine), list(theirs), names, others)
        return
    matcher = SequenceMatcher(None, [before[i] for i in mine], [after[i] for i in theirs], autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        yield from _replaced(list(mine[a:b]), list(theirs[c:d]), names, others)


def _comparable(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether aligning them takes no longer than it should: a matcher looks at each pair of equals."""
    if len(mine) * len(theirs) <= _MOST_PAIRS:
        return True
    if max(len(mine), len(theirs)) > _MOST_ITEMS:
        return False
    counts = Counter(theirs)
    return sum(counts[one] for one in mine) <= _MOST_PAIRS


def _replaced(
    mine: list[int], theirs: list[int], names: Sequence[str], others: Sequence[str]
) -> Iterator[tuple[int | None, int | None]]:
    """Items of one name are a pair; the rest went and came."""
    waiting: dict[str, list[int]] = {}
    for place in mine:
        waiting.setdefault(names[place] if names else "", []).append(place)
    partner = {}
    for place in theirs:
        same = waiting.get(others[place] if others else "")
        if same:
            partner[place] = same.pop(0)
    paired = set(partner.values())
    for place in mine:
        if place not in paired:
            yield place, None
    for place in theirs:
        yield partner.get(place), place


# --- values and texts


def _values(before: Any, after: Any) -> Iterator[Row]:
    if isinstance(before, str) and isinstance(after, str):
        yield from texts(before, after)
        return
    for kind, value in (("del", before), ("add", after)):
        if not isinstance(value, _None):
            yield from _whole("del" if kind == "del" else "add", value)


def _whole(kind: Kind, value: Any) -> Iterator[Row]:
    """All of a value that came or went, its first lines."""
    try:
        short = json.dumps(value, ensure_ascii=False, default=str)
        shown = short if len(short) <= 120 else json.dumps(value, ensure_ascii=False, default=str, indent=2)
    except RecursionError:
        shown = "too deeply nested to be shown"
    lines = (value if isinstance(value, str) and "\n" in value else shown).split("\n")
    for line in lines[:_MOST_LINES]:
        yield Row(kind, ((_short(line), False),))
    if len(lines) > _MOST_LINES:
        yield Row("more", ((f"{len(lines) - _MOST_LINES:,} more lines", False),))


def _short(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}… {len(line) - _LONGEST_LINE:,} more"


def texts(before: str, after: str, context: int = 1) -> Iterator[Row]:
    """By lines, changed ones with their words marked, `context` equal lines around."""
    one, other = before.split("\n"), after.split("\n")
    start, stop = 0, min(len(one), len(other))
    while start < stop and one[start] == other[start]:
        start += 1
    end = 0
    while end < stop - start and one[-1 - end] == other[-1 - end]:
        end += 1
    mine, theirs = one[start : len(one) - end], other[start : len(other) - end]
    yield from _kept(other, range(max(0, start - context), start))
    if not _comparable(mine, theirs):
        yield from _lines("del", mine, start)
        yield from _lines("add", theirs, start)
    else:
        yield from _changed(mine, theirs, start, context)
    yield from _kept(other, range(len(other) - end, min(len(other), len(other) - end + context)))


def _changed(mine: Sequence[str], theirs: Sequence[str], start: int, context: int) -> Iterator[Row]:
    opcodes = SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes()
    for what, a, b, c, d in opcodes:
        if what == "equal":
            shown = range(c, d)
            if len(shown) > 2 * context:
                yield from _kept(theirs, shown[:context], start)
                yield Row("same", ((f"{len(shown) - 2 * context:,} lines equal", False),))
                shown = shown[len(shown) - context :]
            yield from _kept(theirs, shown, start)
        elif b - a == d - c:
            marks = [marked(one, other) for one, other in zip(mine[a:b], theirs[c:d], strict=True)]
            yield from (Row("del", was, start + a + number + 1) for number, (was, _) in enumerate(marks))
            yield from (Row("add", now, start + c + number + 1) for number, (_, now) in enumerate(marks))
        else:
            yield from _lines("del", mine[a:b], start + a)
            yield from _lines("add", theirs[c:d], start + c)


def _kept(lines: Sequence[str], places: Iterable[int], start: int = 0) -> Iterator[Row]:
    for place in places:
        yield Row("keep", ((_short(lines[place]), False),), start + place + 1)


def _lines(kind: Kind, lines: Sequence[str], start: int) -> Iterator[Row]:
    for number, line in enumerate(lines[:_MOST_LINES], start + 1):
        yield Row(kind, ((_short(line), False),), number)
    if len(lines) > _MOST_LINES:
        yield Row("more", ((f"{len(lines) - _MOST_LINES:,} more lines", False),))


def marked(before: str, after: str, around: int | None = None) -> tuple[Pieces, Pieces]:
    """Two lines with the words marked in which they differ; of long ones what is around the difference.

    `around`: characters to show before and after it, however short the line is.
    """
    start = common_prefix(before, after)
    end = common_prefix(before[start:][::-1], after[start:][::-1])
    while start and before[start - 1 : start].isalnum():  # whole words
        start -= 1
    while end and before[len(before) - end].isalnum():
        end -= 1
    head, tail = before[:start], before[len(before) - end :] if end else ""
    if around is None:
        around = _LONGEST_LINE if max(len(before), len(after)) <= _LONGEST_LINE else _AROUND
    head = head if len(head) <= around else f"…{head[-around:]}"
    tail = tail if len(tail) <= around else f"{tail[:around]}…"
    found = _marked(before[start : len(before) - end], after[start : len(after) - end])
    one, other = (_joined(((head, False), *middle, (tail, False))) for middle in found)
    return one, other


def _marked(before: str, after: str) -> tuple[Pieces, Pieces]:
    mine, theirs = _WORD.findall(before[:20_000]), _WORD.findall(after[:20_000])
    if len(mine) > _MOST_WORDS or len(theirs) > _MOST_WORDS or not mine or not theirs:
        return ((_short(before), True),), ((_short(after), True),)
    one: list[tuple[str, bool]] = []
    other: list[tuple[str, bool]] = []
    for what, a, b, c, d in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        one.append(("".join(mine[a:b]), what != "equal"))
        other.append(("".join(theirs[c:d]), what != "equal"))
    return tuple(one), tuple(other)


def _joined(pieces: Iterable[tuple[str, bool]]) -> Pieces:
    found: list[tuple[str, bool]] = []
    for text, mark in pieces:
        if text and found and found[-1][1] == mark:
            found[-1] = found[-1][0] + text, mark
        elif text:
            found.append((text, mark))
    return tuple(found)


def common_prefix(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high - 1:  # slices compare quicker than characters
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
