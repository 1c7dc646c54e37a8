"""The managed block in a file of the user's: put in, renewed, and taken out again byte for byte.

Bytes in, bytes out, so that no encoding or line ending of the rest matters. Whatever is needed to undo it stands in the
block's first line, so that no receipt can be lost. Leaves out which files, and reading and writing them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_proxy.errors import LlmProxyError

BEGIN = b"# >>> llm-proxy >>>"
END = b"# <<< llm-proxy <<<"
_ABOUT = b" managed by `llm-proxy --setup-shell`; remove with `llm-proxy --uninstall`"
_NOTE = re.compile(rb"\[newlines added: (\d)\]|\[file made, folders made: (\d+)\]")
# What the reference program appends, with the empty line it puts before it.
_REFERENCE = re.compile(rb"(?:(?<=\n)\n|\A\n)?^# LLM Proxy\r?\neval [^\n]*llm-proxy[^\n]*(?:\n|\Z)", re.MULTILINE)


class HalfBlock(LlmProxyError):
    """A marker without its other half. Nothing was changed: where the block ends is not ours to guess."""


@dataclass(frozen=True, slots=True)
class Block:
    """Where one stands, markers included, and what was done to the file for it."""

    start: int
    end: int
    newlines: int = 0  # added before it
    made: bool = False  # the file was
    folders: int = 0  # made for the file


def patch(raw: bytes | None, body: bytes, folders: int = 0) -> bytes:
    """The file with one block that holds `body`, where a block stood already or at the end. None: there is no file yet,
    and `folders` must be made for it. Raises HalfBlock."""
    if raw is None:
        return _text(body, b" [file made, folders made: %d]" % folders)
    raw = _REFERENCE.sub(b"", raw)
    found = blocks(raw)
    if not found:
        newlines = _newlines_needed(raw)
        return raw + b"\n" * newlines + _text(body, b" [newlines added: %d]" % newlines if newlines else b"")
    for extra in reversed(found[1:]):
        raw = _without(raw, extra)
    first = found[0]
    tail = raw[first.end :]
    return raw[: first.start] + _text(body, _note(first)) + tail


def unpatch(raw: bytes) -> bytes:
    """The file without our blocks, and without the newline they needed. Raises HalfBlock."""
    for block in reversed(blocks(raw)):
        raw = _without(raw, block)
    return raw


def blocks(raw: bytes) -> list[Block]:
    """All of them, in order. Raises HalfBlock."""
    found: list[Block] = []
    begun: Block | None = None
    offset = 0
    for number, line in enumerate(raw.split(b"\n"), 1):
        text = line.strip(b" \t\r")
        if text.startswith(BEGIN):
            if begun is not None:
                raise HalfBlock(f"line {number} begins a second block of ours before the first has ended")
            begun, begun_at = _read_note(offset, text), number
        elif text == END:
            if begun is None:
                raise HalfBlock(f"line {number} ends a block of ours that has not begun")
            end = min(offset + len(line) + 1, len(raw))
            found.append(Block(begun.start, end, begun.newlines, begun.made, begun.folders))
            begun = None
        offset += len(line) + 1
    if begun is not None:
        raise HalfBlock(f"line {begun_at} begins a block of ours that does not end")
    return found


def _text(body: bytes, note: bytes) -> bytes:
    return BEGIN + _ABOUT + note + b"\n" + body + END + b"\n"


def _note(block: Block) -> bytes:
    if block.made:
        return b" [file made, folders made: %d]" % block.folders
    return b" [newlines added: %d]" % block.newlines if block.newlines else b""


def _read_note(start: int, text: bytes) -> Block:
    note = _NOTE.search(text)
    if note is None:
        return Block(start, start)
    if note[1] is None:
        return Block(start, start, made=True, folders=int(note[2]))
    return Block(start, start, newlines=int(note[1]))


def _newlines_needed(raw: bytes) -> int:
    """So that the block begins on a line of its own, also after a last line that a backslash continues."""
    line = raw.removesuffix(b"\n")
    continued = (len(line) - len(line.rstrip(b"\\"))) % 2
    return continued + (raw != b"" and line == raw)


def _without(raw: bytes, block: Block) -> bytes:
    head, tail = raw[: block.start], raw[block.end :]
    # what the user has appended since needs the newline
    return head.removesuffix(b"\n" * block.newlines) if not tail else head + tail
