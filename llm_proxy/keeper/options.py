"""What a keeper is told beside its folders: one JSON argument from the service, because a keeper reads no settings.

Leaves out where the values come from and whether they make sense: the settings' rules have seen to that.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Retention:
    """What becomes of session files that are closed; 0 is never. Days since the last line, bytes of the log folder."""

    days: float = 0  # then they are deleted
    bodies_days: float = 0  # then what was said is taken out, and what it cost stays
    compress_days: float = 0
    max_size: int = 0  # the oldest are deleted until the rest fits


@dataclass(frozen=True, slots=True)
class Options:
    """The defaults are what a keeper does that is told nothing: it writes the log, and no index."""

    index: str = ""  # the index's file, "" for none
    projects: bool = True  # find out which process called
    redact: bool = True
    patterns: tuple[tuple[str, str], ...] = ()  # own secrets: (name, regular expression)
    redact_off_for: tuple[str, ...] = ()  # projects by name, folders by glob
    metadata_only: bool = False
    deletions: str = ""  # the folder in which the gateway asks for conversations to be deleted, "" for none
    deleting_sinks: tuple[str, ...] = ()  # by name: those that delete by themselves, and are waited for
    rules_stand: float = 1.5  # seconds between asking all keepers to keep no more of somebody's and deleting the rest
    sent: tuple[str, ...] = ()  # where else calls go, in words: what is there cannot be deleted from here
    gateway_privacy: str = "full"  # the most that is kept of calls that the gateway makes for somebody
    prices: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()  # (model, ((class, USD), ...))
    retention: Retention = Retention()
    posts: bool = False  # tell the lanes what is written
    lanes: str = ""  # whose lanes
    price_data: str = ""  # the stored list, "" for the one that came with the package
    cap: int = 2 * 10**9  # bytes the journal may take; beyond it the proxy leaves bodies out

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def options(given: str) -> Options:
    """The options from their JSON. Raises ValueError, naming what is wrong."""
    import msgspec  # the daemon, which only writes them, does without

    return msgspec.json.decode(given.encode(), type=Options)
