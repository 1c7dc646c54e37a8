"""The price data on this machine: what is used, fetched from its project or imported from a file.

The only code that fetches prices, and only when told to. Leaves out what calls cost (`records.pricing`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_proxy import paths, settings
from llm_proxy.errors import PricesUnusable
from llm_proxy.records import price_data
from llm_proxy.records.pricing import CONFIGURED, PriceBook, listed
from llm_proxy.service import receipt

# The largest list of today has 3 MB.
_LARGEST = 64 << 20


def book(configured: settings.Settings) -> PriceBook:
    """The prices that hold with these settings."""
    return PriceBook({model: dict(prices) for model, prices in configured.prices}, paths.price_file())


@dataclass(frozen=True, slots=True)
class Used:
    """Which list is used. `origin` is where it was fetched or imported from, "" for the installed package's own."""

    source: str
    version: str
    origin: str
    date: str
    sha256: str
    providers: tuple[tuple[str, int], ...]  # id, number of models
    trouble: str


def used() -> Used:
    data = price_data.stored(paths.price_file())
    kept = _kept() if not data.trouble else {}
    counts = tuple((provider.id, len(provider.models)) for provider in data.providers)
    origin, day, digest = (str(kept.get(name, "")) for name in ("origin", "date", "sha256"))
    return Used(data.source, data.version, origin, day, digest, counts, data.trouble)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a model costs now at one seller (`config`: an override). `prices`: (class, [more tokens than], USD)."""

    seller: str
    model: str
    prices: tuple[tuple[str, int, Decimal], ...]
    tiers: tuple[str, ...]  # service tiers with prices of their own


def offers(wanted: str, configured: settings.Settings) -> Iterator[Offer]:
    """Models whose name has `wanted` in it, or fits it as a pattern; overrides first."""
    for name, prices in configured.prices:
        if _fits(name, wanted) or fnmatchcase(wanted.lower(), name.lower()):
            yield Offer(CONFIGURED, name, tuple((kind, 0, Decimal(value)) for kind, value in prices), ())
    now = datetime.now(UTC)
    for provider in price_data.stored(paths.price_file()).providers:
        for model in provider.models:
            if _fits(model.id, wanted) or model.is_match(wanted):
                when = (variant.when for variant in model.price_variants or ())
                tiers = dict.fromkeys(" ".join(one.values()) for one in when if "default" not in one.values())
                yield Offer(provider.id, model.id, tuple(listed(model, now)), tuple(tiers))


def _fits(model: str, wanted: str) -> bool:
    name, pattern = model.lower(), wanted.lower()
    return fnmatchcase(name, pattern) if set("*?[") & set(pattern) else pattern in name


def update(url: str = "") -> Used:
    """Fetch the list from its project, or from a mirror. Raises PricesUnusable; what was used before is still used."""
    import httpx2
    from genai_prices import UpdatePrices

    where = url or UpdatePrices().url
    content = bytearray()
    try:
        with httpx2.stream("GET", where, timeout=UpdatePrices().request_timeout) as answer:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _LARGEST:
                    raise PricesUnusable(f"{where} sends more than {_LARGEST >> 20} MiB, which is no list of prices")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise PricesUnusable(f"{where} cannot be fetched: {error}") from error
    return _keep(bytes(content), where)[0]


def import_file(path: str) -> tuple[Used, int]:
    """Take a file of prices, and the number of models in it that are left out. Raises PricesUnusable."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise PricesUnusable(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise PricesUnusable(f"{path} has more than {_LARGEST >> 20} MiB, which is no list of prices")
    return _keep(content, paths.expand(path))


def _keep(content: bytes, origin: str) -> tuple[Used, int]:
    source, providers, left_out = _read(content, origin)
    digest = sha256(content).hexdigest()
    today = date.today().isoformat()
    kept = {
        "source": source,
        "version": f"{today} sha256:{digest[:8]}",
        "origin": origin,
        "date": today,
        "sha256": digest,
        "providers": providers,
    }
    file = Path(paths.price_file())
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        receipt.replace(file, json.dumps(kept).encode())
    except OSError as error:
        raise PricesUnusable(f"{file} cannot be written: {error.strerror}") from error
    return used(), left_out


def _read(content: bytes, origin: str) -> tuple[str, Any, int]:
    """(source, providers in the package's format, models left out)."""
    source, left_out = price_data.LIBRARY, 0
    try:
        providers = json.loads(content)
        if isinstance(providers, Mapping):
            source = "litellm"
            providers, left_out = price_data.from_litellm(providers)
        price_data.parsed(providers)
    except (ValueError, RecursionError, price_data.UnusablePrices) as error:
        raise PricesUnusable(f"{origin} is no list of prices: {error}") from error
    return source, providers, left_out


def _kept() -> dict[str, Any]:
    try:
        kept = json.loads(Path(paths.price_file()).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
