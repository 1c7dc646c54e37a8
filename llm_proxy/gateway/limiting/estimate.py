"""What a call will use, guessed before it is made: the prompt's tokens by its length, the answer's by what is asked.

A vocabulary would say the first exactly, for 75 MB and more time than all else that a limit takes, and the second would
be a guess still. Callers ask for the most that a model can give and get a tenth of it, so more than `MOST_OUTPUT` is
not believed. Leaves out what it used in the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway import tokens
from llm_proxy.gateway.costing import Prices
from llm_proxy.gateway.facts import Attempt, Caller, Role, Target

MOST_OUTPUT: Final = 4096  # tokens
SOME_OUTPUT: Final = 1024  # where a caller does not say how many
_FRESH: Final = 60.0  # seconds that a price is remembered
_MOST_RATES: Final = 1_000
_SAMPLE: Final = 100_000  # tokens that a price is asked for: none pays more for so few
_WITHOUT_OUTPUT: Final = frozenset({"embeddings", "count_tokens"})
_NOBODY: Final = Caller(0, "", Role.MEMBER, frozenset())


class _Asked(msgspec.Struct):
    """By the names of all APIs."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


_ASKED = msgspec.json.Decoder(_Asked)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a call before it is made. `target` is the first that it would go to."""

    api: str
    body: bytes
    prompt: tokens.Prompt
    target: Target | None


class Estimates:
    """One for a process."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._rates: dict[tuple[str, str, str], tuple[float, float, float]] = {}

    async def of(self, call: Estimate, *, priced: bool) -> tuple[int, int]:
        """Tokens, and billionths of a dollar where that is asked: 0 where no price is known."""
        went_in, comes_out = call.prompt.about(), _output(call)
        if not priced or call.target is None:
            return went_in + comes_out, 0
        rate_in, rate_out = await self._rate(call.target, call.api)
        return went_in + comes_out, round(went_in * rate_in + comes_out * rate_out)

    def cost(self, attempts: Sequence[Attempt]) -> int:
        """What they have cost, as far as that is known. Blocks: it is for a thread."""
        return sum(self._prices.cost(attempt) or 0 for attempt in attempts)

    async def _rate(self, target: Target, api: str) -> tuple[float, float]:
        """Of a token in and a token out, in billionths of a dollar."""
        name, now = (target.key.provider.value, target.key.base_url, target.model), time.monotonic()
        known = self._rates.get(name)
        if known is None or known[0] < now:
            if len(self._rates) >= _MOST_RATES:
                self._rates.clear()
            known = self._rates[name] = now + _FRESH, *await asyncio.to_thread(self._asked, target, api)
        return known[1], known[2]

    def _asked(self, target: Target, api: str) -> tuple[float, float]:
        try:
            rates = [
                (self._prices.cost(_sample(target, api, usage)) or 0) / _SAMPLE
                for usage in (Usage(input=_SAMPLE), Usage(output=_SAMPLE))
            ]
        except Exception:  # prices are a foreign package's
            return 0.0, 0.0
        return rates[0], rates[1]


def _sample(target: Target, api: str, usage: Usage) -> Attempt:
    return Attempt("", 1, datetime.now(UTC), _NOBODY, api, "", target, 200, "complete", usage=usage)


def _output(call: Estimate) -> int:
    if call.api in _WITHOUT_OUTPUT:
        return 0
    try:
        asked = _ASKED.decode(call.body)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # somebody else refuses it
        return SOME_OUTPUT
    said = asked.max_completion_tokens or asked.max_tokens or asked.max_output_tokens or SOME_OUTPUT
    return min(max(said, 1), MOST_OUTPUT)
