"""How fast the keeper settles a journal that is already there: `scripts/bench_keeper.py`, which counts what it made."""

from __future__ import annotations

import re
import subprocess
import sys

from bench_suite.contestants import ROOT
from bench_suite.table import Row


def rows(*, quick: bool) -> list[Row]:
    return [
        _row("keeper, journal to session logs", "5000" if quick else "30000"),
        _row("keeper, agents' traffic to logs and index", "2000" if quick else "10000", "--agents"),
    ]


def _row(name: str, *arguments: str) -> Row:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench_keeper.py", *arguments], capture_output=True, text=True
    )
    figure = re.match(r"([\d,]+) exchanges/s", done.stdout)
    rate = float(figure[1].replace(",", "")) if figure else 0.0
    void = "" if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()[-1]
    return Row(name, {"ours": f"{rate:,.0f}"}, rate, void)
