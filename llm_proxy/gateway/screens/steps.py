"""The way from an empty gateway to a first call: what is done of it, and what comes next.

Nothing of it is kept: it is told by what there is, and is over with the first call. Leaves out the pages themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_proxy.gateway.screens.desk import Desk


@dataclass(frozen=True, slots=True)
class Step:
    """`state` is one of done, next, later."""

    label: str
    path: str
    why: str
    state: str


async def steps(desk: Desk) -> tuple[Step, ...]:
    """None once there has been a call: of anybody for administrators, of his own for a member."""
    whose = {"all": "true"} if desk.admin else {}
    if (await desk.ask("GET", "/manage/usage/calls", query={"limit": "1", **whose})).calls:
        return ()
    aliases = await desk.ask("GET", "/manage/aliases")
    told: list[tuple[str, str, str, Any]] = [
        ("Make an API key", "/keys", "A program comes in with it.", await desk.ask("GET", "/auth/key")),
        ("Put it into a client", "/clients", "And make the first call.", None),
    ]
    if desk.admin or not aliases:  # else they are shared, and no work of his
        provider_keys = await desk.ask("GET", "/manage/providers")
        told[:0] = [
            ("Add a provider key", "/providers/new", "It pays for calls.", provider_keys),
            ("Make an alias", "/aliases/new", "Programs call a model by it.", aliases),
        ]
    first = next(place for place, (*_, done) in enumerate(told) if not done)
    return tuple(
        Step(label, path, why, "done" if done else "next" if place == first else "later")
        for place, (label, path, why, done) in enumerate(told)
    )
