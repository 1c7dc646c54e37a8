"""The command line's grammar, and the page `--help` prints. Leaves out `--env`, which parses itself and faster.

Flags may be written with one dash, as the reference program's users do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from llm_proxy import __version__
from llm_proxy.errors import UsageError

_HELP = f"""\
llm-proxy {__version__}: carries LLM API traffic unchanged and keeps a faithful record of it.

Usage
  llm-proxy                     run in this terminal, on 127.0.0.1:8080
  llm-proxy --service           run as this user's one daemon, on a port that stays the same
  llm-proxy --status [--json]   what runs, whether it records, and where the logs are
  llm-proxy --env               lines that point a shell's LLM clients at the daemon:
                                  eval "$(llm-proxy --env)"          bash, zsh, sh
                                  llm-proxy --env --shell fish | source

Options for running
  --port N          port to listen on; 0 takes a free one
  --host ADDRESS    address to listen on (127.0.0.1)
  --log-dir DIR     folder of the session logs (~/.llm-provider-logs)
  --config FILE     configuration, .toml, .json or .yaml (~/.config/llm-proxy/config.toml)

Options for --env
  --shell NAME      sh, bash, zsh or fish
  --unset           lines that undo it

  --version         print the version
  --help            print this page

Every setting can also stand in the configuration file, or in the environment as LLM_PROXY_...;
docs/settings.md lists them. NO_LLM_PROXY=1 makes --env print nothing.
"""


class Options(NamedTuple):
    """What was typed. `flags` are settings by name, only those given."""

    command: str  # "serve", "service", "status", "version", "help"
    config: str | None
    json: bool
    flags: dict[str, str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; llm-proxy --help shows what there is")


def help_page() -> str:
    return _HELP


def parse(arguments: Sequence[str]) -> Options:
    """Raises UsageError."""
    parser = _Parser(prog="llm-proxy", add_help=False, allow_abbrev=False)
    for flag in ("--help", "--version", "--status", "--service", "--json"):
        parser.add_argument(flag, action="store_true")
    for flag in ("--port", "--host", "--log-dir", "--config"):
        parser.add_argument(flag)
    given = parser.parse_args([_two_dashes(word) for word in arguments])
    command = next((name for name in ("help", "version", "status", "service") if getattr(given, name)), "serve")
    if given.json and command != "status":
        raise UsageError("--json goes with --status")
    flags = {name: getattr(given, name) for name in ("port", "host", "log_dir") if getattr(given, name) is not None}
    return Options(command, given.config, given.json, flags)


def _two_dashes(word: str) -> str:
    if word == "-h":
        return "--help"
    return f"-{word}" if len(word) > 2 and word[0] == "-" and word[1].isalpha() else word
