"""Amazon's event streams told as server-sent events, which is how the record holds them.

A frame is an event of that name with the payload as its data. InvokeModel's frames only carry the model's own events:
these are told as they are, without a name. Exceptions have names of their own. Leaves out what any of them means
(`bedrock`).
"""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from llm_proxy.wire.eventstream import Frame

# The names of frames that end a stream because something failed begin so.
FAILURES = ("exception:", "error:")
# A name that an event stream's line can hold.
_NAME = re.compile(r"[\w.:-]{1,100}", re.ASCII)
_LINE_END = re.compile(r"\r\n|\n|\r")


class _Piece(msgspec.Struct):
    """The payload of a frame with a model's own event in it. `p` is padding."""

    bytes: str


_PIECE = msgspec.json.Decoder(_Piece)


def carried(frame: Frame) -> bytes | None:
    """The model's own event that a frame of InvokeModel carries; None where it carries none."""
    if frame.text(":event-type") != "chunk" or _is_failure(frame):
        return None
    try:
        coded = _PIECE.decode(frame.payload).bytes.replace("-", "+").replace("_", "/")
        return base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        return None


def told(frame: Frame) -> list[str]:
    """The lines of the event, the last with the blank line behind it; empty where it cannot be told as text."""
    event = carried(frame)
    name = "" if event is not None else name_of(frame)
    try:
        data = (frame.payload if event is None else event).decode()
    except UnicodeDecodeError:
        return []
    if event is None and not _NAME.fullmatch(name):
        return []
    if not data and _is_failure(frame):
        data = msgspec.json.encode({"message": frame.text(":error-message")}).decode()
    lines = [f"data: {line}\n" for line in _LINE_END.split(data)]
    return [*([f"event: {name}\n"] if name else ()), *lines[:-1], lines[-1] + "\n"]


def name_of(frame: Frame) -> str:
    """What happened, by the headers that the kind of message has."""
    kind = frame.text(":message-type")
    if kind == "exception":
        return f"exception:{frame.text(':exception-type')}"
    if kind == "error":
        return f"error:{frame.text(':error-code')}"
    return frame.text(":event-type")


def _is_failure(frame: Frame) -> bool:
    return frame.text(":message-type") in ("exception", "error")
