"""Takes other programs' logs into the record: session files of ours, written as a keeper writes them.

What the record has already is not taken again: calls keep the ids they had, or get one that follows from their lines.
Leaves out the formats (`formats.reading`) and where conversations go (`keeper`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from llm_proxy import paths, settings
from llm_proxy.errors import IndexTrouble, NotFound, StateUnusable, UsageError
from llm_proxy.formats.reading.files import Catalogue, Format, Skipped, files
from llm_proxy.formats.reading.foreign import Foreign, Found, Side
from llm_proxy.index.queries import IndexUnavailable, open_index
from llm_proxy.journal.reader import Position
from llm_proxy.keeper.places import Brought, Item
from llm_proxy.keeper.settle import Recorder, Tally
from llm_proxy.keeper.store import StoreDamaged, open_store
from llm_proxy.keeper.telling import Teller, Told
from llm_proxy.service import ask, keeping
from llm_proxy.sinks import session_jsonl
from llm_proxy.sinks.log_files import Logs

# The journal that imported calls come from, as far as the keepers' database wants to know one.
JOURNAL = "import"
_POSITION = Position(1, 0)  # behind all that is brought
_GROUP_BYTES, _GROUP_CALLS = 8 << 20, 256
_LOOKED_UP = 500  # ids at a time

Progress = Callable[[str, int, int], None]  # what is done, how many of it, how many there are


@dataclass(slots=True)
class Outcome:
    """Counts of files and calls. `new` calls were written, or would be; `already` stood in the record before."""

    files: dict[str, int] = field(default_factory=dict)  # by format
    new: int = 0
    already: int = 0
    copies: int = 0  # of calls that stand more than once in what is imported
    sessions: int = 0
    skipped_files: list[Skipped] = field(default_factory=list)
    skipped_calls: list[Skipped] = field(default_factory=list)
    trouble: str = ""  # the last one with what was written


def bring(
    path: Path, where: ask.Places, configured: settings.Settings, *, progress: Progress, dry_run: bool = False
) -> Outcome:
    """Import a file, or all log files below a folder. Can be broken off and called again.

    Raises UsageError, NotFound, IndexTrouble, StateUnusable.
    """
    _check(path, where.logs)
    outcome = Outcome()
    with _alone() as scratch:
        catalogue = Catalogue(scratch)
        paths_found = list(files(path))
        for number, one in enumerate(paths_found):
            progress("files", number, len(paths_found))
            catalogue.add(one)
        found = catalogue.found()
        new = _not_known(found, where)
        outcome.already = len(found) - len(new)
        calls = _read(catalogue, new, progress)
        try:
            if dry_run:
                outcome.new = sum(1 for _ in calls)
            else:
                _write(calls, where, configured, outcome)
        except (OSError, sqlite3.Error, StoreDamaged) as error:
            raise StateUnusable(f"the record cannot be written: {error}; a new attempt goes on from there") from error
    if outcome.new and not dry_run:
        _index(where)
    outcome.files, outcome.copies = dict(catalogue.files), catalogue.copies
    outcome.skipped_files, outcome.skipped_calls = catalogue.no_files.all(), catalogue.no_calls.all()
    return outcome


@contextmanager
def _alone() -> Iterator[Path]:
    """Two at once would take the same calls. Gives a place for files, which may be there no longer than this.

    Raises StateUnusable.
    """
    state = Path(paths.state_folder())
    scratch = state / "import"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state / "import.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable(f"the state folder cannot be used: {error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StateUnusable("another import is running; wait for its end") from None
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(fd)


def _check(path: Path, logs: Path) -> None:
    """Raises UsageError, NotFound."""
    real, root = path.resolve(), logs.resolve()
    if not real.exists():
        raise NotFound(f"there is no {path}")
    if real == root or root in real.parents:
        raise UsageError(f"PATH must lie outside the log folder, whose files are read where they are; got {path}")


def _not_known(found: Sequence[tuple[Format, Found]], where: ask.Places) -> list[tuple[Format, Found]]:
    """Those that the record does not hold with their answers. Raises IndexTrouble."""
    _index(where)
    try:
        with open_index(where.index) as index:
            known: set[str] = set()
            for start in range(0, len(found), _LOOKED_UP):
                known |= index.answered([str(one.id) for _, one in found[start : start + _LOOKED_UP]])
    except IndexUnavailable as error:
        raise IndexTrouble(str(error)) from error
    return [call for call in found if str(call[1].id) not in known]


def _index(where: ask.Places) -> None:
    try:
        ask.freshen(where)
    except (IndexUnavailable, sqlite3.Error, OSError) as error:
        raise IndexTrouble(f"{error}; llm-proxy reindex makes a new index from the logs") from error


def _read(catalogue: Catalogue, found: Sequence[tuple[Format, Found]], progress: Progress) -> Iterator[Foreign]:
    for number, (form, one) in enumerate(found):
        progress("calls", number, len(found))
        call = catalogue.read(form, one)
        if call is not None:
            yield call


# --- writing


def _write(calls: Iterable[Foreign], where: ask.Places, configured: settings.Settings, outcome: Outcome) -> None:
    """Raises OSError, sqlite3.Error, StoreDamaged."""
    state = Path(paths.state_folder())
    options = replace(keeping.options(configured), projects=False)
    store, _ = open_store(state / "sessions.db", JOURNAL)
    logs = Logs(where.logs.absolute())
    tally = Tally()
    try:
        # One machine after the other: each is named by a recorder of its own.
        for machine, group in groupby(calls, lambda call: call.machine):
            teller = Teller(machine, options, state, tally.troubles)
            recorder = Recorder(store, logs, machine, tally, teller)
            for items in _groups(Item(Brought(call.exchange.id), call.exchange, told(teller, call)) for call in group):
                outcome.sessions += _settle(recorder, items)
        with store.transaction():
            store.land(store.in_flight())  # of imports that were killed: what they had begun is written now
        logs.sync()
        store.make_durable()
    finally:
        outcome.new, outcome.trouble = tally.exchanges, tally.troubles.last
        logs.close()
        store.close()


def _settle(recorder: Recorder, items: list[Item]) -> int:
    """The number of sessions that were begun."""
    begun = 0
    while items:
        count = recorder.decide(items)
        lines = recorder.settle(items[:count], JOURNAL, _POSITION)
        begun += sum(line.entry["type"] == "session_start" for line in lines)
        items = items[count:]
    return begun


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    group: list[Item] = []
    size = 0
    for item in items:
        group.append(item)
        size += item.exchange.request.size + item.exchange.response.size if item.exchange else 0
        if size > _GROUP_BYTES or len(group) >= _GROUP_CALLS:
            yield group
            group, size = [], 0
    if group:
        yield group


# --- what the log says of such a call


def told(teller: Teller, call: Foreign) -> Told:
    """As the teller tells it, with the heads as they were, without times that nobody knows, and where it comes from."""
    made = teller.over(call.as_told)
    request = made.request | {"imported": call.origin}
    response = dict(made.response or {})
    _restore(request, call.request)
    _restore(response, call.response)
    unknown = {"ttfb_ms": call.exchange.first_byte, "total_ms": call.exchange.ended}
    if "timing" in response:
        response["timing"] = {name: ms for name, ms in response["timing"].items() if unknown.get(name)}
    made.request, made.response = dict(sorted(request.items())), response
    return made


def _restore(entry: session_jsonl.Entry, side: Side) -> None:
    """The two fields that were left out or put in so that the body would be read as it stands."""
    if entry.get("headers") is None:
        return
    there = session_jsonl.header_map(side.headers)
    headers = {name: values for name, values in entry["headers"].items() if name not in _ABOUT_BODIES}
    entry["headers"] = dict(sorted((headers | {name: there[name] for name in _ABOUT_BODIES if name in there}).items()))
    if side.coding:
        entry["content_encoding"] = side.coding


_ABOUT_BODIES = ("Content-Encoding", "Content-Type")
