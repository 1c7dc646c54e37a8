"""A service that is asked to stop carries new calls too, for a while; clients know no other."""

import asyncio
import socket

import pytest

from llm_proxy.proxy.listener import BATCH
from tests.rig import Rig
from tests.test_relay import CHUNKED


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as link:
        return link.connect_ex(("127.0.0.1", port)) != 0


async def test_new_calls_are_carried_while_an_old_one_is_open(rig: Rig) -> None:
    """Each on a connection that ends with it; nobody is served once nothing is open."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(CHUNKED[:100])
    await client.until(b"abc")
    idle = rig.client()
    await idle.send(rig.request(fake="fixed"))
    await idle.message()
    draining = asyncio.create_task(rig.proxy.drain(10, serving=5))
    await rig.until(lambda: rig.core.draining)
    for one in (idle, rig.client()):
        await one.send(rig.request(fake="fixed"))
        answer = await one.message()
        assert (answer.status, answer.head.lower().count(b"\r\nconnection: close\r\n")) == (200, 1)
        await one.to_the_end()
        assert one.ended == "fin"
    await server.send(CHUNKED[100:])
    assert await draining == 0
    assert (await client.message()).complete


@pytest.mark.parametrize("serving", [5, 0])
async def test_who_has_just_connected_is_heard_out(rig: Rig, serving: float) -> None:
    """Its request is on its way when the last exchange has ended."""
    new = rig.client()
    await rig.until(lambda: rig.core.clients)
    draining = asyncio.create_task(rig.proxy.drain(10, serving=serving))
    await rig.until(lambda: rig.core.draining)
    await new.send(rig.request(fake="fixed"))
    assert (await new.message()).status == 200
    assert await draining == 0


async def test_who_waits_to_be_accepted_is_heard_out(rig: Rig) -> None:
    """However many they are: closing the listener would answer each with a reset."""
    waiting = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(BATCH + 20)]
    for link in waiting:
        link.sendall(rig.request(fake="fixed"))
        link.setblocking(False)
    assert await rig.proxy.drain(10) == 0
    loop = asyncio.get_running_loop()
    for link in waiting:
        with link:
            assert (await loop.sock_recv(link, 65536)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_it_ends_although_new_calls_keep_coming(rig: Rig) -> None:
    """From half of the time on nobody new is taken, so that what was begun has time to end."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    draining = asyncio.create_task(rig.proxy.drain(10, serving=0.05))
    await rig.until(lambda: refuses(rig.port))
    assert not draining.done()
    await server.send(CHUNKED)
    assert await draining == 0
    assert (await client.message()).complete
