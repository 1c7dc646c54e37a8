"""`NAME=value` items of a list at the top of a YAML mapping, edited line by line.

Only a mapping whose keys and items each begin a line is edited; what needs more than a look at single lines is
refused, so that nothing is guessed. Leaves out everything else of YAML.
"""

from __future__ import annotations

import re

from llm_proxy.service.formats.base import Found, Keys, NotEditable, Value, newline, with_line

_NOTHING = re.compile(r" *(?:#.*)?")
_INNER = re.compile(r" +\S.*|-(?: .*)?")
# A value that begins with a quote or a bracket also ends with one, on the same line.
_KEY = re.compile(
    r"""([\w.-]+) *:(?: +("(?:\\.|[^"\\])*"|'[^']*'|\[[^\[\]]*\]|\{[^{}]*\}|[^\s"'#\[{&*!%@`].*?))?(?: +#.*| *)"""
)
_ITEM = re.compile(r""" *- +(["']?)([^=\s"']+)=([^\s"'#]*)\1(?: +#.*| *)""")


class Yaml:
    """A path is the list's key and the name within its item."""

    def look(self, text: str, keys: Keys) -> Found:
        lines = _lines(text)
        items = _items(lines, keys[0])
        if items is None:
            return Found(None, 0)
        found = _named(lines, items, keys[1])
        return Found(found[1][3], 2) if found else Found(None, 1)

    def put(self, text: str, keys: Keys, raw: str) -> str:
        lines = _lines(text)
        items = _items(lines, keys[0])
        if items is None:
            return with_line(with_line(text, f"{keys[0]}:"), f"  - {keys[1]}={raw}")
        if found := _named(lines, items, keys[1]):
            number, item = found
            lines[number] = lines[number][: item.start(3)] + raw + lines[number][item.end(3) :]
            return "".join(lines)
        dashes = [line for line in lines[items.start : items.stop] if line.lstrip(" ").startswith("-")]
        lead = dashes[0][: dashes[0].index("-")] if dashes else "  "
        above = with_line("".join(lines[: items.start]).removesuffix(newline(text)), f"{lead}- {keys[1]}={raw}")
        return above + "".join(lines[items.start :])

    def drop(self, text: str, keys: Keys, depth: int) -> str:
        lines = _lines(text)
        items = _items(lines, keys[0])
        found = _named(lines, items, keys[1]) if items is not None else None
        if items is None or found is None:
            return text
        last = depth < 1 and not any(_INNER.match(lines[n]) for n in items if n != found[0])
        gone = {found[0], items.start - 1} if last else {found[0]}
        return "".join(line for number, line in enumerate(lines) if number not in gone)

    def raw(self, value: Value) -> str:
        return str(value)

    def value(self, raw: str) -> object:
        return raw

    def blank(self, text: str) -> bool:
        return not text.strip()


def _lines(text: str) -> list[str]:
    """The lines with their ends. Raises NotEditable unless each is one of the plain kinds."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    for number, line in enumerate(lines, start=1):
        bare = line.rstrip("\r\n")
        if not any(kind.fullmatch(bare) for kind in (_NOTHING, _INNER, _KEY)):
            raise NotEditable(f"line {number} is more than a plain `key: value`, and such YAML is not edited")
    return lines


def _items(lines: list[str], key: str) -> range | None:
    """The lines below the key that belong to it."""
    tops = [(number, match) for number, line in enumerate(lines) if (match := _KEY.fullmatch(line.rstrip("\r\n")))]
    for position, (number, match) in enumerate(tops):
        if match[1] != key:
            continue
        if match[2]:
            raise NotEditable(f"{key} (line {number + 1}) is not a list with one item a line")
        return range(number + 1, tops[position + 1][0] if position + 1 < len(tops) else len(lines))
    return None


def _named(lines: list[str], items: range, name: str) -> tuple[int, re.Match[str]] | None:
    """The last item `NAME=…` and its line: the last one holds."""
    for number in reversed(items):
        item = _ITEM.fullmatch(lines[number].rstrip("\r\n"))
        if item is not None and item[2] == name:
            return number, item
    return None
