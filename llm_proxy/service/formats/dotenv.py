"""`.env` files: `NAME=value` lines. The last one of a name holds, and a quoted value may span lines."""

from __future__ import annotations

import re

from llm_proxy.service.formats.base import Found, Keys, NotEditable, Value, with_line

_LINE = re.compile(
    r"^[ \t]*(?:export[ \t]+)?(?P<name>[\w.-]+)[ \t]*=[ \t]*"
    r"(?P<raw>'[^']*'|\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^\r\n#]*)[^\r\n]*(?:\r?\n)?",
    re.MULTILINE | re.DOTALL,
)


class Dotenv:
    def look(self, text: str, keys: Keys) -> Found:
        line = _last(text, keys)
        return Found(line["raw"].rstrip(), 1) if line else Found(None, 0)

    def put(self, text: str, keys: Keys, raw: str) -> str:
        line = _last(text, keys)
        if line is None:
            return with_line(text, f"{keys[0]}={raw}")
        start = line.start("raw")
        return text[:start] + raw + text[start + len(line["raw"].rstrip()) :]

    def drop(self, text: str, keys: Keys, depth: int) -> str:
        line = _last(text, keys)
        return text[: line.start()] + text[line.end() :] if line else text

    def raw(self, value: Value) -> str:
        return str(value)

    def value(self, raw: str) -> object:
        return raw[1:-1] if len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\"`" else raw

    def blank(self, text: str) -> bool:
        return not text.strip()


def _last(text: str, keys: Keys) -> re.Match[str] | None:
    if "\0" in text:
        raise NotEditable("it holds a NUL")
    (name,) = keys
    found = None
    for line in _LINE.finditer(text):
        if line["name"] == name:
            found = line
    return found
