"""Sums over calls as OpenTelemetry's metrics: the client histograms of the GenAI conventions, version 1.41.1.

They are cumulative from the first call on and survive restarts, because they can be written down: whoever adds a batch
of calls and remembers the outcome together with the batch's place counts each call once, however often it tried. Pure.
Leaves out what a span tells (`otel`) and sending (`lanes.otlp`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from llm_proxy.formats.otel import Span

MOST = 500  # sets of attributes per instrument; what is beyond them is counted together
OVERFLOW: Final = "otel.metric.overflow"  # the specification's word for that

Attributes = tuple[tuple[str, str | int | bool], ...]

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4.0**power for power in range(14))


class Instrument(NamedTuple):
    """A histogram; a value at a boundary falls below it."""

    name: str
    unit: str
    description: str
    boundaries: tuple[float, ...]


TOKENS = Instrument("gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", _TOKENS)
DURATION = Instrument("gen_ai.client.operation.duration", "s", "GenAI operation duration.", _SECONDS)
FIRST = Instrument(
    "gen_ai.client.operation.time_to_first_chunk", "s", "Time to receive the first chunk of a stream.", _SECONDS
)
INSTRUMENTS = {one.name: one for one in (TOKENS, DURATION, FIRST)}

_COMMON = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "server.address",
    "server.port",
)


def measured(span: Span) -> Iterator[tuple[Instrument, float, Attributes]]:
    """What a call adds. Only calls of known APIs add anything."""
    told = span.attributes
    if "gen_ai.operation.name" not in told:
        return
    common = {name: told[name] for name in _COMMON if name in told}
    for kind in ("input", "output"):
        tokens = told.get(f"gen_ai.usage.{kind}_tokens")
        if isinstance(tokens, int):
            yield TOKENS, tokens, _set(common | {"gen_ai.token.type": kind})
    failed = {"error.type": told["error.type"]} if "error.type" in told else {}
    yield DURATION, (span.end_ns - span.start_ns) / 1e9, _set(common | failed)
    first = told.get("gen_ai.response.time_to_first_chunk")
    if isinstance(first, float) and not span.failed:
        yield FIRST, first, _set(common)


def _set(told: Mapping[str, Any]) -> Attributes:
    return tuple(sorted((name, value[:255] if isinstance(value, str) else value) for name, value in told.items()))


@dataclass(frozen=True, slots=True)
class Series:
    """One histogram of one set of attributes. `at_ns` is when it was last sent."""

    buckets: tuple[int, ...]
    sum: float = 0.0
    low: float = 0.0
    high: float = 0.0
    at_ns: int = 0

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def plus(self, value: float, boundaries: tuple[float, ...]) -> Series:
        place = bisect_left(boundaries, value)
        buckets = (*self.buckets[:place], self.buckets[place] + 1, *self.buckets[place + 1 :])
        low, high = (min(self.low, value), max(self.high, value)) if self.count else (value, value)
        return Series(buckets, self.sum + value, low, high, self.at_ns)


Key = tuple[str, Attributes]


@dataclass(frozen=True, slots=True)
class Totals:
    """All series since `start_ns`, the moment at which the first call began; 0 before that."""

    start_ns: int = 0
    series: Mapping[Key, Series] = field(default_factory=dict)

    def plus(self, spans: Iterable[Span]) -> Totals:
        """With these calls added."""
        start, known = self.start_ns, dict(self.series)
        sizes = {name: sum(key[0] == name for key in known) for name in INSTRUMENTS}
        for span in spans:
            for instrument, value, attributes in measured(span):
                start = start or span.start_ns
                key: Key = (instrument.name, attributes)
                if key not in known and sizes[instrument.name] >= MOST:
                    key = (instrument.name, ((OVERFLOW, True),))
                if key not in known:
                    known[key] = Series((0,) * (len(instrument.boundaries) + 1))
                    sizes[instrument.name] += 1
                known[key] = known[key].plus(value, instrument.boundaries)
        return Totals(start, known)

    def changed(self, since: Totals) -> tuple[Key, ...]:
        return tuple(key for key, one in self.series.items() if one.count != _count(since, key))

    def sent(self, keys: Iterable[Key], at_ns: int) -> Totals:
        """After those were sent."""
        return Totals(self.start_ns, dict(self.series) | {key: replace(self.series[key], at_ns=at_ns) for key in keys})

    def to_json(self) -> dict[str, Any]:
        if not self.start_ns:
            return {}
        return {
            "start_ns": self.start_ns,
            "series": [
                [name, dict(attributes), list(one.buckets), one.sum, one.low, one.high, one.at_ns]
                for (name, attributes), one in self.series.items()
            ],
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Totals:
        """What `to_json` gave; instruments that are not counted any more, or otherwise, begin anew."""
        series = {
            (name, tuple(sorted(attributes.items()))): Series(tuple(buckets), *rest)
            for name, attributes, buckets, *rest in told.get("series", ())
            if name in INSTRUMENTS and len(buckets) == len(INSTRUMENTS[name].boundaries) + 1
        }
        return cls(told.get("start_ns", 0), series)


def _count(totals: Totals, key: Key) -> int:
    known = totals.series.get(key)
    return known.count if known is not None else 0
