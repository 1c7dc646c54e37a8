"""What looks after the gateway's store, from the command line: check, migrate, rotate the key, import.

Leaves out how each is done (`gateway`), and saying it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from llm_proxy.errors import StoreTrouble
from llm_proxy.gateway import importing, rotating
from llm_proxy.gateway.sealing import Sealer, WrongKey, guard
from llm_proxy.gateway.store import checking
from llm_proxy.gateway.store.database import Store, StoreAway, StoreUnusable
from llm_proxy.gateway.store.findings import Finding
from llm_proxy.service import gateway_secrets
from llm_proxy.service.gateway import bases_of, database_url

if TYPE_CHECKING:
    from llm_proxy.gateway.options import Secrets
    from llm_proxy.settings import Settings

_T = TypeVar("_T")


def check(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Raises ConfigError, StateUnusable."""
    told = _secrets(settings, environ)
    folder, bases, workers = gateway_secrets.folder(), bases_of(settings), settings.gateway_workers
    return _run(checking.check(told, folder, bases=bases, workers=workers))


def migrate(settings: Settings) -> list[str]:
    """What was done, a line each. Raises StoreTrouble."""
    return _run(checking.migrate(database_url(settings), gateway_secrets.folder()))


def rotate(settings: Settings, environ: Mapping[str, str]) -> rotating.Rotated:
    """Raises StoreTrouble, ConfigError, StateUnusable."""
    before = _secrets(settings, environ)
    renewed = not before.old_encryption_keys and gateway_secrets.renew_encryption_key(environ)
    told = _secrets(settings, environ) if renewed else before

    async def turn() -> rotating.Rotated:
        async with _opened(told) as store:
            return await rotating.rotate(store, Sealer(told))

    done = _run(turn())
    if not environ.get("ENCRYPTION_KEY"):
        gateway_secrets.forget_old_encryption_keys()
    return done


def take_over(
    url: str,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    encryption_key: str,
    jwt_secret: str,
    dry_run: bool,
) -> importing.Report:
    """Raises StoreTrouble, ConfigError, StateUnusable."""
    told = _secrets(settings, environ)

    async def take() -> importing.Report:
        async with _opened(told) as store:
            sealer = Sealer(told)
            await guard(store, sealer)
            theirs = replace(
                told, encryption_key=encryption_key or told.encryption_key, jwt_secret=jwt_secret or told.jwt_secret
            )
            return await importing.take_over(url, store, sealer, theirs=theirs, ours=told, dry_run=dry_run)

    return _run(take())


def _secrets(settings: Settings, environ: Mapping[str, str]) -> Secrets:
    return gateway_secrets.secrets(database_url(settings), settings.gateway_redis_url, environ)


@asynccontextmanager
async def _opened(told: Secrets) -> AsyncIterator[Store]:
    store = Store(told.database_url, gateway_secrets.folder())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def _run(work: Coroutine[Any, Any, _T], run: Callable[[Coroutine[Any, Any, _T]], _T] = asyncio.run) -> _T:
    try:
        return run(work)
    except (StoreAway, StoreUnusable, WrongKey) as error:
        raise StoreTrouble(str(error)) from error
