"""Ways in that bring a sink of their own: its place is the folder in which the command was given.

Leaves out routes (`target`) and the words of the other programs' own configuration (`taco`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_proxy import paths

if TYPE_CHECKING:
    from llm_proxy.settings import Loaded


class Door(NamedTuple):
    """`place` is the setting that says where `sink` writes, `attribute` the same in `Settings`, `usual` its default."""

    name: str
    sink: str
    place: str
    attribute: str
    usual: str


TARGET = Door("target", "csv", "csv.file", "csv_file", "log.csv")
PROXY_LLM = Door("proxy-llm", "dataset", "dataset.folder", "dataset_folder", "data")
TACO = Door("taco", "daily", "daily.folder", "daily_folder", "recordings")


def through(loaded: Loaded, door: Door, *, always: bool = False) -> Loaded:
    """With the door's sink: `always`, or unless `sinks` says otherwise and no option names its place."""
    sinks, sources = loaded.settings.sinks, loaded.sources
    place = getattr(loaded.settings, door.attribute) if door.place in sources else paths.expand(door.usual)
    wanted = always or "sinks" not in sources or sources.get(door.place, "").startswith("--")
    if wanted and door.sink not in sinks:
        sinks = (*sinks, door.sink)
    changed: dict[str, Any] = {"sinks": sinks, door.attribute: place}
    return loaded._replace(settings=replace(loaded.settings, **changed), door=door.name)
