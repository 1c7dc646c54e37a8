"""`llm-proxy prices show [MODEL] | update [--url URL] | import FILE`, and `llm-proxy reprice [filters] [--dry-run]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal

from llm_proxy import settings
from llm_proxy.cli import filters, show, usage
from llm_proxy.errors import UsageError
from llm_proxy.service import prices as service

# In a table; the rest stands under "OTHER".
_COLUMNS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
_PER_USE = ("requests", "web_search", "file_search", "code_execution")
_MOST_SHOWN = 100
_REASONS_SHOWN = 10


def prices(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, PricesUnusable."""
    actions = {"show": _show, "update": _update, "import": _import}
    if not arguments or arguments[0] not in actions:
        got = f", got {arguments[0]!r}" if arguments else ""
        raise UsageError(f"prices takes one of show [MODEL], update, import FILE{got}")
    return actions[arguments[0]](arguments[1:])


def _show(arguments: Sequence[str]) -> int:
    given = usage.parse("prices show", arguments)
    configured = settings.load({}, os.environ, given.config).settings
    if not given.model:
        _say_used(service.used(), configured, as_json=given.json)
        return 0
    offers = list(service.offers(given.model, configured))
    if given.json:
        show.print_json([_object(offer) for offer in offers])
    elif not offers:
        print(
            f"no price is known for a model like {show.line(given.model)!r}; [prices] in the configuration can give one"
        )
    else:
        titles = [show.Column("SELLER"), show.Column("MODEL"), show.Column("PROMPT", right=True)]
        spare = {"cache_write_5m": 2, "cache_write_1h": 3}
        titles += [show.Column(name.upper().replace("_", " "), True, spare=spare.get(name, 0)) for name in _COLUMNS]
        rows = [row for offer in offers[:_MOST_SHOWN] for row in _rows(offer)]
        show.table([*titles, show.Column("OTHER", grows=True)], rows)
        if len(offers) > _MOST_SHOWN:
            print(f"and {len(offers) - _MOST_SHOWN} more; --json shows all")
    return 0 if offers else 1


def _say_used(used: service.Used, configured: settings.Settings, *, as_json: bool) -> None:
    overrides = [{"model": model, "prices": dict(prices)} for model, prices in configured.prices]
    if as_json:
        show.print_json(asdict(used) | {"providers": dict(used.providers), "overrides": overrides})
        return
    models = sum(count for _, count in used.providers)
    print(f"Prices     {used.source} {used.version}: {models} models of {len(used.providers)} sellers")
    if used.trouble:
        print(f"           {show.line(used.trouble)}")
    print(f"From       {show.line(used.origin) or 'the installed package; llm-proxy prices update fetches newer ones'}")
    if used.sha256:
        print(f"Date       {used.date}, sha256 {used.sha256}")
    print(f"Overrides  {len(overrides) or 'none'}")
    for model, prices in configured.prices:
        print(f"           {show.line(model)}: {', '.join(' '.join(price) for price in prices)}")


def _object(offer: service.Offer) -> dict[str, object]:
    told = [{"class": name, "above_prompt": start, "usd": show.decimal(price)} for name, start, price in offer.prices]
    return {"seller": offer.seller, "model": offer.model, "prices": told, "service_tiers": offer.tiers}


def _rows(offer: service.Offer) -> list[tuple[str, ...]]:
    """One for the base prices and one for each longer prompt; US dollars per million tokens."""
    rows = []
    for start in sorted({start for _, start, _ in offer.prices}):
        here = {name: _shown(price) for name, above, price in offer.prices if above == start}
        other = [
            f"{name} {price}{'/use' if name in _PER_USE else ''}"
            for name, price in here.items()
            if name not in _COLUMNS
        ]
        if not start and offer.tiers:
            other.append(f"tiers: {' '.join(offer.tiers)}")
        cells = (here.get(name, "") for name in _COLUMNS)
        names = ("", "", f">{start}") if start else (offer.seller, offer.model, "")
        rows.append((*names, *cells, ", ".join(other)))
    return rows


def _shown(price: Decimal) -> str:
    return f"${price.normalize():f}"


def _update(arguments: Sequence[str]) -> int:
    given = usage.parse("prices update", arguments)
    return _tell_taken(service.update(given.url), 0, as_json=given.json)


def _import(arguments: Sequence[str]) -> int:
    given = usage.parse("prices import", arguments)
    return _tell_taken(*service.import_file(given.file), as_json=given.json)


def _tell_taken(used: service.Used, left_out: int, *, as_json: bool) -> int:
    if as_json:
        show.print_json(asdict(used) | {"providers": dict(used.providers), "left_out": left_out})
        return 0
    models = sum(count for _, count in used.providers)
    print(f"{models} models of {len(used.providers)} sellers, {used.source} {used.version}; used from now on")
    if left_out:
        print(f"{left_out} models are left out: sold by nobody that is known here, or not by the token")
    print("llm-proxy reprice applies them to what is recorded")
    return 0


def reprice(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble, StateUnusable."""
    from llm_proxy.service import reprice as service

    given = usage.parse("reprice", arguments)
    configured = settings.load({}, os.environ, given.config).settings
    done = service.reprice(filters.filter_from(given), filters.places_from(given), configured, dry_run=given.dry_run)
    if given.json:
        show.print_json(asdict(done) | {"before": str(done.before), "after": str(done.after)})
        return 0
    verb = "would get" if given.dry_run else "got"
    print(f"{done.changed - done.gone} of {done.looked_at} calls {verb} a new price")
    if done.gone:
        print(f"{done.gone} more could not: their log files have gone")
    print(f"before {show.dollars(done.before)}, now {show.dollars(done.after)} (subscriptions at API prices included)")
    if done.unpriced:
        print(f"{done.unpriced} have no known price:")
        for why, count in sorted(done.reasons.items(), key=lambda item: -item[1])[:_REASONS_SHOWN]:
            print(f"  {count:>6}  {show.line(why, 160)}")
    return 0
