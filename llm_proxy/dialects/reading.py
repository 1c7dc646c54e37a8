"""What every dialect reads with: JSON that may be broken or hostile, events of a stream, tool arguments, errors.

Nothing here raises, whatever the bytes. Leaves out what any of it means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer

T = TypeVar("T")

_LARGEST = 1 << 53  # what a JSON number can say exactly (RFC 8259 §6), and more tokens than there are
_SHOWN = 1000  # characters of an error that is no JSON
_BOM = b"\xef\xbb\xbf"
_FIELD = re.compile(rb"(?:data|event|id|retry)?:")  # what a line of an event stream begins with


def _number(text: str) -> int | float:
    """A client that parses 1.0 and writes it again writes 1."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < _LARGEST else value


def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """A decoder for `kind` that reads numbers as `canonical` writes them."""
    return msgspec.json.Decoder(kind, float_hook=_number)


_VALUE = msgspec.json.Decoder(Any, float_hook=_number)
RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.Encoder(order="sorted").encode


def read(decoder: msgspec.json.Decoder[T], data: bytes | str | msgspec.Raw) -> T | None:
    """What the decoder makes of `data`; None where it is absent, broken, too deep or of another type.

    Lone surrogates, NaN and bytes that are not UTF-8 do not spoil the rest: clients and models send them.
    """
    if not data:
        return None
    for mend in (_as_it_is, _paired, _mended):
        try:
            return decoder.decode(mend(data))
        except msgspec.ValidationError:
            return None
        except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError):
            pass
    return None


def _as_it_is(data: bytes | str | msgspec.Raw) -> bytes | str | msgspec.Raw:
    return data


# Whole pairs match too, so that their halves do not.
_SURROGATES = re.compile(rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|[c-fC-F][0-9a-fA-F]{2})")


def _paired(data: bytes | str | msgspec.Raw) -> bytes:
    """Half an emoji, which clients cut off and send again with every turn, is the common damage, and quickly undone.

    Raises ValueError where there is none.
    """
    raw = well_formed(data).encode() if isinstance(data, str) else bytes(data)
    mended = _SURROGATES.sub(_whole, raw)
    if mended == raw:
        raise ValueError("no lone surrogates")
    return mended


def _whole(match: re.Match[bytes]) -> bytes:
    """A pair stays, and so does what only looks like an escape: its backslash is escaped by the one before."""
    raw, start = match.string, match.start()
    before = start
    while before and raw[before - 1] == ord("\\"):
        before -= 1
    return match[0] if match[1] or (start - before) % 2 else rb"\ufffd"


def _mended(data: bytes | str | msgspec.Raw) -> bytes:
    """The same JSON as strict parsers want it. Raises ValueError, RecursionError."""
    text = data if isinstance(data, str) else bytes(data).decode("utf-8", "replace")
    value = json.loads(text.removeprefix("\ufeff"), parse_constant=lambda _: None)
    return well_formed(json.dumps(value, ensure_ascii=False, separators=(",", ":"))).encode()


def read_value(data: bytes | str | msgspec.Raw) -> Any:
    """Any JSON as plain values, None where it is none."""
    return read(_VALUE, data)


def read_each(decoder: msgspec.json.Decoder[T], data: bytes | str | msgspec.Raw) -> Iterator[T]:
    """Of a JSON array the items that the decoder reads; the others are passed over."""
    for item in read(RAWS, data) or ():
        value = read(decoder, item)
        if value is not None:
            yield value


def remembered(read: Callable[[bytes], T], most: int = 2048, longest: int = 8 << 10) -> Callable[[msgspec.Raw], T]:
    """`read`, with the last `most` results kept for JSON of up to `longest` bytes.

    Histories, instructions and tools come again with every request.
    """
    kept = lru_cache(most)(read)

    def recalled(raw: msgspec.Raw) -> T:
        data = bytes(raw)
        return kept(data) if len(data) <= longest else read(data)

    return recalled


def canonical(data: bytes | str | msgspec.Raw) -> str:
    """JSON in one spelling (no blanks, sorted keys), so that a tool call can be told when a client sends it back.

    What is no JSON stays as it is.
    """
    value = read_value(data)
    if value is None:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8", "replace")
        return well_formed(text)
    return written(value)


def written(value: Any) -> str:
    """Plain values as canonical JSON."""
    try:
        return _encode(value).decode()
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        return ""


def well_formed(text: str) -> str:
    """Each half of a surrogate pair, which nothing behind here could write, becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def text(value: Any) -> str:
    """`value` where it is a string."""
    return value if type(value) is str else ""


def count(value: Any) -> int:
    """`value` where it is a count of something, else 0."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < _LARGEST else 0


def mapping(value: Any) -> dict[str, Any]:
    """`value` where it is an object, else an empty one."""
    return value if type(value) is dict else {}


def sequence(value: Any) -> list[Any]:
    """`value` where it is an array, else an empty one."""
    return value if type(value) is list else []


def events(stream: bytes) -> list[bytes]:
    """The data of each server-sent event (HTML standard §9.2.6), line by line joined with \\n.

    An event whose blank line never came is left out: no client has seen it.
    """
    return [data for lines in _blocks(stream) if (data := _data(lines)) is not None]


def named_events(stream: bytes) -> list[tuple[str, bytes]]:
    """The same with each event's name, "" where it has none."""
    return [(_name(lines), data) for lines in _blocks(stream) if (data := _data(lines)) is not None]


def _blocks(stream: bytes) -> Iterator[list[bytes]]:
    if b"\r" in stream:
        stream = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for block in stream.removeprefix(_BOM).split(b"\n\n")[:-1]:
        yield block.split(b"\n")


def _data(lines: list[bytes]) -> bytes | None:
    told = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data"]
    return b"\n".join(told) if told else None


def _name(lines: list[bytes]) -> str:
    told = [line[6:].removeprefix(b" ") for line in lines if line.startswith(b"event:")]
    return told[-1].decode("utf-8", "replace") if told else ""


def error_of(error: Any) -> tuple[str, str]:
    """Type and words of an error as the providers write it: an object, or just the words."""
    fields = mapping(error)
    kind = text(fields.get("type")) or text(fields.get("status")) or text(fields.get("code"))
    return kind, text(fields.get("message")) or text(error)


def streamed(content: Content) -> bool:
    """Whether `data` is an event stream. Errors come plain where a stream was asked for, and old logs name no type."""
    start = content.data[:64].removeprefix(_BOM).lstrip()
    if content.kind == "events":
        return not start.startswith((b"{", b"["))
    return _FIELD.match(start) is not None


def failure(content: Content) -> Answer:
    """An answer that is no JSON: what an edge server or a proxy says when it fails, or nothing at all."""
    said = content.data[: 4 * _SHOWN].decode("utf-8", "replace").strip()[:_SHOWN]
    if content.status is not None and content.status >= 400:
        return Answer(error=said or f"status {content.status} without a body", partial=not content.complete)
    trouble = "the body is not the JSON that this API answers with" if said else ""
    return Answer(partial=not content.complete or not said, trouble=trouble)
