"""How words are kept and found: what of a message is searched, how it is stored, and what a person's query means.

Pure. The same text always becomes the same words: the search index cannot forget them otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

from llm_proxy.sinks.log_reader import zstandard

# Characters of one message that are searched: what stands beyond is found in the log file alone.
LONGEST = 256 << 10
# Shorter texts take no less room packed.
_WORTH_PACKING = 160

_BLOB_LENGTH = 200
# Base64 and its like: nobody searches it, and every piece would be a word of its own.
_BLOB = re.compile(rf"[A-Za-z0-9+/=_-]{{{_BLOB_LENGTH},}}")
# Control characters, lone surrogates, and the sign that is put between words here.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000), 0x200B), " ")
# Scripts that put no space between words: each sign is a word, and a word a row of them.
_UNSPACED = re.compile(r"(?=[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_GAP = "\u200b"  # zero-width space: no eye sees it, the tokenizer ends a word at it

OPEN, CLOSE = "\x02", "\x03"  # around a word that was found: cannot be in a text


def prepared(texts: Iterable[str]) -> str:
    """What is searched of some texts."""
    words = "\n".join(part[:LONGEST] for part in texts if part)[:LONGEST]
    if max(map(len, words.split()), default=0) >= _BLOB_LENGTH:
        words = _BLOB.sub("…", words)
    words = words.translate(_CONTROL).strip()
    return words if words.isascii() else _UNSPACED.sub(_GAP, words)


_BEFORE, _AFTER = 50, 150  # characters around the first found word that is shown
_BETWEEN_WORDS = re.compile(rf"\s|{_GAP}")


def shown(marked: str) -> tuple[tuple[str, bool], ...]:
    """Of a text with marks the part with the most different words that were found, as (text, whether it was found)."""
    pieces = re.split(f"[{OPEN}{CLOSE}]", marked)  # every second one was found
    places = list(zip([0, *accumulate(map(len, pieces))], pieces, strict=False))
    words = "".join(pieces)
    begin, end = _window(places[1::2], words)
    told = []
    for number, (start, piece) in enumerate(places):
        part = piece[max(0, begin - start) : max(0, end - start)]
        if part := re.sub(r"\s+", " ", part.replace(_GAP, "")):
            told.append((part, number % 2 == 1))
    before, after = ([("…", False)] if cut_off else [] for cut_off in (begin > 0, end < len(words)))
    return (*before, *told, *after)


def _window(found: Sequence[tuple[int, str]], words: str) -> tuple[int, int]:
    """From where to where, at ends of words. `found`: (place, word)."""
    first = most = start = last = 0
    near: Counter[str] = Counter()
    for place, word in found:
        near[word.lower()] += 1
        while near[found[first][1].lower()] > 1 or found[first][0] <= place - _AFTER:
            gone = found[first][1].lower()
            near[gone] -= 1
            if not near[gone]:
                del near[gone]
            first += 1
        if len(near) > most:
            most, start, last = len(near), found[first][0], place + len(word)
    begin, end = max(0, start - _BEFORE), max(last, start + _AFTER)
    if begin:
        begin = next((gap.end() for gap in _BETWEEN_WORDS.finditer(words, begin, start)), start)
    if end < len(words):
        end = max((gap.start() for gap in _BETWEEN_WORDS.finditer(words, last, end)), default=end)
    return begin, end


@cache
def _packer() -> Any:
    return zstandard().ZstdCompressor(level=3)


@cache
def _unpacker() -> Any:
    return zstandard().decompress


def packed(words: str) -> bytes | str:
    if len(words) < _WORTH_PACKING:
        return words
    packer = _packer()
    data: bytes = packer.compress(words.encode(), packer.FLUSH_FRAME)
    return data


def unpacked(stored: bytes | str) -> str:
    return stored if isinstance(stored, str) else _unpacker()(stored).decode()


_TERM = re.compile(r'(-?)(?:"([^"]*)"?|(\S+))')


def query(words: str) -> str:
    """What a person typed, for FTS5; "" where it asks for nothing. Each word is quoted, so none is an operator."""
    wanted: list[str] = []
    unwanted: list[str] = []
    for minus, phrase, word in _TERM.findall(words):
        begins = word.endswith("*")
        said = prepared([phrase or word.rstrip("*")]).replace('"', " ")
        if not any(sign.isalnum() for sign in said):
            continue
        (unwanted if minus else wanted).append(f'"{said}"' + ("*" if begins else ""))
    if not wanted:
        return ""
    return " ".join(wanted) + "".join(f" NOT {term}" for term in unwanted)
