"""AWS credentials in memory: fetched by a process of its own on first need, renewed before they expire.

botocore stays out of this process: its import would hold up every stream, and stay in memory for months. While a
renewal runs or fails, calls go on with what is still valid. Leaves out the chain itself (`aws_credentials`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

from llm_proxy.proxy.signed import NoKey
from llm_proxy.service.aws_credentials import TIME_LIMIT
from llm_proxy.wire.sigv4 import Key

log = logging.getLogger(__name__)

MARGIN = 900.0  # seconds before its end at which a key is renewed, or the last quarter of a short life
STATIC_FOR = 300.0  # seconds after which keys that do not expire are looked up again: files are edited
USED = 3600.0  # seconds without a call after which nothing is renewed until the next one
SOONEST, LATEST = 1.0, 60.0  # seconds to the next attempt after failures; doubled each time
PAUSE = 10.0  # seconds between renewals that succeed
_LEAST_LIFE = 5.0  # seconds a key must have left to be used


class Answer(NamedTuple):
    """What the chain gave. Times in seconds since 1970; `expires` 0: never."""

    key: Key
    source: str
    expires: float
    fetched: float

    @property
    def renewal(self) -> float:
        """When it should be renewed."""
        if not self.expires:
            return self.fetched + STATIC_FOR
        return self.expires - min(MARGIN, (self.expires - self.fetched) / 4)


class AwsKeys:
    """A `KeySource`. Used from the event loop only."""

    def __init__(self, *, region: str, profile: str) -> None:
        # -P: never import from the folder the daemon happened to be started in
        isolation = "-I" if sys.flags.isolated else "-P"
        self._command = (sys.executable, isolation, "-m", "llm_proxy.service.aws_credentials", region, profile)
        self._answer: Answer | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._suspect = False  # AWS has refused the key we have
        self._error = ""
        self._error_at = 0.0
        self._failures = 0
        self._not_before = 0.0  # of the loop's clock
        self._used_at = 0.0
        self._closed = False

    def current(self) -> Key | None:
        self._used_at = time.time()
        answer = self._valid()
        if answer is None or self._suspect or self._used_at > answer.renewal:
            self._renew()
        if answer is None or (self._suspect and self._renewing is not None):
            return None
        return answer.key

    async def wait(self, limit: float) -> Key:
        if self._renewing is not None:
            await asyncio.wait({self._renewing}, timeout=limit)
        answer = self._valid()
        if answer is None:
            raise NoKey(self._error or f"AWS credentials did not come within {limit:g} s; they are still looked for")
        return answer.key

    def rejected(self, key: Key, why: str) -> None:
        if self._answer is not None and key == self._answer.key:
            self._note_error(f"{why} to credentials from {self._answer.source}")
            self._suspect = True
            self._renew()

    def state(self) -> dict[str, object]:
        """Source, expiry and what last went wrong; asking sets off the first look."""
        self.current()
        answer = self._valid()
        return {
            "available": answer is not None,
            "source": answer.source if answer is not None else None,
            "expires": _moment(answer.expires) if answer is not None else None,
            "last_error": self._error or None,
            "last_error_time": _moment(self._error_at),
        }

    async def close(self) -> None:
        """Look for nothing more; a process that still does is ended."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})

    def _valid(self) -> Answer | None:
        answer = self._answer
        if answer is None or (answer.expires and answer.expires - time.time() < _LEAST_LIFE):
            return None
        return answer

    def _renew(self) -> None:
        """Set off a renewal, unless one runs or the last was a moment ago."""
        loop = asyncio.get_running_loop()
        if self._renewing is None and not self._closed and loop.time() >= self._not_before:
            self._renewing = loop.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            self._take(await self._ask())
        except (OSError, ValueError, LookupError, TypeError, TimeoutError) as error:
            words = f"no answer within {TIME_LIMIT} s" if isinstance(error, TimeoutError) else str(error)
            self._failed(f"AWS credentials could not be looked for: {words}")
        finally:
            self._renewing = None
            self._suspect = False

    async def _ask(self) -> dict[str, Any]:
        """One run of the chain. A session of its own: nothing in it can ask on our terminal."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(TIME_LIMIT):
                raw, _ = await process.communicate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a credential_process too
                await process.wait()
        if not raw:
            raise ValueError(f"their process ended with status {process.returncode}")
        answer = json.loads(raw)
        if not isinstance(answer, dict):
            raise TypeError("their process did not answer with an object")
        return answer

    def _take(self, answer: dict[str, Any]) -> None:
        if "error" in answer:
            self._failed(str(answer["error"]))
            return
        key = Key(answer["access"], answer["secret"], answer["token"])
        before, now = self._answer, time.time()
        self._answer = Answer(key, str(answer["source"]), float(answer["expires"] or 0), now)
        if before is None or before.source != self._answer.source or self._failures:
            log.info("AWS credentials: from %s", self._answer.source)
        self._failures = 0
        if before is None or before.key != key:
            self._error = ""
        self._plan(PAUSE, max(self._answer.renewal - now, PAUSE))

    def _failed(self, words: str) -> None:
        if words != self._error:
            log.warning("%s", words)
        self._note_error(words)
        pause = min(SOONEST * 2**self._failures, LATEST)
        self._failures = min(self._failures + 1, 10)
        self._plan(pause, pause)

    def _note_error(self, words: str) -> None:
        self._error, self._error_at = words, time.time()

    def _plan(self, pause: float, renewal: float) -> None:
        """No renewal for `pause` seconds; one in `renewal` seconds, if there are calls."""
        loop = asyncio.get_running_loop()
        self._not_before = loop.time() + pause
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(renewal, self._renew_if_used)

    def _renew_if_used(self) -> None:
        if self._answer is not None and time.time() - self._used_at < USED:
            self._renew()


def _moment(at: float) -> str | None:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if at else None
