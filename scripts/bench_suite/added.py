"""What a contestant adds to going direct: round by round, so that both met the same machine; then the median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from bench_suite.table import Row

Round = Mapping[str, tuple[float, float]]  # by contestant: p50 and p99 in µs


def percentiles(times: Sequence[int]) -> tuple[float, float]:
    """p50 and p99 of times in ns, as µs."""
    ordered = sorted(times)
    return ordered[len(ordered) // 2] / 1000, ordered[len(ordered) * 99 // 100] / 1000


def added_rows(label: str, rounds: Sequence[Round], void: str) -> list[Row]:
    """Two rows, for p50 and p99; `{}` in the label is where that goes. p50 is held against nginx's, p99 in ms."""
    p50, p99 = _added(rounds, 0), _added(rounds, 1)
    return [
        Row(label.format("p50"), _cells(p50), p50["ours"] / p50["nginx"], void),
        Row(label.format("p99"), _cells(p99), p99["ours"] / 1000, void),
    ]


def _added(rounds: Sequence[Round], which: int) -> dict[str, float]:
    return {
        name: median(one[name][which] - (one["direct"][which] if name != "direct" else 0) for one in rounds)
        for name in rounds[0]
    }


def _cells(figures: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{figure:.0f} µs" if name == "direct" else f"{figure:+.0f} µs" for name, figure in figures.items()}
