"""`export`, `stats` and `view` with `--recordings DIR`: a folder of Taco's recordings, asked as Taco is asked.

Days are those of this machine's time zone, as in the names of the files. Credentials are masked on the screen, and not
in exports, which are the lines as they stand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_proxy.cli import filters, show, usage
from llm_proxy.cli.export import output
from llm_proxy.cli.view import bodies
from llm_proxy.errors import NotFound
from llm_proxy.formats.reading import taco
from llm_proxy.formats.reading.files import line_at, numbered
from llm_proxy.formats.reading.foreign import Found, Place, Unreadable, kept_id
from llm_proxy.sinks import session_jsonl

_SHOWN = 20  # candidates listed for an ambiguous prefix


class _Folder:
    """The recordings of a folder; `odd` counts lines that are none."""

    def __init__(self, path: str) -> None:
        """Raises NotFound."""
        self.odd = 0
        try:
            self._files = taco.files(Path(path))
        except OSError as error:
            raise NotFound(f"no recordings found in {path}: {error.strerror}") from None
        if not self._files:
            raise NotFound(f"no recordings found in {path}: its files would be named recordings-YYYY-MM-DD.jsonl")

    def __iter__(self) -> Iterator[tuple[taco.Seen, Place, bytes]]:
        """By days, as they stand in the files."""
        for file in self._files:
            for place, line in numbered(file, self._count):
                try:
                    yield taco.seen(line), place, line
                except Unreadable:
                    self._count()

    def _count(self) -> None:
        self.odd += 1

    def say_odd(self) -> None:
        if self.odd:
            print(f"{self.odd} lines are no recordings and are left out", file=sys.stderr)


def _chosen(folder: _Folder, given: argparse.Namespace) -> Iterator[tuple[taco.Seen, bytes]]:
    since, until = filters.moment("--from", given.from_), filters.moment("--to", given.to_, end=True)
    for seen, _, line in folder:
        early = since is not None and seen.at < since
        late = until is not None and seen.at >= until
        if not (early or late) and (not given.provider_ or _provider(given.provider_) == _provider(seen.provider)):
            yield seen, line


def _provider(name: str) -> str:
    return "claude" if name == "anthropic" else name


# --- export and stats


def export(arguments: Sequence[str]) -> int:
    """Lines of calls that began in a span of days, byte for byte. Raises UsageError, NotFound."""
    given = usage.parse("export --recordings", arguments)
    folder = _Folder(given.recordings)
    number = 0
    with output(given.output) as out:
        for _, line in _chosen(folder, given):
            out.write(line if line.endswith(b"\n") else line + b"\n")
            number += 1
    folder.say_odd()
    told = sys.stderr if given.output == "-" else sys.stdout
    if given.json:
        print(json.dumps({"calls": number, "left_out": folder.odd}), file=told)
    elif given.output != "-":
        print(f"export complete count={number} output={show.line(given.output)}")
    return 0


@dataclass(slots=True)
class _Sums:
    requests: int = 0
    errors: int = 0
    timed: int = 0
    ms: int = 0

    def add(self, seen: taco.Seen) -> None:
        self.requests += 1
        self.errors += seen.status >= 400 or not seen.status
        self.timed += seen.ms is not None
        self.ms += seen.ms or 0

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def average_ms(self) -> float | None:
        return self.ms / self.timed if self.timed else None

    def lines(self, total: str = "") -> Iterator[str]:
        yield f"{total}Requests: {self.requests}"
        yield f"{total}Errors: {self.errors}"
        if self.requests:
            yield f"Error Rate: {self.error_rate:.2%}"
        if self.average_ms is not None:
            yield f"Average Response Time: {self.average_ms:.2f}ms"

    def as_object(self) -> dict[str, Any]:
        rate, average = round(self.error_rate, 4), self.average_ms
        return {"requests": self.requests, "errors": self.errors, "error_rate": rate, "average_ms": average}


def stats(arguments: Sequence[str]) -> int:
    """Raises UsageError, NotFound."""
    given = usage.parse("stats --recordings", arguments)
    folder = _Folder(given.recordings)
    total, providers = _Sums(), dict[str, _Sums]()
    for seen, _ in _chosen(folder, given):
        total.add(seen)
        providers.setdefault(seen.provider, _Sums()).add(seen)
    folder.say_odd()
    if given.json:
        by_provider = {name: sums.as_object() for name, sums in sorted(providers.items())}
        show.print_json({"total": total.as_object(), "providers": by_provider, "left_out": folder.odd})
        return 0
    print("=== Overall Statistics ===", *total.lines("Total "), sep="\n")
    for name, sums in sorted(providers.items()):
        print(f"\n=== {show.line(name).upper()} ===", *sums.lines(), sep="\n")
    return 0


# --- view


def view(arguments: Sequence[str]) -> int:
    """One recording, by its id or the beginning of one; without any the newest. Raises UsageError, NotFound."""
    given = usage.parse("view --recordings", arguments)
    seen, place = _found(_Folder(given.recordings), given.id)
    line = line_at(place)
    try:
        call = taco.read(Found(kept_id(seen.id, line), seen.at, (place,)), [line])
    except Unreadable as error:
        raise NotFound(f"recording {show.line(seen.id)} cannot be read: {error}") from None
    request = session_jsonl.request_entry(call.as_told, "", 0, "")
    response = session_jsonl.response_entry(call.as_told, "", 0, "")
    if given.json:
        show.print_json({"id": seen.id, "provider": seen.provider, "request": request, "response": response})
        return 0
    for text in _told(seen, request, response, streaming="chunks" in response):
        print(show.visible(text))
    return 0


def _found(folder: _Folder, wanted: str) -> tuple[taco.Seen, Place]:
    found: list[tuple[taco.Seen, Place]] = []
    for seen, place, _ in folder:
        if wanted and seen.id.startswith(wanted):
            found.append((seen, place))
        elif not wanted and (not found or seen.at >= found[0][0].at):
            found = [(seen, place)]
    exact = [one for one in found if one[0].id == wanted]
    if len(exact or found) == 1:
        if not wanted:
            print("no id is given: this is the newest recording", file=sys.stderr)
        return (exact or found)[0]
    if not found:
        raise NotFound(f"recording not found: {show.line(wanted)}")
    for seen, _ in found[:_SHOWN]:
        print(f"{show.line(seen.id)}  {show.when(seen.at, utc=False)}  {show.line(seen.provider)}", file=sys.stderr)
    raise NotFound(f"{len(found)} recordings begin with {show.line(wanted)!r}; please provide more characters")


def _told(seen: taco.Seen, request: dict[str, Any], response: dict[str, Any], *, streaming: bool) -> Iterator[str]:
    yield f"=== Recording {seen.id} ==="
    yield f"Timestamp: {show.iso(seen.at, utc=False)}"
    yield f"Provider: {seen.provider}"
    yield f"Duration: {seen.ms if seen.ms is not None else '?'}ms"
    yield "\n--- Request ---"
    yield f"Method: {request['method']}"
    yield f"Path: {request['path']}"
    if "query" in request:
        yield f"Query: {request['query']}"
    yield from _headers(request)
    yield from _pretty(bodies(request))
    yield "\n--- Response ---"
    yield f"Status: {response['status']}"
    yield f"Streaming: {'true' if streaming else 'false'}"
    if response.get("error"):
        yield f"Error: {response['error']}"
    yield from _headers(response)
    yield from _events(bodies(response)) if streaming else _pretty(bodies(response))


def _headers(entry: dict[str, Any]) -> Iterator[str]:
    yield "Headers:"
    for name, values in (entry["headers"] or {}).items():
        for value in values:
            yield f"  {name}: {value}"


def _pretty(data: bytes) -> Iterator[str]:
    if data:
        yield "Body:"
        yield _indented(data.decode("utf-8", "backslashreplace"))


def _events(data: bytes) -> Iterator[str]:
    """Each event's name, where it has one, and what it carries."""
    yield "Body:"
    for line in data.decode("utf-8", "backslashreplace").splitlines():
        field, _, value = line.partition(":")
        if field == "event":
            yield f"Event: {value.strip()}"
        elif field == "data":
            yield _indented(value.strip())


def _indented(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
