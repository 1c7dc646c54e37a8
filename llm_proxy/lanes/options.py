"""What the process of the lanes is told: one JSON argument from the service, because it reads no settings.

Leaves out where the values come from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """`sinks` are (name, options); `state` the state folder, `folder` where sinks put their files.

    `name` is empty for the lanes of all usual daemons; others, of runs with sinks of their own, have their own calls,
    cursors and lock.
    """

    state: str
    folder: str
    sinks: tuple[tuple[str, dict[str, Any]], ...] = ()
    name: str = ""

    @property
    def place(self) -> Path:
        """The folder of cursors, lock, `sinks.json` and what is parked."""
        return Path(self.state, "lanes", self.name) if self.name else Path(self.state)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def options(given: str) -> Options:
    """The options from their JSON. Raises ValueError, naming what is wrong."""
    import msgspec  # who only writes them does without

    return msgspec.json.decode(given.encode(), type=Options)
