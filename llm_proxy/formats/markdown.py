"""A conversation as Markdown: each message once, however often it was sent again, and what each call came to.

Leaves out finding calls, and making text safe for a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from llm_proxy.dialects.digest import Answer, Digest, Message, Part, PartKind
from llm_proxy.index.queries import CallRow, SessionRow

ROLES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}
_REMEMBERED = 16  # conversations of one session that are followed at a time
Understand = Callable[[CallRow], Digest | None]


def conversation(
    session: SessionRow, calls: Iterable[CallRow], understand: Understand, *, utc: bool = False
) -> Iterator[str]:
    """Blocks of a whole session, to be joined by blank lines."""
    yield f"# {session.title or session.id}"
    facts = [session.id, session.provider, session.project, session.program, counted(session.calls, "call")]
    yield " · ".join(fact for fact in facts if fact)
    if session.parent:
        kind = "A fork of" if session.forked else f"A sub-agent ({session.agent}) of" if session.agent else "Child of"
        after = f" after call #{session.parent_seq}" if session.parent_seq else ""
        yield f"{kind} {session.parent}{after}."
    told = _Told()
    for call in calls:
        yield from _call(call, understand(call), told, utc=utc)


def counted(number: int, name: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


class _Told:
    """What has been shown: the system prompt, and the messages of the conversations a session holds, newest first."""

    def __init__(self) -> None:
        self.system = ""
        self._conversations: list[tuple[bytes, ...]] = []

    def known(self, digest: Digest) -> int:
        """How many of a call's messages stand above, at the beginning; from now on all of them and its answer do."""
        keys = tuple(message.key for message in digest.asked.messages)
        lengths = [_common(keys, other) for other in self._conversations]
        known = max(lengths, default=0)
        if known and known == len(self._conversations[lengths.index(known)]):
            del self._conversations[lengths.index(known)]  # it goes on, as what is put before it now
        answers = tuple(answer.message.key for answer in digest.answers if answer.message is not None)
        self._conversations.insert(0, keys + answers)
        del self._conversations[_REMEMBERED:]
        return known


def _common(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> int:
    """The length of what both begin with."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def single(call: CallRow, digest: Digest | None, *, utc: bool = False) -> Iterator[str]:
    """Blocks of one call, with all that was sent."""
    yield f"# Call {call.id}"
    yield " · ".join(
        fact for fact in (f"session {call.session} #{call.seq}", call.provider, call.project, call.program) if fact
    )
    yield from _call(call, digest, _Told(), utc=utc)


def _call(call: CallRow, digest: Digest | None, told: _Told, *, utc: bool) -> Iterator[str]:
    yield f"## #{call.seq} · {_moment(call.started_ns, utc=utc)} · {call.model or call.method + ' ' + call.path}"
    if digest is None:
        yield "*The log of this call is no longer there.*"
    else:
        yield from _asked(digest, told)
        for answer in digest.answers:
            yield from _answer(answer)
        trouble = digest.asked.trouble or next((answer.trouble for answer in digest.answers if answer.trouble), "")
        if trouble:
            yield f"*Not understood: {trouble}*"
    yield f"*{summary(call)}*"


def _asked(digest: Digest, told: _Told) -> Iterator[str]:
    if digest.asked.system and digest.asked.system != told.system:
        told.system = digest.asked.system
        yield from _block("System prompt", digest.asked.system)
    known = told.known(digest)
    if known:
        yield f"*After {known} messages shown above*" if known > 1 else "*After one message shown above*"
    for message in digest.asked.messages[known:]:
        yield from _message(message)


def _answer(answer: Answer) -> Iterator[str]:
    if answer.message is not None:
        yield from _message(answer.message)
    if answer.error or answer.error_type:
        yield f"**Error** {answer.error_type}: {answer.error}"
    if answer.partial:
        yield "*The answer breaks off here.*"


def _message(message: Message) -> Iterator[str]:
    yield f"### {ROLES.get(message.role, message.role)}"
    for part in message.parts:
        yield from _part(part)


def _part(part: Part) -> Iterator[str]:
    if part.kind in (PartKind.TEXT, PartKind.REFUSAL):
        if part.text.strip():
            yield part.text.strip("\n")
    elif part.kind == PartKind.THINKING:
        yield from _block("Thinking", part.text)
    elif part.kind == PartKind.TOOL_CALL:
        yield f"**Tool call** `{part.name}` {_code_word(part.id)}".rstrip()
        yield fenced(_pretty(part.text), "json")
    elif part.kind == PartKind.TOOL_RESULT:
        yield f"**Tool {'error' if part.failed else 'result'}** {_code_word(part.id)}".rstrip()
        yield fenced(part.text)
    else:
        yield f"*[{part.name or part.kind}{': ' + part.text[:200] if part.text else ''}]*"


def _block(title: str, text: str) -> Iterator[str]:
    if text.strip():
        yield "\n".join(f"> {line}".rstrip() for line in (f"**{title}**", "", *text.strip("\n").split("\n")))


def summary(call: CallRow) -> str:
    """One line of what a call came to."""
    told = [str(call.status) if call.status is not None else "no status", call.ending or "open", call.stop_reason]
    if call.total_ms is not None:
        told.append(f"{call.total_ms / 1000:.1f} s")
    if call.usage is not None:
        used = call.usage
        cached = f" ({used.cache_read:,} from cache)" if used.cache_read else ""
        told.append(f"{used.prompt:,} tokens in{cached}, {used.output:,} out")
    if call.usd is not None:
        told.append(
            f"${call.usd:.4f}" + (" at API prices, covered by a subscription" if call.basis == "subscription" else "")
        )
    elif call.basis == "unpriced":
        told.append("unpriced")
    return " · ".join(one for one in (*told, call.error) if one)


def fenced(text: str, language: str = "") -> str:
    """A code block that the text itself cannot end."""
    longest = run = 0
    for sign in text:
        run = run + 1 if sign == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _code_word(text: str) -> str:
    return f"`{text.replace('`', '')}`" if text else ""


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _moment(ns: int, *, utc: bool) -> str:
    moment = datetime.fromtimestamp(ns / 1e9, UTC)
    return (moment if utc else moment.astimezone()).strftime("%Y-%m-%d %H:%M:%S") + ("Z" if utc else "")
