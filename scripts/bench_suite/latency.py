"""Added latency: one connection, the contestants in turn, round by round, so that all meet the same machine.

A round gives each contestant's p50 and p99 over direct; the figure is the median of the rounds. After a turn of ours
the others wait until its calls are in the session logs: its keeper works during its own turn only.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, closing

from bench_suite.added import added_rows, percentiles
from bench_suite.client import SESSIONS, Client, request
from bench_suite.contestants import direct, nginx, ours, ours_asyncio, provider
from bench_suite.table import Row

# label, bytes of the request's body, whether every head is a new one
CASES = (("2 kB", 2_000, False), ("100 kB", 100_000, False), ("2 kB, no two heads alike", 2_000, True))


def rows(*, quick: bool) -> list[Row]:
    return [row for label, size, fresh in CASES for row in _case(label, size, fresh, quick)]


def _case(label: str, size: int, fresh: bool, quick: bool) -> list[Row]:
    count, calls = (3, 300) if quick else (11, 1000)
    rounds = []
    missing = ""
    with ExitStack() as stack:
        upstream = stack.enter_context(provider())
        contestants = [stack.enter_context(make(upstream)) for make in (direct, nginx, ours, ours_asyncio)]
        clients = [stack.enter_context(closing(Client(contestant))) for contestant in contestants]
        for number in range(count + 1):
            figures = {}
            for client in clients[number % len(clients) :] + clients[: number % len(clients)]:
                to, sent = client.to, calls * (number + 1)
                figures[to.name] = percentiles(_turn(client, size, fresh, calls))
                if to.record and not to.record.wait_for(sent):
                    missing = f"{to.name}: {to.record.calls} of {sent} calls are in the logs"
            rounds.append(figures)
    return added_rows(f"added latency {{}}, {label}", rounds[1:], missing)  # the first one warms up


def _turn(client: Client, size: int, fresh: bool, calls: int) -> list[int]:
    """The time of each call in ns."""
    messages = [
        request(client.to, size, session=number % SESSIONS, fresh=fresh)
        for number in range(calls if fresh else SESSIONS)
    ]
    gc.disable()
    times = [client.call(messages[number % len(messages)]) for number in range(calls)]
    gc.enable()
    return times
