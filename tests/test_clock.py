"""A wall clock that is stepped under a running daemon: durations stay true, order and ids stay valid.

The step is simulated: a small library, compiled here and preloaded into daemon and keeper, adds an offset to whatever
they are told of the wall clock. The monotonic clock goes on, as it does when somebody sets the time.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from datetime import datetime
from uuid import UUID

import pytest

from tests.load import Load, check, read_logs

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library as Linux does"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (Debian: gcc, libc6-dev)"),
]

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *offset;  /* seconds, in a file that the test writes */
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    offset = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    real = dlsym(RTLD_NEXT, "clock_gettime");
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!real) begin();
    int result = real(clock, at);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) at->tv_sec += *offset;
    return result;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return result;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
HOUR, DAY = 3600, 86_400
KEEPER_DIES = (DAY, 8 * DAY)
KINDS = ((2, "words=20; slow=10", True, 500, False), (2, "words=40; delay=50", False, 500, False))
_FILE = re.compile(r"127\.0\.0\.1:\d+/\d{4}-\d\d-\d\d/(\d{8})-(\d{6})-[0-9a-f]{8}\.jsonl")


class Clock:
    """The daemon's wall clock; `step` sets it so many seconds off the true one."""

    def __init__(self, folder):
        self._path = folder / "offset"
        self.step(0)
        source, library = folder / "clock.c", folder / "clock.so"
        source.write_text(SHIM)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._path)}

    def step(self, seconds):
        with open(self._path, "r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_stepping_clock(start, command, fake, tmp_path, loop):
    """Back an hour, a day ahead, to 1970, and back again, in the middle of calls: no negative time, no mixed order."""
    clock = Clock(tmp_path)
    environment = clock.env | {"TZ": "Asia/Kathmandu", "LLM_PROXY_LOOP": loop}
    daemon = start("--service", env=environment)
    daemon.wait_for_recording()
    snapshot = daemon.state / "journal/service/keeper.json"
    now = int(datetime.now().timestamp())
    async with Load(daemon.port, fake, kinds=KINDS, count=6) as load:
        for offset in (-HOUR, DAY, -3 * DAY, 40 * HOUR, -now, 8 * DAY, 0):
            await load.more(8)
            clock.step(offset)
            if offset in KEEPER_DIES:  # the next one begins in another time, and goes on with the same sessions
                os.kill(json.loads(snapshot.read_text())["pid"], signal.SIGKILL)
                await asyncio.to_thread(daemon.wait_for_recording)
            done = await asyncio.to_thread(command, "--status", env=environment)
            assert done.returncode == 0 and "RUNNING" in done.stdout, done
        await load.more(20)
    assert daemon.stop(40) == 0
    check(load, daemon.logs)
    years = set()
    for path, entries in read_logs(daemon.logs).items():
        found = _FILE.fullmatch(str(path.relative_to(daemon.logs)))
        assert found and datetime.strptime("".join(found.groups()), "%Y%m%d%H%M%S")
        _check_times(load, entries)
        years |= {entry["_meta"]["ts"][:4] for entry in entries}
    assert "1970" in years and len(years) > 1, "the clock was not stepped"


def _check_times(load, entries):
    """Calls of one session: a client makes them one after the other, so numbers and calls are in the same order."""
    requests = [entry for entry in entries if entry["type"] == "request"]
    order = [int(entry["headers"]["X-Call"][0].rpartition("-")[2]) for entry in requests]
    assert order == sorted(order)
    assert [entry["seq"] for entry in requests] == list(range(1, len(requests) + 1))
    began = {entry["_meta"]["request_id"]: entry for entry in requests}
    for entry in entries:
        _moment(entry["_meta"]["ts"])
        if entry["type"] == "session_start":
            continue
        assert UUID(entry["_meta"]["request_id"]).version == 7
        if entry["type"] == "response":
            request = began[entry["_meta"]["request_id"]]
            _check_duration(load.calls[request["headers"]["X-Call"][0]], request, entry)


def _check_duration(call, request, response):
    """As the client took it, by its own clock."""
    first, whole = response["timing"]["ttfb_ms"], response["timing"]["total_ms"]
    assert 0 <= first <= whole <= call.seconds * 1000 + 50, (call, response["timing"])
    took = _moment(response["_meta"]["ts"]) - _moment(request["_meta"]["ts"])
    assert abs(took * 1000 - whole) <= 1.5
    deltas = [chunk["delta_ms"] for chunk in response.get("chunks", ())]
    assert deltas == sorted(deltas) and all(0 <= delta <= whole for delta in deltas)
    times = [_moment(chunk["ts"]) for chunk in response.get("chunks", ())]
    assert times == sorted(times)
    local = [chunk["ts"] for chunk in response.get("chunks", ())]
    assert all(ts.endswith("+05:45") or ts.startswith("1970") for ts in local), (local, request["_meta"], response)


def _moment(text):
    """Seconds since 1970."""
    head, fraction, zone = re.fullmatch(r"([\dT:-]{19})(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", text).groups()
    return datetime.fromisoformat(head + zone).timestamp() + float(fraction or 0)
