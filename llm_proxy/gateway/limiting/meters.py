"""What is limited and counted: the kinds of limits, a meter for each that holds for somebody, what a call wants of it.

A meter is what was used in its span, and what calls under way hold of it: a call's tokens and money are known only
after it, so it holds an estimate until then. Leaves out whose limits there are (`limiting.rules`) and counting
(`limiting.local`, `limiting.shared`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

MINUTE: Final = 60.0
DAY: Final = 86_400


class Span(StrEnum):
    """What uses are counted over: the last sixty seconds; the calendar's day or month in UTC; or nothing but calls that
    are under way.
    """

    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"
    NOW = "now"

    @property
    def is_calendar(self) -> bool:
        return self in (Span.DAY, Span.MONTH)


class What(StrEnum):
    """What is counted. Money is in billionths of a dollar."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    STREAMS = "streams"
    SPEND = "spend"


@dataclass(frozen=True, slots=True)
class Kind:
    """`name` is the column of `limits`. Calls under way hold some of what `is_held`; requests are counted at once."""

    name: str
    what: What
    span: Span
    is_held: bool = field(init=False)  # as all of these, asked several times with every call
    is_calendar: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_held", self.what is not What.REQUESTS)
        object.__setattr__(self, "is_calendar", self.span.is_calendar)


KINDS: Final = (
    Kind("requests_minute", What.REQUESTS, Span.MINUTE),
    Kind("requests_day", What.REQUESTS, Span.DAY),
    Kind("tokens_minute", What.TOKENS, Span.MINUTE),
    Kind("tokens_day", What.TOKENS, Span.DAY),
    Kind("streams", What.STREAMS, Span.NOW),
    Kind("spend_day", What.SPEND, Span.DAY),
    Kind("spend_month", What.SPEND, Span.MONTH),
)


class Subject(StrEnum):
    """Whose limit it is. What is `EVERYBODY`'s has the id 0."""

    EVERYBODY = "everybody"
    TEAM = "team"
    USER = "user"
    KEY = "key"
    ALIAS = "alias"


@dataclass(frozen=True, slots=True)
class Meter:
    """`most` may be used at once or in a span; `name` is what people call the subject, where that is known.

    `key` is the same on every machine, whatever the limit is at the moment.
    """

    subject: Subject
    id: int
    kind: Kind
    most: int
    name: str = ""
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.subject}:{self.id}:{self.kind.name}")


class Want(NamedTuple):
    """`need` has to fit beside what is used and held; 0 only asks. `most` of it is what the meter has at all."""

    meter: Meter
    need: int

    @property
    def amount(self) -> int:
        """No call needs more than there is at all: then it needs all. It needs something: what is used up is closed."""
        return max(1, min(self.need, self.meter.most))


class Standing(NamedTuple):
    """Of one meter, this call included where it passed. `wait`: seconds until the need may fit, 0 where it does."""

    used: int
    held: int
    wait: float = 0.0

    @property
    def taken(self) -> int:
        return self.used + self.held


class Verdict(NamedTuple):
    """Of all meters of a call, in their order, at that time since 1970 by the clock of whoever counts."""

    passed: bool
    standings: tuple[Standing, ...]
    at: float
    shared: bool = False


class Counter(Protocol):
    """Looks at all meters of a call and counts it on all of them, or on none, in one step."""

    async def take(self, id: str, wants: Sequence[Want]) -> Verdict:
        """`id` is the call's, for what it holds."""

    async def look(self, wants: Sequence[Want]) -> Verdict:
        """The same without counting."""

    def settle(self, id: str, wants: Sequence[Want], used: Sequence[int]) -> None:
        """What a call that passed holds is let go of, and what it used in the end is counted. Waits for nothing."""


def period(span: Span, at: float) -> int:
    """The calendar's day since 1970, or month since year 0, at that time since 1970."""
    if span is Span.DAY:
        return int(at // DAY)
    day = datetime.fromtimestamp(at, UTC)
    return day.year * 12 + day.month - 1


def bounds(span: Span, number: int) -> tuple[datetime, datetime]:
    """When a `period` begins and ends."""
    if span is Span.DAY:
        start, end = (datetime.fromtimestamp(day * DAY, UTC) for day in (number, number + 1))
        return start, end
    start, end = (datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC) for month in (number, number + 1))
    return start, end


def left_of(span: Span, at: float) -> float:
    """Seconds until what is used now counts no more."""
    if span.is_calendar:
        return bounds(span, period(span, at))[1].timestamp() - at
    return MINUTE if span is Span.MINUTE else 0.0
