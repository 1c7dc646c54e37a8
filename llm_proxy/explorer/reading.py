"""Reads calls for a conversation: what was asked and answered, and recorded pictures, each as little as is needed.

A request may have megabytes where its answer has kilobytes, so they are read apart. Leaves out what is made of them
(`turns`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from llm_proxy.dialects import registry
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Asked, Digest
from llm_proxy.explorer import blobs
from llm_proxy.explorer.turns import Picture, Reader, Round
from llm_proxy.index.queries import CallRow
from llm_proxy.index.record import Record
from llm_proxy.records import understood
from llm_proxy.records.understood import Entry

V = TypeVar("V")


class Kept(Generic[V]):
    """The last few results, for any number of threads. Values must not change."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


class Calls:
    """The calls of a record. Remembers the request it read last: a conversation asks for it several times."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._asked: tuple[str, Asked | None, Entry | None] = ("", None, None)

    @property
    def reader(self) -> Reader:
        return Reader(self.asked, self.rounds, self.pictures)

    def request(self, call: CallRow) -> Entry | None:
        self.asked(call)
        return self._asked[2]

    def asked(self, call: CallRow) -> Asked | None:
        """What a call asks; over a WebSocket, what was asked first."""
        if self._asked[0] != call.id:
            entry = self._record.request(call)
            asked = understood.understand(entry, None).asked if entry is not None else None
            if entry is not None and call.method == "GET":
                rounds = self.rounds(call)
                asked = Asked(call.api, call.model, messages=rounds[0].messages) if rounds else asked
            self._asked = (call.id, asked, entry)
        return self._asked[1]

    def rounds(self, call: CallRow) -> Sequence[Round]:
        """What came back. Needs no request, whose path and method the index knows."""
        response = self._record.response(call)
        if response is None:
            return ()
        if response.get("websocket") is not None:
            return tuple(_rounds(call.api, understood.messages_of(response), complete=call.ending == "complete"))
        request = {"method": call.method, "path": call.path}
        digest = understood.understand(request, response, Asked(call.api, call.model))
        return (Round((), digest.answers),)

    def digest(self, call: CallRow) -> Digest | None:
        request = self.request(call)
        return understood.understand(request, self._record.response(call)) if request is not None else None

    def bodies(self, call: CallRow, *, answer: bool) -> bytes:
        """What may hold pictures."""
        entry = self._record.response(call) if answer else self._record.request(call)
        if entry is None:
            return b""
        if answer and entry.get("websocket") is not None:
            return b"\n".join(data for _, data in understood.messages_of(entry))
        stream = understood.stream_of(entry) if answer else None
        return understood.body_of(entry) if stream is None else stream

    def pictures(self, call: CallRow, answer: bool) -> Sequence[Picture]:
        found = blobs.pictures(self.bodies(call, answer=answer))
        return [
            Picture("image", one.type, "", one.sha256, len(one.data), one.width, one.height, call.id) for one in found
        ]


def _rounds(api: str, messages: Iterable[tuple[str, bytes]], *, complete: bool) -> Iterator[Round]:
    """Of a WebSocket, what the client asked each time, and the answers to it."""
    from llm_proxy.dialects.openai_responses import asked_in  # the only API that is spoken over WebSocket

    asked: list[tuple[str, bytes]] = []
    told: list[tuple[str, bytes]] = []

    def over() -> Round:
        content = Content("messages", messages=tuple(told), complete=complete)
        return Round(asked_in(asked).messages, registry.answers(api, "", content))

    for side, data in messages:
        if side == "client":
            if told:
                yield over()
                asked, told = [], []
            asked.append((side, data))
        else:
            told.append((side, data))
    if asked or told:
        yield over()
