"""Golden files read back, and what every golden stream must stand: to come in any pieces, and to be cut anywhere.

A stream is sent the way the record sends it: as pieces of an exchange, into a log entry, and out of it again. The files
are made by `make_golden`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from llm_proxy.dialects import registry
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked
from llm_proxy.records.exchange import Body, Ending, Exchange
from llm_proxy.records.understood import body_of, stream_of
from llm_proxy.sinks.session_jsonl import response_entry

FOLDER = Path(__file__).parent / "golden"
MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Golden:
    """One call. `messages` are those of a WebSocket, whose `answer` is empty."""

    name: str
    provider: str
    method: str
    path: str
    request: bytes
    status: int | None
    media_type: str
    answer: bytes
    messages: tuple[tuple[str, bytes], ...]

    @property
    def api(self) -> str:
        return registry.api_of(self.method, self.path, bool(self.messages))

    @property
    def asked(self) -> Asked:
        return registry.asked(self.api, self.path, self.request)

    @property
    def answers(self) -> tuple[Answer, ...]:
        return self.understood((self.answer,))

    @property
    def last(self) -> Answer:
        return self.answers[-1]

    def understood(self, pieces: Iterable[bytes], ending: Ending = Ending.COMPLETE) -> tuple[Answer, ...]:
        """The answers where the response came in these pieces and ended so."""
        if self.messages:
            content = Content("messages", messages=self.messages, status=101)
        else:
            content = _content(response_entry(self._exchange(pieces, ending), "s", 1, "m"), self.media_type)
        return registry.answers(self.api, self.path, content)

    def _exchange(self, pieces: Iterable[bytes], ending: Ending) -> Exchange:
        timed = tuple((number * MS, piece) for number, piece in enumerate(pieces, start=1))
        return Exchange(
            id=UUID(int=7),
            provider=self.provider,
            scheme="https",
            upstream="example.com",
            why="",
            opened=0,
            method=self.method,
            target=self.path,
            request_headers=(),
            request=Body(),
            status=self.status,
            reason="",
            response_headers=(("Content-Type", self.media_type),),
            response=Body(timed, sum(len(piece) for _, piece in timed)),
            trailers=(),
            interim=(),
            first_byte=MS,
            ended=MS * (len(timed) + 2),
            ending=ending,
            error="",
            answered=0,
            websocket=False,
            retried=False,
            ended_by_close=False,
            extra_bytes=False,
        )


def _content(entry: dict[str, Any], media_type: str) -> Content:
    stream = stream_of(entry)
    return Content(
        "body" if stream is None else "events",
        body_of(entry) if stream is None else stream,
        status=entry["status"],
        complete=entry["ending"] == "complete",
        media_type=media_type,
    )


def golden(name: str) -> Golden:
    told = json.loads((FOLDER / f"{name}.json").read_bytes())
    return Golden(
        name,
        told["provider"],
        told["method"],
        told["path"],
        b"" if "messages" in told else json.dumps(told["request"], ensure_ascii=False).encode(),
        told["status"],
        told["media_type"],
        (FOLDER / f"{name}.answer").read_bytes(),
        tuple((side, text.encode()) for side, text in told.get("messages", ())),
    )


def names(*prefixes: str) -> list[str]:
    """Of all golden files, those that begin so."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem.startswith(prefixes))


def streams(*prefixes: str) -> list[str]:
    return [name for name in names(*prefixes) if name.endswith(("stream", "array"))]


def check_pieces(one: Golden) -> None:
    """Cut in two at every byte, and into many at random: always the same digest."""
    data, whole = one.answer, one.answers
    for at in range(len(data) + 1):
        assert one.understood((data[:at], data[at:])) == whole, at
    chance = random.Random(one.name)
    for _ in range(50):
        assert one.understood(_pieces(data, chance)) == whole


def _pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = chance.choice((1, 2, 3, 5, 17, 100, 1000))
        yield data[at : at + size]
        at += size


def check_cuts(one: Golden) -> None:
    """Broken off at every byte: what was there, and `partial` until all has come that the answer consists of."""
    data, whole = one.answer, one.answers
    for at in range(len(data)):
        told = one.understood((data[:at],), Ending.UPSTREAM_FAILED)
        if told == whole:
            continue
        assert any(answer.partial for answer in told) or (at == 0 and not told), at
        assert _said(whole).startswith(_said(told)), at


def _said(answers: tuple[Answer, ...]) -> str:
    return "".join(answer.message.text for answer in answers if answer.message)
