"""What becomes of a setting that an API does not have: nothing where it says nothing, else it is left out or lost.

Leaves out the settings that an API has (each API's module).
"""

from __future__ import annotations

from llm_proxy.gateway.translate.conversation import Ask, Given, Option
from llm_proxy.gateway.translate.losses import Losses

# What an API does that has no such setting.
_USUAL = {
    Option.COUNT: 1,
    Option.LOGPROBS: False,
    Option.TOP_LOGPROBS: 0,
    Option.FREQUENCY_PENALTY: 0,
    Option.PRESENCE_PENALTY: 0,
    Option.PARALLEL_TOOLS: True,
    Option.VERBOSITY: "medium",
    Option.STOP: [],
}
_HINTS = frozenset({Option.METADATA, Option.CACHE_KEY, Option.STORE, Option.TIER, Option.USER})


def pass_over(name: str, given: Given, ask: Ask, losses: Losses) -> None:
    """Raises CannotSay where the answer would be another one without it."""
    if name in _USUAL and given.value == _USUAL[name]:
        return
    if name in _HINTS or (name == Option.PARALLEL_TOOLS and _calls_once(ask)):
        losses.loosen(given.at)
    else:
        losses.lose(given.at)


def _calls_once(ask: Ask) -> bool:
    """Whoever must call one tool calls it once; frameworks say so twice where they want JSON of a shape."""
    return not ask.tools or (ask.choice is not None and ask.choice.mode in ("one", "none"))
