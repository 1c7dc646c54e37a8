"""Copies session files that rest to S3-compatible storage, and takes away there what is deleted here.

An object holds a file's plain lines, so that one entry of it can be had alone. Leaves out how storage is spoken to
(`sinks.s3_client`) and who reads it (`index.bodies`).
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple

from llm_proxy.formats.call import Call
from llm_proxy.index.bodies import object_of
from llm_proxy.lanes.deleting import Gone
from llm_proxy.lanes.sink import Refused, Unusable
from llm_proxy.sinks import log_reader, s3_client

PAUSE = 15.0  # seconds between two looks at all files
_SLICE = 5.0  # seconds of copying, before something else has its turn
_TABLE = """
    CREATE TABLE IF NOT EXISTS copied (
        bucket TEXT, object TEXT, inode INTEGER, size INTEGER, changed INTEGER, PRIMARY KEY (bucket, object)
    )
"""


class _Seen(NamedTuple):
    """By what a file is known to be as it was."""

    inode: int
    size: int
    changed: int  # ns


class S3:
    """`options`: `bucket` (fields of `s3_client.Bucket`), `machine`, `after` (seconds a file must rest), `state`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._folder = folder
        self._bucket = s3_client.Bucket(**options["bucket"])
        self._place = f"{self._bucket.name}|{self._bucket.endpoint}"
        self._prefix = f"{self._bucket.prefix}/{options['machine']}"
        self._after = float(options["after"])
        self._ledger = Path(options["state"], "copies.db")
        self._next = 0.0
        self._versions = False  # whether the bucket keeps what is overwritten or deleted, as far as it has said
        self._unreadable: set[str] = set()  # objects
        self.counted = {"copied": 0, "deleted": 0, "unreadable": 0}
        try:
            self._client = s3_client.client(self._bucket)
        except ImportError as error:
            raise Unusable(f"bodies.s3_bucket needs botocore: install llm-proxy[bedrock] ({error})") from error
        os.close(os.open(self._ledger, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))

    def write(self, calls: Sequence[Call]) -> None:
        """Files are copied when they rest."""

    def tend(self) -> None:
        """A slice of what is to be copied and deleted. Raises Refused, OSError."""
        now = time.monotonic()
        if now < self._next:
            return
        with closing(sqlite3.connect(self._ledger, timeout=30, isolation_level=None)) as ledger:
            ledger.execute(_TABLE)
            if self._bring(ledger, now + _SLICE):
                self._next = time.monotonic() + PAUSE

    def forget(self, gone: Gone) -> str:
        """Copies of what has changed or gone here go; those of files that are still there come again when they rest."""
        with closing(sqlite3.connect(self._ledger, timeout=30, isolation_level=None)) as ledger:
            ledger.execute(_TABLE)
            present = self._present()

            def gone_from(place: str) -> list[str]:
                known = self._known(ledger, place).items()
                return [one for one, seen in known if one not in present or self._look(present[one]) != seen]

            for name in gone_from(self._place):
                self._delete(ledger, name)
            places = (place for (place,) in ledger.execute("SELECT DISTINCT bucket FROM copied ORDER BY 1"))
            left = [
                "copies in the bucket {} of {}, where nothing is copied to any more".format(*_told(place))
                for place in [*places]
                if place != self._place and gone_from(place)
            ]
        if self._versions:
            left.append(f"older versions of copies in the bucket {self._bucket.name}, which keeps them")
        return "; ".join(left)

    def close(self) -> None:
        self._client.close()

    def _bring(self, ledger: sqlite3.Connection, deadline: float) -> bool:
        """Whether it came to the end."""
        known, present = self._known(ledger, self._place), self._present()
        resting = (time.time() - self._after) * 1e9
        for name, file in present.items():
            seen = self._look(file)
            if seen is None or seen == known.get(name) or seen.changed > resting:
                continue
            # Known before it is there: a copy that nobody knew of, after a kill, would outlive what it is of.
            ledger.execute("INSERT OR IGNORE INTO copied VALUES (?, ?, 0, 0, 0)", (self._place, name))
            if not self._could_copy(name, file):
                continue
            ledger.execute("INSERT OR REPLACE INTO copied VALUES (?, ?, ?, ?, ?)", (self._place, name, *seen))
            if time.monotonic() > deadline:
                return False
        self._unreadable &= present.keys()
        self.counted["unreadable"] = len(self._unreadable)
        # Behind the copies: what was compressed is there before its plain copy goes.
        for name in known.keys() - present.keys():
            self._delete(ledger, name)
            if time.monotonic() > deadline:
                return False
        return True

    def _known(self, ledger: sqlite3.Connection, place: str) -> dict[str, _Seen]:
        found = ledger.execute("SELECT object, inode, size, changed FROM copied WHERE bucket = ?", (place,))
        return {row[0]: _Seen(*row[1:]) for row in found}

    def _present(self) -> dict[str, str]:
        """File by object."""
        return {object_of(self._prefix, file): file for file in log_reader.files(self._folder)}

    def _look(self, file: str) -> _Seen | None:
        try:
            found = os.lstat(self._folder / file)
        except OSError:
            return None
        return _Seen(found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None

    def _delete(self, ledger: sqlite3.Connection, name: str) -> None:
        self._do(lambda: self._client.delete_object(Bucket=self._bucket.name, Key=name))
        ledger.execute("DELETE FROM copied WHERE bucket = ? AND object = ?", (self._place, name))
        self.counted["deleted"] += 1

    def _could_copy(self, name: str, file: str) -> bool:
        """One that cannot be read keeps none behind it from being copied; it is tried again at the next look."""
        try:
            self._copy(name, file)
        except OSError:
            self._unreadable.add(name)
            return False
        self._unreadable.discard(name)
        self.counted["copied"] += 1
        return True

    def _copy(self, name: str, file: str) -> None:
        with log_reader.opened(self._folder / file) as lines:
            size = _length(lines)
            self._do(
                lambda: self._client.put_object(
                    Bucket=self._bucket.name,
                    Key=name,
                    Body=lines,
                    ContentLength=size,
                    ContentType="application/x-ndjson",
                )
            )

    def _do(self, action: Any) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = action()
        except (BotoCoreError, ClientError) as error:
            raise Refused(f"storage does not take it: {error}") from error
        self._versions |= answer.get("VersionId", "null") != "null"


def _told(place: str) -> tuple[str, str]:
    """A bucket's name, and where it is."""
    name, _, endpoint = place.partition("|")
    return name, endpoint or "Amazon S3"


def _length(lines: IO[bytes]) -> int:
    """Of what can be read, decompressed or not."""
    size = lines.seek(0, os.SEEK_END)
    lines.seek(0)
    return size
