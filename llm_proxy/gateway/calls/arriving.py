"""A call as it came: its bytes, what of them decides its way, and the same bytes with another model's name.

A body is not decoded where it can pass as it is. Leaves out what else it says (`translate`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import msgspec
from aiohttp import web

from llm_proxy.dialects.reading import read, read_value
from llm_proxy.gateway.calls.parameters import laid_over
from llm_proxy.gateway.calls.project import of_metadata
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.wire.json_span import ModelSpan, NotAnObject

MOST: Final = 32 << 20  # bytes of a body
_LONGEST: Final = 1024  # characters of a model's name: it may go into a path, and so into a head

_KEY = b'"model"'
_NAME = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')
_COUNTED: Final = b'"stream_options":{"include_usage":true},'
_encode = msgspec.json.encode


_NOTHING: Final = msgspec.Raw(b"")


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Head(msgspec.Struct):
    """What decides the way; nothing else is looked at."""

    model: str
    stream: bool | None = None
    stream_options: _Options | msgspec.UnsetType | None = msgspec.UNSET
    metadata: msgspec.Raw = _NOTHING


_HEAD = msgspec.json.Decoder(_Head)


async def body_of(request: web.Request) -> bytes:
    """All of it, its coding taken off. Raises Refusal 413, and 400 where it cannot be read."""
    if (request.content_length or 0) > MOST:
        raise _too_large()
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := await request.content.readany():
            size += len(piece)
            if size > MOST:
                raise _too_large()
            pieces.append(piece)
            if request.content.at_eof():
                break
    except web.RequestPayloadError as error:
        raise Refusal(400, "invalid_body", f"the body cannot be read: {' '.join(str(error).split())}") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large() -> Refusal:
    return Refusal(413, "request_too_large", f"a request's body has at most {MOST} bytes")


class Arrived:
    """One request's body. Raises Refusal 400 where it is no object that names a model."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        head = _head(body)
        self.model = head.model
        self.stream = bool(head.stream)
        self._options = head.stream_options
        self.project = of_metadata(bytes(head.metadata)) if head.metadata else ""
        if not self.model.strip():
            raise Refusal(400, "invalid_request", "model: must name a model", param="model")
        if len(self.model) > _LONGEST:
            words = f"model: must be a text of at most {_LONGEST} characters, not {len(self.model)}"
            raise Refusal(400, "invalid_request", words, param="model")

    @property
    def counts(self) -> bool:
        """Whether a stream of chat completions is asked to end with its token counts."""
        return isinstance(self._options, _Options) and bool(self._options.include_usage)

    @cached_property
    def document(self) -> dict[str, Any]:
        """Decoded. Not to be changed. Raises Refusal 400: `_head` has passed over what nobody can read."""
        value = read_value(self.body)
        if not isinstance(value, dict):
            raise _no_json("there is a number in it that is too long, or it is nested too deep")
        return value

    def as_sent(self, api: str, model: str, parameters: Mapping[str, Any], *, counted: bool = False) -> bytes:
        """For a provider who speaks the same API: its own name of the model, `parameters` over the caller's (None
        takes one away); `counted` has a stream of chat completions end with its token counts.
        """
        spliced = counted and self._options is msgspec.UNSET
        if parameters or (counted and not spliced and not self.counts):
            return self._encoded(api, model, parameters, counted)
        start, end = (0, 0) if model == self.model else self._span
        body = self.body if not end else b"".join((self.body[:start], _encode(model), self.body[end:]))
        if not spliced:
            return body
        first = body.index(b"{") + 1
        return b"".join((body[:first], _COUNTED, body[first:]))

    def _encoded(self, api: str, model: str, parameters: Mapping[str, Any], counted: bool) -> bytes:
        told = laid_over(api, self.document, parameters) | {"model": model}
        if counted and self.stream:
            options = told.get("stream_options")
            told["stream_options"] = (options if isinstance(options, dict) else {}) | {"include_usage": True}
        return _encode(told)

    @cached_property
    def _span(self) -> tuple[int, int]:
        """Where the model's name stands. That it is there, at the top, is known; where only one such key is, that is
        it, unless a letter of it is escaped.
        """
        body = self.body
        at = body.find(_KEY)
        if at >= 0 and body.find(_KEY, at + 1) < 0 and b"\\u006" not in body:
            match = _NAME.match(body, at + len(_KEY))
            if match:
                return match.span(1)
        scanner = ModelSpan()
        try:
            scanner.feed(body)
            found = scanner.found()
        except NotAnObject as error:
            raise _no_json(str(error)) from None
        if found is None or found.name != self.model:
            raise Refusal(400, "invalid_request", "model: must be a text of at most 1024 bytes", param="model")
        return found.start, found.end


def _head(body: bytes) -> _Head:
    try:
        return _HEAD.decode(body)
    except msgspec.ValidationError as error:
        words, _, where = str(error).partition(" - at `$")
        param = where.strip("`.") or ("model" if "`model`" in words else "")
        raise Refusal(400, "invalid_request", f"{param}: {words}" if param else words, param=param) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        mended = read(_HEAD, body)  # halves of characters, as clients cut them
        if mended is None:
            raise _no_json(str(error)) from None
        return mended


def _no_json(why: str) -> Refusal:
    return Refusal(400, "invalid_json", f"the body is not a JSON object: {why}")
