"""Walks a request so that no field of it is passed over: what nobody took is lost by its name.

Leaves out what the fields mean (one module per API).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from llm_proxy.gateway.translate.losses import BadRequest, Losses

T = TypeVar("T")

_WORDS = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object", list: "a list"}


class Fields:
    """One object of the request. `at` is where it stands; null counts as not given."""

    __slots__ = ("_left", "at")

    def __init__(self, value: Any, at: str = "") -> None:
        if not isinstance(value, dict):
            raise BadRequest(at, "must be an object")
        self._left = {name: one for name, one in value.items() if one is not None}
        self.at = at

    def path(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def has(self, name: str) -> bool:
        return name in self._left

    def any(self, name: str, default: Any = None) -> Any:
        """The value, whatever it is; it counts as taken."""
        return self._left.pop(name, default)

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value, which must be a `kind`; without `default` it must be there. Raises BadRequest."""
        if name not in self._left:
            if default is None:
                raise BadRequest(self.path(name), "is required")
            return default
        value = self._left.pop(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadRequest(self.path(name), f"must be {_WORDS[kind]}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        return self.take(name, str, default)

    def one_of(self, name: str, words: Collection[str]) -> str:
        """One of these words, or "" where none is given. Raises BadRequest."""
        word = self.text(name, "")
        if word and word not in words:
            raise BadRequest(self.path(name), f"must be one of {', '.join(filter(None, words))}")
        return word

    def flag(self, name: str) -> bool | None:
        return self.take(name, bool) if name in self._left else None

    def object(self, name: str) -> Fields | None:
        """The object of that name, or None where there is none."""
        return Fields(self._left.pop(name), self.path(name)) if name in self._left else None

    def needed(self, name: str) -> Fields:
        """The object of that name, which must be there. Raises BadRequest."""
        return Fields(self.take(name, dict), self.path(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """Each of a list of objects."""
        for number, one in enumerate(self.take(name, list, [])):
            yield Fields(one, f"{self.path(name)}[{number}]")

    def leave(self, *names: str) -> None:
        """These say nothing that another API would have to know."""
        for name in names:
            self._left.pop(name, None)

    def loosen(self, losses: Losses, *names: str) -> None:
        """These are hints: they are left out, and told, where they say anything."""
        for name in names:
            if self._left.pop(name, None) is not None:
                losses.loosen(self.path(name))

    def finish(self, losses: Losses) -> None:
        """What is left was not understood."""
        for name, value in self._left.items():
            if value not in ([], {}, ""):
                losses.lose(self.path(name))


def parts_of(fields: Fields, name: str, read: Callable[[Fields], T], plain: Callable[[str, str], T]) -> list[T]:
    """Content that is a text or a list of typed objects."""
    value = fields.any(name)
    at = fields.path(name)
    if value in (None, ""):
        return []
    if isinstance(value, str):
        return [plain(value, at)]
    if not isinstance(value, list):
        raise BadRequest(at, "must be a text or a list")
    return [read(Fields(one, f"{at}[{number}]")) for number, one in enumerate(value)]


def compact(value: Any) -> str:
    """JSON as models write it, without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def arguments_of(call: str, at: str) -> dict[str, Any]:
    """A call's arguments as an object. Raises BadRequest where they are none."""
    try:
        value = json.loads(call or "{}")
    except ValueError:
        raise BadRequest(at, "must be JSON, because the API it goes to takes objects only") from None
    if not isinstance(value, dict):
        raise BadRequest(at, "must be a JSON object")
    return value
