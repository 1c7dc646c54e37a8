"""Opens the explorer: the running daemon's, or where none serves one, a stand-alone explorer until Ctrl-C.

The address that is opened holds a token which works once and soon expires: on its way to the browser it may stand in
a list of processes, where it is worthless by the time somebody has read it. Leaves out who is let in (the explorer's
guard).
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_proxy import __version__, paths
from llm_proxy.errors import CannotListen, StateUnusable
from llm_proxy.service import activation, process, state
from llm_proxy.service.listen import Listeners, listen
from llm_proxy.service.passthrough import is_safe

if TYPE_CHECKING:
    from llm_proxy.service.ask import Places
    from llm_proxy.settings import Loaded, Settings

PORT = 8080  # of a stand-alone one, where nothing else is said
_PATIENCE = 8.0  # seconds for a daemon of ours to answer, which a busy machine may keep from it for a while
_OPENING = 10.0  # seconds for the command that opens a browser


def run(loaded: Loaded, *, port: int | None, print_only: bool) -> int:
    """The exit status. Stand-alone always with `port`, and for logs that were named and are not the daemon's.

    Raises CannotListen, StateUnusable.
    """
    settings = loaded.settings
    folder = paths.state_folder()
    state.prepare(folder)
    state.secret(folder)
    if port is None:
        found = running(folder) or beside(settings.port)
        named = settings.log_dir if loaded.sources.get("log_dir") == "--log-dir" else ""
        if found and named in ("", _health(found).get("log_dir")):
            show(invitation(folder, found, print_only=print_only), print_only=print_only)
            return 0
    return alone(settings, folder, PORT if port is None else port, print_only=print_only)


def running(folder: str) -> int:
    """The port of this user's daemon, where it serves an explorer; 0 where there is none."""
    run = state.read_run(folder)
    if run is None or is_safe(run, folder):
        return 0
    # Where systemd listens, our question starts the daemon; and a busy one may answer later than a shell would wait.
    awake = run.instance != activation.NOBODY and state.alive(run)
    return run.port if awake or process.health(run, limit=_PATIENCE) else 0


def beside(port: int) -> int:
    """`port`, where a daemon of ours serves that runs in some terminal; 0 where not."""
    import psutil

    health = _health(port)
    pid = health.get("pid")
    if health.get("app") != "llm-proxy" or not isinstance(pid, int):
        return 0
    try:
        ours = psutil.Process(pid).uids().real == os.getuid()
    except (psutil.Error, ValueError):
        return 0
    return port if ours else 0


def _health(port: int) -> dict[str, Any]:
    """By the path that is ours with a single target too."""
    return process.health(state.Run(port, 1, 0, "-", activation.NOBODY), "/llm-proxy/health", _PATIENCE)


def invitation(folder: str, port: int, *, print_only: bool) -> str:
    """An address that lets in whoever opens it first, for a while. Raises StateUnusable."""
    from llm_proxy.explorer import guard

    try:
        token = guard.new_token(Path(folder), time.time(), guard.PRINTED if print_only else guard.OPENED)
    except OSError as exc:
        raise StateUnusable(f"{folder}/{guard.TOKEN} cannot be written: {exc.strerror}") from exc
    return f"http://127.0.0.1:{port}/llm-proxy/?token={token}"


def show(url: str, *, print_only: bool) -> None:
    """In a browser, or as a line where there is none."""
    home = url.partition("?")[0]
    if not print_only and open_browser(url, os.environ):
        print(f"The explorer opens in your browser: {home}", flush=True)
        return
    print(f"{url}\n(works once, and not for long; later {home} does)", flush=True)


def open_browser(url: str, environ: Mapping[str, str]) -> bool:
    """Whether something was found that opens it."""
    command = browser(environ)
    if not command:
        return False
    try:
        opening = subprocess.Popen(
            [*command, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        return opening.wait(_OPENING) == 0
    except subprocess.TimeoutExpired:  # some are the browser itself
        return True


def browser(environ: Mapping[str, str]) -> list[str]:
    """The command that opens an address on this machine's screen; empty where there is none."""
    import shutil

    path = environ.get("PATH")
    named = environ.get("BROWSER", "").partition(":")[0]
    if named and "%" not in named and shutil.which(named, path=path):
        return [named]
    if sys.platform == "darwin":
        return ["open"]
    if not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY") or environ.get("WSL_DISTRO_NAME")):
        return []
    names = ("wslview", "xdg-open", "sensible-browser", "x-www-browser")
    return next(([name] for name in names if shutil.which(name, path=path)), [])


def alone(settings: Settings, folder: str, port: int, *, print_only: bool) -> int:
    """Serve one until Ctrl-C. Raises CannotListen, StateUnusable."""
    from llm_proxy.service import ask

    try:
        found = listen("127.0.0.1", port)
    except CannotListen as exc:
        raise CannotListen(f"{exc}; llm-proxy --explore-port N takes another port") from exc
    os.umask(0o077)
    for warning in found.warnings:
        print(f"llm-proxy: {warning}", file=sys.stderr)
    print(f"llm-proxy {__version__} explores {settings.log_dir}; Ctrl-C ends it", flush=True)
    places = ask.Places(Path(settings.log_dir), Path(paths.index_file(settings.log_dir)))
    _freshen(places)
    asyncio.run(_serve(settings, folder, places, found, print_only=print_only))
    return 0


async def _serve(settings: Settings, folder: str, places: Places, found: Listeners, *, print_only: bool) -> None:
    from llm_proxy.explorer.serving import serve
    from llm_proxy.explorer.site import application
    from llm_proxy.service import exploring

    index = str(places.index)
    options = exploring.options(settings, index=index, state=folder, journal="", socket="", version=__version__)
    app = application(options, fresh=lambda: _freshen(places), stranger=_is_strange)
    stop = asyncio.Event()
    url = invitation(folder, found.port, print_only=print_only)
    asyncio.get_running_loop().run_in_executor(None, lambda: show(url, print_only=print_only))
    await serve(app, found.sockets, stop)
    sys.stdout.flush()
    os._exit(0)  # a view may compute for seconds yet, and nobody waits for it


def _freshen(places: Places) -> None:
    """What cannot be indexed now is missing on the pages, no more."""
    from llm_proxy.index.database import Unusable
    from llm_proxy.service import ask

    try:
        ask.freshen(places)
    except (sqlite3.Error, OSError, Unusable) as error:
        print(f"llm-proxy: the index cannot be brought up to date: {error}", file=sys.stderr, flush=True)


def _is_strange(link: socket.socket) -> bool:
    """Whether another user's program is at the other end: it may have come by a session's cookie."""
    from llm_proxy.proxy.callers import Peer, owner

    if sys.platform != "linux":
        return False
    theirs, ours = link.getpeername(), link.getsockname()
    return owner(Peer(theirs[0], theirs[1], ours[0], ours[1])) not in (None, 0, os.geteuid())
