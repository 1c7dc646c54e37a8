"""What a gateway is told: one JSON argument from the service, because a gateway reads no settings; secrets beside it.

A command line is for everybody to read, so secrets come in the environment (`SECRETS`). Leaves out where the values
come from.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

SECRETS = "LLM_PROXY_GATEWAY_SECRETS"  # the environment variable that holds `Secrets` as JSON


@dataclass(frozen=True, slots=True)
class Options:
    """Paths are absolute, times in seconds. What is `allow`ed is what the proxy allows: `scheme://host[:port]`."""

    socket: str  # the Unix socket to serve on
    upstream: str  # the proxy's Unix socket for our calls
    state: str  # our own folder, 0700
    version: str = ""
    public_url: str = ""  # what clients are told; empty: what they came by
    hosts: tuple[str, ...] = ()  # names that pages may be asked by, besides this machine's own and that of `public_url`
    signup: str = "invite"  # open, invite or closed
    raw_models: bool = True  # whether models may be called by a provider's name for them, without an alias
    drop: bool = False  # what an API cannot say is left out where a caller does not choose, instead of refused
    rate_limit_minute: int = 0  # requests of one user, where he has no limit of his own; 0: no limit
    rate_limit_daily: int = 0
    privacy: str = "full"  # how much is kept of a user's conversations who has not chosen
    privacy_floor: str = "none"  # the least and the most that users may choose
    privacy_ceiling: str = "full"
    admin_sees: str = "metadata"  # what administrators see of others' conversations
    drain_delay: float = 0.0  # from the signal to stop, for how long new requests are still taken
    allow: tuple[str, ...] = ()
    bases: tuple[tuple[str, str], ...] = ()  # (provider, URL) in the place of the provider's own
    first_token_timeout: float = 120.0
    secrets_file: str = ""  # where a rotation leaves new encryption keys; empty: they come by the environment alone
    trusted_proxies: tuple[str, ...] = ()  # networks whose X-Forwarded-For is believed
    prices: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()  # (model, ((class, USD), ...))
    price_data: str = ""  # the stored list, "" for the one that came with the package
    logs: str = ""  # the log folder of the keeper that deletes, "" for whichever
    workers: tuple[str, ...] = ()  # the sockets of all processes of this machine, where there are several

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Secrets:
    """Never on a command line, in a log or in an answer. URLs may hold passwords."""

    jwt_secret: str = field(repr=False)
    encryption_key: str = field(repr=False)
    database_url: str = field(repr=False)
    redis_url: str = field(default="", repr=False)
    old_encryption_keys: tuple[str, ...] = field(default=(), repr=False)  # rows written under them are still read

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def options(given: str) -> Options:
    """The options from their JSON. Raises ValueError, naming what is wrong."""
    import msgspec  # who only writes them does without

    return msgspec.json.decode(given.encode(), type=Options)


def secrets() -> Secrets:
    """Those in our environment, which they leave. Raises KeyError, ValueError."""
    import msgspec

    return msgspec.json.decode(os.environ.pop(SECRETS).encode(), type=Secrets)


def encryption_keys(file: str) -> tuple[str, ...]:
    """Those in the file of secrets now, the current one first; none where it cannot be read."""
    try:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123
            kept = json.load(opened)
        found = (kept["encryption_key"], *kept.get("old_encryption_keys", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    return found if all(isinstance(key, str) and key.strip() for key in found) else ()
