"""`llm-proxy doctor [--online] [--json]`: parses, calls, prints. Exit status: 0 no problem, 1 some, 2 wrong usage."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llm_proxy.errors import UsageError

_FLAGS = {"--json", "--online"}


def doctor(arguments: Sequence[str]) -> int:
    """Raises UsageError."""
    given = set(arguments)
    if unknown := given - _FLAGS:
        raise UsageError(f"doctor takes --online and --json, not {min(unknown)}")
    from llm_proxy.service import doctor as service

    results = service.examine(os.environ, online="--online" in given)
    print(service.as_json(results) if "--json" in given else service.as_text(results))
    return service.exit_status(results)
