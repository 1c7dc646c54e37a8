"""JSON as a tree that can be folded, each value as it stands in the bytes: large numbers, names that come twice.

Pure. Only so much of a tree is given at once; the rest is named by where it is (`at`: places from the root, "3.0.2"),
to be asked for when it is opened. Leaves out markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["object", "array", "string", "literal"]

_AT_ONCE = 60  # values of a folded part that are given with its parent
_AT_ONCE_CHARS = 3000
_MOST = 400  # items of one object or array; the rest is told by its number
LONGEST = 2000  # characters of a text that are given at once


class Number(str):
    """A number in the digits in which it was written."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object: (name, value) in order, also where a name comes twice."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One value. `name`: in its object, None elsewhere. `text`: a scalar as JSON, cut where `more` characters follow.

    `count`: names or items. `items` is None where they are not given: ask for `at`. `left_out`: items beyond the most.
    """

    kind: Kind
    name: str | None
    text: str
    count: int
    at: str
    items: tuple[Node, ...] | None = ()
    more: int = 0
    left_out: int = 0
    twice: bool = False  # the name comes more than once

    @property
    def label(self) -> str:
        """The name as JSON."""
        return json.dumps(self.name, ensure_ascii=False)


def parse(data: bytes) -> Any:
    """Raises ValueError where it is no JSON, or nested too deeply."""
    try:
        return json.loads(
            data.decode("utf-8-sig", "replace"),
            object_pairs_hook=Pairs,
            parse_int=Number,
            parse_float=Number,
            parse_constant=Number,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def tree(value: Any, at: str = "", *, whole: bool = False) -> Node:
    """The value at `at` with its items, each folded further down. `whole`: a text is not cut. Raises KeyError."""
    name = None
    for place in filter(None, at.split(".")):
        items = _items(value)
        if not place.isdecimal() or len(place) > 9 or int(place) >= len(items):
            raise KeyError(at)
        name, value = items[int(place)]
    return _node(name, value, at, 1, LONGEST if not whole else 1 << 62)


def _items(value: Any) -> Sequence[tuple[str | None, Any]]:
    if isinstance(value, Pairs):
        return value
    return [(None, item) for item in value] if isinstance(value, list) else ()


def _node(name: str | None, value: Any, at: str, levels: int, longest: int = LONGEST) -> Node:
    """With `levels` of items whatever their size, below that only where they are few."""
    items = _items(value)
    if not isinstance(value, list):
        return _scalar(name, value, at, longest)
    kind: Kind = "object" if isinstance(value, Pairs) else "array"
    if levels <= 0 and not _is_small(value):
        return Node(kind, name, "", len(items), at, None)
    names = [one for one, _ in items]
    several = {one for one in names if one is not None and names.count(one) > 1} if len(set(names)) < len(names) else ()
    given = tuple(
        _marked(_node(one, item, f"{at}.{place}" if at else str(place), levels - 1), one in several)
        for place, (one, item) in enumerate(items[:_MOST])
    )
    return Node(kind, name, "", len(items), at, given, left_out=max(0, len(items) - _MOST))


def _marked(node: Node, twice: bool) -> Node:
    if not twice:
        return node
    return Node(node.kind, node.name, node.text, node.count, node.at, node.items, node.more, node.left_out, True)


def _scalar(name: str | None, value: Any, at: str, longest: int) -> Node:
    if isinstance(value, Number):
        return Node("literal", name, str(value), 0, at)
    if isinstance(value, str):
        more = max(0, len(value) - longest)
        return Node("string", name, json.dumps(value[:longest], ensure_ascii=False), 0, at, more=more)
    return Node("literal", name, json.dumps(value), 0, at)


def _is_small(value: Any) -> bool:
    room, chars = _AT_ONCE, _AT_ONCE_CHARS
    for depth, one in _walk(value):
        room -= 1
        chars -= len(one) if isinstance(one, str) else 4
        if room < 0 or chars < 0 or depth > 20:
            return False
    return True


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    waiting = [(0, value)]
    while waiting:
        depth, one = waiting.pop()
        yield depth, one
        waiting += [(depth + 1, item) for _, item in _items(one)]
