"""What a call costs: its tokens by class, times the price per class that held for its provider, model and moment.

Dollars are exact decimals. A call whose price is not known has none: never 0, and it says why. Leaves out where prices
come from (`price_data`) and where the result is kept. Never in the proxy's process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llm_proxy.dialects.digest import Digest, Usage
from llm_proxy.dialects.reading import mapping, text
from llm_proxy.records import price_data
from llm_proxy.records.understood import fields

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, TieredPrices

Basis = Literal["list", "subscription", "override", "unpriced"]
Entry = dict[str, Any]

CONFIGURED = "config"
_MILLION = 1_000_000
_MINUTE = 60 * 10**9  # ns; no price changes within one
_MOST_RECENT = 256
# Beyond this the log's numbers, which are doubles, would not tell the same decimals again.
_SMALLEST = Decimal("1e-12")
# No call costs more. Token counts are what a provider, or whoever says to be one, has written.
_HIGHEST = Decimal(1_000_000)
# Understood, and free of charge.
_FREE = frozenset({"anthropic.count_tokens", "bedrock.count_tokens"})
# What a call went by, as its request entry says, and who sells what is reached so, at whatever host.
_SELLERS = {"bedrock": "aws"}
# What stands in a header where a Claude plan pays.
_PLANS = {"authorization": "sk-ant-oat", "anthropic-beta": "oauth-2025-04-20"}


@dataclass(frozen=True, slots=True)
class Price:
    """What a call costs, in USD; `usd` is None where that is not known, and `why` then says what is missing.

    `basis`: `list` and `override` are spend; `subscription` is what the same would have cost by the list. `units` are
    (class, USD per million tokens), or for `requests` and tools USD per use: of every class that was used, twice where
    answers of one call were charged differently. `why` also names what the sum leaves out.
    """

    usd: Decimal | None
    basis: Basis
    units: tuple[tuple[str, Decimal], ...] = ()
    source: str = ""
    version: str = ""
    why: str = ""


class _Rate(NamedTuple):
    """The price of a class and, for longer prompts, (more tokens than this, price), longest first."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def at(self, prompt: int) -> Decimal:
        """One price for the whole request, chosen by all that went in."""
        return next((price for start, price in self.tiers if prompt > start), self.base)


class _Rates(NamedTuple):
    """Prices by class, and by name of what is charged by use."""

    tokens: Mapping[str, _Rate]
    uses: Mapping[str, Decimal]
    why: str = ""


# Each class of `Usage` that is charged, and whose price it takes where it has none of its own.
_CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("input", ()),
    ("cache_read", ("input",)),
    ("cache_write_5m", ("input",)),
    ("cache_write_1h", ("cache_write_5m", "input")),
    ("output", ()),
)
# Classes within those: charged apart only where they have a price of their own.
_WITHIN = {
    "input_audio": "input",
    "input_image": "input",
    "cache_read_audio": "cache_read",
    "reasoning": "output",
    "output_audio": "output",
    "output_image": "output",
}
# The package's names, the first that has a price.
_LISTED = {
    "input": ("input_mtok",),
    "input_audio": ("input_audio_mtok",),
    "input_image": ("input_image_mtok",),
    "cache_read": ("cache_read_mtok",),
    "cache_read_audio": ("cache_audio_read_mtok",),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok",),
    "output": ("output_mtok",),
    "reasoning": ("output_reasoning_mtok",),
    "output_audio": ("output_audio_mtok",),
    "output_image": ("output_image_mtok",),
}
_LISTED_USES = {
    "requests": "requests_kcount",
    "web_search": "web_searches_kcount",
    "file_search": "storage_searches_kcount",
    "code_execution": "code_executions_kcount",
}
# Tools as the APIs name them, by the beginning of the name; a tool that costs nothing beyond its tokens is "".
_TOOLS = (
    ("web_search", "web_search"),
    ("google_search", "web_search"),
    ("grounding", "web_search"),
    ("file_search", "file_search"),
    ("code_execution", "code_execution"),
    ("code_interpreter", "code_execution"),
    ("web_fetch", ""),
)
# Names in an override, beside "requests" and the tools.
OVERRIDABLE = (*_LISTED, *_LISTED_USES)

_STANDARD = frozenset({"", "default", "standard", "standard_only", "auto", "on_demand", "unspecified"})
# How the price data calls a tier; every other one is {"service_tier": tier}.
_CONTEXTS = {"batch": ({"processing": "batch"},), "fast": ({"speed": "fast"}, {"service_tier": "fast"})}


class PriceBook:
    """All prices that hold here: overrides first, then the list. `data` is the stored price file, if there may be one.

    Nothing is loaded before the first price is asked for; the file is looked at again when it has changed.
    """

    def __init__(
        self, overrides: Mapping[str, Mapping[str, object]] | None = None, data: str = "", *, every: float = 0.0
    ) -> None:
        """`overrides`: by model or pattern of models (`*`, `?`), USD per million tokens of a class, or per use.

        `every`: seconds between two looks at the file.
        """
        self._overrides = {model.lower(): _override(prices) for model, prices in (overrides or {}).items()}
        self._path = data
        self._every = every
        self._look_at = 0.0
        self._stamp: tuple[int, int] | None = None
        self._data: price_data.PriceData | None = None
        self._recent: dict[tuple[str, str, int, str], _Rates | None] = {}

    @property
    def data(self) -> price_data.PriceData:
        """The list in use."""
        now = time.monotonic()
        if self._data is not None and now < self._look_at:
            return self._data
        self._look_at = now + self._every
        stamp = _stamp(self._path)
        if self._data is None or stamp != self._stamp:
            self._data, self._stamp = price_data.stored(self._path) if stamp else price_data.bundled(), stamp
            self._recent.clear()
        return self._data

    def price(
        self,
        *,
        provider: str,
        upstream: str,
        model: str,
        usages: Sequence[Usage],
        when_ns: int,
        service_tier: str = "",
        subscription: bool = False,
        seller: str = "",
    ) -> Price:
        """The price of a call whose answers used `usages`, each of which is a request of its own to its provider.

        `model` is what is billed: for Bedrock the id in the request, elsewhere as the answer names it. `seller` is the
        list's name of who sells it, where that is known; else the upstream tells.
        """
        mine = self._override_for(model)
        if mine is not None:
            basis: Basis = "subscription" if subscription else "override"
            return _sum(mine, usages, Price(None, basis, source=CONFIGURED))
        host = upstream.lower().removesuffix(":443")
        data = self.data
        seller = seller or data.provider_of(host)
        if not seller:
            return _unpriced(data, f"{provider or 'a model'} at {upstream}, which is not a provider with list prices")
        rates = self._rates(data, seller, model, when_ns // _MINUTE, service_tier.lower())
        if rates is None:
            return _unpriced(data, f"no list price of {seller} for {model[: price_data.LONGEST_NAME]!r}")
        empty = Price(None, "subscription" if subscription else "list", source=data.source, version=data.version)
        return _sum(rates, usages, empty, data.trouble)

    def _rates(self, data: price_data.PriceData, seller: str, model: str, minute: int, tier: str) -> _Rates | None:
        """What the list says of a model in that minute since 1970; None where it is not there."""
        wanted = seller, model, minute, tier
        if wanted in self._recent:
            return self._recent[wanted]
        found = data.find(seller, model.rpartition("/")[2] if model.startswith("arn:") else model)
        rates = _listed(found, datetime.fromtimestamp(minute * 60, UTC), tier) if found is not None else None
        if len(self._recent) >= _MOST_RECENT:
            self._recent.clear()
        self._recent[wanted] = rates
        return rates

    def of(self, request: Entry, provider: str, digest: Digest) -> Price | None:
        """The price of an exchange from its request entry and what it means; None where nothing was answered.

        An answer that names another model or tier than the rest (a batch's, an advisor's) is priced by its own. Raises
        ValueError where the entry, which may be anybody's, does not say whom it called or when.
        """
        if digest.asked.api in _FREE or not digest.counted:
            return None
        usages: dict[tuple[str, str], list[Usage]] = {}
        for answer in digest.answers:
            if answer.usage is not None:
                model = digest.asked.model if digest.asked.api.startswith("bedrock") else answer.model or digest.model
                usages.setdefault((model, answer.service_tier or digest.asked.service_tier), []).append(answer.usage)
        silent = sum(answer.usage is None and answer.message is not None for answer in digest.answers)
        if not usages:
            return Price(None, "unpriced", why="the answer does not tell its usage") if silent else None
        host, when_ns = _called(request)
        prices = [
            self.price(
                provider=provider,
                upstream=host,
                model=model,
                usages=used,
                when_ns=when_ns,
                service_tier=tier,
                subscription=is_subscription(request),
                seller=_SELLERS.get(str(request.get("transport")), ""),
            )
            for (model, tier), used in usages.items()
        ]
        return _together(prices, f"{silent} of {len(digest.answers)} answers do not tell their usage" if silent else "")

    def _override_for(self, model: str) -> _Rates | None:
        """The override of that very name, else the one with the longest pattern."""
        name = model.lower()
        if name in self._overrides:
            return self._overrides[name]
        matching = (pattern for pattern in self._overrides if fnmatchcase(name, pattern))
        pattern = max(matching, key=lambda one: (len(one), one), default=None)
        return self._overrides[pattern] if pattern is not None else None


def is_subscription(request: Entry) -> bool:
    """Whether a flat-rate plan pays, as a recorded request entry tells: a ChatGPT login, a Claude plan, Code Assist."""
    if str(request.get("transport")) in _SELLERS:  # whatever the client sends along, AWS bills
        return False
    host = _host(request).partition(":")[0].lower()
    headers = [(name.lower(), value) for name, value in fields(request)]
    return (
        host in ("chatgpt.com", "cloudcode-pa.googleapis.com")
        or any(name == "chatgpt-account-id" for name, _ in headers)
        or any(name in _PLANS and _PLANS[name] in value for name, value in headers)
    )


def _called(request: Entry) -> tuple[str, int]:
    """The upstream, and when, in nanoseconds since 1970. Raises ValueError."""
    host = _host(request)
    try:
        when = datetime.fromisoformat(request["_meta"]["ts"])
        if host:
            return host, int(when.timestamp() * 1e9)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError("the entry does not say when it was") from error
    raise ValueError("the entry names no upstream")


def _host(request: Entry) -> str:
    return text(mapping(request.get("_meta")).get("host"))


def to_entry(price: Price) -> Entry:
    """As it stands in the log. Numbers are JSON numbers; a class with two prices has a list of them."""
    units: dict[str, Any] = {}
    for name, unit in price.units:
        number = _number(unit)
        if name in units:
            units[name] = [*(units[name] if isinstance(units[name], list) else [units[name]]), number]
        else:
            units[name] = number
    facts = {"units": units, "source": price.source, "version": price.version, "why": price.why}
    usd = None if price.usd is None else _number(price.usd)
    return {"usd": usd, "basis": price.basis} | {name: value for name, value in facts.items() if value}


def from_entry(entry: Entry) -> Price:
    """The same price back. Raises KeyError, ValueError or TypeError where it is none."""
    units = [
        (name, _decimal(unit))
        for name, told in entry.get("units", {}).items()
        for unit in (told if isinstance(told, list) else [told])
    ]
    usd = None if entry["usd"] is None else _decimal(entry["usd"])
    texts = (str(entry.get(name, "")) for name in ("source", "version", "why"))
    return Price(usd, entry["basis"], tuple(units), *texts)


# --- the sum


def _sum(rates: _Rates, usages: Sequence[Usage], empty: Price, trouble: str = "") -> Price:
    """`empty`, filled in."""
    total = Decimal(0)
    units: dict[tuple[str, Decimal], None] = {}
    remarks = [trouble, rates.why]
    for usage in usages:
        for name, tokens in _charged(rates, usage):
            rate = _rate(rates, name)
            if rate is None:
                why = _joined((*remarks, f"no price for {name} tokens"))
                return Price(None, "unpriced", source=empty.source, version=empty.version, why=why)
            unit = rate.at(usage.prompt)
            total += unit * tokens / _MILLION
            units[name, unit] = None
        for name, uses in _used(rates, usage):
            unit_of_use = rates.uses.get(name)
            if unit_of_use is None:
                remarks.append(f"{name} is not in the price data")
                continue
            total += unit_of_use * uses
            units[name, unit_of_use] = None
    if total > _HIGHEST:
        return Price(None, "unpriced", source=empty.source, version=empty.version, why="the usage told is absurd")
    usd = total.quantize(_SMALLEST)
    return Price(usd, empty.basis, tuple(units), empty.source, empty.version, _joined(remarks))


def _together(prices: Sequence[Price], remark: str) -> Price:
    """One price; none where one of them is not known, because a part would look like the whole."""
    first = next((price for price in prices if price.usd is None), prices[0])
    usd = None if first.usd is None else sum((price.usd for price in prices if price.usd is not None), Decimal(0))
    units = tuple(dict.fromkeys(unit for price in prices for unit in price.units)) if usd is not None else ()
    why = _joined((*(price.why for price in prices), remark))
    return Price(usd, first.basis, units, first.source, first.version, why)


def _charged(rates: _Rates, usage: Usage) -> Iterable[tuple[str, int]]:
    """(class, tokens) of everything that is charged, without overlap, only what was used."""
    tokens = {name: getattr(usage, name) for name, _ in _CLASSES}
    for name, around in _WITHIN.items():
        if name in rates.tokens:
            tokens[name] = min(getattr(usage, name), tokens[around])
            tokens[around] -= tokens[name]
    return ((name, count) for name, count in tokens.items() if count)


def _rate(rates: _Rates, name: str) -> _Rate | None:
    instead = next((others for known, others in _CLASSES if known == name), ())
    return next((rates.tokens[one] for one in (name, *instead) if one in rates.tokens), None)


def _used(rates: _Rates, usage: Usage) -> Iterable[tuple[str, int]]:
    if "requests" in rates.uses:
        yield "requests", 1
    for tool, uses in usage.server_tools:
        name = next((ours for beginning, ours in _TOOLS if tool.startswith(beginning)), tool)
        if name and uses:
            yield name, uses


# --- prices of a model


def listed(model: ModelInfo, when: datetime) -> Iterator[tuple[str, int, Decimal]]:
    """A model's standard prices: (class, for prompts of more tokens than this, USD per million tokens or per use)."""
    rates = _listed(price_data.Found(model, True), when, "")
    for name, rate in rates.tokens.items():
        yield name, 0, rate.base
        yield from ((name, start, price) for start, price in reversed(rate.tiers))
    yield from ((name, 0, price) for name, price in rates.uses.items())


def _listed(found: price_data.Found, when: datetime, tier: str) -> _Rates:
    context, why = _context(found, when, tier)
    listed = found.model.get_prices(when, context).__dict__
    tokens = {name: rate for name, keys in _LISTED.items() if (rate := _first_rate(listed, keys)) is not None}
    uses = {
        name: _rate_of(listed[key]).base / 1000 for name, key in _LISTED_USES.items() if listed.get(key) is not None
    }
    return _rates(tokens, uses, why)


def _rates(tokens: dict[str, _Rate], uses: dict[str, Decimal], why: str = "") -> _Rates:
    # Sound that is read from the cache is sound, unless something is known about the cache.
    if "input_audio" in tokens and "cache_read" not in tokens:
        tokens.setdefault("cache_read_audio", tokens["input_audio"])
    return _Rates(tokens, uses, why)


def _context(found: price_data.Found, when: datetime, tier: str) -> tuple[dict[str, str] | None, str]:
    """The request context that selects the tier's prices, or why the standard price is taken instead."""
    if tier in _STANDARD:
        return None, ""
    for context in _CONTEXTS.get(tier, ({"service_tier": tier},)):
        if found.own and _has_variant(found.model, when, context):
            return context, ""
    return None, f"no price for service tier {tier[:40]!r}: the standard price is taken"


def _has_variant(model: ModelInfo, when: datetime, context: Mapping[str, str]) -> bool:
    return any(
        variant.when == context and (variant.constraint is None or variant.constraint.active(when))
        for variant in model.price_variants or ()
    )


def _first_rate(listed: Mapping[str, Decimal | TieredPrices | None], keys: Iterable[str]) -> _Rate | None:
    price = next((listed[key] for key in keys if listed.get(key) is not None), None)
    return None if price is None else _rate_of(price)


def _rate_of(price: Decimal | TieredPrices) -> _Rate:
    if isinstance(price, Decimal):
        return _Rate(price)
    return _Rate(price.base, tuple((tier.start, tier.price) for tier in reversed(price.tiers)))


def _override(prices: Mapping[str, object]) -> _Rates:
    """Raises ValueError where a name or a number is wrong: the settings' rule has seen to that before."""
    numbers = {name: _decimal(value) for name, value in prices.items()}
    if unknown := numbers.keys() - set(OVERRIDABLE):
        raise ValueError(f"a price is for one of {', '.join(OVERRIDABLE)}, got {min(unknown)!r}")
    tokens = {name: _Rate(number) for name, number in numbers.items() if name in _LISTED}
    return _rates(tokens, {name: number for name, number in numbers.items() if name in _LISTED_USES})


# --- small things


def _unpriced(data: price_data.PriceData, why: str) -> Price:
    return Price(None, "unpriced", source=data.source, version=data.version, why=_joined((data.trouble, why)))


def _joined(remarks: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(remark for remark in remarks if remark))


def _decimal(value: object) -> Decimal:
    number = Decimal(str(value))
    if not number.is_finite() or number < 0:
        raise ValueError(f"a price is a number of dollars, got {value!r}")
    return number


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
