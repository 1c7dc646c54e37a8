"""Disks that refuse, fill up or stall: traffic flows, everybody who asks is told, and recording goes on by itself."""

import asyncio
import collections
import contextlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.load import GAPS, Load, check, read_logs

ROOT = os.geteuid() == 0
LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds processes in /proc")
ORDINARY = ((3, "words=40", False, 500, False), (1, "words=30; slow=2", True, 500, False))
LARGE = ((1, "huge=300000", False, 100_000, False),)
# A wide guard, in seconds: a disk in the way of traffic would cost as much as its stall or for ever.
NEVER_SLOW = 5.0


@pytest.fixture
def mount():
    """`mount` with these arguments, the last one the folder; undone after the test."""
    mounted = []

    def do(*arguments):
        if not ROOT:
            pytest.skip("mounting needs root")
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        if not any(str(word).startswith("remount") for word in arguments):
            mounted.append(arguments[-1])

    yield do
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", folder], check=True)


def _small_disk(mount, folder, size):
    folder.mkdir(mode=0o700, parents=True)
    mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder)


@pytest.fixture
def serve(start):
    """A daemon as a service (so that `--status` finds it) that records, with settings from the environment."""

    def begin(**settings):
        daemon = start("--service", env={f"LLM_PROXY_{name.upper()}": value for name, value in settings.items()})
        daemon.wait_for_recording()
        return daemon

    return begin


def metrics(daemon):
    """{sample: value} of /metrics."""
    link = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)
    with contextlib.closing(link):
        link.request("GET", "/metrics")
        text = link.getresponse().read().decode()
    return {name: float(value) for name, value in re.findall(r"^([a-z_]+) (\S+)$", text, re.MULTILINE)}


def status(command, *options):
    return command("--status", *options).stdout


async def recording(daemon, *wanted, timeout=180):
    """Wait until /health says one of these; the reason it gives."""
    deadline = time.monotonic() + timeout
    while (facts := daemon.health())["recording"] not in wanted:
        assert time.monotonic() < deadline, facts
        await asyncio.sleep(0.05)
    return facts["reason"]


async def told(daemon, command, *wanted):
    """Whoever asks is told that not everything is recorded, and why; the reason."""
    reason = await recording(daemon, *wanted)
    assert reason
    assert metrics(daemon)["llm_proxy_recording_ok"] == 0
    facts = json.loads(await asyncio.to_thread(status, command, "--json"))
    assert facts["running"] and facts["recording"] in wanted and facts["recording_reason"]
    text = await asyncio.to_thread(status, command)
    assert re.search(rf"^Recording: +({'|'.join(wanted)}) \(.+\)$", text, re.MULTILINE), text
    return reason


def keeper(daemon):
    facts = json.loads((daemon.state / "journal/service/keeper.json").read_text())
    return facts["pid"]


def stop(daemon):
    assert daemon.stop(40) == 0


# --- the log folder ------------------------------------------------------------------------------------------------


def _read_only(folder, mount):
    if ROOT:
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)
    else:
        for day in folder.glob("*/*"):
            day.chmod(0o500)


def _writable(folder, mount):
    if ROOT:
        mount("-o", "remount,bind,rw", folder)
    else:
        for day in folder.glob("*/*"):
            day.chmod(0o700)


def _full(folder, mount):
    with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def _space(folder, mount):
    (folder / "ballast").unlink()


def _a_file(folder, mount):
    folder.rename(folder.with_name("aside"))
    folder.write_text("in the way")


def _no_file(folder, mount):
    folder.unlink()
    folder.with_name("aside").rename(folder)


@pytest.mark.parametrize(
    ("spoil", "mend", "why"),
    [
        (_read_only, _writable, "Read-only file system" if ROOT else "Permission denied"),
        (_full, _space, "No space left on device"),
        (_a_file, _no_file, "File exists|Not a directory"),
    ],
    ids=["read-only", "full", "a file in its place"],
)
async def test_a_log_folder_that_refuses(serve, command, fake, tmp_path, mount, spoil, mend, why):
    """Traffic flows at its pace, /health, /metrics and --status say why, and afterwards nothing is missing or twice."""
    folder = tmp_path / "logs"
    if spoil is _full:
        _small_disk(mount, folder, "64m")
    daemon = await asyncio.to_thread(lambda: serve(log_dir=str(folder)))
    async with Load(daemon.port, fake, kinds=ORDINARY) as load:
        await load.more(20)
        async with asyncio.timeout(60):  # the keeper has begun to write
            while not any(folder.glob("*/*/*.jsonl")):
                await asyncio.sleep(0.02)
        spoil(folder, mount)
        # Files that are open may go on being written; those of new sessions cannot be made.
        async with Load(daemon.port, fake, name="new", kinds=ORDINARY) as new:
            assert re.search(why, await told(daemon, command, "degraded"))
            await new.more(50)
            await load.more(50)
            mend(folder, mount)
            await recording(daemon, "ok")
            await load.more(20)
    assert max(load.slowest(), new.slowest()) < NEVER_SLOW
    await asyncio.to_thread(stop, daemon)
    check(load, folder)
    check(new, folder)


async def test_a_log_folder_that_is_removed(serve, fake):
    """Under load, again and again: it is made anew, and what is called after the last removal is all there, once."""
    daemon = await asyncio.to_thread(serve)
    async with Load(daemon.port, fake, kinds=ORDINARY) as load:
        for _ in range(10):
            await load.more(10)
            shutil.rmtree(daemon.logs, ignore_errors=True)
        removed = len(load.calls)
        await load.more(50)
    assert load.slowest() < NEVER_SLOW
    await asyncio.to_thread(stop, daemon)
    entries = [entry for entries in read_logs(daemon.logs).values() for entry in entries]
    recorded = collections.Counter(entry["headers"]["X-Call"][0] for entry in entries if entry["type"] == "request")
    assert set(recorded.values()) == {1}
    assert set(list(load.calls)[removed:]) <= set(recorded)


@LINUX
async def test_writes_that_are_cut_short(serve, command, fake):
    """A limit on file sizes takes half a line: it is taken back, and written whole when the limit is lifted."""
    daemon = await asyncio.to_thread(serve)
    async with Load(daemon.port, fake, count=1, kinds=LARGE) as load:
        await load.more(30)  # beyond the size of every other file the keeper writes
        await asyncio.to_thread(daemon.entries, 10, lambda entries: len(entries) > 60)
        (file,) = daemon.logs.rglob("*.jsonl")
        pid = keeper(daemon)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (file.stat().st_size + 250_000, resource.RLIM_INFINITY))
        begun = len(load.calls)
        assert "File too large" in await told(daemon, command, "degraded")
        await load.more(10)
        assert load.slowest(begun) < NEVER_SLOW
        read_logs(daemon.logs)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await recording(daemon, "ok")
    await asyncio.to_thread(stop, daemon)
    check(load, daemon.logs)


# --- the journal ---------------------------------------------------------------------------------------------------


async def test_a_full_state_folder(serve, command, environ, fake, mount):
    """Neither journal nor database can grow: traffic flows, what is lost is counted, told as a gap, and ends with the want of space."""
    state = Path(environ["HOME"], ".local/state/llm-proxy")
    _small_disk(mount, state, "24m")
    daemon = await asyncio.to_thread(lambda: serve(journal_ring_size="1 MiB"))
    async with Load(daemon.port, fake, kinds=ORDINARY) as load:
        await load.more(20)
        _full(state, mount)
        begun = len(load.calls)
        assert "No space left on device" in await told(daemon, command, "stopped")
        async with asyncio.timeout(60):
            while metrics(daemon)["llm_proxy_record_lost_exchanges_total"] < 20:
                await load.more(50)
    assert load.slowest(begun) < NEVER_SLOW
    _space(state, mount)
    # Without another call: what had to wait is written, and what is lost is told.
    await recording(daemon, "ok")
    counted = metrics(daemon)
    await asyncio.to_thread(
        daemon.entries, 20, lambda entries: _all_told(entries, counted["llm_proxy_record_lost_exchanges_total"])
    )
    async with Load(daemon.port, fake, name="after", kinds=ORDINARY) as after:
        await after.more(50)
    await asyncio.to_thread(stop, daemon)
    assert check(after, daemon.logs, lossy=True) == (0, 0)
    missing, truncated = check(load, daemon.logs, lossy=True)
    assert (missing, truncated > 0) == (counted["llm_proxy_record_lost_exchanges_total"], True)
    gaps = [json.loads(line) for line in (daemon.logs / GAPS).read_text().splitlines()]
    assert sum(gap["exchanges"] for gap in gaps) == missing
    assert sum(gap["frames"] for gap in gaps) == counted["llm_proxy_record_dropped_frames_total"]
    assert all(gap["from"] < gap["to"] for gap in gaps)


def _all_told(entries, lost):
    """Whether every call has its response, and every lost one is in a gap."""
    counts = collections.Counter(entry["type"] for entry in entries)
    return counts["request"] == counts["response"] and lost == sum(entry.get("exchanges", 0) for entry in entries)


async def test_a_start_without_space(start, environ, fake, mount):
    """The journal cannot even be begun: calls are carried and counted as lost, and recording begins with the space."""
    state = Path(environ["HOME"], ".local/state/llm-proxy")
    _small_disk(mount, state, "24m")
    _full(state, mount)
    daemon = start("--port", "0")
    daemon.wait_for_line("NOT RECORDING: the journal cannot be opened .*No space left on device")
    async with Load(daemon.port, fake, kinds=ORDINARY) as load:
        await load.more(50)
    assert load.slowest() < NEVER_SLOW
    assert daemon.health()["recording"] == "stopped"
    _space(state, mount)
    await recording(daemon, "ok")
    async with Load(daemon.port, fake, name="after", kinds=ORDINARY) as after:
        await after.more(50)
    counted = metrics(daemon)
    await asyncio.to_thread(stop, daemon)
    assert check(after, daemon.logs, lossy=True) == (0, 0)
    missing, _ = check(load, daemon.logs, lossy=True)
    (gap,) = (json.loads(line) for line in (daemon.logs / GAPS).read_text().splitlines())
    assert missing == len(load.calls) == gap["exchanges"] == counted["llm_proxy_record_lost_exchanges_total"]


@LINUX
async def test_a_journal_at_its_cap(serve, command, fake):
    """The keeper stands still until the journal is at its cap: bodies are left out, calls are not; then it catches up."""
    daemon = await asyncio.to_thread(lambda: serve(journal_cap="16 MiB"))
    pid = keeper(daemon)
    async with Load(daemon.port, fake, kinds=(*ORDINARY, *LARGE)) as load:
        await load.more(20)
        os.kill(pid, signal.SIGSTOP)
        begun = len(load.calls)
        assert "more than 16777216 bytes" in await told(daemon, command, "degraded")
        await load.more(50)
        assert load.slowest(begun) < NEVER_SLOW
        size = metrics(daemon)["llm_proxy_journal_segment_bytes"]
        assert size < 24 << 20, "the cap does not hold"
    os.kill(pid, signal.SIGCONT)
    await recording(daemon, "ok")  # without load: a keeper comes last where processors are short
    async with Load(daemon.port, fake, name="after", kinds=ORDINARY) as after:
        await after.more(20)
    await asyncio.to_thread(stop, daemon)
    missing, truncated = check(load, daemon.logs, lossy=True)
    assert missing == 0 and truncated > 0
    assert check(after, daemon.logs, lossy=True) == (0, 0)


@pytest.fixture
def slow_calls():
    """Attach strace to a process to delay or fail system calls; gives a function that lets go of it."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace (Debian: strace)")
    running = []

    def attach(pid, *injections):
        calls = ",".join(injection.partition(":")[0] for injection in injections)
        options = [word for injection in injections for word in ("-e", f"inject={injection}")]
        process = subprocess.Popen(
            ["strace", "-f", "-q", "-p", str(pid), "-e", f"trace={calls}", *options, "-o", "/dev/null"],
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        deadline = time.monotonic() + 60
        while not all(_traced(f"/proc/{pid}/task/{task}/status") for task in os.listdir(f"/proc/{pid}/task")):
            if process.poll() is not None:
                pytest.skip(f"strace cannot attach here: {process.stderr.read().strip()}")
            assert time.monotonic() < deadline
            time.sleep(0.02)

        def let_go():
            process.terminate()
            process.wait(20)
            process.stderr.close()

        return let_go

    yield attach
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


def _traced(path):
    with open(path) as file:
        return "TracerPid:\t0\n" not in file.read()


@LINUX
async def test_a_stalling_disk(serve, fake, slow_calls):
    """Every write and sync of the journal takes 3 s: no call waits for one, and all of it is recorded."""
    daemon = await asyncio.to_thread(lambda: serve(loop="asyncio"))  # its sockets never use writev
    async with Load(daemon.port, fake, kinds=ORDINARY) as load:
        await load.more(20)
        stall = "delay_enter=3000000"
        let_go = await asyncio.to_thread(slow_calls, daemon.pid, f"writev:{stall}", f"fdatasync:{stall}")
        begun = len(load.calls)
        async with asyncio.timeout(30):
            while metrics(daemon)["llm_proxy_journal_backlog_bytes"] < 200_000:
                await load.more(10)
        await load.more(200)
        assert load.slowest(begun) < NEVER_SLOW
        await asyncio.to_thread(let_go)
        await load.more(20)
    await asyncio.to_thread(stop, daemon)
    check(load, daemon.logs)


@LINUX
@pytest.mark.parametrize("call", ["fdatasync", "writev"])
async def test_a_disk_with_errors(serve, fake, slow_calls, call):
    """EIO: the segment is left for good, the next one takes over, and nothing is missing."""
    daemon = await asyncio.to_thread(lambda: serve(loop="asyncio"))
    journal = daemon.state / "journal/service"

    def newest():
        return max(file.name for file in journal.glob("*.seg"))

    async with Load(daemon.port, fake, kinds=ORDINARY) as load:
        await load.more(20)
        before = newest()
        let_go = await asyncio.to_thread(slow_calls, daemon.pid, f"{call}:error=EIO:when=1..3")
        deadline = time.monotonic() + 60
        while newest() == before:
            assert time.monotonic() < deadline
            await load.more()
        await asyncio.to_thread(let_go)
        await recording(daemon, "ok")
        await load.more(20)
    await asyncio.to_thread(stop, daemon)
    check(load, daemon.logs)
