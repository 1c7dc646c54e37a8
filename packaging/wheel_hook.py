"""Puts the launcher into the wheel as the command `llm-proxy`, told to take the interpreter that lies beside it.

A console script would start Python for every new shell. Used by hatchling while it builds; no part of the program.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LauncherHook(BuildHookInterface):  # type: ignore[type-arg]
    """Fills packaging/launcher.sh in."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        template = (Path(self.root) / "packaging/launcher.sh").read_text()
        self._folder = Path(tempfile.mkdtemp(prefix="llm-proxy-wheel-"))
        launcher = self._folder / "llm-proxy"
        launcher.write_text(template.replace("@PYTHON@", '"$(beside)"'))
        launcher.chmod(0o755)
        build_data["shared_scripts"][str(launcher)] = "llm-proxy"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._folder)
