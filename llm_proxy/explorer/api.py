"""The API's own two pages: what there is, for people, and its description, for programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

from llm_proxy.explorer import openapi, render
from llm_proxy.explorer.asking import COMMON, Param
from llm_proxy.explorer.routes import EXTRAS, PAGES


@dataclass(frozen=True, slots=True)
class Operation:
    """One question: its whole path, what it answers, and its parameters."""

    path: str
    title: str
    params: tuple[Param, ...]
    json: bool

    @property
    def open(self) -> bool:
        """Whether it can be asked as it stands, without an id."""
        return "{" not in self.path


def operations() -> list[Operation]:
    """Every question that is described."""
    api = f"{render.ROOT}/api"
    return [
        *(Operation(api + openapi.path_of(page), page.title, (*page.params, *COMMON), True) for page in PAGES),
        *(Operation(render.ROOT + extra.path, extra.title, extra.params, False) for extra in EXTRAS if extra.title),
    ]


def overview() -> dict[str, Any]:
    """What a program is told at the API's root."""
    return {
        "openapi": f"{render.ROOT}/api/openapi.json",
        "operations": [
            {"path": one.path, "title": one.title, "parameters": [param.name for param in one.params]}
            for one in operations()
        ],
    }


@cache
def description(version: str) -> bytes:
    return msgspec.json.encode(openapi.describe(PAGES, EXTRAS, render.ROOT, version))


def wants_page(request: web.Request) -> bool:
    """A person asks, by a browser."""
    return "text/html" in request.headers.get("Accept", "")
