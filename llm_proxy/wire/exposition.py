"""Prometheus' text format 0.0.4, and the histograms to be put into it. Pure; leaves out what is counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Sample(NamedTuple):
    """One line of a family."""

    labels: Mapping[str, str]
    value: float


class Histogram:
    """Durations by upper bound. `observe` takes nanoseconds; bounds, and what is shown, are seconds."""

    __slots__ = ("_bounds", "_counts", "_limits", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*(f"{bound:g}" for bound in bounds), "+Inf")
        self._limits = tuple(int(bound * 1e9) for bound in bounds)
        self._counts = [0] * len(self._bounds)
        self._sum = 0

    def observe(self, nanoseconds: int) -> None:
        self._counts[bisect_left(self._limits, nanoseconds)] += 1
        self._sum += nanoseconds

    def lines(self, name: str, labels: Mapping[str, str]) -> Iterator[str]:
        below = 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            below += count
            yield _line(f"{name}_bucket", {**labels, "le": bound}, below)
        yield _line(f"{name}_sum", labels, self._sum / 1e9)
        yield _line(f"{name}_count", labels, below)


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """A `counter` or `gauge`, line by line."""
    yield from _head(name, kind, text)
    for labels, value in samples:
        yield _line(name, labels, value)


def histograms(name: str, text: str, each: Iterable[tuple[Mapping[str, str], Histogram]]) -> Iterator[str]:
    """A family of histograms: (labels, histogram)."""
    yield from _head(name, "histogram", text)
    for labels, one in each:
        yield from one.lines(name, labels)


def together(label: str, texts: Mapping[str, str]) -> Iterator[str]:
    """Several texts as one, by the value of the label that each of their samples gets: families must not come twice."""
    families: dict[str, list[str]] = {}
    for value, text in texts.items():
        told = f'{label}="{value.translate(_ESCAPES)}"'
        samples: list[str] = []
        head = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                head = line
            elif line.startswith("# TYPE "):
                samples = families.setdefault(f"{head}\n{line}", [])
            else:
                samples.append(_labelled(line, told))
    for head, samples in families.items():
        yield head
        yield from samples


def _labelled(line: str, told: str) -> str:
    """Of a sample as `_line` writes it: neither a name nor a value has a space or a brace."""
    inside, brace, value = line.rpartition("} ")
    if brace:
        name, _, labels = inside.partition("{")
        return f"{name}{{{told},{labels}}} {value}"
    name, _, value = line.partition(" ")
    return f"{name}{{{told}}} {value}"


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"
