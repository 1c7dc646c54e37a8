"""Client settings: what to paste where, with this gateway's address and a model that the caller has.

Leaves out the texts (`snippets`).
"""

from __future__ import annotations

from typing import Final

from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens.page import Answer, Html, Page, Visit
from llm_proxy.gateway.screens.snippets import PLACEHOLDER, SNIPPETS, Ways
from llm_proxy.gateway.screens.steps import steps

_NO_ALIAS: Final = "MODEL"  # stands where somebody has none to choose


async def show(visit: Visit) -> Answer:
    aliases = [one.alias for one in await visit.desk.ask("GET", "/manage/aliases")]
    models = list(dict.fromkeys(aliases))
    wanted = visit.query.get("model", "")
    model = wanted if wanted in models else models[0] if models else _NO_ALIAS
    ways = Ways(visit.url, PLACEHOLDER, model)
    told = [(one, one.write(ways)) for one in SNIPPETS]
    values = {"snippets": told, "models": models, "model": model, "placeholder": PLACEHOLDER}
    return Html("clients", {**values, "steps": await steps(visit.desk)})


PAGES: Final = (Page("/clients", Access.SESSION, "Client settings", show, nav="Client settings", order=45),)
