"""The proxy's counters, and `/metrics` in Prometheus' text format; the numbers of others come in as gauges."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from llm_proxy.records.exchange import Ending
from llm_proxy.wire.head import ResponseHead

_HEAD_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
_HEAD_BUCKETS_NS = tuple(int(bound * 1e9) for bound in _HEAD_BUCKETS)


class Sample(NamedTuple):
    """One line of a metric family."""

    labels: Mapping[str, str]
    value: float


class Metrics:
    """Plain integers, touched on the hot path."""

    def __init__(self) -> None:
        self.exchanges: Counter[tuple[str, int, int]] = Counter()  # (provider, ending, status)
        self.answers: Counter[str] = Counter()  # our own error answers, by code
        self.connects = 0
        self.retries = 0
        self.faults = 0
        self.accepted = 0
        self._heads = [0] * (len(_HEAD_BUCKETS) + 1)
        self._heads_sum = 0

    def count_exchange(self, provider: str, ending: Ending, head: ResponseHead | None) -> None:
        self.exchanges[provider, int(ending), head.status if head is not None else 0] += 1

    def count_answer(self, code: str) -> None:
        self.answers[code] += 1

    def time_to_head(self, nanoseconds: int) -> None:
        self._heads[bisect_left(_HEAD_BUCKETS_NS, nanoseconds)] += 1
        self._heads_sum += nanoseconds

    def text(self, gauges: Mapping[str, tuple[str, Iterable[Sample]]]) -> str:
        """Everything, with the gauges that others know: name -> (help, samples)."""
        lines: list[str] = []
        _family(
            lines,
            "llm_proxy_exchanges_total",
            "counter",
            "Exchanges by provider, ending and upstream status (0: none came).",
            (
                Sample({"provider": provider, "ending": Ending(ending).label, "status": str(status)}, count)
                for (provider, ending, status), count in sorted(self.exchanges.items())
            ),
        )
        _family(
            lines,
            "llm_proxy_answers_total",
            "counter",
            "Error answers of the proxy itself, by code.",
            (Sample({"code": code}, count) for code, count in sorted(self.answers.items())),
        )
        for name, value, text in (
            ("connections_accepted", self.accepted, "Client connections accepted."),
            ("upstream_connects", self.connects, "Upstream connections opened."),
            ("upstream_retries", self.retries, "Requests sent again because a reused connection had died."),
            ("faults", self.faults, "Internal errors; each is a defect."),
        ):
            _family(lines, f"llm_proxy_{name}_total", "counter", text, [Sample({}, value)])
        name = "llm_proxy_time_to_head_seconds"
        _describe(lines, name, "histogram", "From the request's arrival to the response's head.")
        below = 0
        for bound, count in zip((*map(str, _HEAD_BUCKETS), "+Inf"), self._heads, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        lines += [f"{name}_sum {self._heads_sum / 1e9}", f"{name}_count {below}"]
        for gauge, (text, samples) in gauges.items():
            kind = "counter" if gauge.endswith("_total") else "gauge"
            _family(lines, gauge, kind, text, samples)
        return "\n".join(lines) + "\n"


def _describe(lines: list[str], name: str, kind: str, text: str) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _family(lines: list[str], name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
    _describe(lines, name, kind, text)
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
