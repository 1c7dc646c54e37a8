"""All routes, from the modules that have them. Leaves out serving them (`app`)."""

from __future__ import annotations

from llm_proxy.gateway import health, openapi
from llm_proxy.gateway.calls import api, models
from llm_proxy.gateway.manage import (
    aliases,
    audit,
    auth,
    deletions,
    invitations,
    limits,
    machines,
    metrics,
    privacy,
    providers,
    teams,
    usage,
    usage_calls,
    usage_series,
    users,
    viewing,
)
from llm_proxy.gateway.routes import Route

_MODULES = (
    *(api, models),
    *(auth, providers, aliases, usage, usage_calls, usage_series, privacy, users, teams, limits, invitations),
    *(audit, metrics),
    *(deletions, machines, viewing, health, openapi),
)


def table() -> tuple[Route, ...]:
    return tuple(route for module in _MODULES for route in module.ROUTES)
