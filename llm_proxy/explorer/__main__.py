"""`python -m llm_proxy.explorer JSON`: serves the explorer until told to stop; the daemon starts and ends it.

On a socket it is the daemon's: stdin then rings, and ends with the daemon. On a port it is for trying things out.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from llm_proxy.explorer.options import SHARED, Options, options
from llm_proxy.explorer.serving import serve
from llm_proxy.explorer.site import BELL, SITE, application
from llm_proxy.unix import PathTooLong, bind

_NICENESS = 10  # people wait for a page; streams come first all the same


def main() -> int:
    given = options(sys.argv[1], os.environ.pop(SHARED, ""))
    os.umask(0o077)
    try:
        link = bind(given.socket) if given.socket else socket.create_server(("127.0.0.1", given.port))
    except (OSError, PathTooLong) as error:
        print(f"the explorer cannot listen on {given.socket or given.port}: {error}", file=sys.stderr)
        return 1
    asyncio.run(_live(given, link))
    return 0


def _step_back() -> None:
    """Behind the proxy and everybody else: Linux shares processors between sessions first, and this has its own."""
    os.nice(_NICENESS)
    with suppress(OSError):
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(str(_NICENESS))


async def _live(given: Options, link: socket.socket) -> None:
    app, stop = application(given), asyncio.Event()
    if given.socket:
        _step_back()
        app[BELL].listen(0, stop.set)
    warming = asyncio.get_running_loop().run_in_executor(None, app[SITE].warm)
    warming.add_done_callback(lambda done: done.exception())
    await serve(app, [link], stop)
    os._exit(0)  # a view may compute for seconds yet, and nobody waits for it


if __name__ == "__main__":
    sys.exit(main())
