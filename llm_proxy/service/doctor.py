"""`llm-proxy doctor`: what is wrong on this machine, and the one command that mends each.

A table of checks. They read and ask, and change nothing; the network is left alone unless the caller wants it asked.
Leaves out mending.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from llm_proxy import paths, settings
from llm_proxy.errors import ConfigError, LlmProxyError
from llm_proxy.service import status
from llm_proxy.service.checks import daemon, machine, manager, shell
from llm_proxy.service.checks.scene import Finding, Scene, note
from llm_proxy.settings import Settings


class Check(NamedTuple):
    """`about` is what is true where nothing is found; `online`: only where the network may be asked."""

    name: str
    about: str
    look: Callable[[Scene], Iterator[Finding]]
    online: bool = False


CHECKS = (
    Check("configuration", "the configuration is understood", daemon.configuration),
    Check("daemon", "the daemon runs, answers and records", daemon.runs),
    Check("gateway", "the gateway serves, where it is switched on", daemon.gateway),
    Check("port", "its port is not in other hands", daemon.port),
    Check("state", "its state is its own", daemon.state_folder),
    Check("logs", "the logs can be written, and read by you alone", daemon.logs),
    Check("attached", "attached clients lead to it", daemon.attached),
    Check("variables", "this shell's base URLs lead to it", shell.variables),
    Check("shell files", "no file sets a base URL that leads nowhere", shell.shell_files),
    Check("path", "`llm-proxy` is this program", shell.path_order),
    Check("installations", "it is installed once", shell.installs),
    Check("proxies", "forward proxies are not in its way", shell.proxies),
    Check("service", "something starts it", manager.service),
    Check("services", "only one thing starts it", manager.only_one),
    Check("linger", "it does not stop with a logout", manager.linger),
    Check("units", "what setup wrote is in its place", manager.own_files),
    Check("clock", "the clock is not far off", machine.clock),
    Check("disk", "there is room on the disk", machine.disk),
    Check("certificates", "there are CA certificates", machine.certificates),
    Check("providers", "the providers can be reached", machine.providers, online=True),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found; nothing is good."""

    name: str
    about: str
    findings: tuple[Finding, ...]


def examine(environ: Mapping[str, str], *, online: bool, platform: str = sys.platform) -> list[Result]:
    """Run every check. Takes a few seconds at most, `online` some more; nothing is raised for what is found."""
    scene = _scene(environ, platform)
    checks = [check for check in CHECKS if online or not check.online]
    return [Result(check.name, check.about, tuple(_findings(check, scene))) for check in checks]


def exit_status(results: Iterable[Result]) -> int:
    """1 where there is a problem; notes are none."""
    return int(any(finding.severity == "problem" for result in results for finding in result.findings))


def as_json(results: Sequence[Result]) -> str:
    return json.dumps({"exit": exit_status(results), "checks": [asdict(result) for result in results]}, indent=2)


def as_text(results: Sequence[Result]) -> str:
    """A line for each check or finding, what is wrong last, with what mends it."""
    lines = [f"ok  {result.about}" for result in results if not result.findings]
    for severity, mark in (("note", "--"), ("problem", "XX")):
        for finding in (finding for result in results for finding in result.findings):
            if finding.severity == severity:
                lines += [f"{mark}  {finding.text}", f"      {finding.mend}"]
    return status.printable("\n".join(lines))


def _findings(check: Check, scene: Scene) -> Iterator[Finding]:
    try:
        yield from check.look(scene)
    except (OSError, LlmProxyError) as exc:  # a broken machine is what this is for
        yield note(f"{check.name} could not be looked at: {exc}", "llm-proxy --status")


def _scene(environ: Mapping[str, str], platform: str) -> Scene:
    error, configured = "", 0
    try:
        values, sources, _ = settings.load({}, environ, None)
        configured = values.port if "port" in sources else 0
    except ConfigError as exc:
        error, values = str(exc), Settings(log_dir=paths.expand(Settings().log_dir))
    found = status.look(values, dict(environ))
    return Scene(environ, found, paths.state_folder(), platform, error, configured)
