"""SIGKILL, at random moments and under load: what a client or the provider has seen is in the session logs, once."""

import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import time

import pytest

from tests.fakeprovider import FakeProvider
from tests.load import Load, check

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds processes in /proc")

KILLS = int(os.environ.get("CRASH_KILLS", "60"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
SMALL_JOURNAL = 64 << 10  # bytes; what is left of one that is settled


def keepers(home):
    """The pids of all keepers of a home, orphans too."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            command = file.read()
            if b"llm_proxy.keeper" in command and f"{home}/".encode() in command:
                found.append(int(name))
    return found


def kill(*pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def journals(daemon):
    return sorted((daemon.state / "journal").iterdir())


async def until(condition, why="", timeout=150):
    """A wide guard: a keeper comes last where others want the processors."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, why() if callable(why) else why
        await asyncio.sleep(0.02)


def at_rest(folder):
    """Whether a journal is settled: its ring is gone, its keeper says that it came to the end."""
    ring = folder / "ring"
    if ring.exists() and os.path.exists(ring.read_text()):
        return False
    try:
        return json.loads((folder / "keeper.json").read_bytes())["state"] == "stopped"
    except FileNotFoundError:  # opened, and killed before its keeper began
        return not list(folder.glob("*.seg"))


def leftovers(daemon):
    """What must not be left once everything is settled: rings, drafts, bytes in journals, odd modes."""
    found = []
    for folder in journals(daemon):
        ring = folder / "ring"
        if ring.exists():
            path = ring.read_text()
            found += [name for name in (path, path + ".new") if os.path.exists(name)]
        size = sum(file.stat().st_size for file in folder.glob("*.seg"))
        if size > SMALL_JOURNAL:
            found.append(f"{folder}: {size} bytes in segments")
        if not at_rest(folder):
            found.append(f"{folder} is not settled")
    for path in daemon.state.rglob("*"):
        if path.stat().st_mode & 0o077:
            found.append(f"{path} is {path.stat().st_mode & 0o777:o}")
    return found


def said(daemon):
    """What the keepers say of themselves, by their journals."""
    return {folder.name: (folder / "keeper.json").read_text() for folder in journals(daemon)}


async def end(daemon, home):
    """Let everything that was left over be settled, then a clean stop."""
    await asyncio.to_thread(daemon.wait_for_recording)
    busy = (daemon.state / "journal" / _own(daemon)).resolve()
    others = [folder for folder in journals(daemon) if folder.resolve() != busy]
    await until(lambda: all(map(at_rest, others)), lambda: f"not settled: {[f for f in others if not at_rest(f)]}")
    assert await asyncio.to_thread(daemon.stop, 30) == 0
    await until(lambda: not keepers(home), lambda: f"keepers live on: {said(daemon)}")


def _own(daemon):
    """The name of the journal folder a daemon writes: its keeper says so."""
    for pid in keepers(daemon.home):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
            if f"PPid:\t{daemon.pid}\n" in file.read():
                with open(f"/proc/{pid}/cmdline", "rb") as command:
                    words = command.read().split(b"\0")
                return os.path.basename(words[words.index(b"--journal") + 1].decode())
    raise AssertionError("it has no keeper")


async def test_nothing_is_lost_to_sigkill(start, free_port, environ, capsys):
    """Whatever a client was given, whole or in part, is in the logs exactly once after CRASH_KILLS kills of proxy and keeper."""
    rng = random.Random(SEED)
    home = environ["HOME"]
    kills = dict.fromkeys(("proxy", "keeper", "writing", "both", "starting", "stopping"), 0)
    async with FakeProvider(limit=1 << 19) as fake:
        daemon = start("--port", str(free_port))
        async with Load(free_port, fake, rng=random.Random(SEED)) as load:
            while sum(kills.values()) < KILLS:
                what = rng.choices(list(kills), (7, 3, 4, 4, 2, 2))[0]
                if what == "starting":  # the life that has just begun does not get far
                    await asyncio.sleep(rng.random() * 0.5)
                else:
                    await load.more(timeout=60)
                    await asyncio.sleep(rng.random() * 0.8)
                if what in ("keeper", "writing"):
                    alive = keepers(home)
                    if not alive or (what == "writing" and not await _a_line(daemon)):
                        continue
                    kill(*alive)
                else:
                    if what == "stopping":
                        daemon.signal(signal.SIGTERM)
                        await asyncio.sleep(rng.random() * 0.5)
                    kill(daemon.pid, *(keepers(home) if what == "both" else ()))
                    await asyncio.to_thread(daemon.wait)
                    loop = rng.choice(("asyncio", "uvloop"))
                    daemon = start("--port", str(free_port), env={"LLM_PROXY_LOOP": loop})
                kills[what] += 1
            await load.more(20)
        await end(daemon, home)
    with capsys.disabled():
        calls = len(load.calls)
        print(f"\nseed {SEED}: kills {kills}, {calls} calls, {calls - load.completed} of them broken", flush=True)
    assert load.completed > KILLS
    check(load, daemon.logs)
    assert not leftovers(daemon)


async def _a_line(daemon):
    """Wait for a line in a session log: its keeper is about to commit. False where none comes."""
    files = list(daemon.logs.rglob("*.jsonl"))
    before = [file.stat().st_size for file in files]
    deadline = time.monotonic() + 1
    while [file.stat().st_size for file in files] == before:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0)
    return True


# Streams that are open long enough to be caught in the middle, beside ordinary calls.
CAUGHT = ((3, "words=60; slow=30", True, 500, False), (1, "words=40", False, 500, False))


async def _loaded(daemon, fake, **options):
    """A load whose streams are under way."""
    load = Load(daemon.port, fake, kinds=CAUGHT, **options)
    await load.__aenter__()
    await load.more(5)
    await until(lambda: sum(bool(call.body) and not call.complete for call in load.calls.values()) > 2)
    return load


def _endings(daemon):
    """Of all lines that have their end: the last of a file may be under way."""
    return [
        json.loads(line).get("ending")
        for file in daemon.logs.rglob("*.jsonl")
        for line in file.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


async def test_the_keeper_of_a_killed_proxy_settles_alone(daemon, fake):
    """Nobody starts the proxy again: within seconds all is in the logs, open calls as interrupted, and the keeper is gone."""
    daemon.wait_for_recording()
    load = await _loaded(daemon, fake)
    daemon.kill()
    await load.__aexit__(None, None, None)
    await until(lambda: not keepers(daemon.home), "the keeper lives on")
    assert not leftovers(daemon)
    check(load, daemon.logs)
    assert _endings(daemon).count("interrupted") > 2


async def test_a_proxy_slow_to_die_is_outwaited(daemon, fake):
    """The kernel ends a killed process's pipe before its lock: the keeper does not take it for alive."""
    daemon.wait_for_recording()
    load = await _loaded(daemon, fake)
    (keeper,) = keepers(daemon.home)
    os.kill(keeper, signal.SIGSTOP)
    daemon.kill()
    with open(daemon.state / "journal/foreground-1/writer.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.kill(keeper, signal.SIGCONT)
        await load.__aexit__(None, None, None)
        await asyncio.sleep(0.5)
    await until(lambda: not keepers(daemon.home), "the keeper lives on")
    assert not leftovers(daemon)
    check(load, daemon.logs)


async def test_open_calls_end_at_the_next_start(start, fake):
    """Proxy and keeper killed together: the next daemon ends their calls as interrupted, before any new one comes."""
    daemon = start("--port", "0")
    daemon.wait_for_recording()
    load = await _loaded(daemon, fake)
    daemon.signal(signal.SIGSTOP)
    kill(*keepers(daemon.home), daemon.pid)
    daemon.wait()
    await load.__aexit__(None, None, None)
    following = start("--port", "0")
    await until(lambda: _endings(daemon).count("interrupted") > 2, lambda: str(_endings(daemon)))
    assert _own(following) == "foreground-1"  # the same journal goes on
    assert following.stop() == 0
    check(load, daemon.logs)
    assert not leftovers(daemon)


async def test_a_pair_killed_before_the_keeper_said_a_word_is_settled_too(start, fake):
    """The journal's last keeper had come to its end, the next one never began: another role's start settles it."""
    first = start("--port", "0")
    first.wait_for_recording()
    first.stop()
    with open(first.state / "journal/foreground-1/keeper.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon = start("--port", "0")
        load = await _loaded(daemon, fake)
        daemon.signal(signal.SIGSTOP)
        kill(*keepers(daemon.home), daemon.pid)
        daemon.wait()
        await load.__aexit__(None, None, None)
    service = start("--service")
    service.wait_for_line("settling .*/foreground-1, left over")
    await until(lambda: at_rest(daemon.state / "journal/foreground-1"))
    assert service.stop() == 0
    check(load, daemon.logs)
    assert not leftovers(daemon)
