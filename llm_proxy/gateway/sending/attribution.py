"""Who a call to a provider is for, told to the proxy beside it. Leaves out how that is written (`wire.attribution`)."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from llm_proxy.wire import attribution


class Attribution(msgspec.Struct, frozen=True):
    """`attempt` counts the tries of one request from 1; `user` is an address, `key` a name, `team` an id. "": none.

    `account`, `project` and `privacy` are as `wire.attribution` tells them.
    """

    request_id: str
    attempt: int = 1
    user: str = ""
    key: str = ""
    alias: str = ""
    team: str = ""
    account: str = ""
    project: str = ""
    privacy: str = ""

    def headers(self) -> list[tuple[str, str]]:
        """Fields for the proxy's socket, which goes no further with them."""
        return [
            *attribution.of_request(self.request_id, self.attempt),
            *_of_caller(self.user, self.key, self.alias, self.team, self.account, self.project, self.privacy),
        ]


@lru_cache(maxsize=1024)
def _of_caller(
    user: str, key: str, alias: str, team: str, account: str, project: str, privacy: str
) -> list[tuple[str, str]]:
    """These come again with the next call."""
    whose = attribution.Attribution("", "", user, key, alias, team, account, project, privacy)
    return attribution.fields(whose)
