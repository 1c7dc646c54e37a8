"""Looks after the record when a person asks for it: makes the index anew, does what the retention policy says.

Both go on beside a daemon. Leaves out how it is told (`cli`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from llm_proxy import paths
from llm_proxy.errors import ExtraMissing, IndexTrouble, StateUnusable, UsageError
from llm_proxy.index.ingest import Indexer, Progress, RebuildRuns
from llm_proxy.keeper import retention
from llm_proxy.keeper.store import Store, StoreDamaged
from llm_proxy.service import keeping, passing
from llm_proxy.service.ask import Places, freshen
from llm_proxy.settings import Settings


def reindex(where: Places, progress: Callable[[Progress], None]) -> int:
    """A new index from the logs. Gives the number of calls in it. Raises IndexTrouble."""
    try:
        indexer = Indexer(where.index, where.logs)
        try:
            return indexer.rebuild(progress)
        finally:
            indexer.close()
    except (RebuildRuns, sqlite3.Error, OSError) as error:
        raise IndexTrouble(f"the index {where.index} cannot be made anew: {error}") from error


def forget_machine(settings: Settings, machine: str) -> int:
    """Take a machine out of the shared index. Gives its number of files. Raises UsageError, IndexTrouble."""
    from llm_proxy.index import postgres_write

    if machine == passing.machine(settings):
        raise UsageError(f"{machine} is this machine, which would fill the shared index again")
    with _shared(settings) as url:
        return postgres_write.forget_machine(url, machine, time.time())


def forget_versions(settings: Settings) -> list[str]:
    """Drop older versions' shared indexes. Gives their names. Raises UsageError, IndexTrouble."""
    from llm_proxy.index import postgres_write

    with _shared(settings) as url:
        return postgres_write.forget_versions(url)


@contextmanager
def _shared(settings: Settings) -> Iterator[str]:
    from llm_proxy.index.postgres import Unreachable

    if not settings.index_database_url:
        raise UsageError("there is no shared index: index.database_url is not set")
    if find_spec("asyncpg") is None:
        raise ExtraMissing("the shared index needs asyncpg: install llm-proxy[gateway]")
    try:
        yield settings.index_database_url
    except Unreachable as error:
        raise IndexTrouble(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def retain(where: Places, settings: Settings, *, dry: bool) -> Iterator[retention.Done]:
    """Do now what the daemon does once an hour. Raises StateUnusable."""
    policy = keeping.options(settings).retention
    database = Path(paths.state_folder()) / "sessions.db"
    try:
        store = Store(database, "")
        try:
            yield from retention.run(policy, where.logs, store, dry=dry)
        finally:
            store.close()
        if not dry:
            freshen(where)
    except (sqlite3.Error, OSError, StoreDamaged) as error:
        raise StateUnusable(f"{database} cannot be used, without which no log file is touched: {error}") from error
