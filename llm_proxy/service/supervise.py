"""The keeper, kept alive: spawned, woken by a pipe, started again when it dies, stopped within a limit.

One pipe serves all of its lives: bytes mean "look at the journal", its end means this process is gone. The pipe dies
with us, so a SIGKILL tells the keeper too. Leaves out what the keeper does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds
_HEALTHY_AFTER = 10.0  # a life this long forgives the deaths before it


class Supervisor:
    """Runs `python -m MODULE ARGUMENTS`. Owned by the event loop, except `wake`, which any thread may call."""

    def __init__(
        self, module: str, arguments: Sequence[str], *, errors: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """`errors` is the file that takes the child's stderr: a pipe could fill, or break with us.

        `variables` are added to its environment, which other users cannot read, as they can its command line.
        """
        # -P: never import from the folder the daemon happened to be started in
        isolation = "-I" if sys.flags.isolated else "-P"
        self._command = (sys.executable, isolation, "-m", module, *arguments)
        self._name = module.rpartition(".")[2]
        self._errors = errors
        self._variables = dict(variables or {})
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._pipe_guard = threading.Lock()  # a closed descriptor's number may be another file's the next moment
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_alive(), name=f"supervise {self._name}")

    async def settle(self) -> None:
        """Instead of `start` and `stop`: run it once on what is there, to its own end."""
        with self._pipe_guard:
            self._stopping = True
            os.close(self._writing)
        try:
            why = await self._live()
        except OSError as exc:
            why = f"could not be started: {exc}"
        finally:
            os.close(self._reading)
        if why != "ended with status 0":
            log.warning("the %s %s", self._name, why)

    def wake(self) -> None:
        """Tell it that there is something to read. Never waits: a full pipe has told it already."""
        with self._pipe_guard:
            if not self._stopping:
                try:
                    os.write(self._writing, b"\n")
                except OSError:
                    pass

    async def stop(self, limit: float) -> None:
        """End the pipe and give the child `limit` seconds to settle; after that it is killed, and loses nothing."""
        with self._pipe_guard:
            self._stopping = True
            os.close(self._writing)
        os.close(self._reading)
        if self._task is None:
            return
        if self.pid is None:
            self._task.cancel()  # between two lives: there is nobody to wait for
        done, _ = await asyncio.wait({self._task}, timeout=limit)
        if not done and self._process is not None:
            log.warning("the %s did not settle within %g s and goes on at the next start", self._name, limit)
            try:
                self._process.kill()
            except ProcessLookupError:
                pass
            await asyncio.wait({self._task}, timeout=1)

    async def _keep_alive(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping:
            born = time.monotonic()
            try:
                why = await self._live()
            except OSError as exc:
                why = f"could not be started: {exc}"
            if self._stopping:
                return
            if time.monotonic() - born > _HEALTHY_AFTER:
                pause = FIRST_PAUSE
            log.warning("the %s %s; traffic flows on, it is started again in %g s", self._name, why, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _live(self) -> str:
        with self._open_errors() as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=self._reading,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **self._variables},
                # Ctrl-C in our terminal asks us to drain; the child must outlast that. And Linux shares processors
                # between sessions: in one of its own it can step back behind us.
                start_new_session=True,
            )
        code = await self._process.wait()
        ending = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"{ending} ({last})" if (last := self._last_error()) else ending

    def _open_errors(self) -> BinaryIO:
        try:
            fd = os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        return os.fdopen(fd, "wb", buffering=0)

    def _last_error(self) -> str:
        try:
            with open(self._errors, "rb") as file:  # noqa: PTH123
                return (file.read(65536).decode(errors="replace").strip().splitlines() or [""])[-1]
        except OSError:
            return ""
