"""JSON, and JSON with comments and trailing commas: one value is read or changed, every other byte stays.

A scanner finds where each value begins and ends; edits cut and paste between those places. Leaves out decoding
numbers and escapes, which the standard library does.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from llm_proxy.service.formats.base import Found, Keys, NotEditable, Value, newline

_SPACE = re.compile(r"[ \t\r\n]*")
_COMMENTED = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_ATOM = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)(?![\w.+-])")
_DEEPEST = 100


class Member(NamedTuple):
    """`"name": value` of an object: where it starts, and its value's node."""

    name: str
    start: int
    value: Node


class Node(NamedTuple):
    """A value from `start` to `end`; `members` is None unless it is an object; `commas` stand between its members."""

    start: int
    end: int
    members: list[Member] | None = None
    commas: tuple[int, ...] = ()


class Json:
    """`comments`: whether comments and trailing commas are allowed."""

    def __init__(self, *, comments: bool) -> None:
        self._comments = comments

    def look(self, text: str, keys: Keys) -> Found:
        trail = self._trail(text, keys)
        if len(trail) <= len(keys):
            return Found(None, len(trail) - 1)
        raw = text[trail[-1].start : trail[-1].end]
        if raw.startswith(("{", "[")):
            raise NotEditable(f"{'.'.join(keys)} is not a plain value")
        return Found(raw, len(keys))

    def put(self, text: str, keys: Keys, raw: str) -> str:
        text = text if text.strip() else "{}\n"
        trail = self._trail(text, keys)
        node, missing = trail[-1], keys[len(trail) - 1 :]
        if not missing:
            return text[: node.start] + raw + text[node.end :]
        if node.members is None:
            raise NotEditable(f"{'.'.join(keys[: len(trail) - 1]) or 'the whole'} is not an object")
        return _with_member(text, node, missing, raw)

    def drop(self, text: str, keys: Keys, depth: int) -> str:
        trail = self._trail(text, keys)
        if len(trail) < len(keys) + 1:
            return text
        level = len(keys)
        while level - 1 > depth and len(trail[level - 1].members or ()) == 1:
            level -= 1
        return _without_member(text, trail[level - 1], keys[level - 1])

    def raw(self, value: Value) -> str:
        return json.dumps(value)

    def value(self, raw: str) -> object:
        return json.loads(raw)

    def blank(self, text: str) -> bool:
        return text.split() in ([], ["{}"], ["{", "}"])

    def _trail(self, text: str, keys: Keys) -> list[Node]:
        """The nodes from the root along the keys, as far as they exist. Of equal names the last one holds."""
        if not text.strip():
            return [Node(0, 0, [])]
        trail = [_Scanner(text, self._comments).document()]
        for key in keys:
            inner = [member.value for member in trail[-1].members or () if member.name == key]
            if not inner:
                break
            trail.append(inner[-1])
        return trail


class _Scanner:
    def __init__(self, text: str, comments: bool) -> None:
        self._text = text
        self._comments = comments
        self._space = _COMMENTED if comments else _SPACE

    def document(self) -> Node:
        node = self._value(self._skip(0), 0)
        rest = self._skip(node.end)
        if rest != len(self._text):
            raise self._wrong(rest)
        return node

    def _value(self, at: int, depth: int) -> Node:
        if depth > _DEEPEST:
            raise NotEditable(f"it is nested more than {_DEEPEST} deep")
        first = self._text[at : at + 1]
        if first == "{":
            return self._object(at, depth)
        if first == "[":
            return self._array(at, depth)
        found = _STRING.match(self._text, at) or _ATOM.match(self._text, at)
        if found is None:
            raise self._wrong(at)
        return Node(at, found.end())

    def _object(self, start: int, depth: int) -> Node:
        members: list[Member] = []
        commas: list[int] = []
        at = self._skip(start + 1)
        while self._text[at : at + 1] != "}":
            name = _STRING.match(self._text, at)
            if name is None:
                raise self._wrong(at)
            colon = self._skip(name.end())
            if self._text[colon : colon + 1] != ":":
                raise self._wrong(colon)
            value = self._value(self._skip(colon + 1), depth + 1)
            members.append(Member(json.loads(name[0]), at, value))
            at = self._comma(self._skip(value.end), "}", commas)
        return Node(start, at + 1, members, tuple(commas))

    def _array(self, start: int, depth: int) -> Node:
        at = self._skip(start + 1)
        while self._text[at : at + 1] != "]":
            at = self._comma(self._skip(self._value(at, depth + 1).end), "]", [])
        return Node(start, at + 1)

    def _comma(self, at: int, closing: str, commas: list[int]) -> int:
        """Past a comma, or at the closing bracket."""
        found = self._text[at : at + 1]
        if found == closing:
            return at
        after = self._skip(at + 1)
        if found != "," or (self._text[after : after + 1] == closing and not self._comments):
            raise self._wrong(at)
        commas.append(at)
        return after

    def _skip(self, at: int) -> int:
        found = self._space.match(self._text, at)
        return found.end() if found else at

    def _wrong(self, at: int) -> NotEditable:
        line = self._text.count("\n", 0, at) + 1
        shown = repr(self._text[at : at + 1]) if at < len(self._text) else "the end"
        return NotEditable(f"line {line}: {shown} is not expected there")


def _with_member(text: str, parent: Node, missing: Keys, raw: str) -> str:
    """The member at the end of `parent`, on a line of its own if its neighbour is."""
    end = newline(text)
    outer = _indent(text, parent.start)
    if not parent.members:
        inner = outer + _unit(outer)
        rest = text[parent.start + 1 :]
        closing = "" if text[parent.start + 1 : parent.end - 1].strip() else end + outer
        rest = rest.lstrip(" \t\r\n") if closing else rest
        return f"{text[: parent.start + 1]}{end}{inner}{_member(missing, raw, inner, end)}{closing}{rest}"
    last = parent.members[-1]
    indent = _indent(text, last.start)
    alone = text[: last.start].endswith("\n" + indent)
    lead, end = (f",{end}{indent}", end) if alone else (", ", "")
    return text[: last.value.end] + lead + _member(missing, raw, indent, end) + text[last.value.end :]


def _member(missing: Keys, raw: str, indent: str, end: str) -> str:
    """`"a": {"b": raw}`, over several lines unless `end` is empty."""
    name = json.dumps(missing[0])
    if len(missing) == 1:
        return f"{name}: {raw}"
    deeper = indent + _unit(indent)
    inner = _member(missing[1:], raw, deeper, end)
    return f"{name}: {{{end}{deeper}{inner}{end}{indent}}}" if end else f"{name}: {{{inner}}}"


def _without_member(text: str, parent: Node, name: str) -> str:
    """Without the member, the white space before it and one comma; comments stay."""
    members = parent.members or []
    index = max(number for number, member in enumerate(members) if member.name == name)
    start = len(text[: members[index].start].rstrip(" \t\r\n"))
    end = members[index].value.end
    if index < len(parent.commas):
        comma = parent.commas[index]
        return text[:start] + text[end:comma] + text[comma + 1 :]
    if index:
        comma = parent.commas[index - 1]
        return text[:comma] + text[comma + 1 : start] + text[end:]
    after = text[end:]
    return text[:start] + (after.lstrip(" \t\r\n") if text[start - 1] == "{" else after)


def _indent(text: str, at: int) -> str:
    """The white space that the line of this place begins with."""
    start = text.rfind("\n", 0, at) + 1
    line = text[start:at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(indent: str) -> str:
    return "\t" if indent.startswith("\t") else "  "
