"""How the process of the lanes is started: which sinks, with what the settings say of each.

Leaves out running it (`supervise`) and what it does (`lanes`).
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from llm_proxy import paths
from llm_proxy.lanes.options import Options

if TYPE_CHECKING:
    from llm_proxy.settings import Settings

SESSIONS = "sessions"  # the session logs, which the keeper writes


def sinks(settings: Settings) -> tuple[str, ...]:
    """Those that have lanes."""
    return tuple(dict.fromkeys(name for name in settings.sinks if name != SESSIONS))


def name(settings: Settings, door: str) -> str:
    """Whose lanes: a door's run has sinks of its own, which get its calls and no others. Empty: everybody's."""
    if not door or not sinks(settings):
        return ""
    places = "\n".join((settings.daily_folder, settings.csv_file, settings.dataset_folder))
    return f"{door}-{sha256(places.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def of_journal(folder: str) -> str:
    """Whose lanes get what stands in a journal, by its folder's name: that of the lanes, or of a role, and a number."""
    lanes = folder.rpartition("-")[0]
    return lanes if "-" in lanes else ""


def lines(settings: Settings) -> tuple[str, ...]:
    """What start-up says of each."""
    said = {
        "daily": f"recordings: {settings.daily_folder}/recordings-YYYY-MM-DD.jsonl",
        "csv": f"CSV: {settings.csv_file}",
        "dataset": f"dataset: {settings.dataset_folder}",
    }
    return tuple(said.get(name, f"sink of your own: {name}") for name in sinks(settings))


def options(settings: Settings, door: str = "") -> Options:
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
    return Options(state=paths.state_folder(), folder=settings.log_dir, sinks=listed, name=name(settings, door))
