"""`llm-proxy start`: what Taco's command of that name does, with Taco's own configuration and environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llm_proxy import paths, settings
from llm_proxy.cli import commands, filters, options


def start(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, CannotListen."""
    from llm_proxy.service import doors, taco

    parser = filters.Parser(prog="llm-proxy start", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    for name in ("--port", "--config", "--host", "--log-dir"):
        parser.add_argument(name)
    given = filters.parse(parser, [options.two_dashes(word) for word in arguments])
    if given.help:
        print(options.help_page(), end="")
        return 0
    tree = settings.tree(paths.expand(given.config)) if given.config is not None else {}
    said, recording = taco.given(tree, given.config or "", os.environ)
    if given.port is not None:
        said.append(("port", given.port, "--port"))
    loaded = settings.load({"host": given.host, "log_dir": given.log_dir}, os.environ, None, said)
    loaded = doors.through(loaded, doors.TACO, always=True) if recording else loaded._replace(door=doors.TACO.name)
    return commands.serve(loaded, service=False)
