"""What is added to each event of 200 concurrent streams whose events are spread out, the contestants in turn."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from bench_suite.contestants import direct, event_source, nginx, ours, ours_asyncio
from bench_suite.streams import open_streams
from bench_suite.table import Row, added_cells

STREAMS = 200
SETTLE = 2.0  # seconds until all streams flow


def rows(*, quick: bool) -> list[Row]:
    rounds, seconds = (1, 3.0) if quick else (5, 6.0)
    added: dict[str, list[tuple[float, float]]] = {}
    missing = ""
    with ExitStack() as stack:
        upstream = stack.enter_context(event_source())
        contestants = [stack.enter_context(make(upstream)) for make in (direct, nginx, ours, ours_asyncio)]
        for number in range(rounds):
            figures = {}
            for to in contestants:
                with open_streams(to, STREAMS) as streams:
                    streams.delays(SETTLE)
                    delays = sorted(streams.delays(seconds))
                figures[to.name] = delays[len(delays) // 2] / 1000, delays[len(delays) * 99 // 100] / 1000
                if to.record and not to.record.wait_for(STREAMS * (number + 1)):
                    missing = f"{to.name}: {to.record.calls} of {STREAMS * (number + 1)} streams are in the logs"
            base = figures["direct"]
            for name, (p50, p99) in figures.items():
                one = (p50, p99) if name == "direct" else (p50 - base[0], p99 - base[1])
                added.setdefault(name, []).append(one)
    p50 = {name: median(figure[0] for figure in figures) for name, figures in added.items()}
    p99 = {name: median(figure[1] for figure in figures) for name, figures in added.items()}
    return [
        Row("SSE, added p50 per event", added_cells(p50), p50["ours"] / p50["nginx"], missing),
        Row("SSE, added p99 per event", added_cells(p99), None, missing),
    ]
