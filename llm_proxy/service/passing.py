"""How the process of the lanes is started: which sinks, with what the settings say of each.

Leaves out running it (`supervise`) and what it does (`lanes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_proxy import paths
from llm_proxy.lanes.options import Options

if TYPE_CHECKING:
    from llm_proxy.settings import Settings

SESSIONS = "sessions"  # the session logs, which the keeper writes


def sinks(settings: Settings) -> tuple[str, ...]:
    """Those that have lanes."""
    return tuple(dict.fromkeys(name for name in settings.sinks if name != SESSIONS))


def options(settings: Settings) -> Options:
    told: dict[str, dict[str, Any]] = {
        "daily": {"folder": settings.daily_folder},
        "csv": {
            "file": settings.csv_file,
            "header": settings.csv_header,
            "columns": settings.csv_columns,
            "defuse": settings.csv_defuse,
        },
        "dataset": {
            "folder": settings.dataset_folder,
            "compress": settings.dataset_compress,
            "rotate": settings.dataset_rotate,
            "max_size": settings.dataset_max_size,
        },
    }
    own = {name: dict(table) for name, table in settings.own_sinks}
    listed = tuple((name, told.get(name) or own.get(name, {})) for name in sinks(settings))
    return Options(state=paths.state_folder(), folder=settings.log_dir, sinks=listed)
