"""What a call adds to its conversation, small enough to stand beside it in the index.

A chain of hashes over the messages tells which call's answer a request builds upon, so that a conversation of any
length is put together without reading it; the first words and the tools make its outline. Pure: of one call alone, so
the order in which calls are indexed does not matter. Leaves out what is put together of them (`explorer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from llm_proxy.dialects.digest import Digest, Message, Part, PartKind
from llm_proxy.dialects.reading import mapping, read_value, sequence

_LOOKED_BACK = 2  # answers in a request that it may build upon: the very last may be one that the client began
_MOST_TOOLS = 8
_WORDS = 120  # characters
_DISTINCT = 40  # characters that hardly any two answers share
_CONTROL = dict.fromkeys((*range(32), *range(127, 160), 0x200B, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), " ")
# The argument that tells most of a call, the first of these that is there.
_TELLING = (
    *("command", "cmd", "file_path", "pattern", "path", "query", "url", "description", "prompt", "question", "input"),
    *("code", "name", "title", "location", "city"),
)


class Onto(msgspec.Struct, frozen=True, array_like=True):
    """An answer that a request repeats: the chain up to it, how many messages stand behind it, and the answer alone.

    By the last an answer is known again though the client has changed what was before it; "" for one so short that
    another may be the same.
    """

    chain: str
    behind: int
    answer: str = ""


class Gist(msgspec.Struct, frozen=True, array_like=True):
    """`onto`, `whole` and `told` are chains: up to the last answers in the request, over all of it, over its answers.

    System messages among the others are not counted and not in the chains. `tools` are the tools called, each with the
    argument that tells most. `failed`: tool results that say so, of those behind the last answer.
    """

    onto: tuple[Onto, ...] = ()
    whole: str = ""
    told: tuple[str, ...] = ()
    named: str = ""  # id of the answer that the request continues
    messages: int = 0
    prompt: str = ""  # first words of a person behind the last answer
    words: str = ""  # first words of the answer
    tools: tuple[str, ...] = ()
    calls: int = 0  # tools called
    failed: int = 0
    offered: int = 0  # tools offered
    rules: str = ""  # a hash of the system prompt and the names of the tools
    answers: tuple[str, ...] = ()  # as in `Onto`, of the answers told


_DECODER = msgspec.json.Decoder(Gist)


def gist(digest: Digest) -> str:
    """As it is kept; "" for a call that is no conversation."""
    messages = [message for message in digest.asked.messages if message.role != "system"]
    answers = [answer.message for answer in digest.answers if answer.message is not None]
    if not messages and not answers:
        return ""
    chain = blake2b(digest_size=8)
    onto: list[Onto] = []
    for number, message in enumerate(messages, start=1):
        chain.update(message.key)
        if message.role == "assistant":
            onto.append(Onto(chain.copy().hexdigest(), len(messages) - number, _alone(message)))
            del onto[:-_LOOKED_BACK]
    behind = messages[len(messages) - onto[-1].behind :] if onto else messages
    parts = [part for message in answers for part in message.parts]
    tools = [part for part in parts if part.kind == PartKind.TOOL_CALL]
    made = Gist(
        onto=tuple(reversed(onto)),
        whole=chain.hexdigest(),
        told=tuple(_after(chain, message) for message in answers),
        named=_clean(digest.asked.previous_response, 255),
        messages=len(messages),
        prompt=first_words(part.text for message in behind if message.role == "user" for part in _texts(message)),
        words=first_words(part.text for message in answers for part in _texts(message)),
        tools=tuple(_clean(f"{part.name} {telling(part.text)}", _WORDS) for part in tools[:_MOST_TOOLS]),
        calls=len(tools),
        failed=sum(part.failed for message in behind for part in message.parts if part.kind == PartKind.TOOL_RESULT),
        offered=len(digest.asked.tools),
        rules=_rules(digest),
        answers=tuple(map(_alone, answers)),
    )
    return msgspec.json.encode(made).decode()


def read(kept: str) -> Gist:
    """A gist from the index. Raises ValueError where it is none."""
    return _DECODER.decode(kept)


def _after(chain: Any, message: Message) -> str:
    longer = chain.copy()
    longer.update(message.key)
    return str(longer.hexdigest())


def _alone(message: Message) -> str:
    """What tells an answer from all others, "" where nothing does."""
    telling = any(part.id or len(part.text) >= _DISTINCT for part in message.parts if part.kind != PartKind.THINKING)
    return message.key[:8].hex() if telling else ""


def _texts(message: Message) -> Iterator[Part]:
    return (part for part in message.parts if part.kind in (PartKind.TEXT, PartKind.REFUSAL))


def first_words(texts: Iterable[str]) -> str:
    """Of the first text that a person would read: what clients add of their own stands in tags."""
    begun = [text[: 8 * _WORDS].lstrip() for text in texts]
    said = [text for text in begun if text]
    return _clean(next((text for text in said if text[0] not in "<#"), said[0] if said else ""), _WORDS)


def _clean(text: str, limit: int) -> str:
    """One line that SQLite and terminals take."""
    line = " ".join(text[: 8 * limit].translate(_CONTROL).split())[:limit].rstrip()
    return line if line.isascii() else line.encode("utf-8", "replace").decode()


def _rules(digest: Digest) -> str:
    texts = [digest.asked.system, *digest.asked.tools]
    for message in digest.asked.messages:
        if message.role != "system":
            break
        texts.append(message.text)
    return blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest() if any(texts) else ""


def telling(arguments: str) -> str:
    """Of a tool's arguments what a person would say of the call, in one line: `pytest -q`, `ledger/month_end.py`."""
    if len(arguments) > 200_000:
        return ""
    given = mapping(read_value(arguments))
    if not given:
        return _clean(arguments, _WORDS) if arguments not in ("{}", "[]", "null", "") else ""
    for name in _TELLING:
        said = _said(given.get(name))
        if said:
            break
    else:
        said = next(filter(None, map(_said, given.values())), "")
    start, lines = given.get("offset"), given.get("limit")
    if given.get("file_path") == said and type(start) is int and type(lines) is int:
        said += f" {start}–{start + lines}"
    inside = _said(given.get("path"))
    if inside and given.get("path") != said and given.get("pattern"):
        said += f" {inside}"
    return _clean(said, _WORDS)


def _said(value: Any) -> str:
    if type(value) is str:
        return value
    words: Sequence[Any] = sequence(value)
    return " ".join(words) if words and all(type(one) is str for one in words) else ""
