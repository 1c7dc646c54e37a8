"""Conversations for training models, in four styles: a line per conversation, told once, as its longest form.

What a later call sends again is not told twice. Conversations that failed, broke off or say nothing are left out, and
so is one that was told already. Leaves out what is private (`privacy`) and the card beside the files (`dataset_card`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from typing import IO, Any

import msgspec

from llm_proxy.dialects.digest import Message, PartKind
from llm_proxy.formats.call import Call

Row = dict[str, Any]
Clean = Callable[[str], str]

_encode = msgspec.json.Encoder().encode
_SHORTEST = 5  # characters of an answer that teaches anything


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation, its texts as they may be told. `last` is the call whose answer ends it."""

    system: str
    messages: tuple[Message, ...]
    last: Call

    @property
    def opening(self) -> bytes:
        """The same for all that began alike, so that forks of one conversation stay together."""
        first = next((message for message in self.messages if message.role == "user"), self.messages[0])
        return first.key


@dataclass(slots=True)
class Told:
    """What was written: lines of each part, models, first and last moment (ns since 1970), and what was left out."""

    rows: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    first_ns: int = 0
    last_ns: int = 0
    repeated: int = 0
    unfit: int = 0


def write(
    calls: Iterable[Call],
    outs: Mapping[str, IO[bytes]],
    *,
    style: str = "messages",
    shares: Mapping[str, float] | None = None,
    clean: Clean | None = None,
) -> Told:
    """`calls` of a session stand together, in order. `outs` are the parts' files, `shares` how much goes into each;
    without `clean` texts are told as they are, and who, when and where beside them. Raises OSError.
    """
    told, known = Told(), set[bytes]()
    shares = shares or dict.fromkeys(outs, 1.0)
    for conversation in conversations(calls, told):
        row = STYLES[style](conversation, clean or str)
        mark = blake2b(_encode(row), digest_size=16).digest()
        if mark in known:
            told.repeated += 1
            continue
        known.add(mark)
        part = part_of(conversation.opening, shares)
        call = conversation.last.row
        outs[part].write(_encode(row if clean else row | _private(conversation)) + b"\n")
        told.rows[part] += 1
        told.models[call.model or "unknown"] += 1
        told.first_ns = min(told.first_ns or call.started_ns, call.started_ns)
        told.last_ns = max(told.last_ns, call.started_ns)
    return told


def part_of(opening: bytes, shares: Mapping[str, float]) -> str:
    """The part in which a conversation belongs; the same one each time."""
    place = int.from_bytes(blake2b(opening, digest_size=8).digest()) / (1 << 64) * sum(shares.values())
    for part, share in shares.items():
        place -= share
        if place < 0:
            return part
    return list(shares)[-1]


def conversations(calls: Iterable[Call], told: Told) -> Iterator[Conversation]:
    """The longest form of each conversation."""
    session, kept = "", _Tips(told)
    for call in calls:
        if call.row.session != session:
            yield from kept.conversations()
            session, kept = call.row.session, _Tips(told)
        kept.take(call)
    yield from kept.conversations()


class _Tips:
    """The conversations of one session that no later call has continued yet."""

    def __init__(self, told: Told) -> None:
        self._tips: dict[tuple[bytes, ...], Conversation] = {}
        self._told = told

    def take(self, call: Call) -> None:
        digest = call.digest
        answer = digest.last.message
        if call.row.failed or digest.partial or answer is None or not digest.asked.messages:
            self._told.unfit += 1
            return
        messages = (*digest.asked.messages, answer)
        keys = tuple(message.key for message in messages)
        for length in range(len(keys), 0, -1):
            if self._tips.pop(keys[:length], None) is not None:
                break
        self._tips[keys] = Conversation(digest.asked.system, messages, call)

    def conversations(self) -> Iterator[Conversation]:
        for conversation in self._tips.values():
            answer = conversation.messages[-1]
            if len(answer.text) >= _SHORTEST or _parts(answer, PartKind.TOOL_CALL):
                yield conversation
            else:
                self._told.unfit += 1


def _parts(message: Message, kind: str) -> list[Any]:
    return [part for part in message.parts if part.kind == kind]


def _thinking(message: Message) -> str:
    return "\n\n".join(part.text for part in _parts(message, PartKind.THINKING) if part.text)


def _private(conversation: Conversation) -> Row:
    """Who, when and where: only told where that is asked for."""
    row, call = conversation.last.row, conversation.last
    return {"id": row.id, "session": row.session, "project": row.project, "timestamp": call.started.isoformat()}


# -- styles -----------------------------------------------------------------------------------------------------------


def _messages(conversation: Conversation, clean: Clean, *, reasoning: bool = True) -> Row:
    """OpenAI's roles and fields, with the model's thinking as `reasoning`."""
    first = [{"role": "system", "content": clean(conversation.system)}] if conversation.system else []
    return {"messages": first + [row for one in conversation.messages for row in _as_chat(one, clean, reasoning)]}


def _as_chat(message: Message, clean: Clean, reasoning: bool) -> Iterator[Row]:
    """Tool results are messages of their own."""
    row: Row = {"role": message.role, "content": clean(message.text)}
    if reasoning and (thinking := _thinking(message)):
        row["reasoning"] = clean(thinking)
    calls, results = _parts(message, PartKind.TOOL_CALL), _parts(message, PartKind.TOOL_RESULT)
    if calls:
        row["tool_calls"] = [
            {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": clean(part.text)}}
            for part in calls
        ]
    for part in results:
        yield {"role": "tool", "tool_call_id": part.id, "content": clean(part.text)}
    if row["content"] or calls or not results:
        yield row


def _finetune(conversation: Conversation, clean: Clean) -> Row:
    """What OpenAI's fine-tuning takes: no other fields, and the tools that were called."""
    row = _messages(conversation, clean, reasoning=False)
    names = dict.fromkeys(
        part.name for message in conversation.messages for part in _parts(message, PartKind.TOOL_CALL)
    )
    if names:
        schema = {"type": "object", "properties": {}, "additionalProperties": True}
        row["tools"] = [{"type": "function", "function": {"name": name, "parameters": schema}} for name in names]
    return row


# ShareGPT's names; a tool's call and its result are turns of their own.
_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def _sharegpt(conversation: Conversation, clean: Clean) -> Row:
    turns = [{"from": "system", "value": clean(conversation.system)}] if conversation.system else []
    for message in conversation.messages:
        turns += [{"from": "observation", "value": clean(part.text)} for part in _parts(message, PartKind.TOOL_RESULT)]
        if message.text:
            turns.append({"from": _SHAREGPT.get(message.role, message.role), "value": clean(message.text)})
        for part in _parts(message, PartKind.TOOL_CALL):
            called = f'{{"name": {_encode(part.name).decode()}, "arguments": {clean(part.text) or "{}"}}}'
            turns.append({"from": "function_call", "value": called})
    return {"conversations": turns}


# proxy-llm's own rules of thumb, in its order: what stands in the text, and what in the model's name.
_CATEGORIES = (
    ("code", ("def ", "function ", "#include", "import ", "class ", "interface ")),
    ("math", ("∫", "∑", "√", "×", "÷")),
)
_DIFFICULTIES = (
    ("easy", ("haiku", "flash", "mini", "tiny", "small")),
    ("medium", ("sonnet", "4o", "qwen", "gemma", "deepseek")),
    ("hard", ("opus", "reasoning", "claude-4", "gpt-4")),
)
_LONG = 5000  # characters of what a hard problem takes


def _reasoning(conversation: Conversation, clean: Clean) -> Row:
    """proxy-llm's rows: what was asked, what the model thought, what it answered."""
    row, answer = conversation.last.row, conversation.messages[-1]
    problem = clean("\n\n".join(one.text for one in conversation.messages if one.role == "user" and one.text))
    thinking, solution = clean(_thinking(answer)), clean(answer.text)
    digest = sha256("\n---\n".join((problem, thinking, solution)).encode("utf-8", "replace")).hexdigest()[:16]
    told: Row = {"id": f"proxy_{digest}", "problem": problem}
    if conversation.system:
        told["system"] = clean(conversation.system)
    model = (row.model or "").lower()
    length = len(problem) + len(thinking) + len(solution)
    return told | {
        "thinking": thinking,
        "solution": solution,
        "difficulty": _first(_DIFFICULTIES, model) or ("hard" if length > _LONG else "medium"),
        "category": _category(problem + solution),
        "model": row.model,
        "provider": row.provider,
        "hash": digest,
        "source": f"llm-proxy/{row.provider}",
    }


def _category(text: str) -> str:
    return _first(_CATEGORIES, text) or ("math" if text.count("$") > 2 else "general")


def _first(table: Iterable[tuple[str, tuple[str, ...]]], text: str) -> str:
    return next((name for name, signs in table if any(sign in text for sign in signs)), "")


STYLES: dict[str, Callable[[Conversation, Clean], Row]] = {
    "messages": _messages,
    "reasoning": _reasoning,
    "sharegpt": _sharegpt,
    "openai-finetune": _finetune,
}
