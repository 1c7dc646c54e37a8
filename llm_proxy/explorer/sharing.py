"""The record that pages are made of: this machine's own, or that of all machines. And what others are told of ours.

Leaves out who may see what of it (`index.viewer`) and where entries of other machines are had (`index.bodies`).
"""

from __future__ import annotations

import asyncio
import hmac
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from llm_proxy.explorer.guard import Guard
from llm_proxy.explorer.options import Options
from llm_proxy.index import bodies
from llm_proxy.index.bodies import Fleet, Local, Storage
from llm_proxy.index.queries import IndexUnavailable, TookTooLong, open_index
from llm_proxy.index.record import Record
from llm_proxy.index.viewer import Viewer
from llm_proxy.records.redaction import Redactor
from llm_proxy.sinks import log_reader, s3_client

_FILE: Final = re.compile(r"[^/\0.][^/\0]*(?:/[^/\0.][^/\0]*){1,2}\.jsonl(?:\.zst)?")
_AGAIN: Final = 2.0  # seconds between two looks whether PostgreSQL is back
_NUMBER: Final = re.compile(r"[0-9]{1,15}", re.ASCII)

T = TypeVar("T")


class NoIndexYet(IndexUnavailable):
    """The keeper has not made it so far."""


class Records:
    """Asks the record. For any number of threads. While the shared index is away, this machine's own answers."""

    def __init__(self, options: Options, redactor: Redactor) -> None:
        self._index = Path(options.index)
        self._logs = Path(options.logs)
        self._redactor = redactor
        self._pool = self._fleet = None
        self._away = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        shared = options.shared
        if shared is not None:
            from llm_proxy.index.postgres import Pool  # who has no shared index does without the driver

            storage = None
            if shared.bucket:
                bucket = s3_client.Bucket(**shared.bucket)
                storage = Storage(partial(s3_client.client, bucket), bucket.name, bucket.prefix)
            self._pool = Pool(shared.url)
            self._fleet = Fleet(shared.machine, Local(self._logs), self._pool.addresses, storage)

    @property
    def away(self) -> bool:
        """Whether what is shown is this machine's own record, though there is one of several machines."""
        return self._away

    def ask(self, viewer: Viewer, question: Callable[[Record], T]) -> T:
        """As far as the viewer sees it. Raises IndexUnavailable, TookTooLong, and what the question raises."""
        if self._pool is None or self._away:
            return self._ask_own(viewer, question)
        try:
            with self._pool.open(viewer) as shared:
                return question(Record(shared, self._logs, self._redactor, self._fleet))
        except (IndexUnavailable, TookTooLong) as error:
            if isinstance(error, TookTooLong) and self._pool.answers():
                raise
            self._leave()
        return self._ask_own(viewer, question)

    def close(self) -> None:
        self._closed.set()
        if self._pool is not None:
            self._pool.close()

    def _ask_own(self, viewer: Viewer, question: Callable[[Record], T]) -> T:
        if not self._index.exists():
            raise NoIndexYet(f"{self._index} is not there")
        with open_index(self._index, viewer, self._redactor.text) as own:
            return question(Record(own, self._logs, self._redactor))

    def _leave(self) -> None:
        """Nobody waits for PostgreSQL any more, until one thread has found it back."""
        with self._lock:
            if not self._away:
                self._away = True
                threading.Thread(target=self._look, name="shared index", daemon=True).start()

    def _look(self) -> None:
        assert self._pool is not None
        while not self._closed.wait(_AGAIN):
            if self._pool.answers():
                self._away = False
                return


def middleware(guard: Guard, logs: Path) -> Middleware:
    """Answers other machines that ask for a line of our logs, before the guard: they bring a key of their own.

    Who asks with it saw the call in the shared index, and has judged there who may read it.
    """

    @web.middleware
    async def answering(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != bodies.PATH:
            return await handler(request)
        keys = guard.keys()
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = keys is not None and hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), bodies.key_of(keys.secret).encode()
        )
        if scheme.lower() != "bearer" or not right:
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        line = await asyncio.get_running_loop().run_in_executor(None, _line, logs, request)
        return web.Response(body=line, content_type="application/json") if line else web.Response(status=404)

    return answering


def _line(logs: Path, request: web.Request) -> bytes:
    """b"" where none stands there."""
    file, *numbers = (request.query.get(name, "") for name in ("file", "offset", "length"))
    if not _FILE.fullmatch(file) or not all(_NUMBER.fullmatch(one) for one in numbers):
        return b""
    offset, length = map(int, numbers)
    try:
        data = log_reader.data_at(logs / file, offset, min(length, log_reader.LONGEST_LINE))
    except OSError:
        return b""
    return data if log_reader.entry_of(data) is not None else b""
