"""What `llm-proxy --env` costs a new shell: the launcher as scripts/install.sh leaves it, in a throw-away home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from bench_suite.contestants import PATIENCE, ROOT
from bench_suite.table import Row

_INSTALLERS = ("PIP_", "UV_", "SSL_", "REQUESTS_")  # how this machine reaches packages


def rows(*, quick: bool) -> list[Row]:
    runs = 15 if quick else 101
    with TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        home = Path(name)
        environ = {"HOME": name, "PATH": os.environ["PATH"]}
        installers = {key: value for key, value in os.environ.items() if key.startswith(_INSTALLERS)}
        subprocess.run(
            ["sh", ROOT / "scripts/install.sh"],
            env=environ | installers | {"PYTHON": sys.executable},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        launcher = home / ".local/bin/llm-proxy"
        status = subprocess.run([launcher, "--status", "--json"], env=environ, capture_output=True, check=True)
        daemon = psutil.Process(int(json.loads(status.stdout)["pid"]))
        try:
            alive = _p50(launcher, environ, runs, says=True)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(PATIENCE)
        dead = _p50(launcher, environ, runs, says=False)
    return [
        Row("--env, daemon alive, p50", {"ours": f"{alive:.1f} ms"}, alive),
        Row("--env, daemon dead, p50", {"ours": f"{dead:.1f} ms"}),
    ]


def _p50(launcher: Path, environ: dict[str, str], runs: int, *, says: bool) -> float:
    """Milliseconds from start to end of one command. Raises AssertionError where it does not say what it must."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        done = subprocess.run([launcher, "--env"], env=environ, stdout=subprocess.PIPE, check=True)
        times.append((time.perf_counter() - begun) * 1000)
        assert (b"ANTHROPIC_BASE_URL" in done.stdout) is says, done.stdout
    return median(times)
