"""What a sink is: two methods, and a name in the configuration.

A class of one's own becomes a sink by an entry point of the group `llm_proxy.sinks`; its name is then what `sinks`
lists, and it is made with the folder for its files and the table `[sink.NAME]` of the configuration. Leaves out when
it is called (`lane`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_proxy.formats.call import Call

GROUP = "llm_proxy.sinks"


class Refused(Exception):
    """The other side would not take it now; the same calls are offered again later. OSError counts as this too.

    `after` is how many seconds that is at least; what is `lasting` needs a person, and is told at once.
    """

    def __init__(self, message: str, *, after: float = 0.0, lasting: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.lasting = lasting


class Declined(Exception):
    """The other side would not take it another time either. The message is told as it stands."""


class Unusable(Exception):
    """The options of a sink are wrong. The message tells a person what to change."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a sink wants its calls: its attribute `pace`.

    At most so many `calls` and bytes of their log lines at once; fewer calls wait `gather` seconds for others. The
    first so many failures in a row are `tolerated`: they are told of, but the sink counts as well.
    """

    calls: int = 100
    octets: int = 16 << 20
    gather: float = 0.0
    tolerated: int = 0


class Desk(Protocol):
    """What a lane does for a sink with a method `attend(desk)`, which it calls before it brings calls.

    What a sink keeps and puts aside while it writes holds from the moment at which those calls count as passed on,
    and is forgotten where `write` raises.
    """

    def note(self, key: str) -> str | None:
        """What was kept under that name. Raises sqlite3.Error."""

    def keep(self, key: str, text: str) -> None:
        """Keep it until a month has passed without its being kept again."""

    def put_aside(self, call: Call, error: str, what: Mapping[str, Any]) -> None:
        """Tell in `parked/NAME.jsonl` of a part of a call that cannot be passed on."""


class Sink(Protocol):
    """Made once per run, called by one thread.

    It may have two attributes that `/health/sinks` and `--status` show: `counted`, numbers by name, and `warning`, what
    a person should know although it gets on. A method `tend()` is called about once a second while no calls wait, for
    what the sink does by itself; it raises what `write` does.

    A method `forget(gone: deleting.Gone)` of those that come with llm-proxy (`options.DELETING`), and of no others, is
    called between two writes when users want what they said to be deleted. It takes out what `gone` covers of all that
    the sink has written, and says in words what stays, "" for nothing; it raises what `write` does, and is called again
    until it has returned once. What comes later is not of these calls.
    """

    def write(self, calls: Sequence[Call]) -> int | None:
        """Take finished calls, in the order in which they ended. Raises Refused or OSError to be given them again.

        Whoever takes only the first ones says how many, at least 1; the others are offered next.

        Any other exception means that the sink cannot take a call; it is tried three times, then parked. After a crash
        the last calls may come once more: their `row.id` tells.
        """

    def close(self) -> None:
        """No more calls come."""


class UnknownSink(Exception):
    """No sink of that name is known; the message names those that are."""


BUILT_IN = {
    "loki": ("llm_proxy.lanes.loki", "Loki"),
    "daily": ("llm_proxy.lanes.daily", "Daily"),
    "csv": ("llm_proxy.lanes.csv_log", "CsvLog"),
    "dataset": ("llm_proxy.lanes.dataset_log", "DatasetLog"),
    "otlp": ("llm_proxy.lanes.otlp", "Otlp"),
    "shared-index": ("llm_proxy.lanes.shared_index", "SharedIndex"),
    "s3": ("llm_proxy.lanes.s3", "S3"),
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
