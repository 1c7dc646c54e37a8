"""What managing routes are asked for in a query: names that are known, numbers, words, moments. Leaves out which."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta

from llm_proxy.gateway.refusals import Refusal


def known(query: Mapping[str, str], names: Collection[str]) -> None:
    """Raises Refusal 400: a parameter that is misspelt must not be ignored."""
    for name in query:
        if name not in names:
            raise wrong(name[:40], f"is none; there are {', '.join(names)}")


def moment(query: Mapping[str, str], name: str, *, end: bool = False) -> datetime | None:
    """A day or a moment with its zone; None where it is not said. As an `end` a day is the whole day."""
    text = query.get(name, "")
    if not text:
        return None
    try:
        if len(text) == len("2026-01-31"):
            day = date.fromisoformat(text) + timedelta(days=end)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        found = datetime.fromisoformat(text.replace(" ", "+"))  # a "+" that was not escaped has become a space
        if found.tzinfo is None:
            raise ValueError("it says no zone")
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong(name, f"must be like 2026-01-31 or 2026-01-31T12:00:00Z, got {text[:40]!r}") from None


def number(query: Mapping[str, str], name: str, *, default: int | None = None, most: int = 2**63 - 1) -> int | None:
    """A whole number from 1 on."""
    text = query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not 1 <= int(text) <= most:
        raise wrong(name, f"must be a number from 1 to {most}, got {text[:40]!r}")
    return int(text)


def yes(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise wrong(name, f"must be true or false, got {text[:40]!r}")
    return text == "true"


def words(query: Mapping[str, str], name: str, choices: Collection[str]) -> tuple[str, ...]:
    """Some of them, separated by commas, each once; none where it is not said."""
    given = tuple(dict.fromkeys(filter(None, query.get(name, "").split(","))))
    for word in given:
        if word not in choices:
            raise wrong(name, f"must be of {', '.join(choices)}, got {word[:40]!r}")
    return given


def text(query: Mapping[str, str], name: str) -> str:
    """Any; without what PostgreSQL has no place for."""
    return query.get(name, "").replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def wrong(name: str, rule: str) -> Refusal:
    return Refusal(400, "invalid_parameter", f"the query's {name!r} {rule}", param=name)
