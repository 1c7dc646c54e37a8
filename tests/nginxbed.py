"""nginx before gateways of a test, by the configuration of our set-up for teams, with its master process in the foreground."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "packaging/compose/gateway-team/nginx"


def nginx_of(folder: Path, gateways: Sequence[int], *arguments: str, port: int = 0) -> list[str]:
    """The command of one in this folder, before gateways at these ports: nothing is changed but where things are."""
    port = port or free_port()
    told = (FOLDER / "nginx.conf").read_text()
    for ours, theirs in (("listen 8080;", f"listen 127.0.0.1:{port};"), ("/tmp/", f"{folder}/")):
        assert ours in told
        told = told.replace(ours, theirs)
    upstream = (FOLDER / "gateways.conf").read_text()
    ways = "".join(f"    server 127.0.0.1:{one} max_fails=1 fail_timeout=1s;\n" for one in gateways)
    kept = [line for line in upstream.splitlines(True) if not line.lstrip().startswith(("resolver", "server"))]
    (folder / "gateways.conf").write_text("".join(kept).replace("}", ways + "}"))
    workers = "user root;\n" if os.getuid() == 0 else ""  # another user has no way into a test's folder
    (folder / "nginx.conf").write_text(workers + told)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;", *arguments]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as link:
        return int(link.getsockname()[1])


class Nginx:
    """One that runs, on a port that it keeps over its lives."""

    def __init__(self, folder: Path, gateways: Sequence[int]) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._command = nginx_of(folder, gateways, port=self.port)
        self._log = folder / "said"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 20
        while not self._accepts():
            assert time.monotonic() < deadline and self._process.poll() is None, self._log.read_text()
            time.sleep(0.02)

    def said(self) -> str:
        """Its log of calls that went wrong, and of what it saw of gateways."""
        lines = self._log.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not re.search(r" (200|429) [\d.]+ \S+$", line.rstrip()))

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """The master and its workers, at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
            self._process = None

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@contextlib.contextmanager
def an_nginx(folder: Path, gateways: Sequence[int]) -> Iterator[Nginx]:
    made = Nginx(folder, gateways)
    try:
        yield made
    finally:
        made.kill()
