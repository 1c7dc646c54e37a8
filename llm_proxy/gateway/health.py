"""Whether this process lives, and whether callers should be sent to it. Leaves out the proxy's own `/health`.

Load balancers ask often and everybody may, so nothing here asks the store: what its watch has last seen is told.
`/health/gateway` does ask it.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec
from sqlalchemy import text

from llm_proxy.gateway.identity import REMEMBERED
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.site import Site

AWAY: Final = 3.0  # seconds without the store: it is looked at more than twice a second


class Health(msgspec.Struct, frozen=True):
    status: str
    version: str


class Readiness(msgspec.Struct, frozen=True):
    """`status` is ready, or degraded: then `why` tells what is missing."""

    status: str
    version: str
    why: list[str]


async def _live(ask: Ask) -> Health:
    return Health("live", ask.site.options.version)


async def _ready(ask: Ask) -> Readiness:
    """Raises Refusal 503."""
    away = time.monotonic() - ask.site.store.seen_at
    if reasons := against(ask.site, away):
        raise Refusal(503, "not_ready", "; ".join(reasons), headers={"Retry-After": "1"})
    version = ask.site.options.version
    if away > AWAY:
        return Readiness("degraded", version, [f"{_gone(away)}: who called in the last minute is served"])
    return Readiness("ready", version, [])


def against(site: Site, away: float) -> list[str]:
    """Why nobody should come here."""
    found = (
        (site.draining.is_set(), "the gateway is stopping"),
        (not site.store.fits, "the store has been changed for newer programs: this one must be upgraded"),
        (away > REMEMBERED, _gone(away)),  # by then no caller is known any more
    )
    return [words for holds, words in found if holds]


def _gone(away: float) -> str:
    return f"the store has not answered for {away:.0f} s"


async def _health(ask: Ask) -> Health:
    """Raises StoreAway, which is told to everybody without where the store is."""
    async with ask.site.store.reading() as connection:
        await connection.execute(text("SELECT 1"))
    return Health("ok", ask.site.options.version)


ROUTES = (
    Route(
        "GET",
        "/health/live",
        Access.PUBLIC,
        "Whether this process serves at all.",
        handler=_live,
        gives=Health,
    ),
    Route(
        "GET",
        "/health/ready",
        Access.PUBLIC,
        "Whether requests should be sent here: 503 with the reasons where they should not.",
        handler=_ready,
        gives=Readiness,
    ),
    Route(
        "GET",
        "/health/gateway",
        Access.PUBLIC,
        "Whether calls can be served: 503 while the store is away.",
        handler=_health,
        gives=Health,
    ),
)
