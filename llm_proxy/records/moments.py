"""Points in time as people type them: `2026-01-31`, `2026-01-31T08:00`, `today`, `yesterday`, `7d` back from now.

Pure. Days are those of a time zone; leaves out which.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, tzinfo

MOMENTS = (
    "a day (2026-01-31), a time (2026-01-31T08:00, with or without an offset), today, yesterday, "
    "or back from now (90m, 24h, 7d, 2w)"
)
_SPAN = re.compile(r"(\d{1,5})([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment(text: str, now: float, *, end: bool = False, zone: tzinfo | None = None) -> int:
    """Nanoseconds since 1970. A day begins, or with `end` is over, at midnight in `zone`, None being this machine's.

    `now` is in seconds since 1970. Raises ValueError.
    """
    if span := _SPAN.fullmatch(text):
        return int((now - int(span[1]) * _SECONDS[span[2]]) * 1e9)
    try:
        day = _day(text, datetime.fromtimestamp(now, zone).date())
        if day is None:
            given = datetime.fromisoformat(text)
        else:
            day += timedelta(days=int(end))
            given = datetime(day.year, day.month, day.day)
        if given.tzinfo is None and zone is not None:
            given = given.replace(tzinfo=zone)
        return int(given.timestamp()) * 1_000_000_000
    except (OverflowError, OSError) as error:
        raise ValueError(text) from error


def _day(text: str, today: date) -> date | None:
    back = {"today": 0, "yesterday": 1}.get(text)
    if back is not None:
        return today - timedelta(days=back)
    return date.fromisoformat(text) if len(text) == 10 else None
