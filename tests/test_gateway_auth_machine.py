"""Whatever a member calls, in whatever order, with whatever he holds: he may no more than before."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from llm_proxy.gateway import apikeys
from llm_proxy.gateway.manage import auth, invitations, teams, users
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.store import schema
from tests.gatewaydoor import PASSWORD, doors
from tests.gatewaystore import a_store_url, opened

ROUTES = [route for module in (auth, users, teams, invitations) for route in module.ROUTES]
SCOPES = ("models", "usage", "manage")
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(("admin", "member")),
        "active": st.booleans(),
        "scopes": st.lists(st.sampled_from((*SCOPES, "admin")), max_size=4),
        "id": st.integers(0, 3),
        "user_id": st.integers(0, 3),
        "name": st.sampled_from(("x", "")),
        "email": st.sampled_from(("admin@example.com", "member@example.com", "new@example.com")),
        "password": st.just(PASSWORD),
        "current_password": st.just(PASSWORD),
        "new_password": st.just(PASSWORD),
        "invitation": st.just(apikeys.new("llmi_")),
        "rate_limit_daily": st.just(0),
        "monthly_budget": st.none(),
    },
)


class Member(RuleBasedStateMachine):
    """One who has signed up and holds a session; beside him an administrator with a key, a team and an invitation."""

    held = Bundle("held")  # (token, what it may: "session" or the scopes of a key)
    refreshing = Bundle("refreshing")

    def __init__(self):
        super().__init__()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._run(self._begin())

    def _run(self, work):
        return self._runner.run(work)

    async def _begin(self):
        folder = self._stack.enter_context(TemporaryDirectory())
        url = await self._stack.enter_async_context(a_store_url("sqlite", Path(folder)))
        store = await self._stack.enter_async_context(opened(url))
        self.door = await self._stack.enter_async_context(doors(store))
        self.door.identifier.throttle.enter = self.door.identifier.throttle.sign_up = lambda *_: None  # not shown here
        admin = await self.door.session("admin@example.com")
        await self.door.key(admin)
        await self.door.want(201, "POST", "/manage/teams", {"name": "team"}, admin)
        await self.door.want(201, "POST", "/manage/invitations", {"role": "admin"}, admin)
        self.first = await self.door.sign_up("member@example.com")
        self.theirs = await self._others()

    async def _others(self):
        """What is the administrator's, as rows."""
        mine = {"users": schema.users.c.id == 1, "api_keys": schema.api_keys.c.user_id == 1}
        tables = (schema.users, schema.api_keys, schema.teams, schema.team_members, schema.invitations)
        return [await self.door.rows(table, *([mine[table.name]] if table.name in mine else [])) for table in tables]

    def teardown(self):
        self._run(self._stack.aclose())
        self._runner.close()

    @rule(target=held)
    def signs_in(self):
        return self._run(self.door.sign_in("member@example.com"))["token"], "session"

    @rule(target=refreshing)
    def has_signed_in(self):
        return self._run(self.door.sign_in("member@example.com"))["refresh_token"]

    @rule(token=consumes(refreshing), target=held)
    def renews(self, token):
        return self._run(self.door.want(200, "POST", "/auth/refresh", {"refresh_token": token}))["token"], "session"

    @rule(one=held, scopes=st.none() | st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3), target=held)
    def makes_a_key(self, one, scopes):
        """A session may; what a key makes would be a key the less."""
        body = {} if scopes is None else {"scopes": scopes}
        answer = self._run(self.door.ask("POST", "/auth/key", body, one[0]))
        if answer.status != 200:
            return multiple()
        assert one[1] == "session"
        return answer.json["token"], frozenset(scopes or ("models",))

    @rule(one=held, route=st.sampled_from(ROUTES), number=st.integers(1, 4), user=st.integers(1, 3), body=FIELDS)
    def calls(self, one, route, number, user, body):
        """Any route, with any fields; what comes back is not looked at but for who may."""
        path = route.path.replace("{id}", str(number)).replace("{user_id}", str(user)).replace("{key_id}", str(number))
        answer = self._run(self.door.ask(route.method, path, body, one[0]))
        assert answer.status < 500, answer
        if route.access is Access.ADMIN:
            assert answer.status in (401, 403), answer
        if route.access is Access.SESSION and one[1] != "session":
            assert answer.status in (401, 403), answer

    @rule(one=held)
    def is_who_he_was(self, one):
        """Each credential is his, of its kind, with the scopes that it was made with, or none any more."""
        try:
            caller = self._run(self.door.identifier.identify({"x-api-key": one[0]}))
        except Refusal as refusal:
            assert refusal.status == 401
            return
        assert (caller.user_id, caller.role, caller.is_admin, caller.team_ids) == (2, "member", False, ())
        if one[1] == "session":
            assert caller.session_id and caller.key_id is None
        else:
            assert caller.key_id and caller.session_id is None and caller.scopes == one[1]

    @invariant()
    def nobody_has_risen(self):
        async def look():
            people = await self.door.rows(schema.users)
            assert [row.role for row in people] == ["admin"] + ["member"] * (len(people) - 1)
            assert {(row.active, row.rate_limit_minute, row.rate_limit_daily) for row in people} == {(True, None, None)}
            assert await self._others() == self.theirs

        self._run(look())


TestMember = Member.TestCase
TestMember.settings = settings(
    max_examples=8, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck)
)
