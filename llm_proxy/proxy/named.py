"""An exchange with a named model: its body says which, so it is taken whole; of the body only the model's name changes.

Leaves out which models there are (`models`) and finding the name (`wire.json_span`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llm_proxy.proxy import answers
from llm_proxy.proxy.dialler import DialFailed
from llm_proxy.proxy.front import dressed
from llm_proxy.proxy.requests import Request
from llm_proxy.proxy.router import NoRoute, Route
from llm_proxy.proxy.whole import NOT_COPIED, WholeRelay
from llm_proxy.wire.head import RequestHead
from llm_proxy.wire.json_span import ModelSpan, NotAnObject, Span

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.models import ModelsDoor, NamedModel

_PAUSE = 0.2  # seconds before a connection is tried again; each time twice as long


class NamedRelay(WholeRelay):
    """Its route is known once the request is there."""

    __slots__ = ("_door", "_lines", "_model", "_scanner", "_tries", "_wrong")
    route_known = False

    def __init__(self, core: Core, client: ClientConnection, request: Request, door: ModelsDoor) -> None:
        super().__init__(core, client, request, max_body=door.max_body, limited_by="named.max_body")
        self._door = door
        self._scanner = ModelSpan()
        self._wrong = ""  # with the body
        self._model: NamedModel | None = None
        self._tries = 0
        self._lines = door.front.cors(self.head)  # that go with the answer

    # -- request ------------------------------------------------------------------------------------------------

    def _take(self, pieces: list[bytes]) -> None:
        if self._wrong:
            return
        try:
            for piece in pieces:
                self._scanner.feed(piece)
        except NotAnObject as error:
            self._wrong = str(error)

    def _arrived(self) -> None:
        if wait := self._door.front.wait():
            self._lines += b"Retry-After: %d\r\n" % math.ceil(wait)
            self._refuse(429, "rate_limited", "more calls than named.rate_limit allows in a minute")
            return
        try:
            span = self._span()
            model = self._door.named(span.name, self.route.provider)
            route = self._door.towards(model, self.head, self.route.target)
        except NoRoute as error:
            self._refuse(error.status, error.code, error.message)
            return
        self._model, self.route = model, route
        self.core.tee.route(self.serial, self.at, route.facts, self._recorded(route))
        self._make(model, route, span)
        self._send()

    def _span(self) -> Span:
        """Raises NoRoute."""
        provider = self.route.provider
        coding = (self.head.get(b"content-encoding") or b"identity").lower()
        if coding != b"identity":
            message = f"the model is read from the body, which must come unpacked, not as {coding.decode('latin-1')}"
            raise NoRoute(415, "packed_body", message, provider)
        try:
            if self._wrong:
                raise NotAnObject(self._wrong)
            span = self._scanner.found()
        except NotAnObject as error:
            message = f"the request's body is not the JSON object it should be: {error}"
            raise NoRoute(400, "bad_body", message, provider) from None
        if span is None:
            raise NoRoute(400, "no_model", "the request's body names no model", provider)
        return span

    def _recorded(self, route: Route) -> bytes:
        """The masked head as it is sent, with the length of the body as it came, which is what is recorded."""
        assert route.instead is not None
        came = self.request.recorded[len(self.request.prepared.route.facts) :]
        start = b"%b %b HTTP/1.%d" % (self.head.method, route.masked, self.head.minor)
        return b"\r\n".join((start, *came.split(b"\r\n")[1:-2], *route.instead.recorded, b"\r\n"))

    def _make(self, model: NamedModel, route: Route, span: Span) -> None:
        """The message to send."""
        assert self.held is not None
        pieces, length = self.held[1:], self.request_framing.payload
        if model.model != model.name:
            name = answers.quoted(model.model).encode()
            pieces = list(replaced(pieces, span, name))
            length += len(name) - (span.end - span.start)
        self.held = [outgoing(self.head, route, length), *pieces]

    # -- finding an upstream ------------------------------------------------------------------------------------

    def dial_failed(self, error: DialFailed) -> None:
        """Nothing has been sent, so that it may be tried again."""
        assert self._model is not None
        if self.ending is not None or error.refused or error.timed_out or self._tries >= self._model.max_retries:
            super().dial_failed(error)
            return
        self.core.metrics.retries += 1
        self._tries += 1
        self.dialling = asyncio.get_running_loop().create_task(self._dial_again(_PAUSE * 2 ** (self._tries - 1)))

    async def _dial_again(self, pause: float) -> None:
        await asyncio.sleep(pause)
        if self.ending is None:
            await self._connect()

    # -- response -----------------------------------------------------------------------------------------------

    def _dressed(self, answer: bytes) -> bytes:
        return dressed(answer, self._lines)


def replaced(pieces: Iterable[bytes], span: Span, name: bytes) -> Iterable[bytes]:
    """The pieces of a body with `name` in the place of its span; every other byte as it is."""
    at = 0
    for piece in pieces:
        end = at + len(piece)
        if end <= span.start or at >= span.end:
            yield piece
        else:
            inserted = name if at <= span.start else b""
            yield piece[: max(0, span.start - at)] + inserted + piece[span.end - at :]
        at = end


def outgoing(head: RequestHead, route: Route, length: int) -> bytes:
    """The head to send: the client's lines without its own credentials, with ours behind them."""
    assert route.instead is not None
    lines = [b"%b %b HTTP/1.1" % (head.method, route.target), b"Host: " + route.host]
    for field in head.fields:
        if field.role not in NOT_COPIED and field.name not in route.instead.names and field.name not in head.nominated:
            lines.append(field.line)
    return b"\r\n".join((*lines, *route.instead.lines, b"Content-Length: %d" % length, b"\r\n"))
