"""Why a request is refused, in words for whoever sent it. Leaves out how each API says that (`calls.speaking`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


class Refusal(Exception):
    """An answer that is an error of ours. `code` is stable and for programs, `message` names the thing and the rule.

    `param` is the field of the request that is wrong; `headers` go with the answer, as `Retry-After` does.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def not_found(what: str) -> Refusal:
    """What another tenant has is answered as what nobody has."""
    return Refusal(404, "not_found", f"there is no {what}")


STORE_AWAY: Final = Refusal(
    503, "store_away", "the gateway's store cannot be reached; try again soon", headers={"Retry-After": "5"}
)
