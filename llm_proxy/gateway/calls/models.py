"""`GET /v1/models`: what a caller can ask for, his aliases first; as OpenAI lists it, or Anthropic for its clients.

Leaves out how the models of a provider key become known (`model_lists`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from aiohttp import web

from llm_proxy.gateway.calls import speaking
from llm_proxy.gateway.calls.ids import request_id
from llm_proxy.gateway.catalog import Catalog
from llm_proxy.gateway.facts import Caller, Scope
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Route

if TYPE_CHECKING:
    from llm_proxy.gateway.site import Site

_WHENEVER: Final = 0  # nobody knows when a model was made
_PAGE, _LARGEST_PAGE = 20, 1000  # as Anthropic's own
_LONG_AGO: Final = "1970-01-01T00:00:00Z"


class _Model(NamedTuple):
    id: str
    owner: str


def _known(catalog: Catalog, raw: bool) -> Iterator[_Model]:
    """Aliases by name, then the models of each key that no alias and no key before it has named."""
    seen = set(catalog.aliases)
    for name in sorted(seen):
        yield _Model(name, "llm-proxy")
    for key_id, key in catalog.keys.items() if raw else ():
        for model in sorted(catalog.models.get(key_id, frozenset()) - seen):
            seen.add(model)
            yield _Model(model, str(key.provider))


async def _models(site: Site, caller: Caller, request: web.Request) -> list[_Model]:
    return list(_known(await site.catalogs.of(caller.user_id), site.options.raw_models))


async def _all(site: Site, caller: Caller, request: web.Request) -> web.StreamResponse:
    models = await _models(site, caller, request)
    if _dialect(request) == "anthropic":
        return _said(request, _page(models, request))
    return _said(request, {"object": "list", "data": [_openai(model) for model in models]})


async def _one(site: Site, caller: Caller, request: web.Request) -> web.StreamResponse:
    name = request.match_info["id"]
    dialect = _dialect(request)
    for model in await _models(site, caller, request):
        if model.id == name:
            return _said(request, _anthropic(model) if dialect == "anthropic" else _openai(model))
    refused = Refusal(404, "model_not_found", f"there is no model {name[:255]!r} that you can use", param="model")
    return speaking.refusal(dialect, refused)


def _dialect(request: web.Request) -> str:
    return "anthropic" if "anthropic-version" in request.headers else "chat"


def _openai(model: _Model) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": _WHENEVER, "owned_by": model.owner}


def _anthropic(model: _Model) -> dict[str, Any]:
    return {"type": "model", "id": model.id, "display_name": model.id, "created_at": _LONG_AGO}


def _page(models: list[_Model], request: web.Request) -> dict[str, Any]:
    """Raises Refusal 400."""
    limit = request.query.get("limit", str(_PAGE))
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:6]) <= _LARGEST_PAGE:
        raise Refusal(400, "invalid_request", f"limit: must be from 1 to {_LARGEST_PAGE}", param="limit")
    ids = [model.id for model in models]
    start, end = 0, len(models)
    if (after := request.query.get("after_id")) in ids:
        start = ids.index(after) + 1
    if (before := request.query.get("before_id")) in ids:
        end = ids.index(before)
        start = max(start, end - int(limit))
    page = models[start : min(end, start + int(limit))]
    more = start > 0 if before in ids else start + len(page) < end
    data = [_anthropic(model) for model in page]
    return {
        "data": data,
        "has_more": more,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }


def _said(request: web.Request, body: dict[str, Any]) -> web.Response:
    return speaking.whole(msgspec.json.encode(body), 200, speaking.identified(_dialect(request), request_id()))


def _told(answer: Any) -> Any:
    async def raw(site: Site, caller: Caller, request: web.Request) -> web.StreamResponse:
        try:
            return await answer(site, caller, request)  # type: ignore[no-any-return]
        except Refusal as refused:
            return speaking.refusal(_dialect(request), refused)

    return raw


ROUTES: Final = tuple(
    Route(method, prefix + path, Access.KEY, summary, raw=_told(answer), scope=Scope.MODELS, dialect="chat")
    for path, answer, summary in (
        ("/models", _all, "What can be called: aliases first, then the models that providers are known to have."),
        ("/models/{id:.+}", _one, "One of them."),
    )
    for prefix in ("/v1", "")
    for method in ("GET", "HEAD")
)
