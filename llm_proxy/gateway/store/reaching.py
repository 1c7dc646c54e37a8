"""Whether providers' hosts can be reached from this machine: a connection, TLS where calls use it, and nothing sent.

Names are looked up here and now, and `HTTPS_PROXY` holds as it does for calls. Leaves out whether a key is good.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from llm_proxy.gateway.store.findings import Finding

_PATIENCE: Final = 5.0  # seconds for one host
_AT_ONCE: Final = 16
_NAMED: Final = 10  # keys that are named one by one
_PORTS: Final = {"https": 443, "http": 80}


async def reached(wanted: Mapping[tuple[str, str], Sequence[int]]) -> AsyncIterator[Finding]:
    """A finding for each host that cannot be; one for all where all can. `wanted`: (scheme, host[:port]) -> keys."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def tried(scheme: str, authority: str) -> str:
        async with turns:
            return await _trouble(scheme, authority)

    troubles = await asyncio.gather(*(tried(*address) for address in wanted))
    for (scheme, authority), trouble in zip(wanted, troubles, strict=True):
        if trouble:
            keys = wanted[scheme, authority]
            named = ", ".join(map(str, keys[:_NAMED])) + (", …" if len(keys) > _NAMED else "")
            words = f"{scheme}://{authority} cannot be reached: {trouble}"
            yield Finding(False, words, f"correct the base URL of provider key {named}, or let this machine reach it")
    if wanted and not any(troubles):
        yield Finding(True, f"providers' hosts that can be reached: all ({len(wanted)})")


async def _trouble(scheme: str, authority: str) -> str:
    """What is in the way; empty for nothing."""
    parts = urlsplit(f"{scheme}://{authority}")
    host, port, way = parts.hostname or "", parts.port or _PORTS[scheme], ""
    tls = ssl.create_default_context() if scheme == "https" else None
    proxy = getproxies().get("https", "") if scheme == "https" and not proxy_bypass(authority) else ""
    if proxy:
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port, tls, way = through.hostname or "", through.port or 80, None, "the proxy that HTTPS_PROXY names: "
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(host, port, ssl=tls)
    except TimeoutError:
        return f"{way}no answer in {_PATIENCE:g} s"
    except ssl.SSLError as error:
        return f"{way}TLS failed: {getattr(error, 'verify_message', '') or error.reason or 'it was broken off'}"
    except OSError as error:
        return way + (error.strerror or str(error)).lower()
    writer.transport.abort()
    return ""
