"""`llm-proxy loki backfill [--from TIME] [--to TIME] [--dry-run] [--again]`: history to Loki."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from llm_proxy import settings
from llm_proxy.cli import filters, show, usage
from llm_proxy.errors import UsageError
from llm_proxy.index.queries import Filter
from llm_proxy.service import loki as service


def loki(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble, BrokenOff."""
    if arguments[:1] != ["backfill"]:
        got = f", got {arguments[0]!r}" if arguments else ""
        raise UsageError(f"loki takes backfill [--from TIME] [--to TIME]{got}")
    given = usage.parse("loki backfill", arguments[1:])
    wanted = _wanted(filters.moment("--from", given.from_), filters.moment("--to", given.to_, end=True), given)
    configured = settings.load({}, os.environ, given.config).settings
    with _bar() as told:
        done = service.backfill(
            wanted, filters.places_from(given), configured, dry_run=given.dry_run, again=given.again, told=told
        )
    if given.json:
        show.print_json({"dry_run": given.dry_run, **asdict(done)})
    else:
        for line in _sentences(done, wanted, dry_run=given.dry_run):
            print(line)
    return 1 if done.too_old or done.refused else 0


def _wanted(since: int | None, until: int | None, given: Any) -> Filter:
    if since is not None and until is not None and until <= since:
        raise UsageError(f"--to must be later than --from, got {given.to_!r} and {given.from_!r}")
    return Filter(since_ns=since, until_ns=until)


def _sentences(done: service.Outcome, wanted: Filter, *, dry_run: bool) -> Iterator[str]:
    verb = "would be sent" if dry_run else "sent"
    yield f"{done.entries} entries of {done.calls} calls {verb}"
    if done.before:
        yield f"{done.before} calls were sent by an earlier run; --again sends them once more"
    if done.gone:
        yield f"{done.gone} calls have no log any more"
    if done.too_old:
        what = "of these are" if dry_run else "more are"
        yield (
            f"{done.too_old} entries {what} older than Loki takes ({service.LIMIT_DAYS} days, unless it is told "
            "otherwise): in its limits_config, reject_old_samples: false lets them in"
        )
    if done.refused:
        yield f"{done.refused} entries were refused for another reason: {show.line(done.why, 300)}"
    live = time.strftime("%Y-%m-%d %H:%M", time.localtime(done.live))
    if done.live and wanted.until_ns is None:
        if done.on:
            yield f"calls from {live} on are sent as they end"
        else:
            yield f"calls from {live} on were sent as they ended, but Loki is off now: --to has later ones sent too"
    elif done.live and wanted.until_ns and wanted.until_ns > done.live * 1e9:
        twice = "would be" if dry_run else "are"
        yield f"note: calls from {live} on were sent as they ended, in other streams; they {twice} there twice"


@contextmanager
def _bar() -> Iterator[Any]:
    """A function to be told how many calls are done; it shows them where a person looks."""
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    from rich import progress as bars

    columns = (bars.SpinnerColumn(), bars.TextColumn("{task.completed} calls"), bars.TimeElapsedColumn())
    with bars.Progress(*columns, console=show.console(sys.stderr), transient=True) as shown:
        task = shown.add_task("", total=None)
        yield lambda number: shown.update(task, completed=number)
