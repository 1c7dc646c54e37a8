"""`python -m llm_proxy.keeper --journal DIR --logs DIR --state DIR [--options JSON]`: the daemon starts and ends it."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from llm_proxy.keeper.loop import Keeper
from llm_proxy.keeper.options import Options, options


def main() -> int:
    parser = argparse.ArgumentParser(prog="llm_proxy.keeper")
    for name in ("--journal", "--logs", "--state"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--options", type=options, default=Options())
    given = parser.parse_args()
    os.umask(0o077)
    # What is told of a call makes no cycles, but thousands of objects: looking through them costs a tenth of the time.
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)
    return Keeper(given.journal.absolute(), given.logs.absolute(), given.state.absolute(), given.options).run()


if __name__ == "__main__":
    sys.exit(main())
