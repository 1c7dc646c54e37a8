"""Ids of requests: those made later sort later. Leaves out ids of answers, which are their providers'."""

from __future__ import annotations

import os
import time


def request_id() -> str:
    """`req_` and the 32 hexadecimal digits of a UUIDv7 (RFC 9562 §5.7)."""
    number = int.from_bytes(os.urandom(10), "big") & ~(0xF << 76 | 0x3 << 62)
    milliseconds = time.time_ns() // 1_000_000 & (1 << 48) - 1
    return f"req_{milliseconds << 80 | 7 << 76 | number | 2 << 62:032x}"
