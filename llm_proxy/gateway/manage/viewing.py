"""`GET /auth/viewer`: whose conversations whoever asks may read. The explorer asks it about those who come to it.

A browser's cookie is no credential of the API: for that the explorer asks a page (`screens.entrance.me`). Leaves out
what each may see, which the explorer is told by the settings.
"""

from __future__ import annotations

import msgspec

from llm_proxy.gateway.facts import Role, Scope
from llm_proxy.gateway.routes import Access, Ask, Route


class Viewing(msgspec.Struct, frozen=True):
    """`account` stands in the record of every call. A key reads its owner's own, an administrator's too."""

    account: str
    role: Role


async def viewer(ask: Ask) -> Viewing:
    caller = ask.caller
    role = caller.role if caller.session_id is not None else Role.MEMBER
    return Viewing(ask.site.store.account(caller.user_id), role)


ROUTES = (
    Route(
        "GET",
        "/auth/viewer",
        Access.KEY,
        "Whose conversations I may read",
        viewer,
        scope=Scope.CONVERSATIONS,
        gives=Viewing,
    ),
)
