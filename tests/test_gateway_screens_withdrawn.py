"""A form that has gone on to another process, because this one hung, is not done here too once it goes on."""

import asyncio
import socket
from dataclasses import replace
from urllib.parse import urlencode

import pytest
from aiohttp import web
from sqlalchemy import func, select

from llm_proxy.gateway.screens.serving import _forms, serve
from llm_proxy.gateway.store import schema
from tests.gatewaybed import PASSWORD
from tests.gatewaycalls import calling


@pytest.mark.parametrize("left", [False, True], ids=["stays", "has left"])
async def test_a_form_whose_sender_has_left_is_not_done(tmp_path, left):
    """It is whole, and its end stands behind it."""
    async with calling(tmp_path, signup="open") as calls:
        site = replace(calls.site, options=replace(calls.site.options, workers=("one", "two")))
        served = asyncio.Event()

        async def handle(request):
            await request.read()
            if left:
                client.close()
            try:
                return await serve(site, request)
            finally:
                served.set()

        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        path = f"{calls.site.options.socket}.forms"
        await web.UnixSite(runner, path).start()
        fields = {"email": "ada@example.com", "password": PASSWORD, "again": PASSWORD, "do": ""}
        form = urlencode(fields | {"token": _forms(site).token(None)})
        head = "POST /llm-proxy/team/sign-up HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall((head + form).encode())
            async with asyncio.timeout(20):
                await served.wait()
        await runner.cleanup()
        async with site.store.reading() as connection:
            accounts = await connection.scalar(select(func.count()).select_from(schema.users))
    assert accounts == 1 + (not left)
