"""What an explorer is told: one JSON argument from the service, because an explorer reads no settings.

Leaves out where the values come from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """Files and folders, absolute. `journal` is the running daemon's, "" where none runs: then nothing is live."""

    index: str
    logs: str
    state: str
    journal: str = ""
    version: str = ""
    socket: str = ""  # the Unix socket to serve on, "" to serve on `port`
    port: int = 0
    hosts: tuple[str, ...] = ()  # `Host` names beside the loopback ones
    redact: bool = True
    patterns: tuple[tuple[str, str], ...] = ()
    gateway: tuple[str, ...] = ()  # sockets of the gateway's processes; none: it serves no team
    admin_sees: str = "none"  # what its administrators see of others' conversations
    gateway_privacy: str = "full"  # the most that is recorded of calls that the gateway makes for somebody
    metadata_only: bool = False  # what is not recorded is not shown while it is said either

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def options(given: str) -> Options:
    """The options from their JSON. Raises ValueError, naming what is wrong."""
    import msgspec  # who only writes them does without

    return msgspec.json.decode(given.encode(), type=Options)
