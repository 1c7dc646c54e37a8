"""What a Loki keeps, and what it refuses: its rules about labels, times and sizes, entry by entry.

A push is taken in part, as the real one does: what is good is kept even where something else in it is refused. Leaves
out HTTP.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_DIGITS = re.compile(r"-?[0-9]{1,19}")
HOUR = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Limits:
    """Loki's defaults. Ages are in nanoseconds, sizes in bytes."""

    labels: int = 15
    label_name: int = 1024
    label_value: int = 2048
    line: int = 262_144
    metadata: int = 64 << 10
    metadata_names: int = 128
    oldest: int = 7 * 24 * HOUR
    ahead: int = HOUR // 6
    window: int = HOUR  # how far behind the newest of its stream an entry may be


@dataclass(frozen=True, slots=True)
class Entry:
    """What a query gives back."""

    tenant: str
    labels: tuple[tuple[str, str], ...]
    ts_ns: int
    text: str
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def told(self, name: str) -> str:
        """A label or a piece of structured metadata, "" where there is none of that name."""
        return dict(self.labels).get(name, dict(self.metadata).get(name, ""))


class Refused(Exception):
    """Why a push, or an entry in it, is not taken. Status 400."""


@dataclass(slots=True)
class _Stream:
    newest: int = 0
    entries: dict[tuple[int, str], Entry] = field(default_factory=dict)


@dataclass
class Store:
    """Thread-safe. `now` is nanoseconds since 1970."""

    limits: Limits = field(default_factory=Limits)
    now: Callable[[], int] = time.time_ns
    accepted: int = 0  # entries that were new
    duplicates: int = 0  # of the same stream, time and line
    refused: int = 0  # entries

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[tuple[str, tuple[tuple[str, str], ...]], _Stream] = {}

    def push(self, tenant: str, body: bytes) -> tuple[int, list[str]]:
        """Keep what is good: how many entries there were, and why some were refused.

        Raises Refused where the body itself is none: then nothing of it is kept.
        """
        streams = _decoded(body)
        troubles: list[str] = []
        with self._lock:
            for labels, values in streams:
                try:
                    self._check_labels(labels)
                except Refused as error:
                    self.refused += len(values)
                    troubles += [str(error)] * len(values)
                    continue
                stream = self._streams.setdefault((tenant, labels), _Stream())
                for ts, line, metadata in values:
                    try:
                        self._check(ts, line, metadata, stream)
                    except Refused as error:
                        self.refused += 1
                        troubles.append(f"{error}, stream: {dict(labels)}")
                    else:
                        self._keep(stream, Entry(tenant, labels, ts, line, metadata))
        return sum(len(values) for _, values in streams), troubles

    def _keep(self, stream: _Stream, entry: Entry) -> None:
        if stream.entries.setdefault((entry.ts_ns, entry.text), entry) is not entry:
            self.duplicates += 1
        else:
            self.accepted += 1
        stream.newest = max(stream.newest, entry.ts_ns)

    def _check_labels(self, labels: tuple[tuple[str, str], ...]) -> None:
        limits = self.limits
        if len(labels) > limits.labels:
            raise Refused(f"stream {dict(labels)} has {len(labels)} label names; limit {limits.labels}")
        for name, value in labels:
            if len(name.encode()) > limits.label_name:
                raise Refused(f"label name too long: {name!r}")
            if len(value.encode()) > limits.label_value:
                raise Refused(f"label value too long: {name!r}")

    def _check(self, ts: int, line: str, metadata: tuple[tuple[str, str], ...], stream: _Stream) -> None:
        limits, now = self.limits, self.now()
        size = len(line.encode())
        if size > limits.line:
            raise Refused(f"Max entry size '{limits.line}' bytes exceeded, entry of '{size}' bytes")
        if ts < now - limits.oldest:
            oldest = _rfc3339(now - limits.oldest)
            raise Refused(f"entry has timestamp too old: {_rfc3339(ts)}, oldest acceptable timestamp is: {oldest}")
        if ts > now + limits.ahead:
            raise Refused(f"entry with timestamp {ts} ignored, reason: 'timestamp too new'")
        if ts < stream.newest - limits.window:
            raise Refused(f"entry with timestamp {ts} ignored, reason: 'entry too far behind'")
        if len(metadata) > limits.metadata_names:
            raise Refused(f"structured metadata has {len(metadata)} names; limit {limits.metadata_names}")
        if sum(len(name.encode()) + len(value.encode()) for name, value in metadata) > limits.metadata:
            raise Refused(f"structured metadata is larger than {limits.metadata} bytes")

    def entries(self, tenant: str | None = None, **labels: str) -> list[Entry]:
        """Those whose stream has all of these labels, oldest first; of every tenant where none is named."""
        wanted = labels.items()
        with self._lock:
            found = [
                entry
                for (owner, names), stream in self._streams.items()
                if tenant in (None, owner) and wanted <= dict(names).items()
                for entry in stream.entries.values()
            ]
        return sorted(found, key=lambda entry: entry.ts_ns)

    def count(self) -> int:
        with self._lock:
            return sum(len(stream.entries) for stream in self._streams.values())

    def clear(self) -> None:
        """As if it had just been installed."""
        with self._lock:
            self._streams.clear()
            self.accepted = self.duplicates = self.refused = 0


def _rfc3339(ns: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 10**9))


Value = tuple[int, str, tuple[tuple[str, str], ...]]


def _decoded(body: bytes) -> list[tuple[tuple[tuple[str, str], ...], list[Value]]]:
    """The streams of a push with their values. What is of a wrong type spoils it all, as in the real one."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"couldn't parse push request: {error}") from error
    if not isinstance(told, dict) or not isinstance(told.get("streams"), list):
        raise Refused("couldn't parse push request: no streams")
    return [(_pairs(_object(one).get("stream"), "label"), list(_values(_object(one)))) for one in told["streams"]]


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"couldn't parse push request: {type(value).__name__} where an object belongs")
    return value


def _pairs(given: Any, what: str) -> tuple[tuple[str, str], ...]:
    """Names and values, sorted; an empty value is as good as none."""
    for name, value in _object(given).items():
        if not _LABEL.fullmatch(name):
            raise Refused(f"error parsing labels: {what} name {name!r} is not valid")
        if not isinstance(value, str):
            raise Refused(f"couldn't parse push request: {what} {name!r} is no string")
    return tuple(sorted((name, value) for name, value in given.items() if value))


def _values(stream: dict[str, Any]) -> Iterator[Value]:
    values = stream.get("values")
    if not isinstance(values, list):
        raise Refused("couldn't parse push request: no values")
    for value in values:
        if not isinstance(value, list) or len(value) not in (2, 3):
            raise Refused("couldn't parse push request: a value is [time, line] or [time, line, metadata]")
        ts, line = value[:2]
        if not isinstance(ts, str) or not _DIGITS.fullmatch(ts):
            raise Refused(f"couldn't parse push request: time {ts!r} is no string of digits")
        if not isinstance(line, str):
            raise Refused("couldn't parse push request: a line is no string")
        yield int(ts), line, _pairs(value[2], "structured metadata") if len(value) == 3 else ()
