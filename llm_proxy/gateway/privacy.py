"""How much is kept of a user's conversations: his own choice, within what the operator allows. Pure.

Levels go from nothing at all to everything. The most that the operator allows holds for everybody, whatever was chosen
before he said so. Leaves out where choices are kept (`manage.privacy`) and who keeps less by them (the keeper).
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Final

from llm_proxy.gateway.options import Options


class Level(StrEnum):
    """From the least that is kept to the most."""

    NONE = "none"  # no word, and no line that there was a call
    METADATA = "metadata"  # who, when, which model, how much; texts by size and digest
    REDACTED = "redacted"  # texts too, with what is private in them masked
    FULL = "full"


LEVELS: Final = tuple(Level)


def choices(options: Options) -> tuple[Level, ...]:
    """Those that users may choose. Where the operator's floor is above his ceiling, the ceiling holds."""
    ceiling = level(options.privacy_ceiling)
    floor = min(level(options.privacy_floor), ceiling, key=LEVELS.index)
    return LEVELS[LEVELS.index(floor) : LEVELS.index(ceiling) + 1]


def of_user(chosen: str, options: Options) -> Level:
    """What holds for somebody who chose this, "" for nothing: the nearest that may be chosen."""
    return _nearest(chosen or options.privacy, choices(options))


def recorded(chosen: str, options: Options) -> str:
    """As a call's attribution tells it: "" where all is kept. It is asked with every call."""
    return _recorded(chosen or options.privacy, options.privacy_floor, options.privacy_ceiling)


@lru_cache(maxsize=64)
def _recorded(wanted: str, floor: str, ceiling: str) -> str:
    found = of_user(wanted, Options("", "", "", privacy_floor=floor, privacy_ceiling=ceiling))
    return "" if found is Level.FULL else found.value


def _nearest(wanted: str, allowed: tuple[Level, ...]) -> Level:
    found = level(wanted)
    if found in allowed:
        return found
    return allowed[0] if LEVELS.index(found) < LEVELS.index(allowed[0]) else allowed[-1]


def level(name: str) -> Level:
    """What nobody knows keeps nothing."""
    return Level(name) if name in LEVELS else Level.NONE
