"""`llm-proxy explore [--port N] [--print]`: the record in a browser."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llm_proxy.cli import usage
from llm_proxy.cli.options import explore_port


def explore(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, CannotListen, StateUnusable."""
    given = usage.parse("explore", arguments)
    port = explore_port(given.port, "--port")
    from llm_proxy import settings
    from llm_proxy.service import explore as exploring

    flags = {"log_dir": given.log_dir} if given.log_dir else {}
    loaded = settings.load(flags, os.environ, given.config)
    return exploring.run(loaded, port=port, print_only=given.print_only)
