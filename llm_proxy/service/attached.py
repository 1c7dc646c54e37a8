"""A look at `attached.json` by those who only ask: the daemon at its start, and `--status`.

Reads a few fields and imports no format, because the daemon stays small. Leaves out changing anything (`attach`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

JOURNAL = "attached.json"


@dataclass(frozen=True, slots=True)
class Attached:
    """A client whose configuration leads to `port`; `finished` unless an edit of it was cut short."""

    client: str
    port: int
    finished: bool
    files: tuple[str, ...]


def listed(folder: str) -> tuple[Attached, ...]:
    """Empty where nothing is attached, or the journal cannot be read: `attach` tells that."""
    try:
        facts = json.loads(Path(folder, JOURNAL).read_bytes())
        return tuple(
            Attached(
                str(entry["client"]),
                int(entry["port"]),
                all(len(edit["images"]) == 1 for edit in entry["edits"]),
                tuple(str(edit["path"]) for edit in entry["edits"]),
            )
            for entry in facts["attachments"]
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def astray(folder: str, port: int) -> bool:
    """Whether some client is not led to `port`."""
    return any(entry.port != port or not entry.finished for entry in listed(folder))
