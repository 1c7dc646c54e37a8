"""Parts of a stream one after the other, for APIs that have it so; models of others write several calls at once.

Leaves out how parts are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llm_proxy.gateway.translate.conversation import Event, Failure, Part, PartBegin, PartEnd, Piece, Signed, Thinking
from llm_proxy.gateway.translate.signatures import carried

_OfPart = PartBegin | Piece | Signed | PartEnd


class InOrder:
    """Holds back what belongs to a part until the parts before it have ended. Numbers the parts anew.

    Where an API's calls have no signatures, a call's becomes that of a thought before it (`signatures`).
    """

    def __init__(self, *, calls_signed: bool = False) -> None:
        self._calls_signed = calls_signed
        self._open: int | None = None
        self._number = -1
        self._waiting: dict[int, list[_OfPart]] = {}

    def events(self, event: Event) -> Iterator[Event]:
        """What can be told now. Anything but a part's event comes through, after all that waited; what a provider
        broke off is not ended.
        """
        if isinstance(event, Failure):
            yield event
        elif not isinstance(event, PartBegin | Piece | Signed | PartEnd):
            yield from self._rest()
            yield event
        elif self._open is None or event.index == self._open:
            yield from self._told(event)
            while self._open is None and self._waiting:
                yield from self._next()
        else:
            self._waiting.setdefault(event.index, []).append(event)

    def _rest(self) -> Iterator[Event]:
        if self._open is not None:
            yield from self._told(PartEnd(self._open))
        while self._waiting:
            yield from self._next()
            if self._open is not None:
                yield from self._told(PartEnd(self._open))

    def _next(self) -> Iterator[Event]:
        for event in self._waiting.pop(next(iter(self._waiting))):
            yield from self._told(event)

    def _told(self, event: _OfPart) -> Iterator[Event]:
        if isinstance(event, PartBegin):
            self._open = event.index
            yield from self._begun(event.part)
            return
        yield replace(event, index=self._number)
        if isinstance(event, PartEnd):
            self._open = None

    def _begun(self, part: Part) -> Iterator[Event]:
        for one in (part,) if self._calls_signed else carried((part,)):
            self._number += 1
            if one is not part and isinstance(one, Thinking):
                yield PartBegin(self._number, replace(one, signature=""))
                yield Signed(self._number, one.signature, one.origin)
                yield PartEnd(self._number)
            else:
                yield PartBegin(self._number, one)
