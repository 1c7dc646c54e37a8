"""`GET /openapi.json`: the gateway's description (OpenAPI 3.1), made from the table of routes and their own types.

What a route takes and gives is what is described, so there is nothing to keep in step by hand. Models' APIs are their
makers' to describe: here their bodies are only what the gateway itself looks at. Leaves out the table (`table`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from llm_proxy.gateway.routes import Access, Ask, Route

_JSON: Final = "application/json"
_PARAMETER: Final = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
_REF: Final = "#/components/schemas/{name}"
_ABOUT: Final = (
    "One API over a team's providers. Call models at `/v1` with an API key in `Authorization: Bearer` or `x-api-key`; "
    "accounts, keys, aliases and usage are below `/auth` and `/manage`. Times are UTC, money is in US dollars, and a "
    "list that is empty is `[]`."
)
_SECURITY: Final = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, `llmp_…`, with the scope the route takes."},
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, as Anthropic's SDKs do.",
    },
    "session": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "What `/auth/login` gives."},
}
_MAY: Final[Mapping[Access, list[dict[str, list[str]]]]] = {
    Access.PUBLIC: [],
    Access.KEY: [{"key": []}, {"x-api-key": []}, {"session": []}],
    Access.SESSION: [{"session": []}],
    Access.ADMIN: [{"session": []}],
}
_WHO: Final[Mapping[Access, str]] = {
    Access.PUBLIC: "For everybody.",
    Access.KEY: "With an API key that has the scope `{scope}`, or signed in.",
    Access.SESSION: "Signed in; an API key does not do.",
    Access.ADMIN: "For administrators who have signed in.",
}

_NULLABLE: Final = {"type": ["string", "null"]}
_SCHEMAS: Final = {
    "Error": {
        "type": "object",
        "description": "As OpenAI's SDKs read it. `code` is for programs, `param` what of the request is wrong.",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"message": {"type": "string"}, "type": _NULLABLE, "code": _NULLABLE, "param": _NULLABLE},
                "required": ["message"],
            }
        },
        "required": ["error"],
    },
    "AnthropicError": {
        "type": "object",
        "description": "As Anthropic's SDKs read it.",
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
                "required": ["type", "message"],
            },
        },
        "required": ["type", "error"],
    },
    "Call": {
        "type": "object",
        "description": "Whatever the API takes.",
        "properties": {
            "model": {
                "type": "string",
                "description": "An alias, or a provider's name of a model where that is allowed.",
            },
            "stream": {"type": ["boolean", "null"]},
        },
        "required": ["model"],
    },
}
_ERRORS: Final = {
    "400": "Something in the request is wrong; the message names it.",
    "401": "Neither a key nor a session was sent, or it holds no more.",
    "403": "Who sent it may not do this.",
    "404": "There is no such thing, or it is another's.",
    "429": "A limit is reached, or a budget spent.",
    "503": "The gateway's store cannot be reached.",
    "default": "Another error.",
}
_RATE_HEADERS: Final = {
    f"x-ratelimit-{name}-requests": {"description": text, "schema": {"type": "string"}}
    for name, text in (
        ("limit", "Requests of the nearest limit."),
        ("remaining", "How many of them are left."),
        ("reset", "Until none of them counts any more, as in `6m0s`."),
    )
}
_RETRY_AFTER: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}


def describe(routes: Sequence[Route], version: str, url: str = "") -> dict[str, Any]:
    """The whole document. `url` is where clients reach the gateway, "" for wherever the document is."""
    types = list(dict.fromkeys(one for route in routes for one in (route.takes, route.gives) if one is not None))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(types, map(_short, schemas), strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route, by_type)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "llm-proxy gateway", "version": version or "0", "description": _ABOUT},
        "servers": [{"url": url or "/"}],
        "paths": paths,
        "components": {
            "schemas": {_name(name): _short(schema) for name, schema in components.items()} | _SCHEMAS,
            "securitySchemes": _SECURITY,
        },
    }
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))  # defaults are tuples, or worse
    return told


def _operation(route: Route, by_type: Mapping[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", route.method.lower() + _PARAMETER.sub(r"by_\1", route.path)),
        "tags": [_tag(route)],
        "summary": route.summary.rstrip("."),
        "description": _WHO[route.access].format(scope=route.scope),
        "security": _MAY[route.access],
        "parameters": list(_parameters(route)),
        "responses": {**_success(route, by_type), **_failures(route)},
    }
    if route.takes is not None:
        content = {_JSON: {"schema": by_type[route.takes]}}
        operation["requestBody"] = {"required": not _takes_nothing(route.takes), "content": content}
    elif route.raw is not None and route.method == "POST":
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": _ref("Call")}}}
    return operation


def _takes_nothing(takes: Any) -> bool:
    """Whether all of it may be left out, and so the body itself."""
    try:
        msgspec.convert({}, takes)
    except msgspec.ValidationError:
        return False
    return True


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name, text in route.query.items():
        yield {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}


def _success(route: Route, by_type: Mapping[Any, Any]) -> dict[str, Any]:
    if route.raw is not None:
        content: dict[str, Any] = {_JSON: {}, "text/event-stream" if route.method == "POST" else "text/plain": {}}
        return {"200": {"description": "As the API gives it.", "headers": _RATE_HEADERS, "content": content}}
    if route.gives is None:
        return {str(204 if route.status == 200 else route.status): {"description": "Done."}}
    content = {_JSON: {"schema": by_type[route.gives]}} | ({route.also: {}} if route.also else {})
    return {str(route.status): {"description": "Done.", "content": content}}


def _failures(route: Route) -> dict[str, Any]:
    schema = _ref("AnthropicError" if route.dialect == "anthropic" else "Error")
    without = {"401", "403"} if route.access is Access.PUBLIC else set()
    return {
        status: {"description": text, "content": {_JSON: {"schema": schema}}}
        | ({"headers": _RETRY_AFTER} if status in ("429", "503") else {})
        for status, text in _ERRORS.items()
        if status not in without
    }


def _tag(route: Route) -> str:
    first = route.path.split("/")[1]
    if first in ("auth", "manage"):
        return first
    return "models" if route.raw is not None else "gateway"


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}


def _name(name: str) -> str:
    """`aliases.Change` instead of `llm_proxy.gateway.manage.aliases.Change`, as types are named that share a name."""
    return name.removeprefix("llm_proxy.gateway.").removeprefix("manage.")


def _short(schema: Any) -> Any:
    """The same with short names."""
    if isinstance(schema, list):
        return [_short(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _ref(_name(schema["$ref"].rpartition("/")[2]))
    return {name: _short(one) for name, one in schema.items()}


async def _openapi(ask: Ask) -> dict[str, Any]:
    return _document(ask.site.options.version, ask.site.options.public_url)


@cache
def _document(version: str, url: str) -> dict[str, Any]:
    from llm_proxy.gateway.table import table  # which holds our own route too

    return describe(table(), version, url)


ROUTES: Final = (
    Route(
        "GET",
        "/openapi.json",
        Access.PUBLIC,
        "This description",
        handler=_openapi,
        gives=dict[str, Any],
    ),
)
