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
  llm-proxy --setup             start it at every login, and point new shells at it
  llm-proxy --uninstall         undo that, and remove the program; session logs stay
  llm-proxy attach [NAME...]    point codex, claude, gemini, opencode or aider at it, in their own configuration;
                                without a name: list them
  llm-proxy detach NAME...      undo that; --all: for every client
  llm-proxy --setup-shell       only point new shells at it; --unsetup-shell undoes that
  llm-proxy run -- COMMAND      point one command at it; directly at the providers while it does not run
  llm-proxy --status [--json]   what runs, whether it records, and where the logs are
  llm-proxy doctor              what is wrong on this machine, and the command that mends it; --json; --online asks
                                the providers too
  llm-proxy --env               lines that point a shell's LLM clients at the daemon:
                                  eval "$(llm-proxy --env)"          bash, zsh, sh
                                  llm-proxy --env --shell fish | source

Looking at what was recorded
  llm-proxy --explore           open it in a browser; where no daemon runs, from an explorer of its own, until Ctrl-C
  llm-proxy explore             the same; --print: only tell the address; --port N: always one of its own, on port N
    --explore-port N            with or without --explore: always one of its own, on port N

Questions about what was recorded
  llm-proxy sessions            conversations, the one used last first; forks and sub-agents under their parent
  llm-proxy view [ID]           a conversation or a call by the beginning of its id (last); --raw: bodies as they were
  llm-proxy search WORDS        messages that hold all the words; "a phrase", begin*, -without
  llm-proxy tail                calls as they begin and end; -n N: the last N first
  llm-proxy stats               requests, errors, latency, tokens, cost; --by day|model|project|session|provider
  llm-proxy export              as --format jsonl, taco, csv, har, markdown, parquet or dataset; --output FILE or -
    --style STYLE               of a dataset: messages, reasoning, sharegpt, openai-finetune; to FOLDER/: with a card
    --split train=0.9,val=0.1   a file for each part; --include-private: texts as they were recorded, who and when
    --from, --to TIME           2026-01-31, 2026-01-31T08:00, today, yesterday, 90m, 24h, 7d; local time
    --provider, --model, --project, --session NAME    --status 404|5xx|none    --errors
    --json    --utc    --limit N    --log-dir DIR

Looking after it
  llm-proxy import PATH         take in logs of the Go llm-proxy, Taco, MIRRA, proxy-llm or claude-trace; --dry-run
  llm-proxy scan [PATH]         secrets in logs that were written earlier; --json
  llm-proxy reindex             make the index anew from the logs
  llm-proxy retention           compress, strip or delete old logs now, as the settings say; --dry-run

What it costs
  llm-proxy prices show [MODEL] which list of prices is used; what a model costs now, at each seller
  llm-proxy prices update       fetch today's list from its project; --url URL: from a mirror
  llm-proxy prices import FILE  take it from a file of genai-prices or LiteLLM
  llm-proxy reprice             price recorded calls again, as of their day; the choices above, and --dry-run
  llm-proxy compare             hold the record against what Claude Code and Codex noted themselves; --from, --to

Options for running
  -p, --port N      port to listen on; 0 takes a free one
  --host ADDRESS    address to listen on (127.0.0.1)
  --log-dir DIR     folder of the session logs (~/.llm-provider-logs)
  --config FILE     configuration, .toml, .json or .yaml (~/.config/llm-proxy/config.toml)

One upstream for everything, instead of every provider; each call also becomes a row of a CSV file
  -t, --target-url URL    where all paths go, behind the path of the URL: https://api.openai.com/v1
  -a, --add-header TEXT   "Name: Value": goes with every call, in the place of a client's field; may be given again
  -l, --log-file FILE     the CSV file (log.csv)
  -T, --timeout MINUTES   of silence, after which a call is given up (30); 0: never
  --csv-header            begin the file with the names of the columns
  --csv-columns A,B       other columns, as docs/settings.md lists them
  --csv-defuse            keep spreadsheets from taking cells for formulas

In the place of Taco
  llm-proxy start         on port 4567, recording into ./recordings too
    --port N  --config FILE   Taco's configuration (.json); its TACO_... variables hold as well

Options for --env
  --shell NAME      sh, bash, zsh or fish: also unset what points at a daemon that is gone, and in the last three
                    follow it at each prompt (LLM_PROXY_NO_HOOK=1: do not)
  --unset           lines that undo it
  --bedrock         instead, what points Claude Code at AWS Bedrock through it (needs bedrock.region)

Options for attach and detach
  --dry-run, --json as below
  --login KIND      attach codex: api-key or chatgpt, as Codex is logged in; seen from its files by default

Options for --setup, --uninstall, --setup-shell and --unsetup-shell
  --dry-run         only say what would be done
  --json            say it as JSON
  --no-shell        --setup: leave the shells' files alone
  --socket-activation   --setup: let systemd hold the port, so that no connection is ever refused
  --purge           --uninstall: also delete logs, configuration and the gateway's data

In the units that --setup writes
  --passthrough     with --service: safe mode, carry calls and record nothing
  --announce-socket PORT   systemd listens on PORT; 0: no longer

  -V, --version     print the version
  -h, --help        print this page

Every setting can also stand in the configuration file, or in the environment as LLM_PROXY_...;
docs/settings.md lists them. NO_LLM_PROXY=1 makes --env print nothing.
"""


_COMMANDS = (
    "help",
    "version",
    "status",
    "setup",
    "uninstall",
    "setup_shell",
    "unsetup_shell",
    "announce_socket",
    "explore",
    "service",
)
_CHANGING = ("setup", "uninstall", "setup_shell", "unsetup_shell")
# Each switch, and the commands it goes with.
_SWITCHES = {
    "json": ("status", *_CHANGING),
    "dry_run": _CHANGING,
    "no_shell": ("setup",),
    "socket_activation": ("setup",),
    "purge": ("uninstall",),
    "passthrough": ("service",),
}


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

    command: str  # one of _COMMANDS, or "serve"
    config: str | None
    json: bool
    flags: dict[str, object]
    switches: frozenset[str] = frozenset()  # of _SWITCHES, as written there
    announced: int | None = None  # the port of --announce-socket
    explore_port: int | None = None  # of a stand-alone explorer
    for_target: str = ""  # an option that was given and means nothing without a target, as it is spelled


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; llm-proxy --help shows what there is")


def help_of(word: str) -> str:
    """The part of the page in which a command stands, or all of it."""
    parts = help_page().split("\n\n")
    return next((f"{part.rstrip()}\n" for part in parts if f"\n  llm-proxy {word}" in part), help_page())


def help_page() -> str:
    return _HELP


def parse(arguments: Sequence[str]) -> Options:
    """Raises UsageError."""
    parser = _Parser(prog="llm-proxy", add_help=False, allow_abbrev=False)
    for flag in ("--help", "--status", "--service", "--setup", "--uninstall", "--explore"):
        parser.add_argument(flag, action="store_true")
    for flag in ("--setup-shell", "--unsetup-shell"):
        parser.add_argument(flag, action="store_true")
    for flag in ("--json", "--dry-run", "--no-shell", "--socket-activation", "--purge", "--passthrough"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-V", "--version", action="store_true")
    parser.add_argument("-p", "--port")
    parser.add_argument("-t", "--target-url")
    parser.add_argument("-a", "--add-header", action="append")
    parser.add_argument("-l", "--log-file")
    parser.add_argument("-T", "--timeout")
    parser.add_argument("--csv-columns")
    for flag in ("--csv-header", "--csv-defuse"):
        parser.add_argument(flag, action="store_true", default=None)
    parser.add_argument("--announce-socket", type=int)
    parser.add_argument("--explore-port")
    for flag in ("--host", "--log-dir", "--config"):
        parser.add_argument(flag)
    given = parser.parse_args([two_dashes(word) for word in arguments])
    given.explore = given.explore or given.explore_port is not None
    command = next((name for name in _COMMANDS if _is_given(getattr(given, name))), "serve")
    switches = frozenset(name for name in _SWITCHES if getattr(given, name))
    for switch in sorted(switches):
        if command not in _SWITCHES[switch]:
            goes_with = " or ".join(f"--{name.replace('_', '-')}" for name in _SWITCHES[switch])
            raise UsageError(f"--{switch.replace('_', '-')} goes with {goes_with}")
    named = {name: name for name in ("port", "host", "log_dir")} | _TARGET
    flags = {setting: getattr(given, name) for name, setting in named.items() if getattr(given, name) is not None}
    if given.timeout is not None:
        flags["upstreams.header_timeout"] = flags["upstreams.idle_timeout"] = 60 * _minutes(given.timeout)
    for_target = next((name for name in (*_TARGET, "timeout") if getattr(given, name) is not None), "")
    for_target = for_target and f"--{for_target.replace('_', '-')}"
    if for_target and command != "serve":
        raise UsageError(f"{for_target} goes with a run in this terminal, not with --{command.replace('_', '-')}")
    ports = given.announce_socket, explore_port(given.explore_port)
    return Options(command, given.config, given.json, flags, switches, *ports, for_target)


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


def two_dashes(word: str) -> str:
    if word == "-h":
        return "--help"
    return f"-{word}" if len(word) > 2 and word[0] == "-" and word[1].isalpha() and not word[2:].isdigit() else word
