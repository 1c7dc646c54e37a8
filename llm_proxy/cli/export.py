"""`llm-proxy export --format F [--output FILE|-]`: recorded calls in other formats, as a stream."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from llm_proxy.cli import dataset, filters, show, usage
from llm_proxy.errors import UsageError
from llm_proxy.formats import markdown
from llm_proxy.formats.call import Call
from llm_proxy.index.queries import CallRow, Filter
from llm_proxy.index.record import Record
from llm_proxy.service.ask import record


def export(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble, ExtraMissing."""
    if usage.has(arguments, "--recordings"):
        from llm_proxy.cli import recordings

        return recordings.export(arguments)
    given = usage.parse("export", arguments)
    dataset.check(given)
    wanted = filters.filter_from(given)
    with record(filters.places_from(given)) as opened:
        counted = opened.index.stats(wanted, "total")
        total = counted[0].calls if counted else 0
        if given.format == "dataset":
            number = _write_dataset(opened, wanted, total, given)
        else:
            with output(given.output) as out:
                number = _write(opened, wanted, given.format, total, out, utc=given.utc)
    if given.json:
        print(f'{{"calls": {number}}}', file=sys.stderr if given.output == "-" else sys.stdout)
    elif given.output != "-":
        print(f"{markdown.counted(number, 'call')} written to {show.line(given.output)}")
    return 0


def _write(opened: Record, wanted: Filter, name: str, total: int, out: IO[bytes], *, utc: bool) -> int:
    """The number of calls written."""
    rows = opened.index.calls(wanted)
    counter = _Counter()
    with _progress(total) as told:
        if name == "markdown":
            for session in reversed(opened.index.sessions(wanted, None)):
                calls = counter.over(opened.index.calls_of(session.id), told)
                for block in markdown.conversation(session, calls, opened.digest, utc=utc):
                    out.write(f"{block}\n\n".encode("utf-8", "replace"))
        else:
            calls_read = (Call(row, *opened.entries(row)) for row in counter.over(rows, told))
            import_module(f"llm_proxy.formats.{name}").write(calls_read, out)
    return counter.number


def _write_dataset(opened: Record, wanted: Filter, total: int, given: argparse.Namespace) -> int:
    """The number of calls that were looked at; they stand by session, because conversations are told."""
    counter = _Counter()
    with _progress(total) as told:
        rows = counter.over(_by_session(opened, wanted), told)
        dataset.write((Call(row, *opened.entries(row)) for row in rows), given, output)
    return counter.number


def _by_session(opened: Record, wanted: Filter) -> Iterator[CallRow]:
    for session in reversed(opened.index.sessions(wanted, None)):
        yield from opened.index.calls_of(session.id)


class _Counter:
    """Counts what passes."""

    number = 0

    def over(self, rows: Iterable[CallRow], told: Any) -> Iterator[CallRow]:
        for row in rows:
            self.number += 1
            yield row
            told(self.number)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A function to be told how many are done; it shows a bar where a person looks."""
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    from rich.progress import Progress

    with Progress(console=show.console(sys.stderr), transient=True) as progress:
        task = progress.add_task("calls", total=total)
        yield lambda number: progress.update(task, completed=number)


@contextmanager
def output(path: str) -> Iterator[IO[bytes]]:
    """Standard output, or a private file that is there only when it is whole. Raises UsageError where it cannot be."""
    if path == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"--output must be a file that can be written, got {path!r}: {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb", 1 << 20) as file:
            yield file
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
