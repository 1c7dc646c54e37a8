"""`llm-proxy import PATH [--dry-run] [--json]`: other programs' logs taken into the record."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_proxy import settings
from llm_proxy.cli import filters, show, usage
from llm_proxy.formats.reading.files import Skipped
from llm_proxy.service import importing


def import_(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, NotFound, IndexTrouble, StateUnusable."""
    given = usage.parse("import", arguments)
    configured = settings.load({}, os.environ, given.config).settings
    with _progress() as progress:
        done = importing.bring(
            Path(given.path), filters.places_from(given), configured, progress=progress, dry_run=given.dry_run
        )
    if given.json:
        show.print_json(_object(done, dry_run=given.dry_run))
    else:
        _say(done, dry_run=given.dry_run)
    return 0 if done.new or done.already else 1


def _say(done: importing.Outcome, *, dry_run: bool) -> None:
    read = ", ".join(f"{count} of {name}" for name, count in sorted(done.files.items()))
    print(f"Files     {read or 'none with calls in them'}")
    print(f"Calls     {done.new} {'would be imported' if dry_run else 'imported'}", end="")
    print(f", into {done.sessions} new sessions" if done.sessions else "")
    if done.already:
        print(f"          {done.already} were in the record already")
    if done.copies:
        print(f"          {done.copies} copies of calls that stand elsewhere too")
    for title, skipped in (("Skipped", done.skipped_calls), ("Files", done.skipped_files)):
        for one in skipped:
            what = "calls or lines" if title == "Skipped" else "left out"
            print(f"{title:<9} {one.times} {what}: {show.line(one.why)} (first: {show.line(one.first)})")
    if done.trouble:
        print(f"Trouble   {show.line(done.trouble)}")


def _object(done: importing.Outcome, *, dry_run: bool) -> dict[str, Any]:
    return asdict(done) | {
        "dry_run": dry_run,
        "skipped_calls": _skipped(done.skipped_calls),
        "skipped_files": _skipped(done.skipped_files),
    }


def _skipped(skipped: Sequence[Skipped]) -> list[dict[str, Any]]:
    return [one._asdict() for one in skipped]


@contextmanager
def _progress() -> Iterator[importing.Progress]:
    """A bar where a person looks."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.progress import Progress

    with Progress(console=show.console(sys.stderr), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
