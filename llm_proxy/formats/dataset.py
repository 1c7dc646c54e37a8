"""Chat messages for fine-tuning: a line `{"messages": [...]}` per conversation, in OpenAI's roles and fields.

A conversation is told once, as its longest form: what a later call sends again is not told twice. Conversations that
failed, broke off or say nothing are left out, and so is one that was told already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import IO, Any

import msgspec

from llm_proxy.dialects.digest import Message, PartKind
from llm_proxy.formats.call import Call

_encode = msgspec.json.Encoder().encode
_SHORTEST = 5  # characters of an answer that teaches anything


def write(calls: Iterable[Call], out: IO[bytes]) -> None:
    """`calls` of a session stand together, in order. Raises OSError."""
    told: set[bytes] = set()
    for row in conversations(calls):
        data = _encode(row)
        mark = blake2b(data, digest_size=16).digest()
        if mark not in told:
            told.add(mark)
            out.write(data + b"\n")


def conversations(calls: Iterable[Call]) -> Iterator[dict[str, Any]]:
    """The longest form of each conversation."""
    session, kept = "", _Tips()
    for call in calls:
        if call.row.session != session:
            yield from kept.rows()
            session, kept = call.row.session, _Tips()
        kept.take(call)
    yield from kept.rows()


class _Tips:
    """The conversations of one session that no later call has continued yet."""

    def __init__(self) -> None:
        self._tips: dict[tuple[bytes, ...], tuple[str, tuple[Message, ...]]] = {}

    def take(self, call: Call) -> None:
        digest = call.digest
        answer = digest.last.message
        if call.row.failed or digest.partial or answer is None or not digest.asked.messages:
            return
        messages = (*digest.asked.messages, answer)
        keys = tuple(message.key for message in messages)
        for length in range(len(keys), 0, -1):
            if self._tips.pop(keys[:length], None) is not None:
                break
        self._tips[keys] = (digest.asked.system, messages)

    def rows(self) -> Iterator[dict[str, Any]]:
        for system, messages in self._tips.values():
            if len(messages[-1].text) >= _SHORTEST or any(p.kind == PartKind.TOOL_CALL for p in messages[-1].parts):
                first = [{"role": "system", "content": system}] if system else []
                yield {"messages": first + [row for message in messages for row in _told(message)]}


def _told(message: Message) -> Iterator[dict[str, Any]]:
    """Tool results are messages of their own."""
    row: dict[str, Any] = {"role": message.role, "content": message.text}
    thinking = "\n\n".join(part.text for part in message.parts if part.kind == PartKind.THINKING and part.text)
    if thinking:
        row["reasoning"] = thinking
    calls = [part for part in message.parts if part.kind == PartKind.TOOL_CALL]
    if calls:
        row["tool_calls"] = [
            {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.text}}
            for part in calls
        ]
    results = [part for part in message.parts if part.kind == PartKind.TOOL_RESULT]
    for part in results:
        yield {"role": "tool", "tool_call_id": part.id, "content": part.text}
    if row["content"] or calls or not results:
        yield row
