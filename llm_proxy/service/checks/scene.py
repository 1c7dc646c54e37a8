"""What every check is given, and what it may find. Leaves out looking."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from llm_proxy.service import units
from llm_proxy.service.status import Status


@dataclass(frozen=True, slots=True)
class Finding:
    """`severity`: "problem" (calls or records suffer) or "note". `mend` is one command for a shell."""

    severity: str
    text: str
    mend: str


@dataclass(frozen=True, slots=True)
class Scene:
    """This machine as one user's shell sees it. `state` is the state folder."""

    environ: Mapping[str, str]
    status: Status
    state: str
    platform: str
    config_error: str = ""
    configured_port: int = 0  # one that the user has set; 0: none

    def unset(self, name: str) -> str:
        """The command of the user's shell."""
        return f"set -e {name}" if self.environ.get("SHELL", "").endswith("/fish") else f"unset {name}"

    def restart(self) -> str:
        """The command of whatever started the daemon; one that still answers may finish its calls."""
        pid = self.status.pid
        end = f"timeout 30 sh -c 'kill {pid}; while kill -0 {pid}; do sleep 0.2; done' 2>/dev/null"
        commands = {
            "systemd": f"systemctl --user restart {units.SERVICE}",
            "launchd": f"launchctl kickstart -k gui/{os.getuid()}/{units.LABEL}",
            "brew": "brew services restart llm-proxy",
        }
        by_hand = f"{f'kill -9 {pid}' if self.status.reason else end}; llm-proxy --setup"
        return commands.get(self.status.autostart.means, by_hand)


def problem(text: str, mend: str) -> Finding:
    return Finding("problem", text, mend)


def note(text: str, mend: str) -> Finding:
    return Finding("note", text, mend)


def quoted(path: object) -> str:
    return shlex.quote(str(path))


def edit(path: object, line: int = 0) -> str:
    """The command that opens a file in the user's editor."""
    return f'"${{EDITOR:-vi}}" {f"+{line} " if line else ""}{quoted(path)}'
