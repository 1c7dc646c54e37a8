"""Run what a store lacks, inside a transaction that whoever calls has begun and locked. Leaves out connecting.

Alembic keeps the store's version; there is no `alembic.ini` and no `env.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.address import StoreUnusable
from llm_proxy.gateway.store.database import stands, version_of


def run(connection: Connection, told: str) -> list[str]:
    """What was done, one line a step. Raises StoreUnusable for another program's database, or a newer store."""
    steps = directory()
    version = version_of(connection)
    if version is None:
        _refuse_strangers(connection, told)
    elif stands(connection, version):
        return []
    elif version not in {step.revision for step in steps.walk_revisions()}:
        raise StoreUnusable(
            f"the store at {told} is of version {version}, which a newer llm-proxy has made; this one knows versions "
            f"up to {steps.get_current_head()}: upgrade it"
        )
    done: list[str] = []

    def lacking(version: Any, _: Any) -> Any:
        return steps._upgrade_revs("head", version)

    def told_of(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
        done.append(f"{step.up_revision_id}: {step.up_revision.doc}")

    with EnvironmentContext(Config(), steps, fn=lacking) as environment:
        environment.configure(connection=connection, target_metadata=schema.metadata, on_version_apply=told_of)
        environment.run_migrations()
    _check_foreign_keys(connection, told)
    return done


def directory() -> ScriptDirectory:
    folder = Path(__file__).parent
    return ScriptDirectory(str(folder), version_locations=[str(folder / "versions")])


def _refuse_strangers(connection: Connection, told: str) -> None:
    if ours := sorted(set(inspect(connection).get_table_names()) & set(schema.metadata.tables)):
        raise StoreUnusable(
            f"the store at {told} already has tables of another program ({', '.join(ours)}): give the gateway a "
            "database of its own; `llm-proxy gateway import` takes TokenTracer's over into it"
        )


def _check_foreign_keys(connection: Connection, told: str) -> None:
    """SQLite does not look while tables are made anew."""
    if connection.dialect.name != "sqlite":
        return
    if broken := connection.execute(text("PRAGMA foreign_key_check")).first():
        raise StoreUnusable(f"the store at {told} has a row in {broken[0]} that names none in {broken[2]}")
