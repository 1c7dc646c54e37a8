"""The options by which commands choose calls: `--from --to --provider --model --project --user --session --status
--errors`.

Reads what people type, days in their own time zone, into the index's `Filter`. Leaves out what is done with it.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from typing import TYPE_CHECKING

from llm_proxy.errors import UsageError
from llm_proxy.records import moments

if TYPE_CHECKING:
    from llm_proxy.index.queries import Filter
    from llm_proxy.service.ask import Places

_STATUS = re.compile(r"[1-5][0-9]{2}|[1-5]xx|none")


def places_from(given: argparse.Namespace) -> Places:
    """Raises ConfigError."""
    from llm_proxy.service.ask import places

    return places(os.environ, given.config, given.log_dir)


def filter_from(given: argparse.Namespace) -> Filter:
    """Raises UsageError, naming the option, the rule and the value."""
    from llm_proxy.index.queries import Filter

    if given.status_ and not _STATUS.fullmatch(given.status_):
        raise UsageError(f"--status must be a status such as 404, a class such as 5xx, or none, got {given.status_!r}")
    since, until = moment("--from", given.from_), moment("--to", given.to_, end=True)
    if since is not None and until is not None and until <= since:
        raise UsageError(f"--to must be later than --from, got {given.to_!r} and {given.from_!r}")
    return Filter(
        since_ns=since,
        until_ns=until,
        provider="anthropic" if given.provider_ == "claude" else given.provider_,
        model=given.model_,
        project=given.project_,
        session=given.session_,
        status=given.status_,
        user=given.user_.strip(),
        errors=given.errors,
    )


def moment(option: str, text: str, *, end: bool = False, now: float | None = None) -> int | None:
    """Nanoseconds since 1970, None for no text. A day begins, or with `end` is over, at local midnight."""
    if not text:
        return None
    try:
        return moments.moment(text, time.time() if now is None else now, end=end)
    except ValueError:
        raise UsageError(f"{option} must be {moments.MOMENTS}, got {text!r}") from None
