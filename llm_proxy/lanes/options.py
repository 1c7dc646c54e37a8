"""What the process of the lanes is told by the service, because it reads no settings.

One JSON argument, and what the settings say of each sink in an environment variable: command lines are for everybody
on the machine to read, and sinks may have passwords. Leaves out where the values come from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

TABLES = "LLM_PROXY_LANES"  # the environment variable


# Sinks that take out what they have written where users want it to be deleted; the keeper waits for them.
DELETING = ("daily", "csv", "dataset", "shared-index", "s3")


@dataclass(frozen=True, slots=True)
class Options:
    """`sinks` are (name, options); `state` the state folder, `folder` where sinks put their files.

    In `deletions` it is asked for conversations to be deleted, "" for nowhere.
    `name` is empty for the lanes of all usual daemons; others, of runs with sinks of their own, have their own calls,
    cursors and lock.
    """

    state: str
    folder: str
    sinks: tuple[tuple[str, dict[str, Any]], ...] = field(default=(), repr=False)
    name: str = ""
    deletions: str = ""

    @property
    def place(self) -> Path:
        """The folder of cursors, lock, `sinks.json` and what is parked."""
        return Path(self.state, "lanes", self.name) if self.name else Path(self.state)

    def to_json(self) -> str:
        """All but what is said of the sinks."""
        return json.dumps(asdict(replace(self, sinks=tuple((name, {}) for name, _ in self.sinks))))

    def variables(self) -> dict[str, str]:
        """The rest, for the environment."""
        return {TABLES: json.dumps(dict(self.sinks))}


def options(given: str, tables: str = "{}") -> Options:
    """The options from their JSON. Raises ValueError, naming what is wrong."""
    import msgspec  # who only writes them does without

    told = msgspec.json.decode(tables.encode(), type=dict[str, dict[str, Any]])
    read = msgspec.json.decode(given.encode(), type=Options)
    return replace(read, sinks=tuple((name, told.get(name, {})) for name, _ in read.sinks))
