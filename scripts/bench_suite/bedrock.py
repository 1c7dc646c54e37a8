"""What is added to each frame of 200 concurrent streams of Bedrock's, whose requests we sign: contestants in turn."""

from __future__ import annotations

from contextlib import ExitStack

from bench_suite.added import added_rows, percentiles
from bench_suite.contestants import direct, event_source, nginx, ours_signing
from bench_suite.sse import SETTLE, STREAMS
from bench_suite.streams import open_streams
from bench_suite.table import Row

PATH = "/model/us.anthropic.claude-haiku-4-5-20251001-v1%3A0/converse-stream"


def rows(*, quick: bool) -> list[Row]:
    count, seconds = (1, 3.0) if quick else (5, 6.0)
    rounds = []
    missing = ""
    with ExitStack() as stack:
        upstream = stack.enter_context(event_source("--frames"))
        contestants = [stack.enter_context(make(upstream)) for make in (direct, nginx, ours_signing)]
        for number in range(1, count + 1):
            figures = {}
            for to in contestants:
                with open_streams(to, STREAMS, PATH) as streams:
                    streams.delays(SETTLE)
                    figures[to.name] = percentiles(streams.delays(seconds))
                if to.record and not (to.record.wait_for(STREAMS * number) and not to.record.incomplete):
                    calls, parts = to.record.calls, to.record.incomplete
                    missing = f"{calls} of {STREAMS * number} streams are in the logs, {parts} of these in part"
            rounds.append(figures)
    return added_rows("Bedrock, added {} per frame", rounds, missing)
