"""What one API says and another cannot: refused by its name in the caller's request, or left out and told.

Leaves out which these are: each API's module knows what it can say.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class BadRequest(Exception):
    """The caller's request is not what its API takes. `field` names where, in the caller's own words."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}" if field else rule)
        self.field = field


class CannotSay(BadRequest):
    """The caller's request is fine, and the API it goes to has no word for this field."""

    def __init__(self, field: str, target: str, why: str = "") -> None:
        super().__init__(field, f"cannot be said to {target}" + (f": {why}" if why else ""))


@dataclass(slots=True)
class Losses:
    """Gathers what is left out. With `refuse`, the first one is an error instead."""

    target: str  # the API's name, for messages
    refuse: bool = True
    dropped: list[str] = field(default_factory=list)

    def lose(self, at: str, why: str = "") -> None:
        """`at` will not reach the target. Raises CannotSay."""
        if self.refuse:
            raise CannotSay(at, self.target, why)
        if at not in self.dropped:
            self.dropped.append(at)

    def loosen(self, at: str) -> None:
        """`at` is a hint that changes no answer's meaning: it is left out even where losses are refused."""
        if at not in self.dropped:
            self.dropped.append(at)
