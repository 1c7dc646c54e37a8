"""What must be reached, what a row of the report is, and how it is printed. Leaves out measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_SHELLS = ("bash", "zsh", "fish")
COLUMNS = ("direct", "nginx", "mitmdump", "litellm", "ours", "ours, asyncio")


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a figure should be. `floor` None: there is only a goal, the figure is otherwise just reported."""

    goal: float | None
    floor: float | None
    unit: str
    at_least: bool = False

    def verdict(self, figure: float) -> str:
        if self.goal is not None and self._holds(figure, self.goal):
            return "goal met"
        if self.floor is None:
            return "goal missed"
        return "floor met" if self._holds(figure, self.floor) else "MISSED"

    def shown(self, value: float | None) -> str:
        return "" if value is None else f"{'≥' if self.at_least else '≤'} {value:,g}{self.unit}"

    def _holds(self, figure: float, bound: float) -> bool:
        return figure >= bound if self.at_least else figure <= bound


LIMITS = {
    "added latency p50, 2 kB": Limit(1.3, 1.7, " × nginx"),
    "added latency p50, 100 kB": Limit(1.5, 2.0, " × nginx"),
    "requests/s, 64 connections": Limit(0.5, 0.35, " × nginx", at_least=True),
    "the same beside mitmdump": Limit(None, 25, " × mitmdump", at_least=True),
    "CPU s per 1,000 requests": Limit(2.0, None, " × nginx"),
    "SSE, added p50 per event": Limit(1.3, 2.0, " × nginx"),
    "Bedrock, added p99 per frame": Limit(1, None, " ms"),
    "live, p99 per event, watched": Limit(1.2, None, " × unwatched"),
    "live, from the source to the screen, p50": Limit(300, 300, " ms"),
    "memory, idle": Limit(30, 40, " MB"),
    "memory, 1,000 open streams": Limit(45, 80, " MB"),
    "memory, after 500 MB up and 500 MB down": Limit(45, 80, " MB"),
    "keeper, journal to session logs": Limit(3000, 1500, " exchanges/s", at_least=True),
    "keeper, agents' traffic to logs and index": Limit(1000, 1000, " exchanges/s", at_least=True),
    "Loki, entries/s, small calls": Limit(5000, None, " entries/s", at_least=True),
    "Loki, entries/s, requests of 20 kB": Limit(5000, None, " entries/s", at_least=True),
    "added latency p50, every sink on": Limit(1.1, None, " × without"),
    "--env, daemon alive, p50": Limit(3, 50, " ms"),
    "--env, daemon dead, p50": Limit(5, 50, " ms"),
    **{f"prompt hook, {shell}, mean": Limit(0.5, None, " ms") for shell in _SHELLS},
    **{
        f"a new {shell}, daemon {it}, added p50": Limit(50, None, " ms")
        for shell in _SHELLS
        for it in ("alive", "dead")
    },
    "install from a checkout, warm cache": Limit(30, 30, " s"),
    "changed in the home by install and uninstall": Limit(0, 0, " entries"),
    "ready after start, p50": Limit(600, 600, " ms"),
    "refused at a restart": Limit(200, 200, " ms"),
    "refused at a restart, a stream open": Limit(200, 200, " ms"),
    "refused at an upgrade": Limit(200, 200, " ms"),
    "gateway, passed through, requests/s": Limit(25, None, " × litellm", at_least=True),
    "gateway, translated, requests/s": Limit(25, None, " × litellm", at_least=True),
    "gateway, passed through, added p50": Limit(1.5, None, " ms"),
    "gateway, translated, added p50": Limit(1.5, None, " ms"),
    "gateway, first token of a translated stream": Limit(2, None, " ms"),
    "gateway, 500 translated streams at once, lost": Limit(0, None, " streams"),
    "gateway, memory over 200,000 requests": Limit(120, None, " MB"),
    "gateway, memory, last quarter beside the second": Limit(1.05, None, " ×"),
    "team, requests over the limit, 200 clients": Limit(0, 0, " requests"),
    "team, revoked key, refused by all": Limit(1, None, " s"),
    "team, PostgreSQL restarts, usage lost": Limit(0, 0, " rows"),
    "team, PostgreSQL restarts, failed calls": Limit(0, 0, " calls"),
    "team, Redis away, longest extra of a call": Limit(50, None, " ms"),
    "team, requests/s, shared stores beside SQLite": Limit(0.7, None, " × SQLite", at_least=True),
    "failed over an upgrade, socket activation": Limit(0, 0, " calls"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `judged` is what the row's limit is held against; `void` says why no figure counts."""

    what: str
    cells: Mapping[str, str] = field(default_factory=dict)
    judged: float | None = None
    void: str = ""

    def texts(self, columns: Sequence[str] = COLUMNS) -> list[str]:
        limit = LIMITS.get(self.what)
        cells = [self.cells.get(column, "") for column in columns]
        if self.void:
            return [self.what, *cells, "", "", "", f"VOID: {self.void}"]
        if limit is None or self.judged is None:
            return [self.what, *cells, "", "", "", ""]
        judged = f"{self.judged:,.3g}{limit.unit}" if self.judged < 1000 else f"{self.judged:,.0f}{limit.unit}"
        return [
            self.what,
            *cells,
            judged,
            limit.shown(limit.goal),
            limit.shown(limit.floor),
            limit.verdict(self.judged),
        ]


def markdown(rows: Sequence[Row]) -> str:
    """The report as a Markdown table, without columns that no row has anything in."""
    columns = [column for column in COLUMNS if any(column in row.cells for row in rows)]
    titles = ["what", *columns, "held against the limit", "goal", "floor", "verdict"]
    table = [titles, *(row.texts(columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
