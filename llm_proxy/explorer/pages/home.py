"""Home: all sessions, newest first."""

from __future__ import annotations

from dataclasses import dataclass

from llm_proxy.explorer.asking import Asked, whole
from llm_proxy.explorer.page import Extra, Page
from llm_proxy.index.queries import Filter, SessionRow
from llm_proxy.index.record import Record


@dataclass(frozen=True, slots=True)
class Home:
    """The sessions shown."""

    sessions: tuple[SessionRow, ...]


def view(record: Record, asked: Asked) -> Home:
    return Home(tuple(record.index.sessions(Filter(), asked["n"])))


PAGES = (Page("/", "home", "Sessions, newest first.", (whole("n", "Sessions at a time.", 1, 200, 50),), view),)
EXTRAS: tuple[Extra, ...] = ()
