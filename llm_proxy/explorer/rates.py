"""Unit prices of a call's model by class of tokens, for what its own recorded price does not tell.

A recorded price names only the classes that were used: a call that read nothing from the cache does not say what that
would have cost. Then the list says, as it held at that moment; prices from the configuration are not known here.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

from llm_proxy.dialects.digest import Usage
from llm_proxy.index.queries import CallRow
from llm_proxy.records.pricing import PriceBook

_DAY = 86_400 * 10**9
_ONE_OF_EACH = Usage(input=1, cache_read=1, cache_write_5m=1, cache_write_1h=1, output=1)
_BOOK = PriceBook()


def listed(row: CallRow) -> dict[str, Decimal]:
    """US dollars per million tokens by class; empty where the list does not know the model."""
    prompt = row.usage.prompt if row.usage is not None else 0
    seller = "aws" if row.provider == "bedrock" else ""
    return dict(
        _listed(row.provider, row.upstream, row.model, row.started_ns // _DAY, row.service_tier, prompt, seller)
    )


@lru_cache(512)
def _listed(
    provider: str, upstream: str, model: str, day: int, tier: str, prompt: int, seller: str
) -> tuple[tuple[str, Decimal], ...]:
    usage = Usage(**{name: getattr(_ONE_OF_EACH, name) for name in ("cache_read", "cache_write_5m", "cache_write_1h")})
    usage += Usage(input=max(1, prompt - usage.prompt), output=1)
    price = _BOOK.price(
        provider=provider,
        upstream=upstream,
        model=model,
        usages=(usage,),
        when_ns=day * _DAY,
        service_tier=tier,
        seller=seller,
    )
    return price.units
