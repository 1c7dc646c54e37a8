"""What a look at a gateway's surroundings finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was found; where it is not good, `remedy` says what to do."""

    ok: bool
    what: str
    remedy: str = ""
