"""Added latency: one connection, the contestants in turn, round by round, so that all meet the same machine.

A round gives each contestant's p50 and p99 over direct; the figure is the median of the rounds. After a turn of ours
the others wait until its calls are in the session logs: its keeper works during its own turn only.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, closing
from statistics import median

from bench_suite.client import SESSIONS, Client, request
from bench_suite.contestants import direct, nginx, ours, ours_asyncio, provider
from bench_suite.table import Row, added_cells

# label, bytes of the request's body, whether every head is a new one
CASES = (("2 kB", 2_000, False), ("100 kB", 100_000, False), ("2 kB, no two heads alike", 2_000, True))
WARM_UP = 200


def rows(*, quick: bool) -> list[Row]:
    return [row for label, size, fresh in CASES for row in _case(label, size, fresh, quick)]


def _case(label: str, size: int, fresh: bool, quick: bool) -> list[Row]:
    rounds, calls = (3, 300) if quick else (11, 1000)
    with ExitStack() as stack:
        upstream = stack.enter_context(provider())
        contestants = [stack.enter_context(make(upstream)) for make in (direct, nginx, ours, ours_asyncio)]
        clients = [stack.enter_context(closing(Client(contestant))) for contestant in contestants]
        sent = dict.fromkeys((contestant.name for contestant in contestants), 0)
        added: dict[str, list[tuple[float, float]]] = {contestant.name: [] for contestant in contestants}
        missing = ""
        for number in range(-1, rounds):
            figures = {}
            turns = clients[number % len(clients) :] + clients[: number % len(clients)]
            for client in turns:
                to = client.to
                count = calls if number >= 0 else WARM_UP
                figures[to.name] = _turn(client, size, fresh, count)
                sent[to.name] += count
                if to.record and not to.record.wait_for(sent[to.name]):
                    missing = f"{to.name}: {to.record.calls} of {sent[to.name]} calls are in the logs"
            if number >= 0:
                base = figures["direct"]
                for name, figure in figures.items():
                    added[name].append((figure[0] - base[0], figure[1] - base[1]) if name != "direct" else figure)
    p50 = {name: median(figure[0] for figure in figures) for name, figures in added.items()}
    p99 = {name: median(figure[1] for figure in figures) for name, figures in added.items()}
    return [
        Row(f"added latency p50, {label}", added_cells(p50), p50["ours"] / p50["nginx"], missing),
        Row(f"added latency p99, {label}", added_cells(p99), None, missing),
    ]


def _turn(client: Client, size: int, fresh: bool, calls: int) -> tuple[float, float]:
    """p50 and p99 in µs."""
    messages = [
        request(client.to, size, session=number % SESSIONS, fresh=fresh)
        for number in range(calls if fresh else SESSIONS)
    ]
    gc.disable()
    times = sorted(client.call(messages[number % len(messages)]) for number in range(calls))
    gc.enable()
    return times[calls // 2] / 1000, times[calls * 99 // 100] / 1000
