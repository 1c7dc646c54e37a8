"""The Loki sink: pushes each call's lines, at least once and oldest first.

A push that may or may not have arrived is sent again with the same bytes, and Loki keeps one. What Loki will never
take is found by halving and put aside; everything else is tried again, as long as it takes. Leaves out what lines
say (`formats.loki`) and how bytes get there (`posting`).
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llm_proxy.formats import loki as format
from llm_proxy.formats.call import Call
from llm_proxy.lanes.posting import Answer, Poster, basic
from llm_proxy.lanes.sink import Desk, Pace, Refused, Unusable

_LEVEL = 4  # of gzip: half the time of 6, a few percent larger
_LINES_OF_A_CALL = 6  # as a guess: an answer with a tool call and its result
_SLOWLY = 30.0  # seconds between attempts while something needs a person
_TOO_OLD = re.compile(r"timestamp too old.{0,200}?oldest acceptable timestamp is: (\S{10,40})", re.DOTALL)

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Plan:
    """Options, read. `octets` of a push before compression, `gather` in seconds."""

    poster: Poster
    common: format.Common
    entries: int
    octets: int
    gather: float
    retry_max: int
    gzip: bool
    secrets: tuple[str, ...]  # never shown, even where a server repeats them


def plan(options: Mapping[str, Any]) -> Plan:
    """Raises Unusable."""
    url = str(options.get("url") or "")
    if not url:
        raise Unusable("nothing is sent to Loki: loki.url is empty, and must be a URL such as http://127.0.0.1:3100")
    token, user, password = (str(options.get(name) or "") for name in ("auth_token", "username", "password"))
    if token and (user or password):
        raise Unusable(
            "nothing is sent to Loki: a request brings either loki.auth_token or a user's name and password "
            "(loki.username, loki.password, or in loki.url), and both are given"
        )
    headers = {"Content-Type": "application/json", "User-Agent": "llm-proxy"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    elif user or password:
        headers["Authorization"] = basic(user, password)
    if tenant := options.get("tenant"):
        headers["X-Scope-OrgID"] = str(tenant)
    secrets = (token, password, headers.get("Authorization", "").rpartition(" ")[2])
    return Plan(
        Poster(url, headers, str(options.get("ca_file") or "")),
        format.Common(str(options["environment"]), str(options["machine"]), int(options["max_line"])),
        entries=int(options["batch_size"]),
        octets=int(options["max_batch_bytes"]),
        gather=float(options["batch_wait"]),
        retry_max=int(options["retry_max"]),
        gzip=bool(options["use_gzip"]),
        secrets=tuple(secret for secret in secrets if secret),
    )


class Entry(NamedTuple):
    """A line as it is sent. `labels` and `value` are JSON."""

    labels: bytes
    ts_ns: int
    value: bytes
    call: Call

    @property
    def size(self) -> int:
        return len(self.value) + 1


def entries(lines: Sequence[format.Line], call: Call) -> list[Entry]:
    return [
        Entry(_encode(dict(line.labels)), line.ts_ns, _encode((str(line.ts_ns), line.text, dict(line.metadata))), call)
        for line in lines
    ]


class Rejected(NamedTuple):
    """An entry that Loki will not take, and why. `too_old`: because of `reject_old_samples_max_age`."""

    entry: Entry
    why: str
    too_old: bool


class Pusher:
    """Sends entries; used by the lane and by the backfill."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._octets = plan.octets
        self._attempts = 0  # at entries of which none was taken, while none has ever been
        self.counted = {"entries": 0, "pushes": 0, "bytes": 0}

    def fits(self, number: int, octets: int) -> bool:
        """Whether so many entries of that size go in one push."""
        return number <= self._plan.entries and octets <= self._octets

    def push(self, given: Sequence[Entry]) -> list[Rejected]:
        """Send all; those that Loki will never take come back. Raises Refused and OSError: send all of them again."""
        rejected: list[Rejected] = []
        waiting = self._parts(given)
        while waiting:
            part = waiting.pop(0)
            answer = self._post(part)
            if 200 <= answer.status < 300:
                self.counted["entries"] += len(part)
            elif answer.status in (400, 413, 422):
                again, bad = self._judged(part, answer)
                rejected += bad
                waiting[:0] = [half for half in again if half]
            else:
                raise self._refusal(answer)
        self._doubt(given, rejected)
        return rejected

    def _doubt(self, given: Sequence[Entry], rejected: Sequence[Rejected]) -> None:
        """Where nothing at all is taken the address is more likely to be wrong than every entry."""
        if not rejected or len(rejected) < len(given) or self.counted["entries"] or rejected[0].too_old:
            return
        self._attempts += 1
        if self._attempts < self._plan.retry_max:
            raise Refused(rejected[0].why, after=_SLOWLY, lasting=True)
        self._attempts = 0

    def close(self) -> None:
        self._plan.poster.close()

    def _parts(self, given: Sequence[Entry]) -> list[list[Entry]]:
        """As many as a push may hold each, in order."""
        parts: list[list[Entry]] = []
        size = 0
        for entry in given:
            size += entry.size
            if not parts or not self.fits(len(parts[-1]) + 1, size):
                parts.append([])
                size = entry.size
            parts[-1].append(entry)
        return parts

    def _post(self, part: Sequence[Entry]) -> Answer:
        streams: dict[bytes, list[bytes]] = {}
        for entry in part:
            streams.setdefault(entry.labels, []).append(entry.value)
        told = (
            b'{"stream":' + labels + b',"values":[' + b",".join(values) + b"]}" for labels, values in streams.items()
        )
        body = b'{"streams":[' + b",".join(told) + b"]}"
        headers = {}
        if self._plan.gzip:
            body = gzip.compress(body, _LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self.counted["pushes"] += 1
        self.counted["bytes"] += len(body)
        return self._plan.poster.post(body, headers)

    def _judged(self, part: list[Entry], answer: Answer) -> tuple[list[list[Entry]], list[Rejected]]:
        """What of a refused push to send again, in parts, and what never."""
        why = self._said(answer)
        if answer.status == 413 and len(part) > 1:
            self._octets = min(self._octets, sum(entry.size for entry in part) // 2)
        elif (oldest := _oldest(answer.text)) and (late := [one for one in part if one.ts_ns < oldest]):
            return [[one for one in part if one.ts_ns >= oldest]], [Rejected(one, why, True) for one in late]
        if len(part) == 1:
            return [], [Rejected(part[0], why, False)]
        middle = len(part) // 2
        return [part[:middle], part[middle:]], []

    def _refusal(self, answer: Answer) -> Refused:
        passing = answer.status == 429 or answer.status == 408 or answer.status >= 500
        after = answer.after if passing else max(_SLOWLY, answer.after)
        return Refused(self._said(answer), after=after, lasting=not passing)

    def _said(self, answer: Answer) -> str:
        """For people and logs: no more than a line, and nothing secret, whatever the server repeats."""
        text = answer.text
        for secret in self._plan.secrets:
            text = text.replace(secret, "[masked]")
        text = "".join(one if one.isprintable() else " " for one in text)[:500]
        return f"Loki answered {answer.status}" + (f": {text}" if text else "")


def _oldest(text: str) -> int:
    """The oldest timestamp that Loki takes at all, where it says that some are older; else 0."""
    found = _TOO_OLD.search(text)
    if not found:
        return 0
    try:
        return int(datetime.fromisoformat(found[1].rstrip(",;.'\"")).timestamp()) * 10**9
    except (ValueError, OverflowError):
        return 0


class Loki:
    """`options`: those of `plan`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._plan = plan(options)
        self._pusher = Pusher(self._plan)
        self.counted = self._pusher.counted
        self.pace = Pace(
            calls=max(1, self._plan.entries // _LINES_OF_A_CALL),
            octets=self._plan.octets,
            gather=self._plan.gather,
            tolerated=max(0, self._plan.retry_max - 1),
        )
        self._desk: Desk
        self.ledger: dict[str, float] = {}

    def resume(self, ledger: dict[str, Any]) -> None:
        """`since`: from when on calls are sent as they end; what is older is the backfill's."""
        self.ledger = {"since": time.time()} | ledger

    def attend(self, desk: Desk) -> None:
        self._desk = desk

    def write(self, calls: Sequence[Call]) -> int:
        """As many of the calls as one push holds."""
        batch: list[Entry] = []
        size = taken = 0
        for call in calls:
            made, track = self._told(call)
            size += sum(entry.size for entry in made)
            if batch and not self._pusher.fits(len(batch) + len(made), size):
                break
            batch += made
            taken += 1
            self._desk.keep(call.row.session, track)
        for entry, why, _ in self._pusher.push(batch):
            self._desk.put_aside(entry.call, why, {"stream": msgspec.json.decode(entry.labels), "ts": str(entry.ts_ns)})
        return taken

    def close(self) -> None:
        self._pusher.close()

    def _told(self, call: Call) -> tuple[list[Entry], str]:
        """A call's entries, and what its session's next call builds upon."""
        known = self._desk.note(call.row.session)
        lines, track = format.lines(call, format.Track.from_json(known) if known else format.Track(), self._plan.common)
        return entries(lines, call), track.to_json()
