"""What a format can do: find, put and drop one value in a text, told by its path. Pure; no file is touched here.

A value's source (`raw`) is kept rather than the value, so that putting it back gives the same bytes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

Keys = tuple[str, ...]
Value = str | bool


class NotEditable(ValueError):
    """The text breaks the format, or is written in a way that cannot be edited without guessing."""


class Found(NamedTuple):
    """The value's source, None where it is absent; `depth` leading keys of the path exist."""

    raw: str | None
    depth: int


class Format(Protocol):
    """Every function may raise NotEditable."""

    def look(self, text: str, keys: Keys) -> Found: ...

    def put(self, text: str, keys: Keys, raw: str) -> str:
        """The text with that value, in place of an old one or at the end of the innermost part that exists."""

    def drop(self, text: str, keys: Keys, depth: int) -> str:
        """The text without that value, and without parts beyond `depth` keys that are left empty."""

    def raw(self, value: Value) -> str: ...

    def value(self, raw: str) -> object: ...

    def blank(self, text: str) -> bool:
        """Whether it says nothing at all, not even in a comment."""


def newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def with_line(text: str, line: str) -> str:
    """A line added at the end, whether or not the last one is finished."""
    end = newline(text)
    return f"{text}{'' if not text or text.endswith(end) else end}{line}{end}"
