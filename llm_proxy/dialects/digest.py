"""What an exchange means, whichever API it used: `Asked`, `Answer` and, of both, `Digest`.

Frozen facts and small sums. Leaves out how each API says them (one module per API), what they cost and where they are
kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import Final


class PartKind:
    """What a piece of a message is."""

    TEXT: Final = "text"
    THINKING: Final = "thinking"
    TOOL_CALL: Final = "tool_call"
    TOOL_RESULT: Final = "tool_result"
    REFUSAL: Final = "refusal"
    MEDIA: Final = "media"  # image, audio, document: `name` says which, `text` where it lies or its media type
    OTHER: Final = "other"  # a piece of a kind we do not know; `name` is its type


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message. `id` joins a tool's call and result; a call's `text` is its arguments as JSON."""

    kind: str
    text: str = ""
    name: str = ""
    id: str = ""
    failed: bool = False  # a tool result that says it is an error


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `role` is `user`, `assistant`, `system` or `tool`, whatever the API calls it."""

    role: str
    parts: tuple[Part, ...]
    _key: bytes = field(default=b"", init=False, repr=False, compare=False)
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        if not self._hash:
            object.__setattr__(self, "_hash", hash((self.role, self.parts)))
        return self._hash

    @property
    def text(self) -> str:
        """What a person would read: texts and refusals, a blank line between them."""
        shown = (PartKind.TEXT, PartKind.REFUSAL)
        return "\n\n".join(part.text for part in self.parts if part.kind in shown and part.text)

    @property
    def key(self) -> bytes:
        """16 bytes, the same for an answer and for the message in which a client sends it back.

        Thinking is left out, because clients drop it, and so is white space around texts and between them.
        """
        if not self._key:
            object.__setattr__(self, "_key", self._made_key())
        return self._key

    def _made_key(self) -> bytes:
        digest = blake2b(self.role.encode(), digest_size=16)
        for part in self.parts:
            if part.kind == PartKind.THINKING:
                continue
            text = " ".join(part.text.split()) if part.kind in (PartKind.TEXT, PartKind.REFUSAL) else part.text
            if text or part.id or part.name:
                said = f"\0{part.kind}\0{part.id}\0{part.name}\0{text}"
                digest.update(said.encode("utf-8", "surrogatepass"))
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer as its provider counted them.

    `input`, `cache_read`, `cache_write_5m` and `cache_write_1h` do not overlap: together they are what went in.
    `output` is all that came out. The fields below the line lie within those above it. `server_tools` are
    (name, uses) of tools that the provider ran and charges by use.
    """

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    # --- within
    reasoning: int = 0  # of output
    input_audio: int = 0  # of input
    cache_read_audio: int = 0  # of cache_read
    output_audio: int = 0  # of output
    input_image: int = 0  # of input
    output_image: int = 0  # of output
    server_tools: tuple[tuple[str, int], ...] = ()

    @property
    def prompt(self) -> int:
        """All that went in."""
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h

    @property
    def total(self) -> int:
        return self.prompt + self.output

    def __add__(self, other: Usage) -> Usage:
        sums = {name: getattr(self, name) + getattr(other, name) for name in TOKEN_CLASSES}
        tools = dict(self.server_tools)
        for name, uses in other.server_tools:
            tools[name] = tools.get(name, 0) + uses
        return Usage(**sums, server_tools=tuple(sorted(tools.items())))


TOKEN_CLASSES = tuple(one.name for one in fields(Usage) if one.name != "server_tools")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks. `system` is the instructions outside the messages; `trouble` why it was not understood."""

    api: str = ""
    model: str = ""
    system: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[str, ...] = ()  # names of the tools offered
    stream: bool = False
    max_tokens: int = 0  # 0: not said
    service_tier: str = ""
    previous_response: str = ""  # id of the answer that this request continues (Responses)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one turn. `usage` is None where the provider gave none.

    `partial`: the stream ended before it said that it was over. `error` is the provider's own words and
    `error_type` its own type; `trouble` says why an answer was not understood.
    """

    model: str = ""
    message: Message | None = None
    usage: Usage | None = None
    stop_reason: str = ""  # in the provider's own word
    response_id: str = ""
    service_tier: str = ""
    error: str = ""
    error_type: str = ""
    partial: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Digest:
    """An exchange as understood. One answer for an HTTP call (or one for each choice it asked for), several for a
    WebSocket, none where none came.

    `limits` are the rate-limit fields of the response head: (lower-case name, value). `counted` is False where the same
    answers came back to an earlier call already: asked for once more, they used nothing.
    """

    asked: Asked
    answers: tuple[Answer, ...] = ()
    limits: tuple[tuple[str, str], ...] = ()
    counted: bool = True

    @property
    def usage(self) -> Usage | None:
        """The sum over the answers; None where none of them says, or where it was counted before."""
        if not self.counted:
            return None
        told = [answer.usage for answer in self.answers if answer.usage is not None]
        return sum(told[1:], told[0]) if told else None

    @property
    def model(self) -> str:
        """The model as the answer names it, else as it was asked for."""
        return next((answer.model for answer in reversed(self.answers) if answer.model), self.asked.model)

    @property
    def partial(self) -> bool:
        return any(answer.partial for answer in self.answers)

    @property
    def last(self) -> Answer:
        return self.answers[-1] if self.answers else Answer()
