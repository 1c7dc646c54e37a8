"""How answers look: tables for people, tab-separated lines for pipes, numbers, times and money in few characters.

Whatever was recorded reaches a terminal only with its control characters made visible. Leaves out what is asked.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, Any, Literal, NamedTuple

from llm_proxy.dialects.digest import TOKEN_CLASSES, Usage
from llm_proxy.index.queries import Cost

# C0 (but for line ends and tabs), DEL, C1, and what turns the direction of text or breaks lines (Unicode TR 36).
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def visible(text: str) -> str:
    """Text that does nothing to a terminal but stand there; line ends and tabs stay."""
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def line(text: str, width: int = 0) -> str:
    """On one line; cut at `width` characters (0: not)."""
    text = visible(_SPACE.sub(" ", text).strip())
    return text if not width or len(text) <= width else text[: width - 1] + "…"


class Column(NamedTuple):
    """`grows`: takes what room is left, and is cut to it. `spare`: the column with the most goes first, for room."""

    title: str
    right: bool = False
    grows: bool = False
    spare: int = 0


_GAP = 3  # between columns
_LEAST = 20  # characters of a column that grows


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Aligned where a person looks, without columns that say nothing; elsewhere one line each, with tabs."""
    told = [[line(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in ([column.title for column in columns], *told):
            print("\t".join(row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    widths, left_out = _fitting(columns, told, out.width)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, width in widths.items():
        justify: Literal["left", "right"] = "right" if columns[place].right else "left"
        shown.add_column(columns[place].title, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
    for row in told:
        shown.add_row(*(Text(row[place]) for place in widths))
    # what still has no room is wrapped by the terminal, never cut off
    needed = sum(widths.values()) + _GAP * (len(widths) - 1)
    out.print(shown, width=max(needed, out.width), crop=False)
    if left_out:
        out.print(Text(f"no room here for {', '.join(left_out)}", "dim"))


def _fitting(columns: Sequence[Column], told: Sequence[Sequence[str]], room: int) -> tuple[dict[int, int], list[str]]:
    """Which columns are shown how wide, and the titles of those for which there is no room."""
    from rich.cells import cell_len

    widths = {
        place: max(cell_len(column.title), *(cell_len(row[place]) for row in told))
        for place, column in enumerate(columns)
        if any(row[place] for row in told)
    }
    growing = next((place for place in widths if columns[place].grows), None)
    wanted = 0 if growing is None else widths[growing]

    def left() -> int:
        """Room beside the columns that do not grow."""
        return room - sum(width for place, width in widths.items() if place != growing) - _GAP * (len(widths) - 1)

    left_out = []
    while left() < min(wanted, _LEAST):
        spare = max(widths, key=lambda place: columns[place].spare)
        if not columns[spare].spare:
            break
        left_out.append(columns[spare].title)
        del widths[spare]
    if growing is not None:
        widths[growing] = min(wanted, max(left(), _LEAST))
    return widths, left_out


def console(file: IO[str] | None = None) -> Any:
    """rich's console; it minds NO_COLOR and the width of the terminal."""
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False)


def print_json(value: object, *, lines: bool = False) -> None:
    """One JSON document, or with `lines` one line of a stream of them. What is unsafe to show is escaped."""
    import msgspec

    data = msgspec.json.encode(value)
    text = (data if lines else msgspec.json.format(data, indent=2)).decode()
    print(_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text), flush=lines)


# --- cells ----------------------------------------------------------------------------------------------------------


def when(ns: int | None, *, utc: bool, seconds: bool = False) -> str:
    """A date and time, local or UTC."""
    if ns is None:
        return ""
    moment = time.gmtime(ns // 10**9) if utc else time.localtime(ns // 10**9)
    return time.strftime("%Y-%m-%d %H:%M" + (":%S" if seconds else ""), moment) + ("Z" if utc else "")


def lately(ns: int, *, utc: bool) -> str:
    """A time of today, a day and time of this year, else the day: as long as needed to be told apart."""
    moment, now = (time.gmtime(ns // 10**9), time.gmtime()) if utc else (time.localtime(ns // 10**9), time.localtime())
    if moment[:3] == now[:3]:
        return time.strftime("%H:%M", moment)
    return time.strftime("%m-%d %H:%M" if moment[0] == now[0] else "%Y-%m-%d", moment)


def iso(ns: int | None, *, utc: bool) -> str | None:
    """RFC 3339 with milliseconds."""
    if ns is None:
        return None
    moment = datetime.fromtimestamp(ns / 1e9, UTC)
    text = (moment if utc else moment.astimezone()).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z") if utc else text


_UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


def count(number: int) -> str:
    """Three digits or so: 950, 12.3k, 4.56M."""
    for size, unit in _UNITS:
        if number >= size:
            shown = f"{number / size:.3g}"
            return f"{number / size:.0f}{unit}" if "e" in shown else shown + unit
    return str(number)


def duration(ms: int | None) -> str:
    if ms is None:
        return ""
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f}s"
    return f"{ms // 60_000}m{ms % 60_000 // 1000:02d}s"


def dollars(amount: Decimal) -> str:
    """Cents where they matter, more digits where they are all there is."""
    if amount == 0:
        return "$0"
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.4f}" if amount >= Decimal("0.0001") else "<$0.0001"


def cost(told: Cost) -> str:
    """Spent; `~` before what a subscription covers; `?` where a call has no known price."""
    parts = [dollars(told.usd)] if told.usd else []
    parts += [f"~{dollars(told.equivalent)}"] if told.equivalent else []
    if told.unpriced:
        parts.append("?")
    return " ".join(parts)


def price(usd: Decimal | None, basis: str) -> str:
    """As `cost`, of one call."""
    if usd is None:
        return "?" if basis == "unpriced" else ""
    return ("~" if basis == "subscription" else "") + dollars(usd)


# --- JSON -----------------------------------------------------------------------------------------------------------


def usage_object(usage: Usage | None) -> dict[str, Any] | None:
    """The classes that are not zero."""
    if usage is None:
        return None
    told: dict[str, Any] = {name: getattr(usage, name) for name in TOKEN_CLASSES if getattr(usage, name)}
    if usage.server_tools:
        told["server_tools"] = dict(usage.server_tools)
    return told


def cost_object(told: Cost) -> dict[str, Any]:
    return {
        "usd": decimal(told.usd),
        "subscription_equivalent_usd": decimal(told.equivalent),
        "unpriced_calls": told.unpriced,
    }


def decimal(amount: Decimal) -> str:
    """All its digits, and none that say nothing: `0.00031755`, `0`."""
    return f"{amount.normalize():f}"
