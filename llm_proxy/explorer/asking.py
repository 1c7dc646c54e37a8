"""What a page was asked: its parameters, read by rule. Pure.

A parameter that no page knows is ignored and named on the page; a value that breaks its rule is a page that says what
is allowed. Leaves out HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

from llm_proxy.index.viewer import NOBODY, Viewer


class BadValue(Exception):
    """A parameter breaks its rule: its name, the rule in words, the value."""

    def __init__(self, name: str, rule: str, value: str) -> None:
        super().__init__(f"{name} must be {rule}, not {value[:200]!r}")
        self.name = name
        self.rule = rule
        self.value = value


class NotFound(Exception):
    """Nothing is recorded under this name; the message says what was looked for."""


class Absent(Exception):
    """It was recorded, but what is asked for has gone or cannot be shown; the message says why."""


class Withheld(Exception):
    """It is recorded, and whoever asks may see that it was, but not what was said."""


@dataclass(frozen=True, slots=True)
class Param:
    """One query parameter. `read` takes its text and raises ValueError; `many`: it may be repeated, giving a tuple."""

    name: str
    sentence: str
    rule: str = "text"
    read: Callable[[str], Any] = str
    many: bool = False
    default: Any = ""
    choices: tuple[str, ...] = ()


def text(name: str, sentence: str, *, many: bool = False) -> Param:
    return Param(name, sentence, "text of at most 500 characters", _short, many=many, default=() if many else "")


def choice(name: str, sentence: str, *choices: str, many: bool = False, default: Any = None) -> Param:
    """One of a few words; the first is the default."""

    def read(value: str) -> str:
        if value not in choices:
            raise ValueError
        return value

    first = () if many else choices[0] if default is None else default
    return Param(name, sentence, "one of " + ", ".join(choices), read, many=many, default=first, choices=choices)


def whole(name: str, sentence: str, low: int, high: int, default: int) -> Param:
    def read(value: str) -> int:
        if not re.fullmatch(r"\d{1,12}", value) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return Param(name, sentence, f"a whole number from {low} to {high}", read, default=default)


def day(name: str, sentence: str) -> Param:
    """A local day, as `date`; None where it was not given."""
    return Param(name, sentence, "a day such as 2026-11-20", date.fromisoformat, default=None)


def _short(value: str) -> str:
    if len(value) > 500:
        raise ValueError
    return value


# Every page has these.
COMMON = (choice("utc", "Show times in UTC instead of local time.", "0", "1"),)


@dataclass(frozen=True, slots=True)
class Asked:
    """A page with the values of its parameters; `ids` are the parts of its path. `unknown` were ignored."""

    path: str
    values: Mapping[str, Any] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    given: tuple[tuple[str, str], ...] = ()  # as they stood in the URL, known ones only
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    viewer: Viewer = NOBODY  # who asks

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def zone(self) -> tzinfo | None:
        """For `datetime.astimezone`: None is this machine's own."""
        return UTC if self.values.get("utc") == "1" else None

    def moment(self, name: str, *, end: bool = False) -> int | None:
        """A `day` parameter as nanoseconds since 1970: its beginning, or with `end` that of the day after."""
        given: date | None = self.values[name]
        if given is None:
            return None
        midnight = datetime.combine(given + timedelta(days=int(end)), time())
        moment = midnight.replace(tzinfo=UTC) if self.zone is not None else midnight.astimezone()
        return int(moment.timestamp()) * 10**9


def asked(
    path: str,
    params: Iterable[Param],
    given: Sequence[tuple[str, str]],
    ids: Mapping[str, str],
    now: datetime,
    viewer: Viewer = NOBODY,
) -> Asked:
    """Read a query string's pairs. Raises BadValue. An empty value counts as not given."""
    known = {one.name: one for one in (*params, *COMMON)}
    values: dict[str, Any] = {one.name: one.default for one in known.values()}
    kept: list[tuple[str, str]] = []
    for name, value in given:
        param = known.get(name)
        if param is None or not value:
            continue
        try:
            read = param.read(value)
        except (ValueError, OverflowError):
            raise BadValue(name, param.rule, value) from None
        values[name] = (*values[name], read) if param.many else read
        kept.append((name, value))
    unknown = tuple(dict.fromkeys(name for name, _ in given if name not in known))
    return Asked(path, values, ids, unknown, tuple(kept), now, viewer)
