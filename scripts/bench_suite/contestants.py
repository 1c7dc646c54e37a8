"""The processes that are compared, each started afresh in a throw-away home and taken away with all it left.

Every contestant stands before the same upstream on loopback. Leaves out what is sent through them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

ROOT = Path(__file__).parent.parent.parent
MITMPROXY = ROOT / ".cache/mitmproxy"
PATIENCE = 30.0  # seconds for a process to begin or to end

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off; client_max_body_size 0; keepalive_requests 1000000000;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    upstream provider {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
        }}
    }}
}}
"""


class Record:
    """The session logs, read from outside while they grow: how many calls are in them, by ending."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._folder = home / ".llm-provider-logs"
        self._journals = home / ".local/state/llm-proxy/journal"
        self._read: dict[Path, int] = {}
        self.endings: Counter[str] = Counter()
        self.requests = 0
        self.incomplete = 0  # entries whose body was not kept whole

    @property
    def calls(self) -> int:
        """Calls with a request entry and a response entry."""
        return min(self.requests, self.endings.total())

    def look(self) -> int:
        """Read what has been added since; the number of calls."""
        for path in self._folder.rglob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                self._count(_DECODER.decode(line))
        return self.calls

    def wait_for(self, number: int, patience: float = 120.0) -> bool:
        """Until that many calls are there; False where they do not come."""
        deadline = time.monotonic() + patience
        while self.look() < number:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)  # another process's files: there is nothing to be woken by
        return True

    def journal_size(self) -> int:
        """Bytes of journal on disk."""
        return sum(path.stat().st_size for path in self._journals.glob("*/*") if path.is_file())

    def _count(self, line: _Line) -> None:
        if line.type == "response":
            self.endings[line.ending] += 1
        elif line.type == "request":
            self.requests += 1
        self.incomplete += bool(line.truncated)


class _Line(msgspec.Struct):
    type: str
    ending: str = ""
    truncated: bool | str = False


_DECODER = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to the upstream: a port, what paths begin with there, the process that carries, and its record."""

    name: str
    port: int
    prefix: str = ""
    process: psutil.Process | None = None
    keeper: psutil.Process | None = None
    record: Record | None = None


Maker = Callable[[int], AbstractContextManager[Contestant]]


@contextmanager
def provider() -> Iterator[int]:
    """The fake provider on uvloop; its port."""
    with announced([sys.executable, "-m", "tests.fakeprovider", "--uvloop"]) as port:
        yield port


@contextmanager
def event_source(*options: str) -> Iterator[int]:
    """The source of jittered, time-stamped events; its port."""
    with announced([sys.executable, "-m", "bench_suite.source", *options]) as port:
        yield port


def seen_by(upstream: int) -> int:
    """How many requests have reached the fake provider, this one not counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{upstream}/fake/counts") as answer:
        return int(json.load(answer)["requests"]) - 1


@contextmanager
def direct(upstream: int) -> Iterator[Contestant]:
    yield Contestant("direct", upstream)


@contextmanager
def nginx(upstream: int) -> Iterator[Contestant]:
    port = free_port()
    with throwaway() as folder:
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
        with running(["nginx", "-p", str(folder), "-c", str(config)]) as master:
            wait_for(lambda: _accepts(port) and psutil.Process(master).children(), f"nginx on port {port}")
            yield Contestant("nginx", port, process=psutil.Process(master).children()[0])


@contextmanager
def mitmdump(upstream: int) -> Iterator[Contestant]:
    """mitmproxy as it comes, in reverse mode, in an environment of its own; it writes nothing down."""
    port, program = free_port(), _mitmdump()
    with throwaway() as folder:
        mode = ["--mode", f"reverse:http://127.0.0.1:{upstream}", "--listen-host", "127.0.0.1"]
        with running([str(program), "-q", *mode, "-p", str(port), "--set", f"confdir={folder}"]) as pid:
            wait_for(lambda: _accepts(port), f"mitmdump on port {port}")
            yield Contestant("mitmdump", port, process=psutil.Process(pid))


@contextmanager
def ours(upstream: int) -> Iterator[Contestant]:
    with daemon("ours", "uvloop", upstream) as contestant:
        yield contestant


@contextmanager
def ours_asyncio(upstream: int) -> Iterator[Contestant]:
    with daemon("ours, asyncio", "asyncio", upstream) as contestant:
        yield contestant


@contextmanager
def ours_signing(upstream: int) -> Iterator[Contestant]:
    """The same as Bedrock's door, with keys from its environment."""
    bedrock = {
        "BEDROCK_REGION": "us-west-2",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"http://127.0.0.1:{upstream}",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    }
    with daemon("ours", "uvloop", upstream, prefix="", **bedrock) as contestant:
        yield contestant


@contextmanager
def daemon(name: str, loop: str, upstream: int, prefix: str | None = None, **more: str) -> Iterator[Contestant]:
    """The daemon as users run it, recording everything, with its keeper."""
    port = free_port()
    with throwaway() as home:
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "LLM_PROXY_LOOP": loop} | more
        try:
            with running([sys.executable, "-I", "-m", "llm_proxy", "--port", str(port)], environ, home) as pid:
                wait_for(lambda: _records(port), f"llm-proxy on port {port}")
                process = psutil.Process(pid)
                keeper = next(child for child in process.children() if "llm_proxy.keeper" in child.cmdline())
                place = f"/anthropic/127.0.0.1:{upstream}" if prefix is None else prefix
                yield Contestant(name, port, place, process, keeper, Record(home))
            keeper.wait(PATIENCE)
        finally:
            # A daemon that ended well has removed its ring; one that did not must not leave it in memory.
            for pointer in home.glob(".local/state/llm-proxy/journal/*/ring"):
                Path(pointer.read_text()).unlink(missing_ok=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as link:
        return int(link.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Poll another process. Raises TimeoutError."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:g} s for {what}")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _records(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return bool(json.load(answer)["recording"] == "ok")
    return False


def _mitmdump() -> Path:
    """Where mitmdump is, installed on first use."""
    program = MITMPROXY / "bin/mitmdump"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", MITMPROXY], check=True)
        subprocess.run([MITMPROXY / "bin/python", "-m", "pip", "install", "--quiet", "mitmproxy"], check=True)
    return program


@contextmanager
def throwaway() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="llm-proxy-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # nginx's worker is another user where the master is root
        yield Path(name)


@contextmanager
def running(command: Sequence[str], environ: dict[str, str] | None = None, folder: Path = ROOT) -> Iterator[int]:
    """A process until the end of the block; its pid. What it said is shown only where the block fails."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environ, cwd=folder, stdout=said, stderr=said, start_new_session=True)
        try:
            yield process.pid
        except BaseException:
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
            raise
        finally:
            _end(process)


@contextmanager
def announced(command: Sequence[str]) -> Iterator[int]:
    """A process that prints `PORT n` first, until the end of the block; the port."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().removeprefix("PORT "))
    finally:
        _end(process)


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
