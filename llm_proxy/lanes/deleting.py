"""What users want to be deleted, as a lane is asked for it.

A question stands in a folder until it is answered (`sinks.deletions`), so that whoever is killed is asked again. Leaves
out what sinks have written (each of them), and session logs (the keeper).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from llm_proxy.records import privacy, understood
from llm_proxy.sinks import deletions
from llm_proxy.sinks.deletions import CALLS, LOGS, Order
from llm_proxy.wire.attribution import Attribution

LOOK = 0.5  # seconds between two looks into the folder


@dataclass(frozen=True, slots=True)
class Gone:
    """`rules`: account -> the moment (ns since 1970) before which its calls were begun; `calls`: ids, where known.

    Ids are known of calls whose session logs were still there when it was asked.
    """

    rules: Mapping[str, int]
    calls: Collection[str]

    def covers(self, id: object, whose: object, opened: int | None) -> bool:
        """A call, by its id, or by a line's `gateway` object and when the line says that it began."""
        if isinstance(id, str) and id in self.calls:
            return True
        told: dict[str, Any] = whose if isinstance(whose, dict) else {}
        before = self.rules.get(str(told.get("account")))
        asked = Attribution(request=str(told.get("request") or ""))
        return before is not None and privacy.begun(asked, opened or 0) < before


class Deletions:
    """What one lane is asked for in `folder`; without one, nothing."""

    def __init__(self, folder: str = "", sink: str = "", lanes: str = "") -> None:
        self._folder = Path(folder) if folder else None
        self._answer = deletions.answer(sink, lanes)
        self._look_at = 0.0

    def asked(self) -> list[Order]:
        """What this lane has not answered, of which the session logs are rid. Raises OSError."""
        now = time.monotonic()
        if self._folder is None or now < self._look_at:
            return []
        found = deletions.orders(self._folder)
        orders = [order for order, files in found if LOGS in files and self._answer not in files]
        self._look_at = 0.0 if orders else now + LOOK
        return orders

    def gone(self, asked: Sequence[Order]) -> Gone:
        assert self._folder is not None
        calls = {call for order in asked for call in deletions.calls(self._folder / (order.id + CALLS))}
        return Gone(deletions.rules(asked), calls)

    def answer(self, asked: Iterable[Order], left: str) -> None:
        for order in asked:
            assert self._folder is not None
            if (self._folder / (order.id + LOGS)).exists():  # else it was answered without us
                deletions.put(self._folder / (order.id + self._answer), left.encode("utf-8", "replace"))


def whose(request: Mapping[str, Any] | None) -> dict[str, Any]:
    """The field of a line that says for whom a call was made; none where the gateway did not make it."""
    told = (request or {}).get("gateway")
    if not isinstance(told, dict) or not told.get("account"):
        return {}
    return {"gateway": {name: told[name] for name in ("account", "request") if told.get(name)}}


class _Told(msgspec.Struct):
    """What must be known of a line."""

    id: object = None
    timestamp: object = None
    gateway: object = None


_read = msgspec.json.Decoder(_Told).decode


def id_of(line: bytes, gone: Gone) -> str:
    """The call's id of a line with `id`, `timestamp`, and perhaps `gateway` that is covered; else ""."""
    try:
        told = _read(line)
    except (msgspec.MsgspecError, RecursionError):  # no line of ours
        return ""
    covered = gone.covers(told.id, told.gateway, understood.moment_of({"ts": told.timestamp}))
    return str(told.id) if covered else ""
