"""What an explorer is told: one JSON argument from the service, because an explorer reads no settings.

Leaves out where the values come from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace

SHARED = "LLM_PROXY_SHARED"  # the environment variable: command lines are for everybody on the machine to read


@dataclass(frozen=True, slots=True)
class Shared:
    """The record of all machines: its index's `url`, this `machine`'s name there, and the fields of the storage's
    `sinks.s3_client.Bucket`, empty where there is none.
    """

    url: str
    machine: str
    bucket: dict[str, str] = field(default_factory=dict)


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
    shared: Shared | None = field(default=None, repr=False)  # None: this machine's own record is shown

    def to_json(self) -> str:
        """All but what has passwords."""
        return json.dumps(asdict(replace(self, shared=None)))

    def variables(self) -> dict[str, str]:
        """The rest, for the environment."""
        return {SHARED: json.dumps(asdict(self.shared))} if self.shared is not None else {}


def options(given: str, shared: str = "") -> Options:
    """The options from their JSON. Raises ValueError, naming what is wrong."""
    import msgspec  # who only writes them does without

    read = msgspec.json.decode(given.encode(), type=Options)
    return replace(read, shared=msgspec.json.decode(shared.encode(), type=Shared)) if shared else read
