"""How many tokens a prompt has, before it is sent: for aliases that choose a model by it, and where nobody else counts.

Vocabularies come with a package, so nothing is asked of any network. OpenAI's models are counted by their own, all
others by the nearest one (`FAMILIES`). Texts are counted, and what names and frames them; pictures, sounds and files
are not. Leaves out which request needs it (`planning`).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any, Final, NamedTuple

import msgspec

log = logging.getLogger(__name__)

MEASURED: Final = 1 << 19  # characters, 15 ms; what comes behind them is taken to be as dense as they are
_FIRST, _MOST = 1 << 10, 1 << 14  # characters of a piece: the first ones are small, because thresholds are
_MESSAGE, _ANSWER = 3, 3  # tokens around each message, and before the answer, as OpenAI documents for its chat models


class Family(NamedTuple):
    """`factor` times the tokens that `encoding` makes of it."""

    name: re.Pattern[str]
    encoding: str
    factor: float = 1.0


# The first whose name is found in the model's. Published comparisons give Claude 1.16 times o200k's tokens for English
# and 1.3 times for code.
FAMILIES: Final = (
    Family(re.compile("claude"), "o200k_base", 1.2),
    Family(re.compile(r"gpt-(?:3|4(?![o.\d]))|text-embedding"), "cl100k_base"),
    Family(re.compile(r"llama-?3|qwen"), "cl100k_base"),  # their own vocabularies grew out of it
    Family(re.compile(""), "o200k_base"),  # OpenAI's since gpt-4o; others' of the same size
)

# What of a request is read by a model, for each API that callers speak.
READ: Final = {
    "chat": ("messages", "tools", "functions", "response_format"),
    "responses": ("instructions", "input", "tools", "text"),
    "anthropic": ("system", "messages", "tools"),
    "count_tokens": ("system", "messages", "tools"),
    "completions": ("prompt", "suffix"),
    "embeddings": ("input",),
}
_PLAIN: Final = {"completions", "embeddings"}
_TALK: Final = {"messages", "input"}  # whose items are framed
_FORMAL: Final = {"tools", "functions", "response_format", "text"}
# No text, or none that a model reads: pictures, files, references, signatures.
_UNREAD: Final = {
    "audio",
    "cache_control",
    "call_id",
    "data",
    "encrypted_content",
    "file",
    "file_data",
    "file_id",
    "file_url",
    "id",
    "image_url",
    "input_audio",
    "signature",
    "status",
    "tool_call_id",
    "tool_use_id",
    "type",
    "url",
}


def family(model: str) -> Family:
    name = model[:255].lower()
    return next(one for one in FAMILIES if one.name.search(name))


def load(models: Iterable[str]) -> None:
    """Make ready what these models are counted by: 80 ms and 35 MB for a vocabulary, once."""
    for encoding in {family(model).encoding for model in models}:
        _counter(encoding)


class Prompt:
    """A request's tokens, counted no further than somebody asks, and nothing twice. Never raises.

    `api` is a name of `READ`; `body` the request as it came or already decoded.
    """

    __slots__ = ("_api", "_body", "_counts", "_decoded")

    def __init__(self, api: str, body: Any) -> None:
        self._api = api
        self._body = body
        self._decoded = not isinstance(body, (bytes, bytearray, memoryview))
        self._counts: dict[str, _Count] = {}

    def reaches(self, model: str, tokens: int) -> bool:
        """Whether it has that many for that model, or more."""
        _, encoding, factor = family(model)
        needed = math.ceil(tokens / factor)
        if not self._decoded and len(self._body) < needed:  # no token is shorter than a byte
            return needed <= 0
        return self._count(encoding).up_to(needed) >= needed

    def tokens(self, model: str) -> int:
        """How many it has for that model."""
        _, encoding, factor = family(model)
        return round(self._count(encoding).up_to(None) * factor)

    def about(self) -> int:
        """How many it may have for any model, by the length of its texts: no vocabulary is loaded for that."""
        self._decode()
        return sum(one if isinstance(one, int) else _length(one) for one in _texts(self._api, self._body))

    def _decode(self) -> None:
        if not self._decoded:
            self._body, self._decoded = _json(self._body), True

    def _count(self, encoding: str) -> _Count:
        if encoding not in self._counts:
            self._decode()
            self._counts[encoding] = _Count(_counter(encoding), _pieces(_texts(self._api, self._body)))
        return self._counts[encoding]


class _Count:
    """Goes through the pieces as far as it is asked to, and on from there the next time."""

    __slots__ = ("_counter", "_estimated", "_measured", "_pieces", "_tokens")

    def __init__(self, counter: Callable[[str], int], pieces: Iterator[str | int]) -> None:
        self._counter = counter
        self._pieces = pieces
        self._tokens = self._measured = self._estimated = 0

    def up_to(self, enough: int | None) -> int:
        """The tokens so far: all, or at least `enough`."""
        while enough is None or self._tokens + self._estimated < enough:
            piece = next(self._pieces, None)
            if piece is None:
                break
            if isinstance(piece, int):
                self._tokens += piece
            elif self._measured < MEASURED:
                self._tokens += self._counter(piece)
                self._measured += len(piece)
            else:
                self._estimated += math.ceil(len(piece) * self._tokens / self._measured)
        return self._tokens + self._estimated


@cache
def _vocabularies() -> Any:
    """The package's native part, alone: the rest of it takes a second to import and reads every vocabulary at once."""
    package = find_spec("bpe_openai")
    spec = package and PathFinder.find_spec("_bindings", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=8)
def _counter(encoding: str) -> Callable[[str], int]:
    try:
        count: Callable[[str], int] = _vocabularies().tokenizer_for_encoding(encoding).count
    except Exception as wrong:  # foreign ground: another version of it, another machine
        log.warning("the vocabulary %s cannot be loaded, so a token counts as four bytes: %s", encoding, wrong)
        return lambda text: math.ceil(len(text.encode("utf-8", "replace")) / 4)

    def counted(text: str) -> int:
        try:
            return count(text)
        except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
            return count(text.encode("utf-8", "replace").decode())

    return counted


def _length(text: str) -> int:
    """Four bytes are a token: of Latin letters there are four in one, of Chinese ones, of three bytes, about one."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def _json(body: bytes) -> Any:
    """What the bytes say; nothing where they say nothing, because somebody else refuses them."""
    for decode in (msgspec.json.decode, json.loads):  # the second takes NaN, and surrogates that stand alone
        try:
            return decode(bytes(body))
        except (ValueError, RecursionError):
            continue
    return None


def _pieces(texts: Iterator[str | int]) -> Iterator[str | int]:
    """The same with long texts cut, so that no step takes long. A cut costs a token at most."""
    most = _FIRST
    for text in texts:
        if isinstance(text, int) or len(text) <= most:
            yield text
            continue
        start = 0
        while start < len(text):
            yield text[start : start + most]
            start += most
            most = min(2 * most, _MOST)


def _texts(api: str, body: Any) -> Iterator[str | int]:
    """The texts of a request in their order, and tokens that no text shows."""
    if not isinstance(body, dict):
        return
    for name in READ.get(api, ()):
        value = body.get(name)
        if api in _PLAIN:
            yield from _given(value)
        elif name in _FORMAL:
            if isinstance(value, (dict, list)):
                yield _formal(value)
        elif isinstance(value, list) and name in _TALK:
            for one in value:
                yield _MESSAGE
                yield from _talk(one)
            yield _ANSWER
        else:
            yield from _talk(value)


def _given(value: Any) -> Iterator[str | int]:
    """Of the APIs without messages: a text, tokens, or a list of either."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            yield len(one)
        elif isinstance(one, int):
            yield 1


def _talk(value: Any) -> Iterator[str]:
    """Every text below that a model reads. Nothing here recurses, because callers may nest as deep as they like."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            left.extend(reversed(one))
        elif isinstance(one, dict):
            for name, inner in reversed(one.items()):
                if name == "input" and isinstance(inner, dict):  # a tool's, as Anthropic has them
                    left.append(_formal(inner))
                elif name not in _UNREAD:
                    left.append(inner)


def _formal(value: Any) -> str:
    """All of it, names and numbers too, much as JSON has it."""
    told: list[str] = []
    left: list[tuple[Any, bool]] = [(value, False)]
    while left:
        one, is_name = left.pop()
        if is_name:
            told.append(f'"{one}":')
        elif isinstance(one, list):
            left.extend((inner, False) for inner in reversed(one))
        elif isinstance(one, dict):
            for name, inner in reversed(one.items()):
                left += [(inner, False), (name, True)]
        else:
            told.append(f'"{one}",' if isinstance(one, str) else f"{one},")
    return "".join(told)
