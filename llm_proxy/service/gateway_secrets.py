"""The gateway's two secrets: from the environment, else from a 0600 file that the first start makes.

Without `encryption_key` nobody can read the provider keys in the store any more, so nothing ever overwrites it; a
rotation keeps the ones before. Leaves out what they are used for (`gateway.sealing`, `gateway.session_tokens`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets as random
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from llm_proxy import paths
from llm_proxy.errors import ConfigError, StateUnusable
from llm_proxy.gateway.options import Secrets
from llm_proxy.service import state

FILE = "secrets.json"
_LARGEST = 65_536  # bytes


def folder() -> str:
    return f"{paths.data_folder()}/gateway"


def secrets(database_url: str, redis_url: str, environ: Mapping[str, str]) -> Secrets:
    """What is missing in both places is made. Raises ConfigError, StateUnusable."""
    with _file() as kept:
        for name in ("jwt_secret", "encryption_key"):
            if not environ.get(name.upper()):
                kept.setdefault(name, random.token_urlsafe(48))
        told = environ.get("OLD_ENCRYPTION_KEYS", "")
        old = told.split(",") if told else kept.get("old_encryption_keys", ())
        return Secrets(
            jwt_secret=environ.get("JWT_SECRET") or str(kept["jwt_secret"]),
            encryption_key=environ.get("ENCRYPTION_KEY") or str(kept["encryption_key"]),
            database_url=database_url,
            redis_url=redis_url,
            old_encryption_keys=tuple(str(key) for key in old),
        )


def renew_encryption_key(environ: Mapping[str, str]) -> bool:
    """A new one in the file, the one before kept beside it. False where the environment says which one it is.

    Raises ConfigError, StateUnusable.
    """
    if environ.get("ENCRYPTION_KEY"):
        return False
    with _file() as kept:
        if "encryption_key" in kept:
            kept["old_encryption_keys"] = [kept["encryption_key"], *kept.get("old_encryption_keys", ())]
        kept["encryption_key"] = random.token_urlsafe(48)
    return True


def forget_old_encryption_keys() -> None:
    """Once nothing in the store needs them any more. Raises ConfigError, StateUnusable."""
    with _file() as kept:
        kept.pop("old_encryption_keys", None)


@contextlib.contextmanager
def _file() -> Iterator[dict[str, Any]]:
    """What it holds, to be changed; written at the end where it was. Two that start at once make one key."""
    where = folder()
    try:
        os.makedirs(where, 0o700, exist_ok=True)  # noqa: PTH103
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StateUnusable(f"{where} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        kept = _read(f"{where}/{FILE}")
        before = json.dumps(kept)
        yield kept
        if json.dumps(kept) != before:
            state.write(where, FILE, json.dumps(kept, indent=2) + "\n")
    finally:
        os.close(fd)


def _read(path: str) -> dict[str, Any]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StateUnusable(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(fd)
        raw = file.read(_LARGEST) if stat.S_ISREG(facts.st_mode) else b""
    if facts.st_mode & 0o077 or facts.st_uid != os.geteuid():
        raise ConfigError(f"{path} must be yours and 0600: what it holds opens every provider key in the store")
    try:
        kept = json.loads(raw)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); mend it: provider keys cannot be read without it") from None
    if not isinstance(kept, dict) or not all(isinstance(kept.get(name, ""), str) for name in _TEXTS):
        raise ConfigError(f"{path} must be a table with jwt_secret and encryption_key, each a text")
    return kept


_TEXTS = ("jwt_secret", "encryption_key")
