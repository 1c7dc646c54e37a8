"""What is added to each event of 200 concurrent streams whose events are spread out, the contestants in turn."""

from __future__ import annotations

from contextlib import ExitStack

from bench_suite.added import added_rows, percentiles
from bench_suite.contestants import direct, event_source, nginx, ours, ours_asyncio
from bench_suite.streams import open_streams
from bench_suite.table import Row

STREAMS = 200
SETTLE = 2.0  # seconds until all streams flow


def rows(*, quick: bool) -> list[Row]:
    count, seconds = (1, 3.0) if quick else (5, 6.0)
    rounds = []
    missing = ""
    with ExitStack() as stack:
        upstream = stack.enter_context(event_source())
        contestants = [stack.enter_context(make(upstream)) for make in (direct, nginx, ours, ours_asyncio)]
        for number in range(1, count + 1):
            figures = {}
            for to in contestants:
                with open_streams(to, STREAMS) as streams:
                    streams.delays(SETTLE)
                    figures[to.name] = percentiles(streams.delays(seconds))
                if to.record and not to.record.wait_for(STREAMS * number):
                    missing = f"{to.name}: {to.record.calls} of {STREAMS * number} streams are in the logs"
            rounds.append(figures)
    return added_rows("SSE, added {} per event", rounds, missing)
