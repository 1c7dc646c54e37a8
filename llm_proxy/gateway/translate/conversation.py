"""The form between the APIs: what a request asks, what an answer says, and the pieces in which an answer comes.

Each API's modules read its own JSON into this and write it from this, so that n APIs need n of them and not n². Frozen
facts. Leaves out how any API says them, and what becomes of what one of them cannot say (`losses`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from operator import is_
from typing import Any, Final

from llm_proxy.dialects.digest import Usage

Json = Any  # what a JSON document decodes to

# Where in the caller's request something stands, as in `messages[2].content[0]`; two requests that ask the same are
# equal wherever they say it.
_AT: Any = field(default="", compare=False, repr=False)


class Role(StrEnum):
    """Who speaks. What a developer says is a system's word; what a tool says is a part of a user's turn."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Text:
    """`cache` is how long a prefix up to here is to be kept: "", "5m" or "1h"."""

    text: str
    cache: str = ""
    at: str = _AT


@dataclass(frozen=True, slots=True)
class Media:
    """A picture, sound or document: by its bytes (`data`, base64), its `url`, or an id in the provider's own store.

    `kind` is image, audio or document; `name` a document's title; `text` a document that is plain text.
    """

    kind: str
    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    text: str = ""
    name: str = ""
    detail: str = ""  # of an image: low, high, auto, original
    cache: str = ""
    at: str = _AT


@dataclass(frozen=True, slots=True)
class Thinking:
    """`signature` and `sealed` mean something to `origin` alone, whose models gave them; `id` is the item's there."""

    text: str
    signature: str = ""
    sealed: str = ""  # thinking that may not be read, as it came
    origin: str = ""
    id: str = ""
    at: str = _AT


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON as the model wrote it, which may not be JSON; of a `free` tool, any text.

    `signature` belongs to `origin`, as that of Thinking does.
    """

    id: str
    name: str
    arguments: str
    free: bool = False
    signature: str = ""
    origin: str = ""
    cache: str = ""
    at: str = _AT


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`id` is the call's; `name` and `free` are the call's too, where it is known (`joined`)."""

    id: str
    parts: tuple[Text | Media, ...] = ()
    name: str = ""
    failed: bool = False
    free: bool = False
    cache: str = ""
    at: str = _AT


@dataclass(frozen=True, slots=True)
class Refusal:
    text: str
    at: str = _AT


Part = Text | Media | Thinking | ToolCall | ToolResult | Refusal


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says in a row. `name` tells speakers of one role apart."""

    role: Role
    parts: tuple[Part, ...]
    name: str = ""
    at: str = _AT


@dataclass(frozen=True, slots=True)
class Tool:
    """`schema` is the JSON schema of its arguments; None where the tool is `free`: it takes text.

    `grammar` says which text: `syntax` (lark, regex) and `definition`.
    """

    name: str
    description: str = ""
    schema: Mapping[str, Json] | None = None
    strict: bool | None = None
    free: bool = False
    grammar: Mapping[str, Json] | None = None
    cache: str = ""
    at: str = _AT


def joined(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """The turns with calls and results told of each other: a result knows its tool, and both have an id."""
    calls: dict[str, ToolCall] = {}
    nameless: dict[str, list[str]] = {}  # of a tool's calls without ids the ids they got, those unanswered
    return tuple(_with_parts(turn, tuple([_joined(part, calls, nameless) for part in turn.parts])) for turn in turns)


def _with_parts(turn: Turn, parts: tuple[Part, ...]) -> Turn:
    return turn if all(map(is_, parts, turn.parts)) else replace(turn, parts=parts)


def _joined(part: Part, calls: dict[str, ToolCall], nameless: dict[str, list[str]]) -> Part:
    if isinstance(part, ToolCall):
        if not part.id:
            part = replace(part, id=f"call_{len(calls)}")
            nameless.setdefault(part.name, []).append(part.id)
        calls[part.id] = part
    elif isinstance(part, ToolResult):
        if not part.id and (waiting := nameless.get(part.name)):
            part = replace(part, id=waiting.pop(0))
        if call := calls.get(part.id):
            part = replace(part, name=call.name, free=call.free)
    return part


@dataclass(frozen=True, slots=True)
class Choice:
    """Of tools: `mode` is auto, none, any (one must be called) or one (that named `name`)."""

    mode: str
    name: str = ""
    at: str = _AT


@dataclass(frozen=True, slots=True)
class Shape:
    """What the answer's text must be: any JSON object (no `schema`), or JSON after a schema."""

    schema: Mapping[str, Json] | None = None
    name: str = ""
    description: str = ""
    strict: bool | None = None
    at: str = _AT


LEVELS: Final = ("", "none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to think. `level` is "", none, minimal, low, medium, high, xhigh or max; `budget` tokens, where told.

    `off` is an explicit no. `told` asks for the thinking to be told in the answer, `brief` for a summary of it.
    """

    level: str = ""
    budget: int | None = None
    off: bool = False
    told: bool | None = None
    brief: str = ""
    at: str = _AT


class Option:
    """Settings that are one JSON value, by the name they have here; each API's module has a table of its own names."""

    MAX_TOKENS: Final = "max_tokens"
    TEMPERATURE: Final = "temperature"
    TOP_P: Final = "top_p"
    TOP_K: Final = "top_k"
    STOP: Final = "stop"  # a list of texts
    SEED: Final = "seed"
    COUNT: Final = "n"
    FREQUENCY_PENALTY: Final = "frequency_penalty"
    PRESENCE_PENALTY: Final = "presence_penalty"
    LOGPROBS: Final = "logprobs"  # true
    TOP_LOGPROBS: Final = "top_logprobs"
    PARALLEL_TOOLS: Final = "parallel_tool_calls"
    USER: Final = "user"  # an opaque id of the end user
    TIER: Final = "service_tier"
    VERBOSITY: Final = "verbosity"
    METADATA: Final = "metadata"  # a table of texts, for the provider's own pages
    CACHE_KEY: Final = "prompt_cache_key"
    STORE: Final = "store"


@dataclass(frozen=True, slots=True)
class Given:
    """An option's value and the name under which the caller gave it."""

    value: Json
    at: str = _AT


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `usage` asks for token counts at the end of a stream, which some APIs leave out otherwise."""

    model: str
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    choice: Choice | None = None
    shape: Shape | None = None
    effort: Effort | None = None
    options: Mapping[str, Given] = field(default_factory=dict)
    stream: bool = False
    usage: bool = False


class Stop(StrEnum):
    """Why an answer ended."""

    END = "end"
    LENGTH = "length"
    TOOL = "tool"  # it waits for a tool's result
    SEQUENCE = "sequence"  # one of the texts to stop at
    REFUSED = "refused"  # the model would not
    FILTERED = "filtered"  # the provider took it away
    PAUSED = "paused"  # the provider's own tools want another turn


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `created` is seconds since 1970, 0 where the provider does not tell.

    `failure` is that of a provider who failed and yet answered with a status of success.
    """

    id: str
    model: str
    parts: tuple[Part, ...]
    stop: Stop = Stop.END
    sequence: str = ""  # the text it stopped at
    usage: Usage = field(default_factory=Usage)
    created: int = 0
    logprobs: Json = None  # as OpenAI's chat has them
    tier: str = ""
    fingerprint: str = ""
    failure: Failure | None = None


# -- a stream: one Begin, for each part a PartBegin, pieces and a PartEnd, then one End; or a Failure at any point


@dataclass(frozen=True, slots=True)
class Begin:
    """`usage` is what is known before the first word."""

    id: str
    model: str
    usage: Usage = field(default_factory=Usage)
    created: int = 0
    tier: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """`part` is empty but for what is known at once: a call's id and name, sealed thinking. Indexes count from 0."""

    index: int
    part: Part


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the part `index`: of its text, thinking, refusal or arguments. Parts may come interleaved."""

    index: int
    text: str = ""
    logprobs: Json = None


@dataclass(frozen=True, slots=True)
class Signed:
    """The signature of the thinking (or call) that is part `index`."""

    index: int
    signature: str
    origin: str


@dataclass(frozen=True, slots=True)
class PartEnd:
    index: int


@dataclass(frozen=True, slots=True)
class End:
    """`usage` is that of the whole answer."""

    stop: Stop
    sequence: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Failure:
    """The provider broke off within a stream. `kind` is one of `errors`' kinds."""

    kind: str
    message: str


Event = Begin | PartBegin | Piece | Signed | PartEnd | End | Failure
