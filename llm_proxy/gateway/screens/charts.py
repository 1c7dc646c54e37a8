"""Stacked bars as figures for an SVG: percent across, pixels up. Pure.

Leaves out markup and words: a template draws what stands here, and a table beside it says the same in figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

HEIGHT: Final = 132  # pixels of the highest bar there is room for
_GAP: Final = 0.2  # of a bar's room that stays free
_WIDEST: Final = 4.0  # percent of the whole
_LABELS: Final = 8  # texts that have room below
_NICE: Final = (1, 2, 3, 4, 5, 6, 8, 10)

Unit = Literal["usd", "tokens", "count"]


@dataclass(frozen=True, slots=True)
class Series:
    """One value for each span; `colour` is the class of its parts."""

    name: str
    colour: str
    values: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.values)


@dataclass(frozen=True, slots=True)
class Part:
    colour: str
    y: str
    height: str


@dataclass(frozen=True, slots=True)
class Bar:
    """`room` and `x` to `width` are in percent; `label` is "" where there is no room for it."""

    place: int
    room: str
    room_width: str
    x: str
    width: str
    middle: str
    label: str
    label_number: int  # how many labels are before it
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """`top` is what the uppermost line means. `labels` name the spans, of which the last may still be running."""

    name: str
    title: str
    unit: Unit
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    top: float
    bars: tuple[Bar, ...]

    @property
    def total(self) -> float:
        return sum(one.total for one in self.series)


def chart(name: str, title: str, unit: Unit, labels: Sequence[str], series: Sequence[Series]) -> Chart:
    """All series have as many values as there are labels. Series that are 0 everywhere are left out."""
    shown = tuple(one for one in series if any(one.values))
    top = _top(max((sum(column) for column in zip(*(one.values for one in shown), strict=True)), default=0), unit)
    bars = tuple(_bar(place, labels, shown, top) for place in range(len(labels)))
    return Chart(name, title, unit, tuple(labels), shown, top, bars)


def _top(most: float, unit: Unit) -> float:
    """A round number that is not below `most`, and so is its half; of what comes in wholes both are whole."""
    if most <= 0:
        return 1
    size: float = 10 ** math.floor(math.log10(most))
    round_ones = (size * step for step in _NICE if size * step >= most * (1 - 1e-9))
    return next(one for one in round_ones if unit == "usd" or one % 2 == 0)


def _bar(place: int, labels: Sequence[str], series: Sequence[Series], top: float) -> Bar:
    room = 100 / len(labels)
    width = min(room * (1 - _GAP), _WIDEST)
    every = math.ceil(len(labels) / _LABELS)
    parts, below = [], 0.0
    for one in series:
        if value := one.values[place]:
            height = HEIGHT * value / top
            below += height
            parts.append(Part(one.colour, _figure(HEIGHT - below), _figure(height)))
    middle = room * (place + 0.5)
    return Bar(
        place=place,
        room=_figure(room * place),
        room_width=_figure(room),
        x=_figure(middle - width / 2),
        width=_figure(width),
        middle=_figure(middle),
        label=labels[place] if place % every == 0 else "",
        label_number=place // every,
        parts=tuple(parts),
    )


def _figure(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
