"""Walks the official SDKs' request types: for each field of each of them, a request in which it is given.

Leaves out what a field means; samples are some thing that fits its type.
"""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from typing_extensions import TypedDict, get_type_hints, is_typeddict

Json = Any
_WRAPPERS = (Required, NotRequired, Annotated)
_UNIONS = (Union, types.UnionType)
_PLAIN = {str: "x", int: 1, float: 1.0, bool: True, object: "x"}


@dataclass(frozen=True, slots=True)
class Place:
    """A field of a type, and two requests: with it and without it."""

    owner: str
    field: str
    given: Json
    without: Json


def sample(kind: Any) -> Json:
    """A value that fits, objects with no more than they must have."""
    kind = next(_alternatives(kind))
    origin = get_origin(kind)
    if origin is Literal:
        return get_args(kind)[-1]  # the first one is often what is usual
    if is_typeddict(kind):
        return {name: sample(hint) for name, hint in _hints(kind).items() if _required(kind, hint)}
    if _listed(kind):
        return [sample(get_args(kind)[0])]
    if origin in (dict, collections.abc.Mapping):
        return {"x": sample(get_args(kind)[1])}
    return _PLAIN.get(kind, "x")


def places(kind: Any, besides: dict[str, Json]) -> Iterator[Place]:
    """Every field that a request of that type can have, with every kind of object that it can hold, outer ones first.

    `besides` are fields that objects have in any case, by the names of their types.
    """
    seen: set[Any] = set()
    waiting: list[tuple[Any, Callable[[Json], Json]]] = [(kind, lambda value: value)]
    for hint, put in waiting:  # grows
        for one, wrap in _objects(hint):
            if one in seen:
                continue
            seen.add(one)
            base = sample(one) | besides.get(one.__name__, {})
            for field, inner in _hints(one).items():
                within = _putting(field, base, wrap, put)
                bare = {name: value for name, value in base.items() if name != field}
                if not _tells_kind(inner):
                    yield Place(one.__name__, field, within(sample(inner)), put(wrap(bare)))
                waiting.append((inner, within))


def _putting(
    field: str, base: Json, wrap: Callable[[Json], Json], put: Callable[[Json], Json]
) -> Callable[[Json], Json]:
    return lambda value: put(wrap({**base, field: value}))


def _objects(
    kind: Any, wrap: Callable[[Json], Json] = lambda value: value
) -> Iterator[tuple[Any, Callable[[Json], Json]]]:
    """The objects that a field can hold, and how it holds them."""
    for one in _alternatives(kind):
        if is_typeddict(one):
            yield one, wrap
        elif _listed(one):
            yield from _objects(get_args(one)[0], lambda value, wrap=wrap: wrap([value]))  # type: ignore[misc]


def _alternatives(kind: Any) -> Iterator[Any]:
    origin = get_origin(kind)
    if origin in _WRAPPERS:
        yield from _alternatives(get_args(kind)[0])
    elif origin in _UNIONS:
        for one in get_args(kind):
            if one is not type(None):
                yield from _alternatives(one)
    else:
        yield kind


def _listed(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and origin not in (dict,) and issubclass(origin, collections.abc.Iterable) and (
        len(get_args(kind)) == 1
    )  # fmt: skip


def _required(kind: Any, hint: Any) -> bool:
    """The SDKs' annotations are texts, so that the types do not know it themselves."""
    return get_origin(hint) is Required or (kind.__total__ and get_origin(hint) is not NotRequired)


def _tells_kind(hint: Any) -> bool:
    """A field that has one value only tells which object it is."""
    kinds = list(_alternatives(hint))
    return len(kinds) == 1 and get_origin(kinds[0]) is Literal and len(get_args(kinds[0])) == 1


def _hints(kind: type[TypedDict]) -> dict[str, Any]:  # type: ignore[valid-type]
    return get_type_hints(kind, include_extras=True)
