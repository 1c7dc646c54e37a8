"""`llm-proxy doctor [--online] [--json]`: parses, calls, prints. Exit status: 0 no problem, 1 some, 2 wrong usage."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llm_proxy.cli import usage


def doctor(arguments: Sequence[str]) -> int:
    """Raises UsageError."""
    given = usage.parse("doctor", arguments)
    from llm_proxy.service import doctor as service

    results = service.examine(os.environ, online=given.online)
    print(service.as_json(results) if given.json else service.as_text(results))
    return service.exit_status(results)
