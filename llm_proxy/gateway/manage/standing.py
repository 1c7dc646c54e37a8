"""How a gateway stands, as metrics: whether it is ready, its store, what waits, whom it refused and why.

Leaves out what limits, circuits and the usage log tell of themselves. What is asked of the store is left out while that
is away: a look at how things are must not hang where they are bad.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, text

from llm_proxy.gateway.health import AWAY, against
from llm_proxy.gateway.machine import BEAT
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.gateway.store.schema import deletion_reports, deletions, machines, now
from llm_proxy.gateway.usage import SPOOL
from llm_proxy.wire.exposition import Sample, family

if TYPE_CHECKING:
    from llm_proxy.gateway.site import Site

_LIVES: Final = timedelta(seconds=3 * BEAT)
_SIZES: Final = {
    "postgresql": "SELECT pg_database_size(current_database())",
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
}
_DONE: Final = (
    select(deletion_reports.c.deletion_id)
    .where(deletion_reports.c.deletion_id == deletions.c.id, deletion_reports.c.machine == machines.c.id)
    .exists()
)


async def metrics(site: Site) -> list[str]:
    """Lines in Prometheus' text format."""
    away = time.monotonic() - site.store.seen_at
    lines = [*_of_process(site, away)]
    if away < AWAY:
        try:
            lines += [*await _of_store(site)]
        except StoreAway:
            pass
    return lines


def _of_process(site: Site, away: float) -> Iterator[str]:
    for name, words, value in (
        ("ready", "1 while requests should be sent here, as /health/ready says.", int(not against(site, away))),
        ("store_up", "1 while the store answers.", int(away < AWAY)),
        ("store_age_seconds", "Time since the store last answered; it is asked twice a second.", round(away, 3)),
        ("usage_spool_bytes", "Usage that waits in a file for the store.", _size(Path(site.options.state) / SPOOL)),
    ):
        yield from family(f"llm_proxy_gateway_{name}", "gauge", words, [Sample({}, value)])
    words = "Calls for which a provider key did not open with any of the encryption keys."
    yield from family("llm_proxy_gateway_unreadable_keys_total", "counter", words, [Sample({}, site.sealer.failures)])
    told = [Sample({"code": code}, count) for code, count in sorted(site.refused.items())]
    words = "Requests that the gateway refused itself, by the code that callers are told."
    yield from family("llm_proxy_gateway_refused_total", "counter", words, told)


async def _of_store(site: Site) -> Iterator[str]:
    """Raises StoreAway."""
    living = machines.c.seen_at > now() - _LIVES
    waiting = select(func.count(deletions.c.id.distinct())).join(machines, living).where(~_DONE)
    async with site.store.reading() as connection:
        size = await connection.scalar(text(_SIZES[site.store.dialect]))
        deletions_waiting = await connection.scalar(waiting)
    return _lines(int(size or 0), int(deletions_waiting or 0))


def _lines(size: int, waiting: int) -> Iterator[str]:
    yield from family("llm_proxy_gateway_store_bytes", "gauge", "Size of the database.", [Sample({}, size)])
    words = "Deletions of conversations that a machine which serves has yet to do."
    yield from family("llm_proxy_gateway_deletions_waiting", "gauge", words, [Sample({}, waiting)])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
