"""How words are kept and found: what of a message is searched, how it is stored, and what a person's query means.

Pure. The same text always becomes the same words: the search index cannot forget them otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
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


def shown(snippet: str) -> tuple[tuple[str, bool], ...]:
    """A snippet as (text, whether it was found)."""
    pieces = []
    for number, piece in enumerate(re.split(f"[{OPEN}{CLOSE}]", " ".join(snippet.split()))):
        if piece := piece.replace(_GAP, ""):
            pieces.append((piece, number % 2 == 1))
    return tuple(pieces)


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
