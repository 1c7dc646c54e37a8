"""`llm-proxy start`: what Taco's command of that name does, with Taco's own configuration and environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llm_proxy import paths, settings
from llm_proxy.cli import commands, usage


def start(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, CannotListen."""
    from llm_proxy.service import doors, taco

    given = usage.parse("start", arguments)
    tree = settings.tree(paths.expand(given.config)) if given.config is not None else {}
    said, recording = taco.given(tree, given.config or "", os.environ)
    if given.port is not None:
        said.append(("port", given.port, "--port"))
    loaded = settings.load({"host": given.host, "log_dir": given.log_dir}, os.environ, None, said)
    loaded = doors.through(loaded, doors.TACO, always=True) if recording else loaded._replace(door=doors.TACO.name)
    return commands.serve(loaded, service=False)
