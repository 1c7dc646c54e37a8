"""What a process has noted and not yet written outlives it: the next one, or another beside it, writes it, once."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway import noted as noted_module
from llm_proxy.gateway import usage as usage_module
from llm_proxy.gateway.facts import Provider
from llm_proxy.gateway.noted import PLACE, Noted, left_behind, name_of
from llm_proxy.gateway.usage import BATCH, SPOOL, row
from tests.test_gateway_usage import PRICES, attempt, caller, counted, log_of, rows_of, sqlite, target, until

__all__ = ["sqlite"]

# Notes what a module of tests has, and is killed before any of it is written.
_KILLED = """
import os, signal, sys
from tests import test_gateway_usage_noted as tests
from llm_proxy.gateway.usage import UsageLog
log = UsageLog(None, sys.argv[1], tests.PRICES)
log.begin()
for one in tests.ATTEMPTS:
    log.note(one)
os.kill(os.getpid(), signal.SIGKILL)
"""
_ODD = Usage(input=5, cache_read=7, cache_write_5m=11, cache_write_1h=13, output=17, server_tools=(("web_search", 3),))
ATTEMPTS = [
    *(attempt(f"r{number}", caller=caller(3, team_ids=(8,)), project="apollo") for number in range(BATCH + 5)),
    attempt("odd", target=target(Provider.ANTHROPIC, "claude-sonnet-4-5"), usage=_ODD, stream=True),
    attempt("elsewhere", target=target(base_url="http://127.0.0.1:8000/v1")),
    attempt("refused", 0, target=None, status=404, ending="refused", usage=Usage(), asked="x" * 900 + "\0"),
    attempt("silent", status=None, ending="timed_out", usage=Usage(), first_token=None),
]


def files(folder):
    return sorted(PLACE.glob(f"{name_of(str(folder))}*"))


@pytest.fixture(autouse=True)
def tidy(tmp_path):
    yield
    for path in files(tmp_path):
        path.unlink()


def killed(folder):
    done = subprocess.run([sys.executable, "-c", _KILLED, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


async def running(log, written):
    """Until `written` holds."""
    await asyncio.to_thread(log.begin)
    run = asyncio.create_task(log.run())
    try:
        await until(written)
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await log.close()


async def test_what_a_killed_process_noted_is_written_by_the_next(sqlite, tmp_path):
    """To the last attempt, as if nothing had happened, costs included; nobody else can read it, and nothing stays behind."""
    await asyncio.to_thread(killed, tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)} == {0o600}

    async def written():
        return await counted(sqlite) == len(ATTEMPTS)

    await running(log_of(sqlite, tmp_path), written)
    expected = sorted((row(one, PRICES.cost(one)) for one in ATTEMPTS), key=lambda one: one["id"])
    assert [dict(one) for one in await rows_of(sqlite)] == expected
    assert files(tmp_path) == []


async def test_it_is_written_once_whoever_has_written_of_it(sqlite, tmp_path):
    """Also what was in the store already, and where two processes look at once."""
    await asyncio.to_thread(killed, tmp_path)
    before = log_of(sqlite, tmp_path)
    for one in ATTEMPTS[:50]:
        before.note(one)
    await before.flush()

    async def written():
        return await counted(sqlite) == len(ATTEMPTS)

    await asyncio.gather(*(running(log_of(sqlite, tmp_path), written) for _ in range(2)))
    assert await counted(sqlite) == len(ATTEMPTS)


async def test_while_the_store_is_away_it_goes_to_the_file(monkeypatch, sqlite, tmp_path):
    """And where that is no place either, it stays where it is."""
    monkeypatch.setattr(usage_module, "_PATIENCE", 0.2)
    await asyncio.to_thread(killed, tmp_path)
    log = log_of(sqlite, tmp_path)
    (tmp_path / SPOOL).mkdir()
    async with sqlite.writing():
        await log._take_over()
        assert [path for path in files(tmp_path) if path.stat().st_size]
        (tmp_path / SPOOL).rmdir()
        await log._take_over()
    assert files(tmp_path) == []
    log._away_until = 0
    while await log._bring_back():
        pass
    assert await counted(sqlite) == len(ATTEMPTS)


async def test_who_ends_leaves_nothing_unless_it_is_not_written(monkeypatch, sqlite, tmp_path):
    """A clean stop deletes its files; one that neither store nor file would take from leaves them."""
    monkeypatch.setattr(usage_module, "_PATIENCE", 0.2)
    log = log_of(sqlite, tmp_path)
    log.begin()
    log.note(attempt())
    assert len(files(tmp_path)) == 2
    await log.close()
    assert files(tmp_path) == []
    log = log_of(sqlite, tmp_path)
    log.begin()
    log.note(attempt("late"))
    (tmp_path / SPOOL).mkdir()
    async with sqlite.writing():
        await log.close()
    (lines,) = left_behind(str(tmp_path))
    assert b'"late"' in lines[0]


def test_what_is_written_leaves_the_files(monkeypatch, tmp_path):
    """However long there is always something under way: they do not grow without end."""
    monkeypatch.setattr(noted_module, "_TURN", 1000)
    noted = Noted(str(tmp_path))
    waiting = 0
    for _ in range(500):
        for _ in range(7):
            noted.add(b"x" * 99 + b"\n")
            waiting += 1
        noted.done(waiting - 3)
        waiting = 3
        assert sum(path.stat().st_size for path in files(tmp_path)) < 4000
    noted.done(3)
    noted.add(b"last\n")
    assert [path.read_bytes() for path in files(tmp_path) if path.stat().st_size] == [b"last\n"]
    noted.done(1)
    noted.close()
    assert files(tmp_path) == []


def test_what_finds_no_room_is_in_memory_alone(monkeypatch, tmp_path):
    """It counts all the same, so that what comes later is not taken for done."""
    monkeypatch.setattr(noted_module, "MOST", 25)
    noted = Noted(str(tmp_path))
    for number in range(5):
        noted.add(b"line %d...\n" % number)
    noted.done(4)
    assert sum(path.stat().st_size for path in files(tmp_path)) == 20
    noted.done(1)
    assert sum(path.stat().st_size for path in files(tmp_path)) == 0
    noted.close()


def test_only_what_is_ours_and_left_behind_is_taken(tmp_path):
    """Not a living process' files, not a link, not another folder's, and of what was cut off no half line."""
    alive = Noted(str(tmp_path))
    alive.add(b"{}\n")
    path = PLACE / f"{name_of(str(tmp_path))}link"
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"{}\n")
    assert list(left_behind(str(tmp_path))) == []
    assert list(left_behind(str(tmp_path / "other"))) == []
    path.unlink()
    if os.geteuid() == 0:
        path.write_bytes(b"{}\n")
        os.chown(path, 65534, 65534)
        assert list(left_behind(str(tmp_path))) == []
        path.unlink()
    alive.close()


async def test_lines_that_are_none_are_passed_over(sqlite, tmp_path):
    """What was cut off by the end of the memory, or written by another version."""
    good = usage_module._line(attempt("good"))
    lines = [good[:-9] + b"\n", b"\xff\n", b"[]\n", b'{"row":{},"usage":{},"base_url":""}\n', good]
    path = PLACE / f"{name_of(str(tmp_path))}0"
    path.write_bytes(b"".join(lines))
    await log_of(sqlite, tmp_path)._take_over()
    assert [one["id"] for one in await rows_of(sqlite)] == ["good-1"]
    assert not path.exists()


def test_no_attempt_makes_a_note_fail(tmp_path):
    """What cannot be told is told when it is written, as without these files."""
    log = log_of(None, tmp_path)
    log.begin()
    for odd in (replace(attempt(), seconds=object()), replace(attempt(), asked="\ud800"), attempt("fine")):
        log.note(odd)
    assert len(log._waiting) == 3
    log._noted.close()
    (lines,) = left_behind(str(tmp_path))
    assert len(lines) == 1 and b"fine" in lines[0]
