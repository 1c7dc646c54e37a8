"""The steps of setup and uninstall: done or only announced, told as they go, remembered for the report.

Leaves out what the steps are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llm_proxy.errors import LlmProxyError


@dataclass(frozen=True, slots=True)
class Step:
    """`outcome`: "done", "unchanged", "would" (dry run), "warning" or "failed". `text` is for a person."""

    name: str
    outcome: str
    text: str


class Steps:
    """Grows by one with every step; `tell` is called with each."""

    def __init__(self, tell: Callable[[Step], None], *, dry_run: bool = False) -> None:
        self._tell = tell
        self.dry_run = dry_run
        self.all: list[Step] = []

    @property
    def failed(self) -> bool:
        return any(step.outcome == "failed" for step in self.all)

    def do(self, name: str, text: str, action: Callable[[], object]) -> bool:
        """Run `action` unless this is a dry run; False where it raised one of our errors or OSError."""
        if self.dry_run:
            self.say(name, "would", text)
            return True
        try:
            action()
        except (LlmProxyError, OSError) as exc:
            self.say(name, "failed", f"{text}: {exc}")
            return False
        self.say(name, "done", text)
        return True

    def say(self, name: str, outcome: str, text: str) -> None:
        step = Step(name, outcome, text)
        self.all.append(step)
        self._tell(step)
