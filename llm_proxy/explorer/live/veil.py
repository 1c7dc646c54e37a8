"""Secrets kept from texts that come in pieces: what is given on is what the record would say, a little later.

A piece is held back until nothing in it can be the beginning of a secret: up to its last blank, and up to the beginning
of a private key whose end has not come. Leaves out what a secret looks like (`records.secrets`).
"""

from __future__ import annotations

import re

from llm_proxy.records.redaction import Redactor

CONTEXT = 400  # characters before a piece that may say what it is: a name, a colon
LONGEST = 4096  # characters without a blank; such a run is left out
KEY_LONGEST = 64 << 10  # characters of a private key
LEFT_OUT = "[…]"

# A key's letters, and all that may stand in a URL. Scripts without blanks are no part of either.
_BLANK = re.compile(r"[\s\u2e80-\uffef]")
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY")
_PEM_LENGTH = 60  # characters, until it says that it is a key or does not
_PEM_END = re.compile(r"-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----")


class Veil:
    """One text. With `by_line` it is held back up to its last line end: secrets of one's own kinds may have blanks."""

    def __init__(self, redactor: Redactor | None, *, by_line: bool = False) -> None:
        self._redactor = redactor
        self._by_line = by_line
        self._context = ""
        self._held = ""

    def feed(self, text: str) -> str:
        """What can be shown now."""
        if self._redactor is None:
            return text
        self._held += text
        return self._release(self._safe())

    def finish(self) -> str:
        """The text is over: what was held back."""
        shown = "" if self._redactor is None else self._release(len(self._held))
        self._context = ""
        return shown

    def _safe(self) -> int:
        held = self._held
        *_, begun = None, *_PEM.finditer(held)
        ended = _PEM_END.search(held, begun.end()) if begun is not None else None
        if begun is not None and ended is None:
            if len(held) - begun.start() < KEY_LONGEST:
                return begun.start()
            self._held = held[: begun.start()] + "<PRIVATE_KEY> "
            return len(self._held)
        end = held.rfind("\n") + 1 if self._by_line else _last_blank(held)
        end = max(end, ended.end()) if ended is not None else end
        if (dashes := held.rfind("-----BEGIN", max(0, end - _PEM_LENGTH), end)) > (begun.start() if begun else -1):
            end = dashes  # the words of a private key's first line have blanks between them
        if len(held) - end > LONGEST:
            self._held = held[:end] + LEFT_OUT + " "
            return len(self._held)
        return end

    def _release(self, end: int) -> str:
        piece, self._held = self._held[:end], self._held[end:]
        if not piece:
            return ""
        assert self._redactor is not None
        # What stands before is looked at again; where a secret goes on from it, only what follows it is left to show.
        before = self._context
        whole = self._redactor.text(before + piece)
        shown = whole[_common(before, whole) :]
        self._context = (before + shown)[-CONTEXT:]
        return shown


def _last_blank(text: str) -> int:
    """Behind the last blank, 0 where there is none. Blanks are frequent: looked for from the end."""
    for start in range(max(0, len(text) - 256), -256, -256):
        found = None
        for found in _BLANK.finditer(text, max(0, start), start + 256):  # noqa: B007  # the last one
            pass
        if found is not None:
            return found.end()
        if start <= 0:
            break
    return 0


def _common(one: str, other: str) -> int:
    """Length of what both begin with."""
    if other.startswith(one):
        return len(one)
    return next(place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
