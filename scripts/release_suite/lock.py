"""The lock files: what releases carry and what builds them, each version with the sums of its files.

Written by uv for every platform and Python at once; they name no index, so that any will do.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

CARRIED = "packaging/requirements.txt"
TOOLS = "packaging/requirements-release.txt"
_COMPILE = "pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --no-header --no-annotate"


def extras(root: Path) -> list[str]:
    """What releases bring beside the package itself: as scripts/install.sh has it."""
    (line,) = re.findall(r"(?m)^EXTRAS=(.+)$", (root / "scripts/install.sh").read_text())
    return str(line).split(",")


def wanted(root: Path) -> dict[str, list[str]]:
    """Requirements by lock file, as pyproject.toml has them."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    carried = project["dependencies"] + [wish for extra in extras(root) for wish in optional[extra]]
    return {CARRIED: carried, TOOLS: optional["release"]}


def write(root: Path) -> None:
    for name, wishes in wanted(root).items():
        command = [sys.executable, "-m", "uv", *_COMPILE.split(), "--output-file", root / name, "-"]
        subprocess.run(command, input="\n".join(wishes), text=True, check=True, stdout=subprocess.DEVNULL)
