"""The keeper's redaction: which calls it holds for, and the numbers that tell one secret from another.

A number belongs to the HMAC of a secret under a key that is made here and stays in the state folder: the same secret is
`<AWS_KEY#3>` in all logs that are written with this state, and itself stands nowhere. Leaves out what a secret is and
how it is taken out (`records.secrets`, `records.redaction`).
"""

from __future__ import annotations

import hmac
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from llm_proxy.keeper.options import Options
from llm_proxy.keeper.projects import Client
from llm_proxy.records.privacy import PERSONAL
from llm_proxy.records.redaction import Entry, Redactor, without_content

NUMBERS = "redaction.db"
BUSY_TIMEOUT = 2.0  # seconds
_REMEMBERED = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS key (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (
    kind TEXT NOT NULL, digest BLOB NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (kind, digest)
) WITHOUT ROWID;
"""


class Redaction:
    """What is done to every entry before anybody else sees it. `trouble` is the last of `failures`."""

    def __init__(self, options: Options, state: Path) -> None:
        self.failures = 0
        self.trouble = ""
        self._on = options.redact
        self._off_for = options.redact_off_for
        number = Numbers(state / NUMBERS).number
        self._redactor = Redactor(options.patterns, number)
        self.personal = Redactor((*options.patterns, *PERSONAL), number)  # for who has asked for it, whatever is off

    def entry(self, entry: Entry, client: Client | None = None) -> Entry:
        """The entry without secrets. Never raises: where it cannot be looked through, its content is left out."""
        if not self._on or (self._off_for and client is not None and is_off(self._off_for, client)):
            return entry
        return self.by(self._redactor.entry, entry)

    def by(self, redact: Callable[[Entry], Entry], entry: Entry) -> Entry:
        try:
            return redact(entry)
        except Exception as error:  # a bug of ours, or a pattern's: what may hold secrets is not written in clear
            self.failures += 1
            self.trouble = f"redaction failed: {error!r}"
            return without_content(entry, "redaction_failed")


def is_off(off_for: Iterable[str], client: Client) -> bool:
    """Whether the client's project is one of these: a name or a pattern of names, or with a slash, a folder."""
    folders = [str(one) for one in (PurePosixPath(client.cwd), *PurePosixPath(client.cwd).parents, client.root)]
    return any(
        any(fnmatchcase(folder, pattern.rstrip("/")) for folder in folders if folder)
        if "/" in pattern
        else fnmatchcase(client.project, pattern)
        for pattern in off_for
    )


class Numbers:
    """The numbers of the secrets seen so far, for all keepers of a state; the file is made at the first secret."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._key = b""
        self._known: dict[tuple[str, bytes], int] = {}

    def number(self, kind: str, secret: str) -> int:
        """From 1, per kind; 0 where none can be kept: rather none than one that will be another's."""
        try:
            db = self._open()
            digest = self.digest(kind, secret)
            number = self._known.get((kind, digest)) or _number(db, kind, digest)
        except (OSError, sqlite3.Error):
            return 0
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[kind, digest] = number
        return number

    def digest(self, kind: str, secret: str) -> bytes:
        """16 bytes that tell nothing of the secret to anybody without the key. Raises OSError, sqlite3.Error."""
        self._open()
        return hmac.digest(self._key, f"{kind}\0{secret}".encode("utf-8", "surrogatepass"), "sha256")[:16]

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its sidecar files the mode of the database.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
            try:
                db.executescript(_SCHEMA)
                db.execute("INSERT OR IGNORE INTO key VALUES (1, ?)", (secrets.token_bytes(32),))
                (self._key,) = db.execute("SELECT secret FROM key").fetchone()
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db


def _number(db: sqlite3.Connection, kind: str, digest: bytes) -> int:
    """One statement is one transaction, on disk before the first line that tells the number."""
    query = "INSERT OR IGNORE INTO numbers SELECT ?1, ?2, coalesce(max(number), 0) + 1 FROM numbers WHERE kind = ?1"
    db.execute(query, (kind, digest))
    row = db.execute("SELECT number FROM numbers WHERE kind = ? AND digest = ?", (kind, digest)).fetchone()
    return int(row[0])
