"""A body that may be longer than what is recorded of it: how much is still recorded, and the digest of all of it."""

from __future__ import annotations

import hashlib


class LongBody:
    """Mutable: what is left to record. A digest needs the first byte too, so it runs from the start wherever the body
    could turn out too long.
    """

    __slots__ = ("digest", "left", "over", "sink", "taken")

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.over = False
        self.taken = 0  # bytes after a 101, where no framing counts them
        self.digest = hashlib.sha256()
        self.sink: list[bytes] = []

    def note(self) -> None:
        """Digest what the framing has put into the sink."""
        for piece in self.sink:
            self.digest.update(piece)
        self.sink.clear()

    @property
    def sha256(self) -> bytes:
        """Of the whole body; empty where all of it is recorded anyway."""
        return self.digest.digest() if self.over else b""

    def cut(self, piece: bytes) -> bytes:
        """What of a piece is still recorded."""
        if len(piece) <= self.left:
            self.left -= len(piece)
            return piece
        piece, self.left, self.over = piece[: self.left], 0, True
        return piece
