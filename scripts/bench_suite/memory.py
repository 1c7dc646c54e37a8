"""Resident memory of the process that carries: idle, with 1,000 open streams, and after large transfers.

VmRSS decides; it counts the ring, which is shared memory, and the pages of the interpreter that other processes share.
What is the process's own (USS) stands beside it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing

from bench_suite.client import head
from bench_suite.contestants import Contestant, Maker, event_source, nginx, ours, ours_asyncio, provider
from bench_suite.streams import open_streams
from bench_suite.table import Row

STREAMS = 1_000
LARGE = 500_000_000
_BLOCK = 1 << 18

Memory = tuple[float, float]  # resident, its own: MB


def rows(*, quick: bool) -> list[Row]:
    found: dict[str, dict[str, Memory]] = {}
    for make in (nginx, ours, ours_asyncio):
        for label, measure in MEASURED.items():
            name, memory = measure(make)
            found.setdefault(label, {})[name] = memory
    return [
        Row(label, {name: f"{rss:.1f} MB ({own:.1f})" for name, (rss, own) in cells.items()}, cells["ours"][0])
        for label, cells in found.items()
    ]


def _idle(make: Maker) -> tuple[str, Memory]:
    with provider() as upstream, make(upstream) as to:
        return to.name, _memory(to)


def _streams(make: Maker) -> tuple[str, Memory]:
    with event_source() as upstream, make(upstream) as to, open_streams(to, STREAMS) as streams:
        streams.delays(4)
        return to.name, _memory(to)


def _transfers(make: Maker) -> tuple[str, Memory]:
    """The larger of what is there after the upload and after the download."""
    with provider() as upstream, make(upstream) as to:
        after = []
        for fake, size in (("fixed=100", LARGE), (f"huge={LARGE}", 2)):
            _transfer(to, fake, size)
            after.append(_memory(to))
        return to.name, max(after)


MEASURED: dict[str, Callable[[Maker], tuple[str, Memory]]] = {
    "memory, idle": _idle,
    "memory, 1,000 open streams": _streams,
    "memory, after 500 MB up and 500 MB down": _transfers,
}


def _transfer(to: Contestant, fake: str, size: int) -> None:
    """One call with a body of `size` bytes, its answer read to the end. Raises ConnectionError where it is short."""
    with closing(socket.create_connection(("127.0.0.1", to.port), timeout=60)) as link:
        link.sendall(head(to, size, fake=fake))
        block = b"x" * _BLOCK
        for start in range(0, size, _BLOCK):
            link.sendall(block[: size - start])
        answer, _, body = link.recv(_BLOCK).partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:])
        left = int(fields[b"content-length"]) - len(body)
        while left:
            piece = link.recv(_BLOCK)
            if not piece:
                raise ConnectionError(f"{to.name} left out {left} bytes of {fake}")
            left -= len(piece)


def _memory(to: Contestant) -> Memory:
    assert to.process is not None
    facts = to.process.memory_full_info()
    return facts.rss / 1e6, facts.uss / 1e6
