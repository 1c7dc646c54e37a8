"""TOML, edited by tomlkit, which keeps comments and order. The result is read back by the standard library's parser.

An edit after which anything but the one value reads differently is refused.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, MutableMapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from llm_proxy.service.formats.base import Found, Keys, NotEditable, Value


class Toml:
    def look(self, text: str, keys: Keys) -> Found:
        _parsed(text)
        node: Any = _document(text)
        for depth, key in enumerate(keys):
            if not isinstance(node, MutableMapping) or key not in node:
                return Found(None, depth)
            node = node[key]
        if isinstance(node, MutableMapping | list):
            raise NotEditable(f"{'.'.join(keys)} is not a plain value")
        return Found(tomlkit.item(node).as_string(), len(keys))

    def put(self, text: str, keys: Keys, raw: str) -> str:
        wanted = _parsed(text)
        _set(wanted, keys, self.value(raw), lambda _: {})
        return _edited(text, wanted, lambda document: _set(document, keys, tomlkit.value(raw), _table_in))

    def drop(self, text: str, keys: Keys, depth: int) -> str:
        wanted = _parsed(text)
        if not _delete(wanted, keys, depth):
            return text
        return _edited(text, wanted, lambda document: _delete(document, keys, depth))

    def raw(self, value: Value) -> str:
        return json.dumps(value)  # for ASCII text and truth values TOML writes the same

    def value(self, raw: str) -> object:
        return tomllib.loads(f"x = {raw}")["x"]

    def blank(self, text: str) -> bool:
        return not text.strip()


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise NotEditable(str(exc)) from exc


def _document(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, RecursionError) as exc:
        raise NotEditable(str(exc)) from exc


def _table_in(node: Any) -> Any:
    return tomlkit.inline_table() if isinstance(node, InlineTable) else tomlkit.table()


def _set(node: Any, keys: Keys, value: object, table: Callable[[Any], Any]) -> None:
    *outer, last = keys
    for position, key in enumerate(outer):
        if key not in node:
            node[key] = table(node)
        node = node[key]
        if not isinstance(node, MutableMapping):
            raise NotEditable(f"{'.'.join(keys[: position + 1])} is not a table")
    node[last] = value


def _delete(node: Any, keys: Keys, depth: int) -> bool:
    """Whether there was something to delete."""
    key, *inner = keys
    if not isinstance(node, MutableMapping) or key not in node:
        return False
    if not inner:
        del node[key]
        return True
    found = _delete(node[key], tuple(inner), depth - 1)
    if found and depth <= 0 and not node[key]:
        del node[key]
    return found


def _edited(text: str, wanted: dict[str, Any], edit: Callable[[tomlkit.TOMLDocument], object]) -> str:
    """The text after the edit, if it then reads as wanted."""
    document = _document(text)
    try:
        edit(document)
        after = tomlkit.dumps(document)
        if _canonical(tomllib.loads(after)) == _canonical(wanted):
            return after
    except NotEditable:
        raise
    except Exception as exc:  # tomlkit is foreign ground, and rare documents make it stumble in many ways
        raise NotEditable(f"tomlkit cannot edit it: {exc}") from exc
    raise NotEditable("tomlkit cannot edit it without changing something else")


def _canonical(tree: dict[str, Any]) -> str:
    """Equal for equal trees, whatever their order. (As objects they would not do: NaN is not equal to itself.)"""
    return json.dumps(tree, sort_keys=True, default=repr)
