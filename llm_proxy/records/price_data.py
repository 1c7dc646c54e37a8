"""The list prices: those that came with the installed `genai-prices`, or a file of them that was fetched or imported.

Imported by nobody at start-up: the package takes some 100 ms and 50 MB. It is asked for its data only, never to fetch
anything. Leaves out what a call costs (`pricing`), and fetching and storing files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

LIBRARY = "genai-prices"
# A model's name is the client's own text: nothing longer is looked for.
LONGEST_NAME = 256


class UnusablePrices(Exception):
    """The text is no price data that we know. What was used before is still used."""


class Found(NamedTuple):
    """A model and whether it is its provider's own: a cloud's prices for service tiers are not its maker's."""

    model: ModelInfo
    own: bool


class PriceData:
    """A set of prices, its name and its version; `trouble` says why the stored file is not what is used."""

    def __init__(self, providers: Sequence[Provider], source: str, version: str, trouble: str = "") -> None:
        self.providers = providers
        self.source = source
        self.version = version
        self.trouble = trouble
        # The same few models come again and again, but any name may come from outside.
        self._find = lru_cache(maxsize=1024)(self._look_for)
        self.provider_of = lru_cache(maxsize=256)(self._provider_of)

    def find(self, provider: str, model: str) -> Found | None:
        """A model as that provider prices it."""
        return self._find(provider, model) if len(model) <= LONGEST_NAME else None

    def _look_for(self, provider: str, model: str) -> Found | None:
        seller = next((one for one in self.providers if one.id == provider), None)
        found = seller.find_model(model, all_providers=list(self.providers)) if seller else None
        return Found(found, any(found is one for one in seller.models)) if seller and found else None

    def _provider_of(self, host: str) -> str:
        """The id of the provider whose public API that host is; "" for every other host."""
        for pattern, name in _HOSTS:
            if pattern.fullmatch(host):
                return name
        url = f"https://{host}"
        # The patterns are meant for the beginning of an address; `api.openai.com.example.net` begins like one, too.
        matching = (one.id for one in self.providers if re.fullmatch(f"(?:{one.api_pattern})", url))
        return next(matching, "")


# Hosts that the package's own patterns do not know.
_HOSTS = tuple(
    (re.compile(pattern, re.ASCII), name)
    for pattern, name in (
        (r"chatgpt\.com", "openai"),
        (
            r"(?:[\w-]+\.)?bedrock-(?:runtime|mantle)(?:-fips)?\.[a-z0-9-]+\.(?:vpce\.)?(?:amazonaws\.com|api\.aws)",
            "aws",
        ),
        (r"api\.moonshot\.(?:ai|cn)", "moonshotai"),
        (r"api\.together\.ai", "together"),
    )
)


def bundled() -> PriceData:
    """The data of the installed package."""
    from importlib.metadata import version

    from genai_prices.data import providers

    return PriceData(providers, LIBRARY, version("genai-prices"))


def stored(path: str) -> PriceData:
    """The file that `prices update` or `prices import` left; without one, or with a broken one, the package's data."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            kept = json.loads(file.read())
        return PriceData(parsed(kept["providers"]), str(kept["source"]), str(kept["version"]))
    except FileNotFoundError:
        return bundled()
    except (OSError, ValueError, TypeError, KeyError, RecursionError, UnusablePrices) as error:
        base = bundled()
        trouble = f"{os.path.basename(path)} cannot be used ({error}); do `llm-proxy prices update` again"  # noqa: PTH119
        return PriceData(base.providers, base.source, base.version, trouble)


def parsed(raw: object) -> list[Provider]:
    """Providers from the package's own JSON format. Raises UnusablePrices."""
    from genai_prices import types

    try:
        # Of the package's functions this one is not public, but it is the only one that reads its published files.
        providers = types._providers_from_raw(raw)
    except Exception as error:  # pydantic's, and whatever else a stranger's file may bring about
        raise UnusablePrices(" ".join(str(error).split())[:200]) from error
    if not any(provider.models for provider in providers):
        raise UnusablePrices("it names no model")
    return providers


# --- LiteLLM's file

# Its names of providers, and ours; one that is not here is left out.
_LITELLM_PROVIDERS = {
    "anthropic": "anthropic",
    "openai": "openai",
    "text-completion-openai": "openai",
    "azure": "azure",
    "azure_ai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "gemini": "google",
    "groq": "groq",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "openrouter": "openrouter",
    "xai": "x-ai",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "perplexity": "perplexity",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "moonshot": "moonshotai",
    "cerebras": "cerebras",
}
# Its price per token, and the package's per million; "" is the list price, the others the price of a service tier.
_LITELLM_PRICES = (
    ("input_cost_per_token", "input_mtok"),
    ("output_cost_per_token", "output_mtok"),
    ("cache_read_input_token_cost", "cache_read_mtok"),
    ("cache_creation_input_token_cost", "cache_write_mtok"),
    ("cache_creation_input_token_cost_above_1hr", "cache_write_1h_mtok"),
    ("input_cost_per_audio_token", "input_audio_mtok"),
    ("output_cost_per_audio_token", "output_audio_mtok"),
    ("output_cost_per_reasoning_token", "output_reasoning_mtok"),
)
_LITELLM_TIERS = {
    "_batches": {"processing": "batch"},
    "_flex": {"service_tier": "flex"},
    "_priority": {"service_tier": "priority"},
}
_ABOVE = re.compile(r"_above_(\d{1,4})k_tokens")


def from_litellm(raw: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """LiteLLM's `model_prices_and_context_window.json` in the package's format, and how many models are left out.

    Of what the file knows, tokens, tiers by prompt length and service tiers are taken. Raises UnusablePrices.
    """
    models: dict[str, dict[str, dict[str, Any]]] = {}
    left_out = 0
    for name, facts in raw.items():
        provider = _LITELLM_PROVIDERS.get(str(facts.get("litellm_provider"))) if isinstance(facts, Mapping) else None
        prices = _litellm_prices(facts, "") if provider else {}
        if not provider or "input_mtok" not in prices:
            left_out += name != "sample_spec"
            continue
        own = name.removeprefix(f"{facts['litellm_provider']}/")
        variants = [{"when": when, "prices": _litellm_prices(facts, tier)} for tier, when in _LITELLM_TIERS.items()]
        models.setdefault(provider, {})[own] = {
            "id": own,
            "match": {"equals": own},
            "prices": prices,
            "price_variants": [variant for variant in variants if variant["prices"]],
        }
    if not models:
        raise UnusablePrices("it names no model of a provider that is known here")
    patterns = {provider.id: provider.api_pattern for provider in bundled().providers}
    providers = [
        {"id": name, "name": name, "api_pattern": patterns[name], "models": list(known.values())}
        for name, known in models.items()
    ]
    return providers, left_out


def _litellm_prices(facts: Mapping[str, Any], tier: str) -> dict[str, Any]:
    prices: dict[str, Any] = {}
    for theirs, ours in _LITELLM_PRICES:
        base = _per_million(facts.get(theirs + tier))
        if base is None:
            continue
        tiers = [
            {"start": int(above[1]) * 1000, "price": price}
            for key, value in facts.items()
            if key.startswith(theirs)
            and (above := _ABOVE.fullmatch(key[len(theirs) :].removesuffix(tier) if tier else key[len(theirs) :]))
            and key.endswith(tier)
            and (price := _per_million(value)) is not None
        ]
        prices[ours] = {"base": base, "tiers": tiers} if tiers else base
    return prices


def _per_million(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        price = Decimal(str(value)) * 1_000_000
    except InvalidOperation:
        return None
    return f"{price.normalize():f}" if price.is_finite() and price >= 0 else None
