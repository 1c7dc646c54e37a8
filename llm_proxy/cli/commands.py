"""One function per command: reads settings, calls `service`, prints. Errors become one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from llm_proxy import __version__
from llm_proxy.cli.options import Options, help_page, parse
from llm_proxy.errors import AlreadyRunning, ConfigError, LlmProxyError, UsageError

EX_CONFIG = 78  # sysexits.h

_STATUS: dict[type[LlmProxyError], int] = {UsageError: 2, ConfigError: EX_CONFIG}


def main(arguments: Sequence[str]) -> None:
    """Run the command and exit with its status."""
    try:
        options = parse(arguments)
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
    except LlmProxyError as exc:
        print(f"llm-proxy: {exc}", file=sys.stderr)
        status = _STATUS.get(type(exc), 1)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's last flush complains
        status = 0
    sys.exit(status)


def _serve(options: Options) -> int:
    from llm_proxy import settings

    loaded = settings.load(options.flags, os.environ, options.config)
    _forget_the_command_line()
    from llm_proxy.service import daemon

    try:
        status = daemon.run(loaded, service=options.command == "service")
    except AlreadyRunning as exc:
        print(f"llm-proxy: {exc}")
        return 0
    # A thread that hangs in the system's resolver would hold up the interpreter's own way out. All is on disk.
    os._exit(status)


def _status(options: Options) -> int:
    from llm_proxy import settings
    from llm_proxy.service import status

    found = status.look(settings.load(options.flags, os.environ, options.config).settings, dict(os.environ))
    print(status.as_json(found) if options.json else status.as_text(found))
    return 0 if found.running else 1


def _version(options: Options) -> int:
    print(f"llm-proxy {__version__}")
    return 0


def _help(options: Options) -> int:
    print(help_page(), end="")
    return 0


def _forget_the_command_line() -> None:
    """A daemon lives for months: what only served to read its arguments need not stay in memory."""
    for name in ("argparse", "gettext", "tomllib", "tomllib._parser", "tomllib._re", "llm_proxy.cli.options"):
        sys.modules.pop(name, None)


COMMANDS: dict[str, Callable[[Options], int]] = {
    "help": _help,
    "version": _version,
    "status": _status,
    "serve": _serve,
    "service": _serve,
}
