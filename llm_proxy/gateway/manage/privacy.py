"""`/manage/privacy`: how much is kept of one's own conversations, as one chooses. Leaves out the rules (`privacy`)."""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import delete, select

from llm_proxy.gateway import privacy
from llm_proxy.gateway.privacy import Level
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.audit import note

_CHOICE: Final = schema.privacy.c


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """`level` holds from the next call on; `chosen` null: nothing was, and the operator's default holds.

    `choices` are those that may be chosen now; something else that was chosen before gives way to the nearest of them.
    """

    level: Level
    chosen: Level | None
    choices: list[Level]


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """null: the operator's default."""

    level: Level | None


async def mine(ask: Ask) -> Privacy:
    query = select(_CHOICE.level).where(_CHOICE.user_id == ask.caller.user_id)
    async with ask.site.store.reading() as connection:
        return _told(ask, await connection.scalar(query))


async def choose(ask: Ask) -> Privacy:
    """Raises Refusal 400 for what the operator does not allow."""
    chosen, user_id, store = ask.body.level, ask.caller.user_id, ask.site.store
    allowed = privacy.choices(ask.site.options)
    if chosen is not None and chosen not in allowed:
        words = f"level: must be {' or '.join(allowed)}, as the operator of the gateway allows, not {chosen}"
        raise Refusal(400, "privacy_not_allowed", words, param="level")
    async with store.writing() as connection:
        if chosen is None:
            await connection.execute(delete(schema.privacy).where(_CHOICE.user_id == user_id))
        else:
            values = {"level": chosen.value, "changed_at": schema.now()}
            made = store.insert(schema.privacy).values(user_id=user_id, **values)
            await connection.execute(made.on_conflict_do_update(index_elements=["user_id"], set_=values))
        await store.changed(connection)
        await note(connection, ask, "privacy.change", f"user:{user_id}", level=chosen)
    return _told(ask, chosen)


def _told(ask: Ask, chosen: str | None) -> Privacy:
    options = ask.site.options
    return Privacy(
        level=privacy.of_user(chosen or "", options),
        chosen=privacy.level(chosen) if chosen else None,
        choices=list(privacy.choices(options)),
    )


ROUTES: Final = (
    Route(
        "GET",
        "/manage/privacy",
        Access.SESSION,
        "How much is kept of your conversations",
        handler=mine,
        gives=Privacy,
    ),
    Route(
        "PUT",
        "/manage/privacy",
        Access.SESSION,
        "Choose how much is kept of your conversations",
        handler=choose,
        takes=Choice,
        gives=Privacy,
    ),
)
