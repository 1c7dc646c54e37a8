"""`llm-proxy reindex` and `llm-proxy retention`: looking after the record by hand. Leaves out how it is done."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llm_proxy import settings
from llm_proxy.cli import filters, show, usage
from llm_proxy.index.ingest import Progress
from llm_proxy.service import upkeep


def reindex(arguments: Sequence[str]) -> int:
    """A new index from the logs, or less in the shared one. Raises UsageError, ConfigError, IndexTrouble."""
    given = usage.parse("reindex", arguments)
    if given.forget_machine or given.forget_versions:
        return _forget(given)
    where = filters.places_from(given)
    with _bar() as told:
        calls = upkeep.reindex(where, told)
    if given.json:
        show.print_json({"calls": calls, "index": str(where.index), "logs": str(where.logs)})
    else:
        print(f"{calls} calls indexed, from {show.line(str(where.logs))}")
    return 0


def _forget(given: argparse.Namespace) -> int:
    configured = settings.load({}, os.environ, given.config).settings
    told: dict[str, Any] = {}
    if given.forget_machine:
        told["files"] = upkeep.forget_machine(configured, given.forget_machine)
    if given.forget_versions:
        told["schemas"] = upkeep.forget_versions(configured)
    if given.json:
        show.print_json(told)
        return 0
    if "files" in told:
        print(f"{show.line(given.forget_machine)} is forgotten, with {told['files']} session files")
    if "schemas" in told:
        print(f"dropped {', '.join(told['schemas'])}" if told["schemas"] else "no older version has left anything")
    return 0


def retention(arguments: Sequence[str]) -> int:
    """What the settings say of old logs, now. Raises UsageError, ConfigError, StateUnusable."""
    given = usage.parse("retention", arguments)
    configured = settings.load({}, os.environ, given.config).settings
    steps = []
    for done in upkeep.retain(filters.places_from(given), configured, dry=given.dry_run):
        steps.append(done._asdict())
        if not given.json:
            print(f"{_VERBS[done.kind][given.dry_run]} {show.line(done.file)}", flush=True)
    if given.json:
        show.print_json({"dry_run": given.dry_run, "files": steps})
    elif not steps:
        print("nothing to do; docs/settings.md, [retention], tells what can be set")
    return 0


_VERBS = {
    "compress": ("compressed", "would compress"),
    "strip": ("took the bodies out of", "would take the bodies out of"),
    "delete": ("deleted", "would delete"),
}


@contextmanager
def _bar() -> Iterator[Any]:
    """A function to be told the progress; it shows a bar where a person looks."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich import progress as bars

    columns = (bars.TextColumn("{task.fields[calls]} calls"), bars.BarColumn(), bars.DownloadColumn())
    with bars.Progress(
        *columns, bars.TimeRemainingColumn(), console=show.console(sys.stderr), transient=True
    ) as progress:
        task = progress.add_task("", calls=0, total=None)

        def told(now: Progress) -> None:
            progress.update(task, completed=now.bytes, total=now.total_bytes, calls=now.calls)

        yield told
