"""Safe mode: the same port, the same calls, and as little else as possible.

Entered when the daemon has crashed again and again. No journal, no keeper, no configuration, the standard library's
event loop: whatever of those made it crash is left aside, and clients keep working. The state file `safe` holds the
instance that runs this way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import NoReturn

from llm_proxy.errors import StateUnusable
from llm_proxy.proxy.server import Proxy
from llm_proxy.service import state
from llm_proxy.service.daemon import Service, carry, spoken
from llm_proxy.service.voice import Voice
from llm_proxy.settings import Loaded, Settings

log = logging.getLogger(__name__)

REASON = "safe mode: the daemon crashed repeatedly; calls are carried, nothing is recorded"


def run() -> int:
    """Carry until told to stop; the exit status. Raises AlreadyRunning, CannotListen."""
    with spoken() as voice:
        return carry(Passthrough(voice))


def enter() -> NoReturn:
    """Become safe mode: this process starts over, so that nothing of what it has done so far is left."""
    os.execv(sys.executable, [sys.executable, "-I", "-m", "llm_proxy", "--service", "--passthrough"])


def is_safe(run: state.Run, folder: str) -> bool:
    """Whether that daemon runs in safe mode."""
    return state.read(folder, "safe") == run.instance.encode()


class Passthrough(Service):
    """A service without a record."""

    unrecorded = REASON
    status = REASON

    def __init__(self, voice: Voice) -> None:
        super().__init__(Loaded(Settings(loop="asyncio"), {}), voice)

    def _count_start(self) -> None:
        """It is what a crash loop leads to; its own crashes lead nowhere else."""

    def _open_journal(self) -> None:
        log.error("NOT RECORDING, %s", REASON)

    def _explorer(self) -> None:
        """Nothing but carrying."""

    async def _retry_journal(self, proxy: Proxy) -> None:
        """Never: it may be the journal that crashes us."""

    async def _settle_the_dead(self) -> None:
        """The next real start does."""

    def _write_state(self, port: int) -> str:
        with contextlib.suppress(StateUnusable):  # what follows says so
            state.write(self._folder, "safe", self.instance)
        return super()._write_state(port)

    def _withdraw(self) -> None:
        super()._withdraw()
        state.remove(self._folder, "safe")
