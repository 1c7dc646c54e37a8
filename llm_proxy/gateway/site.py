"""The gateway's parts, made and joined: what every route has at hand. Leaves out serving (`app`)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from llm_proxy.gateway import model_lists
from llm_proxy.gateway.breaker import Breakers
from llm_proxy.gateway.catalog import Catalogs
from llm_proxy.gateway.costing import Prices
from llm_proxy.gateway.identity import Identifier
from llm_proxy.gateway.limiting import limiter
from llm_proxy.gateway.limiting.limiter import Limiter
from llm_proxy.gateway.machine import Machine
from llm_proxy.gateway.options import Options, Secrets, encryption_keys
from llm_proxy.gateway.sealing import Sealer, guard
from llm_proxy.gateway.sending.sender import Sender
from llm_proxy.gateway.store.database import Store, StoreUnusable
from llm_proxy.gateway.usage import UsageLog

log = logging.getLogger("llm_proxy.gateway")

_AGAIN: Final = 5.0  # seconds until background work that failed is begun again


@dataclass(slots=True)
class Site:
    """One for a process. `secrets` are for the parts that need them, and for nobody to show."""

    options: Options
    secrets: Secrets
    store: Store
    identifier: Identifier
    sealer: Sealer
    catalogs: Catalogs
    breakers: Breakers
    sender: Sender
    limiter: Limiter
    usage: UsageLog
    refused: Counter[str] = field(default_factory=Counter)  # requests that we refused ourselves, by the code
    draining: asyncio.Event = field(default_factory=asyncio.Event)  # we are about to stop: nobody new should come


async def site(options: Options, secrets: Secrets) -> Site:
    """Opens the store and makes the parts. Raises StoreAway, StoreUnusable, WrongKey."""
    store = Store(secrets.database_url, options.state)
    await store.open()
    try:
        sealer = Sealer(secrets, lambda: encryption_keys(options.secrets_file))
        await guard(store, sealer)
        prices = Prices(options)
        made = Site(
            options=options,
            secrets=secrets,
            store=store,
            identifier=Identifier(store, secrets, options),
            sealer=sealer,
            catalogs=Catalogs(store),
            breakers=Breakers(),
            sender=Sender(options.upstream, sealer, options),
            limiter=_limiter(store, options, secrets, prices),
            usage=UsageLog(store, options.state, prices),
        )
    except BaseException:
        await store.close()
        raise
    store.on_change(made.identifier.forget)
    store.on_change(made.catalogs.forget)
    store.on_change(made.limiter.forget)
    return made


def _limiter(store: Store, options: Options, secrets: Secrets, prices: Prices) -> Limiter:
    """Raises StoreUnusable."""
    try:
        return limiter.make(store, options, secrets, prices)
    except ValueError as error:  # about Redis' URL
        raise StoreUnusable(str(error)) from None


@asynccontextmanager
async def live(site: Site) -> AsyncIterator[None]:
    """Its background work goes on inside; at the end what was used is written and the store let go of."""
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(site.usage.begin)
    await site.limiter.open()
    chores = [
        loop.create_task(_forever(name, chore))
        for name, chore in (
            ("the store's watch", site.store.watch),
            ("the usage log", site.usage.run),
            ("the lists of models", lambda: model_lists.run(site)),
            ("this machine's part", lambda: Machine(site.store, site.options).run()),
        )
    ]
    async with AsyncExitStack() as ending:  # from the last to the first, whichever of them fails
        for end in (site.store.close, site.identifier.close, site.limiter.close, site.usage.close):
            ending.push_async_callback(end)
        ending.callback(site.sender.close)
        try:
            yield
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)


async def _forever(name: str, chore: Callable[[], Awaitable[None]]) -> None:
    """Goes on whatever happens: what is not watched, or not written, nobody would miss until much later."""
    while True:
        try:
            await chore()
        except Exception:
            log.exception("%s has failed, and is begun again", name)
        await asyncio.sleep(_AGAIN)
