"""Takes the token counts out of a stream of chat completions again, for a caller who did not ask for them.

They come as one more chunk, without choices, behind the last one. Leaves out the `usage: null` of the other chunks:
clients know that field.
"""

from __future__ import annotations

import re

from llm_proxy.dialects.reading import read_value

_BLANK = re.compile(rb"\r?\n\r?\n")
_MOST = 1 << 20  # bytes held back; an event that is longer holds no counts


class WithoutCounts:
    """Gives whole events only: what could be a part of that chunk waits for its rest."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        data = self._held + piece if self._held else piece
        if data.endswith(b"\n\n"):  # nearly always
            self._held = b""
        else:
            end = max((match.end() for match in _BLANK.finditer(data)), default=0)
            if len(data) - end > _MOST:
                end = len(data)
            data, self._held = data[:end], data[end:]
        return self._cleared(data) if b'"choices"' in data and b'"prompt_tokens"' in data else data

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return self._cleared(held)

    def _cleared(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        start = 0
        while start < len(data):
            match = _BLANK.search(data, start)
            end = match.end() if match else len(data)
            if not _counts(data[start:end]):
                kept.append(data[start:end])
            start = end
        return b"".join(kept)


def _counts(event: bytes) -> bool:
    if not event.startswith(b"data:"):
        return False
    told = read_value(event[5:])
    return isinstance(told, dict) and told.get("choices") == [] and isinstance(told.get("usage"), dict)
