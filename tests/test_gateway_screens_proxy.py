"""The gateway's pages lie among the explorer's paths, and each has its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_proxy.proxy.explorer import Explorer
from tests.test_gateway_door import ask, team

__all__ = ["team"]

NO_EXPLORER = Explorer(unavailable="there is none here")
TARGETS = {
    "/llm-proxy/team": True,
    "/llm-proxy/team?x=/": True,
    "/llm-proxy/team/keys?n=2": True,
    "/llm-proxy/team/static/v-0123/team.css": True,
    "/llm-proxy/teams": False,
    "/llm-proxy/team.css": False,
    "/llm-proxy/": False,
    "/llm-proxy/sessions/llm-proxy/team/": False,
    "/llm-proxy/%74eam/": False,
}


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("target", TARGETS)
async def test_who_gets_which_path(rigs, team, method, target):
    """The gateway what is its own, to be judged there; the explorer the rest, and all of it where there is no gateway."""
    await team.serve()
    rig = await rigs(gateway=team.config, explorer=NO_EXPLORER)
    elsewhere = ("Origin: https://evil.example", "Sec-Fetch-Site: cross-site") if TARGETS[target] else ()
    answer = await ask(rig, target, *elsewhere, method=method, body=b"a=1" if method == "POST" else b"")
    assert answer.status == (200 if TARGETS[target] else 503)
    assert bool(team.requests) is TARGETS[target]
    alone = await rigs(explorer=NO_EXPLORER)
    assert (await ask(alone, target, method=method)).status == 503


async def test_who_visits_cannot_be_forged(rigs, team):
    """Pages learn by the proxy alone how and from where somebody came."""
    await team.serve()
    rig = await rigs(gateway=team.config)
    await ask(rig, "/llm-proxy/team/", "X-LLM-Proxy-Peer: 10.9.9.9", "X-LLM-Proxy-Scheme: https")
    [request] = team.requests
    assert request.headers.getall("X-LLM-Proxy-Scheme") == ["http"]
    assert request.headers.getall("X-LLM-Proxy-Peer") == ["127.0.0.1"]


async def test_while_the_gateway_is_dead_a_page_says_so(rigs, team):
    """To a person, in HTML."""
    rig = await rigs(gateway=replace(team.config, patience=0.3))
    answer = await ask(rig, "/llm-proxy/team/keys", "Accept: text/html")
    assert answer.status == 503 and answer.get(b"retry-after") == b"1"
    assert answer.get(b"content-type").startswith(b"text/html") and b"gateway is not running" in answer.payload
