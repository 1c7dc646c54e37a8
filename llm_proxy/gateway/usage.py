"""The usage log: every attempt becomes a row of `request_logs`, without anybody waiting for it.

Attempts wait in memory for about a second; a process that is killed leaves them to the next (`noted`). While the store
is away rows go to a file of ours and from there into the store later; each has an id of its own, so none is counted
twice. What it cost is found here, on the way into the store. Leaves out what is read from the log (`manage.usage`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import String
from sqlalchemy.exc import SQLAlchemyError

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway.costing import Prices
from llm_proxy.gateway.facts import Attempt, Caller, Provider, ProviderKey, Role, Target
from llm_proxy.gateway.noted import Noted, left_behind
from llm_proxy.gateway.spool import Row, Spool
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.gateway.store.schema import MOST_TOKENS, request_logs
from llm_proxy.gateway.store.wordless import wordless
from llm_proxy.wire.exposition import Sample, family

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.ext.asyncio import AsyncConnection

    from llm_proxy.gateway.store.database import Store

log = logging.getLogger("llm_proxy.gateway")

SPOOL: Final = "usage.spool"  # in the state folder
BATCH: Final = 500  # rows of one transaction
_PAUSE: Final = 0.5  # seconds in which a batch may fill
_AT_ONCE: Final = 125  # rows of one statement: building it is done on the event loop
_PATIENCE: Final = 5.0  # seconds that the store has for a batch
_AGAIN: Final = 2.0  # seconds until a store that is away is tried again
_LOOK: Final = 10.0  # seconds between two looks at what killed processes left behind
_MOST_WAITING: Final = 50_000  # attempts in memory; what comes beyond is counted as lost
_TOLD_EVERY: Final = 60.0  # seconds between two lines about the same trouble
_WIDTHS: Final = {
    column.name: column.type.length
    for column in request_logs.c
    if isinstance(column.type, String) and column.type.length
}
_COUNTS: Final = {
    "noted": "Attempts noted.",
    "written": "Attempts written to the store.",
    "spooled": "Attempts put into a file because the store was away.",
    "lost": "Attempts that found no place, or that the store does not take.",
}


class UsageLog:
    """One for a process; `state` is the folder of its file. Attempts are noted on the event loop."""

    def __init__(self, store: Store, state: str, prices: Prices | None = None) -> None:
        self.counts = dict.fromkeys(_COUNTS, 0)
        self._store = store
        self._spool = Spool(Path(state) / SPOOL)
        self._prices = prices or Prices()
        self._waiting: deque[Attempt] = deque()
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._turn = asyncio.Lock()
        self._inserting: _Inserting | None = None
        self._away_until = 0.0
        self._told = float("-inf")
        self._state = state
        self._noted: Noted | None = None
        self._looked = float("-inf")

    def begin(self) -> None:
        """From now on what is noted outlives this process, where there are files of memory. Blocks."""
        with contextlib.suppress(OSError):
            self._noted = Noted(self._state)

    def note(self, attempt: Attempt) -> None:
        """It will be written. Never waits and never fails."""
        self.counts["noted"] += 1
        waiting = self._waiting
        if len(waiting) >= _MOST_WAITING:
            self.counts["lost"] += 1
            return
        waiting.append(attempt)
        if self._noted is not None:
            self._noted.add(_line(attempt))
        if len(waiting) == 1:
            self._some.set()
        elif len(waiting) == BATCH:
            self._full.set()

    async def run(self) -> None:
        """Writes as it comes. Never ends."""
        await asyncio.to_thread(self._load)
        while True:
            await self._something()
            if self._noted is not None and time.monotonic() - self._looked >= _LOOK:
                self._looked = time.monotonic()
                await self._take_over()
            async with self._turn:
                placed = await self._write()
                while placed and len(self._waiting) < BATCH and await self._bring_back():
                    pass
            if not placed:
                await asyncio.sleep(_AGAIN)

    async def flush(self) -> None:
        """What was noted until now is in the store or in the file, unless neither can be written."""
        async with self._turn:
            while self._waiting and await self._write():
                pass

    async def close(self) -> None:
        """As `flush`; what neither store nor file took is left to the next process."""
        await self.flush()
        if self._noted is not None:
            self._noted.close()
            self._noted = None

    def metrics(self) -> Iterator[str]:
        """Lines in Prometheus' text format."""
        for name, words in _COUNTS.items():
            yield from family(
                f"llm_proxy_gateway_usage_{name}_total", "counter", words, [Sample({}, self.counts[name])]
            )
        words = "Attempts that wait in memory to be written."
        yield from family("llm_proxy_gateway_usage_waiting", "gauge", words, [Sample({}, len(self._waiting))])

    async def _something(self) -> None:
        """Until there is a batch, or less for a while, or it is time to look after the file."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN):
                await self._some.wait()
            async with asyncio.timeout(_PAUSE):
                await self._full.wait()

    async def _write(self) -> bool:
        """A batch of what waits, into the store or the file. False where it found no place, and still waits."""
        batch = list(islice(self._waiting, BATCH))
        if not batch:
            return True
        rows = await asyncio.to_thread(self._rows, batch)
        if rows and not await self._stored(rows) and not await self._spooled(rows):
            return False
        # Only now do they leave: where we are cancelled before, they are written again, by the same ids.
        for _ in batch:
            self._waiting.popleft()
        if self._noted is not None:
            self._noted.done(len(batch))
        if not self._waiting:
            self._some.clear()
        if len(self._waiting) < BATCH:
            self._full.clear()
        return True

    def _rows(self, batch: Sequence[Attempt]) -> list[Row]:
        """Blocks: it is for a thread."""
        rows = []
        for attempt in batch:
            try:
                rows.append(row(attempt, self._cost(attempt)))
            except Exception as error:  # whatever is wrong with one attempt must not hold back the others
                self._lose(1, f"{attempt.request_id} cannot be told: {error!r}")
        return rows

    def _cost(self, attempt: Attempt) -> int | None:
        try:
            return self._prices.cost(attempt)
        except Exception as error:  # prices are a foreign package's
            self._tell("attempts have no cost: %r", error)
            return None

    def _load(self) -> None:
        try:
            self._prices.load()
        except Exception as error:  # as above
            self._tell("attempts have no cost: %r", error)

    async def _stored(self, rows: Sequence[Row]) -> bool:
        """Whether the store has them, those aside that it does not take."""
        if time.monotonic() < self._away_until:
            return False
        try:
            try:
                await self._insert(rows)
            except (SQLAlchemyError, LookupError, ValueError):
                await self._insert_singly(rows)
        except (StoreAway, TimeoutError) as error:
            self._away_until = time.monotonic() + _AGAIN
            self._tell("usage goes to a file until the store is back: %s", error or "it did not answer in time")
            return False
        self.counts["written"] += len(rows)
        return True

    async def _insert(self, rows: Sequence[Row]) -> None:
        """One transaction. Raises StoreAway, TimeoutError, and others where something is wrong with a row."""
        async with asyncio.timeout(_PATIENCE), self._store.writing() as connection:
            if self._inserting is None:
                self._inserting = _Inserting(self._statement(), connection.dialect)
            for start in range(0, len(rows), _AT_ONCE):
                values = [self._inserting.values(one) for one in rows[start : start + _AT_ONCE]]
                await connection.exec_driver_sql(self._inserting.text, values)
            await _forget(connection, rows)

    async def _insert_singly(self, rows: Sequence[Row]) -> None:
        """Raises StoreAway, TimeoutError. A row that lacks columns gets what the schema says of them."""
        for one in rows:
            try:
                async with asyncio.timeout(_PATIENCE), self._store.writing() as connection:
                    await connection.execute(self._statement(), [one])
                    await _forget(connection, [one])
            except SQLAlchemyError as error:
                self._lose(1, f"the store does not take {one.get('id')!r}: {type(error).__name__}")
                self.counts["written"] -= 1

    def _statement(self) -> sqlite.Insert | postgresql.Insert:
        return self._store.insert(request_logs).on_conflict_do_nothing(index_elements=["id"])

    async def _spooled(self, rows: Sequence[Row]) -> bool:
        """Whether they are in the file, those aside that found no room."""
        try:
            count = await asyncio.to_thread(self._spool.add, rows)
        except OSError as error:
            self._tell("usage waits in memory: %s cannot be written: %s", SPOOL, error.strerror)
            return False
        self.counts["spooled"] += count
        if count < len(rows):
            self._lose(len(rows) - count, f"{SPOOL} is full")
        return True

    async def _bring_back(self) -> bool:
        """A block of the file into the store. Whether there may be more of it."""
        try:
            if not self._spool.holds_something():
                return False
            rows, broken = await asyncio.to_thread(self._spool.some)
            found = [one for one in map(_restored, rows) if one is not None]
            if found and not await self._stored(found):
                return False
            await asyncio.to_thread(self._spool.done)
        except OSError as error:
            self._tell("%s cannot be read: %s", SPOOL, error.strerror)
            return False
        if lost := broken + len(rows) - len(found):
            self._lose(lost, f"in {SPOOL} are lines that are no rows")
        return bool(rows or broken)

    async def _take_over(self) -> None:
        """What killed processes had noted into the store or the file; what finds no place stays where it is."""
        left = left_behind(self._state)
        try:
            while (lines := await asyncio.to_thread(next, left, None)) is not None:
                rows = await asyncio.to_thread(self._rows_of, lines)
                for start in range(0, len(rows), BATCH):
                    some = rows[start : start + BATCH]
                    async with self._turn:
                        if not await self._stored(some) and not await self._spooled(some):
                            return
                if rows:
                    log.warning("%d attempts that a process noted before it was killed are in the usage log", len(rows))
        except OSError as error:
            self._tell("what a killed process noted cannot be read: %s", error.strerror)
        finally:
            with contextlib.suppress(ValueError):  # a thread is in it, because we are cancelled
                left.close()

    def _rows_of(self, lines: Sequence[bytes]) -> list[Row]:
        """Of lines of `_line`, one that was cut off aside. Blocks: it is for a thread."""
        attempts = []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                attempts.append(_restored_attempt(line))
        return self._rows(attempts)

    def _lose(self, count: int, words: str) -> None:
        self.counts["lost"] += count
        self._tell("%d attempts are missing in the usage log: %s", count, words)

    def _tell(self, words: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            log.warning(words, *values)


async def _forget(connection: AsyncConnection, rows: Sequence[Row]) -> None:
    """The words of errors of calls that ended, or come from a file, after their user had them deleted."""
    if ids := [one["id"] for one in rows if one.get("error")]:
        await connection.execute(wordless(request_logs.c.id.in_(ids)))


class _Inserting:
    """A statement as the driver takes it: what SQLAlchemy would find out again for every value of every row."""

    def __init__(self, statement: sqlite.Insert | postgresql.Insert, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        names = compiled.positiontup or ()
        self.text = str(compiled)
        self._get = itemgetter(*names)
        told = (request_logs.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names)
        self._processors = [(at, process) for at, process in enumerate(told) if process is not None]

    def values(self, row: Row) -> tuple[Any, ...]:
        """In the statement's order. Raises KeyError where one is missing, ValueError for one that is none."""
        values = list(self._get(row))
        for at, process in self._processors:
            values[at] = process(values[at])
        return tuple(values)


class _Line(msgspec.Struct, array_like=True):
    """An attempt as it is noted: so much of it as its row and its cost depend on."""

    request_id: str
    number: int
    at: datetime
    user_id: int
    key_id: int | None
    team_ids: tuple[int, ...]
    api: str
    asked: str
    provider: Provider | None
    base_url: str
    provider_key_id: int
    model: str
    status: int | None
    ending: str
    error: str
    stream: bool
    usage: Usage
    seconds: float
    first_token: float | None
    project: str


_LINE: Final = msgspec.json.Decoder(_Line)
_encode: Final = msgspec.json.Encoder().encode


def _line(one: Attempt) -> bytes:
    """Empty where it cannot be told: then it is not kept. It is asked with every call, and this is why it is terse."""
    caller, target = one.caller, one.target
    if target is None:
        to: tuple[Provider | None, str, int, str] = (None, "", 0, "")
    else:
        key = target.key
        to = (key.provider, key.base_url, key.id, target.model)
    try:
        return b"%b\n" % _encode(
            _Line(
                one.request_id,
                one.number,
                one.at,
                caller.user_id,
                caller.key_id,
                caller.team_ids,
                one.api,
                one.asked,
                *to,
                one.status,
                one.ending,
                one.error,
                one.stream,
                one.usage,
                one.seconds,
                one.first_token,
                one.project,
            )
        )
    except Exception:  # nothing may come out of a note: whatever is wrong with it is told when it is written
        return b""


def _restored_attempt(line: bytes) -> Attempt:
    """Raises MsgspecError, ValueError."""
    told = _LINE.decode(line)
    target = None
    if told.provider is not None:
        key = ProviderKey(told.provider_key_id, 0, told.provider, "", "", base_url=told.base_url)
        target = Target(key, told.model)
    return Attempt(
        request_id=told.request_id,
        number=told.number,
        at=told.at,
        caller=Caller(told.user_id, "", Role.MEMBER, frozenset(), key_id=told.key_id, team_ids=told.team_ids),
        api=told.api,
        asked=told.asked,
        target=target,
        status=told.status,
        ending=told.ending,
        error=told.error,
        stream=told.stream,
        usage=told.usage,
        seconds=told.seconds,
        first_token=told.first_token,
        project=told.project,
    )


def row(attempt: Attempt, cost: int | None) -> Row:
    """What stands in `request_logs`; `cost` in billionths of a dollar. Texts are cut to what a column holds."""
    caller, target, usage = attempt.caller, attempt.target, attempt.usage
    values: Row = {
        "id": f"{attempt.request_id}-{attempt.number}",
        "request_id": attempt.request_id,
        "attempt": attempt.number,
        "user_id": caller.user_id,
        "api_key_id": caller.key_id,
        "team_id": caller.team_ids[0] if caller.team_ids else None,
        "api": attempt.api,
        "alias_used": attempt.asked,
        "provider_used": target.key.provider.value if target else "",
        "model_used": target.model if target else "",
        "provider_key_id": target.key.id if target else None,
        "stream": attempt.stream,
        "input_tokens": _tokens(usage.prompt),
        "output_tokens": _tokens(usage.output),
        "cache_read_tokens": _tokens(usage.cache_read),
        "cache_write_tokens": _tokens(usage.cache_write_5m + usage.cache_write_1h),
        "reasoning_tokens": _tokens(usage.reasoning),
        "cost": cost,
        "status_code": attempt.status,
        "ending": attempt.ending,
        "error": attempt.error,
        "milliseconds": round(attempt.seconds * 1000),
        "first_token_milliseconds": None if attempt.first_token is None else round(attempt.first_token * 1000),
        "project": attempt.project,
        "created_at": attempt.at,
    }
    for name, width in _WIDTHS.items():
        values[name] = _text(values[name], width)
    return values


def _restored(found: Row) -> Row | None:
    """A row as it was put into the file; None where it is none."""
    try:
        known = {name: found[name] for name in found if name in request_logs.c}
        return known | {"created_at": datetime.fromisoformat(known["created_at"]), "id": str(known["id"])}
    except (KeyError, TypeError, ValueError):
        return None


def _tokens(count: int) -> int:
    return min(max(count, 0), MOST_TOKENS)


def _text(text: str, width: int) -> str:
    """Without what PostgreSQL has no place for: NUL and halves of characters."""
    return text[:width].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
