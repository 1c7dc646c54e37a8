"""What an attempt cost, by the prices of the record (`records.pricing`), in billionths of a US dollar.

Loading prices takes a second, and a price some microseconds: both are for a thread, never for the event loop. Leaves
out who keeps it.
"""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from llm_proxy.gateway.facts import Attempt, Provider, ProviderKey
from llm_proxy.gateway.store.schema import MOST_COST, NANO

if TYPE_CHECKING:
    from llm_proxy.gateway.options import Options
    from llm_proxy.records.pricing import PriceBook

_FREE: Final = "count_tokens"  # the API that is free of charge everywhere
_LOOK: Final = 1.0  # seconds between two looks at the price file: each lets go of the interpreter
# What the price list calls who sells it at his own address, and at which.
_SELLERS: Final = {
    Provider.OPENAI: ("openai", "api.openai.com"),
    Provider.ANTHROPIC: ("anthropic", "api.anthropic.com"),
    Provider.GEMINI: ("google", "generativelanguage.googleapis.com"),
    Provider.BEDROCK: ("aws", "bedrock-runtime.amazonaws.com"),
}


class Prices:
    """Loaded with the first cost that is asked for, by any thread."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = options
        self._book: PriceBook | None = None
        self._turn = threading.Lock()

    def load(self) -> None:
        with self._turn:
            _ = self._loaded().data

    def _loaded(self) -> PriceBook:
        if self._book is None:
            from llm_proxy.records.pricing import PriceBook

            given = self._options
            overrides = {model: dict(prices) for model, prices in given.prices} if given else {}
            self._book = PriceBook(overrides, given.price_data if given else "", every=_LOOK)
        return self._book

    def cost(self, attempt: Attempt) -> int | None:
        """None where no price is known: that is never 0. Nothing is charged for what was not sent or not answered."""
        if attempt.cost is not None:
            return _billionths(attempt.cost)
        target, failed = attempt.target, attempt.status is None or attempt.status >= 400
        if target is None or attempt.api == _FREE:
            return 0
        if not attempt.usage.total and not attempt.usage.server_tools:
            return 0 if failed and attempt.ending != "client_gone" else None
        seller, host = _seller(target.key)
        with self._turn:
            price = self._loaded().price(
                provider=target.key.provider,
                upstream=host,
                model=target.model,
                usages=(attempt.usage,),
                when_ns=int(attempt.at.timestamp() * 1e9),
                seller=seller,
            )
        return None if price.usd is None else _billionths(price.usd)


def _billionths(usd: float | Decimal) -> int:
    return round(min(max(usd * NANO, 0), MOST_COST))


def _seller(key: ProviderKey) -> tuple[str, str]:
    """(the list's name, host). At an address of the key's own the host tells who sells, Amazon's aside."""
    seller, host = _SELLERS.get(key.provider, ("", ""))
    if key.base_url and key.provider is not Provider.BEDROCK:
        return "", urlsplit(key.base_url).netloc.rpartition("@")[2]
    return seller, host
