"""Fills the shared index in PostgreSQL with what this machine records.

Calls that come say which files have grown; now and then all files are looked at, because some are deleted, compressed
or written by other hands. While PostgreSQL is away nobody waits for it: files are read on when it is back. Leaves out
how rows are made (`index`).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_proxy.formats.call import Call
from llm_proxy.index.postgres_write import SharedIndexer
from llm_proxy.lanes.deleting import Gone
from llm_proxy.lanes.sink import Unusable

PAUSE = 30.0  # seconds between two looks at all files
ANNOUNCED = 300.0  # seconds between two notes of where this machine is
_SLICE = 2.0  # seconds of reading files, before calls have their turn


class SharedIndex:
    """`options`: `url` of the database, this `machine`'s name, its `address` for others, the `key` they bring, and the
    `state` folder, by which a machine is known again that has another name now.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        if find_spec("asyncpg") is None:
            raise Unusable("index.database_url needs asyncpg: install llm-proxy[gateway]")
        try:
            self._indexer = SharedIndexer(options["url"], options["machine"], folder, _id(options))
        except ValueError as error:
            raise Unusable(f"index.machine: {error}") from error
        self._address, self._key = str(options.get("address", "")), str(options.get("key", ""))
        self._next = self._announced = 0.0
        self.counted = {"files": 0}

    def write(self, calls: Sequence[Call]) -> None:
        files = dict.fromkeys(call.row.response.file for call in calls if call.row.response is not None)
        for file in files:
            self._indexer.catch_up(file)
        self.counted["files"] += len(files)

    def tend(self) -> None:
        """A slice of all files. Raises OSError."""
        now = time.monotonic()
        if now < self._next:
            return
        if now >= self._announced:
            self._indexer.announce(self._address, self._key, time.time())
            self._announced = now + ANNOUNCED
        if self._indexer.catch_up_all(lambda: time.monotonic() < now + _SLICE):
            self._next = time.monotonic() + PAUSE

    def forget(self, gone: Gone) -> str:
        """The session logs are rid of it: their rows go with the lines. Raises OSError."""
        self._indexer.fill()
        return ""

    def close(self) -> None:
        self._indexer.close()


def _id(options: Mapping[str, Any]) -> str:
    """Made once, for good."""
    if not options.get("state"):
        return ""
    path = Path(options["state"], "shared-index.id")
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(16))
    return path.read_text(encoding="ascii", errors="replace").strip()
