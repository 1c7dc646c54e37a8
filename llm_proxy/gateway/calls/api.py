"""The routes that clients call models by: OpenAI's and Anthropic's own, also without `/v1`.

Leaves out what becomes of a call (`running`) and lists of models (`models`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from llm_proxy.gateway.calls.running import Call
from llm_proxy.gateway.calls.ways import DIALECTS
from llm_proxy.gateway.facts import Caller, Scope
from llm_proxy.gateway.routes import Access, Raw, Route

if TYPE_CHECKING:
    from llm_proxy.gateway.site import Site

_SUMMARIES: Final = (
    ("/chat/completions", "chat", "OpenAI's chat completions, of any model."),
    ("/responses", "responses", "OpenAI's responses, of any model."),
    ("/messages", "anthropic", "Anthropic's messages, of any model."),
    ("/messages/count_tokens", "count_tokens", "How many tokens a message of Anthropic's API has."),
    ("/embeddings", "embeddings", "OpenAI's embeddings, of OpenAI's, compatible and Gemini's models."),
    ("/completions", "completions", "OpenAI's old completions, of any model."),
)


def _route(path: str, api: str, summary: str) -> Route:
    async def answer(site: Site, caller: Caller, request: web.Request) -> web.StreamResponse:
        return await Call(site, caller, request, api).answer()

    raw: Raw = answer
    return Route("POST", path, Access.KEY, summary, raw=raw, scope=Scope.MODELS, dialect=DIALECTS[api])


ROUTES: Final = tuple(_route(prefix + path, api, told) for prefix in ("/v1", "") for path, api, told in _SUMMARIES)
