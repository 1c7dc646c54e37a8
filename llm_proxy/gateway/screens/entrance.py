"""The way in and out: signing up, in and out, and who has a cookie. Leaves out passwords (`manage.auth`)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

import msgspec
from sqlalchemy import exists, select

from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import NOBODY, Access
from llm_proxy.gateway.screens.door import PLACE
from llm_proxy.gateway.screens.page import Answer, File, Html, Lead, Page, Visit
from llm_proxy.gateway.session_tokens import BadToken
from llm_proxy.gateway.store.schema import now, users

# A page of ours: no second slash or backslash that would name a host, nothing that a line could end with.
_WAY_BACK: Final = re.compile(rf"{PLACE}(?:/[\w.~%!$&'()*+,;=:@?-]+)*/?", re.ASCII)


async def home(visit: Visit) -> Answer:
    from llm_proxy.gateway.screens.table import pages  # which holds our own pages too

    shown = sorted((page for page in pages() if page.nav), key=lambda page: page.order)
    return Lead(shown[0].path)


async def log_in_page(visit: Visit) -> Answer:
    if visit.caller is not NOBODY:
        return _onward(visit)
    if await _nobody_yet(visit):
        return Lead("/sign-up")
    return Html("log_in", {"next": visit.query.get("next", ""), "may_sign_up": visit.site.options.signup != "closed"})


async def log_in(visit: Visit) -> Answer:
    made = await visit.desk.ask(
        "POST", "/auth/login", {"email": visit.form.get("email"), "password": visit.form.get("password")}
    )
    return _begun(visit, made)


def _begun(visit: Visit, made: Any) -> Lead:
    """With a cookie for the session that was made; its tokens nobody needs."""
    tokens = visit.site.identifier.tokens
    try:
        claims = tokens.of_access(made.token)
    except BadToken as error:  # our clock has been set back meanwhile
        raise Refusal(500, "internal_error", f"the session cannot be used: {error}") from None
    return replace(_onward(visit), cookie=tokens.browser(claims.user_id, claims.session_id, now()))


def _onward(visit: Visit) -> Lead:
    """To where somebody was going when he had to sign in."""
    wanted = visit.form.get("next") or visit.query.get("next", "")
    return Lead(wanted, outside=True) if _WAY_BACK.fullmatch(wanted) else Lead("/")


async def log_out(visit: Visit) -> Answer:
    if visit.caller is NOBODY:  # his session has ended meanwhile
        return Lead("/log-in", "out", cookie="")
    await visit.desk.ask("POST", "/auth/logout")
    return Lead("/log-in", "out", cookie="")


async def log_out_page(visit: Visit) -> Answer:
    return Html("log_out") if visit.caller is not NOBODY else Lead("/log-in")


async def sign_up_page(visit: Visit) -> Answer:
    return Html(
        "sign_up",
        {
            "first": await _nobody_yet(visit),
            "setting": visit.site.options.signup,
            "invitation": visit.query.get("invitation", ""),
        },
    )


async def sign_up(visit: Visit) -> Answer:
    fields = {name: visit.form.get(name) for name in ("email", "password", "invitation")}
    fields["invitation"] = fields["invitation"].strip()
    if visit.form.get("again") != fields["password"]:
        raise Refusal(400, "passwords_differ", "the two passwords are not the same", param="again")
    await visit.desk.ask("POST", "/auth/signup", fields)
    del fields["invitation"]
    try:
        made = await visit.desk.ask("POST", "/auth/login", fields)
    except Refusal as refusal:
        if refusal.status != 401:
            raise
        return Lead("/log-in", "made")  # as everybody else is told: the address had an account already
    return _begun(visit, made)


async def _nobody_yet(visit: Visit) -> bool:
    async with visit.site.store.reading() as connection:
        return not await connection.scalar(select(exists(select(users.c.id))))


async def me(visit: Visit) -> Answer:
    """Who has this cookie, for the explorer."""
    return File(msgspec.json.encode(await visit.desk.ask("GET", "/auth/me")), "application/json")


PAGES: Final = (
    Page("/", Access.SESSION, "Home", home),
    Page(
        "/log-in",
        Access.PUBLIC,
        "Sign in",
        log_in_page,
        {"": log_in},
        said={"out": "You have signed out.", "made": "The account is made. Sign in."},
    ),
    Page("/sign-up", Access.PUBLIC, "Sign up", sign_up_page, {"": sign_up}),
    Page("/log-out", Access.PUBLIC, "Sign out", log_out_page, {"": log_out}),
    Page("/me", Access.SESSION, "Who I am", me, machine=True),
)
