"""Why a prompt cache missed: what could have been read, what was, the first difference, the likely cause, what it cost.

`missed` needs the rows of two calls and says that much was lost; `diagnose` reads both requests and says why. Pure.
Tokens at a place inside a prompt are estimates, by its share of the prompt's characters. Leaves out markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.reading import mapping, read_value, sequence, text
from llm_proxy.explorer import diffing, words
from llm_proxy.explorer.diffing import Path, Pieces
from llm_proxy.formats.call import Call
from llm_proxy.index.queries import CallRow

Cause = Literal[
    "first",
    "short",
    "model",
    "unseen",
    "tools",
    "timestamp",
    "identifier",
    "system",
    "parameters",
    "compaction",
    "history",
    "concurrent",
    "no_breakpoint",
    "expired",
    "lookback",
    "evicted",
]

_MILLION = 1_000_000
_SECOND = 10**9
_AROUND = 48  # characters shown around the first difference
_COMPARED = 4000  # characters of a line in which a time or an id is looked for
# Characters that stand for a picture or a document, whose tokens have nothing to do with its base64.
_MEDIA = 6000
_LONG_MEDIA = 2000


class Manner(NamedTuple):
    """How a family of APIs caches.

    `explicit`: only up to breakpoints that the request sets. `least`: tokens of the shortest prompt that is cached.
    `step`: hits are whole multiples. `limit_s`: how long a prefix is kept after its last use, and in words.
    """

    explicit: bool
    least: int
    step: int
    limit_s: int
    limit: str


_ANTHROPIC = Manner(True, 1024, 1, 300, "5 min")
_OPENAI = Manner(False, 1024, 128, 600, "5 to 10 min")
_GEMINI = Manner(False, 2048, 1, 300, "some minutes")
MANNERS: Mapping[str, Manner] = {
    "anthropic.messages": _ANTHROPIC,
    "bedrock.invoke": _ANTHROPIC,
    "bedrock.converse": _ANTHROPIC,
    "openai.chat": _OPENAI,
    "openai.responses": _OPENAI,
    "gemini.generate": _GEMINI,
}
# Whoever else speaks these APIs may have no cache at all: there, only one that was seen to work can miss.
_KNOWN = re.compile(
    r"(?:api\.openai\.com|chatgpt\.com|.*\.openai\.azure\.com|generativelanguage\.googleapis\.com"
    r"|.*aiplatform\.googleapis\.com|cloudcode-pa\.googleapis\.com)(?::443)?"
)
# The cache is used up to a difference of some tokens; less than this is no miss.
_SLACK_SHARE, _SLACK = 0.1, 1024
# Anthropic looks for a cached prefix at a breakpoint and up to so many blocks before it.
_LOOKBACK = 20


@dataclass(frozen=True, slots=True)
class Miss:
    """That a call missed, by the index alone: tokens that could have been read, those that were, and the difference."""

    could_read: int
    read: int
    lost: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a call read less than it could.

    `lost` is 0 where nothing could be read (the first call, a prompt too short). `matched` tokens are equal from the
    beginning; `readable` of them lie before a breakpoint that both calls set (None where the API needs none).
    `path` is the first difference, `character` its place in that text. `usd` is what the lost tokens cost more than
    reading them would have; None where a price is not known; `equivalent`: a subscription paid.
    """

    cause: Cause
    lead: str
    why: str
    could_read: int
    read: int
    lost: int
    prompt: int
    previous: str = ""  # the call it is compared with
    previous_seq: int = 0
    matched: int | None = None
    readable: int | None = None
    breakpoint: str = ""
    path: str = ""
    character: int | None = None
    before: Pieces = ()
    now: Pieces = ()
    ruled_out: tuple[str, ...] = ()
    usd: Decimal | None = None
    equivalent: bool = False
    paid_rate: Decimal | None = None
    read_rate: Decimal | None = None
    since_ms: int = 0
    first_difference: Path = ()


# --- that it missed


def previous_of(calls: Iterable[CallRow], this: CallRow) -> CallRow | None:
    """Of a session's calls in order, the one whose cache `this` could have used: the last before it that was answered.

    One of the same model goes before: clients let a small model do small things in between.
    """
    answered: dict[str, CallRow] = {}
    for one in takewhile(lambda one: one.id != this.id, calls):
        if one.api == this.api:
            _remember(answered, one)
    return _previous(answered, this)


def _remember(answered: dict[str, CallRow], one: CallRow) -> None:
    """The last answered call of each family of models, the latest of all last."""
    if one.usage is not None and one.status == 200:
        answered.pop(family(one.model), None)
        answered[family(one.model)] = one


def _previous(answered: Mapping[str, CallRow], this: CallRow) -> CallRow | None:
    same = answered.get(family(this.model))
    if same is not None or not answered:
        return same
    last = list(answered.values())[-1]
    return last if _as_long(last, this) else None


@dataclass(frozen=True, slots=True)
class Lost:
    """What misses came to: dollars spent more than needed, the same where a subscription paid, and misses unpriced."""

    misses: int = 0
    tokens: int = 0
    usd: Decimal = Decimal(0)
    equivalent: Decimal = Decimal(0)
    unpriced: int = 0


def lost(calls: Iterable[CallRow], rates: Callable[[CallRow], Mapping[str, Decimal]]) -> Lost:
    """Of calls of any sessions, in order of time, by the index alone; `rates` as in `diagnose`, for one that missed."""
    answered: dict[tuple[str, str], dict[str, CallRow]] = {}
    sum_ = Lost()
    for one in calls:
        before = answered.setdefault((one.session, one.api), {})
        miss = missed(_previous(before, one), one)
        if miss is not None and one.usage is not None:
            usd = cost_of(miss.lost, one.usage, rates(one))
            paid = one.basis == "subscription"
            sum_ = Lost(
                sum_.misses + 1,
                sum_.tokens + miss.lost,
                sum_.usd + (usd or 0 if not paid else 0),
                sum_.equivalent + (usd or 0 if paid else 0),
                sum_.unpriced + (usd is None),
            )
        _remember(before, one)
    return sum_


def _as_long(one: CallRow, other: CallRow) -> bool:
    """Whether they may be calls of one conversation, though the model is another."""
    return one.usage is not None and other.usage is not None and one.usage.prompt <= 2 * other.usage.prompt


def family(model: str) -> str:
    """A model without its date and its seller's prefix: they share a cache."""
    name = model.rpartition("/")[2].lower()
    name = re.sub(r"^(?:[a-z]{2,6}\.)?(?:anthropic|amazon|meta)\.", "", name)
    return re.sub(r"[-@](?:\d{4}-\d{2}-\d{2}|\d{8})(?:-v\d+(?::\d+)?)?$", "", name)


def missed(previous: CallRow | None, this: CallRow) -> Miss | None:
    """Whether a call read much less than its predecessor had left in the cache; None where it did not, or who knows."""
    manner = MANNERS.get(this.api)
    if previous is None or manner is None or previous.usage is None or this.usage is None or this.status != 200:
        return None
    left = _left(previous.usage, manner)
    could = min(left, this.usage.prompt) // manner.step * manner.step
    if not manner.explicit and not _KNOWN.fullmatch(this.upstream.lower()) and not previous.usage.cache_read:
        return None
    lost = could - this.usage.cache_read
    if could < manner.least or lost <= max(_SLACK, could * _SLACK_SHARE):
        return None
    return Miss(could, this.usage.cache_read, lost)


def _left(usage: Usage, manner: Manner) -> int:
    """Tokens in the cache after a call."""
    if manner.explicit:
        return usage.cache_read + usage.cache_write_5m + usage.cache_write_1h
    return usage.prompt


def cost_of(lost: int, usage: Usage, rates: Mapping[str, Decimal]) -> Decimal | None:
    """Dollars that so many tokens cost more than reading them; `rates` are dollars per million by class."""
    paid, read = rates.get(_paid(usage)), rates.get("cache_read")
    return None if paid is None or read is None else max(Decimal(0), paid - read) * lost / _MILLION


def _paid(usage: Usage) -> str:
    """The class in which tokens were charged that were not read."""
    return max(("input", "cache_write_5m", "cache_write_1h"), key=lambda name: getattr(usage, name))


# --- why


def diagnose(previous: Call | None, this: Call, rates: Mapping[str, Decimal] | None = None) -> Diagnosis | None:
    """None where the cache worked, or nothing is known of it.

    `rates`: dollars per million tokens by class, for what the calls' own prices do not tell.
    """
    row = this.row
    manner, usage = MANNERS.get(row.api), row.usage
    if manner is None or usage is None or row.status != 200:
        return None
    if previous is None or previous.row.usage is None or previous.row.api != row.api:
        return None if usage.cache_read else _nothing("first", usage)
    miss = missed(previous.row, row)
    mine, theirs = prompt(this), prompt(previous)
    if miss is None:
        if manner.explicit and not _cached(usage) and not any(block.mark for block in mine):
            return _unmarked(previous, this, manner, rates or {}, mine)
        short = usage.prompt < manner.least and not usage.cache_read
        return _nothing("short", usage) if short else None
    return _why(previous, this, manner, miss, rates or {}, theirs, mine)


def _cached(usage: Usage) -> int:
    return usage.cache_read + usage.cache_write_5m + usage.cache_write_1h


def _nothing(cause: Cause, usage: Usage) -> Diagnosis:
    lead, why = _WORDS[cause]
    return Diagnosis(cause, lead, why, 0, usage.cache_read, 0, usage.prompt)


def _unmarked(
    previous: Call, this: Call, manner: Manner, rates: Mapping[str, Decimal], blocks: Sequence[Block]
) -> Diagnosis | None:
    """No breakpoint, so nothing was ever cached: what could have been, had there been one."""
    assert previous.row.usage is not None and this.row.usage is not None
    could = min(previous.row.usage.prompt, this.row.usage.prompt)
    if could < manner.least or not blocks:
        return _nothing("short", this.row.usage) if blocks else None
    theirs = prompt(previous)
    common = _common(theirs, blocks)
    could = min(could, _tokens(blocks, common, this.row.usage.prompt))
    if could < manner.least:
        return None
    return _made("no_breakpoint", previous, this, manner, Miss(could, 0, could), rates, theirs, blocks)


def _why(
    previous: Call,
    this: Call,
    manner: Manner,
    miss: Miss,
    rates: Mapping[str, Decimal],
    theirs: Sequence[Block],
    mine: Sequence[Block],
) -> Diagnosis:
    cause = next(name for name, holds in _CAUSES if holds(_Pair(previous, this, manner, theirs, mine)))
    return _made(cause, previous, this, manner, miss, rates, theirs, mine)


class _Pair(NamedTuple):
    previous: Call
    this: Call
    manner: Manner
    theirs: Sequence[Block]
    mine: Sequence[Block]

    @property
    def differing(self) -> Block | None:
        """The first block that is not what it was, within what both calls have."""
        common = _common(self.theirs, self.mine)
        if not self.mine or common >= len(self.theirs):
            return None
        now = self.mine[common] if common < len(self.mine) else None
        return self.theirs[common] if now is None or _went(self.theirs[common], now, self.order) else now

    @property
    def order(self) -> Sequence[str]:
        return order_of(self.this.row.api)

    @property
    def root(self) -> str:
        return str(self.differing.path[0]) if self.differing is not None else ""

    @property
    def changed(self) -> tuple[str, str]:
        """Both texts at the first difference."""
        _, before, now = first_difference(self.theirs, self.mine, self.order)
        return _leaf(before), _leaf(now)

    @property
    def since_s(self) -> float:
        """Between the last use of the cache and this call."""
        used = self.previous.row.started_ns + (self.previous.row.ttfb_ms or 0) * 10**6
        return (self.this.row.started_ns - used) / _SECOND

    @property
    def limit_s(self) -> int:
        row = self.previous.row
        hour = (row.usage is not None and row.usage.cache_write_1h) or any(block.mark == "1h" for block in self.theirs)
        return 3600 if self.manner.explicit and hour else self.manner.limit_s


_TOOLS = ("tools", "functions", "toolConfig", "tool_config")
_SYSTEM = ("system", "instructions", "systemInstruction", "system_instruction")
_MESSAGES = ("messages", "contents", "input")
_TIME = re.compile(
    r"\b\d{4}-\d\d-\d\d|\b\d{1,2}:\d\d(?::\d\d)?\b|\b1[5-9]\d{8}\b"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"
    r"|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? \d|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b",
    re.IGNORECASE,
)
_NAMES_OF_TIME = re.compile(
    r"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)(?:day)?|tue|wed|thu|sat|jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?"
    r"|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:tember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?|am|pm)\b",
    re.IGNORECASE,
)
_ID = re.compile(r"\b(?=[\w-]*\d)[\w-]{8,}\b")


def _is_time(pair: _Pair) -> bool:
    """The texts are the same but for a date or a time."""
    before, now = _changed(*pair.changed)
    if not before or not now or not _TIME.search(now):
        return False
    blank = [re.sub(r"\d+", "0", _NAMES_OF_TIME.sub("day", one)) for one in (before, now)]
    return blank[0] == blank[1]


def _is_id(pair: _Pair) -> bool:
    before, now = _changed(*pair.changed)
    return bool(before and now and _ID.search(now)) and _ID.sub("id", before) == _ID.sub("id", now)


def _changed(before: str, now: str) -> tuple[str, str]:
    """Of the first line that differs, what does, with some of the line around it."""
    at = diffing.common_prefix(before, now)
    start = now.rfind("\n", 0, at) + 1
    one, other = (text[start : text.find("\n", at) if "\n" in text[at:] else len(text)] for text in (before, now))
    head = max(0, at - start - _AROUND)
    tail = diffing.common_prefix(one[at - start :][::-1], other[at - start :][::-1])
    tail = max(0, tail - _AROUND)
    return one[head : len(one) - tail][:_COMPARED], other[head : len(other) - tail][:_COMPARED]


def _is_shorter(pair: _Pair) -> bool:
    """Much of the history went: what follows the first difference is not what it was, and less."""
    counted = [sum(1 for block in blocks if block.path[0] in _MESSAGES) for blocks in (pair.theirs, pair.mine)]
    return pair.root in _MESSAGES and counted[1] < counted[0]


def _is_too_far(pair: _Pair) -> bool:
    """All the same, but no breakpoint is within reach of where the last call had set one."""
    if (
        not pair.manner.explicit
        or not pair.mine
        or not pair.theirs
        or _common(pair.theirs, pair.mine) < len(pair.theirs)
    ):
        return False
    left = [number for number, block in enumerate(pair.theirs) if block.mark]
    looked = [number for number, block in enumerate(pair.mine) if block.mark]
    return bool(left and looked) and not any(0 <= at - one <= _LOOKBACK for at in looked for one in left)


# The first that holds is the cause.
_CAUSES: tuple[tuple[Cause, Callable[[_Pair], bool]], ...] = (
    ("model", lambda pair: family(pair.previous.row.model) != family(pair.this.row.model)),
    ("unseen", lambda pair: not pair.mine or not pair.theirs),
    ("tools", lambda pair: pair.root in _TOOLS),
    ("timestamp", lambda pair: pair.differing is not None and _is_time(pair)),
    ("identifier", lambda pair: pair.root in _SYSTEM and _is_id(pair)),
    ("system", lambda pair: pair.root in _SYSTEM or _is_system(pair.differing)),
    ("parameters", lambda pair: bool(pair.root) and pair.root not in _MESSAGES),
    ("compaction", _is_shorter),
    ("history", lambda pair: pair.root in _MESSAGES),
    ("concurrent", lambda pair: pair.since_s < 0),
    ("no_breakpoint", lambda pair: pair.manner.explicit and not any(block.mark for block in pair.mine)),
    ("expired", lambda pair: pair.since_s > pair.limit_s),
    ("lookback", _is_too_far),
    ("evicted", lambda pair: True),
)


def _is_system(block: Block | None) -> bool:
    """Instructions that stand among the messages."""
    return block is not None and block.role in ("system", "developer")


_WORDS: Mapping[Cause, tuple[str, str]] = {
    "first": ("The first call of this conversation.", "Nothing was in the cache that it could have read."),
    "short": ("Too short to be cached.", "The provider caches only longer prompts."),
    "model": (
        "The model was switched, from {was} to {model}.",
        "Each model has a cache of its own, so the whole prompt had to be read anew.",
    ),
    "unseen": (
        "Much less was read than the call before had left.",
        "One of the two requests is not recorded as a whole, so the first difference cannot be told.",
    ),
    "tools": (
        "The tool list changed{tool}.",
        "Tools come first in the prompt, so everything after them had to be read anew.",
    ),
    "timestamp": (
        "A date or time in the {part} changed.",
        "Everything after it had to be read anew. Put what changes at the end of the prompt, or leave out the time.",
    ),
    "identifier": (
        "An id in the system prompt changed.",
        "It is another one in each call, so everything after it has to be read anew each time.",
    ),
    "system": (
        "The system prompt changed.",
        "It comes before all messages, so these had to be read anew.",
    ),
    "parameters": (
        "The parameter {root} changed.",
        "Some parameters are part of what is cached: what comes after them had to be read anew.",
    ),
    "compaction": (
        "The conversation was shortened.",
        "The client compacted or cut the history, so what follows is a new prompt.",
    ),
    "history": (
        "An earlier message was changed.",
        "Something that had been sent before is no longer the same; from there on the prompt had to be read anew.",
    ),
    "concurrent": (
        "It was sent while the call before was still waiting for its answer.",
        "A prefix can be read only once the answer to the call that writes it has begun.",
    ),
    "no_breakpoint": (
        "The request sets no cache breakpoint.",
        "This API caches only up to blocks that are marked with cache_control.",
    ),
    "expired": (
        "The cache had expired: {since} since the call before.",
        "Prompts are kept for {limit} after their last use. Nothing else that could matter had changed.",
    ),
    "lookback": (
        "No breakpoint was near enough to the cached prefix.",
        "The provider looks back at most 20 blocks from a breakpoint; more than that came since the last one.",
    ),
    "evicted": (
        "The provider had dropped it.",
        "Nothing that matters changed, and it was asked in time. Caches are not promised.",
    ),
}


def _made(
    cause: Cause,
    previous: Call,
    this: Call,
    manner: Manner,
    miss: Miss,
    rates: Mapping[str, Decimal],
    theirs: Sequence[Block],
    mine: Sequence[Block],
) -> Diagnosis:
    pair = _Pair(previous, this, manner, theirs, mine)
    usage = this.row.usage
    assert usage is not None
    path, before, now = first_difference(theirs, mine, pair.order) if pair.differing is not None else ((), None, None)
    was, is_now = diffing.marked(_leaf(before), _leaf(now), _AROUND)
    character = (
        diffing.common_prefix(_leaf(before), _leaf(now)) if isinstance(before, str) and isinstance(now, str) else None
    )
    matched = _matched(pair, path, character, usage.prompt) if mine and theirs and cause != "model" else None
    readable, at = _readable(pair, usage.prompt) if manner.explicit and matched is not None else (None, "")
    known = {**rates, **rates_of(previous), **rates_of(this)}
    part = "system prompt" if pair.root in _SYSTEM or _is_system(pair.differing) else "prompt"
    lead, why = (
        one.format(
            was=previous.row.model,
            model=this.row.model,
            tool=_tool(theirs, mine, path),
            part=part,
            root=pair.root,
            since=words.duration(max(0.0, pair.since_s) * 1000),
            limit="1 h" if pair.limit_s == 3600 else manner.limit,
        )
        for one in _WORDS[cause]
    )
    return Diagnosis(
        cause=cause,
        lead=lead,
        why=why,
        could_read=miss.could_read,
        read=miss.read,
        lost=miss.lost,
        prompt=usage.prompt,
        previous=previous.row.id,
        previous_seq=previous.row.seq,
        matched=matched,
        readable=readable,
        breakpoint=at,
        path=diffing.written(path),
        character=character,
        before=was,
        now=is_now,
        ruled_out=tuple(_ruled_out(pair, cause)),
        usd=cost_of(miss.lost, usage, known),
        equivalent=this.row.basis == "subscription",
        paid_rate=known.get(_paid(usage)),
        read_rate=known.get("cache_read"),
        since_ms=max(0, int(pair.since_s * 1000)),
        first_difference=path,
    )


def rates_of(call: Call) -> dict[str, Decimal]:
    """Dollars per million tokens, by class, that a call's recorded price names."""
    units = mapping(mapping((call.response or {}).get("price")).get("units"))
    found = {}
    for name, unit in units.items():
        one = unit[-1] if isinstance(unit, list) and unit else unit
        if isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < 10**9:
            found[str(name)] = Decimal(str(one))
    return found


def _tool(theirs: Sequence[Block], mine: Sequence[Block], path: Path) -> str:
    """Which tools, in words behind "The tool list changed"."""
    before, now = ({block.name: block.code for block in blocks if block.path[0] in _TOOLS} for blocks in (theirs, mine))
    came, went = [name for name in now if name not in before], [name for name in before if name not in now]
    other = [name for name in now if name in before and now[name] != before[name]]
    told = []
    for names, what in ((came, "came"), (went, "went"), (other, "changed")):
        if len(names) == 1 and names[0]:
            field = str(path[-1]) if what == "changed" and len(path) > 2 else ""
            told.append(f"{field + ' of ' if field else ''}{names[0][:60]} {'is different' if field else what}")
        elif names:
            told.append(f"{len(names)} {what}")
    return f": {', '.join(told)}" if told else ": the order is another"


def _ruled_out(pair: _Pair, cause: Cause) -> Iterator[str]:
    """What is not the cause, as far as is known."""
    if cause != "model":
        yield "model"
    if pair.mine and pair.theirs:
        if 0 <= pair.since_s <= pair.limit_s and cause != "expired":
            limit = "1 h" if pair.limit_s == 3600 else pair.manner.limit
            yield f"time limit ({words.duration(pair.since_s * 1000)} of {limit})"
        for names, causes, told in (
            (_TOOLS, ("tools",), "tool list"),
            (_SYSTEM, ("system", "timestamp", "identifier"), "system prompt"),
        ):
            if cause not in causes and _codes(pair.theirs, names) == _codes(pair.mine, names):
                yield told
        if cause not in ("compaction", "history") and not _is_shorter(pair):
            yield "compaction"


def _codes(blocks: Sequence[Block], names: Sequence[str]) -> list[str]:
    return [block.code for block in blocks if block.path[0] in names or (names is _SYSTEM and _is_system(block))]


def _matched(pair: _Pair, path: Path, character: int | None, prompt_tokens: int) -> int:
    common = _common(pair.theirs, pair.mine)
    inside = character or 0
    total = sum(block.weight for block in pair.mine) or 1
    before = sum(block.weight for block in pair.mine[:common])
    if common < len(pair.mine) and path:
        # What lies in the block before the text that differs.
        code = pair.mine[common].code
        inside = min(pair.mine[common].weight, inside + max(0, code.find(f'"{path[-1]}"')))
    return min(prompt_tokens, round(prompt_tokens * (before + inside) / total))


def _readable(pair: _Pair, prompt_tokens: int) -> tuple[int, str]:
    """(tokens up to the last breakpoint before the first difference, the first breakpoint behind it)."""
    common = _common(pair.theirs, pair.mine)
    before = [number for number, block in enumerate(pair.mine[:common]) if block.mark]
    after = next((block for block in pair.mine[common:] if block.mark), None)
    tokens = _tokens(pair.mine, before[-1] + 1, prompt_tokens) if before else 0
    return tokens, diffing.written(after.path) if after is not None else ""


def _tokens(blocks: Sequence[Block], count: int, prompt_tokens: int) -> int:
    total = sum(block.weight for block in blocks) or 1
    return round(prompt_tokens * sum(block.weight for block in blocks[:count]) / total)


# --- a prompt, in the order in which it is cached


class Block(NamedTuple):
    """A piece of a prompt. `code` is the same for the same piece; `mark`: the breakpoint behind it ("5m", "1h")."""

    path: Path
    code: str
    weight: int
    mark: str
    value: Any
    name: str = ""
    role: str = ""


# What is cached, in order. Parameters that change what is cached behind them stand between.
_ORDERS: Mapping[str, tuple[str, ...]] = {
    "anthropic": ("tools", "system", "tool_choice", "thinking", "messages"),
    "bedrock.converse": ("toolConfig", "system", "messages"),
    "openai.chat": ("tools", "functions", "response_format", "messages"),
    "openai.responses": ("tools", "instructions", "input"),
    "gemini": ("systemInstruction", "system_instruction", "tools", "toolConfig", "contents"),
}


def order_of(api: str) -> tuple[str, ...]:
    return _ORDERS.get(api) or _ORDERS["gemini" if api.startswith("gemini") else "anthropic"]


def prompt(call: Call) -> tuple[Block, ...]:
    """The blocks of a call's prompt; empty where they are not recorded as a whole, or are partly with the provider."""
    request = call.request or {}
    if request.get("truncated") or request.get("left_out") or request.get("decode_error"):
        return ()
    body = mapping(read_value(call.request_body))
    if body.get("previous_response_id") or body.get("cachedContent"):
        return ()
    return tuple(block for name in order_of(call.row.api) if name in body for block in _blocks((name,), body[name]))


def _blocks(path: Path, value: Any) -> Iterator[Block]:
    if path[0] == "messages" or path[0] == "contents":
        for number, message in enumerate(sequence(value)):
            yield from _message((*path, number), mapping(message))
        return
    inner = mapping(value).get("tools") if path[0] == "toolConfig" else None
    items = sequence(inner) if inner is not None else value
    if isinstance(items, list):
        prefix = (*path, "tools") if inner is not None else path
        yield from _items(prefix, items, "")
    else:
        yield _block(path, {"type": "text", "text": value} if isinstance(value, str) else value, "")


def _message(path: Path, message: Mapping[str, Any]) -> Iterator[Block]:
    """A text alone is the same as a list with that text in it."""
    role = text(message.get("role"))
    field = "parts" if "parts" in message else "content"
    content = message.get(field)
    rest = {name: value for name, value in message.items() if name not in (field, "cache_control")}
    if len(rest) > 1:  # tool calls and the like stand beside the content
        yield _block(path, dict(message), "", role)
    elif isinstance(content, list):
        yield from _items((*path, field), content, role)
    else:
        value = {"type": "text", "text": content} if isinstance(content, str) else content
        yield _block((*path, field), value, _mark(message), role)


def _items(path: Path, items: Sequence[Any], role: str) -> Iterator[Block]:
    """A `cachePoint` of Bedrock marks the block before it."""
    waiting: Block | None = None
    for number, item in enumerate(items):
        if isinstance(item, dict) and set(item) == {"cachePoint"}:
            waiting = waiting._replace(mark="5m") if waiting is not None else None
            continue
        if waiting is not None:
            yield waiting
        waiting = _block((*path, number), item, _mark(item), role)
    if waiting is not None:
        yield waiting


def _mark(item: Any) -> str:
    control = item.get("cache_control") if isinstance(item, dict) else None
    return "" if not isinstance(control, dict) else "1h" if control.get("ttl") == "1h" else "5m"


def _block(path: Path, value: Any, mark: str, role: str = "") -> Block:
    bare = {name: one for name, one in value.items() if name != "cache_control"} if isinstance(value, dict) else value
    code = role + json.dumps(bare, ensure_ascii=False, default=str)
    function = mapping(mapping(value).get("function"))
    spec = mapping(mapping(value).get("toolSpec"))
    name = text(mapping(value).get("name")) or text(function.get("name")) or text(spec.get("name"))
    return Block(path, code, len(code) - _media(bare), mark, bare, name, role)


def _media(value: Any) -> int:
    """Characters of base64 that are no tokens."""
    found = 0
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            data = next((one[name] for name in ("data", "url", "bytes") if isinstance(one.get(name), str)), "")
            found += max(0, len(data) - _MEDIA) if len(data) > _LONG_MEDIA and " " not in data[:200] else 0
            waiting += [inner for inner in one.values() if isinstance(inner, dict | list)]
        elif isinstance(one, list):
            waiting += [inner for inner in one if isinstance(inner, dict | list)]
    return found


def _common(theirs: Sequence[Block], mine: Sequence[Block]) -> int:
    pairs: Iterable[tuple[Block, Block]] = zip(theirs, mine, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].code == pair[1].code, pairs))


def first_difference(theirs: Sequence[Block], mine: Sequence[Block], order: Sequence[str]) -> tuple[Path, Any, Any]:
    """(path, what was there, what is there now), of the first place that is not the same; None is nothing."""
    common = _common(theirs, mine)
    if common >= len(theirs):
        return (mine[common].path, None, mine[common].value) if common < len(mine) else ((), None, None)
    before, now = theirs[common], mine[common] if common < len(mine) else None
    if now is None or _went(before, now, order):
        return before.path, before.value, None
    if before.path[0] != now.path[0]:
        return now.path, None, now.value
    return _first(before.value, now.value, now.path)


def _went(before: Block, now: Block, order: Sequence[str]) -> bool:
    """Whether the part that `before` belongs to ended sooner than it did."""
    return order.index(str(before.path[0])) < order.index(str(now.path[0]))


def _first(before: Any, now: Any, path: Path) -> tuple[Path, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*before, *now)):
            if name not in before or name not in now or before[name] != now[name]:
                return _first(before.get(name), now.get(name), (*path, name))
    elif isinstance(before, list) and isinstance(now, list):
        for number, (one, other) in enumerate(zip(before, now, strict=False)):
            if one != other:
                return _first(one, other, (*path, number))
        place = min(len(before), len(now))
        rest = [items[place] if place < len(items) else None for items in (before, now)]
        return (*path, place), rest[0], rest[1]
    return path, before, now


def _leaf(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
