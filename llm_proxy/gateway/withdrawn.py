"""Requests that were taken back before they were read.

The proxy moves what a hanging process has not read on to another one. When the process goes on, it still finds the
request, and the end of the connection only behind it: served now, it would be served twice.
"""

from __future__ import annotations

import asyncio
import select

from aiohttp import web

from llm_proxy.gateway.options import Options


def check(options: Options, request: web.Request) -> None:
    """Raises CancelledError where its sender has left, which is what would come a moment later. A process that is alone
    does not look: nothing can have gone on to another.
    """
    if not options.workers:
        return
    transport = request.transport
    if transport is None:
        raise asyncio.CancelledError
    look = select.poll()
    look.register(transport.get_extra_info("socket").fileno(), 0)  # of the end of both directions it tells always
    if look.poll(0):
        raise asyncio.CancelledError
