"""Ids of requests: those made later sort later. Leaves out ids of answers, which are their providers'."""

from __future__ import annotations

import random
import time

_RANDOM = random.Random()  # unlike everybody else's, which is enough: an id is no secret


def request_id() -> str:
    """`req_` and the 32 hexadecimal digits of a UUIDv7 (RFC 9562 §5.7)."""
    milliseconds = time.time_ns() // 1_000_000 & (1 << 48) - 1
    return (
        f"req_{milliseconds << 80 | 7 << 76 | _RANDOM.getrandbits(12) << 64 | 2 << 62 | _RANDOM.getrandbits(62):032x}"
    )
