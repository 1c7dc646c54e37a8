"""What a command line without a command's word asks for: flags that are commands, settings, a single target.

Leaves out `--env`, which parses itself and faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llm_proxy.cli import grammar, usage
from llm_proxy.errors import UsageError

# Commands that are a flag, the ones that win first where several are given. --target-url is a way to serve.
_COMMANDS = (
    "--help",
    "--version",
    "--status",
    "--setup",
    "--uninstall",
    "--setup-shell",
    "--unsetup-shell",
    "--announce-socket",
    "--explore",
    "--service",
)

# Options of a single target, by the setting each gives.
_TARGET = {
    "target_url": "target.url",
    "add_header": "target.headers",
    "log_file": "csv.file",
    "csv_header": "csv.header",
    "csv_columns": "csv.columns",
    "csv_defuse": "csv.defuse",
}
_LONGEST_SILENCE = 1440  # minutes; upstreams.idle_timeout holds no more


class Options(NamedTuple):
    """What was typed. `flags` are settings by name, only those given."""

    command: str  # one of _COMMANDS without its dashes, or "serve"
    config: str | None
    json: bool
    flags: dict[str, object]
    switches: frozenset[str] = frozenset()  # "dry_run" for --dry-run
    announced: int | None = None  # the port of --announce-socket
    explore_port: int | None = None  # of a stand-alone explorer
    for_target: str = ""  # an option that was given and means nothing without a target, as it is spelled


def parse(arguments: Sequence[str]) -> Options:
    """Raises UsageError."""
    given = vars(usage.Parser("", _options()).read(arguments))
    said = {name for name, value in given.items() if _is_given(value)}
    if "explore_port" in said:
        said.add("explore")
    command = next((name for name in _COMMANDS if _as_said(name) in said), "")
    switches = frozenset(said & _switches().keys())
    for switch in sorted(switches):
        if command not in (goes_with := _switches()[switch]):
            raise UsageError(f"--{switch.replace('_', '-')} goes with {' or '.join(goes_with)}")
    named = {name: name for name in ("port", "host", "log_dir")} | _TARGET
    flags = {setting: given[name] for name, setting in named.items() if name in said}
    if "timeout" in said:
        flags["upstreams.header_timeout"] = flags["upstreams.idle_timeout"] = 60 * _minutes(given["timeout"])
    for_target = next((f"--{name.replace('_', '-')}" for name in (*_TARGET, "timeout") if name in said), "")
    if for_target and command:
        raise UsageError(f"{for_target} goes with a run in this terminal, not with {command}")
    ports = given["announce_socket"], explore_port(given["explore_port"])
    json = "json" in said
    return Options(_as_said(command) or "serve", given["config"], json, flags, switches, *ports, for_target)


def _options() -> list[grammar.Option]:
    """Each once, of all commands that are a flag and of none at all."""
    commands = [
        command for command in grammar.COMMANDS if (command.flag or not command.name) and command.name != "--env"
    ]
    flags = [command.flag for command in commands if command.flag]
    return list({option.name: option for option in (*flags, *(o for c in commands for o in c.options))}.values())


def _switches() -> dict[str, tuple[str, ...]]:
    """What makes sense with some flags only, as it is named here, and these flags."""
    found: dict[str, tuple[str, ...]] = {}
    for name in _COMMANDS:
        for option in grammar.BY_NAME[name].options:
            if not option.value:
                switch = _as_said(option.name)
                found[switch] = (*found.get(switch, ()), name)
    return found


def _as_said(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _minutes(text: str) -> float:
    """Raises UsageError."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1
    if not 0 <= minutes <= _LONGEST_SILENCE:
        raise UsageError(f"--timeout must be minutes from 0, for none, to {_LONGEST_SILENCE}, got {text!r}")
    return minutes


def explore_port(text: str | None, option: str = "--explore-port") -> int | None:
    """Raises UsageError."""
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"{option} must be a port from 1 to 65535, got {text!r}")
    return int(text)


def _is_given(value: object) -> bool:
    return value is not None and value is not False  # port 0 is given
