"""Finds secrets in logs that were written before redaction, without it, or by other programs. Tells where, never what.

Leaves out what a secret is (`records.secrets`) and removing it: logs are the user's to delete.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from llm_proxy import paths
from llm_proxy.errors import StateUnusable
from llm_proxy.keeper.redact import NUMBERS, Numbers
from llm_proxy.records.redaction import Redactor
from llm_proxy.sinks import log_reader, session_jsonl

SUFFIXES = (".jsonl", ".jsonl.zst", ".json", ".csv", ".log", ".txt")


class Found(NamedTuple):
    """`times` one secret in one line (from 1). `fingerprint`: 8 hex digits, the same for the same secret."""

    file: str
    line: int
    kind: str
    times: int
    fingerprint: str


def scan(
    path: Path, own: Iterable[tuple[str, str]], looked_at: Callable[[str, str], None] = lambda file, trouble: None
) -> Iterator[Found]:
    """What is in a file, or in all files with one of SUFFIXES below a folder; links are not followed.

    `looked_at` is told each file and why it could not be read to its end, "" where it could. Raises StateUnusable.
    """
    finder = _Finder(own)
    for file in [path] if path.is_file() else _files(path):
        trouble = ""
        try:
            for number, line in enumerate(_lines(file), 1):
                for (kind, fingerprint), count in sorted(finder.look(line).items()):
                    yield Found(str(file), number, kind, count, fingerprint)
        except OSError as error:
            trouble = error.strerror or str(error)
        looked_at(str(file), trouble)


class _Finder:
    """The redactor, with an eye on what it takes out."""

    def __init__(self, own: Iterable[tuple[str, str]]) -> None:
        self._numbers = Numbers(Path(paths.state_folder(), NUMBERS))
        self._redactor = Redactor(own, self._number)
        self._seen: Counter[tuple[str, str]] = Counter()

    def look(self, line: bytes) -> Counter[tuple[str, str]]:
        """How often each (kind, fingerprint) stands in a line."""
        self._seen = Counter()
        try:
            entry = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            entry = None
        if isinstance(entry, dict):  # first what only an entry shows: secrets in pieces
            try:
                line = session_jsonl.line(self._redactor.entry(entry))
            except (AttributeError, TypeError, ValueError):  # no entry of ours
                self._seen = Counter()
        self._redactor.text(line.decode("utf-8", "replace"))
        return self._seen

    def _number(self, kind: str, secret: str) -> int:
        try:
            digest = self._numbers.digest(kind, secret)
        except (OSError, sqlite3.Error) as error:
            raise StateUnusable(f"the key that fingerprints are made with cannot be had: {error}") from error
        self._seen[kind, digest[:4].hex()] += 1
        return 0


def _lines(file: Path) -> Iterator[bytes]:
    with log_reader.opened(file) as lines:
        while line := lines.readline(log_reader.LONGEST_LINE):
            yield line


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(here, name)
            if name.endswith(SUFFIXES) and not path.is_symlink():
                yield path
