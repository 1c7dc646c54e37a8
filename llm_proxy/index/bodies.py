"""Where the entries of a shared record are read: in this machine's logs, from the machine that has them, or in storage.

A machine is asked for lines of its own logs with a key that it has published in the shared index: whoever reads that
index may read what it tells of. Leaves out who may see which call (`record`) and how a machine answers (`explorer`).
"""

from __future__ import annotations

import hmac
import http.client
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode, urlsplit

from llm_proxy.index.queries import Place
from llm_proxy.records.understood import Entry
from llm_proxy.sinks import log_reader

PATH = "/llm-proxy/entry"  # of another machine's explorer
_PATIENCE, _LEAST = 5.0, 0.05  # seconds for a machine to answer
_FAIR = 0.5  # seconds: who was given less and did not answer may be asked again at once
_AVOIDED = 30.0  # seconds in which a machine that did not answer is not asked again
_REMEMBERED = 30.0  # seconds for which the machines' addresses hold


class Bodies(Protocol):
    """Something that has entries. Whoever must wait for them does so until a moment (monotonic seconds; None: as long
    as it takes). Raises OSError, and ValueError where no entry stands there.
    """

    def entry(self, place: Place, until: float | None = None) -> Entry: ...


class Address(NamedTuple):
    """Where a machine's explorer is asked ("": nowhere), and with what."""

    url: str
    key: str


@dataclass(frozen=True, slots=True)
class Local:
    """A log folder of this machine."""

    logs: Path

    def entry(self, place: Place, until: float | None = None) -> Entry:
        return log_reader.entry_at(self.logs / place.file, place.offset, place.length)


def key_of(secret: str) -> str:
    """What a machine publishes: it opens entries alone, and tells nothing of the secret."""
    return hmac.new(secret.encode(), b"llm-proxy entries", "sha256").hexdigest()


@dataclass(slots=True)
class Fleet:
    """The machines of a shared index; places begin with a machine's name. For any number of threads."""

    machine: str
    own: Bodies
    addresses: Callable[[], Mapping[str, Address]]
    storage: Bodies | None = None
    _known: tuple[Mapping[str, Address], float] = ({}, 0.0)  # and until when
    _avoided: dict[str, float] = field(default_factory=dict)

    def entry(self, place: Place, until: float | None = None) -> Entry:
        machine, _, file = place.file.partition("/")
        if machine == self.machine:
            try:
                return self.own.entry(place._replace(file=file))
            except (OSError, ValueError):
                if self.storage is None:
                    raise
        elif (address := self._address(machine)) is not None:
            try:
                return asked_of(address, place._replace(file=file), patience := _patience(until))
            except OSError as error:
                if not isinstance(error, TimeoutError) or patience >= _FAIR:
                    self._avoided[machine] = time.monotonic() + _AVOIDED
                if self.storage is None:
                    raise
        if self.storage is None:
            raise OSError(f"{file} is on the machine {machine}")
        return self.storage.entry(place)

    def _address(self, machine: str) -> Address | None:
        """None where it has none, or did not answer a moment ago."""
        now = time.monotonic()
        if self._avoided.get(machine, 0.0) > now:
            return None
        known, until = self._known
        if now > until:
            known = self.addresses()  # nobody waits for a thread that does
            self._known = known, time.monotonic() + _REMEMBERED
        found = known.get(machine)
        return found if found is not None and found.url else None


def _patience(until: float | None) -> float:
    """Half of what is left, so that the page can still be made without what does not come."""
    return _PATIENCE if until is None else min(_PATIENCE, max(_LEAST, (until - time.monotonic()) / 2))


def asked_of(address: Address, place: Place, patience: float = _PATIENCE) -> Entry:
    """A line of another machine's logs. Raises OSError; ValueError where what comes is no entry."""
    parts = urlsplit(address.url)
    kinds: dict[str, type[http.client.HTTPConnection]] = {"https": http.client.HTTPSConnection}
    link = kinds.get(parts.scheme, http.client.HTTPConnection)(parts.hostname or "", parts.port, timeout=patience)
    query = urlencode({"file": place.file, "offset": place.offset, "length": place.length})
    headers = {"Authorization": f"Bearer {address.key}"}
    try:
        link.request("GET", f"{parts.path.rstrip('/')}{PATH}?{query}", headers=headers)
        answer = link.getresponse()
        data = answer.read(place.length + 1)
    except http.client.HTTPException as error:
        raise OSError(f"{parts.netloc} does not answer as a machine of ours: {error!r}") from error
    finally:
        link.close()
    if answer.status == 404:
        raise ValueError(f"{parts.netloc} has no entry at {place.offset} of {place.file}")
    if answer.status != 200:
        raise OSError(f"{parts.netloc} answers {answer.status}")
    return _read(data, place)


class Storage:
    """Copies of log files in S3-compatible storage, by their names (`lanes.s3`). For any number of threads."""

    def __init__(self, client: Callable[[], Any], bucket: str, prefix: str) -> None:
        """`client` makes a client of botocore's, when it is first needed."""
        self._make = client
        self._client: Any = None
        self._bucket = bucket
        self._prefix = prefix
        self._lock = threading.Lock()

    def entry(self, place: Place, until: float | None = None) -> Entry:
        from botocore.exceptions import BotoCoreError, ClientError

        with self._lock:
            if self._client is None:
                self._client = self._make()
        span = f"bytes={place.offset}-{place.offset + place.length - 1}"
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=object_of(self._prefix, place.file), Range=span)
            data = found["Body"].read()
        except (BotoCoreError, ClientError) as error:
            raise OSError(f"{place.file} cannot be had from storage: {error}") from error
        return _read(data, place)


def object_of(prefix: str, file: str) -> str:
    """The object of a file. Objects hold plain lines, those of what is compressed too, which may have a plain part
    beside it that is the newer one.
    """
    name = file.removesuffix(log_reader.COMPRESSED) + ".zst.jsonl" if file.endswith(log_reader.COMPRESSED) else file
    return f"{prefix.strip('/')}/{name}".lstrip("/")


def _read(data: bytes, place: Place) -> Entry:
    entry = log_reader.entry_of(data) if len(data) == place.length else None
    if entry is None:
        raise ValueError(f"no entry stands at {place.offset} of {place.file}")
    return entry
