"""One reader, several reasons to pause it: it reads again only when none is left."""

from __future__ import annotations

import asyncio
from typing import Final


class Reason:
    """Why a reader is paused: bits."""

    PEER_FULL: Final = 1  # the other side takes no more for now
    DIALLING: Final = 2  # there is nobody yet to give the bytes to
    PIPELINE: Final = 4  # the next request has to wait for its turn
    BUDGET: Final = 8  # a flood of tiny chunks: others get a turn first
    UNREAD: Final = 16  # earlier answers have not been taken yet


class Gate:
    """Pauses and resumes a transport's reading."""

    __slots__ = ("reasons", "transport")

    def __init__(self, transport: asyncio.ReadTransport) -> None:
        self.transport = transport
        self.reasons = 0

    def shut(self, reason: int) -> None:
        if not self.reasons and not self.transport.is_closing():
            self.transport.pause_reading()
        self.reasons |= reason

    def open(self, reason: int) -> None:
        if not self.reasons:
            return
        self.reasons &= ~reason
        if not self.reasons and not self.transport.is_closing():
            self.transport.resume_reading()
