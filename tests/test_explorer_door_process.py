"""The explorer's process as the daemon keeps it: started by a visit, woken by the journal, ended when nobody looks."""

import asyncio
import contextlib
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from llm_proxy import unix
from llm_proxy.explorer.bell import Bell
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.serving import serve
from llm_proxy.service import exploring
from llm_proxy.service.exploring import Exploring


class Visits:
    open = 0
    visited_at = 0.0


def _exploring(tmp_path):
    path = str(tmp_path / "explorer.sock")
    options = Options(index=str(tmp_path / "no"), logs=str(tmp_path), state=str(tmp_path), socket=path)
    return Exploring(path, lambda: options)


async def test_it_ends_when_nobody_looks(tmp_path):
    """After a while without visits and without a live page; the next visit starts it again."""
    one, visits = _exploring(tmp_path), Visits()
    visits.open, visits.visited_at = 1, time.monotonic()
    watching = asyncio.create_task(one.watch(visits, idle=0.2))
    one.start()
    await _serves(one)
    pid = one.pid
    await asyncio.sleep(0.6)
    assert one.pid == pid  # a live page is open
    visits.open = 0
    async with asyncio.timeout(30):
        with pytest.raises(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                await asyncio.sleep(0.01)
    visits.visited_at = time.monotonic() + 60
    one.start()
    await _serves(one)
    watching.cancel()
    await one.stop()
    one.start()  # too late
    assert one.pid is None and not Path(one.explorer.address).exists()


async def _serves(one):
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(one.explorer.address)
                writer.close()
                return
            await asyncio.sleep(0.02)


async def test_who_leaves_ends_what_is_made_for_him(tmp_path):
    """A stream that has nothing to say hears of it too, at once."""
    ended, stop = asyncio.Event(), asyncio.Event()

    async def stream(request):
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    app = web.Application()
    app.router.add_get("/", stream)
    path = str(tmp_path / "x.sock")
    serving = asyncio.create_task(serve(app, [unix.bind(path)], stop))
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    async with asyncio.timeout(30):
        await ended.wait()
    stop.set()
    await serving


async def test_the_journals_growth_rings_only_while_somebody_looks(tmp_path):
    """Bytes on stdin wake every stream that waits, its end ends the process; with nobody there, nothing is written."""
    bell, rung, ended = Bell(), [], asyncio.Event()
    reading, writing = os.pipe()
    bell.listen(reading, ended.set)
    waiting = [asyncio.create_task(bell.wait(5)) for _ in range(3)]
    await asyncio.sleep(0)
    os.write(writing, b"\n\n\n")
    assert await asyncio.gather(*waiting) == [True] * 3
    assert await bell.wait(0.05) is False
    os.close(writing)
    async with asyncio.timeout(30):
        await ended.wait()
    os.close(reading)

    one, visits = _exploring(tmp_path), Visits()
    one._visits, one._supervisor = visits, SimpleNamespace(wake=lambda: rung.append(1))
    one.wake()
    assert not rung
    visits.open = 1
    one.wake()
    assert rung
    one._supervisor = None


def test_a_path_without_room_says_so(tmp_path, monkeypatch):
    """Where the system has no other way to a long path: no explorer through the daemon, and the words for it."""
    monkeypatch.setattr(exploring.unix, "LONGEST", 10)
    one = _exploring(tmp_path)
    assert "longer than the 10 bytes" in one.explorer.unavailable and "--explore-port" in one.explorer.unavailable
