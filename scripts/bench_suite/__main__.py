"""`python -m bench_suite [row ...] [--quick]`: measure, and print the table with what it was measured on."""

from __future__ import annotations

import argparse
import importlib
import platform
import resource
import signal
import subprocess
import sys
import time

import psutil

from bench_suite.table import Row, markdown

ROWS = (
    "latency",
    "throughput",
    "sse",
    "bedrock",
    "live",
    "memory",
    "keeper",
    "loki",
    "gateway",
    "team",
    "env",
    "service",
    "micro",
)


def machine() -> str:
    """What the figures belong to."""
    nginx = (
        subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.strip().rpartition("/")[2]
    )
    load = psutil.getloadavg()[0]
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {psutil.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, nginx {nginx}, load before the run {load:.1f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure llm-proxy beside nginx, mitmdump and LiteLLM."
    )
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; all where none is named")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast it is")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no process is left behind
    about = machine()
    done: list[Row] = []
    for name in given.rows or ROWS:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        begun = time.monotonic()
        done += importlib.import_module(f"bench_suite.{name}").rows(quick=given.quick)
        print(f"bench: {name} took {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    print(f"{about}{', --quick' if given.quick else ''}\n\n{markdown(done)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
