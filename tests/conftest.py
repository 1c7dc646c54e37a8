"""Fixtures: real processes in a home of their own, the fake provider, a proxy inside the test; and which event loops."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings

from tests.fakeprovider.fixtures import fake
from tests.gatewaystore import store, store_url
from tests.recorded import provider
from tests.release import releases, serve
from tests.rig import rig, rigs

__all__ = ["fake", "provider", "releases", "rig", "rigs", "serve", "store", "store_url"]

# The same examples each time, so that a change is judged by what it changed; `--hypothesis-profile=search` looks for new ones.
settings.register_profile("steady", derandomize=True)
settings.register_profile("search", derandomize=False, max_examples=2000, deadline=None)
settings.load_profile("steady")

_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")
# Of the machine's own environment a test sees only this; keys, proxies and base URLs stay out.
_KEPT = ("PATH", "LANG", "TMPDIR", "COVERAGE_PROCESS_START")


def pytest_asyncio_loop_factories(config, item):
    """Whatever carries traffic is shown on both loops, everything else on asyncio's."""
    loops = {"asyncio": asyncio.new_event_loop}
    if "rigs" in item.fixturenames:
        loops["uvloop"] = uvloop.new_event_loop
    return loops


class Daemon:
    """A real `llm-proxy` process. `lines` grows with what it says on stdout and stderr."""

    def __init__(self, home, arguments, environ, options):
        self.home = Path(home)
        self.lines = []
        self._environ = environ
        self._news = threading.Condition()
        isolation = "-I" if options.pop("isolated", True) else "-P"
        self.process = subprocess.Popen(
            [sys.executable, isolation, "-m", "llm_proxy", *arguments],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._port = 0

    @property
    def pid(self):
        return self.process.pid

    @property
    def port(self):
        """The port it says it listens on; waits for that."""
        if not self._port:
            self._port = int(self.wait_for_line(_LISTENS)[1])
        return self._port

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def logs(self):
        return self.home / ".llm-provider-logs"

    @property
    def state(self):
        return self.home / ".local/state/llm-proxy"

    def wait_for_line(self, pattern, timeout=60):
        """The match in the first line that has one, said already or within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for line in self.lines:
                    if found := re.search(pattern, line):
                        return found
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"no line with {pattern!r} in:\n" + "".join(self.lines))
                self._news.wait(min(left, 0.5))

    def health(self):
        """What /health answers, as a dict."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(link):
            link.request("GET", "/health")
            return json.loads(link.getresponse().read())

    def wait_for_recording(self, value="ok", timeout=150):
        """Until /health says so: the keeper needs a moment to start."""
        deadline = time.monotonic() + timeout
        while (facts := self.health())["recording"] != value:
            assert time.monotonic() < deadline, facts
            time.sleep(0.02)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=60):
        """Its exit status."""
        status = self.process.wait(timeout)
        self._reader.join(5)
        return status

    def stop(self, timeout=60):
        """SIGTERM; the exit status. What the keeper, last in line for the processors, had no time for is in the logs then."""
        self.signal(signal.SIGTERM)
        status = self.wait(timeout)
        if any("the keeper did not settle" in line for line in self.lines):
            self._settle()
        return status

    def kill(self):
        """SIGKILL, as a crash would."""
        self.process.kill()
        return self.wait()

    def entries(self, timeout=150, until=lambda entries: entries):
        """All entries of all session logs as dicts, once `until` is true of them.

        They are written by a process that comes last where others want the processors: the guard is wide.
        """
        deadline = time.monotonic() + timeout
        while True:
            files = sorted(self.logs.rglob("*.jsonl"))
            found = [
                json.loads(line)
                for file in files
                for line in file.read_text().splitlines(keepends=True)
                if line.endswith("\n")
            ]
            if until(found):
                return found
            assert time.monotonic() < deadline, f"waited {timeout} s; the logs hold {found}"
            time.sleep(0.02)

    def _settle(self):
        """As the next start would."""
        logs = self.wait_for_line("session logs: (.+)")[1]
        for journal in (self.state / "journal").iterdir():
            folders = [f"--journal={journal}", f"--logs={logs}", f"--state={self.state}"]
            command = [sys.executable, "-I", "-m", "llm_proxy.keeper", *folders]
            subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=240, env=self._environ)

    def _read(self):
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        self.process.stdout.close()
        with self._news:
            self._news.notify_all()


# They take minutes, and begin first: no worker is to be alone with one at the end.
_LONG = (
    "test_service_cases_install.py",
    "test_crash.py",
    "test_install_release.py",
    "test_install.py",
    "test_release.py",
    "test_deb.py",
    "test_upgrade.py",
    "test_keeper.py",
    "test_explorer_browser.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def environ(tmp_path):
    """The environment of a user whose home is a folder of this test."""
    home = tmp_path / "home"
    home.mkdir()
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | {"HOME": str(home)}


@pytest.fixture
def start(environ):
    """Start `llm-proxy` with arguments in this test's home; whatever still runs afterwards is killed."""
    running = []

    def begin(*arguments, env=None, **options):
        told = environ | (env or {})
        daemon = Daemon(told["HOME"], arguments, told, options)
        running.append(daemon)
        return daemon

    yield begin
    for daemon in running:
        if daemon.process.poll() is None:
            daemon.kill()
    for home in {environ["HOME"], *(str(daemon.home) for daemon in running)}:
        end_keepers(home)
        _forget_rings(home)


@pytest.fixture
def daemon(start):
    """A running foreground daemon on a free port."""
    running = start("--port", "0")
    assert running.port
    return running


@pytest.fixture
def command(environ):
    """Run `llm-proxy` to its end; the completed process, output as text."""

    def run(*arguments, env=None):
        return subprocess.run(
            [sys.executable, "-I", "-m", "llm_proxy", *arguments],
            env=environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def free_port():
    """A port nobody holds just now."""
    with socket.create_server(("127.0.0.1", 0)) as link:
        return link.getsockname()[1]


def end_keepers(home):
    """What they would still settle nobody looks at; and none must outlive its folder."""
    while keepers := [pid for pid in _processes() if f"{home}/.local/state".encode() in _arguments(pid)]:
        for pid in keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _forget_rings(home):
    """A daemon killed before it had a keeper leaves its ring, in memory, to a next start that never comes here."""
    for pointer in Path(home).glob(".local/state/llm-proxy/journal/*/ring"):
        Path(pointer.read_text()).unlink(missing_ok=True)
    # And a gateway that was killed leaves what it noted for the usage log.
    state = hashlib.sha256(f"{home}/.local/share/llm-proxy/gateway".encode()).hexdigest()[:16]
    for path in Path("/dev/shm").glob(f"llm-proxy-usage-*-{state}-*"):
        path.unlink()


def _processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def _arguments(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
