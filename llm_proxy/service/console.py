"""A line on the console for each call that is over, as Taco writes them: `[HH:MM:SS] provider duration status path`.

Leaves out the record: this tells what goes on, and may drop lines where nobody reads them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llm_proxy.proxy.relay import Relay

_NAMES = {"anthropic": "claude"}
_LEVELS = ("debug", "info", "warn", "error")
# By the status' first digit; a call without an answer counts as an error.
_COLOURS = {2: "\x1b[32m", 3: "\x1b[34m", 4: "\x1b[33m"}
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_UNPRINTABLE = re.compile(r"[^ -~]")


class Told(NamedTuple):
    """One call. `status` is 0 where nothing came back."""

    at: datetime
    provider: str
    method: str
    path: str
    status: int
    ms: int
    ending: str

    @property
    def level(self) -> str:
        return "error" if self.status >= 400 or not self.status else "warn" if self.status >= 300 else "info"


def pretty(told: Told, *, colours: bool) -> str:
    status = str(told.status or told.ending)
    if colours:
        status = f"{_COLOURS.get(told.status // 100, _RED)}{status}{_PLAIN}"
    return f"[{told.at:%H:%M:%S}] {told.provider} {duration(told.ms)} {status} {told.path}"


def as_json(told: Told) -> str:
    at = told.at.astimezone().isoformat(timespec="milliseconds")
    facts = {"time": at, "level": told.level, **told._asdict(), "duration_ms": told.ms}
    return json.dumps({name: value for name, value in facts.items() if name not in ("at", "ms")})


def plain(told: Told) -> str:
    at = told.at.astimezone().isoformat(timespec="milliseconds")
    return (
        f"time={at} level={told.level} provider={told.provider} method={told.method} path={told.path} "
        f"status={told.status} duration_ms={told.ms} ending={told.ending}"
    )


def duration(ms: int) -> str:
    """`812ms`, `3.2s`, `2m5s`."""
    if ms < 1000:
        return f"{ms}ms"
    return f"{ms / 1000:.1f}s" if ms < 60_000 else f"{ms // 60_000}m{ms % 60_000 // 1000}s"


def witness(say: Callable[[str], None], style: str, level: str, *, colours: bool) -> Callable[[Relay], None]:
    """What is called with each exchange that is over. `style` is pretty, json or plain."""
    lowest = _LEVELS.index(level)
    write = {"json": as_json, "plain": plain}.get(style) or (lambda told: pretty(told, colours=colours))

    def tell(relay: Relay) -> None:
        told = _told(relay)
        if _LEVELS.index(told.level) >= lowest:
            say(write(told))

    return tell


def _told(relay: Relay) -> Told:
    head, route = relay.response_head, relay.route
    provider = _NAMES.get(route.provider, route.provider)
    return Told(
        at=datetime.now(),  # a person's clock
        provider=provider,
        method=relay.head.method.decode("ascii"),
        path=_UNPRINTABLE.sub(lambda sign: f"\\x{ord(sign[0]):02x}", route.masked.decode("latin-1")).partition("?")[0],
        status=head.status if head is not None else relay.answered,
        ms=(time.monotonic_ns() - relay.started) // 1_000_000,
        ending=relay.ending.name.lower() if relay.ending is not None else "",
    )
