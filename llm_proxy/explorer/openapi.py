"""The API's description (OpenAPI 3.1), made from the tables of pages and the views' own types. Pure.

What a page shows is what its view returns, so there is nothing to keep in step by hand. Leaves out serving it (`api`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from llm_proxy.explorer.asking import COMMON, Param
from llm_proxy.explorer.page import Extra, File, Page

_ID = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
_REF = "#/components/schemas/{name}"
_ERROR = {
    "type": "object",
    "description": "What is wrong, in short and in words.",
    "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
    "required": ["error", "message"],
}
_ERRORS = {
    "400": "A parameter breaks its rule.",
    "401": "Neither the secret nor a session was sent.",
    "403": "Asked for by another site's page, under another name, or by another user's program.",
    "404": "Nothing is recorded under this id.",
    "410": "It was recorded, and has gone.",
    "503": "It took too long, or the index cannot be read.",
}
_ABOUT = (
    "What the explorer's pages show, as JSON: the same views with the same parameters. Times are nanoseconds since "
    "1970 (`_ns`), durations milliseconds (`_ms`), sizes bytes, dollars numbers written exactly. All of it reads only."
)


def path_of(page: Page) -> str:
    """Below the API's root: `/sessions/{id}`."""
    return "/sessions" if page.path == "/" else _ID.sub(r"{\1}", page.path)


def describe(pages: Sequence[Page], extras: Sequence[Extra], root: str, version: str) -> dict[str, Any]:
    """The whole document. `root` is where the explorer is served."""
    types = list(dict.fromkeys(one for page in pages for one in returned(page)))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(types, map(_exact, schemas), strict=True))
    paths: dict[str, Any] = {}
    for page in pages:
        shown = [by_type[one] for one in returned(page)]
        paths[f"{root}/api{path_of(page)}"] = {
            "get": _operation(page, shown[0] if len(shown) == 1 else {"anyOf": shown})
        }
    for extra in extras:
        if extra.title:
            paths[root + _ID.sub(r"{\1}", extra.path)] = {"get": _of_extra(extra)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm-proxy explorer", "version": version or "0", "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": {_short(name): _exact(schema) for name, schema in components.items()} | {"Error": _ERROR},
            "securitySchemes": {
                "secret": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "What stands in the file `secret` of the state folder.",
                }
            },
        },
        "security": [{"secret": []}],
    }


def returned(page: Page) -> tuple[Any, ...]:
    """The types that its view shows."""
    return tuple(one for one in _told(page) if one is not File)


def gives_files(page: Page) -> bool:
    """Whether some parameter makes it a file instead."""
    return File in _told(page)


def _told(page: Page) -> tuple[Any, ...]:
    told = get_type_hints(page.view)["return"]
    return get_args(told) if get_origin(told) in (Union, UnionType) else (told,)


def parameters(path: str, params: Sequence[Param]) -> Iterator[dict[str, Any]]:
    for name in _ID.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for param in (*params, *COMMON):
        yield {
            "name": param.name,
            "in": "query",
            "description": f"{param.sentence} Must be {param.rule}.",
            "schema": _schema(param),
        }


def _schema(param: Param) -> dict[str, Any]:
    one: dict[str, Any] = {"type": "integer"} if type(param.default) is int else {"type": "string"}
    if param.choices:
        one["enum"] = list(param.choices)
    if param.many:
        return {"type": "array", "items": one}
    if type(param.default) in (int, str) and param.default != "":
        one["default"] = param.default
    return one


def _operation(page: Page, schema: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if gives_files(page):
        content["*/*"] = {}
    return {
        "operationId": page.name,
        "summary": page.title,
        "parameters": list(parameters(page.path, page.params)),
        "responses": {"200": {"description": "The view.", "content": content}} | _failures(),
    }


def _of_extra(extra: Extra) -> dict[str, Any]:
    return {
        "operationId": re.sub(r"\W+", "_", extra.path).strip("_"),
        "summary": extra.title,
        "parameters": list(parameters(extra.path, extra.params)),
        "responses": {"200": {"description": "As it is.", "content": {"*/*": {}}}} | _failures(),
    }


def _failures() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS.items()}


def _short(name: str) -> str:
    """`pages.call.Note` instead of `llm_proxy.explorer.pages.call.Note`, as types are named that share a name."""
    return name.removeprefix("llm_proxy.").removeprefix("explorer.")


def _exact(schema: Any) -> Any:
    """The same with dollars as what they are written as: numbers."""
    if isinstance(schema, list):
        return [_exact(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "decimal":
        return {"type": "number"}
    if "$ref" in schema:
        return {"$ref": _REF.format(name=_short(schema["$ref"].rpartition("/")[2]))}
    told = {name: _exact(one) for name, one in schema.items() if name not in ("default", "properties")}
    if "properties" in schema:
        told["properties"] = {name: _exact(one) for name, one in schema["properties"].items()}
        told["required"] = list(told["properties"])  # what has a default is written all the same
    return told
