"""What pages ask the managing API from within goes by its routes' rules."""

import pytest

from llm_proxy.gateway.facts import Caller, Role
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import NOBODY, Access
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.table import table

MEMBER = Caller(7, "ada@example.com", Role.MEMBER, frozenset(), session_id="s")


@pytest.mark.parametrize("caller", [NOBODY, MEMBER], ids=["nobody", "member"])
async def test_a_desk_keeps_every_route_s_rule_for_who_may_come(caller):
    """Whatever a page asks for; no handler runs, as there is nothing here that one could run with."""
    closed = {Access.ADMIN} if caller is MEMBER else {Access.ADMIN, Access.SESSION, Access.KEY}
    asked = [route for route in table() if route.handler is not None and route.access in closed]
    assert len(asked) > 10
    for route in asked:
        path = route.path.replace(":[^/]+", "")
        with pytest.raises(Refusal) as refused:
            await Desk(None, caller, "").ask(route.method, path)
        assert refused.value.status == (403 if caller is MEMBER else 401), path
