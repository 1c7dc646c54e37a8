"""How a provider's signatures travel through the clients of another: in an envelope that they hand back as it is.

Models that think want their thoughts back, signed, with the results of their tools. A client of another API keeps a
signature for us where its own API has one. Leaves out where that is (each API's module).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from llm_proxy.gateway.translate.conversation import Part, Thinking, ToolCall

ANTHROPIC: Final = "anthropic"  # on whichever platform: its signatures hold on all of them
OPENAI: Final = "openai"
GEMINI: Final = "gemini"
BEDROCK: Final = "bedrock"  # what Amazon alone can open

_MARK = "llmp1."
_OF_CALL = "call"  # the `id` of a thought that is none: it carries the signature of the call behind it


def outward(thinking: Thinking, home: str) -> str:
    """The signature for clients of `home`, whose own stays as it is; "" without one."""
    if thinking.origin == home:
        return thinking.signature
    if not thinking.signature and not thinking.sealed:
        return ""
    facts = [thinking.origin, thinking.signature, thinking.sealed, thinking.id]
    return _MARK + base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()


def inward(text: str, signature: str, home: str, id: str = "", at: str = "") -> Thinking:
    """The thought that a client of `home` handed back with that signature. Nobody vouches for one without."""
    if not signature.startswith(_MARK):
        return Thinking(text, signature, origin=home if signature else "", id=id, at=at)
    try:
        facts = json.loads(base64.urlsafe_b64decode(signature.removeprefix(_MARK)))
        origin, signed, sealed, its_id = map(str, facts)
    except (ValueError, TypeError):
        return Thinking(text, at=at)
    return Thinking(text, signed, sealed, origin, its_id, at)


def carried(parts: Iterable[Part]) -> Iterator[Part]:
    """Before each call that is signed, a thought with its signature: clients keep those of thoughts only."""
    for part in parts:
        if isinstance(part, ToolCall) and part.signature:
            yield Thinking("", part.signature, origin=part.origin, id=_OF_CALL, at=part.at)
            part = replace(part, signature="", origin="")
        yield part


def delivered(parts: Iterable[Part]) -> Iterator[Part]:
    """The calls with their signatures again."""
    kept: Thinking | None = None
    for part in parts:
        if isinstance(part, Thinking) and part.id == _OF_CALL:
            kept = part
            continue
        if isinstance(part, ToolCall) and kept is not None:
            part = replace(part, signature=kept.signature, origin=kept.origin)
            kept = None
        yield part
