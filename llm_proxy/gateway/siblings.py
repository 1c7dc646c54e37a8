"""The other processes of this machine's gateway, asked over their Unix sockets on behalf of who asks us.

His credentials go along, so each decides for itself what he may see. Leaves out what is asked and what is made of it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp

from llm_proxy import unix

PATIENCE: Final = 1.0  # seconds in which one answers, or is left out
_CREDENTIALS: Final = ("Authorization", "x-api-key")


async def asked(sockets: Sequence[str], path: str, headers: Mapping[str, str]) -> list[bytes | None]:
    """What each answers to a GET, in their order; None for one that does not answer in time, or not with 200."""
    told = {name: headers[name] for name in _CREDENTIALS if name in headers}
    return await asyncio.gather(*(_asked(socket, path, told) for socket in sockets))


async def _asked(socket: str, path: str, headers: Mapping[str, str]) -> bytes | None:
    folder: int | None = None
    try:
        address, folder = unix.address(socket)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(address), timeout=aiohttp.ClientTimeout(total=PATIENCE)
            ) as session,
            session.get(f"http://gateway{path}", headers=headers) as answer,
        ):
            return await answer.read() if answer.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError, unix.PathTooLong):
        return None
    finally:
        if folder is not None:
            os.close(folder)
