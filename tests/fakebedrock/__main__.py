"""`python -m tests.fakebedrock`: the fake Bedrock alone, until it is ended. Prints `PORT n` first."""

from __future__ import annotations

import argparse
import signal

from tests.fakebedrock.server import FakeBedrock, Plan


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fakebedrock", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between frames")
    parser.add_argument("--words", type=int, default=4, help="texts in a stream")
    options = parser.parse_args()
    with FakeBedrock(port=options.port) as fake:
        fake.plan = Plan(pause=options.pause, words=options.words)
        print(f"PORT {fake.port}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
