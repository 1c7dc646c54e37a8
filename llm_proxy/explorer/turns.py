"""What was said in the steps of a conversation: prompts, thinking, tools with their results, each once. Pure.

Of consecutive steps only the last one's request is read: it holds what came before. What is long is cut, with a
reference by which the rest can be had. Leaves out where calls are read, and markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from llm_proxy.dialects.digest import Answer, Asked, Digest, Message, Part, PartKind
from llm_proxy.explorer import tools
from llm_proxy.explorer.conversation import Step
from llm_proxy.explorer.tools import Arguments, DiffLine
from llm_proxy.index.gist import telling
from llm_proxy.index.queries import CallRow

RESULT_LINES = 40  # of a tool's result that are sent at once
RESULT_CHARS = 8_000
THINKING_CHARS = 2_000
TEXT_CHARS = 24_000
HUGE = 200_000  # characters beyond which nothing is rendered or coloured
DIFF_LINES = 80
_READS = re.compile(r"(?:[Rr]ead|[Vv]iew|[Oo]pen|[Cc]at)(?:$|[_A-Z])")  # tools that give a file's text
_NEAR = 4  # steps within which the one that goes on is looked for: broken ones may stand between
# What clients put into a user's message of their own stands in tags.
_ADDED = re.compile(r"\s*<([a-zA-Z][\w-]*)[ >].*</\1>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text, or its beginning where `more` characters follow; then `part` of `call` is the whole."""

    text: str
    lines: int = 0  # of the whole
    chars: int = 0
    more: int = 0
    call: str = ""
    part: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """Something that is no text. `sha256` where its bytes were recorded; `place` where it lies elsewhere."""

    kind: str  # image, audio, document, video
    type: str = ""
    place: str = ""
    sha256: str = ""
    size: int = 0
    width: int = 0
    height: int = 0
    call: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool gave back."""

    said: Excerpt
    failed: bool = False
    word: str = ""  # `exit 1`, `failed`
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool call. `telling` is the argument that tells most; `result` is None where none is recorded."""

    name: str
    telling: str
    arguments: Excerpt
    language: str = ""
    path: str = ""
    shows: str = ""  # the path of the file whose text the result is
    diff: tuple[DiffLine, ...] = ()
    diff_more: int = 0
    added: int = 0
    removed: int = 0
    result: Result | None = None
    took_ms: int = 0  # until the next request, where it was the only tool
    open: bool = False
    sessions: tuple[str, ...] = ()  # of the sub-agents that it began


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a turn, in the order of the wire.

    `kind`: text, thinking, refusal, tool, picture, added (by the client, into a user's message), result (of a call that
    is not shown), other, you (further on in the same call), choice (another answer to the same).
    """

    kind: str
    said: Excerpt | None = None
    name: str = ""
    tool: Tool | None = None
    picture: Picture | None = None
    result: Result | None = None
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """What went in and what came back. A WebSocket's call has several."""

    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """What was said in one step. `missing`: the log of its request, or of its answer, cannot be read any more."""

    prompts: tuple[Block, ...]
    blocks: tuple[Block, ...]
    earlier: int = 0  # messages before the new ones that no step here has
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Earlier:
    """A message that only stands in a request. `role`: user or assistant."""

    role: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """How calls are read: `asked` is None where the log has gone, `rounds` is what came back, and of a WebSocket also
    what went in further on. `pictures` are those recorded in a request or, with True, in an answer, in their order.
    """

    asked: Callable[[CallRow], Asked | None]
    rounds: Callable[[CallRow], Sequence[Round]]
    pictures: Callable[[CallRow, bool], Sequence[Picture]]


# --- which messages are new


def new_messages(steps: Sequence[Step], reader: Reader, pictures: _Pictures) -> dict[int, tuple[Message, ...]]:
    """By number of the step, what its request adds. Steps that cannot be read are left out."""
    by_number = {step.number: step for step in steps}
    found: dict[int, tuple[Message, ...]] = {}
    for step in reversed(steps):
        if step.number in found:
            continue
        asked = reader.asked(step.call)
        if asked is None:
            continue
        pictures.find(step.call, asked.messages, answer=False)
        places = [place for place, message in enumerate(asked.messages) if message.role != "system"]
        end = len(places)
        one: Step | None = step
        while one is not None:
            start = max(0, end - one.new_messages)
            first = places[start - 1] + 1 if start else 0
            found[one.number] = asked.messages[first : places[end - 1] + 1 if end else 0]
            before = by_number.get(one.after)
            if (
                one.by_name
                or one.edited
                or before is None
                or before.number in found
                or start - 1 != before.gist.messages
            ):
                break
            one, end = before, start - 1
    return found


def new_messages_of(steps: Sequence[Step], reader: Reader) -> dict[int, tuple[Message, ...]]:
    """The same without pictures."""
    return new_messages(steps, reader, _Pictures(replace(reader, pictures=lambda call, answer: ())))


# --- what was said


def said_in(steps: Sequence[Step], first: int, last: int, reader: Reader) -> dict[int, Said]:
    """By number, of the steps from `first` to `last`; `steps` are all.

    The results of the last tools stand in a request behind them, and the first request has results of tools before it.
    """
    shown = steps[first - 1 : last]
    behind = next((step for step in steps[last : last + _NEAR] if first <= step.after <= last), None)
    wanted = [*shown, behind] if behind is not None else list(shown)
    pictured = _Pictures(reader)
    new = new_messages(wanted, reader, pictured)
    results: dict[int, _Results] = {}
    for step in wanted:
        results.setdefault(step.after, _Results()).add(step, new.get(step.number, ()))
    for number in {step.after for step in shown} - {0, *(step.number for step in shown)}:
        before = steps[number - 1]
        for _ in _answered(before, reader.rounds(before.call), results[number], pictured):
            pass  # its calls take their results
    said: dict[int, Said] = {}
    for step in shown:
        rounds = list(reader.rounds(step.call))
        pictured.find(step.call, [one.message for round in rounds for one in round.answers if one.message], answer=True)
        blocks = tuple(_answered(step, rounds, results.setdefault(step.number, _Results()), pictured))
        before_it = results[step.after] if step.after else None
        said[step.number] = Said(
            prompts=tuple(_prompts(step, new.get(step.number, ()), before_it, pictured)),
            blocks=blocks,
            earlier=max(0, step.gist.messages - step.new_messages) if not step.after else 0,
            missing=step.number not in new,
        )
    return said


def earlier_in(step: Step, reader: Reader) -> tuple[Earlier, ...]:
    """The messages of a request before its new ones, with the results at their calls; none where it has gone."""
    asked = reader.asked(step.call)
    said = [message for message in asked.messages if message.role != "system"] if asked is not None else []
    said = said[: max(0, len(said) - step.new_messages)]
    pictured = _Pictures(reader)
    pictured.find(step.call, asked.messages if asked is not None else (), answer=False)
    results = _Results()
    results.add(step, said)
    told = []
    for message in said:
        if message.role == "assistant":
            blocks = tuple(_parts(step, message.parts, (results,), pictured))
        else:
            blocks = tuple(_prompts(step, [message], results, pictured))
        if blocks:
            told.append(Earlier("assistant" if message.role == "assistant" else "user", blocks))
    return tuple(told)


class _Results:
    """Tool results that a request brings, until the calls take them."""

    def __init__(self) -> None:
        self._found: list[tuple[Step, Part, tuple[Part, ...]]] = []
        self._taken: set[int] = set()
        self.step: Step | None = None

    def add(self, step: Step, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.role not in ("user", "tool"):
                continue
            parts = message.parts
            for at, part in enumerate(parts):
                if part.kind == PartKind.TOOL_RESULT:
                    end = at + 1
                    while end < len(parts) and parts[end].kind == PartKind.MEDIA:
                        end += 1
                    self._found.append((step, part, parts[at + 1 : end]))

    def take(self, call: Part) -> tuple[Step, Part, tuple[Part, ...]] | None:
        """The result of a call: by its id, else the first one of its name, or without one."""
        for at, (step, part, media) in enumerate(self._found):
            same = part.id == call.id if part.id or call.id else part.name in ("", call.name)
            if same and at not in self._taken:
                self._taken.add(at)
                return step, part, media
        return None

    def is_taken(self, result: Part) -> bool:
        return any(part is result and at in self._taken for at, (_, part, _) in enumerate(self._found))


class _Pictures:
    """The recorded pictures, by the parts that mean them: as many in a body as there are parts, in the same order."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._found: dict[int, Picture] = {}
        self._parts: list[Part] = []  # so that none goes, and its number to another

    def find(self, call: CallRow, messages: Iterable[Message], *, answer: bool) -> None:
        parts = [part for message in messages for part in message.parts if _is_here(part)]
        if parts:
            found = self._reader.pictures(call, answer)
            self._parts += parts
            if len(found) == len(parts):
                self._found |= {id(part): picture for part, picture in zip(parts, found, strict=True)}

    def of(self, part: Part) -> Picture:
        kind = part.name or "file"
        plain = Picture(kind, part.text) if _is_here(part) or "/" not in part.text else Picture(kind, place=part.text)
        return self._found.get(id(part), plain)


def _is_here(part: Part) -> bool:
    """Whether a picture stands in the message itself: then it has a media type, or nothing, instead of a place."""
    return part.kind == PartKind.MEDIA and part.name == "image" and (not part.text or part.text.startswith("image/"))


def _prompts(step: Step, messages: Sequence[Message], before: _Results | None, pictured: _Pictures) -> Iterator[Block]:
    """What a person, a client or the application says; results that a call shown takes stand with the call."""
    for at, message in enumerate(messages):
        if message.role == "system" and all(one.role == "system" for one in messages[:at]) and not step.after:
            continue  # stands with the system prompt
        skip = False
        for part in message.parts:
            if part.kind == PartKind.TOOL_RESULT:
                skip = before is not None and before.is_taken(part)
                if not skip:
                    yield Block("result", name=part.name, result=_result(step, part, (), pictured))
            elif part.kind == PartKind.MEDIA and skip:
                continue
            elif message.role == "assistant":
                yield from _begun(step, part, pictured)
            else:
                skip = False
                yield from _spoken(step, message.role, part, pictured)


def _begun(step: Step, part: Part, pictured: _Pictures) -> Iterator[Block]:
    """What stands in a request as the model's: examples, or an answer that the client began."""
    if part.kind == PartKind.TOOL_CALL:
        yield Block("tool", tool=_tool(step, part, None, 0))
    elif part.text.strip():
        yield Block("other", _excerpt(step.call, part, TEXT_CHARS), "given as the model's")


def _spoken(step: Step, role: str, part: Part, pictured: _Pictures) -> Iterator[Block]:
    if part.kind == PartKind.MEDIA:
        yield Block("picture", picture=pictured.of(part))
    elif part.kind == PartKind.TEXT and part.text.strip():
        if role == "system":
            yield Block("added", _excerpt(step.call, part, THINKING_CHARS), "system message")
        elif tag := _ADDED.fullmatch(part.text):
            yield Block("added", _excerpt(step.call, part, THINKING_CHARS), tag[1])
        else:
            yield Block("text", _excerpt(step.call, part, TEXT_CHARS))
    elif part.kind not in (PartKind.TEXT, PartKind.TOOL_CALL) and (part.text.strip() or part.name):
        yield Block("other", _excerpt(step.call, part, THINKING_CHARS), part.name or part.kind)


def _answered(step: Step, rounds: Sequence[Round], results: _Results, pictured: _Pictures) -> Iterator[Block]:
    within = _Results()
    for one in rounds:
        within.add(step, one.messages)
    for number, one in enumerate(rounds):
        if number:
            further = tuple(_prompts(step, one.messages, within, pictured))
            if further:
                yield Block("you", blocks=further)
        told = [answer for answer in one.answers if answer.message is not None]
        for choice, answer in enumerate(told):
            if choice:
                yield Block("choice", name=f"choice {choice + 1} of {len(told)}")
            assert answer.message is not None
            yield from _parts(step, answer.message.parts, (within, results), pictured)


def _parts(step: Step, parts: Sequence[Part], results: Sequence[_Results], pictured: _Pictures) -> Iterator[Block]:
    own = _Results()
    own.add(step, [Message("tool", tuple(parts))])  # of tools that the provider ran
    alone = sum(part.kind == PartKind.TOOL_CALL for part in parts) == 1
    for part in parts:
        if part.kind == PartKind.TOOL_CALL:
            found = next((one for given in (own, *results) if (one := given.take(part)) is not None), None)
            took = found[0].tools_ms if found is not None and alone and found[0] is not step else 0
            result = _result(found[0], found[1], found[2], pictured) if found is not None else None
            yield Block("tool", tool=_tool(step, part, result, took))
        elif part.kind == PartKind.TOOL_RESULT:
            if not own.is_taken(part):
                yield Block("result", name=part.name, result=_result(step, part, (), pictured))
        elif part.kind == PartKind.MEDIA:
            yield Block("picture", picture=pictured.of(part))
        elif part.kind == PartKind.THINKING and part.text.strip():
            yield Block("thinking", _excerpt(step.call, part, THINKING_CHARS))
        elif part.kind in (PartKind.TEXT, PartKind.REFUSAL) and part.text.strip():
            yield Block(part.kind, _excerpt(step.call, part, TEXT_CHARS))
        elif part.kind == PartKind.OTHER:
            yield Block("other", _excerpt(step.call, part, THINKING_CHARS), part.name)


def _tool(step: Step, part: Part, result: Result | None, took: int) -> Tool:
    given: Arguments = tools.arguments(part.text)
    shown = replace(_cut(given.text, RESULT_CHARS, RESULT_LINES), call=step.call.id, part=reference(part))
    return Tool(
        name=part.name or "tool",
        telling=telling(part.text) if not given.path or not given.diff else given.path,
        arguments=shown,
        language=given.language,
        path=given.path,
        shows=given.path if result is not None and _READS.match(part.name) and not result.failed else "",
        diff=given.diff[:DIFF_LINES],
        diff_more=max(0, len(given.diff) - DIFF_LINES),
        added=given.added,
        removed=given.removed,
        result=result,
        took_ms=took,
        open=result is not None and bool(result.word),
    )


def _result(step: Step, part: Part, media: Sequence[Part], pictured: _Pictures) -> Result:
    said = replace(_cut(part.text, RESULT_CHARS, RESULT_LINES), call=step.call.id, part=reference(part))
    pictures = tuple(pictured.of(one) for one in media)
    return Result(said, part.failed, tools.exit_word(part.text, failed=part.failed), pictures)


# --- a search


def searched(said: Said, wanted: Callable[[Excerpt], str]) -> Said:
    """With the whole texts that `wanted` gives, in place of their beginnings; "" leaves one as it is."""

    def whole(excerpt: Excerpt) -> Excerpt:
        text = wanted(excerpt) if excerpt.more else ""
        return replace(excerpt, text=text, more=excerpt.chars - len(text)) if text else excerpt

    def result(one: Result | None) -> Result | None:
        return replace(one, said=whole(one.said)) if one is not None else None

    def block(one: Block) -> Block:
        tool = one.tool
        if tool is not None:
            tool = replace(tool, arguments=whole(tool.arguments), result=result(tool.result))
        text = whole(one.said) if one.said is not None else None
        return replace(one, said=text, tool=tool, result=result(one.result), blocks=tuple(map(block, one.blocks)))

    return replace(said, prompts=tuple(map(block, said.prompts)), blocks=tuple(map(block, said.blocks)))


# --- texts


def reference(part: Part) -> str:
    """By what a part of a call is found again."""
    said = f"{part.kind}\0{part.id}\0{part.name}\0{part.text}"
    return blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def part_of(digest: Digest, reference_: str) -> Part | None:
    """The part of a call that a reference means."""
    messages = [*digest.asked.messages, *(one.message for one in digest.answers if one.message is not None)]
    return next((part for message in messages for part in message.parts if reference(part) == reference_), None)


def _excerpt(call: CallRow, part: Part, most: int) -> Excerpt:
    return replace(_cut(part.text, most, None), call=call.id, part=reference(part))


def _cut(text: str, most: int, lines: int | None) -> Excerpt:
    """At most so many characters and lines; a line is only cut where it is alone too long."""
    whole = text.count("\n") + 1 if text else 0
    shown = text
    if lines is not None and whole > lines:
        shown = "\n".join(text.split("\n", lines)[:lines])
    if len(shown) > most:
        shown = shown[:most].rpartition("\n")[0] or shown[:most]
    return Excerpt(shown, whole, len(text), len(text) - len(shown))


def excerpt_of(part: Part) -> Excerpt:
    """A whole part, up to what a browser is given at once."""
    return _cut(part.text, 5 * HUGE, None)
