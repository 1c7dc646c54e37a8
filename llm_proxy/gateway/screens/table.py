"""All pages, from the modules that have them. Leaves out serving them (`serving`)."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Final

from llm_proxy.gateway.screens import (
    account,
    aliases,
    audit,
    clients,
    entrance,
    keys,
    limits,
    machines,
    people,
    provider_keys,
    usage,
)
from llm_proxy.gateway.screens.page import Page

_MODULES: Final[tuple[ModuleType, ...]] = (
    *(entrance, keys, clients, account),
    *(usage, aliases, provider_keys, people, limits, machines, audit),
)


@cache
def pages() -> tuple[Page, ...]:
    return tuple(page for module in _MODULES for page in module.PAGES)
