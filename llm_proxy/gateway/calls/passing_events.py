"""Server-sent events that pass as they are, whole: what breaks off in the middle of one leaves no half of it behind.

`WithoutCounts` takes the token counts of chat completions out again, for a caller who did not ask for them: they come
as one more chunk, without choices, behind the last one. Leaves out the `usage: null` of the other chunks, which clients
know.
"""

from __future__ import annotations

import re
from typing import Final

from llm_proxy.dialects.reading import read_value

MOST: Final = 1 << 20  # bytes held back; of an event that is longer the beginning goes on alone

_BLANK = re.compile(rb"\n\r?\n|\r\r")


class WholeEvents:
    """Gives what it is fed up to the last event's end; the rest waits."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """The events that `piece` completes."""
        data = self._held + piece if self._held else piece
        if data.endswith(b"\n\n"):  # nearly always
            self._held = b""
            return self._passed(data)
        end = len(data) if len(data) > MOST else max((match.end() for match in _BLANK.finditer(data)), default=0)
        self._held = data[end:]
        return self._passed(data[:end])

    def finish(self) -> bytes:
        """The stream has ended as it should: what is left of it."""
        held, self._held = self._held, b""
        return self._passed(held)

    def _passed(self, data: bytes) -> bytes:
        return data


class WithoutCounts(WholeEvents):
    """The same without the chunk of the counts."""

    __slots__ = ()

    def _passed(self, data: bytes) -> bytes:
        if b'"choices"' not in data or b'"prompt_tokens"' not in data:
            return data
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
