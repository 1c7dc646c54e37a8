"""How a keeper is started: its folders, and what the settings say of the record.

Leaves out running it (`supervise`) and what it does (`keeper`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_proxy import paths
from llm_proxy.keeper.options import Options, Retention
from llm_proxy.service import passing

if TYPE_CHECKING:
    from llm_proxy.settings import Settings

_CLOSED_DAYS = 2.0  # after which a session file may be deleted at the earliest


def arguments(settings: Settings, journal: Path) -> tuple[str, ...]:
    """The command line of the keeper of one journal folder."""
    folders = ("--journal", str(journal), "--logs", settings.log_dir, "--state", paths.state_folder())
    return *folders, "--options", options(settings, passing.of_journal(journal.name)).to_json()


def options(settings: Settings, lanes: str = "") -> Options:
    return Options(
        index=paths.index_file(settings.log_dir),
        redact=settings.redact,
        patterns=settings.patterns,
        redact_off_for=settings.redact_off_for,
        metadata_only=settings.metadata_only,
        gateway_privacy=settings.gateway_privacy_ceiling,
        deletions=passing.deletions(settings, lanes),
        deleting_sinks=passing.deleting(settings),
        sent=passing.sent(settings),
        prices=settings.prices,
        price_data=paths.price_file(),
        posts=bool(lanes or passing.sinks(settings)),
        lanes=lanes,
        cap=settings.cap,
        retention=Retention(
            days=settings.retention_days if passing.SESSIONS in settings.sinks else _CLOSED_DAYS,
            bodies_days=settings.retention_bodies_days,
            compress_days=settings.retention_compress_days,
            max_size=settings.retention_max_size,
        ),
    )
