"""What a sink is: two methods, and a name in the configuration.

A class of one's own becomes a sink by an entry point of the group `llm_proxy.sinks`; its name is then what `sinks`
lists, and it is made with the folder for its files and the table `[sink.NAME]` of the configuration. Leaves out when
it is called (`lane`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llm_proxy.formats.call import Call

GROUP = "llm_proxy.sinks"


class Refused(Exception):
    """The other side would not take it now; the same calls are offered again later. OSError counts as this too."""


class Sink(Protocol):
    """Made once per run, called by one thread."""

    def write(self, calls: Sequence[Call]) -> None:
        """Take finished calls, in the order in which they ended. Raises Refused or OSError to be given them again.

        Any other exception means that the sink cannot take a call; it is tried three times, then parked. After a crash
        the last calls may come once more: their `row.id` tells.
        """

    def close(self) -> None:
        """No more calls come."""


class UnknownSink(Exception):
    """No sink of that name is known; the message names those that are."""


BUILT_IN = {
    "daily": ("llm_proxy.lanes.daily", "Daily"),
    "csv": ("llm_proxy.lanes.csv_log", "CsvLog"),
    "dataset": ("llm_proxy.lanes.dataset_log", "DatasetLog"),
}


def make(name: str, folder: Path, options: Mapping[str, Any]) -> Sink:
    """The sink of that name. Raises UnknownSink, and whatever its class does."""
    from importlib import import_module
    from importlib.metadata import entry_points

    if name in BUILT_IN:
        module, attribute = BUILT_IN[name]
        made: Sink = getattr(import_module(module), attribute)(folder, options)
        return made
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise UnknownSink(f"no sink {name!r}; there are sessions, {', '.join(sorted({*BUILT_IN, *found}))}")
    its_class: Callable[[Path, Mapping[str, Any]], Sink] = found[name].load()
    return its_class(folder, options)
