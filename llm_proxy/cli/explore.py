"""`llm-proxy explore [--port N] [--print]`: the record in a browser."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llm_proxy.cli import filters
from llm_proxy.cli.options import explore_port


def explore(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, CannotListen, StateUnusable."""
    parser = filters.Parser(prog="llm-proxy explore", add_help=False, allow_abbrev=False)
    for option in ("--port", "--log-dir", "--config"):
        parser.add_argument(option)
    parser.add_argument("--print", action="store_true", dest="print_only")
    given = filters.parse(parser, arguments)
    port = explore_port(given.port, "--port")
    from llm_proxy import settings
    from llm_proxy.service import explore as exploring

    flags = {"log_dir": given.log_dir} if given.log_dir else {}
    loaded = settings.load(flags, os.environ, given.config)
    return exploring.run(loaded, port=port, print_only=given.print_only)
